"""Transformers' Trainer, as anybody writes it: nothing in here knows of Sluice.

    python examples/finetune_trainer.py                                                         plain PyTorch
    python -m sluice.deepspeed examples/finetune_trainer.py --deepspeed examples/ds_zero3_nvme.json
    torchrun --nproc-per-node 2 -m sluice.deepspeed examples/finetune_trainer.py --deepspeed examples/ds_zero3_nvme.json

Needs transformers and accelerate (scripts/requirements-frameworks.txt). Without --model it trains a small Llama of its own on numbers
made here; with it, what that folder holds.
"""

import argparse

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Trainer, TrainingArguments


class Numbers(torch.utils.data.Dataset):
    """Lines that count up: a model learns them in a few steps."""

    def __init__(self, length=32, vocabulary=256):
        self.length, self.vocabulary = length, vocabulary

    def __len__(self):
        return 256

    def __getitem__(self, number):
        ids = (torch.arange(self.length) + 7 * number) % self.vocabulary
        return {"input_ids": ids, "labels": ids.clone()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--deepspeed", help="configuration (JSON)")
    parser.add_argument("--model", help="folder of a model; default: a small one that is made here")
    parser.add_argument("--save", help="folder to save the trained model in")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--bf16", action="store_true")
    arguments = parser.parse_args()
    # First: under stage 3 Transformers builds the models that follow piece by piece.
    training = TrainingArguments(
        output_dir="finetuned",
        per_device_train_batch_size=8,
        max_steps=arguments.steps,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        bf16=arguments.bf16,
        use_cpu=not torch.cuda.is_available(),
        deepspeed=arguments.deepspeed,
        seed=1,
    )
    if arguments.model:
        model = AutoModelForCausalLM.from_pretrained(arguments.model)
    else:
        torch.manual_seed(1)
        small = LlamaConfig(
            vocab_size=256, hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4
        )
        model = AutoModelForCausalLM.from_config(small)
    trainer = Trainer(model=model, args=training, train_dataset=Numbers())
    trainer.train()
    if arguments.save:
        trainer.save_model(arguments.save)


if __name__ == "__main__":
    main()
