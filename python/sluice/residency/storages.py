"""Which tensors share memory."""

import math

import torch


def _span(tensor):
    """The bytes from the first to past the last that it reaches."""
    begin = tensor.data_ptr()
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return begin, begin + (last + 1) * tensor.element_size()


def _dense(tensor):
    """Whether it has every element of its span, each once."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape) if n > 1):
        if stride != expected:
            return False
        expected *= size
    return True


def _mask(tensor, begin, end, unit):
    """By `unit` bytes of that range: whether the tensor has them."""
    size = tensor.element_size() // unit
    mask = torch.zeros((end - begin) // unit, dtype=torch.bool, device="cpu")
    strides = [stride * size for stride in tensor.stride()] + [1]
    mask.as_strided([*tensor.shape, size], strides, (tensor.data_ptr() - begin) // unit).fill_(True)
    return mask


def overlaps_itself(tensor):
    """Whether two of its elements are one."""
    if _dense(tensor):
        return False
    if any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape)):
        return True
    return int(_mask(tensor, *_span(tensor), tensor.element_size()).sum()) < tensor.numel()


def overlapping(tensors):
    """The numbers of two tensors that have a byte in common, or None. None of them overlaps itself."""
    spans = sorted((t.device.type, t.device.index or 0, *_span(t), n) for n, t in enumerate(tensors) if t.numel() > 0)
    reaching = []  # those that reach as far as the one that is looked at
    for kind, index, begin, end, number in spans:
        reaching = [r for r in reaching if r[:2] == (kind, index) and r[2] > begin]
        for *_, other in reaching:
            if _overlap(tensors[other], tensors[number]):
                return min(other, number), max(other, number)
        reaching.append((kind, index, end, number))
    return None


def _overlap(a, b):
    """Of two whose spans overlap."""
    if _dense(a) and _dense(b):
        return True
    begin, end = min(_span(a)[0], _span(b)[0]), max(_span(a)[1], _span(b)[1])
    unit = math.gcd(a.element_size(), b.element_size(), a.data_ptr() - b.data_ptr())
    return bool((_mask(a, begin, end, unit) & _mask(b, begin, end, unit)).any())
