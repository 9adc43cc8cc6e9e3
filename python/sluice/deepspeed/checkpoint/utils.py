"""What programs use of DeepSpeed's checkpoint.utils."""

import torch


def clone_tensors_for_torch_save(item, device=torch.device("cpu")):
    """A copy of `item` in which each tensor has memory of its own, on that device (None: where it is), and no more than it needs;
    what isn't a tensor, dict, list or tuple is the same object."""
    if isinstance(item, torch.Tensor):
        return item.detach().clone() if device is None else item.detach().to(device, copy=True)
    if isinstance(item, (list, tuple)):
        return type(item)(clone_tensors_for_torch_save(value, device) for value in item)
    if isinstance(item, dict):
        return type(item)({key: clone_tensors_for_torch_save(value, device) for key, value in item.items()})
    return item
