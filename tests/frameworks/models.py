"""Small models, data and tokenizers, made here: nothing is downloaded."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

WORDS = [f"w{number}" for number in range(120)]


def llama(seed=0, layers=2):
    torch.manual_seed(seed)
    return LlamaForCausalLM(llama_config(layers))


def llama_config(layers=2):
    return LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def t5(seed=0):
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=128, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=0.0, decoder_start_token_id=0
    )
    return T5ForConditionalGeneration(config)


class Sentences(torch.utils.data.Dataset):
    def __init__(self, count=32, length=16):
        self._count, self._length = count, length

    def __len__(self):
        return self._count

    def __getitem__(self, number):
        ids = torch.randint(3, 120, (self._length,), generator=torch.Generator().manual_seed(number))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


def tokenizer():
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3} | {word: number + 4 for number, word in enumerate(WORDS)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def sentence(seed, length=8):
    return " ".join(WORDS[n] for n in torch.randint(0, len(WORDS), (length,), generator=torch.Generator().manual_seed(seed)).tolist())
