"""The ranks that train together, over torch.distributed: the user's groups are left alone, and Sluice has its own."""

import contextlib
import datetime
import hashlib
import os

import torch
import torch.distributed as dist

from ..native import errors
from ..native.errors import FailedPrecondition, Unavailable
from ..ranks import RankError, RankPlace, find_place
from . import attendance, comm_table
from .group_server import GroupServer
from .local_tables import local_tables
from .value_group import ValueGroup

GROUPS = ("agreement", "gradients", "gathers", "values")  # in the order of sluice_options.comm
TIMEOUT_S = 600  # how long a rank waits for another one, unless it is told
_MORE_S = 60  # that gloo waits before it breaks a group of its own accord: others know sooner, and which rank it is
_JOIN_S = 5
_DECLINE_S = 5  # so long a rank that does not come looks for a store where it can say so


def is_initialised():
    """Whether somebody has set up torch.distributed."""
    return dist.is_available() and dist.is_initialized()


def world_size():
    """Ranks of torch.distributed, or, before that is set up, those that the environment says. Errors: RankError."""
    return dist.get_world_size() if is_initialised() else find_place().world


def initialise(backend=None, port=None, timeout=None, init_method=None, rank=-1, size=-1, alone=False):
    """Sets up torch.distributed for this process, where nobody has and there are several ranks. alone: with one rank, too, by
    itself. Errors: RankError."""
    if is_initialised():
        return
    place = find_place() if size < 1 else RankPlace(rank, size, 0, 1, "none", None, None)
    if place.world == 1:
        if alone and dist.is_available():
            dist.init_process_group(backend or "gloo", store=dist.HashStore(), rank=0, world_size=1)
        return
    if not dist.is_available():
        raise RankError(f"{place.world} ranks: this PyTorch was built without torch.distributed")
    more = {} if timeout is None else {"timeout": timeout}
    if init_method is None:
        timeout_s = TIMEOUT_S if timeout is None else timeout.total_seconds()
        more["store"] = attendance.store_of(place, port, timeout_s)
        attendance.meet(more["store"], place.rank, place.world, timeout_s, "in torch.distributed")
    else:
        more["init_method"] = init_method
    backend = backend or (None if torch.cuda.is_available() else "gloo")
    dist.init_process_group(backend, rank=place.rank, world_size=place.world, **more)


def find_world(timeout_s=None):
    """The World of this process, or None for one rank. torch.distributed is set up if need be. All ranks call it. timeout_s: how
    long a rank waits for another one."""
    initialise(timeout=None if timeout_s is None else datetime.timedelta(seconds=timeout_s))
    return World(timeout_s or TIMEOUT_S) if world_size() > 1 else None


def decline(error, port=None):
    """In the place of find_world(), for `error`: the other ranks' find_world() raises Unavailable with it. Nothing happens where
    there is nobody to tell, or no way: another rank than 0 that comes here long before rank 0 opens its store finds none, and the
    others wait for it."""
    try:
        if is_initialised():
            rank, ranks = dist.get_rank(), dist.get_world_size()
            store = dist.distributed_c10d._get_default_store()
        else:
            place = find_place()
            rank, ranks = place.rank, place.world
            store = attendance.store_of(place, port, _DECLINE_S) if ranks > 1 and dist.is_available() else None
    except (RankError, Unavailable):
        return
    if ranks > 1 and store is not None:
        attendance.decline(store, rank, ranks, _words(rank, error))


def _words(rank, error):
    return f"rank {rank} can't begin: {type(error).__name__}: {error}"


class World:
    """One training of all ranks of torch.distributed, with process groups of its own. All ranks make it, close it, and call
    its collective methods in the same order. Errors of those, and when it is made: Unavailable, naming the rank that is gone or
    that did not come in timeout_s."""

    def __init__(self, timeout_s=TIMEOUT_S):
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.local_rank = _local_rank(self.rank)
        self._groups = {}
        self._servers = []
        store = dist.distributed_c10d._get_default_store()
        attendance.meet(store, self.rank, self.size, timeout_s, "where engines are made")
        self._all_know = False  # of what went wrong
        self.failed = False  # since fail()
        self._tables = None
        self._timeout_s = timeout_s
        self._timeout = datetime.timedelta(seconds=timeout_s + _MORE_S)
        self._groups["world"] = group = dist.new_group(backend="gloo", timeout=self._timeout)
        self._store, self._reason = store, f"sluice/{group.group_name}/reason"
        try:
            self._values = ValueGroup(group, self.rank, self.size, timeout_s)
        except RuntimeError as error:  # another rank may have come through this, and have given up
            if store.check([self._reason]):
                raise Unavailable(store.get(self._reason).decode()) from error
            raise

    def tables(self):
        """The ctypes array of tables for sluice_options.comm, by GROUPS: whoever is given them closes them. All ranks call it, the
        first time."""
        if self._tables is None:
            tables, why = local_tables(self._values, self.rank, self.size, len(GROUPS), self._timeout_s)
            self._tables = tables or self._over_gloo(why)
        return self._tables

    def forget_tables(self):
        """They are somebody else's from here on."""
        self._tables = ()

    def give_up(self, error):
        """This rank does not use its tables: ranks that wait for it there hear why. Nothing happens if they were given away."""
        tables, self._tables = self._tables or (), ()
        words = _words(self.rank, error).encode()
        for table in tables:
            table.abort(table.context, words)
            table.close(table.context)

    def fail(self, error):
        """This rank makes no engine: those that wait for it here, or will, hear why. Nothing happens where all know already.
        Afterwards nothing but close() works."""
        if self._all_know:
            return
        self.failed = True
        self._all_know = True
        words = _words(self.rank, error)
        with contextlib.suppress(RuntimeError):  # whoever keeps the store may be gone
            self._store.compare_set(self._reason, "", words)
        self._values.give_up(words)

    def _over_gloo(self, why):
        tables = []
        for name in GROUPS:
            self._groups[name] = dist.new_group(backend="gloo", timeout=self._timeout)
        for name in GROUPS:
            server = GroupServer(self._groups[name], self.rank, self.size, name)
            self._servers.append(server)
            about = f"gloo, PyTorch {torch.__version__} (not directly: {why})"
            tables.append(comm_table.serve(server, self.rank, self.size, about))
        return (comm_table.CommTable * len(tables))(*tables)

    def broadcast(self, tensor, root=0):
        """Gives `tensor`, of any type, in RAM and contiguous, the value that it has on rank `root`."""
        if tensor.numel():
            self._values.broadcast(tensor.detach().reshape(-1).view(torch.uint8), root)

    def share(self, tensor, root=0):
        """The same for a tensor that lies anywhere and in any way; written to in place, on every rank."""
        value = tensor.detach().cpu().contiguous()
        self.broadcast(value, root)
        with torch.no_grad():
            tensor.copy_(value)

    def texts(self, text):
        """What each rank passes, by rank."""
        return self._values.texts(text)

    def check_same(self, lines, what):
        """Errors: ValueError, on all ranks, if `lines` are not the same on all; it names the first that differs."""
        digests = self._values.texts(hashlib.sha256("\n".join(lines).encode()).hexdigest())
        wrong = [r for r in range(self.size) if digests[r] != digests[0]]
        if not wrong:
            return
        texts = self._values.texts("\n".join(lines))
        self._all_know = True
        mine, theirs = texts[0].split("\n"), texts[wrong[0]].split("\n")
        first = next(i for i in range(max(len(mine), len(theirs)) + 1) if mine[i : i + 1] != theirs[i : i + 1])
        raise ValueError(
            f"{what} of rank {wrong[0]} is not that of rank 0: {_line(theirs, first)}, but {_line(mine, first)} on rank 0"
        )

    def check_worked(self, error):
        """error: what this rank met in what all have tried, or None. Errors: if this one met none and another did, one with its
        words, of its kind if that is the library's or a ValueError, else FailedPrecondition: so all take it alike."""
        texts = self._values.texts("" if error is None else f"{type(error).__name__}: {error}")
        self._all_know = any(texts)
        for rank, text in enumerate(texts):
            if text and error is None:
                kind, _, words = text.partition(": ")
                known = {**vars(errors), "ValueError": ValueError}.get(kind)
                if not (isinstance(known, type) and issubclass(known, Exception)):
                    known, words = FailedPrecondition, text
                raise known(f"rank {rank} could not go on: {words}")

    def meet(self, seconds):
        """Returns when all ranks have come here, or after so long, or if one is gone; afterwards nothing but close() works."""
        self._values.meet(seconds)

    def close(self):
        """After the tables were closed. Does nothing the second time."""
        groups, self._groups = self._groups, {}
        for server in self._servers:
            server.thread.join(_JOIN_S)
        for group in groups.values():
            with contextlib.suppress(Exception):  # the user may have ended them all
                dist.destroy_process_group(group)


def _line(lines, number):
    return lines[number] if number < len(lines) else "nothing"


def _local_rank(rank):
    try:
        place = find_place()
    except RankError:
        place = None
    if place is not None and place.rank == rank:
        return place.local_rank
    return int(os.environ.get("LOCAL_RANK") or rank % max(1, torch.cuda.device_count()))
