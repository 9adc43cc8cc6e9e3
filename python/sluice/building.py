"""Building a model whose full size never exists in RAM.

Inside `with sluice.init():` every parameter that a module gets, by whatever way, joins a spool (spooled.py): when those in RAM
exceed a limit, the oldest are written to an unnamed temporary file. Initialisers run on real memory in construction
order, so the same seed gives the same weights as without it.
"""

import copy
import weakref

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

from .spools.spooled import LIMIT_BYTES, Spool

_open = []  # weak references to what is being built, the innermost last


def _innermost():
    while _open and _open[-1]() is None:
        _open.pop()  # an interrupt kept it from ending
    return _open[-1]() if _open else None


class _Parameters(dict):
    """A module's `_parameters` while it is built."""

    def __init__(self, items, owner):
        super().__init__(items)
        self._owner = owner

    def __setitem__(self, name, parameter):
        super().__setitem__(name, parameter)
        building = _innermost()
        if building is not None:
            building.track(parameter, self._owner, name)

    def __deepcopy__(self, memo):
        copied = memo[id(self)] = {}
        for name, parameter in self.items():
            copied[name] = copy.deepcopy(parameter, memo)
            building = _innermost()
            if building is not None:
                building.track(copied[name], self._owner, name)
        return copied

    def __reduce_ex__(self, protocol):
        return dict, (dict(self),)


class _Building:
    def __init__(self, directory, limit_bytes, mark):
        self._mark = mark
        advice = "another directory is chosen by sluice.init(directory=); the model must be built anew"
        self._spool = Spool(directory, limit_bytes, "sluice.init()", advice)
        self._spool.open_file()
        self._modules = []  # weak references to those whose `_parameters` are watched
        this = weakref.ref(self)

        def on_register(module, name, parameter):
            building = this()
            if building is not None and building is _innermost():
                building._watch(module)

        _open.append(this)
        self._hook = register_module_parameter_registration_hook(on_register)

    def _watch(self, module):
        if type(module.__dict__.get("_parameters")) is dict:
            self._modules.append(weakref.ref(module))
            module.__dict__["_parameters"] = _Parameters(module._parameters, type(module).__name__)

    def track(self, parameter, owner, name):
        if type(parameter) is torch.nn.Parameter:
            if self._mark is not None:
                self._mark(parameter)
            self._spool.track(parameter, f"{owner}.{name} of shape {tuple(parameter.shape)}")

    def end(self):
        self._hook.remove()
        _open[:] = [reference for reference in _open if reference() not in (self, None)]
        for module in filter(None, (reference() for reference in self._modules)):
            if type(module.__dict__.get("_parameters")) is _Parameters:
                module.__dict__["_parameters"] = dict(module._parameters)
        self._spool.settle()


class init:
    """Context manager: of the parameters that modules get inside, at most `limit_bytes` are in RAM; the values of others are
    in an unnamed file in `directory` (default: the system's for temporary files). They have the values that they would have
    without it. Until the model is given to sluice.initialize() or sluice.attach(), which is what it is for, it can be used
    like any other: what is done to a parameter that is in the file brings its values back into RAM, and others go. A
    parameter whose memory somebody else holds stays in RAM."""

    mark = None  # called with each parameter, by whoever wants to know them

    def __init__(self, directory=None, limit_bytes=LIMIT_BYTES):
        self._directory = directory
        self._limit = limit_bytes
        self._buildings = []

    def __enter__(self):
        self._buildings.append(_Building(self._directory, self._limit, self.mark))
        return self

    def __exit__(self, *exception):
        self._buildings.pop().end()
        return False
