"""DeepSpeed's JSON, read for Sluice.

Every key that DeepSpeed knows is honoured, or accepted with a reason why it has no effect here (Config.notes), or
refused with what to use instead (config_keys.py has them all). An unknown key is an error that names the nearest known
one. "auto" means the default, and is noted. Keys of Sluice's own stand under "sluice".
"""

import difflib
import math

from ..collectives import world_size
from ..native.checked import shown
from ..native.errors import ConfigError
from ..settings.checking import checked, parse_bytes  # noqa: F401  parse_bytes is for programs
from ..settings.config import Config
from ..settings.keys import NO_EFFECT, USED
from . import auto_values, dropin, schedulers
from .config_file import load_file, read  # noqa: F401  load_file is for programs
from .config_keys import ALIASES, KEYS, OTHER_OPTIMIZERS


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
            if not path and dropin.is_active():  # frameworks write such (TRL: "zero_optimization.reduce_bucket_size")
                notes.append(f"{original}: no effect: unknown, and DeepSpeed does not mind unknown keys at the top level")
                continue
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
            result[key] = checked(rule, value, where)
            if result[key] is None:
                del result[key]
        elif rule.kind == NO_EFFECT:
            notes.append(f"{where}: {rule.words}")
        elif not _is_off(rule, value):
            raise ConfigError(f"{where}: {rule.words}")
    return result


def _batches(top, world):
    """(micro batch of a rank, accumulation steps)"""
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    train, micro, steps = (top.get(name) for name in names)
    ranks = f" x {world} ranks" if world > 1 else ""
    if train is None:
        return micro or 1, steps or 1
    if micro is None:
        steps = steps or 1
        if train % (steps * world):
            raise ConfigError(f"train_batch_size {train} is not a multiple of gradient_accumulation_steps {steps}{ranks}")
        return train // (steps * world), steps
    if steps is None:
        if train % (micro * world):
            raise ConfigError(f"train_batch_size {train} is not a multiple of train_micro_batch_size_per_gpu {micro}{ranks}")
        return micro, train // (micro * world)
    if train != micro * steps * world:
        raise ConfigError(
            f"train_batch_size {train} is not train_micro_batch_size_per_gpu {micro} x "
            f"gradient_accumulation_steps {steps}{ranks}"
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


def _tag_validation(mode):
    if mode.lower() not in ("warn", "ignore", "fail"):
        raise ConfigError(f"checkpoint.tag_validation: must be one of Warn, Ignore, Fail, not {shown(mode)}")
    return mode.lower()


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


def load_config(config, world=None, model=None, scheduled=True):
    """Reads a DeepSpeed configuration: a dict, the path of a JSON or HJSON file, or the JSON in URL-safe base64. world: how
    many ranks share the batch; None: as many as torch.distributed has, or the launcher says. model: whose configuration "auto"
    values may follow. scheduled: false: where the configuration has no optimizer, its scheduler is not looked at.
    Errors: ConfigError, naming the file and the key."""
    world = world_size() if world is None else world
    given, source = read(config)
    try:
        return _config_of(given, world, model, scheduled)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}" if source else str(error)) from None


def _config_of(given, world, model, scheduled):
    notes = []
    as_given = given
    if isinstance(given, dict):
        if not scheduled and not given.get("optimizer") and given.get("scheduler"):
            given = {key: value for key, value in given.items() if key != "scheduler"}
            notes.append("scheduler: no effect, as there is no optimizer")
        if isinstance(given.get("zero_optimization"), bool):
            given = {**given, "zero_optimization": {"stage": int(given["zero_optimization"])}}  # an old form
        if given.get("steps_per_print") == math.inf and dropin.is_active():  # as Accelerate writes it
            given = {**given, "steps_per_print": None}
    top = _walk(auto_values.resolved(given, model, notes), KEYS, "", notes)
    micro, steps = _batches(top, world)
    dtype, loss_scale = _precision(top)
    zero = top.get("zero_optimization", {})
    if world > 1 and zero.get("stage", 0) < 3 and zero.get("offload_param", {}).get("device") == "nvme":
        notes.append(
            "zero_optimization.offload_param.device: at stages 0 to 2 parameters go to RAM and no further, as ranks gather them there"
        )
    own = dict(top.get("sluice", {}))
    if "keep_every" in own.get("checkpoint", {}) and "keep_last" not in own["checkpoint"]:
        raise ConfigError("sluice.checkpoint.keep_every: needs keep_last, the number of checkpoints that are kept besides")
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
        tag_validation=_tag_validation(top.get("checkpoint", {}).get("tag_validation", "Warn")),
        own=own,
        given=as_given,
        notes=tuple(notes),
    )
