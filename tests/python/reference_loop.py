"""Mixed-precision AdamW as a plain loop: fp32 masters, a model in the compute type, PyTorch's own `.grad`, and every
operation a tensor operation of its own, each rounded once. What Sluice must equal to the bit.

Subnormal numbers are flushed to zero in the update, as Sluice does and PyTorch by default does not.
"""

import contextlib
import copy
import math

import torch

CELL = 4096


def square_sums(gradient):
    """fp64 sums of squares of each cell of 4096 elements: eight lanes, each added in order, then pairwise."""
    squares = gradient.flatten().double() ** 2
    cells = -(-squares.numel() // CELL)
    padded = torch.zeros(cells * CELL, dtype=torch.float64)
    padded[: squares.numel()] = squares
    lanes = torch.zeros(cells, 8, dtype=torch.float64)
    for row in padded.view(cells, CELL // 8, 8).unbind(1):
        lanes = lanes + row
    a = lanes.unbind(1)
    return (((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))).tolist()


@contextlib.contextmanager
def flushed_subnormals():
    assert torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


class LossScale:
    """DeepSpeed's DynamicLossScaler.update_scale, transcribed from its rules."""

    def __init__(self, power=16, window=1000, hysteresis=2, minimum=1.0):
        self.scale, self.window, self.hysteresis, self.minimum = 2.0**power, window, hysteresis, minimum
        self.left, self.iteration, self.last_overflow = hysteresis, 0, -1

    def update(self, overflow):
        if overflow:
            if self.hysteresis == 1 or self.left == 1:
                self.scale = max(self.scale / 2, self.minimum)
            else:
                self.left -= 1
            self.last_overflow = self.iteration
        else:
            stable = self.iteration - self.last_overflow - 1
            if stable > 0 and stable % self.window == 0:
                self.left = self.hysteresis
                self.scale *= 2
        self.iteration += 1


class ReferenceLoop:
    """model: in fp32; it is copied."""

    def __init__(self, model, dtype=torch.float32, clip=1.0, accumulation=1, loss_scale=None, **hyper):
        self.hyper = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01, **hyper}
        self.model = copy.deepcopy(model).to(dtype)
        self.masters = [p.detach().clone() for p in model.parameters()]
        self.averages = [torch.zeros_like(m) for m in self.masters]
        self.squares = [torch.zeros_like(m) for m in self.masters]
        self.steps = [0] * len(self.masters)
        self.clip, self.accumulation, self.loss_scale = clip, accumulation, loss_scale
        self.norm, self.applied = None, None

    def __call__(self, *inputs):
        return self.model(*inputs)

    @property
    def scale(self):
        return self.loss_scale.scale if self.loss_scale else 1.0

    def backward(self, loss):
        if self.accumulation > 1:
            loss = loss / self.accumulation
        (loss.float() * self.scale if self.scale != 1.0 else loss).backward()

    def zero_grad(self):
        self.model.zero_grad()

    def step(self):
        parameters = list(self.model.parameters())
        sums = [s for p in parameters if p.grad is not None for s in square_sums(p.grad)]
        self.norm = math.sqrt(self._add(sums)) / self.scale
        self.applied = math.isfinite(self.norm)
        if self.applied:
            factor = 1.0 / self.scale
            if self.clip > 0:
                factor *= min(1.0, self.clip / (self.norm + 1e-6))
            with torch.no_grad(), flushed_subnormals():
                for index, parameter in enumerate(parameters):
                    if parameter.grad is not None:
                        self._update(index, parameter, parameter.grad.float() * rounded(factor))
        if self.loss_scale:
            self.loss_scale.update(not self.applied)
        for parameter in parameters:
            parameter.grad = None

    @staticmethod
    def _add(values):
        total = 0.0
        for value in values:
            total += value
        return total

    def _update(self, index, parameter, g):
        self.steps[index] += 1
        t, (beta1, beta2), lr = self.steps[index], self.hyper["betas"], self.hyper["lr"]
        p, m, v = self.masters[index], self.averages[index], self.squares[index]
        p = p * rounded(1 - lr * self.hyper["weight_decay"])
        m = m + (g - m) * rounded(1 - beta1)
        v = v * rounded(beta2) + (g * g) * rounded(1 - beta2)
        d = rounded_sqrt(v) / rounded(math.sqrt(1 - beta2**t)) + rounded(self.hyper["eps"])
        p = p - (m / d) * rounded(lr / (1 - beta1**t))
        self.masters[index], self.averages[index], self.squares[index] = p, m, v
        parameter.copy_(p)


def rounded(value):
    """A scalar as an fp32 tensor, so that no operation sees it in fp64."""
    return torch.tensor(value, dtype=torch.float32)


def rounded_sqrt(tensor):
    """The IEEE square root. PyTorch's own of fp32 is off by a unit in the last place for some numbers."""
    return tensor.double().sqrt().float()
