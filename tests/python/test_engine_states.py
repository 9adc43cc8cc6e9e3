"""The engine's optimizer and module as a training script saves, loads and lists them."""

import pytest
import sluice
import torch
from training import batch, config, loss_of, mlp, one_step, same


def decay_groups(model):
    """As scripts make them: weights decay, biases don't."""
    return [
        {"params": [p for p in model.parameters() if p.dim() > 1], "lr": 2e-2, "weight_decay": 0.3},
        {"params": [p for p in model.parameters() if p.dim() == 1], "lr": 5e-3, "weight_decay": 0.0},
    ]


def with_groups(engines, given, model=None):
    model = model or mlp()
    return engines(model, given, model_parameters=decay_groups(model))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_saved_optimizer_continues_bit_for_bit(engines, tmp_path, precision):
    """Two groups, whose rates and decay differ: those of the file, not those the new engine was made with."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    given = config(tmp_path, **({"bf16": {"enabled": True}} if precision == "bf16" else {}))

    def step(engine, number):
        x, y = batch(number, dtype=dtype)
        engine.backward(loss_of(engine(x), y))
        engine.step()

    first = with_groups(engines, given)
    for number in range(3):
        step(first, number)
    first.optimizer.param_groups[1]["lr"] = 7e-3
    module, states = first.module_state_dict(), first.optimizer.state_dict()
    assert len(states["state"]) == len(list(mlp().parameters()))
    assert all(entry["step"] == 3 and entry["exp_avg"].any() for entry in states["state"].values())
    assert ("master" in states["state"][0]) == (precision == "bf16")

    fresh = mlp(seed=1)
    fresh.load_state_dict(module)
    second = with_groups(engines, given, fresh)
    second.optimizer.load_state_dict(states)
    assert [(g["lr"], g["weight_decay"]) for g in second.optimizer.param_groups] == [(2e-2, 0.3), (7e-3, 0.0)]
    for number in range(3, 6):
        for engine in (first, second):
            step(engine, number)
    assert same(first.fp32_state_dict(), second.fp32_state_dict())
    assert same(first.optimizer_state_dict(), second.optimizer_state_dict())
    assert same(first.optimizer.state_dict()["state"], second.optimizer.state_dict()["state"])


def test_groups_keep_their_rates_after_a_load(engines):
    """Also in the engine that was saved, and where a rate is set afterwards."""
    given = config()
    loaded, plain = with_groups(engines, given), with_groups(engines, given)
    loaded.optimizer.load_state_dict(loaded.optimizer.state_dict())
    for engine in (loaded, plain):
        one_step(engine, 0)
        engine.optimizer.param_groups[1]["lr"] = 0.0
        one_step(engine, 1)
    assert same(loaded.fp32_state_dict(), plain.fp32_state_dict())


def test_a_parameter_without_states_begins_anew(engines):
    engine, unused = engines(mlp(), config()), engines(mlp(), config())
    nothing = engine.optimizer.state_dict()
    assert nothing["state"] == {}
    one_step(engine, 0)
    engine.optimizer.load_state_dict(nothing)
    assert same(engine.optimizer_state_dict(), unused.optimizer_state_dict())


def test_states_of_torchs_adam_are_taken(engines):
    model = mlp()
    theirs = torch.optim.Adam(model.parameters(), lr=3e-3)
    one_step_of_torch(model, theirs)
    engine = engines(model, config())
    engine.optimizer.load_state_dict(theirs.state_dict())
    found = engine.optimizer.state_dict()
    assert engine.get_lr() == [3e-3] and engine.get_type() == ["adam"]
    for index, entry in theirs.state_dict()["state"].items():
        assert same(found["state"][index]["exp_avg"], entry["exp_avg"]) and found["state"][index]["step"] == 1


def one_step_of_torch(model, optimizer):
    x, y = batch(0)
    loss_of(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_clients_optimizer_has_the_groups_that_were_loaded(engines):
    """A scheduler made for it goes on setting the engine's rates."""
    model = mlp()
    client = torch.optim.AdamW(decay_groups(model))
    scheduler = torch.optim.lr_scheduler.StepLR(client, step_size=1, gamma=0.5)
    engine = engines(model, config(), optimizer=client, lr_scheduler=scheduler)
    engine.optimizer.load_state_dict(engine.optimizer.state_dict())
    one_step(engine, 0)
    assert engine.get_lr() == [1e-2, 2.5e-3]


def test_states_that_do_not_fit_are_refused_before_anything_is_written(engines):
    engine = engines(mlp(), config())
    one_step(engine, 0)
    before = engine.optimizer.state_dict()
    for change, message in (({"exp_avg": torch.zeros(3)}, "exp_avg of shape"), ({"max_exp_avg_sq": 0}, "amsgrad")):
        wrong = engine.optimizer.state_dict()
        wrong["param_groups"][0]["lr"] = 1.0
        wrong["state"][5].update(change)
        with pytest.raises(ValueError, match=message):
            engine.optimizer.load_state_dict(wrong)
    assert same(engine.optimizer.state_dict()["state"], before["state"]) and engine.get_lr() == [1e-2]
    optimizer = engine.optimizer
    engine.close()
    with pytest.raises(sluice.FailedPrecondition, match="closed"):
        optimizer.state_dict()
