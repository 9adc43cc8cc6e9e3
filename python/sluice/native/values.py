"""Whole tensors in and out of a runtime, several at a time. The library reads and writes host memory here."""

import collections

import torch

from . import abi

_DTYPE_NUMBERS = {torch.float32: abi.F32, torch.bfloat16: abi.BF16, torch.float16: abi.F16}


def empty(shape, dtype):
    """Memory in RAM, whatever the process's defaults are."""
    return torch.empty(shape, dtype=dtype, device="cpu")


def zeros(shape, dtype):
    return torch.zeros(shape, dtype=dtype, device="cpu")


def _as_library(tensor):
    """(address, its type, elements) of a contiguous tensor in RAM: one whose type isn't the library's goes as its bytes."""
    if tensor.dtype in _DTYPE_NUMBERS:
        return tensor.data_ptr(), _DTYPE_NUMBERS[tensor.dtype], tensor.numel()
    return tensor.data_ptr(), abi.BYTES, tensor.nbytes


def read_all(runtime, requests, field, dtype=None):
    """requests: iterable of (key, tensor number, shape), or with a type as the fourth, if dtype is None. Returns an ordered
    dict of tensors, exact copies."""
    result = collections.OrderedDict()
    for key, number, shape, *own in requests:
        tensor = result[key] = empty(shape, dtype or own[0])
        runtime.lent.lend(tensor, runtime.start_read, number, field, *_as_library(tensor))
    runtime.lent.finish()
    return result


def write_all(runtime, items, field, raw=()):
    """items: iterable of (tensor number, tensor); taken one by one, so the whole need not exist. raw: numbers of those that
    the runtime keeps as bytes; others become fp32 if their type is not the library's."""
    for number, tensor in items:
        tensor = tensor.detach().cpu().contiguous()
        if tensor.dtype not in _DTYPE_NUMBERS and number not in raw:
            tensor = tensor.float()
        runtime.lent.lend(tensor, runtime.start_write, number, field, *_as_library(tensor))
    runtime.lent.finish()
