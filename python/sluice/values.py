"""Whole tensors in and out of a runtime, several at a time. The library reads and writes host memory here."""

import collections

import torch

from . import _abi

_DTYPE_NUMBERS = {torch.float32: _abi.F32, torch.bfloat16: _abi.BF16, torch.float16: _abi.F16}


def read_all(runtime, requests, field, dtype):
    """requests: iterable of (key, tensor number, shape). Returns an ordered dict of tensors of `dtype`, exact copies."""
    result = collections.OrderedDict()
    for key, number, shape in requests:
        tensor = result[key] = torch.empty(shape, dtype=dtype)
        arguments = (number, field, tensor.data_ptr(), _DTYPE_NUMBERS[dtype], tensor.numel())
        runtime.lent.lend(tensor, lambda ticket, a=arguments: runtime.start_read(*a, ticket))
    runtime.lent.finish()
    return result


def write_all(runtime, items, field):
    """items: iterable of (tensor number, tensor); taken one by one, so the whole need not exist."""
    for number, tensor in items:
        tensor = tensor.detach().cpu().contiguous()
        if tensor.dtype not in _DTYPE_NUMBERS:
            tensor = tensor.float()
        arguments = (number, field, tensor.data_ptr(), _DTYPE_NUMBERS[tensor.dtype], tensor.numel())
        runtime.lent.lend(tensor, lambda ticket, a=arguments: runtime.start_write(*a, ticket))
    runtime.lent.finish()
