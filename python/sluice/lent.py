"""Tensors whose memory the runtime reads or writes now.

The library is given addresses; the tensors behind them must live until their tickets are done, also if Ctrl-C or an error
takes the caller away in between. So they belong to the runtime: it lets go of them when they are done or it is closed.
"""

import collections
import ctypes
import threading

_BYTES_MAX = 64 << 20  # on their way at a time; beyond it, the oldest is waited for


class Lent:
    """Any thread."""

    def __init__(self, runtime):
        self._runtime = runtime
        self._lock = threading.RLock()
        self._open = collections.deque()  # (ticket, tensor); ticket 0: not begun
        self._bytes = 0

    def lend(self, tensor, start):
        """Calls start(ticket), which begins an operation on the tensor's memory. Errors: those of start, and of operations
        that have ended since."""
        with self._lock:
            ticket = ctypes.c_uint64()
            self._open.append((ticket, tensor))  # first, so that nothing can come in between
            self._bytes += tensor.nbytes
            start(ticket)
            while self._open and (self._bytes > _BYTES_MAX or self._runtime.done(self._open[0][0])):
                self._finish_first()

    def finish(self):
        """Waits for all of them."""
        with self._lock:
            while self._open:
                self._finish_first()
            self._bytes = 0  # also after an interrupt between two lines of these

    def drop(self):
        """Once nothing uses them any more: the runtime has ended."""
        with self._lock:
            self._open.clear()
            self._bytes = 0

    def _finish_first(self):
        ticket, tensor = self._open[0]
        try:
            self._runtime.wait(ticket)
        finally:
            if not ticket:
                self._open.popleft()
                self._bytes -= tensor.nbytes
