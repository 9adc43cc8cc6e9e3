"""Ranks that run different layers in every step (test_ranks_experts.py): experts of their own, and a layer that one leaves out."""

import subprocess
import sys

import sluice
import torch
from ranks_jobs import digest, given, part
from ranks_reference import RanksReference
from training import CLASSES, FEATURES, loss_of

HIDDEN, EXPERTS, BLOCKS = 96, 5, 2
LR = {"lr": 1e-2, "weight_decay": 0.05}


class Expert(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up = torch.nn.Linear(HIDDEN, 2 * HIDDEN)
        self.down = torch.nn.Linear(2 * HIDDEN, HIDDEN)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


class Experts(torch.nn.Module):
    """routes: by block, the numbers of the experts that run, in order; skips: blocks whose mixing layer does not."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(6)
        self.first = torch.nn.Linear(FEATURES, HIDDEN)
        self.blocks = torch.nn.ModuleList(torch.nn.ModuleList(Expert() for _ in range(EXPERTS)) for _ in range(BLOCKS))
        self.mixing = torch.nn.ModuleList(torch.nn.Linear(HIDDEN, HIDDEN) for _ in range(BLOCKS))
        self.last = torch.nn.Linear(HIDDEN, CLASSES)

    def forward(self, x, routes, skips):
        x = torch.tanh(self.first(x))
        for number, (experts, mix) in enumerate(zip(self.blocks, self.mixing)):
            x = x + sum(experts[route](x) for route in routes[number])
            if number not in skips:
                x = torch.tanh(mix(x))
        return self.last(x)


def way(rank, step):
    """Other experts on each rank in each step, sometimes the same, sometimes twice; expert 4 in no step before the fourth; one rank
    leaves out a layer."""
    pool = EXPERTS if step >= 3 else EXPERTS - 1
    routes = [[(step + rank * (number + 1) + k * (rank + 1)) % pool for k in range(1 + (step + rank) % 2)] for number in range(BLOCKS)]
    return routes, {step % BLOCKS} if step % 2 == rank else set()


def _loss(model, rank, step):
    x, y = part(rank % 2, step)
    return loss_of(model(x, *way(rank, step)), y)


def configuration(stage, place, path, accumulation):
    zero = {"offload_param": {"device": "none"}}
    result = given(stage, "nvme" if place == "nvme" else "cpu", path, accumulation)
    result.pop("train_batch_size")
    if stage == 3 and place != "none":
        zero["offload_param"] = {"device": place, "nvme_path": path}
        # room for a few units, so that they come and go
        result["sluice"] = {**result["sluice"], "hbm": 12 * 4 * HIDDEN * HIDDEN, "unit_elements": 3 * HIDDEN * HIDDEN}
    result["zero_optimization"].update(zero)
    return result


def run(rank, stage, place, path, steps, accumulation=1):
    """(losses, digest of masters, norms)"""
    model = Experts()
    engine = sluice.initialize(model=model, config=configuration(stage, place, path, accumulation))[0]
    try:
        losses, norms = [], []
        for step in range(steps):
            loss = _loss(engine, rank, step)
            losses.append(loss.item())
            engine.backward(loss)
            engine.step()
            norms.append(engine.get_global_grad_norm())
        return losses, digest(engine.fp32_state_dict()), norms
    finally:
        engine.close()


def expected(ranks, steps, accumulation=1):
    """(losses by rank, digest of masters)"""
    loop = RanksReference(Experts(), ranks, accumulation=accumulation, **LR)
    losses = []
    for step in range(steps):
        losses.append(loop.micro_step(lambda model, rank: _loss(model, rank, step)))  # noqa: B023
        if (step + 1) % accumulation == 0:
            loop.step()
    return [list(of_rank) for of_rank in zip(*losses)], digest(loop.values())


class Busy:
    """Processes that take what cores they can."""

    def __init__(self, count):
        self._processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self._processes:
            process.kill()
            process.wait()
