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


class Odd(torch.nn.Module):
    """Tied weights, parameters of a module that has children, a buffer, and a name of old checkpoints."""

    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.randn(37))
        self.first = torch.nn.Linear(37, 37)
        self.norm = torch.nn.BatchNorm1d(37)
        self.last = torch.nn.Linear(37, 37)
        self.last.weight = self.first.weight
        self._register_load_state_dict_pre_hook(self._rename)

    def _rename(self, state_dict, prefix, *_):
        if prefix + "old" in state_dict:
            state_dict[prefix + "bias"] = state_dict.pop(prefix + "old")

    def forward(self, x):
        return self.last(self.norm(self.first(x)) + self.bias)


def test_an_engine_lists_what_its_model_has(engines):
    model = Odd()
    engine = engines(model, config())
    assert [name for name, _ in engine.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert list(map(id, engine.parameters())) == list(map(id, model.parameters()))
    assert len(list(engine.parameters(recurse=False))) == 1
    assert len(list(engine.named_parameters(remove_duplicate=False))) == 1 + len(list(engine.parameters()))
    assert [name for name, _ in engine.named_buffers()] == [name for name, _ in model.named_buffers()]
    assert len(list(engine.buffers())) == 3
    assert dict(engine.named_modules()) == dict(model.named_modules())
    assert list(engine.modules()) == [engine, *model.modules()]


def test_what_an_engine_lists_does_not_disturb_modes_or_placed_parameters(engines, tmp_path):
    engine, plain = engines(mlp(), config(tmp_path)), engines(mlp(), config(tmp_path))
    assert not engine.eval().training and not any(m.training for m in engine.modules())
    assert engine.train() is engine and all(m.training for m in engine.modules())
    assert engine.half() is engine and engine.to("cpu", torch.float64) is engine and list(engine.children()) == []
    for trainer in (engine, plain):
        one_step(trainer, 0)
    assert all(p.dtype == torch.float32 for p in engine.parameters())
    assert same(engine.fp32_state_dict(), plain.fp32_state_dict())


@pytest.mark.parametrize("given", [{}, {"bf16": {"enabled": True}}])
def test_an_engine_loads_its_models_state_dict(engines, tmp_path, given):
    """fp32 values to the last bit, also where it computes in bf16; whatever the model does with names is done."""
    engine = engines(Odd(), config(tmp_path, **given))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        other = Odd()
    other.norm.running_mean.fill_(0.5)
    expected = dict(other.named_parameters())
    values = dict(other.state_dict())
    values["old"] = values.pop("bias")
    assert "All keys matched" in str(engine.load_state_dict(values))
    found = engine.fp32_state_dict()
    assert found.keys() == other.state_dict().keys()
    assert all(same(found[name], value.detach()) for name, value in expected.items())
    assert engine.module.norm.running_mean.eq(0.5).all()
    assert same(engine.state_dict()["last.weight"], other.last.weight.detach().to(engine.dtype))
    assert all(same(p.detach(), other.get_parameter(n).detach().to(engine.dtype)) for n, p in engine.named_parameters())
    x = torch.randn(16, 37).to(engine.dtype)
    engine.backward(engine(x).float().square().mean())
    engine.step()
    assert engine.was_step_applied()


def test_what_does_not_match_is_said_and_the_rest_is_loaded(engines):
    engine, values = engines(mlp(), config()), mlp(seed=3).state_dict()
    before = engine.fp32_state_dict()
    changed = values.pop("0.bias") + 1
    values["none"] = changed
    with pytest.raises(RuntimeError, match="0.bias"):
        engine.load_state_dict(values)
    result = engine.load_state_dict(values, strict=False)
    assert result.missing_keys == ["0.bias"] and result.unexpected_keys == ["none"]
    found = engine.fp32_state_dict()
    assert same(found["0.bias"], before["0.bias"]) and same(found["0.weight"], values["0.weight"])
    with pytest.raises(RuntimeError, match="size mismatch"):
        engine.load_state_dict({"0.bias": torch.zeros(3)}, strict=False)
    with pytest.raises(ValueError, match="assign"):
        engine.load_state_dict(values, assign=True)
    assert same(engine.fp32_state_dict(), found)
    one_step(engine, 0)


def test_the_loss_scale_is_a_call_as_deepspeeds_is(engines):
    engine = engines(mlp(), config(fp16={"enabled": True, "initial_scale_power": 10}))
    assert engine.loss_scale() == engine.optimizer.loss_scale == engine.optimizer.cur_scale == 1024.0


def test_parameters_that_are_not_the_models_are_refused(engines):
    """They would never be trained. The model is as it was, and an engine's groups are too."""
    model, other = mlp(), mlp(seed=1)
    foreign = list(other.parameters())[:3]
    for arguments in (
        {"model_parameters": [*model.parameters(), *foreign]},
        {"model_parameters": [{"params": model.parameters()}, {"params": foreign}]},
        {"optimizer": torch.optim.AdamW([*model.parameters(), *foreign])},
        {"optimizer": lambda parameters: torch.optim.AdamW([*parameters, *foreign])},
    ):
        with pytest.raises(ValueError, match="optimizer: 3 of .* parameters are not the model's"):
            engines(model, config(), **arguments)
    assert same(dict(model.state_dict()), dict(mlp().state_dict()))
    parameters = list(model.parameters())
    engine = engines(model, config(), model_parameters=parameters[:-1])
    with pytest.raises(ValueError, match="3 of 4 parameters are not the model's"):
        engine.optimizer.add_param_group({"params": [parameters[-1], *foreign]})
    assert len(engine.optimizer.param_groups) == 1
    engine.optimizer.add_param_group({"params": [parameters[-1]]})
    one_step(engine, 0)
    assert len(engine.optimizer.state_dict()["state"]) == len(parameters)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"lr": -1e-3}, "lr: must be finite and must not be negative"),
        ({"lr": "1e-3"}, "lr: must be a number, but is '1e-3'"),
        ({"lr": None}, "lr: must be a number"),
        ({"eps": float("nan")}, "eps: must be finite"),
        ({"weight_decay": -0.1}, "weight_decay: must be finite and must not be negative"),
        ({"betas": (0.9, 1.0)}, r"betas: must be in \[0, 1\)"),
        ({"betas": (0.9, "x")}, "betas: must be a number"),
        ({"betas": 0.9}, "betas: must be two numbers"),
    ],
)
def test_hyperparameters_are_refused_by_name(engines, wrong, message):
    """When a group is made, and when one is changed: by the engine's optimizer and by sluice.AdamW."""
    model = mlp()
    for make in (
        lambda: engines(model, config(), model_parameters=[{"params": model.parameters(), **wrong}]),
        lambda: sluice.AdamW([{"params": model.parameters(), **wrong}]),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    states = sluice.AdamW(model.parameters(), pinned="64MiB", workers=1)
    states.param_groups[0].update(wrong)
    x, y = batch(0)
    loss_of(model(x), y).backward()
    with pytest.raises(ValueError, match=message):
        states.step()
    model.zero_grad()
    states.close()
    engine = engines(model, config())
    right = dict(engine.optimizer.param_groups[0])
    engine.backward(loss_of(engine(x), y))
    engine.optimizer.param_groups[0].update(wrong)
    with pytest.raises(sluice.InvalidArgument, match=message):
        engine.step()
    engine.optimizer.param_groups[0].update(right)
    engine.step()
    assert engine.was_step_applied()
