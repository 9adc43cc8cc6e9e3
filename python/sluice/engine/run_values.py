"""What a run is beside the library's values, as checkpoints have it: buffers, groups of the optimizer, the schedule, and what
model.json says of tensors. Each is taken, checked as a whole before anything is changed, and put back."""

import torch

from ..checkpoints import structure, tensor_files
from ..optimizers import saved_groups
from .optimizer import NoOptimizer


# ---- The model


def model(module, is_frozen):
    """For people and tools: shape, type in compute and other names of each tensor. `at`: of a buffer, which tensor of
    run.safetensors it is."""
    tensors, persistent = {}, dict(_persistent(module))
    aliases = _aliases(module.named_parameters(remove_duplicate=False))
    for name, parameter in module.named_parameters():
        tensors[name] = {**_described(parameter), "aliases": aliases[id(parameter)][1:], "frozen": is_frozen(parameter)}
    others = _aliases(module.named_buffers(remove_duplicate=False))
    described = {
        name: {**_described(buffer), "aliases": [n for n in others[id(buffer)] if n != name], "at": at}
        for at, (name, buffer) in enumerate(persistent.items())
    }
    return {"format": structure.MODEL_FORMAT, "version": structure.MODEL_VERSION, "tensors": tensors, "buffers": described}


def _described(tensor):
    return {"shape": list(tensor.shape), "dtype": tensor_files.name_of(tensor.dtype)}


def _aliases(named):
    found = {}
    for name, tensor in named:
        found.setdefault(id(tensor), []).append(name)
    return found


def check_model(module, found, strict):
    """Errors: ValueError naming a parameter that the Generation has in another shape, or, if strict, that one side lacks."""
    saved, mine = found.model()["tensors"], dict(module.named_parameters())
    for name, parameter in mine.items():
        if name in saved and saved[name]["shape"] != tuple(parameter.shape):
            raise ValueError(
                f"parameter {name} has shape {saved[name]['shape']} in {found.path}, {tuple(parameter.shape)} in the model"
            )
    if strict:
        _check_names("parameters", mine, saved, found.path)


def _check_names(what, mine, saved, where):
    for these, others, words in ((mine, saved, f"{where} lacks"), (saved, mine, "the model lacks")):
        missing = [name for name in these if name not in others]
        if missing:
            some = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            raise ValueError(f"{what}: {words} {some}; load_module_strict=False loads what both have")


# ---- Buffers


def _persistent(module):
    """(name, buffer) of those that a state_dict has, each once."""
    seen = set()
    for prefix, child in module.named_modules():
        for name, buffer in child._buffers.items():
            if buffer is not None and name not in child._non_persistent_buffers_set and id(buffer) not in seen:
                seen.add(id(buffer))
                yield f"{prefix}.{name}" if prefix else name, buffer


def _with_extra_state(module):
    for name, child in module.named_modules():
        if type(child).get_extra_state is not torch.nn.Module.get_extra_state:
            yield name, child


def buffers(module):
    return dict(_persistent(module))


def extra_states(module):
    return {name: child.get_extra_state() for name, child in _with_extra_state(module)}


def check_buffers(module, saved, strict):
    mine, theirs = buffers(module), saved["buffers"]
    for name, buffer in mine.items():
        if name in theirs and theirs[name].shape != buffer.shape:
            raise ValueError(f"buffer {name} was saved with shape {tuple(theirs[name].shape)}, and has {tuple(buffer.shape)} in the model")
        if name in theirs and _kind(theirs[name].dtype) != _kind(buffer.dtype):
            raise ValueError(f"buffer {name} was saved as {theirs[name].dtype}, and is {buffer.dtype} in the model")
    if strict:
        _check_names("buffers", mine, theirs, "the checkpoint")
        _check_names("extra states", dict(_with_extra_state(module)), saved["extra_state"], "the checkpoint")


def _kind(dtype):
    """Types of one kind are rounded to each other; others lose what they mean."""
    return dtype.is_floating_point, dtype.is_complex, dtype == torch.bool


def put_buffers(module, saved):
    with torch.no_grad():
        for name, buffer in _persistent(module):
            if name in saved["buffers"]:
                buffer.copy_(saved["buffers"][name])
    for name, child in _with_extra_state(module):
        if name in saved["extra_state"]:
            child.set_extra_state(saved["extra_state"][name])


# ---- The optimizer's groups


def groups(optimizer, module):
    return saved_groups.taken(optimizer, _name_of(module))


def _name_of(module):
    names = {id(p): name for name, p in module.named_parameters()}
    return lambda parameter: names[id(parameter)]


def check_groups(optimizer, module, saved):
    if not isinstance(optimizer, NoOptimizer):
        saved_groups.check(optimizer, _name_of(module), saved["optimizer"])


def put_groups(optimizer, saved):
    if not isinstance(optimizer, NoOptimizer):
        saved_groups.put(optimizer, saved["optimizer"])


# ---- The schedule


def schedule(scheduler):
    if scheduler is None:
        return None
    if not hasattr(scheduler, "state_dict"):
        raise TypeError(f"lr_scheduler: a {type(scheduler).__name__} has no state_dict(), so a run with it can't go on: give it one")
    return {"class": type(scheduler).__name__, "state": scheduler.state_dict()}


def check_schedule(scheduler, saved):
    mine, theirs = type(scheduler).__name__, saved["lr_scheduler"]
    if theirs is None or theirs["class"] != mine:
        what = "none was saved" if theirs is None else f"{theirs['class']} was saved"
        raise ValueError(f"the schedule is {mine}, and {what}; load_lr_scheduler_states=False leaves it as it is")
