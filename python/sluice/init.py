"""Building a model whose full size never exists in RAM.

Inside `with sluice.init():` every parameter that a module registers joins a list; when those in RAM exceed a limit, the
oldest are written to an unnamed temporary file and replaced by placeholders. Any torch function that is given such a
parameter (nn.init..., p.data, p.copy_, a later apply) finds its values brought back first. Initialisers run on real
memory in construction order, so the same seed gives the same weights as without it.
"""

import collections
import ctypes
import weakref

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from .away import placeholder
from .spool import SpoolFile

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
    """Values of parameters in an unnamed file, which is closed when they were taken or the parameters are gone. One
    thread."""

    def __init__(self, directory, limit_bytes):
        self._file = SpoolFile(
            directory, "sluice.init()", "another directory is chosen by sluice.init(directory=); the model must be built anew"
        )
        self._limit = limit_bytes
        self._trimmer = Trimmer()
        self._sealed = False
        self._resident = collections.OrderedDict()  # id -> Parameter, least recently used first
        self._resident_bytes = 0
        self._labels = {}  # id -> what messages call it
        self._places = {}  # id -> (weak reference to the Parameter, its Record): whose values are in the file
        self._spare = {}  # id -> the Record that it had, whose place is its own still

    def track(self, parameter, label="a parameter"):
        """label: what messages call it."""
        if id(parameter) in self._resident or parameter in self:
            return
        self._labels[id(parameter)] = label
        self._spare.pop(id(parameter), None)
        self._resident[id(parameter)] = parameter
        self._resident_bytes += parameter.nbytes
        self._shrink()

    def seal(self):
        """The model is built: those still in RAM are left to it."""
        self._resident.clear()
        self._spare.clear()
        self._sealed = True
        self._close_if_done()
        self._trimmer.trim()

    def __contains__(self, parameter):
        return id(parameter) in self._places and self._places[id(parameter)][0]() is parameter

    @property
    def empty(self):
        return not self._places

    def touch(self, parameter):
        """Brings the parameter's values back if they are in the file."""
        if id(parameter) in self._resident:
            self._resident.move_to_end(id(parameter))
        elif parameter in self:
            parameter.data = self._read(parameter)
            self._spare[id(parameter)] = self._places.pop(id(parameter))[1]
            self._resident[id(parameter)] = parameter
            self._resident_bytes += parameter.nbytes
            self._shrink(keep=id(parameter))

    def take(self, parameter):
        """The parameter's values, for good: the caller has them now."""
        values = self._read(parameter)
        del self._places[id(parameter)]
        self._close_if_done()
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
        key, size = id(parameter), parameter.nbytes
        spare = self._spare.pop(key, None)
        if spare is not None and spare.nbytes != size:
            spare = None
        record = self._file.write(parameter.data, self._labels.get(key, "a parameter"), spare)
        self._places[key] = (weakref.ref(parameter, lambda reference: self._forget(key, reference)), record)
        parameter.data = placeholder(parameter.shape, parameter.dtype)
        self._trimmer.freed(size)

    def _read(self, parameter):
        values = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
        self._file.read(self._places[id(parameter)][1], values)
        return values

    def _forget(self, key, reference):
        """The parameter is gone."""
        if key in self._places and self._places[key][0] is reference:
            del self._places[key]
            self._close_if_done()

    def _close_if_done(self):
        if self._sealed and not self._places:
            self._file.close()


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
                        self._spool.track(parameter, f"{type(module).__name__}.{name} of shape {tuple(parameter.shape)}")
                finally:
                    self._busy = False

        self._hook = register_module_parameter_registration_hook(on_register)
        self._mode.__enter__()
        return self

    def __exit__(self, *exception):
        self._mode.__exit__(*exception)
        self._hook.remove()
        self._spool.seal()
        forget_spools()
        if not self._spool.empty:
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
