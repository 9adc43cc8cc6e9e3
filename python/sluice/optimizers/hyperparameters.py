"""Hyperparameters of a parameter group as the library takes them."""

import math
import numbers

import torch

from ..native import abi

_NOT_OFFERED = ("amsgrad", "maximize")  # each would compute something else


def checked(group):
    """The abi.Group of a parameter group. Errors: InvalidArgument (a ValueError) that names the key."""
    for key in _NOT_OFFERED:
        if group.get(key):
            raise abi.InvalidArgument(f"{key}: is not offered, but is {group[key]!r}")
    lr, eps, weight_decay = (_number(key, group[key]) for key in ("lr", "eps", "weight_decay"))
    for key, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
        if not 0 <= value < math.inf:
            raise abi.InvalidArgument(f"{key}: must be finite and must not be negative, but is {value}")
    given = group["betas"]
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise abi.InvalidArgument(f"betas: must be two numbers, but are {given!r}")
    betas = tuple(_number("betas", beta) for beta in given)
    if not all(0 <= beta < 1 for beta in betas):
        raise abi.InvalidArgument(f"betas: must be in [0, 1), but are {betas}")
    return abi.Group(
        lr=lr,
        beta1=betas[0],
        beta2=betas[1],
        eps=eps,
        weight_decay=weight_decay,
        l2_decay=int(bool(group["l2_decay"])),
        bias_correction=int(bool(group["bias_correction"])),
    )


def _number(key, value):
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise abi.InvalidArgument(f"{key}: must be a number, but is {value!r}")
    return float(value)
