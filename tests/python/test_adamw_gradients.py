"""Gradients that sluice.AdamW reads where they lie, whatever they are and whatever becomes of them: the bits of those that it
copies, and PyTorch's numbers."""

import gc

import pytest
import torch
from adamw_loop import TIERS, assert_close, assert_equal

import sluice
from sluice.native import abi

SHAPES = ((70, 80), (70, 80), (5,), (4097,))
EPS = 1e-3  # small gradients are not amplified, so that both round alike


def flat(parameters, make):
    """Of one buffer, one after another."""
    whole = torch.empty(sum(p.numel() for p in parameters), dtype=parameters[0].dtype)
    for p, part in zip(parameters, whole.split([p.numel() for p in parameters])):
        p.grad = part.view(p.shape).copy_(make(p))


def shared(parameters, make):
    """The first two parameters have one."""
    each(parameters, make)
    parameters[1].grad = parameters[0].grad


def each(parameters, make):
    for p in parameters:
        p.grad = make(p)


def transposed(parameters, make):
    each(parameters, lambda p: make(p).t().contiguous().t() if p.dim() == 2 else make(p))


def every_second(parameters, make):
    each(parameters, lambda p: make(p).repeat_interleave(2, 0)[::2])


def expanded(parameters, make):
    each(parameters, lambda p: make(p).reshape(-1)[:1].expand(p.shape))


def sparse(parameters, make):
    """Which PyTorch's AdamW refuses."""
    each(parameters, lambda p: make(p).to_sparse())


def unaligned(parameters, make):
    """A view of bytes that begins at an odd one."""

    def moved(p):
        given = make(p).view(-1).view(torch.uint8)
        memory = bytearray(given.numel() + 1)
        result = torch.frombuffer(memory, dtype=p.dtype, offset=1, count=p.numel()).view(p.shape)
        assert result.data_ptr() % p.element_size()
        return result.copy_(make(p))

    each(parameters, moved)


def negated(parameters, make):
    each(parameters, lambda p: torch._neg_view(make(p)))


def itself(parameters, make):
    each(parameters, lambda p: p.detach())


def another(parameters, make):
    """Each of the first two has the other's values, in the other's memory."""
    each(parameters, make)
    parameters[0].grad, parameters[1].grad = parameters[1].detach(), parameters[0].detach()


def through_another_storage(parameters, make):
    each(parameters, make)
    parameters[0].grad = torch.from_dlpack(parameters[1].detach())


def beside(parameters, make):
    """A half of it lies in a parameter, which is a view of the same storage from here on."""
    each(parameters, make)
    one, other = parameters[:2]
    whole = torch.cat([one.detach().reshape(-1), other.detach().reshape(-1)])
    n = one.numel()
    one.data = whole[:n].view(one.shape)
    other.grad = whole[n // 2 : n // 2 + n].view(other.shape)


def with_a_graph(parameters, make):
    factor = torch.ones((), requires_grad=True)
    for p in parameters:
        p.grad = make(p) * factor


def single_precision(parameters, make):
    """In fp32, whatever the parameters are."""
    for p in parameters:
        p.grad_dtype = torch.float32
        p.grad = make(p).float()


MAKERS = [each, flat, shared, transposed, every_second, expanded, sparse, unaligned, negated, itself, another]
MAKERS += [through_another_storage, beside, with_a_graph, single_precision]


def nothing(parameters):
    pass


def to_none(parameters):
    for p in parameters:
        p.grad = None
    gc.collect()


def spoil(parameters):
    with torch.no_grad():
        for p in parameters:
            if p.grad.layout == torch.strided and not torch._debug_has_internal_overlap(p.grad):
                p.grad.fill_(float("nan"))
            p.grad = None


def zero(parameters):
    for p in parameters:
        if p.grad.layout == torch.strided and not torch._debug_has_internal_overlap(p.grad):
            p.grad.detach().zero_()


def run(kind, maker, dtype, after=nothing, steps=3, **more):
    torch.manual_seed(9)
    parameters = [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in SHAPES]
    if more.pop("copies", False):
        more["overlap"] = torch.nn.ParameterList(parameters)
    optimizer = kind(parameters, lr=1e-2, eps=EPS, **more)
    for step in range(steps):
        seeds = {id(p): 100 * step + n for n, p in enumerate(parameters)}

        def make(p, seeds=seeds):
            return torch.randn(p.shape, generator=torch.Generator().manual_seed(seeds[id(p)])).to(p.dtype)

        maker(parameters, make)
        optimizer.step()
        after(parameters)
    result = {str(n): p.detach().clone() for n, p in enumerate(parameters)}
    if kind is sluice.AdamW:
        state = optimizer.state_dict()["state"]
        result.update({f"{n} {key}": value for n, entry in state.items() for key, value in entry.items()})
        optimizer.close()
    return result


@pytest.mark.parametrize("maker", MAKERS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gradients_of_any_memory(maker, dtype):
    ours = run(sluice.AdamW, maker, dtype, **TIERS)
    assert_equal(ours, run(sluice.AdamW, maker, dtype, copies=True, **TIERS))
    if maker is sparse:
        assert_equal(ours, run(sluice.AdamW, each, dtype, **TIERS))
    if dtype != torch.float32:  # PyTorch's moments are narrower
        return
    if maker in (sparse, another, through_another_storage, beside):
        return  # PyTorch refuses it, or takes what it has written into the other parameter already
    theirs = run(torch.optim.AdamW, maker, dtype)
    assert_close(theirs, {key: ours[key] for key in theirs})


@pytest.mark.parametrize("after", [to_none, spoil, zero], ids=lambda f: f.__name__)
@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("maker", [each, flat, shared, transposed, sparse], ids=lambda f: f.__name__)
def test_gradients_may_be_changed_or_dropped_once_step_has_returned(maker, copies, after, tmp_path):
    """The drive keeps an update under way for long."""
    tiers = {"pinned": "400KiB", "nvme_path": tmp_path, "chunk_elements": 4096, "workers": 1}
    expected = run(sluice.AdamW, maker, torch.float32, **TIERS)
    assert_equal(run(sluice.AdamW, maker, torch.float32, after, copies=copies, **tiers), expected)


def test_a_dense_gradient_is_not_copied(monkeypatch):
    """But for overlap, and where it is not as the library takes it, or an update would write it."""
    lent = {}

    def spied(self, gradients, stream, ticket, start=abi.Runtime.start_grads):
        lent.update({number: is_lent for _, _, number, is_lent in gradients})
        start(self, gradients, stream, ticket)

    monkeypatch.setattr(abi.Runtime, "start_grads", spied)
    some = {
        transposed: [0, 0, 1, 1],
        every_second: [0] * 4,
        expanded: [0] * 4,
        unaligned: [0] * 4,
        negated: [0] * 4,
        sparse: [0] * 4,
        itself: [0] * 4,
        another: [0, 0, 1, 1],
        through_another_storage: [0, 1, 1, 1],
        beside: [1, 0, 1, 1],
    }
    for maker in MAKERS:
        for copies in (False, True):
            run(sluice.AdamW, maker, torch.float32, steps=1, copies=copies, **TIERS)
            expected = [0] * 4 if copies else some.get(maker, [1] * 4)
            assert [int(lent[n]) for n in range(4)] == expected, maker.__name__


def test_many_gradients_that_must_be_copied_pass_in_parts(monkeypatch):
    calls = []

    def spied(self, gradients, stream, ticket, start=abi.Runtime.start_grads):
        calls.append(len(gradients))
        start(self, gradients, stream, ticket)

    monkeypatch.setattr(abi.Runtime, "start_grads", spied)
    parameters = [torch.nn.Parameter(torch.zeros(1 << 20, dtype=torch.bfloat16)) for _ in range(9)]
    optimizer = sluice.AdamW(parameters, lr=1e-2, pinned="1GiB", workers=1)
    for p in parameters:
        p.grad_dtype = torch.float32
        p.grad = torch.ones(2 * p.numel(), dtype=torch.float32)[::2]
    optimizer.step()
    assert len(calls) > 2 and sum(calls) == 9
    first = torch.tensor(-0.01, dtype=torch.bfloat16)  # the first step of Adam is lr, whatever the gradient
    assert all(bool((p.detach() == first).all()) for p in parameters)
    optimizer.close()


def test_a_gradient_that_is_not_finite_changes_nothing_and_is_let_go():
    for bad in (float("nan"), float("inf")):
        parameters = [torch.nn.Parameter(torch.ones(5000)) for _ in range(3)]
        optimizer = sluice.AdamW(parameters, lr=1e-2, **TIERS)
        for p in parameters:
            p.grad = torch.ones(5000)
        parameters[1].grad[4999] = bad
        with pytest.warns(UserWarning, match="not finite"):
            optimizer.step()
        assert all(bool((p.detach() == 1).all()) for p in parameters) and not optimizer.runtime.lent._kept
        parameters[1].grad[4999] = 1.0
        optimizer.step()
        assert optimizer.was_step_applied() and not optimizer.runtime.lent._kept
        assert all(torch.equal(p.detach(), parameters[0].detach()) and p.detach()[0] < 1 for p in parameters)
        optimizer.close()
