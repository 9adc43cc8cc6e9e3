"""initialize() and the engine as a training script uses them: DeepSpeed's file, budgets, the loader, schedulers, doctor."""

import pathlib

import threading

import pytest
import sluice
import torch
from reference_loop import LossScale, ReferenceLoop
from training import CLASSES, FEATURES, batch, config, loss_of, mlp, one_step, same, smallest

DS_CONFIG = pathlib.Path(__file__).with_name("ds_config.json")


class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 64 * 8

    def __getitem__(self, index):
        x, y = batch(index, 1)
        return x[0], y[0]


def test_a_deepspeed_file_trains_as_it_stands(engines):
    """fp16 with a dynamic loss scale, four micro-batches a step, clipping at DeepSpeed's 1.0: the plain loop's bits."""
    engine = engines(mlp(), str(DS_CONFIG))
    loop = ReferenceLoop(
        mlp(), torch.float16, clip=1.0, accumulation=4, loss_scale=LossScale(16), lr=1e-4, weight_decay=0.01
    )
    assert engine.train_batch_size() == 256 and engine.train_micro_batch_size_per_gpu() == 64
    assert engine.gradient_accumulation_steps() == 4
    for step in range(16):
        x, y = batch(step, 64, torch.float16)
        assert engine.is_gradient_accumulation_boundary() == (step % 4 == 3)
        losses = [loss_of(model(x), y) for model in (engine, loop)]
        assert same(losses[0], losses[1])
        engine.backward(losses[0])
        loop.backward(losses[1])
        engine.step()
        if step % 4 == 3:
            loop.step()
            assert engine.was_step_applied() == loop.applied and engine.loss_scale() == loop.scale
        else:
            assert not engine.was_step_applied()
    assert same(list(engine.fp32_state_dict().values()), loop.masters)
    assert engine.global_steps == 4 and loop.steps[0] > 0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"gradient_acumulation_steps": 2}, "'gradient_accumulation_steps'"),
        ({"sluice": {"pined": 1}}, "'pinned'"),
        ({"zero_optimization": {"offload_optimiser": {}}}, "'offload_optimizer'"),
        ({"optimizer": {"type": "AdamW", "params": {"weight_decai": 0.1}}}, "'weight_decay'"),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, "exclude each other"),
        ({"train_batch_size": 10, "gradient_accumulation_steps": 3}, "not a multiple"),
    ],
)
def test_a_wrong_key_names_the_nearest_and_nothing_happens_to_the_model(change, message):
    model = mlp()
    with pytest.raises(sluice.ConfigError, match=message):
        sluice.initialize(model=model, config=change)
    assert same(dict(model.state_dict()), dict(mlp().state_dict()))


@pytest.mark.parametrize("tier", ["hbm", "pinned", "nvme"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_budget_that_cannot_work_names_the_smallest_that_does(engines, tmp_path, tier, precision):
    given = config(tmp_path, **({"bf16": {"enabled": True}} if precision == "bf16" else {}))
    given["sluice"]["unit_elements"] = 20_000
    if tier == "nvme":
        given["sluice"]["pinned"] = smallest(mlp(), given, "pinned")
    least = smallest(mlp(), given, tier)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    with pytest.raises(sluice.ResourceExhausted, match=f"the {tier} budget of .* can't work"):
        sluice.initialize(model=mlp(), config={**given, "sluice": {**given["sluice"], tier: least - 1}})
    engine = engines(mlp(), {**given, "sluice": {**given["sluice"], tier: least}})
    for step in range(2):
        x, y = batch(step, dtype=dtype)
        engine.backward(loss_of(engine(x), y))
        engine.step()
    assert engine.was_step_applied()
    report = engine.report()
    assert report["budgets_bytes"][tier] == least and report["planned_bytes"][tier] <= least


def test_gradients_kept_in_another_type(engines):
    """bf16 model, fp32 sums over the accumulation."""
    engine = engines(
        mlp(),
        config(bf16={"enabled": True}, data_types={"grad_accum_dtype": "fp32"}, gradient_accumulation_steps=2),
    )
    model = mlp().bfloat16()
    total = 0
    for step in range(2):
        x, y = batch(step, 8, torch.bfloat16)
        engine.backward(loss_of(engine(x), y))
        model.zero_grad()
        (loss_of(model(x), y) / 2).backward()
        total = total + model[2].weight.grad.float()
        if step == 0:
            engine.step()
    values = sluice.native.values.read_all(
        engine.runtime, [(0, engine.tensor_of(engine.module[2].weight), total.shape)], sluice.native.abi.GRAD, torch.float32
    )
    assert same(values[0], total)
    assert engine.report()["grad_dtype"] == "fp32" and engine.report()["param_dtype"] == "bf16"


def test_loader_scheduler_and_what_an_engine_answers():
    given = config()
    engine, optimizer, loader, scheduler = sluice.initialize(
        model=mlp(),
        config=given,
        training_data=Data(),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5),
    )
    rates = []
    for count, (x, y) in enumerate(loader):
        if count == 5:
            break
        assert x.shape == (16, FEATURES) and y.shape == (16,)
        loss = engine(x)
        assert loss.shape == (16, CLASSES)
        engine.backward(loss_of(loss, y))
        engine.step()
        assert engine.was_step_applied() and engine.get_global_grad_norm() > 0
        rates.append(engine.get_lr()[0])
    assert rates == [1e-2, 5e-3, 5e-3, 2.5e-3, 2.5e-3]
    assert engine.global_steps == 5 and len(loader) == 32
    assert optimizer.param_groups[0]["lr"] == 2.5e-3 and scheduler.get_last_lr() == [2.5e-3]
    assert set(engine.state_dict()) == set(mlp().state_dict())
    assert engine.get_parameter("0.weight").shape == (211, FEATURES)
    with pytest.raises(TypeError, match="can't be copied"):
        __import__("copy").deepcopy(engine)
    engine.close()
    with pytest.raises(sluice.FailedPrecondition, match="closed"):
        engine(x)


def test_the_learning_rate_of_a_step_is_that_of_the_call(engines, tmp_path):
    """step() captures it: what is set while updates run belongs to the next."""
    given = config(tmp_path, gradient_clipping=0.0)
    given["sluice"]["pinned"] = smallest(mlp(), given, "pinned")
    engine, loop = engines(mlp(), given), ReferenceLoop(mlp(), clip=0.0, **given["optimizer"]["params"])
    for step in range(4):
        one_step(engine, step)
        one_step(loop, step)
        loop.hyper["lr"] = engine.optimizer.param_groups[0]["lr"] = 1e-2 / (step + 2)
    assert same(list(engine.fp32_state_dict().values()), loop.masters)


def test_hyperparameters_that_cannot_be_are_refused_and_cost_nothing(engines, tmp_path):
    """The gradients are still there, and the step is taken once they are put right."""
    engine = engines(mlp(), config(tmp_path))
    one_step(engine, 0)
    x, y = batch(1)
    engine.backward(loss_of(engine(x), y))
    engine.optimizer.param_groups[0]["betas"] = (2.0, 0.9)
    with pytest.raises(sluice.InvalidArgument, match="beta"):
        engine.step()
    engine.optimizer.param_groups[0]["betas"] = (0.9, 0.999)
    engine.step()
    assert engine.was_step_applied()


def test_doctor(tmp_path):
    found = sluice.doctor(str(tmp_path))
    assert found["cpu"]["cores_allowed"] >= 1 and found["engine"] and found["vector_target"]
    assert found["path"]["path"] == str(tmp_path) and isinstance(found["path"]["direct_io"], bool)
    assert all(isinstance(line, str) for line in found["advice"])
    assert "error" in sluice.doctor(str(tmp_path / "missing"))["path"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("enabled", [None, "bf16", "fp16"])
def test_a_type_that_the_configuration_does_not_name_is_not_changed_without_a_note(engines, dtype, enabled):
    model = mlp()
    model[2].to(dtype)
    engine = engines(model, config(**({enabled: {"enabled": True}} if enabled else {})))
    notes = [note for note in engine.config_notes if "neither bf16 nor fp16 is enabled" in note]
    if dtype == torch.float32 or enabled is not None:
        assert notes == []
    else:
        (note,) = notes
        assert f"{dtype}".removeprefix("torch.") in note and "compute in float32" in note


@pytest.mark.parametrize("face", ["initialize", "attach"])
def test_a_second_thread_that_computes_is_refused_and_the_first_goes_on(face):
    model = mlp()
    engine = sluice.initialize(model=model, config=config())[0] if face == "initialize" else sluice.attach(model)
    errors = []

    def compute():
        try:
            model(batch(0)[0])
        except sluice.FailedPrecondition as error:
            errors.append(str(error))

    def meanwhile(module, args, output):
        thread = threading.Thread(target=compute)
        thread.start()
        thread.join()

    handle = model[2].register_forward_hook(meanwhile)
    with torch.no_grad():
        assert same(model(batch(0)[0]), mlp()(batch(0)[0]))
        assert len(errors) == 1 and "another thread computes with this model" in errors[0]
        handle.remove()
        compute()
    assert len(errors) == 1
    engine.close()
