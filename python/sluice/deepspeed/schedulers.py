"""DeepSpeed's learning rate schedules, with its values.

A schedule sets `lr` (OneCycle also `betas`) of every group of an optimizer; a rate that is a tensor stays that tensor, and
is filled. Rates and momenta may be lists, one value for each group. The engine calls step() after each update that was
applied. Iterations are counted from 0: the first step() sets the rate of iteration 0. Before that the rate is the one
the schedule starts from. Not thread-safe: one thread trains.
"""

import difflib
import inspect
import math

import torch

from . import schedule_arguments


class Schedule:
    """What the schedules share. `last_batch_iteration`: -1 to start, or the iteration a run is resumed after."""

    def __init__(self, optimizer, last_batch_iteration):
        self.optimizer = optimizer
        self.last_batch_iteration = last_batch_iteration
        self._last_lr = None
        if last_batch_iteration == -1:
            self._set(self._start())

    def _start(self):
        """The rates before the first step."""
        return self.get_lr()

    def get_lr(self):
        """The rates of the current iteration, one per group."""
        raise NotImplementedError

    def get_last_lr(self):
        """The rates that were set last."""
        if self._last_lr is None:
            raise RuntimeError("this schedule has set no rate yet: call step() first")
        return self._last_lr

    def step(self, last_batch_iteration=None):
        """Goes to the next iteration, or to the one given."""
        if last_batch_iteration is None:
            last_batch_iteration = self.last_batch_iteration + 1
        self.last_batch_iteration = last_batch_iteration
        self._set(self.get_lr())

    def state_dict(self):
        return {"last_batch_iteration": self.last_batch_iteration}

    def load_state_dict(self, state):
        """Takes the position; the rates follow at the next step()."""
        self.last_batch_iteration = state["last_batch_iteration"]

    def _set(self, rates):
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)  # the user's own, and what a captured graph reads
            else:
                group["lr"] = rate
        self._last_lr = list(rates)

    def _per_group(self, value, name):
        count = len(self.optimizer.param_groups)
        if not isinstance(value, (list, tuple)):
            return [value] * count
        if len(value) != count:
            raise ValueError(f"{name}: {len(value)} values for {count} parameter groups")
        return list(value)

    def _own_rates(self):
        """The rate of each group, as numbers: a tensor is filled later on."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]


class LRRangeTest(Schedule):
    """min_lr * (1 + step_rate * n / step_size) at iteration n - 1; in whole steps of step_size if `staircase`."""

    def __init__(
        self,
        optimizer,
        lr_range_test_min_lr=1e-3,
        lr_range_test_step_size=2000,
        lr_range_test_step_rate=1.0,
        lr_range_test_staircase=False,
        last_batch_iteration=-1,
    ):
        schedule_arguments.check(locals())
        self.optimizer = optimizer
        self.min_lr = self._per_group(lr_range_test_min_lr, "lr_range_test_min_lr")
        self.step_size = lr_range_test_step_size
        self.step_rate = lr_range_test_step_rate
        self.staircase = lr_range_test_staircase
        super().__init__(optimizer, last_batch_iteration)

    def get_lr(self):
        position = (self.last_batch_iteration + 1) / self.step_size
        if self.staircase:
            position = math.floor(position)
        return [low * (1 + self.step_rate * position) for low in self.min_lr]


class _Warmup(Schedule):
    """The share of the way up, by logarithm or straight, and what follows it."""

    def __init__(self, optimizer, warmup_num_steps, warmup_type, last_batch_iteration):
        self.warmup_num_steps = max(2, warmup_num_steps)
        self.warmup_type = warmup_type
        super().__init__(optimizer, last_batch_iteration)

    def _risen(self):
        """0 to 1, while warming up; None afterwards."""
        n = self.last_batch_iteration
        if n >= self.warmup_num_steps:
            return None
        if self.warmup_type == "linear":
            return n / self.warmup_num_steps
        return 1.0 / math.log(self.warmup_num_steps) * math.log(n + 1)


class WarmupLR(_Warmup):
    """From warmup_min_lr to warmup_max_lr (None: each group's own rate), which then stays."""

    def __init__(
        self,
        optimizer,
        warmup_min_lr=0.0,
        warmup_max_lr=None,
        warmup_num_steps=1000,
        warmup_type="log",
        last_batch_iteration=-1,
    ):
        schedule_arguments.check(locals())
        self.optimizer = optimizer
        self.min_lrs = self._per_group(warmup_min_lr, "warmup_min_lr")
        self.max_lrs = self._own_rates() if warmup_max_lr is None else self._per_group(warmup_max_lr, "warmup_max_lr")
        super().__init__(optimizer, warmup_num_steps, warmup_type, last_batch_iteration)

    def _after_warmup(self):
        return 1.0

    def get_lr(self):
        if self.last_batch_iteration < 0:
            return list(self.min_lrs)
        risen = self._risen()
        share = self._after_warmup() if risen is None else risen
        return [low + (high - low) * share for low, high in zip(self.min_lrs, self.max_lrs)]


class WarmupDecayLR(WarmupLR):
    """As WarmupLR; then in a straight line down to warmup_min_lr at total_num_steps."""

    def __init__(
        self,
        optimizer,
        total_num_steps,
        warmup_min_lr=0.0,
        warmup_max_lr=0.001,
        warmup_num_steps=1000,
        warmup_type="log",
        last_batch_iteration=-1,
    ):
        schedule_arguments.check({"total_num_steps": total_num_steps})
        self.total_num_steps = total_num_steps
        super().__init__(optimizer, warmup_min_lr, warmup_max_lr, warmup_num_steps, warmup_type, last_batch_iteration)

    def _after_warmup(self):
        left = self.total_num_steps - self.last_batch_iteration
        return max(0.0, left / max(1.0, self.total_num_steps - self.warmup_num_steps))


class WarmupCosineLR(_Warmup):
    """Shares of the optimizer's own rates: from warmup_min_ratio to 1, then half a cosine down to cos_min_ratio at
    total_num_steps, where it stays. Before the first step the rate is 0."""

    def __init__(
        self,
        optimizer,
        total_num_steps,
        warmup_min_ratio=0.0,
        warmup_num_steps=1000,
        cos_min_ratio=0.0001,
        warmup_type="log",
        last_batch_iteration=-1,
    ):
        schedule_arguments.check(locals())
        self.optimizer = optimizer
        self.total_num_steps = total_num_steps
        self.warmup_min_ratio = warmup_min_ratio
        self.cos_min_ratio = cos_min_ratio
        self.org_lrs = self._own_rates()
        super().__init__(optimizer, warmup_num_steps, warmup_type, last_batch_iteration)

    def get_lr_ratio(self):
        if self.last_batch_iteration < 0:
            return 0.0
        risen = self._risen()
        if risen is not None:
            return self.warmup_min_ratio + risen * (1.0 - self.warmup_min_ratio)
        done = self.last_batch_iteration - self.warmup_num_steps + 1
        share = min(1.0, done / max(1, self.total_num_steps - self.warmup_num_steps))
        cosine = (1 + math.cos(math.pi * share)) / 2
        return max(0.0, self.cos_min_ratio + (1.0 - self.cos_min_ratio) * cosine)

    def get_lr(self):
        ratio = self.get_lr_ratio()
        return [rate * ratio for rate in self.org_lrs]


class OneCycle(Schedule):
    """Up from cycle_min_lr to cycle_max_lr and back, once; then cycle_min_lr, decaying if decay_lr_rate and
    decay_step_size say so. With cycle_momentum the first beta goes the other way, between cycle_max_mom and
    cycle_min_mom, and the second beta is 0.99, whatever the optimizer said. A stair count holds the values for that
    many equal stretches of a half cycle."""

    def __init__(
        self,
        optimizer,
        cycle_min_lr,
        cycle_max_lr,
        decay_lr_rate=0.0,
        cycle_first_step_size=2000,
        cycle_second_step_size=None,
        cycle_first_stair_count=0,
        cycle_second_stair_count=None,
        decay_step_size=0,
        cycle_momentum=True,
        cycle_min_mom=0.8,
        cycle_max_mom=0.9,
        decay_mom_rate=0.0,
        last_batch_iteration=-1,
    ):
        schedule_arguments.check(locals())
        self.optimizer = optimizer
        self.min_lrs = self._per_group(cycle_min_lr, "cycle_min_lr")
        self.max_lrs = self._per_group(cycle_max_lr, "cycle_max_lr")
        self.min_moms = self._per_group(cycle_min_mom, "cycle_min_mom")
        self.max_moms = self._per_group(cycle_max_mom, "cycle_max_mom")
        self.decay_lr_rate, self.decay_mom_rate = decay_lr_rate, decay_mom_rate
        self.decay_step_size = decay_step_size
        self.first_size = float(cycle_first_step_size)
        self.second_size = self.first_size if cycle_second_step_size is None else float(cycle_second_step_size)
        self.total_size = self.first_size + self.second_size
        self.first_stairs = cycle_first_stair_count
        self.second_stairs = cycle_first_stair_count if cycle_second_stair_count is None else cycle_second_stair_count
        self.cycle_momentum = cycle_momentum and "betas" in optimizer.defaults
        super().__init__(optimizer, last_batch_iteration)
        if self.cycle_momentum and last_batch_iteration == -1:
            self._set_momenta(self.min_moms)

    def _start(self):
        return list(self.min_lrs)

    def _height(self):
        """0 at both ends of the cycle, 1 at its peak."""
        at = self.last_batch_iteration + 1
        cycle = math.floor(1 + at / self.total_size)
        x = 1.0 + at / self.total_size - cycle
        peak = self.first_size / self.total_size
        stairs = self.first_stairs if x <= peak else self.second_stairs
        if stairs > 0:
            at = at % self.total_size
            share = at / self.first_size if at <= self.first_size else (self.total_size - at) / self.second_size
            return math.floor(share * stairs) / stairs
        return x / peak if x <= peak else (x - 1) / (peak - 1)

    def _decay(self, rate):
        """1 + rate * (steps since the cycle's end / decay_step_size); 1 without decay."""
        if math.isclose(self.decay_step_size, 0) or math.isclose(rate, 0):
            return 1.0
        return 1 + rate * ((self.last_batch_iteration - self.total_size + 1) / self.decay_step_size)

    def get_lr(self):
        if self.last_batch_iteration < self.total_size:
            height = self._height()
            return [low + (high - low) * height for low, high in zip(self.min_lrs, self.max_lrs)]
        return [low / self._decay(self.decay_lr_rate) for low in self.min_lrs]

    def get_mom(self):
        """The betas of every group, or None without cycle_momentum."""
        if not self.cycle_momentum:
            return None
        if self.last_batch_iteration < self.total_size:
            height = self._height()
            momenta = [high - (high - low) * height for low, high in zip(self.min_moms, self.max_moms)]
        else:
            momenta = [high * self._decay(self.decay_mom_rate) for high in self.max_moms]
        return [(momentum, 0.99) for momentum in momenta]

    def step(self, last_batch_iteration=None):
        super().step(last_batch_iteration)
        if self.cycle_momentum:
            self._set_momenta([momentum for momentum, _ in self.get_mom()])

    def _set_momenta(self, momenta):
        for group, momentum in zip(self.optimizer.param_groups, momenta, strict=True):
            group["betas"] = (momentum, 0.99)


SCHEDULES = {s.__name__: s for s in (LRRangeTest, OneCycle, WarmupLR, WarmupDecayLR, WarmupCosineLR)}
VALID_LR_SCHEDULES = list(SCHEDULES)


def find(name):
    """The class of DeepSpeed's or torch's schedule of this name, or None."""
    if name in SCHEDULES:
        return SCHEDULES[name]
    found = getattr(torch.optim.lr_scheduler, str(name), None)
    ours = inspect.isclass(found) and issubclass(found, torch.optim.lr_scheduler.LRScheduler)
    return found if ours else None


def problem_of(name, params):
    """What is wrong with a configured schedule, in words, or None."""
    schedule = find(name)
    if schedule is None:
        near = difflib.get_close_matches(str(name), SCHEDULES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"DeepSpeed's are {', '.join(sorted(SCHEDULES))}"
        return f"type: {name!r} is neither DeepSpeed's nor in torch.optim.lr_scheduler; {hint}"
    known = {k: p for k, p in inspect.signature(schedule).parameters.items() if k != "optimizer"}
    for key in params:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            return f"params.{key}: {name} does not know it" + (f"; did you mean {near[0]!r}?" if near else "")
        problem = schedule_arguments.problem_of(key, params[key]) if name in SCHEDULES else None
        if problem is not None:
            return f"params.{key}: {problem}"
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in params:
            return f'params.{key}: {name} needs it ("auto" is not filled in here)'
    return None
