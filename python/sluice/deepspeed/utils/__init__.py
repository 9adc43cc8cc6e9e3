"""DeepSpeed's functions on single parameters of a model that is on the tiers: whole tensors, after all updates. Each
returns None (or writes nothing) for a parameter that isn't there. With several ranks all call each of them, in the same order,
and set the same values: a rank has its share only, and would wait for the others."""

import torch

from ...collectives import is_initialised
from ...native import abi
from ...residency import registry
from .. import refusal
from ..leaf_modules import (  # noqa: F401  for programs
    get_z3_leaf_modules,
    set_z3_leaf_module,
    set_z3_leaf_modules,
    set_z3_leaf_modules_by_name,
    set_z3_leaf_modules_by_suffix,
    unset_z3_leaf_modules,
    z3_leaf_module,
    z3_leaf_parameter,
)
from ..log import log_dist, log_dist_once, logger, set_log_level_from_string  # noqa: F401  for programs
from ..runtime.dataloader import RepeatingLoader  # noqa: F401  for programs

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
    _check_shape(parameter, value)
    found.write(field, value)


def _check_shape(parameter, value):
    if value.shape != parameter.shape:
        raise ValueError(f"a value of shape {tuple(value.shape)} for a parameter of shape {tuple(parameter.shape)}")


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


def safe_set_full_grad(param, value):
    """Sets what the next step takes as the gradient, in place of what was accumulated: as `param.grad = value` does."""
    if registry.find(param) is not None:
        _check_shape(param, value)
        param.grad = value.detach().to(param.device, param.dtype, copy=True)


def safe_update_full_grad_vectorized(param_list, update_func):
    """Sets the gradient of each to update_func(gradient, parameter); of those that have one."""
    for param in param_list:
        gradient = safe_get_full_grad(param)
        if gradient is not None:
            safe_set_full_grad(param, update_func(gradient, param))


def is_initialized():
    """Whether torch.distributed has been set up."""
    return is_initialised()


def instrument_w_nvtx(function):
    """The function as it is: Engine.write_trace() shows what ran."""
    return function


_LOCAL = (
    "a rank's shard is a piece of a unit, not of each parameter: use the function with full in its name, which gives all ranks the "
    "whole value"
)
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
    "OnDevice": "build the model under sluice.init()",
}

__getattr__ = refusal.of_names("sluice.utils", _NOT_OFFERED)
