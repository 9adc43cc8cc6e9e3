"""Models of several equal units, which the tests of autograd's traps compute in ways of their own."""

import torch
from training import CLASSES, FEATURES, config

HIDDEN = 61


class Block(torch.nn.Module):
    def __init__(self, hidden=HIDDEN):
        super().__init__()
        self.up = torch.nn.Linear(hidden, 2 * hidden)
        self.down = torch.nn.Linear(2 * hidden, hidden)
        self.passes = 0

    def forward(self, x):
        self.passes += 1
        return x + self.down(torch.tanh(self.up(x)))


class Net(torch.nn.Module):
    """`blocks` equal units between two smaller ones. run(blocks, x) computes the middle."""

    def __init__(self, run, blocks=6):
        super().__init__()
        torch.manual_seed(3)
        self.first = torch.nn.Linear(FEATURES, HIDDEN)
        self.blocks = torch.nn.ModuleList(Block() for _ in range(blocks))
        self.last = torch.nn.Linear(HIDDEN, CLASSES)
        self.run = run

    def forward(self, x):
        return self.last(self.run(self.blocks, self.first(x)))


def straight(blocks, x):
    for block in blocks:
        x = block(x)
    return x


def given(path, **sluice_keys):
    return config(path, gradient_clipping=0.0, sluice={"chunk_elements": 4096, "unit_elements": 20_000, **sluice_keys})


class Scaled(torch.nn.Module):
    """Backward reads its parameters themselves, not views that autograd made of them."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.LayerNorm(HIDDEN)
        self.block = Block()
        self.scale = torch.nn.Parameter(torch.linspace(0.5, 1.5, HIDDEN))

    def forward(self, x):
        return self.block(self.norm(x)) * self.scale
