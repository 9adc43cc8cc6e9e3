"""Scripts over Lightning and Fabric. Their DeepSpeed strategies want CUDA, whatever DeepSpeed can do: that check is left out here."""

import copy

import lightning
import lightning.fabric.strategies.deepspeed
import lightning.pytorch.strategies.deepspeed
import torch
from lightning.fabric.strategies import DeepSpeedStrategy as FabricStrategy
from lightning.pytorch.strategies import DeepSpeedStrategy


class Net(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Tanh(), torch.nn.Linear(64, 4))
        self.losses, self.evaluated = [], []

    def forward(self, x):
        return self.layers(x)

    def training_step(self, batch, number):
        loss = torch.nn.functional.mse_loss(self(batch[0]), batch[1])
        self.losses.append(float(loss.detach()))
        return loss

    def validation_step(self, batch, number):
        self.evaluated.append(float(torch.nn.functional.mse_loss(self(batch[0]), batch[1])))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5), "interval": "step"}]


def loader():
    make = torch.Generator().manual_seed(1)
    data = [(torch.randn(8, generator=make), torch.randn(4, generator=make)) for _ in range(16)]
    return torch.utils.data.DataLoader(data, batch_size=4)


def _allow_cpus():
    for module, accelerator in (
        (lightning.pytorch.strategies.deepspeed, lightning.pytorch.accelerators.CPUAccelerator),
        (lightning.fabric.strategies.deepspeed, lightning.fabric.accelerators.CPUAccelerator),
    ):
        module.CUDAAccelerator = accelerator
        module._validate_device_index_selection = lambda devices: None


def fit(deepspeed=None, summary=False):
    """Lightning's Trainer: fit with a schedule and validation, validate."""
    _allow_cpus()
    net = Net()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        strategy=DeepSpeedStrategy(config=deepspeed) if deepspeed else "auto",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=summary,
        gradient_clip_val=0.5,
        use_distributed_sampler=False,  # which would deal the data otherwise
    )
    trainer.fit(net, loader(), loader())
    trainer.validate(net, loader(), verbose=False)
    kind = type(getattr(trainer.strategy, "deepspeed_engine", None)) if deepspeed else object
    return {"losses": net.losses, "evaluated": net.evaluated, "sluice": kind.__module__.startswith("sluice.")}


def fabric(deepspeed=None):
    """Fabric's loop."""
    _allow_cpus()
    fabric = lightning.Fabric(
        accelerator="cpu", devices=1, strategy=FabricStrategy(config=deepspeed) if deepspeed else "auto"
    )
    fabric.launch()
    net = Net().layers
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    net, optimizer = fabric.setup(net, optimizer)
    losses = []
    for _ in range(2):
        for x, y in fabric.setup_dataloaders(loader()):
            loss = torch.nn.functional.mse_loss(net(x), y)
            losses.append(float(loss.detach()))
            fabric.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
    return {"losses": losses, "sluice": type(net._forward_module).__module__.startswith("sluice.")}


def resumed(deepspeed=None):
    """Lightning's Trainer: fit with checkpoints; another goes on after the first epoch."""
    _allow_cpus()
    found = []
    for start in (None, "kept/epoch=0-step=4.ckpt"):
        net = Net()
        trainer = lightning.Trainer(
            accelerator="cpu", devices=1, strategy=DeepSpeedStrategy(config=copy.deepcopy(deepspeed)) if deepspeed else "auto", max_epochs=2,
            logger=False, enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
            callbacks=[lightning.pytorch.callbacks.ModelCheckpoint("kept", save_top_k=-1)],
        )  # fmt: skip
        trainer.fit(net, loader(), ckpt_path=start)
        found.append(net.losses)
    kind = type(getattr(trainer.strategy, "deepspeed_engine", None)) if deepspeed else object
    return {"losses": found[0], "again": found[1], "sluice": kind.__module__.startswith("sluice.")}


def fabric_saved(deepspeed=None):
    """Fabric: save amid a loop, and load, after which all comes again."""
    _allow_cpus()
    fabric = lightning.Fabric(accelerator="cpu", devices=1, strategy=FabricStrategy(config=deepspeed) if deepspeed else "auto")
    fabric.launch()
    net = Net().layers
    net, optimizer = fabric.setup(net, torch.optim.AdamW(net.parameters(), lr=1e-2))

    def epoch():
        found = []
        for x, y in loader():
            loss = torch.nn.functional.mse_loss(net(x), y)
            fabric.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            found.append(float(loss.detach()))
        return found

    first = epoch()
    fabric.save("saved", {"model": net, "optimizer": optimizer, "epoch": 1})
    after = epoch()
    state = {"model": net, "optimizer": optimizer, "epoch": 0}
    fabric.load("saved", state)
    wrapped = type(fabric.strategy._deepspeed_engine).__module__ if deepspeed else ""
    return {"losses": first + after, "again": epoch(), "epoch": state["epoch"], "sluice": wrapped.startswith("sluice.")}
