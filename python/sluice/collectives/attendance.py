"""Which ranks have come: asked of the store of torch.distributed, where each says so, so that those that don't are named."""

import datetime
import itertools
import os

import torch.distributed as dist

from ..native.errors import Unavailable

_numbers = itertools.count()  # of meetings; the same on all ranks


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
    """Returns when all ranks have come here. Errors: Unavailable naming those that have not within that time."""
    keys = [f"sluice/{place}/{r}" for place in [next(_numbers)] for r in range(ranks)]
    try:
        store.set(keys[rank], "")
        try:
            return store.wait(keys, datetime.timedelta(seconds=timeout_s))
        except RuntimeError:
            missing = [str(r) for r in range(ranks) if not store.check([keys[r]])]
    except RuntimeError as error:
        raise Unavailable(f"rank 0, or whoever keeps the store in which ranks meet, is gone: {_first_line(error)}") from error
    if missing:
        ones = "rank" if len(missing) == 1 else "ranks"
        raise Unavailable(f"rank {rank} has waited {timeout_s:g} s {where} for {ones} {', '.join(missing)}")


def _first_line(error):
    return str(error).partition("\n")[0][:200]
