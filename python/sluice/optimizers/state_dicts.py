"""state_dict() and load_state_dict() of optimizers whose states are on the tiers: in PyTorch's form, and checked as a
whole before anything of them is written."""

import contextlib
import copy
import math
import numbers

import torch

from ..native import abi
from . import hyperparameters

STATES = {"exp_avg": abi.EXP_AVG, "exp_avg_sq": abi.EXP_AVG_SQ, "master": abi.MASTER}
_REQUIRED = ("step", "exp_avg", "exp_avg_sq")
_STEPS_MAX = 1 << 48


def step_tensor(steps):
    """A number of updates as PyTorch keeps it: in fp32, or in fp64 where fp32 can't count on."""
    return torch.tensor(steps, dtype=torch.float32 if steps < 1 << 24 else torch.float64, device="cpu")


@contextlib.contextmanager
def shown_to_pytorch(optimizer, states):
    """Meanwhile optimizer.state has these, by Parameter, so that PyTorch's own state_dict() packs them and calls
    hooks."""
    optimizer.state.clear()
    try:
        optimizer.state.update(states)
        yield
    finally:
        optimizer.state.clear()


class Loading:
    """What a state_dict holds for an optimizer: `entries`, [(Parameter, entry or None)], and `groups`, what its groups are
    to become.

    name_of(parameter): for messages. Errors: ValueError and its kin, naming the parameter or the group, if any of it can't be
    taken.
    """

    def __init__(self, optimizer, state_dict, name_of):
        for hook in optimizer._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(optimizer, state_dict) or state_dict
        self._post_hooks = optimizer._optimizer_load_state_dict_post_hooks
        self._optimizer = optimizer
        for key in ("state", "param_groups"):
            if key not in state_dict:
                raise ValueError(f"state_dict: it has no {key!r}, so it is not an optimizer's")
        groups, saved = optimizer.param_groups, state_dict["param_groups"]
        mine, theirs = ([len(group["params"]) for group in these] for these in (groups, saved))
        if mine != theirs:
            raise ValueError(f"state_dict: its groups have {theirs} parameters, the optimizer's {mine}")
        self.groups = [_checked_group(*pair, number) for number, pair in enumerate(zip(groups, saved))]
        names = [name for group in saved for name in group["params"]]
        if len(set(names)) < len(names):
            raise ValueError("state_dict: a parameter is in its groups twice")
        unknown = [name for name in state_dict["state"] if name not in set(names)]
        if unknown:
            raise ValueError(f"state_dict: it has states of {unknown[:5]}, which are in none of its groups")
        order = [parameter for group in groups for parameter in group["params"]]
        self.entries = [(p, _checked(p, state_dict["state"].get(name), name_of)) for p, name in zip(order, names)]

    def apply_groups(self):
        """To the very groups there are: LR schedulers, and a client's optimizer, have them too."""
        for group, loaded in zip(self._optimizer.param_groups, self.groups, strict=True):
            group.update(loaded)
            for key in group.keys() - loaded.keys() - {"params", "param_names"}:
                del group[key]

    def finish(self):
        for hook in self._post_hooks.values():
            hook(self._optimizer)


def _checked_group(mine, saved, number):
    loaded = {key: copy.deepcopy(value) for key, value in saved.items() if key != "params"}
    if "l2_decay" not in loaded:
        coupled = not loaded["decoupled_weight_decay"] if "decoupled_weight_decay" in loaded else mine["l2_decay"]
        loaded["l2_decay"] = coupled
    loaded.setdefault("bias_correction", mine["bias_correction"])
    try:
        hyperparameters.checked(loaded)
    except KeyError as error:
        raise ValueError(f"state_dict: its group {number} has no {error}") from error
    except ValueError as error:
        raise ValueError(f"state_dict: its group {number}: {error}") from error
    return loaded


def _checked(parameter, entry, name_of):
    """The entry of one parameter, with its steps as an int."""
    if entry is None:
        return None
    where = f"state_dict: of parameter {name_of(parameter)}"
    if "max_exp_avg_sq" in entry:
        raise ValueError(f"{where} it has max_exp_avg_sq: it is of an optimizer with amsgrad, which is not offered")
    missing = [key for key in _REQUIRED if key not in entry]
    if missing:
        raise ValueError(f"{where} it has no {', '.join(missing)}")
    extra = [str(key) for key in entry if key not in STATES and key != "step"]
    if extra:
        raise ValueError(f"{where} it has {', '.join(extra)}, which AdamW does not have")
    for key in STATES.keys() & entry.keys():
        _check_tensor(entry[key], parameter.shape, f"{where} it has {key}")
    return {**entry, "step": _steps(entry["step"], f"{where} it has step")}


def _check_tensor(value, shape, what):
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{what} that is not a tensor, but {type(value).__name__}")
    if not value.is_floating_point() or value.layout != torch.strided or value.is_meta:
        kind = "on the meta device" if value.is_meta else f"{value.dtype}, {value.layout}"
        raise ValueError(f"{what} that is {kind}: a dense floating-point tensor with values is needed")
    if value.shape != shape:
        raise ValueError(f"{what} of shape {tuple(value.shape)}, not {tuple(shape)}")


def _steps(value, what):
    if isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_meta:
        value = value.item()
    whole = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value) and value == int(value)
    if not whole or not 0 <= value <= _STEPS_MAX:
        raise ValueError(f"{what} {value!r}: a whole number from 0 to 2^48 is needed")
    return int(value)
