"""What scripts have on their command lines, under DeepSpeed's names."""

import inspect

from . import schedulers


def add_config_arguments(parser):
    """Adds --deepspeed and --deepspeed_config to an argparse parser; initialize(args=...) reads the latter."""
    group = parser.add_argument_group("Sluice", "under DeepSpeed's names")
    group.add_argument("--deepspeed", action="store_true", help="accepted for DeepSpeed's sake")
    group.add_argument("--deepspeed_config", default=None, type=str, help="configuration (JSON) for initialize()")
    return parser


def add_tuning_arguments(parser):
    """Adds the arguments of schedules to an argparse parser: one for each of those classes' own, by its name."""
    group = parser.add_argument_group("Schedules", "under DeepSpeed's names")
    group.add_argument("--lr_schedule", default=None, type=str, help="name of a schedule")
    known = {}
    for schedule in schedulers.SCHEDULES.values():
        for name, parameter in inspect.signature(schedule).parameters.items():
            if name not in ("optimizer", "last_batch_iteration"):
                known.setdefault(name, parameter.default)
    for name, default in known.items():
        default = None if default is inspect.Parameter.empty else default
        kind = _flag if isinstance(default, bool) else str if isinstance(default, str) else float
        group.add_argument(f"--{name}", default=default, type=kind)
    return parser


def _flag(text):
    return text.lower() in ("1", "true", "yes")
