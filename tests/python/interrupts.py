"""Ctrl-C at every point of a call where Python looks for signals: after each call and jump back in Sluice's own files, and
where a function begins.

    for point in interrupts.points(call):     # call() runs once, to find them
        if interrupts.interrupt(call, point):
            ...                               # a KeyboardInterrupt came out

Deterministic. As with signals, an interrupt is handled where the exceptions of the instruction before are; so between the
body of a `with` and its end, say, none comes. A call may run an instruction many times: it is interrupted the first time
and the last.
"""

import dis
import functools
import os
import pathlib
import sys

import sluice

NIGHTLY = int(os.environ.get("SLUICE_SIM_SEEDS", "1")) > 1  # each place is tried
_PACKAGE = str(pathlib.Path(sluice.__file__).parent)
# Python drops what is raised in these, and what they call; and the collector decides when they run.
_DROPPED = {"__del__", "_forget"}


def _is_dropped(frame):
    while frame is not None:
        if frame.f_code.co_name in _DROPPED:
            return True
        frame = frame.f_back
    return False


def _looks(name):
    return name in ("RESUME", "CALL", "CALL_FUNCTION_EX") or name.startswith(("JUMP_BACKWARD", "POP_JUMP_BACKWARD"))


@functools.cache
def _handlers(code):
    """By offset of every instruction: where its exceptions go, and whether Python looks for signals at its end."""
    table = dis._parse_exception_table(code)

    def handler(offset):
        return next((entry.target for entry in table if entry.start <= offset < entry.end), None)

    return {i.offset: (handler(i.offset), _looks(i.opname)) for i in dis.get_instructions(code)}


class _Tracer:
    """at: the number of the place at which KeyboardInterrupt is raised; None: nowhere."""

    def __init__(self, at=None):
        self._at = at
        self._before = {}  # frame -> the instruction it ran last
        self.places = []  # (code, offset) of what would be next

    def __call__(self, frame, event, argument):
        code = frame.f_code
        if not code.co_filename.startswith(_PACKAGE) or event == "call" and _is_dropped(frame):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            handlers = _handlers(code)
            handler, looks = handlers.get(self._before.get(frame), (None, False))
            self._before[frame] = frame.f_lasti
            if looks and handler == handlers[frame.f_lasti][0]:
                self.places.append((code, frame.f_lasti))
                if len(self.places) == self._at:
                    self._before.clear()
                    raise KeyboardInterrupt
        elif event == "return":
            self._before.pop(frame, None)
        return self


def _run(call, tracer):
    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        call()
    finally:
        sys.settrace(before)


def points(call, every=1):
    """Numbers of places in call(), which is run once. every: only each such of them, for a quick look."""
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
