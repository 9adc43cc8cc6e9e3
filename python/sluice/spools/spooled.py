"""Parameters of which only so many bytes are in RAM: the values of the others are in an unnamed file.

What is in RAM is a plain Parameter. When there is more of it than the limit, the values that were not used for longest are
written to the file, and their Parameter is Away (away.py). Whatever is done to one brings its values back into memory of
its own first: then it is a plain Parameter again, and others go. A Parameter whose memory, or which itself, somebody else
holds (a view, a state_dict, the graph of a forward) stays in RAM until they let go.

A Parameter that is away keeps its spool alive, and nothing else does for long: the file ends with the last value in it.
"""

import collections
import contextlib
import dataclasses
import itertools
import os
import threading
import weakref

import torch

from ..residency import away
from .spool import SpoolFile
from .trimmer import BYTES_MAX, Trimmer

LIMIT_BYTES = 64 << 20  # of parameters in RAM, where nobody says
_TRIM_BYTES = 8 << 20
_TRIES = 64  # parameters that are looked at for one that can go, each time


@contextlib.contextmanager
def _unseen():
    """The caller's modes neither see nor change what is done in here."""
    with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch(), torch.inference_mode(False), torch.no_grad():
        yield


@dataclasses.dataclass
class _Resident:
    """A parameter whose values are in RAM. label: what messages call it; gathered: ids of the GatheredParameters open over it."""

    reference: weakref.ref
    label: str
    nbytes: int
    gathered: set = dataclasses.field(default_factory=set)


class _Stored:
    """What a parameter has whose values are in the file: called, it gives the owner."""

    def __init__(self, spool, record, label):
        self.spool, self.record, self.label = spool, record, label

    def __call__(self):
        return self.spool

    def __del__(self):
        self.spool.recycle(self.record)


def _may_go(parameter):
    """Whether it is a Parameter that comes back as it was."""
    return (
        type(parameter) is torch.nn.Parameter
        and parameter.layout == torch.strided
        and parameter.device.type == "cpu"
        and parameter.numel() > 0
        and not (parameter.is_inference() or parameter.is_quantized or parameter.is_conj() or parameter.is_neg())
    )


def _is_held(parameter):
    """Whether others hold it or its memory, or the memory is not what comes back."""
    storage = parameter.untyped_storage()
    return (
        parameter._use_count() > 1
        or away.storage_uses(parameter) > 1
        or not parameter.is_contiguous()
        or storage.nbytes() < parameter.nbytes
        or parameter.is_shared()
    )


class Spool:
    """The owner of the parameters whose values are in the file. whose, advice: as of SpoolFile. One thread at a time uses
    the parameters."""

    def __init__(self, directory, limit_bytes, whose, advice):
        self._make_file = lambda: SpoolFile(directory, whose, advice)
        self._file = None
        self._limit = limit_bytes
        self._trimmer = Trimmer(min(max(limit_bytes, _TRIM_BYTES), BYTES_MAX))
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._resident = collections.OrderedDict()  # id -> _Resident, the least recently used first
        self._bytes = 0  # of those; more after an interrupt, never less
        self._free = {}  # size -> Records whose place nobody has
        self._last = None  # id of what was used last: its size may have changed since

    def open_file(self):
        """Errors: those of SpoolFile; otherwise they come when the first value is written."""
        if self._file is None:
            self._file = self._make_file()

    def set_limit(self, limit_bytes):
        self._limit = limit_bytes

    def track(self, parameter, label):
        """The parameter may be written to the file from now on. label: what messages call it."""
        with self._lock, _unseen():
            if _may_go(parameter):
                self._add(parameter, label)
                self._shrink(parameter)

    def settle(self):
        """As many are in the file as should be."""
        with self._lock, _unseen():
            self._shrink(None, len(self._resident))
            self._trimmer.trim()

    def recycle(self, record):
        self._free.setdefault(record.nbytes, []).append(record)

    # ---- As an owner (away.py)

    def use(self, parameter):
        with self._lock, _unseen():
            self._bring(parameter)
        return parameter

    def used(self, parameter, tensor, shared):
        """Only now may others go: a function that is given several has all of them in RAM."""
        with self._lock, _unseen():
            self._shrink(parameter)

    def data(self, parameter):
        try:
            return self.use(parameter).data
        finally:
            self.used(parameter, parameter, True)

    def set_data(self, parameter, tensor):
        with self._lock:
            label = _stored(parameter).label
            away.set_memory(parameter, tensor)
            with _unseen():
                self._add(parameter, label)
                away.give_back(parameter)
                self._shrink(parameter)

    def grad(self, parameter):
        return away.raw_grad(parameter)

    def set_grad(self, parameter, gradient):
        away.set_raw_grad(parameter, gradient)

    def read(self, parameter):
        with self._lock, _unseen():
            return self._read(parameter)

    def taken(self, parameter):
        return None

    def gather(self, parameter, holder):
        with self._lock, _unseen():
            self._bring(parameter)
            self._resident[id(parameter)].gathered.add(id(holder))
            self._shrink(parameter)

    def end_gather(self, parameter, holder):
        with self._lock, _unseen():
            resident = self._resident.get(id(parameter))
            if resident is not None and resident.reference() is parameter:
                resident.gathered.discard(id(holder))
                self._shrink(None)

    # ---- Inside

    def _read(self, parameter):
        values = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
        self._file.read(_stored(parameter).record, values)
        return values

    def _bring(self, parameter):
        """Until the last line it is away still: after an interrupt it is read again."""
        if isinstance(parameter, away.Away):
            label = _stored(parameter).label
            away.set_memory(parameter, self._read(parameter))
            self._add(parameter, label)
            away.give_back(parameter)

    def _add(self, parameter, label):
        key = id(parameter)
        known = self._resident.get(key)
        if known is not None and known.reference() is parameter:
            self._resident.move_to_end(key)
            return
        self._drop(key)
        resident = _Resident(weakref.ref(parameter), label, parameter.nbytes)
        self._bytes += resident.nbytes
        self._resident[key] = resident

    def _drop(self, key):
        resident = self._resident.pop(key, None)
        if resident is not None:
            self._bytes -= resident.nbytes

    def _shrink(self, newest, tries=_TRIES):
        """Called after each use, of `newest`, which stays."""
        self._measure(self._last)
        self._last = id(newest)
        self._measure(self._last)
        if self._bytes <= self._limit or os.getpid() != self._pid:  # a forked child must not write to its parent's file
            return
        if len(self._resident) <= _TRIES:
            self._bytes = sum(resident.nbytes for resident in self._resident.values())
        for key in list(itertools.islice(self._resident, tries)):
            if self._bytes <= self._limit:
                break
            resident = self._resident.get(key)
            parameter = resident.reference() if resident is not None else None
            if parameter is None or not _may_go(parameter):
                self._drop(key)
            elif parameter is newest or resident.gathered or _is_held(parameter):
                self._resident.move_to_end(key)
            else:
                self._write(parameter, resident.label)
                self._drop(key)

    def _measure(self, key):
        resident = self._resident.get(key)
        parameter = resident.reference() if resident is not None else None
        if parameter is not None:
            self._bytes += parameter.nbytes - resident.nbytes
            resident.nbytes = parameter.nbytes

    def _write(self, parameter, label):
        """Once it is away, what is in the file is its value."""
        self.open_file()
        values = away.memory(parameter)
        places = self._free.get(values.nbytes)
        record = self._file.write(values, label, places.pop() if places else None)
        away.hand_over(parameter, _Stored(self, record, label))
        away.set_memory(parameter, away.placeholder(values.shape, values.dtype))
        self._trimmer.freed(values.nbytes)


def _stored(parameter):
    return parameter.__dict__["_sluice_owner"]


def spool_of(parameter):
    """The Spool that has its values, or None."""
    owner = away.owner_of(parameter) if isinstance(parameter, away.Away) else None
    return owner if isinstance(owner, Spool) else None
