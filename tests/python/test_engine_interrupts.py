"""Ctrl-C at every place of a forward, a backward, a step, a reading, a write, over models with hardly any HBM: no slot is
lost, nothing is half done, and the next try has the values of a run that was never interrupted."""

import pytest
import sluice
import torch
from interrupts import NIGHTLY, interrupt, points
from test_doors import BUDGETS, Model, placed, tokens


EVERY = 1 if NIGHTLY else 23


def loss_of(model, number):
    return model(tokens(number)).square().mean()


def forward(model, optimizer):
    with torch.no_grad():
        return model(tokens())


def forward_and_backward(model, optimizer):
    loss_of(model, 0).backward()


def step(model, optimizer):
    optimizer.step()


def read(model, optimizer):
    return model.project.sum(), model.head.weight.norm()


def state_dict(model, optimizer):
    return model.state_dict()


def gather(model, optimizer):
    with sluice.zero.GatheredParameters(list(model.parameters())):
        model(tokens())


def another_door(model, optimizer):
    return model.encode(tokens()).sum() + model.model.decoder.layers[1].up(torch.ones(1, 24)).sum()


def look_at_gradients(model, optimizer):
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)


# What is interrupted, and whether it changes values, so that they may be those of before or of after.
CALLS = {
    forward: False, forward_and_backward: False, step: True, read: False, state_dict: False, gather: False,
    another_door: False, look_at_gradients: False,
}  # fmt: skip


def values_of(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(value, b[key]) for key, value in a.items())


def train_once(model, optimizer, number):
    optimizer.zero_grad()
    loss_of(model, number).backward()
    optimizer.step()


@pytest.mark.parametrize("face", ["initialize", "attach"])
@pytest.mark.parametrize("call", CALLS, ids=lambda c: c.__name__)
def test_an_interrupt_anywhere_loses_nothing(face, call):
    engine, model, optimizer = placed(face, BUDGETS["tiny"])
    other, its_model, its_optimizer = placed(face, BUDGETS["tiny"])
    train_once(model, optimizer, 0)
    train_once(its_model, its_optimizer, 0)

    def ready(model, optimizer):
        optimizer.zero_grad()
        loss_of(model, 1).backward()

    ready(model, optimizer)
    found = points(lambda: call(model, optimizer), EVERY)
    ready(its_model, its_optimizer)
    call(its_model, its_optimizer)
    assert len(found) > 3
    for point in found:
        before = values_of(its_model)
        ready(model, optimizer)
        ready(its_model, its_optimizer)
        call(its_model, its_optimizer)
        interrupt(lambda: call(model, optimizer), point)
        optimizer.zero_grad()
        now, after = values_of(model), values_of(its_model)
        if not same(now, after):
            assert CALLS[call] and same(now, before), f"{call.__name__} at {point}: half done"
            ready(model, optimizer)
            call(model, optimizer)
            assert same(values_of(model), after), f"{call.__name__} at {point}: the next try is another"
        for m, o in ((model, optimizer), (its_model, its_optimizer)):
            train_once(m, o, 2)
        assert same(values_of(model), values_of(its_model)), f"{call.__name__} at {point}: what follows is another"
        assert torch._C._autograd._top_saved_tensors_default_hooks(True) is None
    assert engine.report()["counters"].get("misused_releases", 0) <= len(found)
    engine.close()
    other.close()


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("face", ["initialize", "attach"])
def test_gradients_after_an_interrupt_arrive(face, budget):
    """Also of a unit some of whose gradients were on their way when the interrupt came: each of those is there or not, all that
    follow are."""
    engine, model, _ = placed(face, BUDGETS[budget])
    plain, x = Model(), torch.linspace(-1, 1, 48).reshape(2, 24)

    def layer_of(model):
        return model.model.decoder.layers[1]

    def part(model):
        layer_of(model).up(layer_of(model).norm(x)).square().sum().backward()
        return layer_of(model).norm.weight.grad

    def follow(model):  # begins with others of the unit
        layer_of(model)(x).square().sum().backward()
        return [p.grad.clone() for p in layer_of(model).parameters()]

    follows = follow(plain)
    plain.zero_grad()
    part(plain)
    both = follow(plain)
    found = points(lambda: part(model))
    for point in found:
        model.zero_grad()
        interrupt(lambda: part(model), point)
        for now, one, two in zip(follow(model), follows, both, strict=True):
            assert any(torch.allclose(now, g, rtol=1e-5, atol=1e-6) for g in (one, two)), f"interrupted at {point}"
    engine.close()


def test_the_model_is_large_for_its_memory():
    """Else no slot could be missed."""
    engine, model, _ = placed("attach", BUDGETS["tiny"])
    with torch.no_grad():
        assert torch.equal(model(tokens()), Model()(tokens()))
    assert engine.report()["counters"]["evictions"] > 0
    engine.close()
