"""Units in HBM as tensors: acquired, looked at, released.

Ctrl-C may come between any two lines of these. What was begun is known then: the next call goes on where it was, and settle()
ends it, so that no slot is lost.
"""

import ctypes

import torch

from ..native import abi

_capsule_new = ctypes.pythonapi.PyCapsule_New
_capsule_new.restype = ctypes.py_object
_capsule_new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_capsule_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_capsule_is_valid.restype = ctypes.c_int
_capsule_is_valid.argtypes = [ctypes.py_object, ctypes.c_char_p]


def _is_full(capsule):
    """Whether its tensor was not taken yet."""
    return bool(_capsule_is_valid(capsule, b"dltensor"))


class _Asked:
    """An acquisition whose end was not seen. 0 is the ticket of one that is not begun and of one that is over."""

    def __init__(self):
        self.ticket = abi.Ticket()
        self.stream = None  # on which it was asked for
        self._begun = False
        self._view = ctypes.c_void_p()
        self._capsule = None
        self._flat = None

    def begin(self, runtime, unit):
        if not self._begun and not self.ticket:
            self.stream = runtime.stream()
            runtime.start_acquire(unit, self.ticket)
        self._begun = True

    @property
    def begun(self):
        return self._begun or bool(self.ticket)

    def take_view(self, runtime, unit):
        """The slot as a tensor."""
        if self._flat is None:
            if self._capsule is not None and not _is_full(self._capsule):  # its tensor was lost, and the view with it
                self._view = ctypes.c_void_p()
                self._capsule = None
            if not self._view:
                runtime.unit_view(unit, self._view)
            if self._capsule is None:
                self._capsule = _capsule_new(self._view, b"dltensor", None)
            self._flat = torch.utils.dlpack.from_dlpack(self._capsule)
        return self._flat

    def end_view(self):
        """Lets go of a view that was begun."""
        if self._flat is None and self._view:
            if self._capsule is None:
                self._capsule = _capsule_new(self._view, b"dltensor", None)
            if _is_full(self._capsule):
                torch.utils.dlpack.from_dlpack(self._capsule)
        self._flat = None


class Slots:
    """One thread at a time. A slot is for every stream that its unit was acquired on while it is acquired: the library lets
    each wait for the copy into the slot, and keeps what comes into it next waiting for each."""

    def __init__(self, runtime):
        self._runtime = runtime
        self._asked = {}  # unit -> _Asked
        self._releasing = set()  # units whose release was begun
        self._flat = {}  # unit -> its slot, while acquired
        self._streams = {}  # unit -> those it was acquired on
        self._further = {}  # unit -> {stream: _Asked}, of streams other than the first
        self._unit_at = {}  # address of a slot -> unit, while acquired

    def __contains__(self, unit):
        return unit in self._flat and unit not in self._releasing

    def __getitem__(self, unit):
        return self._flat[unit]

    @property
    def acquired(self):
        """The units that are."""
        return list(self._flat)

    def is_asked_for(self, unit):
        """Whether the library has it acquired, or may have."""
        return unit in self._flat or unit in self._asked or unit in self._releasing

    def unit_of(self, tensor):
        """Whose slot the tensor's memory is; or None."""
        return self._unit_at.get(tensor.untyped_storage().data_ptr())

    def acquire(self, unit):
        """Waits until it is there for what the calling thread puts on its stream from now on."""
        if unit in self._releasing:
            self._finish_release(unit)
        if unit in self._flat:
            if self._runtime.stream() not in self._streams[unit]:
                self._acquire_further(unit)
            return
        resumed = unit in self._asked
        asked = self._asked.setdefault(unit, _Asked())
        asked.begin(self._runtime, unit)
        try:
            self._runtime.wait(asked.ticket)
        except abi.SluiceError:
            del self._asked[unit]
            raise
        flat = asked.take_view(self._runtime, unit)
        self._streams[unit] = [asked.stream]
        self._unit_at[flat.data_ptr()] = unit
        self._flat[unit] = flat
        self._asked.pop(unit, None)
        if resumed and self._runtime.stream() not in self._streams[unit]:  # it was begun on another
            self._acquire_further(unit)

    def _acquire_further(self, unit):
        stream = self._runtime.stream()
        asked = self._further.setdefault(unit, {}).setdefault(stream, _Asked())
        asked.begin(self._runtime, unit)
        try:
            self._runtime.wait(asked.ticket)
        except abi.SluiceError:
            del self._further[unit][stream]
            raise
        self._streams[unit].append(stream)

    def release(self, unit):
        self._asked.pop(unit, None)
        self._releasing.add(unit)
        self._forget(unit)
        self._release_further(unit)
        self._runtime.release(unit)
        self._releasing.discard(unit)

    def _release_further(self, unit):
        further = self._further.get(unit, {})
        for stream, asked in list(further.items()):
            if asked.begun:
                self._runtime.wait(asked.ticket)
                try:
                    self._runtime.release(unit)
                except abi.FailedPrecondition:
                    pass  # after an interrupt one was released twice, which is one for the first acquisition
            del further[stream]

    def _forget(self, unit):
        flat = self._flat.get(unit)
        if flat is not None:
            self._unit_at.pop(flat.data_ptr(), None)
            self._flat.pop(unit)

    def _finish_release(self, unit):
        """Of a release that was interrupted: before the library was told, or after."""
        self._forget(unit)
        try:
            self._release_further(unit)
            self._runtime.release(unit)
        except abi.FailedPrecondition:
            pass  # it was told
        self._releasing.discard(unit)

    def settle(self, wait):
        """Ends what was interrupted. wait: also acquisitions that are not over, which stay else."""
        for unit in list(self._releasing):
            self._finish_release(unit)
        for unit, asked in list(self._asked.items()):
            if unit in self._flat:  # all but the end was seen
                del self._asked[unit]
                continue
            try:
                if asked.begun:
                    if wait:
                        self._runtime.wait(asked.ticket)
                    elif not self._runtime.done(asked.ticket):
                        continue
                    asked.end_view()
                    self._releasing.add(unit)
                    self._finish_release(unit)
            except abi.SluiceError:
                pass  # it was not acquired
            del self._asked[unit]
