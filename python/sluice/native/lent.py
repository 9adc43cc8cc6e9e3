"""Tensors whose memory the runtime reads or writes now.

The library is given addresses; the tensors behind them must live until their tickets are done, also if Ctrl-C or an error
takes the caller away in between. So they belong to the runtime: it lets go of them when they are done or it is closed.
"""

import collections
import ctypes
import threading

_BYTES_MAX = 64 << 20  # on their way at a time; beyond it, the oldest is waited for
_LOOK_BYTES = 1 << 20  # after so many, it is asked which are done
_LEAST_BYTES = _LOOK_BYTES // 16  # what a tensor counts for then, at least: a question costs as much as lending a small one


class Lent:
    """Any thread."""

    def __init__(self, runtime):
        self._runtime = runtime
        self._lock = threading.RLock()
        self._open = collections.deque()  # (ticket, tensors, their bytes); ticket 0: not begun
        self._bytes = 0
        self._unasked = 0  # bytes since it was asked
        self._kept = []

    def lend(self, tensor, start, *arguments):
        self.lend_all((tensor,), start, *arguments)

    def lend_all(self, tensors, start, *arguments):
        """Calls start(*arguments, ticket), which begins an operation on the tensors' memory. Errors: those of start, and of
        operations that have ended since."""
        with self._lock:
            ticket, count = ctypes.c_uint64(), sum([tensor.nbytes for tensor in tensors])
            self._open.append((ticket, tensors, count))  # first, so that nothing can come in between
            self._bytes += count
            start(*arguments, ticket)
            self._unasked += max(count, _LEAST_BYTES)
            if self._unasked >= _LOOK_BYTES:
                self._unasked = 0
                while self._open and (self._bytes > _BYTES_MAX or self._runtime.done(self._open[0][0])):
                    self._finish_first()

    def keep(self, tensor):
        """An update is to use its memory: until let_go()."""
        self._kept.append(tensor)

    def let_go(self):
        """No update is under way."""
        self._kept.clear()

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
            self._kept.clear()

    def _finish_first(self):
        ticket, _, count = self._open[0]
        try:
            self._runtime.wait(ticket)
        finally:
            if not ticket:
                self._open.popleft()
                self._bytes -= count
