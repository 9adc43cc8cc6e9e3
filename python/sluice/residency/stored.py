"""What the tiers have of parameters, read and written as PyTorch sees it: in each parameter's own type."""

import torch

from ..native import abi, values
from .loans import merged


class Stored:
    """slots: of slots.Slots. Writes to a unit that is acquired, which the library refuses, wait until flush(). One thread at a
    time."""

    def __init__(self, runtime, slots, device):
        self._runtime = runtime
        self._slots = slots
        self._device = device
        self._waiting = {}  # number -> (place, values, or None: those of the master)

    def read(self, place):
        """A copy in RAM."""
        waiting = self._waiting.get(place.tensor, (place, None))[1]
        if waiting is not None:
            return waiting.cpu().clone()
        return self._on_tier(place)

    def _on_tier(self, place):
        return values.read_all(self._runtime, [(0, place.tensor, place.shape, place.dtype)], abi.PARAM)[0]

    def read_many(self, places):
        """Copies in RAM by id of the Parameter; several on their way at a time."""
        result = {id(place.parameter): self.read(place) for place in places if place.tensor in self._waiting}
        requests = [
            (id(place.parameter), place.tensor, place.shape, place.dtype)
            for place in places
            if id(place.parameter) not in result
        ]
        return {**result, **values.read_all(self._runtime, requests, abi.PARAM)}

    def lend(self, place):
        """A copy on the model's device."""
        return self.read(place).to(self._device)

    def write(self, place, after):
        """`after`: what the parameter is from now on. None: what it was, wherever a slot may have something else."""
        if self._slots.is_asked_for(place.unit):
            self._waiting[place.tensor] = place, after
            if after is not None and place.unit in self._slots:
                place.values_in(self._slots[place.unit]).copy_(after)
            return
        if after is None:
            value = None if place.raw else self._master(place)
        else:
            value = merged(self._on_tier(place), after.cpu().contiguous(), lambda: self._master(place))
        if value is not None:
            raw = (place.tensor,) if place.raw else ()
            values.write_all(self._runtime, [(place.tensor, value)], abi.MASTER, raw)
        self._waiting.pop(place.tensor, None)

    def wait_to_write(self, place, after):
        """write(), but not before flush()."""
        self._waiting[place.tensor] = place, after

    def flush(self):
        """Writes what has waited for units that are released now."""
        for place, after in list(self._waiting.values()):
            if not self._slots.is_asked_for(place.unit):
                self.write(place, after)

    def _master(self, place):
        return values.read_all(self._runtime, [(0, place.tensor, place.shape)], abi.MASTER, torch.float32)[0]
