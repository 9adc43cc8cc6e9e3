"""Where the values of a model's parameters lie."""

import dataclasses

import torch

from . import away, storages


@dataclasses.dataclass(eq=False)
class Place:
    """Where a parameter's values lie in its unit."""

    name: str
    parameter: torch.nn.Parameter
    tensor: int  # its number in the runtime
    unit: int
    offset: int  # in the unit, in elements of the runtime's type for it
    elements: int
    shape: torch.Size
    dtype: torch.dtype  # of its values in compute
    raw: bool  # the runtime keeps its bytes, whatever they mean
    grad_dtype: torch.dtype
    placeholder: torch.Tensor
    version: int = 0  # of the parameter, up to which the tiers know its values
    fingerprint: int | None = None  # of its memory in the slot, if a module asked for `.data`

    def __post_init__(self):
        self.nbytes = self.elements * (1 if self.raw else self.dtype.itemsize)
        self._stride = torch.empty(self.shape, dtype=self.dtype, device="meta").stride()

    def values_in(self, slot):
        if self.raw:
            return slot.narrow(0, self.offset, self.elements).view(self.dtype).view(self.shape)
        return slot.as_strided(self.shape, self._stride, self.offset)


def check_ties(model):
    """Errors: ValueError if two Parameters have memory in common: each would be trained by itself."""
    here = [
        (name, p)
        for name, p in model.named_parameters()
        if p.numel() and not p.is_meta and not away.is_owned(p) and p.layout == torch.strided
    ]
    shared = storages.overlapping([p for _, p in here])
    if shared is not None:
        name, other = (here[number][0] for number in shared)
        raise ValueError(
            f"parameters {name} and {other} are two that share memory, and each would be trained by itself: tie them by making "
            "them one (module.weight = other.weight), or give one a copy (clone())"
        )
