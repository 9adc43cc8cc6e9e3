"""TRL's SFTTrainer with LoRA, as anybody writes it: nothing in here knows of Sluice. The frozen base is read from the drive, and
never written; only the adapters have optimizer states.

    python -m sluice.deepspeed examples/finetune_lora.py --deepspeed examples/ds_zero3_nvme.json

Needs trl and peft (scripts/requirements-frameworks.txt). Without --model it trains a small Llama of its own on numbers made here.
"""

import argparse

import datasets
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer


def small_model():
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=256, hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4, pad_token_id=0
    )
    return AutoModelForCausalLM.from_config(config)


def small_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3} | {str(number): number + 4 for number in range(200)}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--deepspeed", help="configuration (JSON)")
    parser.add_argument("--model", help="folder of a model and its tokenizer; default: small ones that are made here")
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    training = SFTConfig(
        output_dir="finetuned-lora",
        per_device_train_batch_size=8,
        max_steps=arguments.steps,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        bf16=False,
        max_length=32,
        use_cpu=not torch.cuda.is_available(),
        deepspeed=arguments.deepspeed,
        seed=1,
    )
    model = AutoModelForCausalLM.from_pretrained(arguments.model) if arguments.model else small_model()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model) if arguments.model else small_tokenizer()
    lines = [{"text": " ".join(str((7 * line + word) % 200) for word in range(24))} for line in range(256)]
    trainer = SFTTrainer(
        model=model,
        args=training,
        train_dataset=datasets.Dataset.from_list(lines),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()


if __name__ == "__main__":
    main()
