"""abi.Runtime: what a wait raises, and what a closed runtime says."""

import ctypes
import gc
import weakref

import pytest
import sluice
import torch
from sluice.native import abi


@pytest.fixture
def runtime():
    runtime = abi.Runtime([("unit", [("tensor", 8, 0)])], abi.Options(lowest_param_tier=abi.PINNED,
                                                                         lowest_state_tier=abi.PINNED))  # fmt: skip
    yield runtime
    runtime.close()


def write(runtime, ticket):
    value = torch.ones(8)
    runtime.start_write(0, abi.MASTER, value.data_ptr(), abi.F32, 8, ticket)
    runtime.lent.value = value  # until the end


def test_a_ticket_that_was_waited_for_before_is_done(runtime):
    ticket = abi.Ticket()
    write(runtime, ticket)
    again = abi.Ticket(ticket.value)
    runtime.wait(ticket)
    assert not ticket and again
    runtime.wait(again)
    assert not again and runtime.done(again)


def test_an_operations_own_invalid_argument_is_raised(runtime, monkeypatch):
    """Once: the ticket is used up then. Also where it speaks in the words of a ticket that is not open."""
    ticket = abi.Ticket()
    write(runtime, ticket)
    runtime.drain()
    for words in ("step: beta1 is 2", f"ticket {ticket.value:#x} is not open"):

        def wait(*_, words=words):
            raise sluice.InvalidArgument(words)

        mine = abi.Ticket(ticket.value)
        monkeypatch.setattr(runtime.library, "wait", wait)
        with pytest.raises(sluice.InvalidArgument, match=words):
            runtime.wait(mine)
        assert not mine
        monkeypatch.undo()
    runtime.wait(ticket)


def test_a_closed_runtime_says_so(runtime):
    ticket = abi.Ticket()
    write(runtime, ticket)
    runtime.close()
    straight = (
        lambda: runtime.start_acquire(0, abi.Ticket()),
        lambda: runtime.release(0),
        lambda: runtime.unit_view(0, ctypes.c_void_p()),
        lambda: runtime.start_grads([(torch.ones(8).data_ptr(), 8, 0, 0)], None, abi.Ticket()),
    )
    waits = (lambda: runtime.wait(ticket), lambda: runtime.done(abi.Ticket(5)))
    for call in (*waits, *straight, runtime.report, runtime.drain):
        with pytest.raises(sluice.FailedPrecondition, match="this runtime was closed"):
            call()
    assert not ticket


def test_what_an_abandoned_runtime_was_given_is_kept(runtime, monkeypatch):
    """What hangs may still read and write it; the error is raised once, and the runtime is closed."""
    given = torch.ones(8)
    runtime.lent.lend(given, runtime.start_write, 0, abi.MASTER, given.data_ptr(), abi.F32, 8)
    kept = weakref.ref(runtime.lent)
    real = runtime.library.call

    def call(name, *arguments):
        real(name, *arguments)
        if name == "sluice_runtime_destroy":
            raise sluice.Unavailable("the runtime was abandoned, since this has not ended: 1 reads of swap file 0")

    monkeypatch.setattr(runtime.library, "call", call)
    with pytest.raises(sluice.Unavailable, match="was abandoned"):
        runtime.close()
    assert not runtime.open
    runtime.close()
    del runtime.lent
    gc.collect()
    assert kept() is abi._ABANDONED.pop()


@pytest.mark.parametrize("elements", [1, 8, 1 << 14, 1 << 20])
def test_what_was_lent_is_let_go_of_while_more_is_lent(elements):
    """Nobody has to wait for it; small tensors go several at a time."""
    options = abi.Options(lowest_param_tier=abi.PINNED, lowest_state_tier=abi.PINNED)
    runtime = abi.Runtime([("unit", [("tensor", elements, 0)])], options)

    def lend():
        given = torch.ones(elements)
        runtime.lent.lend(given, runtime.start_write, 0, abi.MASTER, given.data_ptr(), abi.F32, elements)
        return weakref.ref(given)

    first = lend()
    for _ in range(40):
        runtime.drain()
        lend()
    assert first() is None
    kept = [lend() for _ in range(5)]
    runtime.lent.finish()
    assert not any(tensor() is not None for tensor in kept)
    runtime.close()
