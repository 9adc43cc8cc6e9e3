"""DeepSpeed's functions on single parameters of a model that is on the tiers: whole tensors, after all updates. Each
returns None (or writes nothing) for a parameter that isn't there."""

import torch

from . import _abi, registry

_STATES = {"exp_avg": _abi.EXP_AVG, "exp_avg_sq": _abi.EXP_AVG_SQ}


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
    return _get(param, _abi.MASTER)


def safe_get_full_optimizer_state(param, optim_state_key):
    """optim_state_key: exp_avg or exp_avg_sq."""
    return _get(param, _field(optim_state_key))


def safe_get_full_grad(param):
    """What was accumulated since the last step, in fp32; None if there is none."""
    found = registry.find(param)
    if found is None:
        return None
    found.holder.finish_gradients()
    try:
        return found.read(_abi.GRAD, torch.float32)
    except _abi.NotFound:
        return None


def safe_set_full_fp32_param(param, value):
    """Also renews the compute copy."""
    _set(param, value, _abi.MASTER)


def safe_set_full_optimizer_state(param, value, optim_state_key):
    _set(param, value, _field(optim_state_key))
