"""An engine's end: the model gets its values back, and is PyTorch's alone again.

They come one by one. While the engine has its memory, only so many bytes are beside it in RAM; the others go through an unnamed
file (spooled.py), and come back into RAM, as far as the engine's budget of it reaches, when they are used.
"""

import torch

from ..native import abi, values
from ..residency import away
from .spooled import LIMIT_BYTES, Spool


class HandingBack:
    """Of what an Attached has. directory: where the file goes; None: the system's. An interrupted give() can be called
    again."""

    def __init__(self, source, directory):
        self._attached = source
        advice = "the first nvme_path, or else TMPDIR, says which directory is used; the engine has all values still"
        self._spool = Spool(directory, LIMIT_BYTES, "destroy()", advice)
        report = source.runtime.report()
        self._ram_bytes = report["budgets_bytes"]["pinned"] or report["planned_bytes"]["pinned"]  # no limit is None

    def give(self, read):
        """read(place): the values. Those that are on loan are where they belong already."""
        for place in list(self._attached.place_of.values()):
            parameter = place.parameter
            if away.is_owned(parameter) and away.owner_of(parameter) is self._attached:
                if parameter not in self._attached.loans:
                    away.set_memory(parameter, read(place))
                away.give_back(parameter)
            if not away.is_owned(parameter):
                away.set_raw_grad(parameter, None)
                self._spool.track(parameter, place.name)
            self._attached.place_of.pop(id(parameter))

    def finish(self):
        """The engine has ended, and its memory is free."""
        self._spool.set_limit(max(LIMIT_BYTES, self._ram_bytes))


def of_compute(source):
    """For give(): each value as it computes."""
    return lambda place: source.read(place.parameter)


def of_masters(runtime, dtypes):
    """For give(): the masters, in types of before (id of Parameter -> type)."""

    def read(place):
        if place.raw:
            return values.read_all(runtime, [(0, place.tensor, place.shape, place.dtype)], abi.PARAM)[0]
        master = values.read_all(runtime, [(0, place.tensor, place.shape)], abi.MASTER, torch.float32)[0]
        return master.to(dtypes[id(place.parameter)])

    return read
