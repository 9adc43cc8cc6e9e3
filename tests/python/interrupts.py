"""Ctrl-C at every point of a call: before each bytecode instruction that runs in Sluice's own files.

    for point in interrupts.points(call):     # call() runs once, to find them
        if interrupts.interrupt(call, point):
            ...                               # a KeyboardInterrupt came out

Deterministic, and finer than signals, which come between fewer instructions. A call may run an instruction many times: it
is interrupted the first time and the last.
"""

import pathlib
import sys

import sluice

_PACKAGE = str(pathlib.Path(sluice.__file__).parent)
# Python drops what is raised in these, and what they call; and the collector decides when they run.
_DROPPED = {"__del__", "_forget"}


def _is_dropped(frame):
    while frame is not None:
        if frame.f_code.co_name in _DROPPED:
            return True
        frame = frame.f_back
    return False


class _Tracer:
    """at: the number of the instruction before which KeyboardInterrupt is raised; None: none is."""

    def __init__(self, at=None):
        self._at = at
        self.places = []  # (code, offset) of each instruction that ran

    def __call__(self, frame, event, argument):
        name = frame.f_code.co_filename
        if not name.startswith(_PACKAGE) or event == "call" and _is_dropped(frame):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.places.append((frame.f_code, frame.f_lasti))
            if len(self.places) == self._at:
                raise KeyboardInterrupt
        return self


def _run(call, tracer):
    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        call()
    finally:
        sys.settrace(before)


def points(call, every=1):
    """Numbers of instructions of call(), which is run once. every: only each such of them, for a quick look."""
    tracer = _Tracer()
    _run(call, tracer)
    first, last = {}, {}
    for number, place in enumerate(tracer.places, 1):
        first.setdefault(place, number)
        last[place] = number
    return sorted({*first.values(), *last.values()})[::every]


def interrupt(call, point):
    """Runs call() and interrupts it there. Returns whether it was: it may have taken another way and ended before."""
    tracer = _Tracer(point)
    try:
        _run(call, tracer)
    except KeyboardInterrupt:
        return True
    assert len(tracer.places) < point, "an interrupt was swallowed"
    return False
