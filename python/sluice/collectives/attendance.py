"""Which ranks have come: asked of the store of torch.distributed, where each says so, so that those that don't are named."""

import datetime
import os
import time

import torch.distributed as dist

from ..native.errors import Unavailable

_LOOK_S = 1.0  # how often is looked whether another rank has given up
_ALL_CAME = "all came"
_kept = []  # stores of meetings that came to nothing: rank 0's may be asked as long as its process is there, and met in again


def store_of(place, port, timeout_s):
    """The store in which the ranks find each other: rank 0's, unless the launcher has one. Errors: Unavailable."""
    address, known = place.rendezvous()
    launcher_has_one = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    port = known if launcher_has_one or port is None else port
    try:
        store = dist.TCPStore(
            address, port, place.world, place.rank == 0 and not launcher_has_one,
            timeout=datetime.timedelta(seconds=timeout_s), wait_for_workers=False, multi_tenant=True,
        )  # fmt: skip
    except RuntimeError as error:
        who = "the launcher's store" if launcher_has_one else "rank 0"
        raise Unavailable(f"{who} does not answer at {address} port {port}: {_first_line(error)}") from error
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"sluice/{attempt}", store)


def meet(store, rank, ranks, timeout_s, where):
    """Returns when all ranks have come here. Errors: Unavailable naming those that have not within that time, or with the words
    of one that has declined."""
    deadline = time.monotonic() + timeout_s
    words = None
    try:
        came, left, verdict = _next(store, rank, ranks)
        store.set(came[rank], "")
        while words is None:
            came_all = _wait(store, came, min(_LOOK_S, max(0.01, deadline - time.monotonic())))
            if store.check([verdict]):  # also for who comes too late
                words = store.get(verdict).decode()
            elif came_all or time.monotonic() >= deadline:
                missing = [] if came_all else [r for r in range(ranks) if not store.check([came[r]])]
                ones = ", ".join(map(str, missing))
                says = f"rank{'s' if len(missing) > 1 else ''} {ones}: rank {rank} has waited {timeout_s:g} s for it {where}"
                words = store.compare_set(verdict, "", says if missing else _ALL_CAME).decode()  # the first one's, for all
        if words == _ALL_CAME:
            return
        store.set(left[rank], "")
        _kept.append(store)
        if rank == 0:  # who may keep the store
            _wait(store, [left[r] for r in range(ranks) if store.check([came[r]])], 2 * _LOOK_S)
    except RuntimeError as error:
        raise Unavailable(f"rank 0, or whoever keeps the store in which ranks meet, is gone: {_first_line(error)}") from error
    raise Unavailable(words)


def decline(store, rank, ranks, words):
    """In the place of meet(): those who come, or have come, hear `words` within a second or so."""
    _kept.append(store)
    try:
        _, left, verdict = _next(store, rank, ranks)
        store.compare_set(verdict, "", words)
        store.set(left[rank], "")
        if rank == 0:  # this process may end now, and the store with it
            _wait(store, [key for key in left if key != left[rank]], 2 * _LOOK_S)
    except RuntimeError:
        pass  # whoever keeps the store is gone, which the others see too


def _next(store, rank, ranks):
    """Keys of the next meeting, the same on all ranks: of this store, whatever the process did before."""
    number = store.add(f"sluice/meetings/{rank}", 1)
    came, left = ([f"sluice/{number}/{what}/{r}" for r in range(ranks)] for what in ("came", "left"))
    return came, left, f"sluice/{number}/verdict"


def _wait(store, keys, seconds):
    """Whether all of them are set, now or within so long. Errors: DistNetworkError if the store is gone."""
    try:
        store.wait(keys, datetime.timedelta(seconds=seconds))
    except dist.DistNetworkError:
        raise
    except RuntimeError:
        return False
    return True


def _first_line(error):
    return str(error).partition("\n")[0][:200]
