"""Parameters that an update is writing: nobody reads them before it is done."""

import weakref

import torch

from ..residency import away


class UnderWay:
    """The owner (away.py) of parameters whose own memory an update writes.

    ready(parameter): a method; waits until the parameter is written, and has it given back, or raises. It is asked by every
    use of the parameter, through whatever door, and by its gradient where that is lent; never by its shape or type. Parameters
    of other classes than torch.nn.Parameter can't be guarded.
    """

    def __init__(self, ready):
        self._ready = weakref.WeakMethod(ready)
        self._kept = {}  # id -> Parameter
        self._versions = {}  # id -> version when the update began
        self._lent = False

    def keep(self, parameters, lent=False):
        """lent: the update reads their gradients where they lie."""
        self._versions = {}
        self._lent = lent
        for parameter in parameters:
            self._kept[id(parameter)] = parameter
            away.put_away(parameter, self)

    def watch(self):
        """From now on nobody but the update writes them."""
        self._versions = {key: away.version(parameter) for key, parameter in self._kept.items()}

    def give_back(self, parameters):
        """Those of them that are kept. Returns the first that was written to, or None: through a view of before, as nothing
        else reaches it."""
        written = None
        for parameter in parameters:
            if id(parameter) in self._kept:
                away.give_back(parameter)
                if self._versions.pop(id(parameter), parameter._version) != parameter._version:
                    written = parameter if written is None else written
                self._kept.pop(id(parameter), None)
        return written

    def give_all_back(self):
        return self.give_back(list(self._kept.values()))

    def __len__(self):
        return len(self._kept)

    def __contains__(self, parameter):
        return id(parameter) in self._kept

    @staticmethod
    def guards_one(parameter):
        """Whether it can keep it."""
        return type(parameter) in (torch.nn.Parameter, away.Away)

    # ---- As an owner

    def use(self, parameter):
        self._ready()(parameter)
        return parameter

    def used(self, parameter, tensor, shared):
        """It has what was done to it: it was given back."""

    def taken(self, parameter):
        return None

    def data(self, parameter):
        return self.use(parameter).data

    def set_data(self, parameter, tensor):
        self.use(parameter).data = tensor

    def grad(self, parameter):
        if self._lent:
            self.use(parameter)
        return away.raw_grad(parameter)

    def set_grad(self, parameter, gradient):
        away.set_raw_grad(parameter, gradient)

    def read(self, parameter):
        return self.use(parameter).detach().clone()

    def gather(self, parameter, holder):
        self.use(parameter)

    def end_gather(self, parameter, holder):
        """There is nothing to end."""
