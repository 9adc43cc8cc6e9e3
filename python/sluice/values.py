"""Whole tensors in and out of a runtime, several at a time."""

import collections

import torch

from . import _abi

_DTYPE_NUMBERS = {torch.float32: _abi.F32, torch.bfloat16: _abi.BF16, torch.float16: _abi.F16}
_WINDOW_BYTES = 64 << 20  # of tensors on their way at a time


class _Window:
    def __init__(self, runtime):
        self._runtime = runtime
        self._open = collections.deque()
        self._bytes = 0

    def add(self, ticket, tensor):
        self._open.append((ticket, tensor))
        self._bytes += tensor.nbytes
        while self._bytes > _WINDOW_BYTES:
            self._finish_first()

    def finish(self):
        while self._open:
            self._finish_first()

    def _finish_first(self):
        ticket, tensor = self._open.popleft()
        self._bytes -= tensor.nbytes
        self._runtime.wait(ticket)


def read_all(runtime, requests, field, dtype):
    """requests: iterable of (key, tensor number, shape). Returns an ordered dict of tensors of `dtype`, exact copies."""
    window = _Window(runtime)
    result = collections.OrderedDict()
    for key, number, shape in requests:
        tensor = torch.empty(shape, dtype=dtype)
        result[key] = tensor
        window.add(
            runtime.start_read(number, field, tensor.data_ptr(), _DTYPE_NUMBERS[dtype], tensor.numel()), tensor
        )
    window.finish()
    return result


def write_all(runtime, items, field):
    """items: iterable of (tensor number, tensor); taken one by one, so the whole need not exist."""
    window = _Window(runtime)
    for number, tensor in items:
        tensor = tensor.detach().contiguous()
        if tensor.dtype not in _DTYPE_NUMBERS:
            tensor = tensor.float()
        window.add(
            runtime.start_write(number, field, tensor.data_ptr(), _DTYPE_NUMBERS[tensor.dtype], tensor.numel()),
            tensor,
        )
    window.finish()
