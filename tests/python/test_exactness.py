"""The same numbers whatever the placement, engine, workers, budget or seam; and PyTorch's numbers."""

import functools

import pytest
import sluice
import torch
from reference_loop import LossScale, ReferenceLoop
from training import CLASSES, FEATURES, SIMULATION, batch, config, loss_of, mlp, one_step, paired, same, smallest, train

STEPS = 4
# More than mlp() needs of anything: it has 400 kB of parameters.
LARGE = 64 << 20


def run(engines, given, steps=STEPS):
    """Everything that a run can be told apart by, and its report."""
    engine = engines(mlp(), given)
    losses = train(engine, steps)
    result = {
        "losses": losses,
        "parameters": dict(engine.module_state_dict()),
        "masters": dict(engine.fp32_state_dict()),
        "states": engine.optimizer_state_dict(),
        "norm": engine.get_global_grad_norm(),
    }
    return result, engine.report()


@functools.cache
def in_ram():
    """The run that the others are compared with: everything fits everywhere."""
    given = config(sluice={"chunk_elements": 4096, "hbm": LARGE, "pinned": LARGE})
    result, report = run(lambda model, given: sluice.initialize(model=model, config=given)[0], given)
    assert report["counters"]["evictions"] == 0 and report["counters"]["nvme_reads"] == 0
    assert report["chunks"] > 2 * report["units"]
    return result


@functools.cache
def tiny(tier):
    return smallest(mlp(), config("/nowhere"), tier)


CASES = {
    "nvme, io_uring": {"io_engine": "io_uring", "pinned": "tiny"},
    "nvme, libaio": {"io_engine": "libaio", "pinned": "tiny"},
    "nvme, threads": {"io_engine": "threads", "pinned": "tiny"},
    "nvme, tiny hbm": {"hbm": "tiny", "pinned": "tiny"},
    "nvme, tiny hbm, large pinned": {"hbm": "tiny", "pinned": LARGE},
    "nvme, middle": {"hbm": 2.0, "pinned": 4.4},
    "4 workers": {"hbm": "tiny", "pinned": "tiny", "workers": 4},
    "nvme, large hbm": {"hbm": LARGE, "pinned": "tiny"},
    "no overlap": {"hbm": "tiny", "pinned": "tiny", "overlap": False},
    "other chunks": {"hbm": "tiny", "pinned": LARGE, "chunk_elements": 8192},
    **{f"simulated, seed {seed}": {"hbm": "tiny", "pinned": "tiny", "simulated_seed": seed} for seed in range(5)},
}


@pytest.mark.parametrize("name", CASES)
def test_bits_do_not_depend_on_how_it_runs(engines, tmp_path, name):
    own = {"chunk_elements": 4096, "hbm": LARGE, "workers": 1, **CASES[name]}
    for tier in ("hbm", "pinned"):
        if own[tier] == "tiny":
            own[tier] = tiny(tier)
        elif isinstance(own[tier], float):
            own[tier] = int(own[tier] * tiny(tier))
    if "simulated_seed" in own:
        own["library"] = SIMULATION
    result, report = run(engines, config(tmp_path, sluice=own))

    for key, expected in in_ram().items():
        assert same(result[key], expected), f"{name}: {key} differ"
    counters = report["counters"]
    assert report["budgets_bytes"]["hbm"] == own["hbm"]
    assert all(report["bytes_now"][tier] <= own[tier] for tier in ("hbm", "pinned"))
    if own["hbm"] < LARGE:
        assert counters["evictions"] > STEPS
    if name == "nvme, middle":
        assert report["pinned"]["states_bytes"] > 0 and report["nvme"]["states_bytes"] > 0
    if own["pinned"] < LARGE:
        assert counters["nvme_reads"] > STEPS * report["units"] and counters["nvme_writes"] > STEPS * report["units"]
        assert report["bytes_now"]["nvme"] > 0 or "simulated_seed" in own
    chosen = report["engine"] + report["executor"]
    if "simulated_seed" in own:
        assert "simulated" in chosen
    if own.get("io_engine") == "threads":
        assert "threads" in report["engine"] and "io_uring" not in report["engine"]
    if own.get("io_engine") in ("io_uring", "libaio"):
        assert report["engine"].startswith(own["io_engine"])
    if own["workers"] == 4:
        assert "4" in report["executor"]


def hyper(given):
    return dict(given["optimizer"]["params"])


def test_plain_pytorch_in_fp32(engines, tmp_path):
    """torch.optim.AdamW and clip_grad_norm_: the losses of 20 steps within 1e-5 while they fall by 30%."""
    given = config(tmp_path, sluice={"hbm": tiny("hbm"), "pinned": tiny("pinned"), "chunk_elements": 4096})
    losses = train(engine := engines(mlp(), given), 20, data=lambda step, dtype: batch(step % 2))

    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), **hyper(given))
    for step in range(20):
        x, y = batch(step % 2)
        loss = loss_of(model(x), y)
        assert abs(loss.item() - losses[step]) <= 1e-5, f"step {step}"
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert losses[-1] <= 0.7 * losses[0]
    assert engine.get_global_grad_norm() == pytest.approx(norm.item(), rel=1e-4)
    for name, parameter in engine.module_state_dict().items():
        torch.testing.assert_close(parameter, model.state_dict()[name], rtol=1e-4, atol=2e-6)


def test_arithmetic_is_that_of_torch_adamw(engines):
    """100 steps on the same gradients: within 1e-6 relative of torch.optim.AdamW. (Its foreach form rounds otherwise.)"""
    given = config(gradient_clipping=0.0)
    ours, theirs = torch.nn.Linear(61, 67, bias=False), torch.nn.Linear(61, 67, bias=False)
    theirs.load_state_dict(ours.state_dict())
    optimizer = torch.optim.AdamW(theirs.parameters(), foreach=False, **hyper(given))
    engine = engines(ours, given)
    for step in range(100):
        x = torch.randn(64, 61, generator=torch.Generator().manual_seed(step))
        weight = torch.randn(67, 61, generator=torch.Generator().manual_seed(500 + step))
        optimizer.zero_grad()
        # The gradient does not depend on the weight, so that nothing but the update can differ.
        for model, backward in ((engine, engine.backward), (theirs, lambda loss: loss.backward())):
            backward((model(x) * (x @ weight.T)).mean())
        engine.step()
        optimizer.step()
    torch.testing.assert_close(engine.module_state_dict()["weight"], theirs.weight.detach(), rtol=1e-6, atol=1e-7)
    state = optimizer.state[theirs.weight]
    found = engine.optimizer_state_dict()["weight"]
    assert found["step"] == 100
    for key in ("exp_avg", "exp_avg_sq"):
        assert (found[key] - state[key]).abs().max() <= 1e-6 * state[key].abs().max()


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_bits_of_the_plain_loop(engines, tmp_path, precision, accumulation):
    """Losses, masters, moments, compute copies and the norm are those of ReferenceLoop, to the bit."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    sections = {precision: {"enabled": True}} if precision != "fp32" else {}
    if precision == "fp16":
        sections["fp16"]["initial_scale_power"] = 10
    given = config(
        tmp_path,
        train_batch_size=16 * accumulation,
        gradient_accumulation_steps=accumulation,
        sluice={"hbm": 140_000, "pinned": 600_000, "chunk_elements": 4096},
        **sections,
    )
    if precision == "fp32":
        given["sluice"].update(hbm=tiny("hbm"), pinned=tiny("pinned"))
    engine = engines(mlp(), given)
    loop = ReferenceLoop(
        mlp(), dtype, 1.0, accumulation, LossScale(power=10) if precision == "fp16" else None, **hyper(given)
    )
    for step in range(3 * accumulation):
        x, y = batch(step, dtype=dtype)
        loss, expected = loss_of(engine(x), y), loss_of(loop(x), y)
        assert same(loss, expected), f"loss of step {step}"
        engine.backward(loss)
        loop.backward(expected)
        engine.step()
        if (step + 1) % accumulation == 0:
            loop.step()
            assert engine.was_step_applied() and loop.applied
            assert engine.get_global_grad_norm() == loop.norm
    assert same(list(engine.fp32_state_dict().values()), loop.masters)
    states = engine.optimizer_state_dict().values()
    assert same([s["exp_avg"] for s in states], loop.averages)
    assert same([s["exp_avg_sq"] for s in states], loop.squares)
    assert same(dict(engine.module_state_dict()), dict(loop.model.state_dict()))
    report = engine.report()
    assert report["param_dtype"] == precision and report["counters"]["nvme_reads"] > 0
    assert report["chunks"] > 2 * report["units"] and report["counters"]["evictions"] > 0


def test_the_only_difference_is_flushed_subnormals(engines):
    """A second moment that is subnormal is zero here; everything else of such a step has the reference's bits."""
    given = config(gradient_clipping=0.0)
    loop, engine = ReferenceLoop(mlp(), clip=0.0, **hyper(given)), engines(mlp(), given)
    for model in (loop, engine):
        x, y = batch(0)
        model.backward(loss_of(model(x), y) * 1e-17)
        model.step()
    assert any((m.abs() * 1e-3 * m.abs() * 1e2 < 1.2e-38).any() for m in loop.averages)
    assert same(list(engine.fp32_state_dict().values()), loop.masters)
    states = engine.optimizer_state_dict().values()
    assert same([s["exp_avg_sq"] for s in states], loop.squares)
    assert all(((s == 0) | (s >= 2**-126)).all() for s in loop.squares)


def test_fp16_overflow_skips_exactly_and_the_scale_follows_deepspeed(engines, tmp_path):
    scaling = {"enabled": True, "initial_scale_power": 14, "loss_scale_window": 3, "hysteresis": 2, "min_loss_scale": 4}
    given = config(tmp_path, fp16=scaling, sluice={"hbm": 140_000, "pinned": 600_000, "chunk_elements": 4096})
    engine = engines(mlp(), given)
    loop = ReferenceLoop(mlp(), torch.float16, loss_scale=LossScale(14, 3, 2, 4), **hyper(given))
    seen = []
    for step in range(24):
        x, y = batch(step, dtype=torch.float16)
        factor = 1e4 if step in (4, 5, 6, 15) else 1.0  # overflows
        before = {**engine.fp32_state_dict(), **{n: s["exp_avg"] for n, s in engine.optimizer_state_dict().items()}}
        for model in (engine, loop):
            model.backward(loss_of(model(x), y) * factor)
            model.step()
        assert engine.was_step_applied() == loop.applied
        assert engine.loss_scale() == loop.scale
        after = {**engine.fp32_state_dict(), **{n: s["exp_avg"] for n, s in engine.optimizer_state_dict().items()}}
        assert same(before, after) == (not loop.applied)
        seen.append((loop.applied, loop.scale))
    assert same(list(engine.fp32_state_dict().values()), loop.masters)
    assert engine.skipped_steps == sum(not applied for applied, _ in seen) >= 4
    scales = [scale for _, scale in seen]
    assert any(b == a / 2 for a, b in zip(scales, scales[1:])) and any(b == 2 * a for a, b in zip(scales, scales[1:]))


class Around(torch.nn.Module):
    """Layers inside a module with large parameters of its own, inside another one: all in use at a time."""

    def __init__(self, inner, width):
        super().__init__()
        torch.manual_seed(5)
        self.inner = inner
        self.weight = torch.nn.Parameter(torch.randn(width, width) / width)

    def forward(self, x):
        return self.inner(x) + x @ self.weight[:, :CLASSES]


def test_what_is_in_use_around_layers_stays_and_the_smallest_hbm_named_works(engines, tmp_path):
    given = config(tmp_path)
    given["sluice"]["unit_elements"] = 50000
    engine = paired(engines, lambda: Around(Around(mlp(), FEATURES), FEATURES), given, one_step, hbm=1, pinned=1)
    assert engine.report()["counters"]["evictions"] > 0
