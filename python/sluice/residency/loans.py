"""Values on loan: parameters of a model on the tiers that are touched outside forward and backward have their values in
memory of their own, until whoever touched them lets go.

A look at a parameter lends it for a while: a few such loans are kept, and end when others come, or before the tiers are
needed. A loan that a program holds (GatheredParameters, a view of the memory kept somewhere) lasts as long as that does;
meanwhile a forward computes with it, and a step renews it. What was written to it goes to the tiers, in every case: elements
that were changed set the fp32 master, others leave theirs to the last bit.
"""

import collections
import dataclasses

import torch

from . import away

_BYTES_MAX = 64 << 20  # of loans that nobody holds


@dataclasses.dataclass
class _Loan:
    place: object
    version: int  # of the parameter, up to which the tiers know its values
    gathered: set = dataclasses.field(default_factory=set)  # ids of the GatheredParameters that are open over it
    fingerprint: int | None = None  # of the memory, once others may write to it unseen
    written: bool = False


def bytes_of(tensor):
    """A contiguous tensor's memory, as a one-dimensional tensor of bytes."""
    return tensor.reshape(-1).view(torch.uint8)


def fingerprint(library, parameter):
    """Of its present memory: another if it was written to. library: the abi.Library that computes it."""
    memory = bytes_of(away.detached(parameter).contiguous()).cpu()
    return library.checksum(memory.data_ptr(), memory.numel(), 0, 0)


class Loans:
    """read(place): the values, in memory of their own on the model's device; write(place, values): sets what the tiers have.
    The places are attached.Place. One thread at a time."""

    def __init__(self, library, read, write):
        self._library, self._read, self._write = library, read, write
        self._loans = collections.OrderedDict()  # id of Parameter -> _Loan, the least recently used first
        self._bytes = 0

    def __contains__(self, parameter):
        return id(parameter) in self._loans

    def __bool__(self):
        return bool(self._loans)

    def lend(self, place):
        """Puts the values into the parameter's own memory, if they aren't there yet."""
        loan = self._loans.get(id(place.parameter))
        if loan is not None:
            self._loans.move_to_end(id(place.parameter))
            return
        away.set_memory(place.parameter, self._read(place))
        self._open(place)
        self._shrink(place.parameter)

    def _open(self, place, written=False):
        loan = _Loan(place, away.version(place.parameter), written=written)
        self._loans[id(place.parameter)] = loan
        self._bytes += place.nbytes
        return loan

    def replace(self, place, tensor):
        """The parameter's values are those of the tensor, whose memory it shares."""
        loan = self._loans.get(id(place.parameter))
        if tensor.untyped_storage().nbytes() > place.nbytes:  # the loan would last as long as all of it
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        same = loan is not None and torch._C._is_alias_of(away.memory(place.parameter), tensor)
        away.set_memory(place.parameter, tensor)
        if loan is None:
            loan = self._open(place)
        loan.written = loan.written or not same
        self.share(place.parameter)

    def share(self, parameter):
        """Others have the memory, and may write to it past PyTorch's sight."""
        loan = self._loans[id(parameter)]
        if loan.fingerprint is None:
            loan.fingerprint = fingerprint(self._library, parameter)

    def gather(self, place, holder):
        self.lend(place)
        self.share(place.parameter)
        self._loans[id(place.parameter)].gathered.add(id(holder))

    def end_gather(self, place, holder):
        """Does nothing where it was done, or gather() was not."""
        loan = self._loans.get(id(place.parameter))
        if loan is not None:
            loan.gathered.discard(id(holder))
            self._settle(loan)

    def settle(self):
        """Everything written is on the tiers; loans that nobody holds have ended."""
        for loan in list(self._loans.values()):
            self._settle(loan)

    def renew(self):
        """After a step: what is still on loan has its new values."""
        for loan in list(self._loans.values()):
            parameter = loan.place.parameter
            with torch.no_grad():
                away.detached(parameter).copy_(self._read(loan.place))
            self._known(loan)

    def end(self):
        """All of them, without a look at what was written: the tiers are gone."""
        self._loans.clear()
        self._bytes = 0

    def _known(self, loan):
        loan.version = loan.place.version = away.version(loan.place.parameter)
        loan.written = False
        if loan.fingerprint is not None:
            loan.fingerprint = fingerprint(self._library, loan.place.parameter)

    def _settle(self, loan):
        parameter = loan.place.parameter
        self._save(loan)
        if not loan.gathered and away.storage_uses(parameter) == 1:
            del self._loans[id(parameter)]
            self._bytes -= loan.place.nbytes
            away.set_memory(parameter, loan.place.placeholder)

    def _save(self, loan):
        parameter = loan.place.parameter
        written = loan.written or away.version(parameter) != loan.version
        if written or (loan.fingerprint is not None and fingerprint(self._library, parameter) != loan.fingerprint):
            self._write(loan.place, away.detached(parameter).clone(memory_format=torch.contiguous_format))
            self._known(loan)

    def _shrink(self, newest):
        for loan in list(self._loans.values()):
            if self._bytes <= _BYTES_MAX:
                return
            if loan.place.parameter is not newest and not loan.gathered:
                self._settle(loan)


def merged(before, after, master):
    """The master after a write of the compute copy from `before` to `after`: where bits changed, what was written. `master()`
    gives it as it is, and is asked only if something changed. None: nothing has. All contiguous and in RAM."""
    size = before.element_size()
    changed = (bytes_of(before).view(-1, size) != bytes_of(after).view(-1, size)).any(1).view(before.shape)
    if not changed.any():
        return None
    if before.dtype not in (torch.bfloat16, torch.float16):  # what is computed with is all there is
        return after
    return torch.where(changed, after.float(), master())


