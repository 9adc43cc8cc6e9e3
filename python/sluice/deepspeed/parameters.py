"""What DeepSpeed's programs ask of parameters, and of zero.Init, by its names."""

import enum
import functools
import itertools

import torch

from ..collectives import world_size
from ..residency import away
from .accelerator import get_accelerator  # noqa: F401  for programs

_orig_torch_arange = torch.arange


class ZeroParamStatus(enum.Enum):
    """Where a parameter's values are: in its memory, elsewhere, or on the way. Used as any tensor it has them in all cases."""

    AVAILABLE = 1
    NOT_AVAILABLE = 2
    INFLIGHT = 3


def zero_wrapper_for_fp_tensor_constructor(fn, target_fp_dtype=None, **others):
    """The constructor as it is: zero.Init changes neither types nor devices of tensors."""
    return fn


def is_zero_param(parameter):
    """Whether a model of stage 3 has it, or zero.Init made it."""
    return isinstance(parameter, torch.Tensor) and "ds_id" in parameter.__dict__


_ids = itertools.count()


def _part(elements):
    return -(-elements // world_size())


def mark(parameter):
    """Gives it the attributes ds_id, ds_numel, ds_shape and partition_numel(), once; they are its whole's. It keeps them for good;
    copies don't have them."""
    own = parameter.__dict__
    if "ds_id" not in own:
        own["ds_id"] = next(_ids)
        own["ds_numel"] = parameter.numel()
        own["ds_shape"] = parameter.shape
        own["ds_persist"] = False
        own["partition_numel"] = functools.partial(_part, parameter.numel())


def _status(parameter):
    return ZeroParamStatus.NOT_AVAILABLE if "ds_id" in parameter.__dict__ else ZeroParamStatus.AVAILABLE


def add_status():
    """Every tensor says its ds_status: of what autograd saved of a parameter nothing else tells what it is."""
    torch.Tensor.ds_status = ZeroParamStatus.AVAILABLE
    away.Away.ds_status = property(_status)


def __getattr__(name):
    """What programs import from here too."""
    if name in ("GatheredParameters", "Init"):
        from . import zero

        return getattr(zero, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
