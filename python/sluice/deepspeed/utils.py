"""DeepSpeed's functions on single parameters of a model that is on the tiers: whole tensors, after all updates. Each
returns None (or writes nothing) for a parameter that isn't there."""

import torch

from ..native import abi
from ..residency import registry
from . import refusal

_STATES = {"exp_avg": abi.EXP_AVG, "exp_avg_sq": abi.EXP_AVG_SQ}


def _field(key):
    if key not in _STATES:
        raise KeyError(f"optimizer state {key!r}: there are {', '.join(_STATES)}")
    return _STATES[key]


def _get(parameter, field):
    found = registry.find(parameter)
    return None if found is None else found.read(field, torch.float32)


def _set(parameter, value, field):
    found = registry.find(parameter)
    if found is None:
        return
    if value.shape != parameter.shape:
        raise ValueError(f"a value of shape {tuple(value.shape)} for a parameter of shape {tuple(parameter.shape)}")
    found.write(field, value)


def safe_get_full_fp32_param(param):
    """The master."""
    return _get(param, abi.MASTER)


def safe_get_full_optimizer_state(param, optim_state_key):
    """A moment, in fp32; None of a frozen parameter. optim_state_key: exp_avg or exp_avg_sq."""
    try:
        return _get(param, _field(optim_state_key))
    except abi.NotFound:
        return None


def safe_get_full_grad(param):
    """What was accumulated since the last step, in fp32; None if there is none, or it is in `param.grad`, as for
    sluice.AdamW."""
    found = registry.find(param)
    if found is None:
        return None
    found.holder.finish_gradients()
    try:
        return found.read(abi.GRAD, torch.float32)
    except abi.NotFound:
        return None


def safe_set_full_fp32_param(param, value):
    """Sets the master. Also renews the compute copy, or, of sluice.AdamW, the parameter."""
    _set(param, value, abi.MASTER)


def safe_set_full_optimizer_state(param, value, optim_state_key):
    """Sets a moment. optim_state_key: exp_avg or exp_avg_sq."""
    _set(param, value, _field(optim_state_key))


_LOCAL = "one rank: what is local is whole; use the function with full in its name"
_GRADIENT = "change param.grad of sluice.AdamW before step(); gradients of an engine are handed over in backward"
_LEAF = "leave it out: units are cut by size (sluice.unit_elements), and any order of use works"
_NOT_OFFERED = {
    **dict.fromkeys(
        (
            "safe_get_local_fp32_param",
            "safe_get_local_grad",
            "safe_get_local_optimizer_state",
            "safe_set_local_fp32_param",
            "safe_set_local_grad",
            "safe_set_local_optimizer_state",
        ),
        _LOCAL,
    ),
    **dict.fromkeys(("safe_set_full_grad", "safe_update_full_grad_vectorized"), _GRADIENT),
    **dict.fromkeys(
        (
            "get_z3_leaf_modules",
            "set_z3_leaf_module",
            "set_z3_leaf_modules",
            "unset_z3_leaf_modules",
            "z3_leaf_module",
            "z3_leaf_parameter",
        ),
        _LEAF,
    ),
    "groups": "one rank: there are no groups of ranks",
}

__getattr__ = refusal.of_names("sluice.utils", _NOT_OFFERED)
