"""Ranks that meet in a store: whatever one does between any two looks of another's, they come to one verdict."""

import threading

import pytest
import torch.distributed as dist
from sluice.collectives import attendance
from sluice.native.errors import Unavailable

SOON, LONG = 0.2, 30.0


def outcome(store, rank, ranks, timeout_s):
    try:
        attendance.meet(store, rank, ranks, timeout_s, "in a test")
    except Unavailable as error:
        return str(error)
    return "met"


class Interrupted:
    """A store, and what happens just before the n-th thing that is asked of it."""

    def __init__(self, store, n, happens):
        self._store, self._left, self._happens = store, n, happens

    def __getattr__(self, name):
        method = getattr(self._store, name)

        def call(*given):
            self._left -= 1
            if self._left == -1:
                self._happens()
            return method(*given)

        return call


@pytest.mark.parametrize("late", [0, 1])
def test_ranks_come_to_one_verdict_whenever_the_other_comes(late):
    met = 0
    for n in range(40):
        store = dist.HashStore()
        others = []
        # The late one comes when the other has asked n things, and may be waited for itself meanwhile.
        thread = threading.Thread(target=lambda: others.append(outcome(store, late, 2, LONG)))
        interrupted = Interrupted(store, n, lambda: (thread.start(), thread.join(0.05)))
        mine = outcome(interrupted, 1 - late, 2, SOON)
        if thread.ident is None:  # it has never been asked so often
            assert f"rank {late}: rank {1 - late} has waited 0.2 s for it in a test" == mine
            break
        thread.join(LONG)
        assert others == [mine]
        met += mine == "met"
    else:
        raise AssertionError("there is no end to what is asked")
    assert 0 < met < n  # both have been seen


def test_all_meet_again_and_again():
    store, rounds, outcomes = dist.HashStore(), 20, []

    def meets(rank):
        outcomes.extend(outcome(store, rank, 3, LONG) for _ in range(rounds))

    threads = [threading.Thread(target=meets, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == ["met"] * (3 * rounds)


@pytest.mark.parametrize("ranks", [2, 3])
def test_none_that_declines_is_waited_for(monkeypatch, ranks):
    store, wait, came = dist.HashStore(), attendance._wait, []
    monkeypatch.setattr(attendance, "_LOOK_S", SOON)
    monkeypatch.setattr(attendance, "_wait", lambda *given: came.append(wait(*given)))
    for rank in reversed(range(ranks)):
        attendance.decline(store, rank, ranks, f"rank {rank} declines")
    assert came == [True]
