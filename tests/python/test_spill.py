"""Gradients that pinned memory can't hold live on NVMe: the same bits, and nothing moved twice."""

import pytest
import sluice
import torch
from reference_loop import ReferenceLoop
from training import batch, config, loss_of, mlp, paired, same, smallest

DTYPES = [torch.float32, torch.bfloat16]


def given_at(path, dtype, accumulation):
    given = config(path, gradient_accumulation_steps=accumulation, bf16={"enabled": dtype == torch.bfloat16})
    return given | {"train_batch_size": 16 * accumulation}


def step_of(trainer, step, accumulation):
    losses = []
    for micro in range(accumulation):
        x, y = batch(accumulation * step + micro)
        loss = loss_of(trainer(x), y)
        trainer.backward(loss)
        if micro == accumulation - 1 or not isinstance(trainer, ReferenceLoop):  # which does not count
            trainer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_model_whose_gradients_exceed_the_pinned_budget_trains_as_in_pytorch(engines, tmp_path, accumulation):
    given = given_at(tmp_path, torch.float32, accumulation)
    engine = paired(engines, mlp, given, lambda trainer, step: step_of(trainer, step, accumulation), pinned=1)
    report = engine.report()
    assert report["pinned"]["gradients_bytes"] == 0
    assert report["nvme"]["gradients_bytes"] > report["planned_bytes"]["pinned"]
    counters = report["counters"]
    if accumulation == 1:  # each byte once
        assert counters["nvme_gradient_write_bytes"] == 3 * report["nvme"]["gradients_bytes"]
        assert counters["nvme_gradient_read_bytes"] == 3 * report["nvme"]["gradients_bytes"]
    terms = engine.runtime.floor(nvme_bytes=1e6)
    assert terms["spill"] == report["step_traffic"]["spilled_bytes"] / 1e6 > 0
    assert terms["total"] == terms["spill"] + terms["io"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("room", [1.0, 1.3, 2.0])
def test_the_bits_are_those_of_gradients_in_ram(engines, tmp_path, dtype, accumulation, room):
    given = given_at(tmp_path, dtype, accumulation)
    least = smallest(mlp(), given, "pinned")
    results, spilled = [], []
    for pinned in (int(room * least), 64 << 20):
        engine = engines(mlp(), given | {"sluice": given["sluice"] | {"pinned": pinned}})
        norms = []
        for step in range(4):
            for micro in range(accumulation):
                x, y = batch(accumulation * step + micro, dtype=dtype)
                engine.backward(loss_of(engine(x), y))
                engine.step()
            norms.append(engine.get_global_grad_norm())
        spilled.append(engine.report()["nvme"]["gradients_bytes"])
        results.append((norms, engine.fp32_state_dict(), engine.optimizer_state_dict()))
    assert spilled[0] > 0 and spilled[1] == 0
    assert same(*results)


def test_gradients_on_nvme_are_looked_at_replaced_and_clipped_from_outside(tmp_path):
    def run(pinned):
        model = mlp()
        attached = sluice.attach(
            model, optimizer=torch.optim.AdamW, hbm="1MiB", pinned=pinned, nvme_path=str(tmp_path), workers=1,
            chunk_elements=4096,
        )  # fmt: skip
        seen = []
        for step in range(3):
            attached.optimizer.zero_grad()
            x, y = batch(step)
            loss_of(model(x), y).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-2)
            seen.append([p.grad.clone() for p in model.parameters()])
            attached.optimizer.step()
        report, values = attached.report(), attached.fp32_state_dict()
        attached.close()
        return report, (seen, values)

    (tight, spilled), (roomy, in_ram) = run("250KiB"), run("16MiB")
    assert tight["nvme"]["gradients_bytes"] > 0 and roomy["nvme"]["gradients_bytes"] == 0
    assert same(spilled, in_ram)
