"""The models: tiny ones of Transformers', from a configuration, with weights drawn from a seed. None is downloaded."""

import dataclasses
from collections.abc import Callable

import torch
import transformers

WIDTH, WORDS, LAYERS = 32, 96, 3


@dataclasses.dataclass(frozen=True)
class Case:
    """build(): the model. inputs(generator): arguments of its forward, labels among them. prompt: which of these generate()
    is given; none: it can't generate. layers: how many repeated blocks it has. doors: name -> what is computed of (model,
    inputs) past the model's own forward. lora: names of modules that adapters are put on."""

    build: Callable
    inputs: Callable
    prompt: tuple = ()
    layers: int = LAYERS
    doors: dict = dataclasses.field(default_factory=dict)
    lora: tuple = ("q_proj", "v_proj")

    def make(self):
        torch.manual_seed(0)
        model = self.build()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():  # so that outputs differ much from place to place
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
        return model

    def batch(self, step=0):
        return self.inputs(torch.Generator().manual_seed(100 + step))


def ids(generator, shape=(2, 7)):
    return torch.randint(4, WORDS - 4, shape, generator=generator)


def text(generator):
    tokens = ids(generator)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}


def masked(generator):
    return {**text(generator), "labels": ids(generator)}


def pair(generator):
    return {"input_ids": ids(generator), "labels": ids(generator, (2, 5))}


def picture(generator, size=16):
    return torch.randn(2, 3, size, size, generator=generator)


def classified(generator):
    return {"pixel_values": picture(generator), "labels": torch.randint(0, 5, (2,), generator=generator)}


def picture_and_text(generator):
    return {"input_ids": ids(generator), "pixel_values": picture(generator), "return_loss": True}


IMAGE = WORDS - 1  # the token that stands for a part of a picture


def with_images(tokens, count):
    tokens = torch.cat([tokens[:, :1], torch.full((len(tokens), count), IMAGE), tokens[:, 1:]], 1)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens.masked_fill(tokens == IMAGE, -100)}


def llava_inputs(generator):
    return {**with_images(ids(generator), 16), "pixel_values": picture(generator)}


def qwen_vl_inputs(generator):
    """Two pictures of 4 x 4 patches, of which four become one token."""
    patches = torch.randn(2 * 16, 3 * 2 * 4 * 4, generator=generator)
    given = with_images(ids(generator), 4)
    types = (given["input_ids"] == IMAGE).int()
    return {**given, "pixel_values": patches, "image_grid_thw": torch.tensor([[1, 4, 4]] * 2), "mm_token_type_ids": types}


def spoken(generator):
    return {"input_features": torch.randn(2, 8, 40, generator=generator), "labels": ids(generator, (2, 5))}


def heard(generator):
    return {"input_values": torch.randn(2, 400, generator=generator), "labels": ids(generator, (2, 3))}


def of(kind, **config):
    """A function that builds the model class `kind` from its configuration."""

    def build():
        cls = getattr(transformers, kind)
        made = cls.config_class(**config)
        return cls(made)

    return build


SIZES = {"vocab_size": WORDS, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 48, "max_position_embeddings": 64}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = SIZES | TOKENS | {"num_key_value_heads": 2}
SIGHT = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 48}
SIGHT |= {"image_size": 16, "patch_size": 4}
ENCODER_DECODER = {"vocab_size": WORDS, "d_model": WIDTH, "encoder_layers": 2, "decoder_layers": 2, **TOKENS}
ENCODER_DECODER |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
ENCODER_DECODER |= {"decoder_start_token_id": 1, "forced_eos_token_id": None}


def hidden(*shape):
    return torch.linspace(-1, 1, WIDTH).expand(*shape, WIDTH).contiguous()


def without_labels(inputs):
    return {key: value for key, value in inputs.items() if key not in ("labels", "return_loss")}


DECODER_DOORS = {"the model in it": lambda m, i: m.model(input_ids=i["input_ids"])[0]}
LLAMA_DOORS = DECODER_DOORS | {
    "a part of a layer": lambda m, i: m.model.layers[1].mlp(hidden(2, 3)),
    "the last norm": lambda m, i: m.model.norm(hidden(2, 3)),
}
DECODER = {"inputs": text, "prompt": ("input_ids", "attention_mask")}
LLAMA_LIKE = DECODER | {"doors": LLAMA_DOORS}
BART_DOORS = {
    "the encoder": lambda m, i: m.get_encoder()(i["input_ids"])[0],
    "the decoder": lambda m, i: m.get_decoder()(i["labels"])[0],
    "the model in it": lambda m, i: m.model(i["input_ids"], decoder_input_ids=i["labels"])[0],
}

CASES = {
    "gpt2": Case(
        of("GPT2LMHeadModel", vocab_size=WORDS, n_embd=WIDTH, n_layer=LAYERS, n_head=4, n_positions=64, **TOKENS),
        **DECODER,
        doors={
            "the model in it": lambda m, i: m.transformer(i["input_ids"])[0],
            "a part of a layer": lambda m, i: m.transformer.h[2].mlp(hidden(2, 3)),
        },
        lora=("c_attn", "c_proj"),
    ),
    "llama": Case(of("LlamaForCausalLM", **GROUPED), **LLAMA_LIKE),
    "qwen3": Case(of("Qwen3ForCausalLM", **GROUPED, head_dim=8, tie_word_embeddings=True), **LLAMA_LIKE),
    "gemma2": Case(of("Gemma2ForCausalLM", **GROUPED, head_dim=8, sliding_window=4), **LLAMA_LIKE),
    "opt": Case(
        of(
            "OPTForCausalLM",
            **{**SIZES, **TOKENS},
            ffn_dim=48,
            word_embed_proj_dim=16,
        ),
        **DECODER,
        doors=DECODER_DOORS
        | {
            "the decoder": lambda m, i: m.model.decoder(i["input_ids"])[0],
            "a projection": lambda m, i: m.model.decoder.project_out(hidden(2)),
        },
    ),
    "gpt_neox": Case(
        of("GPTNeoXForCausalLM", **SIZES, **TOKENS),
        **DECODER,
        doors={
            "the model in it": lambda m, i: m.gpt_neox(i["input_ids"])[0],
            "a part of a layer": lambda m, i: m.gpt_neox.layers[0].mlp(hidden(2, 3)),
        },
        lora=("query_key_value",),
    ),
    "falcon": Case(
        of("FalconForCausalLM", vocab_size=WORDS, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4, **TOKENS),
        **DECODER,
        doors={"the model in it": lambda m, i: m.transformer(i["input_ids"])[0]},
        lora=("query_key_value",),
    ),
    "bert": Case(
        of("BertForMaskedLM", **SIZES),
        masked,
        doors={
            "the model in it": lambda m, i: m.bert(i["input_ids"])[0],
            "embeddings": lambda m, i: m.bert.embeddings(i["input_ids"]),
            "an encoder": lambda m, i: m.bert.encoder(hidden(2, 3))[0],
            "a part of the head": lambda m, i: m.cls.predictions.transform(hidden(2, 3)),
        },
        lora=("query", "value"),
    ),
    "deberta_v2": Case(
        of(
            "DebertaV2ForSequenceClassification",
            **SIZES,
            relative_attention=True,
            position_buckets=8,
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            pos_att_type=["p2c", "c2p"],
            num_labels=5,
        ),
        lambda g: {"input_ids": ids(g), "labels": torch.randint(0, 5, (2,), generator=g)},
        doors={
            "the model in it": lambda m, i: m.deberta(i["input_ids"])[0],
            "a method": lambda m, i: m.deberta.encoder.get_rel_embedding(),
        },
        lora=("query_proj", "value_proj"),
    ),
    "t5": Case(
        of(
            "T5ForConditionalGeneration",
            **{"vocab_size": WORDS, "d_model": WIDTH, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
            **{"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "feed_forward_proj": "gated-gelu"},
        ),
        pair,
        prompt=("input_ids",),
        layers=4,
        doors={
            "the encoder": lambda m, i: m.get_encoder()(i["input_ids"])[0],
            "the decoder": lambda m, i: m.get_decoder()(i["labels"])[0],
            "the position bias": lambda m, i: m.encoder.block[0].layer[0].SelfAttention.compute_bias(3, 4),
        },
        lora=("q", "v"),
    ),
    "bart": Case(
        of("BartForConditionalGeneration", **ENCODER_DECODER, max_position_embeddings=64),
        pair,
        prompt=("input_ids",),
        layers=4,
        doors=BART_DOORS,
    ),
    "mixtral": Case(of("MixtralForCausalLM", **GROUPED, num_local_experts=4), **DECODER, doors=DECODER_DOORS),
    "olmoe": Case(
        of("OlmoeForCausalLM", **GROUPED, num_experts=6, num_experts_per_tok=2),
        **DECODER,
        doors=DECODER_DOORS | {"experts": lambda m, i: m.model.layers[1].mlp(hidden(2, 3))},
    ),
    "deepseek_v3": Case(
        of(
            "DeepseekV3ForCausalLM",
            **GROUPED | {"num_key_value_heads": 4},
            **{"q_lora_rank": 12, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8},
            **{"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1},
            moe_intermediate_size=24,
        ),
        **DECODER,
        doors=DECODER_DOORS | {"experts": lambda m, i: m.model.layers[1].mlp(hidden(2, 3))},
        lora=("q_b_proj", "kv_b_proj"),
    ),
    "vit": Case(
        of("ViTForImageClassification", **SIGHT, num_labels=5),
        classified,
        doors={
            "the model in it": lambda m, i: m.vit(i["pixel_values"])[0],
            "embeddings": lambda m, i: m.vit.embeddings(i["pixel_values"]),
        },
        lora=(r".*(q_proj|query|v_proj|value)",),
    ),
    "swin": Case(
        of(
            "SwinForImageClassification",
            **{"image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
            num_labels=5,
        ),
        classified,
        layers=4,
        doors={"the model in it": lambda m, i: m.swin(i["pixel_values"])[0]},
        lora=(r".*(q_proj|query|v_proj|value)",),
    ),
    "clip": Case(
        of("CLIPModel", text_config=SIZES | TOKENS, vision_config=SIGHT, projection_dim=16),
        picture_and_text,
        layers=2 * LAYERS,
        doors={
            "text features": lambda m, i: first(m.get_text_features(i["input_ids"])),
            "image features": lambda m, i: first(m.get_image_features(i["pixel_values"])),
            "the vision model": lambda m, i: m.vision_model(i["pixel_values"])[0],
            "the text model": lambda m, i: m.text_model(i["input_ids"])[0],
            "the scale": lambda m, i: m.logit_scale.exp(),
        },
    ),
    "llava": Case(
        lambda: transformers.LlavaForConditionalGeneration(
            transformers.LlavaConfig(
                text_config=transformers.LlamaConfig(**GROUPED),
                vision_config=transformers.CLIPVisionConfig(**SIGHT),
                image_token_id=IMAGE,
                image_token_index=IMAGE,
            )
        ),
        llava_inputs,
        prompt=("input_ids", "attention_mask", "pixel_values"),
        layers=2 * LAYERS,
        doors={
            "the model in it": lambda m, i: m.model(**without_labels(i))[0],
            "the language model": lambda m, i: m.model.language_model(i["input_ids"])[0],
            "the vision tower": lambda m, i: m.model.vision_tower(i["pixel_values"])[0],
            "the projector": lambda m, i: m.model.multi_modal_projector(hidden(2)),
        },
    ),
    "qwen2_vl": Case(
        lambda: transformers.Qwen2VLForConditionalGeneration(
            transformers.Qwen2VLConfig(
                text_config=GROUPED | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}},
                vision_config={"depth": 2, "embed_dim": WIDTH, "hidden_size": WIDTH, "num_heads": 4, "patch_size": 4, "mlp_ratio": 2},
                **{"image_token_id": IMAGE, "video_token_id": IMAGE - 1, "vision_start_token_id": IMAGE - 2},
                **{"vision_end_token_id": IMAGE - 3, "tie_word_embeddings": True},
            )
        ),
        qwen_vl_inputs,
        prompt=("input_ids", "attention_mask", "pixel_values", "image_grid_thw", "mm_token_type_ids"),
        layers=LAYERS + 2,
        doors={
            "the model in it": lambda m, i: m.model(**without_labels(i))[0],
            "the language model": lambda m, i: m.model.language_model(i["input_ids"])[0],
            "the vision model": lambda m, i: m.model.visual(i["pixel_values"], grid_thw=i["image_grid_thw"])[0],
        },
    ),
    "whisper": Case(
        of(
            "WhisperForConditionalGeneration",
            **ENCODER_DECODER,
            **{"num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 32},
            **{"suppress_tokens": None, "begin_suppress_tokens": None},
        ),
        spoken,
        prompt=("input_features",),
        layers=4,
        doors={
            "the encoder": lambda m, i: m.get_encoder()(i["input_features"])[0],
            "the model in it": lambda m, i: m.model(i["input_features"], decoder_input_ids=i["labels"])[0],
            "a head": lambda m, i: m.proj_out(hidden(2)),
        },
    ),
    "wav2vec2": Case(
        of(
            "Wav2Vec2ForCTC",
            **SIZES,
            **{"conv_dim": (16, 16), "conv_kernel": (10, 3), "conv_stride": (5, 2), "num_feat_extract_layers": 2},
            **{"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4, "apply_spec_augment": False},
            **{"layerdrop": 0.0, "pad_token_id": 0, "ctc_loss_reduction": "mean"},
        ),
        heard,
        doors={
            "the model in it": lambda m, i: m.wav2vec2(i["input_values"])[0],
            "the features": lambda m, i: m.wav2vec2.feature_extractor(i["input_values"]),
            "positions, with a parametrized weight": lambda m, i: m.wav2vec2.encoder.pos_conv_embed(hidden(2, 9)),
        },
    ),
    "mamba": Case(
        of("MambaForCausalLM", vocab_size=WORDS, hidden_size=WIDTH, num_hidden_layers=LAYERS, state_size=4, **TOKENS),
        **DECODER,
        doors={"the model in it": lambda m, i: m.backbone(i["input_ids"])[0]},
        lora=("in_proj", "x_proj"),
    ),
    "rwkv": Case(
        of(
            "RwkvForCausalLM",
            **{"vocab_size": WORDS, "context_length": 64, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, **TOKENS},
        ),
        **DECODER,
        doors={"the model in it": lambda m, i: m.rwkv(i["input_ids"])[0]},
        lora=("key", "value"),
    ),
}


def first(output):
    return output if isinstance(output, torch.Tensor) else output[0]
