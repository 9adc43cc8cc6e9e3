"""What DeepSpeed's schedules take: each argument's range, looked at when a configuration is read and when a schedule is
made."""

import math
import numbers

from ..native.checked import shown

# name: (what it must be, in words; whether a number is that)
_FROM_0 = ("a finite number of at least 0", lambda x: x >= 0)
_FINITE = ("a finite number", lambda x: True)
_MOMENTUM = ("a number from 0 to below 1", lambda x: 0 <= x < 1)
_SIZE = ("a finite number above 0", lambda x: x > 0)
_COUNT = ("a whole number of at least 0", lambda x: x >= 0 and x == int(x))
_STEPS = ("a whole number of at least 1", lambda x: x >= 1 and x == int(x))
_ITERATION = ("a whole number of at least -1", lambda x: x >= -1 and x == int(x))
_NUMBERS = {
    "lr_range_test_min_lr": _FROM_0,
    "lr_range_test_step_size": _SIZE,
    "lr_range_test_step_rate": _FINITE,
    "warmup_min_lr": _FROM_0,
    "warmup_max_lr": _FROM_0,
    "warmup_num_steps": _STEPS,
    "total_num_steps": _STEPS,
    "warmup_min_ratio": _FROM_0,
    "cos_min_ratio": _FROM_0,
    "cycle_min_lr": _FROM_0,
    "cycle_max_lr": _FROM_0,
    "decay_lr_rate": _FROM_0,
    "cycle_first_step_size": _SIZE,
    "cycle_second_step_size": _FROM_0,
    "cycle_first_stair_count": _COUNT,
    "cycle_second_stair_count": _COUNT,
    "decay_step_size": _FROM_0,
    "cycle_min_mom": _MOMENTUM,
    "cycle_max_mom": _MOMENTUM,
    "decay_mom_rate": _FINITE,
    "last_batch_iteration": _ITERATION,
}
_CHOICES = {"warmup_type": ("log", "linear"), "lr_range_test_staircase": (True, False), "cycle_momentum": (True, False)}
# By group, if given as lists; and those that have a default which None stands for.
_LISTED = ("lr_range_test_min_lr", "warmup_min_lr", "warmup_max_lr")
_LISTED += ("cycle_min_lr", "cycle_max_lr", "cycle_min_mom", "cycle_max_mom")
_OPTIONAL = ("warmup_max_lr", "cycle_second_step_size", "cycle_second_stair_count")


def problem_of(name, value):
    """What is wrong with an argument, in words, or None. Names that no schedule has are none of its business."""
    if value is None and name in _OPTIONAL:
        return None
    if name in _CHOICES:
        return _problem_of_choice(_CHOICES[name], value)
    if name not in _NUMBERS:
        return None
    values = value if name in _LISTED and isinstance(value, (list, tuple)) else [value]
    words, holds = _NUMBERS[name]
    for one in values:
        number = _finite(one)
        if number is None or not holds(number):
            return f"must be {words}, not {shown(one)}"
    return None


def check(arguments):
    """arguments: by name. Errors: ValueError that names the first that won't do."""
    for name, value in arguments.items():
        problem = problem_of(name, value)
        if problem is not None:
            raise ValueError(f"{name}: {problem}")


def _problem_of_choice(choices, value):
    if isinstance(value, type(choices[0])) and value in choices:
        return None
    return f"must be {' or '.join(map(str, choices))}, not {shown(value)}"


def _finite(value):
    """A finite number (a bool is none), or None."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # a whole number of more than 308 digits
        return None
