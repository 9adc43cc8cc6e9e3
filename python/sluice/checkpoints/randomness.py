"""States of the generators of random numbers that a training uses: PyTorch's, on the CPU and on the engine's device, Python's and,
where it is used, numpy's."""

import random
import sys

import torch


def states(device):
    """As values that plain.py takes. device: a torch.device."""
    found = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    if "numpy" in sys.modules:
        found["numpy"] = sys.modules["numpy"].random.get_state()
    return found


def restore(found, device):
    torch.set_rng_state(found["torch"])
    random.setstate(found["python"])
    if device.type == "cuda" and "cuda" in found:
        torch.cuda.set_rng_state(found["cuda"], device)
    if "numpy" in found:
        import numpy

        numpy.random.set_state(found["numpy"])
