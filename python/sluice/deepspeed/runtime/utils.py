"""Small helpers that programs import from DeepSpeed's runtime.utils."""

import logging
import resource

import torch

from ..log import logger


def move_to_device(item, device, criterion_func=None):
    """`item` with the tensors in it, in lists, tuples and dicts too, on that device. criterion_func: which of them; None: all."""
    if isinstance(item, torch.Tensor):
        return item.to(device) if criterion_func is None or criterion_func(item) else item
    if isinstance(item, tuple) and hasattr(item, "_fields"):
        return type(item)(*(move_to_device(value, device, criterion_func) for value in item))
    if isinstance(item, (list, tuple)):
        return type(item)(move_to_device(value, device, criterion_func) for value in item)
    if isinstance(item, dict):
        return {key: move_to_device(value, device, criterion_func) for key, value in item.items()}
    return item


def see_memory_usage(message, force=False):
    """Logs what this process holds, if `force`."""
    if not force:
        return
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    words = f"{message}: RSS at most {peak:.2f} GiB"
    if torch.cuda.is_available():
        words += f", GPU {torch.cuda.memory_allocated() / 2**30:.2f} GiB of PyTorch's"
    logger.log(logging.INFO, words)


def clip_grad_norm_(parameters, max_norm, norm_type=2, mpu=None):
    """torch.nn.utils.clip_grad_norm_(): for loops of PyTorch's own. An engine clips by its gradient_clipping."""
    if mpu is not None:
        raise ValueError("mpu: model parallelism is not offered")
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)
