"""Without an optimizer in configuration or arguments nothing is kept but parameters: reference models, evaluation. Every
door agrees, and what would train says what is missing."""

import pytest
import sluice
import torch
from training import batch, config, loss_of, mlp, same, smallest

NONE = ("absent", "null", "empty")  # of the optimizer in the configuration


def configuration(path, none="absent"):
    given = config(path)
    del given["optimizer"]
    if none == "null":
        given["optimizer"] = None
    return given


def initialized(model, path, **more):
    return sluice.initialize(model=model, config=configuration(path), **more)[0]


def attached(model, path):
    return sluice.attach(model, hbm="300KiB", pinned="2MiB", nvme_path=path, workers=1, chunk_elements=4096)


DOORS = {
    "initialize": initialized,
    "initialize, optimizer: null": lambda model, path: sluice.initialize(model=model, config=configuration(path, "null"))[0],
    "initialize, model_parameters": lambda model, path: initialized(model, path, model_parameters=model.parameters()),
    "attach": attached,
}


@pytest.fixture(params=DOORS)
def door(request):
    engines = []

    def make(model, path=None):
        engines.append(DOORS[request.param](model, path))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.mark.parametrize("drive", [False, True])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_nothing_is_kept_but_parameters_and_the_results_are_the_models(door, tmp_path, drive, requires_grad):
    model, plain = mlp().requires_grad_(requires_grad), mlp()
    engine = door(model, tmp_path if drive else None)
    report = engine.report()
    assert report["parameters_updated"] == 0
    assert report["pinned"]["gradients_bytes"] == report["pinned"]["state_buffers"] == 0
    assert all(report[tier]["states_bytes"] == 0 for tier in ("pinned", "nvme"))
    for training in (False, True):
        engine.train(training), plain.train(training)
        for step in range(2):
            assert torch.equal(engine(batch(step)[0]), plain(batch(step)[0]))
    assert same(dict(engine.module_state_dict()), dict(plain.state_dict()))
    assert engine.report()["counters"].get("steps", 0) == 0
    assert engine.optimizer_state_dict() == {} and engine.get_lr() == []
    assert any("optimizer: none was named" in note for note in engine.config_notes)


TRAINERS = {
    "backward": lambda engine: engine.backward(loss_of(engine(batch(0)[0]), batch(0)[1])),
    "scale": lambda engine: engine.scale(loss_of(engine(batch(0)[0]), batch(0)[1])),
    "step": lambda engine: engine.step(),
    "optimizer.step": lambda engine: engine.optimizer.step(),
    "optimizer.add_param_group": lambda engine: engine.optimizer.add_param_group({"params": list(engine.parameters())}),
    "optimizer.load_state_dict": lambda engine: engine.optimizer.load_state_dict({"state": {}, "param_groups": []}),
}


@pytest.mark.parametrize("trainer", TRAINERS)
def test_what_would_train_says_what_to_name(door, trainer):
    engine = door(mlp())
    for _ in range(2):
        with pytest.raises(sluice.FailedPrecondition, match='no optimizer was named.*"optimizer" section, or optimizer='):
            TRAINERS[trainer](engine)
    assert (engine.global_steps, engine.micro_steps) == (0, 0)
    assert torch.equal(engine(batch(0)[0]), mlp()(batch(0)[0]))


def test_gradients_of_inputs_and_parameters_are_pytorchs_own(door):
    model, plain = mlp(), mlp()
    engine = door(model)
    inputs = [batch(0)[0].requires_grad_() for _ in range(2)]
    loss_of(engine(inputs[0]), batch(0)[1]).backward()
    loss_of(plain(inputs[1]), batch(0)[1]).backward()
    assert torch.equal(inputs[0].grad, inputs[1].grad)
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)


def test_values_can_be_written(door):
    model = mlp()
    engine = door(model)
    other = mlp(seed=5)
    engine.load_state_dict(other.state_dict())
    assert torch.equal(engine(batch(0)[0]), other(batch(0)[0]))
    with sluice.zero.GatheredParameters([model[0].weight], modifier_rank=0):
        model[0].weight.data.fill_(0.5)
    assert engine.module_state_dict()["0.weight"].unique() == 0.5


def test_the_tuple_of_initialize_has_no_optimizer_and_no_schedule():
    given = configuration(None) | {"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 3}}}
    engine, optimizer, loader, scheduler = sluice.initialize(model=mlp(), config=given)
    assert (optimizer, loader, scheduler) == (None, None, None)
    assert engine.optimizer.state_dict() == {"state": {}, "param_groups": []}
    engine.close()
    with pytest.raises(ValueError, match="lr_scheduler: there is no optimizer for it"):
        sluice.initialize(model=mlp(), config=configuration(None), lr_scheduler=lambda o: None)


def test_a_budget_without_states_is_enough():
    with_states = smallest(mlp(), config(), "pinned")
    without = smallest(mlp(), configuration(None), "pinned")
    elements = sum(p.numel() for p in mlp().parameters())
    assert with_states - without >= 16 * elements  # states and gradients


@pytest.mark.parametrize("configured", [{"type": "AdamW"}, {}, {"params": {"lr": 0.5}}])
def test_an_optimizer_section_names_one_whatever_is_in_it(engines, configured):
    engine = engines(mlp(), configuration(None) | {"optimizer": configured})
    assert engine.report()["parameters_updated"] == sum(p.numel() for p in mlp().parameters())
    assert engine.get_lr() == [configured.get("params", {}).get("lr", 1e-3)]
