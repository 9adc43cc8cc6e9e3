"""DeepSpeed's schedules against values worked out by hand."""

import inspect
import math

import pytest
import sluice
import torch
from sluice import schedulers
from sluice.deepspeed import schedule_arguments
from sluice.config import load_config
from training import config, mlp, one_step


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


NEEDED = {"WarmupDecayLR": {"total_num_steps": 9}, "WarmupCosineLR": {"total_num_steps": 9}, "WarmupLR": {}, "LRRangeTest": {}}
NEEDED["OneCycle"] = {"cycle_min_lr": 1.0, "cycle_max_lr": 3.0, "cycle_first_step_size": 4}
OWN = [0.25, 2.0, 16.0]  # rates of three groups


def run_groups(name, steps, own=OWN, **params):
    """For each group: [(rate, betas)] at the start and after each step."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in own]
    optimizer = torch.optim.AdamW(groups, betas=(0.5, 0.75))
    schedule = schedulers.find(name)(optimizer, **params)
    seen = [[(float(g["lr"]), g["betas"])] for g in optimizer.param_groups]
    for _ in range(steps):
        schedule.step()
        for values, group in zip(seen, optimizer.param_groups, strict=True):
            values.append((float(group["lr"]), group["betas"]))
    return seen


def test_without_a_peak_each_group_warms_up_to_its_own_rate():
    for values, own in zip(run_groups("WarmupLR", 5, warmup_num_steps=4, warmup_type="linear"), OWN, strict=True):
        assert [rate for rate, _ in values] == pytest.approx([own * x for x in (0, 0, 0.25, 0.5, 0.75, 1)])


LISTS = {
    ("LRRangeTest", "lr_range_test_min_lr"): {"lr_range_test_step_size": 2},
    ("WarmupLR", "warmup_min_lr"): {"warmup_num_steps": 3, "warmup_max_lr": 20.0},
    ("WarmupLR", "warmup_max_lr"): {"warmup_num_steps": 3},
    ("WarmupDecayLR", "warmup_min_lr"): {"warmup_num_steps": 2, "total_num_steps": 5, "warmup_max_lr": 20.0},
    ("WarmupDecayLR", "warmup_max_lr"): {"warmup_num_steps": 2, "total_num_steps": 5},
    ("OneCycle", "cycle_min_lr"): {"cycle_max_lr": 20.0, "cycle_first_step_size": 2, "decay_lr_rate": 1.0, "decay_step_size": 2},
    ("OneCycle", "cycle_max_lr"): {"cycle_min_lr": 0.125, "cycle_first_step_size": 2},
    ("OneCycle", "cycle_min_mom"): {"cycle_min_lr": 1, "cycle_max_lr": 2, "cycle_first_step_size": 2, "cycle_max_mom": 0.9},
    ("OneCycle", "cycle_max_mom"): {"cycle_min_lr": 1, "cycle_max_lr": 2, "cycle_first_step_size": 2, "cycle_min_mom": 0.1},
}


@pytest.mark.parametrize("name, key", LISTS, ids=[f"{name}.{key}" for name, key in LISTS])
def test_a_list_gives_each_group_what_it_would_have_alone(name, key):
    """So a list can't mean anything else than the numbers in it."""
    params, steps = LISTS[name, key], 8
    values = [0.25, 0.5, 0.75] if key.endswith("mom") else [0.5, 1.0, 4.0]
    together = run_groups(name, steps, **params, **{key: values})
    for group, value in enumerate(values):
        (alone,) = run_groups(name, steps, own=[OWN[group]], **params, **{key: value})
        assert together[group] == alone
    assert len({tuple(map(str, values)) for values in together}) == 3
    for wrong in ([0.5, 0.25], [], [0.5] * 4):
        with pytest.raises(ValueError, match=f"{key}: {len(wrong)} values for 3 parameter groups"):
            run_groups(name, 0, **params, **{key: wrong})


def test_every_argument_that_may_be_a_list_is_looked_at():
    assert {key for _, key in LISTS} == set(schedule_arguments._LISTED)


def test_one_cycle_by_hand_for_two_groups():
    low, high, bottom, top = [1.0, 10.0], [3.0, 50.0], [0.8, 0.5], [0.9, 0.7]
    seen = run_groups(
        "OneCycle", 8, own=[1.0, 1.0], cycle_min_lr=low, cycle_max_lr=high, cycle_min_mom=bottom, cycle_max_mom=top,
        cycle_first_step_size=2, cycle_second_step_size=4, decay_lr_rate=1.0, decay_mom_rate=0.125, decay_step_size=2,
    )  # fmt: skip
    heights = [0.5, 1, 0.75, 0.5, 0.25, 0]
    for group in range(2):
        rise, fall = high[group] - low[group], top[group] - bottom[group]
        rates = [low[group], *(low[group] + rise * h for h in heights), low[group] / 1.5, low[group] / 2]
        betas = [bottom[group], *(top[group] - fall * h for h in heights), top[group] * 1.0625, top[group] * 1.125]
        assert [rate for rate, _ in seen[group]] == pytest.approx(rates)
        assert [beta[0] for _, beta in seen[group]] == pytest.approx(betas)


def test_a_cycle_without_a_second_half_falls_at_once():
    values = rates("OneCycle", 4, cycle_min_lr=1.0, cycle_max_lr=3.0, cycle_first_step_size=2, cycle_second_step_size=0)
    assert values == [1, 2, 1, 1, 1]


# ---- Rates that are tensors


@pytest.mark.parametrize("name", NEEDED)
def test_a_rate_that_is_a_tensor_stays_that_tensor(name):
    params = NEEDED[name] | ({"warmup_num_steps": 4} if name.startswith("Warmup") else {})
    expected = run_groups(name, 8, **params)
    tensors = [torch.tensor(lr, dtype=torch.float64) for lr in OWN]
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in tensors]
    optimizer = torch.optim.AdamW(groups)
    schedule = schedulers.find(name)(optimizer, **params)
    for step in range(9):
        for group, tensor, values in zip(optimizer.param_groups, tensors, expected, strict=True):
            assert group["lr"] is tensor
            assert tensor.item() == values[step][0]
        last = schedule.get_last_lr()
        schedule.step()
        assert last == [values[step][0] for values in expected]  # not what has been filled since


@pytest.mark.parametrize("name", NEEDED)
def test_an_engine_keeps_a_clients_tensors(engines, name):
    model = mlp()
    parameters = list(model.parameters())
    tensors = [torch.tensor(0.125), torch.tensor([0.25])]
    groups = [{"params": parameters[:2], "lr": tensors[0]}, {"params": parameters[2:], "lr": tensors[1]}]
    params = NEEDED[name] | ({"warmup_num_steps": 4} if name.startswith("Warmup") else {})
    engine = engines(model, config(scheduler={"type": name, "params": params}), optimizer=torch.optim.AdamW(groups))
    for step in range(2):
        one_step(engine, step)
    assert [g["lr"] is t for g, t in zip(engine.optimizer.param_groups, tensors, strict=True)] == [True, True]
    assert engine.get_lr() == pytest.approx(engine.lr_scheduler.get_last_lr())


# ---- Arguments that won't do

BAD = [-1, -0.5, 0, 1.5, True, "1", None, [1, 2, 3], [], {}, math.nan, math.inf, 1e308 * 10, 10**400, 1j, "log", "LINEAR", 1.0]
# What each kind of argument takes of these.
GOOD = {
    "lr_range_test_staircase": [True], "cycle_momentum": [True], "warmup_type": ["log"],
    "lr_range_test_step_rate": [-1, -0.5, 0, 1.5, 1.0], "decay_mom_rate": [-1, -0.5, 0, 1.5, 1.0],
    "cycle_min_mom": [0], "cycle_max_mom": [0], "last_batch_iteration": [-1, 0, 1.0],
    "total_num_steps": [1.0], "warmup_num_steps": [1.0],
    "cycle_first_stair_count": [0, 1.0], "cycle_second_stair_count": [0, 1.0, None],
    "lr_range_test_step_size": [1.5, 1.0], "cycle_first_step_size": [1.5, 1.0], "cycle_second_step_size": [0, 1.5, 1.0, None],
    "warmup_max_lr": [0, 1.5, 1.0, None],
}  # fmt: skip
ARGUMENTS = [
    (name, key) for name, schedule in schedulers.SCHEDULES.items() for key in inspect.signature(schedule).parameters if key != "optimizer"
]


@pytest.mark.parametrize("name, key", ARGUMENTS, ids=[f"{name}.{key}" for name, key in ARGUMENTS])
def test_an_argument_that_will_not_do_is_refused_by_name(name, key):
    for value in BAD:
        if isinstance(value, list) and key in schedule_arguments._LISTED:
            continue  # tried above
        params = NEEDED[name] | {key: value}
        if any(value is good or (type(value) is type(good) and value == good) for good in GOOD.get(key, [0, 1.5, 1.0])):
            schedule = make(name, **params)[1]
            for _ in range(12):
                schedule.step()
            load_config({"scheduler": {"type": name, "params": params}})
            continue
        with pytest.raises(ValueError, match=f"^{key}: must be"):
            make(name, **params)
        if value is not None:  # null in JSON
            with pytest.raises(sluice.ConfigError, match=f"^scheduler.params.{key}: must be"):
                load_config({"scheduler": {"type": name, "params": params}})


@pytest.mark.parametrize("name", ["WarmupLR", "WarmupDecayLR", "WarmupCosineLR", "OneCycle", "LRRangeTest"])
def test_a_schedule_goes_on_from_its_state(name):
    params = NEEDED[name] | ({"warmup_num_steps": 4} if name.startswith("Warmup") else {})
    expected = rates(name, 7, **params)
    _, first = make(name, **params)
    for _ in range(3):
        first.step()
    optimizer, second = make(name, **params)
    second.load_state_dict(first.state_dict())
    for rate in expected[4:]:
        second.step()
        assert optimizer.param_groups[0]["lr"] == rate


def test_a_rate_is_asked_for_before_there_is_one():
    _, schedule = make("WarmupLR", last_batch_iteration=3)
    with pytest.raises(RuntimeError, match="call step"):
        schedule.get_last_lr()
