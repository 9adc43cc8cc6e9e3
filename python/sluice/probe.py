"""What this machine can do, measured without Sluice's own engine: the rates that a step's floor is computed from.

Each probe takes a fraction of a second to a few seconds and gives a limit, not an average: the best of several short
runs. Call them while nothing else runs.
"""

import concurrent.futures
import ctypes
import mmap
import os
import random
import threading
import time

import torch

_MIB = 1 << 20
_TRANSFERS = ((512 << 10, 8), (512 << 10, 16), (1 << 20, 8))  # bytes of one, and how many at a time
_BYTES_PER_ELEMENT = 28  # that an update reads and writes: fp32 master and two moments both ways, gradient, parameter


def _huge_buffer(size):
    """Memory on huge pages if the kernel gives any, at a multiple of 2 MiB."""
    whole = mmap.mmap(-1, size + 2 * _MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        whole.madvise(mmap.MADV_HUGEPAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(whole))
    begin = -address % (2 * _MIB)
    view = memoryview(whole)[begin : begin + size]
    for at in range(0, size, 4096):
        view[at] = at >> 12 & 0xFF
    return view


class DriveProbe:
    """Reads and writes mixed, direct if the file system has that, over an unnamed file of `size` bytes in `directory`.

    measure() may be called again and again, so that probes can be spread over the time in which something else is
    measured: drives wander.
    """

    def __init__(self, directory, size=256 * _MIB):
        self._size = size
        self._transfers = _TRANSFERS
        self._file = self._open(directory)
        self._buffer = _huge_buffer(max(length * depth for length, depth in _TRANSFERS))
        os.posix_fallocate(self._file, 0, size)
        whole = self._buffer[:_MIB]
        for offset in range(0, size, _MIB):
            os.pwrite(self._file, whole, offset)

    @staticmethod
    def _open(directory):
        try:
            return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_DIRECT, 0o600)
        except OSError:
            return os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o600)

    def measure(self, seconds=0.3):
        """Bytes per second, read and written together: the best of a few transfer sizes and depths the first time, at that
        size and depth from then on."""
        rates = {transfer: self._run(*transfer, seconds) for transfer in self._transfers}
        best = max(rates, key=rates.get)
        self._transfers = (best,)
        return rates[best]

    def _run(self, length, depth, seconds):
        slots = self._size // length
        moved = [0] * depth
        start = threading.Barrier(depth + 1)
        end = threading.Event()

        def work(index):
            choose = random.Random(index)
            memory = [self._buffer[index * length : (index + 1) * length]]
            start.wait()
            turn = index
            while not end.is_set():
                offset = choose.randrange(slots) * length
                turn += 1
                moved[index] += (os.preadv if turn % 2 else os.pwritev)(self._file, memory, offset)

        with concurrent.futures.ThreadPoolExecutor(depth) as pool:
            workers = [pool.submit(work, i) for i in range(depth)]
            start.wait()
            began = time.perf_counter()
            time.sleep(seconds)
            end.set()
            for worker in workers:
                worker.result()
            return sum(moved) / (time.perf_counter() - began)

    def close(self):
        os.close(self._file)


def _best_of(count, function):
    best = float("inf")
    for _ in range(count):
        began = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - began)
    return best


def memory():
    """Rates of the memory, all threads of torch together, with the names that Runtime.floor() takes.

    copy_bytes: bytes copied per second. checksum_bytes: bytes read per second. update_elements: elements that AdamW could
    update per second if it did nothing but move its 28 bytes for each.
    """
    source = torch.ones(16 * _MIB, dtype=torch.float32, device="cpu")  # 64 MiB: more than caches hold
    target = torch.zeros_like(source)
    copy = source.nbytes / _best_of(5, lambda: target.copy_(source))
    read = source.nbytes / _best_of(5, lambda: source.sum())
    return {"copy_bytes": copy, "checksum_bytes": read, "update_elements": 2 * copy / _BYTES_PER_ELEMENT}


def link(device):
    """Bytes per second between pinned memory and a GPU, each way alone; the slower of both."""
    here = torch.empty(256 * _MIB, dtype=torch.uint8, device="cpu", pin_memory=True)
    there = torch.empty_like(here, device=device)

    def copy(to, source):
        to.copy_(source, non_blocking=True)
        torch.cuda.synchronize(device)

    copy(there, here)
    return here.nbytes / max(_best_of(3, lambda: copy(there, here)), _best_of(3, lambda: copy(here, there)))


def compute(module, inputs, repeat=3):
    """(forward, backward) seconds of module(*inputs) with everything resident; a tuple of inputs needs no gradient first.

    The least of `repeat` runs after one that warms up, on the device that the inputs are on. Gradients of parameters are made
    and dropped.
    """
    finish = torch.cuda.synchronize if inputs[0].is_cuda else lambda: None
    forward = backward = float("inf")
    for _ in range(repeat + 1):
        for parameter in module.parameters():
            parameter.grad = None
        finish()
        began = time.perf_counter()
        result = module(*inputs)
        finish()
        between = time.perf_counter()
        result.backward(torch.ones_like(result))
        finish()
        ended = time.perf_counter()
        forward = min(forward, between - began)
        backward = min(backward, ended - between)
    for parameter in module.parameters():
        parameter.grad = None
    return forward, backward
