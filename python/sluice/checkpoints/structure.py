"""What model.json and run.safetensors must be made of: looked at once, where they are read, so that who uses them needs not. Bytes
are whole by then (the library has verified them), but another version, or something else, may have written them. Keys beside
the needed ones are left alone.

Errors are ValueErrors that say what is wrong and where in the file; who reads it names the file.
"""

import json
import numbers

import torch

from ..native.checked import shown
from . import plain, tensor_files

MODEL_FORMAT, MODEL_VERSION = "sluice model", 1
_BITS = 63  # of a number of elements


def model(text):
    """model.json as a dict, shapes as tuples."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:  # also UnicodeDecodeError
        raise ValueError(f"it is no JSON: {error}") from None
    _typed(found, dict, "all of it")
    if found.get("format") != MODEL_FORMAT:
        raise ValueError(f"its format is {shown(found.get('format'))}, not {MODEL_FORMAT!r}")
    version = found.get("version")
    if type(version) is int and version > MODEL_VERSION:
        raise ValueError(f"a newer Sluice wrote it: its version is {version}, and this one reads {MODEL_VERSION}")
    if type(version) is not int or version != MODEL_VERSION:
        raise ValueError(f"its version is {shown(version)}, not {MODEL_VERSION}")
    for name, tensor in _part(found, "tensors", dict, "").items():
        where = f"tensors[{shown(name)}]"
        _check_tensor(tensor, where)
        _part(tensor, "frozen", bool, where)
    for name, buffer in _part(found, "buffers", dict, "").items():
        where = f"buffers[{shown(name)}]"
        _check_tensor(buffer, where)
        if _part(buffer, "at", int, where) < 0:
            raise ValueError(f"{where}['at'] is {buffer['at']}")
        if name in found["tensors"]:
            raise ValueError(f"{shown(name)} is a buffer and a tensor")
    return found


def _check_tensor(tensor, where):
    _typed(tensor, dict, where)
    shape = _part(tensor, "shape", list, where)
    elements = 1
    for size in shape:
        if type(size) is not int or size < 0:
            raise ValueError(f"{where}['shape'] is {shown(shape)}, no sizes")
        elements *= max(size, 1)
        if elements >> _BITS:
            raise ValueError(f"{where}['shape'] is {shown(shape)}, too large")
    tensor["shape"] = tuple(shape)
    dtype = _part(tensor, "dtype", str, where)
    if dtype not in tensor_files.DTYPES or dtype not in plain.DTYPES:
        raise ValueError(f"{where}['dtype'] is {shown(dtype)}, which is not known here")
    for number, alias in enumerate(_part(tensor, "aliases", list, where)):
        _typed(alias, str, f"{where}['aliases'][{number}]")


def run(values):
    """Checks what an engine, or sluice.AdamW, attached, as plain.py decoded it; returns it."""
    if "kind" in values:
        _check_adamw(values)
    else:
        _check_engine(values)
    _part(values, "client_state", object, "")
    if "rng" in values:
        _part(_part(values, "rng", dict, ""), "torch", torch.Tensor, "rng")
        _part(values["rng"], "python", tuple, "rng")
    return values


def _check_engine(values):
    for name, buffer in _part(values, "buffers", dict, "").items():
        _typed(name, str, "a name of a buffer")
        _typed(buffer, torch.Tensor, f"buffers[{shown(name)}]")
    for name in _part(values, "extra_state", dict, ""):
        _typed(name, str, "a name of an extra state")
    _check_groups(values, "optimizer")
    schedule = _part(values, "lr_scheduler", (dict, type(None)), "")
    if schedule is not None:
        _part(schedule, "class", str, "lr_scheduler")
        _part(schedule, "state", object, "lr_scheduler")
    counters = _part(values, "counters", dict, "")
    for name in ("global_steps", "skipped_steps", "windows"):
        if _part(counters, name, numbers.Integral, "counters") < 0:
            raise ValueError(f"counters[{name!r}] is {shown(counters[name])}")


def _check_adamw(values):
    if values["kind"] != "sluice.AdamW":
        raise ValueError(f"kind is {shown(values['kind'])}, which is not known here")
    for name, kind in _part(values, "parameters", dict, "").items():
        where = f"parameters[{shown(name)}]"
        if len(_typed(kind, list, where)) != 2:
            raise ValueError(f"{where} is {shown(kind)}, no shape and type")
        _typed(kind[0], torch.Size, f"{where}[0]")
        _typed(kind[1], torch.dtype, f"{where}[1]")
    _part(values, "parts", int, "")
    _check_groups(values, "groups")
    for group in values["groups"]:
        for name in group["params"]:
            _part(values["parameters"], name, list, "parameters")


def _check_groups(values, key):
    for number, group in enumerate(_part(values, key, list, "")):
        where = f"{key}[{number}]"
        _typed(group, dict, where)
        for at, name in enumerate(_part(group, "params", list, where)):
            _typed(name, str, f"{where}['params'][{at}]")
        _part(group, "options", dict, where)


def _part(values, key, kind, where):
    if key not in values:
        raise ValueError(f"{where or 'it'} lacks {key!r}")
    return _typed(values[key], kind, f"{where}[{key!r}]" if where else key)


def _typed(value, kind, where):
    if not isinstance(value, kind) or (isinstance(value, bool) and kind not in (bool, object)):
        needed = " or ".join("None" if k is type(None) else k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"{where} is {shown(value)}, which is no {needed}")
    return value
