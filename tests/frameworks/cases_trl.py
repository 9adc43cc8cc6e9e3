"""Scripts over TRL, as people write them. Each returns what the other kind of run must return too."""

import datasets
import peft
import torch
import trl
from cases_hf import losses, training_arguments
from models import llama, sentence, tokenizer


def _config(kind, deepspeed, **more):
    return training_arguments(kind, deepspeed=deepspeed, max_steps=4, **{"bf16": False, "gradient_checkpointing": False, **more})


def _lora():
    torch.manual_seed(1)
    return peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], lora_dropout=0.0, task_type="CAUSAL_LM")


def sft(deepspeed=None, lora=True, **more):
    data = datasets.Dataset.from_list([{"text": sentence(n)} for n in range(32)])
    config = _config(trl.SFTConfig, deepspeed, max_length=16, **more)
    torch.manual_seed(2)
    trainer = trl.SFTTrainer(
        model=llama(), args=config, train_dataset=data, processing_class=tokenizer(), peft_config=_lora() if lora else None
    )
    trainer.train()
    return {"losses": losses(trainer), "sluice": type(trainer.model_wrapped).__module__.startswith("sluice.")}


def dpo(deepspeed=None, lora=False, **more):
    """With a reference model of its own: two engines in the process."""
    data = datasets.Dataset.from_list(
        [{"prompt": sentence(n), "chosen": " " + sentence(50 + n), "rejected": " " + sentence(90 + n)} for n in range(16)]
    )
    config = _config(trl.DPOConfig, deepspeed, max_length=32, beta=0.5, **more)
    torch.manual_seed(2)
    trainer = trl.DPOTrainer(
        model=llama(),
        ref_model=None if lora else llama(7),
        args=config,
        train_dataset=data,
        processing_class=tokenizer(),
        peft_config=_lora() if lora else None,
    )
    trainer.train()
    rewards = [entry["rewards/margins"] for entry in trainer.state.log_history if "rewards/margins" in entry]
    kinds = [type(model).__module__.startswith("sluice.") for model in (trainer.model_wrapped, trainer.ref_model)]
    return {"losses": losses(trainer), "rewards": rewards, "sluice": kinds[0], "reference": kinds[1] or lora}
