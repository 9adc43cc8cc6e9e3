"""A run that is saved and loaded goes on as if it had not stopped: losses, masters, states, parameters, scale, rates and counters,
to the bit, whatever is configured and wherever it goes on."""

import collections
import json
import os
import pathlib
import random
import subprocess
import sys

import checkpoint_jobs as jobs
import pytest
import torch
from training import ROOT, batch, bits, config, loss_of, mlp, same, smallest

import sluice
from sluice.engine import run_values
from sluice.optimizers import saved_groups

SAVED_AT, END = 3, 6


def saved(engines, given, directory, kind="odd", at=SAVED_AT, end=END, **more):
    """(losses after, the run where it was saved, and at the end)"""
    engine = engines(jobs.model(kind), given, **more)
    jobs.steps(engine, 0, 0, at)
    assert engine.save_checkpoint(directory) is True
    there = jobs.state(engine)
    return jobs.steps(engine, 0, at, end), there, jobs.state(engine)


def goes_on(engines, given, directory, wanted, kind="odd", at=SAVED_AT, end=END, **more):
    losses, there, then = wanted
    engine = engines(jobs.model(kind, seed=9), given, **more)
    path, client_state = engine.load_checkpoint(directory)
    assert path == f"{directory}/global_step{at}" and client_state == {}
    assert same(jobs.state(engine), there)
    assert jobs.steps(engine, 0, at, end) == losses
    assert same(jobs.state(engine), then)
    return engine


def _tight(tmp_path, kind="odd", **more):
    given = config(tmp_path, **more)
    for tier in ("hbm", "pinned"):
        given["sluice"] = {**given["sluice"], tier: int(1.1 * smallest(jobs.model(kind), given, tier))}
    return given


PLACES = {
    "in RAM": lambda path, **more: config(**more),
    "on NVMe": lambda path, **more: config(path, **more),
    "tight on NVMe": _tight,
    "stage 0": lambda path, **more: config(zero_optimization={"stage": 0, "offload_param": {"device": "none"}}, **more),
    "other chunks": lambda path, **more: config(path, sluice={"chunk_elements": 16384, "workers": 2}, **more),
}
TYPES = {
    "fp32": {},
    "bf16": {"bf16": {"enabled": True}},
    "bf16, gradients in fp32": {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}},
    "fp16": {"fp16": {"enabled": True, "initial_scale_power": 30, "hysteresis": 2, "loss_scale_window": 2}},
    "fp16, static": {"fp16": {"enabled": True, "loss_scale": 64}},
}


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_goes_on_anywhere(engines, tmp_path, kind):
    """fp16's scale begins too high: steps are skipped before and after."""
    found = collections.defaultdict(list)
    for place, make in PLACES.items():
        given = make(tmp_path, **TYPES[kind])
        wanted = saved(engines, given, tmp_path / place)
        for other, there in PLACES.items():
            if other == place or place in ("in RAM", "tight on NVMe"):
                goes_on(engines, there(tmp_path, **TYPES[kind]), tmp_path / place, wanted)
        found["losses"].append(wanted[0])
    assert len(set(map(tuple, found["losses"]))) == 1
    if kind == "fp16":
        assert wanted[1]["counters"][1] > 0 and wanted[2]["counters"][1] > wanted[1]["counters"][1]


SCHEDULES = {
    "LRRangeTest": {"lr_range_test_step_size": 2},
    "OneCycle": {"cycle_min_lr": 1e-3, "cycle_max_lr": 1e-2, "cycle_first_step_size": 4, "decay_step_size": 2, "decay_lr_rate": 0.1},
    "WarmupLR": {"warmup_num_steps": 5},
    "WarmupDecayLR": {"warmup_num_steps": 4, "total_num_steps": 9},
    "WarmupCosineLR": {"warmup_num_steps": 4, "total_num_steps": 9},
    "StepLR": {"step_size": 2, "gamma": 0.5},
    "MultiStepLR": {"milestones": [2, 4, 4], "gamma": 0.5},
    "ExponentialLR": {"gamma": 0.9},
    "CosineAnnealingLR": {"T_max": 5},
    "CosineAnnealingWarmRestarts": {"T_0": 2},
    "OneCycleLR": {"max_lr": 1e-2, "total_steps": 12},
    "CyclicLR": {"base_lr": 1e-3, "max_lr": 1e-2, "step_size_up": 3, "cycle_momentum": False},
    "LinearLR": {"total_iters": 5},
    "PolynomialLR": {"total_iters": 5},
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_goes_on(engines, tmp_path, name):
    given = config(scheduler={"type": name, "params": SCHEDULES[name]})
    goes_on(engines, given, tmp_path, saved(engines, given, tmp_path, "mlp"), "mlp")


def test_a_clients_optimizer_and_schedule_go_on(engines, tmp_path):
    """Groups of their own rates, one of them a tensor, which stays the client's."""

    def make(parameters):
        parameters = list(parameters)
        groups = [{"params": parameters[:3], "lr": torch.tensor(2e-2), "name": "first"}, {"params": parameters[3:], "weight_decay": 0.3}]
        return torch.optim.AdamW(groups, lr=1e-2, betas=(0.8, 0.95))

    def chained(optimizer):
        kinds = torch.optim.lr_scheduler
        return kinds.SequentialLR(optimizer, [kinds.LambdaLR(optimizer, lambda n: 1 / (1 + n)), kinds.ExponentialLR(optimizer, 0.9)], [4])

    given = {key: value for key, value in config().items() if key != "optimizer"}
    more = {"optimizer": make, "lr_scheduler": chained}
    wanted = saved(engines, given, tmp_path, "mlp", **more)
    engine = engines(jobs.model("mlp", 9), given, **more)
    rate = engine.optimizer.param_groups[0]["lr"]
    engine.load_checkpoint(tmp_path)
    assert engine.optimizer.param_groups[0]["lr"] is rate and engine.client_optimizer.param_groups[0]["lr"] is rate
    assert jobs.steps(engine, 0, SAVED_AT, END) == wanted[0] and same(jobs.state(engine), wanted[2])


def test_accumulation_goes_on_and_so_does_another(engines, tmp_path):
    given = config(train_batch_size=64, gradient_accumulation_steps=4)
    wanted = saved(engines, given, tmp_path)
    goes_on(engines, given, tmp_path, wanted)
    other = engines(jobs.model("odd", 9), config(train_batch_size=32, gradient_accumulation_steps=2))
    other.load_checkpoint(tmp_path)
    losses = []
    jobs.micro(other, 0, 0, losses)
    assert other.global_steps == SAVED_AT and not other.was_step_applied()
    jobs.micro(other, 0, 1, losses)
    assert other.global_steps == SAVED_AT + 1 and other.was_step_applied()


@pytest.mark.parametrize("when", ["amid an accumulation", "before a step"])
def test_gradients_that_are_lost_are_told_of(engines, tmp_path, when):
    given = config(train_batch_size=32, gradient_accumulation_steps=2) if when == "amid an accumulation" else config()
    engine = engines(mlp(), given)
    loss = loss_of(engine(batch(0)[0]), batch(0)[1])
    engine.backward(loss)
    if when == "amid an accumulation":
        engine.step()
    words = "1 of 2 micro-batches of a step are done" if when == "amid an accumulation" else "a step is due"
    with pytest.warns(RuntimeWarning, match=words):
        engine.save_checkpoint(tmp_path)
    engine.load_checkpoint(tmp_path)
    assert engine.micro_steps == 0 and all(p.grad is None for p in engine.module.parameters())
    fresh = engines(mlp(4), given)
    fresh.load_checkpoint(tmp_path)
    assert jobs.steps(engine, 0, 0, 2) == jobs.steps(fresh, 0, 0, 2) and same(jobs.state(engine), jobs.state(fresh))


@pytest.mark.parametrize("how", ["by the configuration", "by an argument", "not"])
def test_random_numbers_go_on_where_asked(engines, tmp_path, how):
    given = config(sluice={"chunk_elements": 4096, "workers": 1, "checkpoint": {"rng": how == "by the configuration"}})
    engine = engines(jobs.model("dropping"), given)
    torch.manual_seed(1), random.seed(1)
    jobs.steps(engine, 0, 0, 2)
    engine.save_checkpoint(tmp_path, **({"rng": True} if how == "by an argument" else {}))
    wanted = jobs.steps(engine, 0, 2, 5)
    torch.manual_seed(2), random.seed(2)
    other = engines(jobs.model("dropping", 3), given)
    other.load_checkpoint(tmp_path)
    assert other.module.calls == 2
    assert (jobs.steps(other, 0, 2, 5) == wanted) == (how != "not")
    assert same(jobs.state(engine), jobs.state(other)) == (how != "not")


def test_a_save_disturbs_nothing(engines, tmp_path):
    """Also between a forward and its backward, and while an update runs on."""
    quiet, saving = (engines(jobs.model("odd"), config(tmp_path)) for _ in range(2))
    losses = jobs.steps(quiet, 0, 0, 5)
    found = []
    for number in range(5):
        x, y = jobs.ranks_jobs.part(0, number)
        loss = loss_of(saving(x, seldom=number % 3 == 0), y)
        saving.save_checkpoint(tmp_path / "a", "amid")
        saving.backward(loss)
        with pytest.warns(RuntimeWarning, match="a step is due"):
            saving.save_checkpoint(tmp_path / "a", "due")
        saving.step()
        saving.save_checkpoint(tmp_path / "a", "stepped")
        found.append(loss.item())
    assert found == losses and same(jobs.state(saving), jobs.state(quiet))


def test_loading_into_the_engine_that_saved(engines, tmp_path):
    """As for the best model at the end."""
    engine = engines(jobs.model("odd"), config(tmp_path))
    jobs.steps(engine, 0, 0, 2)
    engine.save_checkpoint(tmp_path / "a", "best")
    there = jobs.state(engine)
    after = jobs.steps(engine, 0, 2, 4)
    x, y = batch(5)
    held = loss_of(engine(x), y)
    assert engine.load_checkpoint(tmp_path / "a")[0] == str(tmp_path / "a" / "best")
    with pytest.raises(RuntimeError, match="updated since"):
        engine.backward(held)
    engine.load_checkpoint(tmp_path / "a")
    assert same(jobs.state(engine), there) and jobs.steps(engine, 0, 2, 4) == after


def test_a_load_that_was_interrupted_is_done_again(engines, tmp_path, monkeypatch):
    engine, other = engines(jobs.model("odd"), config()), engines(jobs.model("odd", 4), config())
    optimizer = sluice.AdamW(mlp().parameters(), lr=1e-2)
    jobs.steps(engine, 0, 0, 2)
    engine.save_checkpoint(tmp_path / "a")
    optimizer.save_checkpoint(tmp_path / "b")

    def interrupt(*arguments):
        raise KeyboardInterrupt

    for holder, name in ((run_values, "put_buffers"), (saved_groups, "put")):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(holder, name, interrupt)
            other.load_checkpoint(tmp_path / "a") if name == "put_buffers" else optimizer.load_checkpoint(tmp_path / "b")
    for call in (lambda: other(batch(0)[0]), other.step, lambda: other.save_checkpoint(tmp_path / "c"), optimizer.step):
        with pytest.raises(sluice.FailedPrecondition, match="interrupted"):
            call()
    other.load_checkpoint(tmp_path / "a"), optimizer.load_checkpoint(tmp_path / "b")
    optimizer.step(), optimizer.close()
    assert jobs.steps(other, 0, 2, 4) == jobs.steps(engine, 0, 2, 4) and same(jobs.state(other), jobs.state(engine))


def test_a_tag_of_zero_is_a_tag(engines, tmp_path):
    engine = engines(jobs.model("mlp"), config())
    states = []
    for tag in range(3):
        jobs.steps(engine, 0, tag, tag + 1)
        engine.save_checkpoint(tmp_path, tag=tag)
        states.append(jobs.state(engine))
    for tag in (0, "1", 2):
        path, _ = engine.load_checkpoint(tmp_path, tag=tag)
        assert path == f"{tmp_path}/{tag}" and same(jobs.state(engine), states[int(tag)])
    for call in (engine.save_checkpoint, engine.load_checkpoint):
        with pytest.raises(ValueError, match="empty"):
            call(tmp_path, tag="")


def test_what_is_torn_is_not_saved_and_is_whole_after_a_load(engines, tmp_path, monkeypatch):
    engine = engines(jobs.model("mlp"), config())
    jobs.steps(engine, 0, 0, 2)
    engine.save_checkpoint(tmp_path)
    whole, state = jobs.state(engine), engine.optimizer.state_dict()
    with monkeypatch.context() as patch:
        patch.setattr("sluice.native.values.write_all", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            engine.optimizer.load_state_dict(state)
    with pytest.raises(sluice.FailedPrecondition, match="interrupted"):
        engine.save_checkpoint(tmp_path, tag="torn")
    assert not (tmp_path / "torn").exists()
    engine.load_checkpoint(tmp_path)
    assert same(jobs.state(engine), whole)
    jobs.steps(engine, 0, 2, 3)


@pytest.mark.parametrize("place", ["_drop_gradients", "_values_were_loaded", "_put_counters"])
def test_an_interrupt_anywhere_in_a_load_leaves_nothing_to_train(engines, tmp_path, monkeypatch, place):
    engine = engines(jobs.model("mlp"), config())
    jobs.steps(engine, 0, 0, 2)
    engine.save_checkpoint(tmp_path)
    for error in (KeyboardInterrupt, ZeroDivisionError):
        with monkeypatch.context() as patch:
            patch.setattr(type(engine), place, lambda *_, **__: (_ for _ in ()).throw(error))
            for _ in range(2):
                with pytest.raises(error):
                    engine.load_checkpoint(tmp_path)
                with pytest.raises(sluice.FailedPrecondition, match="loaded in part"):
                    engine.step()
        engine.load_checkpoint(tmp_path)
        jobs.steps(engine, 0, 2, 3)


def test_buffers_and_extra_states_that_are_others(engines, tmp_path):
    class Counting(torch.nn.Linear):
        def __init__(self, dtype=torch.float32, extra=True):
            super().__init__(8, 4)
            self.register_buffer("seen", torch.full((2,), 2.7).to(dtype))
            if extra:
                self.get_extra_state, self.set_extra_state = lambda: {"scale": 3}, lambda state: None

    class Extra(Counting):
        def get_extra_state(self):
            return {"scale": 3}

        def set_extra_state(self, state):
            pass

    engines(torch.nn.Sequential(Extra(extra=False)), config()).save_checkpoint(tmp_path)
    for model, words in ((Extra(torch.int64, False), "0.seen was saved as torch.float32"), (Counting(extra=False), "extra states")):
        engine = engines(torch.nn.Sequential(model), config())
        with pytest.raises(ValueError, match=words):
            engine.load_checkpoint(tmp_path)


def test_what_a_save_has_and_what_is_returned(engines, tmp_path):
    engine = engines(jobs.model("odd"), config(tmp_path))
    jobs.steps(engine, 0, 0, 2)
    client = {"epoch": 3, "best": float("nan"), "seen": torch.arange(3), 7: [None, (True, b"x")]}
    engine.save_checkpoint(str(tmp_path / "not there" / "yet"), client_state=client)
    engine.save_checkpoint(tmp_path / "a", 17, save_latest=False)
    assert os.listdir(tmp_path / "a") == ["17"]
    assert (tmp_path / "not there" / "yet" / "latest").read_text().strip() == "global_step2"
    path, found = engine.load_checkpoint(tmp_path / "not there" / "yet")
    assert path == str(tmp_path / "not there" / "yet" / "global_step2")
    assert list(found) == list(client) and same(found["seen"], client["seen"]) and found[7] == client[7]
    assert engine.load_checkpoint(tmp_path / "a", 17) == (str(tmp_path / "a" / "17"), {})
    with pytest.warns(RuntimeWarning, match="latest"):  # which is not of this save any more
        (tmp_path / "a" / "latest").write_text("16")
        assert engine.load_checkpoint(tmp_path / "a") == (str(tmp_path / "a" / "17"), {})


def test_where_there_is_none(engines, tmp_path):
    engine = engines(mlp(), config())
    for directory in (tmp_path / "none", tmp_path):
        with pytest.warns(UserWarning, match="there is no checkpoint in"):
            assert engine.load_checkpoint(directory) == (None, None)
        with pytest.raises(sluice.NotFound, match="global_step9|no checkpoint"):
            engine.load_checkpoint(directory, "global_step9")


def _grown():
    model = mlp()
    model.append(torch.nn.Linear(11, 3))
    return model


def test_other_models_are_refused_by_name_and_nothing_changes(engines, tmp_path):
    engine = engines(mlp(), config())
    jobs.steps(engine, 0, 0, 1)
    engine.save_checkpoint(tmp_path)
    fewer = torch.nn.Sequential(*list(mlp())[:-1])
    cases = [
        (mlp(hidden=212), "parameter 0.weight has shape"), (_grown(), "lacks 7.weight"), (fewer, "the model lacks 6.weight, 6.bias"),
    ]  # fmt: skip
    for model, words in cases:
        other = engines(model, config())
        before = jobs.state(other)
        with pytest.raises(ValueError, match=words):
            other.load_checkpoint(tmp_path)
        assert same(jobs.state(other), before)


def test_a_part_of_a_model(engines, tmp_path):
    engine = engines(mlp(), config())
    jobs.steps(engine, 0, 0, 2)
    engine.save_checkpoint(tmp_path)
    wanted = engine.fp32_state_dict()
    other = engines(_grown(), config())
    before = other.fp32_state_dict()
    with pytest.raises(ValueError, match="group 0 of the optimizer has 10 parameters, and 8 were saved; load_optimizer_states=False"):
        other.load_checkpoint(tmp_path, load_module_strict=False)
    other.load_checkpoint(tmp_path, load_module_strict=False, load_optimizer_states=False)
    found = other.fp32_state_dict()
    assert all(same(found[name], wanted.get(name, before[name])) for name in found) and len(found) == len(wanted) + 2


@pytest.mark.parametrize("only", ["load_optimizer_states", "load_module_only"])
def test_without_states(engines, tmp_path, only):
    given = config(scheduler={"type": "WarmupLR", "params": {"warmup_num_steps": 5}})
    engine = engines(jobs.model("odd"), given)
    jobs.steps(engine, 0, 0, 3)
    engine.save_checkpoint(tmp_path)
    masters = engine.fp32_state_dict()
    other = engines(jobs.model("odd", 5), given)
    jobs.steps(other, 0, 0, 1)
    groups = [dict(group) for group in other.optimizer.param_groups]
    other.load_checkpoint(tmp_path, **{only: only == "load_module_only"})
    assert same(other.fp32_state_dict(), masters)
    for states in other.optimizer_state_dict().values():
        assert states["step"] == 0 and not states["exp_avg"].any() and not states["exp_avg_sq"].any()
    assert other.global_steps == (1 if only == "load_module_only" else 3)
    assert other.lr_scheduler.last_batch_iteration == (0 if only == "load_module_only" else 2)
    assert [group["weight_decay"] for group in groups] == [group["weight_decay"] for group in other.optimizer.param_groups]


def test_without_frozen_parameters(engines, tmp_path):
    engine = engines(jobs.model("odd"), config())
    jobs.steps(engine, 0, 0, 2)
    engine.save_checkpoint(tmp_path, exclude_frozen_parameters=True)
    other = engines(jobs.model("odd", 5), config())
    before = other.fp32_state_dict()
    with pytest.raises(ValueError, match="frozen.weight"):
        other.load_checkpoint(tmp_path)
    assert same(other.fp32_state_dict(), before)
    other.load_checkpoint(tmp_path, load_module_strict=False)
    found, wanted = other.fp32_state_dict(), engine.fp32_state_dict()
    for name in found:
        assert same(found[name], before[name] if name.startswith("frozen.") else wanted[name]), name


def test_another_schedule_is_refused(engines, tmp_path):
    engine = engines(mlp(), config(scheduler={"type": "WarmupLR", "params": {}}))
    engine.save_checkpoint(tmp_path)
    for given, words in ((config(scheduler={"type": "OneCycle", "params": SCHEDULES["OneCycle"]}), "OneCycle, and WarmupLR was saved"),):
        other = engines(mlp(), given)
        with pytest.raises(ValueError, match=words):
            other.load_checkpoint(tmp_path)
        assert other.load_checkpoint(tmp_path, load_lr_scheduler_states=False)[0]
    engine = engines(mlp(), config())
    engine.save_checkpoint(tmp_path / "a")
    with pytest.raises(ValueError, match="the schedule is OneCycle, and none was saved"):
        other.load_checkpoint(tmp_path / "a")
    with pytest.warns(RuntimeWarning, match="WarmupLR was saved, and this engine has no schedule"):
        assert engine.load_checkpoint(tmp_path)[0]


def test_what_cannot_be_saved_leaves_what_there_is(engines, tmp_path):
    engine = engines(mlp(), config())
    engine.save_checkpoint(tmp_path)
    with pytest.raises(TypeError, match=r"client_state\['a'\]: a builtins.object can't be saved"):
        engine.save_checkpoint(tmp_path, "other", client_state={"a": object()})
    assert sorted(os.listdir(tmp_path)) == ["global_step0", "latest"]
    for tag in ("", ".hidden", "a/b", "x" * 300, "latest"):
        with pytest.raises(ValueError):
            engine.save_checkpoint(tmp_path, tag)
    assert sorted(os.listdir(tmp_path)) == ["global_step0", "latest"]
    assert engine.load_checkpoint(tmp_path)[0]


def test_old_ones_are_removed_where_asked(engines, tmp_path):
    own = {"chunk_elements": 4096, "workers": 1}
    engine = engines(mlp(), config(sluice={**own, "checkpoint": {"keep_last": 2, "keep_every": 3}}))
    (tmp_path / "mine").mkdir()
    for number in range(8):
        jobs.steps(engine, 0, number, number + 1)
        engine.save_checkpoint(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["global_step3", "global_step6", "global_step7", "global_step8", "latest", "mine"]
    with pytest.raises(sluice.ConfigError, match="keep_every: needs keep_last"):
        sluice.initialize(model=mlp(), config=config(sluice={"checkpoint": {"keep_every": 3}}))
    with pytest.raises(sluice.ConfigError, match="tag_validation: must be one of Warn, Ignore, Fail, not 'x'"):
        sluice.initialize(model=mlp(), config=config(checkpoint={"tag_validation": "x"}))


def test_a_flipped_bit_is_found(engines, tmp_path):
    """In any file: the older checkpoint can still be loaded."""
    engine = engines(jobs.model("odd"), config())
    engine.save_checkpoint(tmp_path, "older")
    there = jobs.state(engine)
    jobs.steps(engine, 0, 0, 1)
    engine.save_checkpoint(tmp_path, "newer")
    draw, found = random.Random(5), 0
    for name in sorted(os.listdir(tmp_path / "newer")):
        path = tmp_path / "newer" / name
        whole = path.read_bytes()
        for _ in range(3):
            flipped = bytearray(whole)
            flipped[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
            path.write_bytes(flipped)
            other = engines(jobs.model("odd", 7), config())
            with pytest.raises((sluice.SluiceError, ValueError), match="newer"):
                other.load_checkpoint(tmp_path, "newer")
            found += 1
            other.close()
        path.write_bytes(whole)
    other = engines(jobs.model("odd", 7), config())
    assert other.load_checkpoint(tmp_path, "older")[0] and same(jobs.state(other), there) and found >= 12
    assert other.load_checkpoint(tmp_path)[0] == str(tmp_path / "newer") and same(jobs.state(other), jobs.state(engine))


def test_models_that_evaluate_and_frozen_ones_that_are_thawed(engines, tmp_path):
    """What was trained is loaded where nothing is trained, and the other way round."""
    given = config()
    engine = engines(mlp(), given)
    jobs.steps(engine, 0, 0, 2)
    engine.save_checkpoint(tmp_path / "trained")
    evaluating = engines(mlp(3), {key: value for key, value in given.items() if key != "optimizer"})
    evaluating.load_checkpoint(tmp_path / "trained")
    assert same(evaluating.module_state_dict(), engine.module_state_dict())
    evaluating.save_checkpoint(tmp_path / "evaluated")
    other = engines(mlp(4), given)
    with pytest.raises(ValueError, match="the optimizer has 1 groups of parameters, and 0 were saved"):
        other.load_checkpoint(tmp_path / "evaluated")
    other.load_checkpoint(tmp_path / "evaluated", load_optimizer_states=False)
    assert same(other.fp32_state_dict(), engine.fp32_state_dict())


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_the_model_alone(engines, tmp_path, suffix):
    engine = engines(jobs.model("odd"), config(bf16={"enabled": True}))
    jobs.steps(engine, 0, 0, 1)
    assert engine.save_16bit_model(tmp_path / "a", f"model.{suffix}") is True
    path = tmp_path / "a" / f"model.{suffix}"
    if suffix == "bin":
        found = torch.load(path, weights_only=True)
    else:
        found = pytest.importorskip("safetensors.torch").load_file(path)
    wanted = engine.module_state_dict()
    assert found.keys() == wanted.keys() and all(same(found[name], wanted[name]) for name in wanted)
    assert os.listdir(tmp_path / "a") == [f"model.{suffix}"]


def test_fp32_weights_by_deepspeeds_names(engines, tmp_path):
    from sluice.utils import zero_to_fp32

    engine = engines(jobs.model("odd"), config(bf16={"enabled": True}))
    jobs.steps(engine, 0, 0, 2)
    engine.save_checkpoint(tmp_path / "a")
    wanted = engine.fp32_state_dict()
    found = zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(tmp_path / "a")
    assert found.keys() == wanted.keys() and all(same(found[name], wanted[name]) for name in wanted)
    fewer = zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(tmp_path / "a", "global_step2", exclude_frozen_parameters=True)
    assert fewer.keys() == {name for name in wanted if not name.startswith("frozen.")}
    model = zero_to_fp32.load_state_dict_from_zero_checkpoint(jobs.model("odd", 4), tmp_path / "a")
    assert all(same(value, wanted[name].to(value.dtype)) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="there is no checkpoint in"):
        zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(tmp_path / "b")
    for size in (None, "20KB", "5GB"):
        for safe in (False, True):
            out = tmp_path / f"{size} {safe}"
            zero_to_fp32.convert_zero_checkpoint_to_fp32_state_dict(tmp_path / "a", out, size, safe_serialization=safe)
            _check_shards(out, {name: wanted[name] for name in wanted if name not in ("tied.weight",)}, size, safe)


WEIGHTS = """
import sys, torch
from sluice.checkpoints import masters
torch.set_num_threads(1)
def peak(): return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
for tag in ("small", "large"):
    open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
    before = int(open("/proc/self/statm").read().split()[1]) * 4096
    found = dict(masters.SavedModel(sys.argv[1], tag).tensors())
    print(peak() - before, found["running"].sum().item())
"""


def test_weights_are_read_without_what_else_a_run_is(engines, tmp_path):
    """client_state is in the file that buffers are in, which the library and we have in RAM; it is not made into values."""
    model = mlp()
    model.register_buffer("running", torch.arange(5.0))
    engine, size = engines(model, config()), 96 << 20
    engine.save_checkpoint(tmp_path, "small")
    engine.save_checkpoint(tmp_path, "large", client_state={"a": [torch.ones(size // 4)]})
    done = subprocess.run(
        [sys.executable, "-c", WEIGHTS, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "python")}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (small, _), (large, running) = (map(float, line.split()) for line in done.stdout.splitlines())
    assert running == 10 and large - small < 2.4 * size, (small, large)


def test_without_buffers_nothing_of_the_run_is_read(engines, tmp_path, monkeypatch):
    from sluice.checkpoints import generation, masters

    engine = engines(mlp(), config())
    engine.save_checkpoint(tmp_path)
    wanted, read, whole = engine.fp32_state_dict(), [], generation.Generation.attachment
    monkeypatch.setattr(generation.Generation, "attachment", lambda self, rank, name: read.append(name) or whole(self, rank, name))
    found = dict(masters.SavedModel(tmp_path).tensors())
    assert found.keys() == wanted.keys() and all(same(found[name], wanted[name]) for name in wanted) and read == [generation.MODEL]


@pytest.mark.parametrize("safe", [False, True])
def test_an_export_leaves_nothing_of_the_one_before(engines, tmp_path, safe):
    """Nor touches anything else; and one that fails changes nothing."""
    from sluice.checkpoints import masters, tensor_files
    from sluice.utils import zero_to_fp32

    engine = engines(mlp(), config())
    stem, suffix = ("model", "safetensors") if safe else ("pytorch_model", "bin")
    out = tmp_path / "out"
    out.mkdir()
    others = [
        f"my{stem}.{suffix}", f"{stem}-00001-of-00002.{suffix}.bak", f"{stem}-1-of-2.{suffix}", f"{stem}x{suffix}",
        f"{stem}-00001-of-00002.other", f"{stem}-00001-of-000002.{suffix}", "config.json", f"{stem}.{suffix}.index.json.old",
    ]  # fmt: skip
    for name in others:
        (out / name).write_text("mine")
    (out / f"{stem}-00007-of-00009.{suffix}").mkdir()  # nor a directory of such a name
    for number, size in enumerate(("20KB", None, "40KB", "60KB", None, "20KB")):
        jobs.steps(engine, 0, number, number + 1)
        engine.save_checkpoint(tmp_path / "a")
        wanted = engine.fp32_state_dict()
        zero_to_fp32.convert_zero_checkpoint_to_fp32_state_dict(tmp_path / "a", out, size, safe_serialization=safe)
        made = {name for name in os.listdir(out) if (out / name).is_file()} - set(others)
        index = f"{stem}.{suffix}.index.json"
        if size is None:
            assert made == {f"{stem}.{suffix}"}
        else:
            assert made == {index} | set(json.loads((out / index).read_text())["weight_map"].values()) and len(made) > 2
        found = {}
        for name in made - {index}:
            load = pytest.importorskip("safetensors.torch").load_file if safe else lambda path: torch.load(path, weights_only=True)
            found.update(load(out / name))
        assert found.keys() == wanted.keys() and all(same(found[name], wanted[name]) for name in wanted)

    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    for fails_at in range(3):
        for size in (40_000, 1 << 40):
            calls = []

            def write(path, tensors):
                calls.append(path)
                tensor_files.write(path, tensors) if safe else torch.save(tensors, path)
                if len(calls) == min(fails_at + 1, 1 if size > 40_000 else 3):
                    raise OSError("the disk is full")

            with pytest.raises(OSError, match="full"):
                masters.write_shards(masters.SavedModel(tmp_path / "a"), out, size, write, stem, suffix)
            assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    assert all((out / name).read_text() == "mine" for name in others) and (out / f"{stem}-00007-of-00009.{suffix}").is_dir()


def _check_shards(out, wanted, size, safe):
    suffix = "safetensors" if safe else "bin"
    load = pytest.importorskip("safetensors.torch").load_file if safe else lambda path: torch.load(path, weights_only=True)
    files = sorted(name for name in os.listdir(out) if name.endswith(suffix))
    found = {}
    for name in files:
        found.update(load(out / name))
    assert found.keys() == wanted.keys() and all(same(found[name], wanted[name]) for name in wanted)
    assert (len(files) > 1) == (size == "20KB") == (len(os.listdir(out)) > len(files))
    if len(files) > 1:
        index = json.loads(next(out.glob("*.index.json")).read_text())
        assert set(index["weight_map"].values()) == set(files) and index["weight_map"].keys() == wanted.keys()


# ---- attach() and AdamW


def test_an_attachment_goes_on(tmp_path):
    def made(seed):
        model = jobs.model("odd", seed)
        return model, sluice.attach(model, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2), hbm="1MiB", pinned="8MiB", nvme_path=tmp_path)

    def go(model, attached, first, end):
        losses = []
        for number in range(first, end):
            x, y = batch(number)
            loss = loss_of(model(x), y)
            losses.append(loss.item())
            loss.backward()
            attached.optimizer.step()
            attached.optimizer.zero_grad()
        return losses

    model, attached = made(0)
    go(model, attached, 0, 3)
    attached.save_checkpoint(tmp_path / "a", client_state={"at": 3}, rng=True)
    wanted = go(model, attached, 3, 5)
    other, others = made(4)
    assert others.load_checkpoint(tmp_path / "a") == (str(tmp_path / "a" / "global_step3"), {"at": 3})
    assert go(other, others, 3, 5) == wanted and same(jobs.state(others), jobs.state(attached))
    attached.close(), others.close()


ADAMW = {
    "fp32": (torch.float32, {}),
    "bf16": (torch.bfloat16, {}),
    "fp16": (torch.float16, {}),
    "overlapping": (torch.float32, {"overlap": True}),
    "overlapping in bf16": (torch.bfloat16, {"overlap": True}),
    "on NVMe": (torch.bfloat16, {"nvme_path": True}),
}


@pytest.mark.parametrize("saved_as", ADAMW)
def test_adamw_goes_on(tmp_path, saved_as):
    dtype = ADAMW[saved_as][0]

    def made(kind, seed):
        model = mlp(seed).to(dtype)
        more = {key: {"overlap": model, "nvme_path": tmp_path}[key] for key in ADAMW[kind][1]}
        parameters = list(model.parameters())
        groups = [{"params": parameters[:3], "lr": 2e-2}, {"params": parameters[3:]}]
        return model, sluice.AdamW(groups, lr=1e-2, pinned="16MiB", **more)

    def go(model, optimizer, first, end):
        losses = []
        for number in range(first, end):
            x, y = batch(number, dtype=dtype)
            loss = loss_of(model(x), y)
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return losses

    model, optimizer = made(saved_as, 0)
    go(model, optimizer, 0, 3)
    optimizer.param_groups[1]["lr"] = 3e-3
    assert optimizer.save_checkpoint(tmp_path / "a", client_state={"at": 3}) is True
    wanted = go(model, optimizer, 3, 6)
    for kind in (kind for kind in ADAMW if ADAMW[kind][0] == dtype):
        other, others = made(kind, 5)
        go(other, others, 7, 9)
        assert others.load_checkpoint(tmp_path / "a") == (str(tmp_path / "a" / "global_step3"), {"at": 3})
        assert go(other, others, 3, 6) == wanted
        assert same(other.state_dict(), model.state_dict()) and same(others.state_dict(), optimizer.state_dict())
        others.close()
    optimizer.close()


def test_adamw_loads_the_tag_that_is_named(tmp_path):
    """Also a false one: without a tag it is the newest."""
    from sluice.checkpoints import generation, masters

    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = sluice.AdamW([parameter], lr=1e-2)
    for tag in (0, 1):
        parameter.data.fill_(tag)
        optimizer.save_checkpoint(tmp_path, tag)
    for tag, wanted in ((0, 0), (None, 1), ("0", 0), (1, 1)):
        assert optimizer.load_checkpoint(tmp_path, tag)[0] == str(tmp_path / f"{wanted}") and (parameter == wanted).all()
    for directory in (tmp_path, tmp_path / "none"):
        library = sluice.native.abi.Library.default()
        for load in (
            optimizer.load_checkpoint, masters.SavedModel, lambda directory, tag: generation.find(library, None, directory, tag)
        ):  # fmt: skip
            with pytest.raises(ValueError, match="tag: is empty"):
                load(directory, "")
    optimizer.close()


def _without(parts):
    del parts[0]["1 of group 0"]


def _wider(parts):
    parts[0]["1 of group 0"] = torch.zeros(1)  # which copy_() would spread


PARTS = {
    "one lacks": (_without, "lacks the values of '1 of group 0'"),
    "another shape": (_wider, "other values of '1 of group 0' than it says: not torch.float32 of shape"),
    "another type": (lambda parts: parts[0].update({"0 of group 0": parts[0]["0 of group 0"].double()}), "other values of '0 of group 0'"),
    "no tensor": (lambda parts: parts[0].update({"0 of group 0": 3}), "other values of '0 of group 0'"),
    "one too many": (lambda parts: parts[0].update({"9 of group 0": torch.zeros(1)}), "holds '9 of group 0', which is no parameter"),
    "one twice": (lambda parts: parts.append({"2 of group 0": parts[0]["2 of group 0"]}), "holds '2 of group 0', which is no parameter"),
    "no part": (lambda parts: parts.clear(), "lacks the values of '0 of group 0'"),
}


@pytest.mark.parametrize("kind", PARTS)
def test_adamw_checks_what_the_parts_hold_before_it_writes(tmp_path, monkeypatch, kind):
    """Files that are whole, of another content than the run says."""
    from sluice.checkpoints import generation, plain

    damage, words = PARTS[kind]

    def damaged(optimizer, *arguments):
        found = whole(optimizer, *arguments)
        values = plain.decode(found.pop(generation.RUN).numpy().tobytes())
        parts = [plain.decode(value.numpy().tobytes()) for _, value in sorted(found.items())]
        damage(parts)
        made = {f"parameters-{n:05d}.safetensors": part for n, part in enumerate(parts)}
        made[generation.RUN] = {**values, "parts": len(parts)}
        return {name: generation.as_bytes(plain.encode(value)) for name, value in made.items()}

    optimizer = sluice.AdamW(mlp().parameters(), lr=1e-2)
    whole = type(optimizer)._attachments
    with monkeypatch.context() as patch:
        patch.setattr(type(optimizer), "_attachments", damaged)
        optimizer.save_checkpoint(tmp_path)
    model = mlp(4)
    other = sluice.AdamW(model.parameters(), lr=1e-2)
    x, y = batch(0)
    loss_of(model(x), y).backward()
    other.step()
    before = [p.detach().clone() for p in model.parameters()], other.state_dict()
    with pytest.raises(ValueError, match=words):
        other.load_checkpoint(tmp_path)
    assert all(bits(a).equal(bits(b)) for a, b in zip(before[0], model.parameters())) and same(other.state_dict(), before[1])
    other.step()
    other.close(), optimizer.close()


def test_adamw_refuses_what_is_another(tmp_path):
    optimizer = sluice.AdamW(mlp().parameters(), lr=1e-2)
    with pytest.warns(UserWarning, match="there is no checkpoint"):
        assert optimizer.load_checkpoint(tmp_path / "a") == (None, None)
    optimizer.save_checkpoint(tmp_path / "a")
    for model, words in ((mlp(hidden=212), "of shape"), (mlp().bfloat16(), "is torch.bfloat16"), (_grown(), "has 10 parameters, and 8")):
        before = [p.detach().clone() for p in model.parameters()]
        other = sluice.AdamW(model.parameters(), lr=1e-2)
        with pytest.raises(ValueError, match=words):
            other.load_checkpoint(tmp_path / "a")
        assert all(bits(a).equal(bits(b)) for a, b in zip(before, model.parameters()))
        other.close()
    engine = sluice.initialize(model=mlp(), config=config())[0]
    with pytest.raises(ValueError):
        engine.load_checkpoint(tmp_path / "a")
    engine.save_checkpoint(tmp_path / "b")
    with pytest.raises(ValueError, match="was not saved by sluice.AdamW"):
        optimizer.load_checkpoint(tmp_path / "b")
    engine.close(), optimizer.close()


# ---- Killed

NIGHTLY = int(os.environ.get("SLUICE_SIM_SEEDS", "1")) > 1


@pytest.mark.xdist_group("large")
@pytest.mark.parametrize("ranks, moments", [(1, 300 if NIGHTLY else 30), (2, 100 if NIGHTLY else 3)])
def test_a_run_that_is_killed_goes_on_to_the_same_bits(tmp_path, ranks, moments):
    """It loses one interval at most, and what a dead save has left is gone after the next."""
    script = pathlib.Path(__file__).with_name("checkpoint_killer.py")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'python'}:{script.parent}"}
    command = [sys.executable, str(script), str(ranks), str(moments), "1", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500 if NIGHTLY else 150)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["problems"] == [] and found["killed"] == moments and found["ended"] > 0 and found["saving"] > 0, found
