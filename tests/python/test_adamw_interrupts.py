"""Ctrl-C at every instruction of every call of sluice.AdamW: a step is taken as a whole or not at all, and what comes next
works."""

import interrupts
import pytest
import torch
from adamw_loop import TIERS, make_model

import sluice

EVERY = 1 if interrupts.NIGHTLY else 5


def everything(model, optimizer):
    """All that a step changes, by name."""
    packed = optimizer.state_dict()
    result = {f"{i} {key}": value for i, entry in packed["state"].items() for key, value in entry.items()}
    result.update((name, parameter.detach().clone()) for name, parameter in model.named_parameters())
    return result


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in ours.items())


class Pair:
    """A model that is interrupted, and one that never is."""

    def __init__(self, overlap=False, trained=lambda model: model.parameters(), **tiers):
        self.models = make_model(), make_model()
        self.optimizers = [
            sluice.AdamW(trained(m), lr=1e-2, overlap=m if overlap else None, **{**TIERS, **tiers}) for m in self.models
        ]
        self._generator = torch.Generator().manual_seed(3)

    def set_gradients(self):
        for ours, theirs in zip(*(model.parameters() for model in self.models)):
            theirs.grad = torch.randn(theirs.shape, generator=self._generator)
            ours.grad = theirs.grad.clone()

    def step(self):
        self.set_gradients()
        for optimizer in self.optimizers:
            optimizer.step()

    def everything(self):
        return [everything(*pair) for pair in zip(self.models, self.optimizers)]

    def close(self):
        for optimizer in self.optimizers:
            optimizer.close()


def sweep(pair, call, setup=lambda optimizer, model: None, every=EVERY):
    """call(optimizer, model), interrupted everywhere: then all is as if it had not been called, or had been; and it is
    called again in the first case."""
    assert len(pair.optimizers) == 2
    mine, other = zip(pair.optimizers, pair.models)

    def begin():
        pair.set_gradients()
        for one in (mine, other):
            setup(*one)

    begin()
    call(*other)
    points = interrupts.points(lambda: call(*mine), every)
    assert len(points) > 40
    interrupted = 0
    for point in points:
        begin()
        before = everything(other[1], other[0])
        call(*other)
        after = everything(other[1], other[0])
        interrupted += interrupts.interrupt(lambda: call(*mine), point)
        now = everything(mine[1], mine[0])
        if not same(now, after):
            assert same(now, before), f"half a step at {point}"
            call(*mine)
            assert same(everything(mine[1], mine[0]), after), f"the next try is another at {point}"
    assert interrupted > 0.25 * len(points)  # the number of instructions depends on how long the library takes


def step(optimizer, model):
    optimizer.step()


def step_and_wait(optimizer, model):
    optimizer.step()
    optimizer.synchronize()


def step_and_forward(optimizer, model):
    optimizer.step()
    with torch.no_grad():
        model(torch.ones(2, 8))


def step_and_read(optimizer, model):
    optimizer.step()
    model[0].weight.sum()
    assert model[2].weight.data.shape == (64, 96)


@pytest.mark.parametrize("call", [step, step_and_wait, step_and_forward, step_and_read], ids=lambda f: f.__name__)
@pytest.mark.parametrize("overlap", [False, True])
def test_a_step_is_taken_whole_or_not_at_all(call, overlap):
    pair = Pair(overlap)
    pair.step()
    sweep(pair, call)
    pair.close()


def test_parameters_that_are_updated_in_a_copy_too():
    pair = Pair()
    for model in pair.models:
        model[2].weight.data = model[2].weight.data.t().contiguous().t()
    pair.step()
    sweep(pair, step)
    pair.close()


def test_a_second_interrupt_while_the_first_is_put_right():
    """The step is then under way, with overlap or without: whoever uses a parameter waits for it."""
    pair = Pair()
    pair.step()
    mine, model = pair.optimizers[0], pair.models[0]
    settle = type(mine)._settle
    pair.set_gradients()
    pair.optimizers[1].step()
    for point in interrupts.points(mine.step, EVERY):
        pair.set_gradients()
        before = everything(pair.models[1], pair.optimizers[1])
        pair.optimizers[1].step()
        after = everything(pair.models[1], pair.optimizers[1])
        calls = []

        def twice(optimizer):
            if calls:
                raise KeyboardInterrupt
            calls.append(1)
            return settle(optimizer)

        type(mine)._settle = twice
        try:
            interrupts.interrupt(mine.step, point)
        finally:
            type(mine)._settle = settle
        seen = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        now = everything(model, mine)
        expected = after if same(now, after) else before
        assert same(now, expected) and same(seen, {name: expected[name] for name in seen}), point
        if expected is before:
            mine.step()
    pair.close()


def test_a_step_without_finite_gradients_changes_nothing_when_interrupted():
    pair = Pair(True)
    pair.step()

    def spoil(optimizer, model):
        optimizer.zero_grad()
        model[0].bias.grad = torch.full_like(model[0].bias, float("nan"))

    with pytest.warns(UserWarning, match="not finite"):
        sweep(pair, step, spoil, EVERY)
    pair.step()
    assert same(*pair.everything())
    pair.close()


def test_a_runtime_is_made_whole_or_not_at_all():
    """The first step, at every point of which a new optimizer is interrupted."""
    pair = Pair()
    pair.set_gradients()
    expected = pair.optimizers[1], pair.models[1]
    points = interrupts.points(lambda: step(*expected), EVERY)
    after = everything(expected[1], expected[0])
    for point in points:
        fresh = Pair()
        fresh.set_gradients()
        interrupts.interrupt(fresh.optimizers[0].step, point)
        if not same(everything(fresh.models[0], fresh.optimizers[0]), after):
            fresh.optimizers[0].step()
            assert same(everything(fresh.models[0], fresh.optimizers[0]), after), point
        fresh.close()
    pair.close()


@pytest.mark.parametrize("overlap", [False, True])
def test_a_group_joins_whole_or_not_at_all(overlap, tmp_path):
    def make():
        pair = Pair(overlap, lambda model: model[0].parameters(), nvme_path=tmp_path)
        pair.step()
        for optimizer, model in zip(pair.optimizers, pair.models):
            optimizer.add_param_group({"params": model[2].parameters()})
        pair.set_gradients()
        return pair

    pair = make()
    points = interrupts.points(pair.optimizers[1].step, EVERY)
    after = everything(pair.models[1], pair.optimizers[1])
    pair.close()
    for point in points:
        pair = make()
        interrupts.interrupt(pair.optimizers[0].step, point)
        if not same(everything(pair.models[0], pair.optimizers[0]), after):
            pair.optimizers[0].step()
            assert same(everything(pair.models[0], pair.optimizers[0]), after), point
        pair.close()
    assert list(tmp_path.iterdir()) == []


def test_reading_states_changes_nothing_when_interrupted():
    pair = Pair(True)
    pair.step()
    for point in interrupts.points(pair.optimizers[0].state_dict, EVERY):
        pair.step()
        interrupts.interrupt(pair.optimizers[0].state_dict, point)
        assert same(*pair.everything()), point
    pair.close()


def test_an_interrupted_load_is_known_and_can_be_tried_again():
    pair = Pair(True)
    pair.step()
    saved = pair.optimizers[1].state_dict()
    expected = everything(pair.models[0], pair.optimizers[0])
    refused = 0
    mine = pair.optimizers[0]
    for point in interrupts.points(lambda: mine.load_state_dict(saved), EVERY):
        for optimizer in pair.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 0.0
        pair.set_gradients()
        mine.step()  # the moments differ from the saved ones
        interrupts.interrupt(lambda: mine.load_state_dict(saved), point)
        try:
            mine.state_dict()
        except sluice.FailedPrecondition as error:
            assert "load_state_dict" in str(error)
            refused += 1
            with pytest.raises(sluice.FailedPrecondition, match="call it again"):
                mine.step()
        mine.load_state_dict(saved)
        now = everything(pair.models[0], mine)
        assert same({k: v for k, v in now.items() if " " in k}, {k: v for k, v in expected.items() if " " in k}), point
        assert mine.param_groups[0]["lr"] == 1e-2
    assert refused > 3
    pair.close()


def test_an_interrupted_close_closes_the_next_time():
    for point in interrupts.points(_closed().close):
        optimizer = _closed()
        interrupts.interrupt(optimizer.close, point)
        optimizer.close()
        assert optimizer.report() is None
        with pytest.raises(sluice.FailedPrecondition, match="closed"):
            optimizer.step()


def _closed():
    pair = Pair(True)
    pair.step()
    pair.optimizers[1].close()
    return pair.optimizers[0]
