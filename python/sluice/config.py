"""DeepSpeed's JSON, read for Sluice.

Every key that DeepSpeed knows is honoured, or accepted with a reason why it has no effect here (Config.notes), or
refused with what to use instead (config_keys.py has them all). An unknown key is an error that names the nearest known
one. "auto" means the default, and is noted. Keys of Sluice's own stand under "sluice".
"""

import dataclasses
import difflib
import fractions
import math
import numbers
import os
import re

from . import schedulers
from ._checked import shown
from ._errors import ConfigError
from .config_file import load_file, read  # noqa: F401  load_file is for programs
from .config_keys import ALIASES, BYTES_MAX, KEYS, NO_EFFECT, OTHER_OPTIMIZERS, USED, WHOLE_MAX

_SIZE = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*$", re.ASCII)
_FACTORS = {"": 1, "b": 1, "k": 1 << 10, "kib": 1 << 10, "m": 1 << 20, "mib": 1 << 20, "g": 1 << 30, "gib": 1 << 30}
_FACTORS.update({"t": 1 << 40, "tib": 1 << 40, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12})
_SIZE_CHARACTERS = 64


def parse_bytes(value, name="size"):
    """512 -> 512, "512MiB" -> 536870912. None stays None. Errors: ConfigError."""
    if value is None:
        return None
    size = _size(value)
    if size is None:
        raise ConfigError(f"{name}: {shown(value)} is not a size; write it like 512MiB, 1.5GiB or 1000000")
    if size > BYTES_MAX:
        raise ConfigError(f"{name}: {shown(value)} is more than {BYTES_MAX} bytes, the most there can be")
    return size


def _size(value):
    number = _plain(value)
    if number is not None:
        return int(number) if 0 <= number < math.inf and number == int(number) else None
    if not isinstance(value, str) or len(value) > _SIZE_CHARACTERS:
        return None
    match = _SIZE.match(value)
    if match is None or match.group(2).lower() not in _FACTORS:
        return None
    return round(fractions.Fraction(match.group(1)) * _FACTORS[match.group(2).lower()])


def _plain(value):
    """A number of anybody's as one of Python's own, or None; a bool is none."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    return int(value) if isinstance(value, numbers.Integral) else float(value)


@dataclasses.dataclass(frozen=True)
class Config:
    """What the engine needs. Sizes in bytes; None: chosen by the library."""

    micro_batch: int = 1
    accumulation: int = 1
    managed_accumulation: bool = True
    clip_norm: float = 1.0
    dtype: str = "fp32"  # of parameters in compute: fp32, bf16, fp16
    grad_dtype: str | None = None  # None: as dtype
    loss_scale: dict = dataclasses.field(default_factory=dict)  # fp16 keys
    optimizer: dict | None = None  # lr, betas, eps, weight_decay, l2_decay, bias_correction
    scheduler: tuple | None = None  # name of the class, its arguments
    zero_stage: int = 0
    offload_optimizer: str = "none"
    offload_param: str = "none"
    nvme_paths: tuple = ()
    persistence_threshold: int | None = None
    queue_depth: int | None = None
    drop_last: bool = False
    steps_per_print: int | None = None
    wall_clock_breakdown: bool = False
    own: dict = dataclasses.field(default_factory=dict)  # the "sluice" section
    notes: tuple = ()  # "key: reason" of every key accepted without effect


# ---- Values, checked and converted by the type that config_keys.py gives them. (rule, value, where) -> value


def _number(rule, value, where):
    return _real(value, where, 0, rule.high)


def _real(value, where, low, high):
    number = _plain(value)
    if number is None or number != number:
        raise ConfigError(f"{where}: must be a number, not {shown(value)}")
    try:
        number = float(number)
    except OverflowError:  # a whole number of more than 308 digits
        number = math.inf
    if number < low or number == math.inf or (high is not None and number > high):
        most = "finite" if high is None else f"at most {high}"
        raise ConfigError(f"{where}: must be at least {low} and {most}, not {shown(value)}")
    return number


def _whole(low):
    def check(rule, value, where):
        high = WHOLE_MAX if rule.high is None else rule.high
        number = _plain(value)
        if number is None:
            raise ConfigError(f"{where}: must be a number, not {shown(value)}")
        if isinstance(number, float) and not number.is_integer():  # also inf and nan
            raise ConfigError(f"{where}: must be a whole number, not {shown(value)}")
        if not low <= number <= high:
            raise ConfigError(f"{where}: must be a whole number from {low} to {high}, not {shown(value)}")
        return int(number)

    return check


def _instance(types, what):
    def check(rule, value, where):
        if not isinstance(value, types):
            raise ConfigError(f"{where}: must be {what}, not {shown(value)}")
        return value

    return check


def _betas(rule, value, where):
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ConfigError(f"{where}: must be two numbers, not {shown(value)}")
    betas = tuple(_real(beta, where, 0, None) for beta in value)
    if max(betas) >= 1:
        raise ConfigError(f"{where}: must be below 1, not {shown(value)}")
    return betas


def _path(rule, value, where):
    try:
        path = os.fsdecode(value)
        os.fsencode(path)
    except (TypeError, UnicodeError):
        raise ConfigError(f"{where}: must be a path, not {shown(value)}") from None
    if not path or "\0" in path:
        raise ConfigError(f"{where}: must be a path, not {shown(value)}, which no file system can have")
    return path


def paths_of(value, where):
    """One path or several (str, bytes or PathLike) as a tuple of str; what isn't UTF-8 in them is kept. Errors:
    ConfigError."""
    if isinstance(value, (str, bytes, os.PathLike)):
        value = (value,)
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where}: must be a directory or a list of them, not {shown(value)}")
    return tuple(_path(None, path, where) for path in value)


_TYPES = {
    "bool": _instance(bool, "true or false"),
    "text": _instance(str, "a string"),
    "section": _instance(dict, "an object"),
    "number": _number,
    "count": _whole(0),
    "positive": _whole(1),
    "size": lambda rule, value, where: parse_bytes(value, where),
    "betas": _betas,
    "path": _path,
    "paths": lambda rule, value, where: paths_of(value, where),
}


def _checked(rule, value, where):
    if value is None:
        return None
    if isinstance(rule.type, tuple):
        plain = isinstance(value, (str, numbers.Real)) and not isinstance(value, bool)
        found = [choice for choice in rule.type if plain and choice == value]
        if not found:
            raise ConfigError(f"{where}: must be one of {', '.join(map(str, rule.type))}, not {shown(value)}")
        return found[0]
    return _TYPES[rule.type](rule, value, where)


def checked(key, value, name):
    """An argument `name` that means what the key (such as "sluice.hbm") does: `value` as it, checked as there; None stays
    None. Errors: ConfigError."""
    rule = KEYS
    for part in key.split("."):
        rule = rule[part]
    return _checked(rule, value, name)


# ---- The sections


def _is_off(rule, value):
    if rule.off_section and isinstance(value, dict) and not value.get("enabled"):
        return True
    return any(value == off and isinstance(value, bool) == isinstance(off, bool) for off in rule.off)


def _unknown(where, original, known):
    near = difflib.get_close_matches(original, list(known), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known here are {', '.join(sorted(known))}"
    raise ConfigError(f"{where}: unknown key; {hint}")


def _walk(given, known, path, notes):
    """The honoured keys of one section, checked; those with their default left out."""
    if not isinstance(given, dict):
        raise ConfigError(f"{path or 'the config'}: must be an object, not {shown(given)}")
    result, seen = {}, set()
    for original, value in given.items():
        key = ALIASES.get(path, {}).get(original, original)
        where = f"{path}.{original}" if path else str(original)
        if key not in known:
            _unknown(where, str(original), known)
        if key in seen:
            raise ConfigError(f"{where}: given twice, under two names")
        seen.add(key)
        rule = known[key]
        section = isinstance(rule, dict)
        if isinstance(value, str) and value == "auto":
            default = "" if section or rule.kind != USED or rule.default is None else f", {rule.default}"
            notes.append(f"{where}: auto is the default{default}")
        elif section:
            if value is not None:
                result[key] = _walk(value, rule, f"{path}.{key}" if path else key, notes)
        elif rule.kind == USED:
            result[key] = _checked(rule, value, where)
            if result[key] is None:
                del result[key]
        elif rule.kind == NO_EFFECT:
            notes.append(f"{where}: {rule.words}")
        elif not _is_off(rule, value):
            raise ConfigError(f"{where}: {rule.words}")
    return result


def _batches(top):
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    train, micro, steps = (top.get(name) for name in names)
    if train is None:
        return micro or 1, steps or 1
    if micro is None:
        steps = steps or 1
        if train % steps:
            raise ConfigError(f"train_batch_size {train} is not a multiple of gradient_accumulation_steps {steps}")
        return train // steps, steps
    if steps is None:
        if train % micro:
            raise ConfigError(f"train_batch_size {train} is not a multiple of train_micro_batch_size_per_gpu {micro}")
        return micro, train // micro
    if train != micro * steps:
        raise ConfigError(
            f"train_batch_size {train} is not train_micro_batch_size_per_gpu {micro} x "
            f"gradient_accumulation_steps {steps}"
        )
    return micro, steps


def _optimizer(section):
    if section is None:
        return None
    name = section.get("type", "AdamW")
    kind = name.lower()
    if kind not in ("adam", "adamw"):
        raise ConfigError(f"optimizer.type: {OTHER_OPTIMIZERS.get(kind, repr(name))} is not offered; use AdamW or Adam")
    params = section.get("params", {})
    decoupled = kind == "adamw" or params.get("adam_w_mode", True)
    default_decay = 0.01 if decoupled and params.get("torch_adam") else 0.0
    return {
        "lr": params.get("lr", 1e-3),
        "betas": params.get("betas", (0.9, 0.999)),
        "eps": params.get("eps", 1e-8),
        "weight_decay": params.get("weight_decay", default_decay),
        "l2_decay": not decoupled,
        "bias_correction": params.get("bias_correction", True),
    }


def _scheduler(section, notes):
    if not section:
        return None
    if "type" not in section:
        raise ConfigError("scheduler.type: is missing")
    params = {}
    for key, value in section.get("params", {}).items():
        if isinstance(value, str) and value == "auto":
            notes.append(f"scheduler.params.{key}: auto is the default")
        else:
            params[key] = value
    problem = schedulers.problem_of(section["type"], params)
    if problem:
        raise ConfigError(f"scheduler.{problem}")
    return section["type"], params


def _precision(top):
    """(dtype, fp16 keys)"""
    fp16, bf16 = top.get("fp16", {}), top.get("bf16", {})
    if fp16.get("enabled") and bf16.get("enabled"):
        raise ConfigError("fp16.enabled and bf16.enabled exclude each other")
    if not fp16.get("enabled"):
        return ("bf16" if bf16.get("enabled") else "fp32"), {}
    if fp16.get("loss_scale", 0) == 0 and fp16.get("min_loss_scale", 1) == 0:
        raise ConfigError("fp16.min_loss_scale: must be above 0 when the scale is dynamic")
    return "fp16", {key: value for key, value in fp16.items() if key != "enabled"}


def _nvme_paths(zero, own):
    given = own.pop("nvme_path", ())
    if not given:
        given = [p for key in ("offload_optimizer", "offload_param") for p in zero.get(key, {}).get("nvme_path", ())]
    paths = tuple(dict.fromkeys(given))
    for key in ("offload_optimizer", "offload_param"):
        if zero.get(key, {}).get("device") == "nvme" and not paths:
            raise ConfigError(
                f'zero_optimization.{key}.device: "nvme" needs nvme_path, a directory on the drive to use'
            )
    return paths


def load_config(config):
    """Reads a DeepSpeed configuration: a dict, the path of a JSON or HJSON file, or the JSON in URL-safe base64.
    Errors: ConfigError, naming the file and the key."""
    given, source = read(config)
    try:
        return _config_of(given)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}" if source else str(error)) from None


def _config_of(given):
    notes = []
    if isinstance(given, dict) and isinstance(given.get("zero_optimization"), bool):
        given = {**given, "zero_optimization": {"stage": int(given["zero_optimization"])}}  # an old form
    top = _walk(given, KEYS, "", notes)
    micro, steps = _batches(top)
    dtype, loss_scale = _precision(top)
    zero = top.get("zero_optimization", {})
    own = dict(top.get("sluice", {}))
    return Config(
        micro_batch=micro,
        accumulation=steps,
        managed_accumulation=top.get("managed_gradient_accumulation", True),
        clip_norm=top.get("gradient_clipping", 1.0),
        dtype=dtype,
        grad_dtype=top.get("data_types", {}).get("grad_accum_dtype"),
        loss_scale=loss_scale,
        optimizer=_optimizer(top.get("optimizer")),
        scheduler=_scheduler(top.get("scheduler"), notes),
        zero_stage=zero.get("stage", 0),
        offload_optimizer=zero.get("offload_optimizer", {}).get("device", "none"),
        offload_param=zero.get("offload_param", {}).get("device", "none"),
        nvme_paths=_nvme_paths(zero, own),
        persistence_threshold=zero.get("param_persistence_threshold"),
        queue_depth=top.get("aio", {}).get("queue_depth"),
        drop_last=top.get("dataloader_drop_last", False),
        steps_per_print=top.get("steps_per_print"),
        wall_clock_breakdown=top.get("wall_clock_breakdown", False),
        own=own,
        notes=tuple(notes),
    )
