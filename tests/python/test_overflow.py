"""optimizer.overflow, as Accelerate reads it: whether the last step was left out. The oracle is whether plain PyTorch's
gradients are finite."""

import math
import warnings

import pytest
import torch
from training import batch, config, mlp

PRECISIONS = {
    "fp32": {},
    "bf16": {"bf16": {"enabled": True}},
    "fp16, dynamic": {"fp16": {"enabled": True, "initial_scale_power": 4, "hysteresis": 1, "min_loss_scale": 0.0001}},
    "fp16, static": {"fp16": {"enabled": True, "loss_scale": 8}},
}
FACTORS = [1.0, math.inf, 1.0, math.nan, math.nan, 1.0, 1e30]  # of the loss, step by step


class Wrapper:
    """What Accelerate does with an optimizer of an engine's."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.has_overflow = hasattr(optimizer, "overflow")

    @property
    def step_was_skipped(self):
        return self.optimizer.overflow if self.has_overflow else False


def is_finite(factor, dtype):
    """Of the gradients that plain PyTorch computes."""
    model = mlp().to(dtype)
    (model(batch(0, dtype=dtype)[0]).float().square().mean() * factor).backward()
    return all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_it_says_whether_the_last_step_was_left_out(engines, precision, accumulation):
    given = config(gradient_accumulation_steps=accumulation, train_batch_size=16 * accumulation, **PRECISIONS[precision])
    engine = engines(mlp(), given)
    wrapped = Wrapper(engine.optimizer)
    assert wrapped.has_overflow and wrapped.step_was_skipped is False
    skipped = 0
    for factor in FACTORS:
        expected = not is_finite(factor, engine.dtype)
        before = wrapped.step_was_skipped
        for micro in range(accumulation):
            assert wrapped.step_was_skipped == before  # until the next boundary
            x, _ = batch(0, dtype=engine.dtype)
            engine.backward(engine(x).float().square().mean() * factor)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                engine.step()
        assert wrapped.step_was_skipped is expected
        assert engine.was_step_applied() is not expected
        skipped += expected
    assert engine.skipped_steps == skipped > 1


def test_a_scheduler_that_looks_at_it_stays_where_it_is(engines):
    """As Accelerate's: it steps only where the optimizer did."""
    engine = engines(mlp(), config(fp16={"enabled": True, "initial_scale_power": 4, "hysteresis": 1}))
    scheduler = torch.optim.lr_scheduler.StepLR(engine.optimizer, 1, 0.5)
    rates = []
    for factor in (math.inf, math.inf, 1.0, math.inf, 1.0):
        engine.backward(engine(batch(0, dtype=torch.float16)[0]).float().square().mean() * factor)
        engine.step()
        if not engine.optimizer.overflow:
            scheduler.step()
        rates.append(engine.get_lr()[0] / 1e-2)
    assert rates == [1, 1, 0.5, 0.5, 0.25]
