"""The ranks that train together, over torch.distributed: the user's groups are left alone, and Sluice has its own."""

import contextlib
import datetime
import hashlib
import os

import torch
import torch.distributed as dist

from ..native.errors import FailedPrecondition
from ..ranks import RankError, RankPlace, find_place
from . import comm_table
from .group_server import GroupServer

GROUPS = ("agreement", "gradients", "gathers")  # in the order of sluice_options.comm
# gloo's own; the library ends what takes longer than its 10 minutes.
_TIMEOUT = datetime.timedelta(minutes=30)
_JOIN_S = 5


def is_initialised():
    """Whether somebody has set up torch.distributed."""
    return dist.is_available() and dist.is_initialized()


def world_size():
    """Ranks of torch.distributed, or, before that is set up, those that the environment says. Errors: RankError."""
    return dist.get_world_size() if is_initialised() else find_place().world


def initialise(backend=None, port=None, timeout=None, init_method=None, rank=-1, size=-1):
    """Sets up torch.distributed for this process, where nobody has and there are several ranks. Errors: RankError."""
    if is_initialised():
        return
    place = find_place() if size < 1 else RankPlace(rank, size, 0, 1, "none", None, None)
    if place.world == 1:
        return
    if not dist.is_available():
        raise RankError(f"{place.world} ranks: this PyTorch was built without torch.distributed")
    if init_method is None:
        address, known = place.rendezvous()
        # torchrun has a store there already
        port = known if place.source == "torchrun" or port is None else port
        init_method = f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}"
    more = {} if timeout is None else {"timeout": timeout}
    backend = backend or (None if torch.cuda.is_available() else "gloo")
    dist.init_process_group(backend, init_method=init_method, rank=place.rank, world_size=place.world, **more)


def find_world():
    """The World of this process, or None for one rank. torch.distributed is set up if need be. All ranks call it."""
    initialise()
    return World() if world_size() > 1 else None


class World:
    """One training of all ranks of torch.distributed, with process groups of its own. All ranks make it, close it, and call
    its collective methods in the same order. Errors of those: RuntimeError of gloo's."""

    def __init__(self):
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.local_rank = _local_rank(self.rank)
        self._groups = {}
        self._servers = []
        for name in (*GROUPS, "values"):
            self._groups[name] = dist.new_group(backend="gloo", timeout=_TIMEOUT)

    def tables(self):
        """The ctypes array of tables for sluice_options.comm. Once: whoever is given them closes them."""
        tables = []
        for name in GROUPS:
            server = GroupServer(self._groups[name], self.rank, self.size, name)
            self._servers.append(server)
            tables.append(comm_table.serve(server, self.rank, self.size, f"gloo, PyTorch {torch.__version__}"))
        return (comm_table.CommTable * len(tables))(*tables)

    def broadcast(self, tensor, root=0):
        """Gives `tensor`, of any type, in RAM and contiguous, the value that it has on rank `root`."""
        if tensor.numel():
            raw = tensor.detach().reshape(-1).view(torch.uint8)
            self._groups["values"].broadcast([raw], _broadcast_options(root)).wait()

    def share(self, tensor, root=0):
        """The same for a tensor that lies anywhere and in any way; written to in place, on every rank."""
        value = tensor.detach().cpu().contiguous()
        self.broadcast(value, root)
        with torch.no_grad():
            tensor.copy_(value)

    def check_same(self, lines, what):
        """Errors: ValueError, on all ranks, if `lines` are not the same on all; it names the first that differs."""
        digests = self._texts(hashlib.sha256("\n".join(lines).encode()).hexdigest())
        wrong = [r for r in range(self.size) if digests[r] != digests[0]]
        if not wrong:
            return
        texts = self._texts("\n".join(lines))
        mine, theirs = texts[0].split("\n"), texts[wrong[0]].split("\n")
        first = next(i for i in range(max(len(mine), len(theirs)) + 1) if mine[i : i + 1] != theirs[i : i + 1])
        raise ValueError(
            f"{what} of rank {wrong[0]} is not that of rank 0: {_line(theirs, first)}, but {_line(mine, first)} on rank 0"
        )

    def check_worked(self, error):
        """error: what this rank met in what all have tried, or None. Errors: FailedPrecondition with another rank's words if
        this one met none and that one did."""
        texts = self._texts("" if error is None else f"{type(error).__name__}: {error}")
        for rank, text in enumerate(texts):
            if text and error is None:
                raise FailedPrecondition(f"rank {rank} could not go on: {text}")

    def _texts(self, text):
        """What each rank passes, by rank."""
        mine = torch.frombuffer(bytearray(text.encode() + b" "), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64, device="cpu") for _ in range(self.size)]
        self._all_gather(sizes, torch.tensor([mine.numel()], dtype=torch.int64, device="cpu"))
        texts = [torch.zeros(int(max(sizes)), dtype=torch.uint8, device="cpu") for _ in range(self.size)]
        padded = torch.zeros_like(texts[0])
        padded[: mine.numel()] = mine
        self._all_gather(texts, padded)
        return [bytes(t[: int(n) - 1].tolist()).decode() for t, n in zip(texts, sizes)]

    def _all_gather(self, outputs, tensor):
        self._groups["values"].allgather([outputs], [tensor]).wait()

    def meet(self, seconds):
        """Returns when all ranks have come here, or after so long, or if one is gone; afterwards nothing but close() works."""
        with contextlib.suppress(RuntimeError):
            self._groups["values"].barrier(dist.BarrierOptions()).wait(datetime.timedelta(seconds=seconds))

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


def _broadcast_options(root):
    options = dist.BroadcastOptions()
    options.rootRank, options.rootTensor = root, 0
    return options


def _local_rank(rank):
    try:
        place = find_place()
    except RankError:
        place = None
    if place is not None and place.rank == rank:
        return place.local_rank
    return int(os.environ.get("LOCAL_RANK") or rank % max(1, torch.cuda.device_count()))
