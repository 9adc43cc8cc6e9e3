"""A loop of Accelerate's, as anybody writes it: nothing in here knows of Sluice.

    python -m sluice.deepspeed examples/accelerate_loop.py --deepspeed examples/ds_zero3_nvme.json

Needs accelerate (scripts/requirements-frameworks.txt).
"""

import argparse

import torch
from accelerate import Accelerator, DeepSpeedPlugin, PartialState


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--deepspeed", help="configuration (JSON)")
    arguments = parser.parse_args()
    PartialState(cpu=not torch.cuda.is_available())
    plugin = DeepSpeedPlugin(hf_ds_config=arguments.deepspeed, gradient_clipping=1.0) if arguments.deepspeed else None
    accelerator = Accelerator(gradient_accumulation_steps=2, deepspeed_plugin=plugin)

    torch.manual_seed(1)
    layers = [torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.Tanh()) for _ in range(6)]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(256, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x = torch.randn(512, 256)
    data = torch.utils.data.TensorDataset(x, torch.sin(x[:, :8]))
    loader = torch.utils.data.DataLoader(data, batch_size=32)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    for epoch in range(4):
        for inputs, wanted in loader:
            with accelerator.accumulate(model):
                loss = torch.nn.functional.mse_loss(model(inputs), wanted)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
        accelerator.print(f"epoch {epoch}: loss {accelerator.gather(loss.detach()).mean().item():.4f}")


if __name__ == "__main__":
    main()
