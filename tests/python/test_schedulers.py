"""DeepSpeed's schedules against values worked out by hand."""

import math

import pytest
import torch

from sluice import schedulers


def make(name, lr=1.0, groups=1, **params):
    parameters = [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(groups)]
    optimizer = torch.optim.AdamW(parameters, lr=lr)
    return optimizer, schedulers.find(name)(optimizer, **params)


def rates(name, steps, lr=1.0, **params):
    """The rates at the start and after each step."""
    optimizer, schedule = make(name, lr, **params)
    seen = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        schedule.step()
        seen.append(optimizer.param_groups[0]["lr"])
        assert schedule.get_last_lr() == [seen[-1]]
    return seen


LN = math.log
COSINE = [0.0001 + 0.9999 * (1 + math.cos(math.pi * share)) / 2 for share in (0.25, 0.5, 0.75, 1.0)]


@pytest.mark.parametrize(
    "name, params, expected",
    [
        (
            "WarmupLR",
            {"warmup_num_steps": 4, "warmup_max_lr": 2.0},
            [0, 0, 2 * LN(2) / LN(4), 2 * LN(3) / LN(4), 2, 2, 2],
        ),
        ("WarmupLR", {"warmup_num_steps": 2}, [0, 0, 1, 1]),  # up to the optimizer's own rate
        (
            "WarmupLR",
            {"warmup_num_steps": 4, "warmup_type": "linear", "warmup_min_lr": 1.0, "warmup_max_lr": 5.0},
            [1, 1, 2, 3, 4, 5, 5],
        ),
        (
            "WarmupDecayLR",
            {"total_num_steps": 8, "warmup_num_steps": 4, "warmup_type": "linear", "warmup_max_lr": 4.0},
            [0, 0, 1, 2, 3, 4, 3, 2, 1, 0, 0],
        ),
        (
            "WarmupCosineLR",
            {"total_num_steps": 6, "warmup_num_steps": 2, "warmup_type": "linear"},
            [0, 0, 0.5, *COSINE, 0.0001, 0.0001],
        ),
        (
            "WarmupCosineLR",
            {"total_num_steps": 6, "warmup_num_steps": 2, "warmup_type": "linear", "warmup_min_ratio": 0.5, "lr": 2.0},
            [0, 1.0, 1.5, *(2 * c for c in COSINE)],
        ),
        (
            "OneCycle",
            {"cycle_min_lr": 1.0, "cycle_max_lr": 3.0, "cycle_first_step_size": 2},
            [1, 2, 3, 2, 1, 1, 1],
        ),
        (
            "OneCycle",
            {
                "cycle_min_lr": 1.0,
                "cycle_max_lr": 3.0,
                "cycle_first_step_size": 2,
                "cycle_second_step_size": 4,
                "decay_lr_rate": 1.0,
                "decay_step_size": 2,
            },
            [1, 2, 3, 2.5, 2, 1.5, 1, 1 / 1.5, 1 / 2],
        ),
        (
            "OneCycle",
            {"cycle_min_lr": 0.0, "cycle_max_lr": 1.0, "cycle_first_step_size": 4, "cycle_first_stair_count": 2},
            [0, 0, 0.5, 0.5, 1, 0.5, 0.5, 0, 0],
        ),
        ("LRRangeTest", {"lr_range_test_min_lr": 2.0, "lr_range_test_step_size": 2}, [2, 3, 4, 5]),
        (
            "LRRangeTest",
            {"lr_range_test_min_lr": 2.0, "lr_range_test_step_size": 2, "lr_range_test_staircase": True},
            [2, 2, 4, 4, 6],
        ),
    ],
)
def test_values(name, params, expected):
    assert rates(name, len(expected) - 1, **params) == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_one_cycle_moves_the_first_beta_the_other_way_and_sets_the_second():
    cycle = {"cycle_min_lr": 1.0, "cycle_max_lr": 3.0, "cycle_first_step_size": 2}
    optimizer, schedule = make("OneCycle", **cycle)
    seen = [optimizer.param_groups[0]["betas"]]
    for _ in range(5):
        schedule.step()
        seen.append(optimizer.param_groups[0]["betas"])
    assert [beta for beta, _ in seen] == pytest.approx([0.8, 0.85, 0.8, 0.85, 0.9, 0.9])
    assert {beta for _, beta in seen} == {0.99}
    optimizer, schedule = make("OneCycle", **cycle, cycle_momentum=False)
    schedule.step()
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999) and schedule.get_mom() is None


def test_groups_may_have_rates_of_their_own():
    optimizer, schedule = make("WarmupLR", groups=2, warmup_num_steps=1, warmup_max_lr=[1.0, 2.0])
    for _ in range(3):
        schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 2.0]
    with pytest.raises(ValueError, match="warmup_max_lr: 3 values for 2"):
        make("WarmupLR", groups=2, warmup_max_lr=[1.0, 2.0, 3.0])


@pytest.mark.parametrize("name", ["WarmupLR", "WarmupDecayLR", "WarmupCosineLR", "OneCycle", "LRRangeTest"])
def test_a_schedule_goes_on_from_its_state(name):
    needed = {"WarmupDecayLR": {"total_num_steps": 9}, "WarmupCosineLR": {"total_num_steps": 9}}
    needed["OneCycle"] = {"cycle_min_lr": 1.0, "cycle_max_lr": 3.0, "cycle_first_step_size": 4}
    params = needed.get(name, {}) | ({"warmup_num_steps": 4} if name.startswith("Warmup") else {})
    expected = rates(name, 7, **params)
    _, first = make(name, **params)
    for _ in range(3):
        first.step()
    optimizer, second = make(name, **params)
    second.load_state_dict(first.state_dict())
    for rate in expected[4:]:
        second.step()
        assert optimizer.param_groups[0]["lr"] == rate


@pytest.mark.parametrize("steps", [0, -1, 1.5, True])
def test_a_warmup_of_no_steps_is_refused(steps):
    with pytest.raises(ValueError, match="warmup_num_steps"):
        make("WarmupLR", warmup_num_steps=steps)


def test_a_rate_is_asked_for_before_there_is_one():
    _, schedule = make("WarmupLR", last_batch_iteration=3)
    with pytest.raises(RuntimeError, match="call step"):
        schedule.get_last_lr()
