"""Groups of an optimizer as checkpoints have them: which parameters, and every option."""

import torch

from . import hyperparameters

_ADVICE = "load_optimizer_states=False begins anew"


def taken(optimizer, name_of):
    """name_of(parameter): as it is saved."""
    return [
        {"params": [name_of(p) for p in group["params"]], "options": {k: v for k, v in group.items() if k not in _OTHERS}}
        for group in optimizer.param_groups
    ]


_OTHERS = ("params", "param_names")


def check(optimizer, name_of, theirs):
    """Errors: ValueError if they are not of such an optimizer."""
    mine = taken(optimizer, name_of)
    if len(mine) != len(theirs):
        raise ValueError(f"the optimizer has {len(mine)} groups of parameters, and {len(theirs)} were saved; {_ADVICE}")
    for number, (group, other) in enumerate(zip(mine, theirs)):
        for name, saved_name in zip(group["params"], other["params"]):
            if name != saved_name:
                raise ValueError(f"group {number} of the optimizer has {name} where {saved_name} was saved; {_ADVICE}")
        if len(group["params"]) != len(other["params"]):
            counts = f"{len(group['params'])} parameters, and {len(other['params'])} were saved"
            raise ValueError(f"group {number} of the optimizer has {counts}; {_ADVICE}")
        hyperparameters.checked({**group["options"], **other["options"]})


def put(optimizer, theirs):
    """Into the very groups there are, and the very tensors: schedules, and a client's optimizer, have them too."""
    for group, other in zip(optimizer.param_groups, theirs):
        for key, value in other["options"].items():
            mine = group.get(key)
            if isinstance(mine, torch.Tensor):
                with torch.no_grad():
                    mine.copy_(torch.as_tensor(value, device="cpu"))
            else:
                group[key] = value
