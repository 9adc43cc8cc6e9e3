"""Which type each parameter of a model has in compute, and what the library keeps of it."""

import dataclasses
import re

import torch

from ..native import abi

NUMBERS = {torch.float32: abi.F32, torch.bfloat16: abi.BF16, torch.float16: abi.F16}


@dataclasses.dataclass(frozen=True)
class Kind:
    """What all parameters of a unit have in common. raw: the library keeps their bytes, and they can't be trained."""

    dtype: torch.dtype
    grad_dtype: torch.dtype
    raw: bool = False

    @property
    def numbers(self):
        """For the library: of parameters, and of gradients."""
        return (abi.BYTES if self.raw else NUMBERS[self.dtype]), NUMBERS[self.grad_dtype]

    def elements(self, parameter):
        return parameter.numel() * (self.dtype.itemsize if self.raw else 1)


class Precision:
    """wanted: the type that floating-point parameters are to have, None: each keeps its own. own_types: those that are fp32 on
    purpose keep that: in a model that was built in the wanted type, since it has parameters of it, all that are fp32; and
    those of modules that Transformers' models name for it. grad_dtype: None: as the parameter. cast_buffers: all buffers get
    the wanted type; else those of a model that was built in it keep their own, and of one that is converted those
    that are named as above, and those that its state_dict lacks, which are tables, such as rotary frequencies, that are
    computed in fp32 for a reason."""

    def __init__(self, model, wanted, own_types=True, grad_dtype=None, cast_buffers=False):
        self._wanted, self._grad_dtype = wanted, grad_dtype
        self._cast_buffers = cast_buffers
        found = {p.dtype for p in model.parameters()}
        self._built = own_types and wanted in found
        self._mixed = self._built and torch.float32 in found
        self._fp32_names = _fp32_names(model, wanted) if own_types else None

    def of(self, name, parameter):
        """The Kind of one parameter. Errors: TypeError for one that is to be trained and can't be."""
        if parameter.dtype not in NUMBERS and not (parameter.dtype == torch.float64 and self._wanted):
            if parameter.requires_grad:
                raise TypeError(
                    f"parameter {name} is {parameter.dtype}: only fp32, bf16 and fp16 ones can be trained; convert it, or freeze "
                    "it (requires_grad_(False)), and it is kept as it is"
                )
            return Kind(parameter.dtype, torch.float32, raw=True)
        dtype = self._wanted or parameter.dtype
        if parameter.dtype == torch.float32 and (self._mixed or self._is_named(name)):
            dtype = torch.float32
        return Kind(dtype, self._grad_dtype or dtype)

    def _is_named(self, name):
        return self._fp32_names is not None and self._fp32_names.search(name) is not None

    def buffers(self, model):
        """(name, buffer, the type it is to have)"""
        for prefix, module in model.named_modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    path = f"{prefix}.{name}" if prefix else name
                    kept = self._built or name in module._non_persistent_buffers_set or self._is_named(path)
                    cast = buffer.is_floating_point() and self._wanted and (self._cast_buffers or not kept)
                    yield path, buffer, self._wanted if cast else buffer.dtype

    def notes(self, model):
        """What the configuration's reader should know: types that differ from the wanted one, before or after."""
        floats = [(n, p) for n, p in model.named_parameters() if p.dtype in (*NUMBERS, torch.float64) and p.numel()]
        kept = [n for n, p in floats if self._wanted not in (None, self.of(n, p).dtype)]
        if kept:
            yield f"types: {_some(kept)} stay fp32 in a model that is {_name(self._wanted)} otherwise"
        changed = sorted({_name(p.dtype) for n, p in floats if p.dtype != torch.float32 and self.of(n, p).dtype != p.dtype})
        if changed:
            key = "neither bf16 nor fp16 is enabled" if self._wanted == torch.float32 else "as configured"
            yield f"types: parameters that were {', '.join(changed)} compute in {_name(self._wanted)}: {key}"
        buffers = [n for n, b, to in self.buffers(model) if b.is_floating_point() and to != (self._wanted or to)]
        if buffers:
            yield f"types: buffers keep their own type ({_some(buffers)}); sluice.cast_buffers gives them the model's"


def _name(dtype):
    return str(dtype).removeprefix("torch.")


def _some(names):
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _fp32_names(model, wanted):
    """What Transformers keeps in fp32 when it loads a model in that type."""
    lists = {torch.float16: ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")}
    lists[torch.bfloat16] = ("_keep_in_fp32_modules_strict",)
    patterns = set()
    for module in model.modules():
        names = {name for key in lists.get(wanted, ()) for name in getattr(module, key, None) or ()}
        if hasattr(module, "_get_dtype_plan"):  # from version 5 on names may be parts of others, with stars
            patterns |= {name.replace("*", ".*") for name in names}
        else:
            patterns |= {rf"(^|\.){name}($|\.)" for name in names}
    return re.compile("|".join(sorted(patterns))) if patterns else None
