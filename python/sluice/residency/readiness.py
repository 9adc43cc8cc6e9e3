"""What a model must have before its values can go onto the tiers: values, of its own."""

import torch

from ..native import abi
from . import attached, away


def check(model, comes_from_elsewhere):
    """Errors: ValueError, FailedPrecondition, naming what has no values, or values that another engine has.
    comes_from_elsewhere(parameter): whether it gets values from files."""
    if attached.of(model) is not None:
        raise abi.FailedPrecondition(
            "the model is attached already: end that engine first (destroy() gives the model its values back; "
            "sluice.engine_of(model) is the engine)"
        )
    named = [*model.named_parameters(), *model.named_buffers()]
    without = [(n, t) for n, t in named if not comes_from_elsewhere(t)]
    lazy = [n for n, t in without if torch.nn.parameter.is_lazy(t)]
    if lazy:
        raise ValueError(f"{_some(lazy)} of the model have no shape yet, as modules that are lazy have before a first forward")
    meta = [n for n, t in without if t.is_meta]
    if meta:
        raise ValueError(
            f"{_some(meta)} of the model are on the meta device and have no values: load them before, for example by "
            "model.load_state_dict(values, assign=True), or give sluice.attach() the files (weights=)"
        )
    for name, parameter in model.named_parameters():
        if not away.is_owned(parameter) and type(parameter) is not torch.nn.Parameter:
            raise TypeError(
                f"parameter {name} is a {type(parameter).__name__}, a class of its own, whose behaviour would be lost: make it an "
                "nn.Parameter"
            )
    for name, tensor in without:
        if away.is_owned(tensor):
            _check_owner(name, away.owner_of(tensor))


def _check_owner(name, owner):
    if away.is_gone(owner):
        raise abi.FailedPrecondition(
            f"parameter {name} has no values, since an engine that had them was closed: model.load_state_dict(values, "
            "assign=True) gives it new ones (destroy() instead of close() would have kept them)"
        )
    if isinstance(owner, attached.Attached):
        raise abi.FailedPrecondition(
            f"parameter {name} is attached already, with another model: end that one's engine first (destroy() gives the "
            "values back)"
        )


def _some(names):
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
