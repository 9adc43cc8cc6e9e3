"""What the two ranks of test_ranks_training.py do. Each returns plain values."""

import contextlib
import hashlib

import sluice
import torch
from training import CLASSES, FEATURES, batch, config, loss_of, mlp

RANKS = 2
SIZE = 16  # of a rank's micro-batch
STEPS = 10


class Odd(torch.nn.Module):
    """Tied weights, a frozen layer, a buffer, a parameter without elements, and a layer that few steps use."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(FEATURES, 67)
        self.frozen = torch.nn.Linear(67, 67).requires_grad_(False)
        self.norm = torch.nn.BatchNorm1d(67)
        self.seldom = torch.nn.Linear(67, 67)
        self.again = torch.nn.Linear(67, FEATURES, bias=False)
        self.again.weight = torch.nn.Parameter(self.first.weight.detach().t().contiguous())
        self.tied = torch.nn.Linear(FEATURES, 67)
        self.tied.weight = self.first.weight
        self.nothing = torch.nn.Parameter(torch.empty(0))
        self.last = torch.nn.Linear(67, CLASSES)

    def forward(self, x, seldom=False):
        hidden = torch.tanh(self.norm(self.frozen(self.first(x))))
        if seldom:
            hidden = hidden + self.seldom(hidden)
        return self.last(torch.tanh(self.tied(self.again(hidden))))


def odd(seed=0):
    torch.manual_seed(seed)
    return Odd()


MODELS = {"mlp": mlp, "odd": odd}


def given(stage, where, path=None, accumulation=1, **changes):
    zero = {"stage": stage, "offload_param": {"device": "none"}}
    zero["offload_optimizer"] = {"device": where, "nvme_path": path} if where == "nvme" else {"device": where}
    sizes = {"train_batch_size": SIZE * RANKS * accumulation, "gradient_accumulation_steps": accumulation}
    return config(None, zero_optimization=zero, **{**sizes, **changes})


def part(rank, step, dtype=torch.float32):
    x, y = batch(step, SIZE * RANKS, dtype)
    mine = slice(rank * SIZE, (rank + 1) * SIZE)
    return x[mine], y[mine]


def digest(values):
    """Of a dict of tensors, bit by bit."""
    text = hashlib.sha256()
    for name, value in sorted(values.items()):
        text.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        text.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return text.hexdigest()


def _arguments(kind, rank, step):
    """Ranks use the layer that few steps use in steps of their own."""
    return {"seldom": step % 3 == rank} if kind == "odd" else {}


def train(rank, kind, configuration, dtype="float32", steps=STEPS):
    """(losses, norms, digests of masters, states and parameters, loss scale, steps skipped, what the report says of ranks)"""
    model = MODELS[kind](seed=rank)  # rank 0's counts
    engine = sluice.initialize(model=model, config=configuration)[0]
    try:
        losses, norms, micro = [], [], 0
        for _ in range(steps):
            for _ in range(engine.gradient_accumulation_steps()):
                x, y = part(rank, micro, getattr(torch, dtype))
                loss = loss_of(engine(x, **_arguments(kind, rank, micro)), y)
                losses.append(loss.item())
                engine.backward(loss)
                engine.step()
                micro += 1
            norms.append(engine.get_global_grad_norm())
        names = dict(model.named_parameters(remove_duplicate=False))  # running means are each rank's own
        masters, parameters = ({n: v for n, v in d.items() if n in names} for d in
                               (engine.fp32_state_dict(), engine.module_state_dict()))  # fmt: skip
        states = {f"{n} {k}": torch.as_tensor(v) for n, s in engine.optimizer_state_dict().items() for k, v in s.items()}
        return (
            losses, norms, digest(masters), digest(states), digest(parameters), engine.loss_scale(), engine.skipped_steps,
            engine.report()["ranks"],
        )  # fmt: skip
    finally:
        engine.close()


def train_ddp(rank, kind, accumulation=1):
    """(losses, norms) of PyTorch's own."""
    sluice.init_distributed()
    model = torch.nn.parallel.DistributedDataParallel(MODELS[kind](seed=rank), find_unused_parameters=kind == "odd")
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.05)
    losses, norms, micro = [], [], 0
    for _ in range(STEPS):
        for n in range(accumulation):
            x, y = part(rank, micro)
            with contextlib.nullcontext() if n == accumulation - 1 else model.no_sync():
                loss = loss_of(model(x, **_arguments(kind, rank, micro)), y)
                losses.append(loss.item())
                (loss / accumulation).backward()
            micro += 1
        norms.append(torch.nn.utils.clip_grad_norm_(trained, 1.0).item())
        optimizer.step()
        optimizer.zero_grad()
    return losses, norms
