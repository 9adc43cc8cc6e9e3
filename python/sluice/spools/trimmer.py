"""Gives memory that was freed back to the system now and then: glibc keeps what large tensors leave between others."""

import ctypes

BYTES_MAX = 64 << 20  # freed from one time to the next


class Trimmer:
    def __init__(self, bytes_max=BYTES_MAX):
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._bytes_max = bytes_max
        self._bytes = 0

    def freed(self, bytes_freed):
        self._bytes += bytes_freed
        if self._bytes > self._bytes_max:
            self.trim()

    def trim(self):
        self._bytes = 0
        if self._trim is not None:
            self._trim(0)
