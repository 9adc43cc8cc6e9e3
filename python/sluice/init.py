"""Building a model whose full size never exists in RAM.

Inside `with sluice.init():` every parameter that a module registers joins a list; when those in RAM exceed a limit, the
oldest are written to an unnamed temporary file and replaced by placeholders. Any torch function that is given such a
parameter (nn.init..., p.data, p.copy_, a later apply) finds its values brought back first. Initialisers run on real
memory in construction order, so the same seed gives the same weights as without it.
"""

import collections
import ctypes
import os
import tempfile
import weakref

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from .away import placeholder

DEFAULT_LIMIT_BYTES = 64 << 20
_TRIM_BYTES = 64 << 20


class Trimmer:
    """Gives memory that was freed back to the system now and then: glibc keeps what large tensors leave between others."""

    def __init__(self):
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._bytes = 0

    def freed(self, bytes_freed):
        self._bytes += bytes_freed
        if self._bytes > _TRIM_BYTES:
            self.trim()

    def trim(self):
        self._bytes = 0
        if self._trim is not None:
            self._trim(0)


class Spool:
    """Values of parameters in an unnamed file. One thread."""

    def __init__(self, directory, limit_bytes):
        directory = directory or tempfile.gettempdir()
        try:
            self._fd = os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o600)
        except OSError:
            self._fd, name = tempfile.mkstemp(dir=directory)
            os.unlink(name)
        self._limit = limit_bytes
        self._trimmer = Trimmer()
        self._end = 0
        self._resident = collections.OrderedDict()  # id -> Parameter, least recently used first
        self._resident_bytes = 0
        self._places = {}  # id -> (weak reference to the Parameter, offset)

    def track(self, parameter):
        if id(parameter) in self._resident or parameter in self:
            return
        self._resident[id(parameter)] = parameter
        self._resident_bytes += parameter.nbytes
        self._shrink()

    def seal(self):
        """The model is built: those still in RAM are left to it."""
        self._resident.clear()
        self._trimmer.trim()

    def __contains__(self, parameter):
        return id(parameter) in self._places and self._places[id(parameter)][0]() is parameter

    @property
    def empty(self):
        return all(reference() is None for reference, _ in self._places.values())

    def touch(self, parameter):
        """Brings the parameter's values back if they are in the file."""
        if id(parameter) in self._resident:
            self._resident.move_to_end(id(parameter))
        elif parameter in self:
            parameter.data = self._read(parameter)
            del self._places[id(parameter)]
            self._resident[id(parameter)] = parameter
            self._resident_bytes += parameter.nbytes
            self._shrink(keep=id(parameter))

    def take(self, parameter):
        """The parameter's values, for good: the caller has them now."""
        values = self._read(parameter)
        del self._places[id(parameter)]
        return values

    def _shrink(self, keep=None):
        while self._resident_bytes > self._limit and len(self._resident) > 1:
            key = next(iter(self._resident))
            if key == keep:
                self._resident.move_to_end(key)
                continue
            parameter = self._resident.pop(key)
            self._resident_bytes -= parameter.nbytes
            self._write(parameter)

    def _write(self, parameter):
        values = parameter.data.contiguous()
        data = memoryview(values.view(-1).view(torch.uint8).numpy())
        offset = self._end
        while len(data):
            n = os.pwrite(self._fd, data[: 8 << 20], self._end)
            data = data[n:]
            self._end += n
        self._places[id(parameter)] = (weakref.ref(parameter), offset)
        parameter.data = placeholder(parameter.shape, parameter.dtype)
        freed = values.nbytes
        del values, data
        self._trimmer.freed(freed)

    def _read(self, parameter):
        _, offset = self._places[id(parameter)]
        values = torch.empty(parameter.shape, dtype=parameter.dtype)
        data = memoryview(values.view(-1).view(torch.uint8).numpy())
        done = 0
        while done < len(data):
            n = os.preadv(self._fd, [data[done : done + (8 << 20)]], offset + done)
            if n == 0:
                raise OSError("the spool file of sluice.init() ended early")
            done += n
        return values

    def __del__(self):
        if getattr(self, "_fd", None) is not None:
            os.close(self._fd)


class _Materialise(TorchFunctionMode):
    def __init__(self, spool):
        super().__init__()
        self._spool = spool
        self._inside = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not self._inside:
            self._inside = True
            try:
                for value in (*args, *kwargs.values()):
                    for item in value if isinstance(value, (list, tuple)) else (value,):
                        if isinstance(item, torch.nn.Parameter):
                            self._spool.touch(item)
            finally:
                self._inside = False
        return func(*args, **kwargs)


# Spools of models that were built and not yet given to initialize(), found by their parameters.
_spools = []


class init:
    """Context manager. directory: where the temporary file goes (default: the system's); limit_bytes: of parameters kept in
    RAM meanwhile. The model must then be given to sluice.initialize() or sluice.attach()."""

    def __init__(self, directory=None, limit_bytes=DEFAULT_LIMIT_BYTES):
        self._directory = directory
        self._limit = limit_bytes

    def __enter__(self):
        self._spool = Spool(self._directory, self._limit)
        self._mode = _Materialise(self._spool)
        self._busy = False

        def on_register(module, name, parameter):
            if parameter is not None and not self._busy:
                self._busy = True
                try:
                    with torch._C.DisableTorchFunction():
                        self._spool.track(parameter)
                finally:
                    self._busy = False

        self._hook = register_module_parameter_registration_hook(on_register)
        self._mode.__enter__()
        return self

    def __exit__(self, *exception):
        self._mode.__exit__(*exception)
        self._hook.remove()
        self._spool.seal()
        _spools.append(self._spool)
        return False


def take_values(parameter):
    """The parameter's initial values, from the spool that has them or from the parameter itself."""
    for spool in _spools:
        if parameter in spool:
            return spool.take(parameter)
    return parameter.data


def forget_spools():
    """Drops those whose values were all taken, or whose models are gone."""
    _spools[:] = [spool for spool in _spools if not spool.empty]
