"""Finds who keeps a parameter on the tiers.

A holder has `runtime`, `streams` (whether parameters are on the tiers while their module does not compute; if so also
`settle_values()`, after which the tiers have what was written, and `renew_values()`, after which what is on loan has what
the tiers have; if not, `synchronize()`, after which parameters have their values, and `is_master(parameter)`, whether
there is no other),
`tensor_of(parameter)` (its number in the runtime, or None), `finish_gradients()` (waits until what was handed over has
arrived) and `close()`. It is found from add() to discard(), or to its end; those that are left when the process ends
are closed.
"""

import atexit
import weakref

import torch

from ..native import abi, values

_holders = weakref.WeakSet()
add = _holders.add
discard = _holders.discard


@atexit.register
def _close_all():
    errors = []
    for holder in list(_holders):
        try:
            holder.close()
        except abi.SluiceError as error:  # the others are closed all the same
            errors.append(error)
    if errors:
        raise errors[0]


class Found:
    """One parameter and who keeps it."""

    def __init__(self, parameter, holder, number):
        self.parameter = parameter
        self.holder = holder
        self.number = number

    def read(self, field, dtype):
        """A copy of the whole value of `field` (of abi), after all updates."""
        if self.holder.streams:
            self.holder.settle_values()
        elif field == abi.MASTER and self.holder.is_master(self.parameter):
            self.holder.synchronize()
            return self.parameter.detach().to("cpu", dtype, copy=True, memory_format=torch.contiguous_format)
        request = (0, self.number, self.parameter.shape)
        return values.read_all(self.holder.runtime, [request], field, dtype)[0]

    def write(self, field, value):
        """Also into the parameter, if it is where the value belongs: else the next step would take the old one back."""
        in_parameter = field == abi.MASTER and not self.holder.streams
        if in_parameter:
            self.holder.synchronize()
        elif self.holder.streams:
            self.holder.settle_values()
        if not (in_parameter and self.holder.is_master(self.parameter)):
            values.write_all(self.holder.runtime, [(self.number, value)], field)
        if self.holder.streams:
            if field == abi.MASTER:
                self.holder.values_changed(self.parameter)
            self.holder.renew_values()
        if in_parameter:
            with torch.no_grad():
                self.parameter.copy_(value)


def find(parameter):
    """Found, or None for a parameter that is on no tier."""
    for holder in list(_holders):
        number = holder.tensor_of(parameter)
        if number is not None:
            return Found(parameter, holder, number)
    return None
