"""DeepSpeed's JSON, read for Sluice.

Every key that DeepSpeed knows is honoured, or accepted with a reason why it has no effect here (Config.notes), or refused
with what to use instead. An unknown key is an error that names the nearest known one. "auto" means the default. Keys of
Sluice's own stand under "sluice".
"""

import dataclasses
import difflib
import json
import os
import re

_SIZE = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*$")
_FACTORS = {"": 1, "b": 1, "k": 1 << 10, "kib": 1 << 10, "m": 1 << 20, "mib": 1 << 20, "g": 1 << 30, "gib": 1 << 30}
_FACTORS.update({"t": 1 << 40, "tib": 1 << 40, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12})


class ConfigError(ValueError):
    """The configuration can't be used; the message names the key and what to do."""


def parse_bytes(value, name="size"):
    """512 -> 512, "512MiB" -> 536870912. None stays None."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    match = _SIZE.match(value) if isinstance(value, str) else None
    if match is None or match.group(2).lower() not in _FACTORS:
        raise ConfigError(f"{name}: {value!r} is not a size; write it like 512MiB, 1.5GiB or 1000000")
    return round(float(match.group(1)) * _FACTORS[match.group(2).lower()])


# How a key is treated: ("use",), ("note", reason), ("refuse", advice; only if set to something other than `off`).
_USE = ("use",)


def _note(reason):
    return ("note", reason)


def _refuse(advice, *off):
    return ("refuse", advice, off)


_ONE_RANK = _note("it has no effect with a single rank")
_TRACE = _note("the schedule follows the trace and the budgets; set sluice.hbm instead")
_DEBUG = _note("sluice.Engine.report() and write_trace() tell more")
_CHECKPOINTS = _note("checkpoints are not written through this configuration")

_OFFLOAD_COMMON = {
    "device": _USE,
    "nvme_path": _USE,
    "pin_memory": _note("the arenas are pinned by design"),
    "buffer_count": _note("the number of buffers follows the pinned budget"),
}

_KEYS = {
    "train_batch_size": _USE,
    "train_micro_batch_size_per_gpu": _USE,
    "gradient_accumulation_steps": _USE,
    "gradient_clipping": _USE,
    "steps_per_print": _USE,
    "zero_allow_untested_optimizer": _note("AdamW is the library's own"),
    "zero_force_ds_cpu_optimizer": _note("AdamW is the library's own"),
    "managed_gradient_accumulation": _refuse("false is not supported: call step() once per micro-step", True),
    "prescale_gradients": _ONE_RANK,
    "gradient_predivide_factor": _ONE_RANK,
    "gradient_allreduce_op": _ONE_RANK,
    "communication_data_type": _ONE_RANK,
    "disable_allgather": _ONE_RANK,
    "sparse_gradients": _note("sparse gradients are made dense"),
    "wall_clock_breakdown": _DEBUG,
    "memory_breakdown": _DEBUG,
    "dump_state": _DEBUG,
    "dataloader_drop_last": _USE,
    "checkpoint": _CHECKPOINTS,
    "activation_checkpointing": _note("use torch.utils.checkpoint in the model"),
    "amp": _refuse("use bf16 or fp16 instead", {"enabled": False}),
    "torch_autocast": _refuse("wrap the forward in torch.autocast instead", {"enabled": False}),
    "data_types": {"grad_accum_dtype": _USE},
    "aio": {
        "block_size": _note("transfers are chunks: set sluice.chunk_elements"),
        "queue_depth": _USE,
        "intra_op_parallelism": _note("one thread keeps the queue full"),
        "single_submit": _note("at most two transfers are submitted per call"),
        "overlap_events": _note("the queue is always refilled as transfers end"),
        "use_gds": _refuse("GPUDirect Storage is not used: leave it out", False),
    },
    "fp16": {
        "enabled": _USE,
        "auto_cast": _refuse("cast the inputs in the model instead", False),
        "loss_scale": _USE,
        "initial_scale_power": _USE,
        "loss_scale_window": _USE,
        "hysteresis": _USE,
        "consecutive_hysteresis": _USE,
        "min_loss_scale": _USE,
        "fp16_master_weights_and_grads": _refuse("states are fp32: leave it out", False),
    },
    "bf16": {
        "enabled": _USE,
        "immediate_grad_update": _note("gradients leave as soon as they are there"),
        "check_grad_overflow": _note("a step with non-finite gradients is always skipped"),
        "bf16_master_weights_and_grads": _refuse("states are fp32: leave it out", False),
        "bf16_optimizer_states": _refuse("states are fp32: leave it out", False),
    },
    "optimizer": {"type": _USE, "params": _USE, "legacy_fusion": _note("there is one fused pass")},
    "scheduler": _refuse("pass lr_scheduler=... to sluice.initialize(); any torch.optim.lr_scheduler works", None),
    "zero_optimization": {
        "stage": _USE,
        "offload_optimizer": {
            **_OFFLOAD_COMMON,
            "pipeline_read": _note("reads are always ahead"),
            "pipeline_write": _note("writes are always behind"),
            "fast_init": _note("states are written once at start in any case"),
            "ratio": _refuse("a part of the optimizer on the GPU is not supported: leave it out", 1.0, 1),
            "super_offload": _refuse("updates always run under the next forward: leave it out", False),
            "cpuadam_cores_perc": _note("set sluice.workers"),
        },
        "offload_param": {
            **_OFFLOAD_COMMON,
            "buffer_size": _note("set sluice.hbm and sluice.pinned"),
            "max_in_cpu": _note("set sluice.pinned"),
        },
        "contiguous_gradients": _note("gradients are always contiguous in pinned memory"),
        "overlap_comm": _ONE_RANK,
        "reduce_scatter": _ONE_RANK,
        "reduce_bucket_size": _ONE_RANK,
        "use_multi_rank_bucket_allreduce": _ONE_RANK,
        "allgather_partitions": _ONE_RANK,
        "allgather_bucket_size": _ONE_RANK,
        "round_robin_gradients": _ONE_RANK,
        "use_all_reduce_for_fetch_params": _ONE_RANK,
        "allgather_sequential": _ONE_RANK,
        "sub_group_size": _note("states move in chunks: set sluice.chunk_elements"),
        "prefetch_bucket_size": _TRACE,
        "param_persistence_threshold": _USE,
        "model_persistence_threshold": _TRACE,
        "max_live_parameters": _TRACE,
        "max_reuse_distance": _TRACE,
        "module_granularity_threshold": _TRACE,
        "leaf_module": _TRACE,
        "log_trace_cache_warnings": _DEBUG,
        "enable_sanity_checks": _note("checks are always on"),
        "gather_16bit_weights_on_model_save": _note("state_dict() always gathers"),
        "ignore_unused_parameters": _note("parameters without gradient are left alone"),
        "load_from_fp32_weights": _CHECKPOINTS,
        "elastic_checkpoint": _CHECKPOINTS,
        "pipeline_loading_checkpoint": _CHECKPOINTS,
        "override_module_apply": _note("sluice.init() serves apply()"),
        "memory_efficient_linear": _note("linear layers are PyTorch's own"),
        "legacy_stage1": _refuse("leave it out", False),
        "cpu_offload": _refuse('write "offload_optimizer": {"device": "cpu"}', False),
        "cpu_offload_param": _refuse('write "offload_param": {"device": "cpu"}', False),
        "cpu_offload_use_pin_memory": _note("the arenas are pinned by design"),
        "zenflow": _refuse("ZenFlow is not offered: leave it out", None),
        "zero_hpz_partition_size": _refuse("ZeRO++ is not offered: leave it out", 1),
        "zero_quantized_weights": _refuse("ZeRO++ is not offered: leave it out", False),
        "zero_quantized_nontrainable_weights": _refuse("ZeRO++ is not offered: leave it out", False),
        "zero_quantized_gradients": _refuse("ZeRO++ is not offered: leave it out", False),
        "zeropp_loco_param": _refuse("ZeRO++ is not offered: leave it out", None),
        "mics_shard_size": _refuse("MiCS is not offered: leave it out", -1),
        "mics_hierarchical_params_gather": _refuse("MiCS is not offered: leave it out", False),
        "save_muon_momentum_buffer_in_memory": _refuse("Muon is not offered: leave it out", False),
    },
    "sluice": {
        "device": _USE,
        "hbm": _USE,
        "pinned": _USE,
        "nvme": _USE,
        "nvme_path": _USE,
        "workers": _USE,
        "executor": _USE,
        "io_engine": _USE,
        "io_depth": _USE,
        "chunk_elements": _USE,
        "unit_elements": _USE,
        "overlap": _USE,
        "link_bytes_per_second": _USE,
        "trace_spans": _USE,
        "library": _USE,
        "simulated_seed": _USE,
    },
}
_ALIASES = {"bfloat16": "bf16", "train_micro_batch_size": "train_micro_batch_size_per_gpu"}
_ADAM_PARAMS = {"lr", "betas", "eps", "weight_decay", "bias_correction", "adam_w_mode", "torch_adam", "amsgrad"}


@dataclasses.dataclass(frozen=True)
class Config:
    """What the engine needs. Sizes in bytes; None: chosen by the library."""

    micro_batch: int = 1
    accumulation: int = 1
    clip_norm: float = 1.0
    dtype: str = "fp32"  # of parameters in compute: fp32, bf16, fp16
    grad_dtype: str | None = None  # None: as dtype
    loss_scale: dict = dataclasses.field(default_factory=dict)  # fp16 keys
    optimizer: dict | None = None  # lr, betas, eps, weight_decay, l2_decay, bias_correction
    offload_optimizer: str = "none"
    offload_param: str = "none"
    nvme_paths: tuple = ()
    persistence_threshold: int | None = None
    queue_depth: int | None = None
    drop_last: bool = False
    steps_per_print: int | None = None
    own: dict = dataclasses.field(default_factory=dict)  # the "sluice" section
    notes: tuple = ()  # "key: reason" of every key accepted without effect


def _no_duplicates(pairs):
    result = {}
    for key, value in pairs:
        if key in result:
            raise ConfigError(f"key {key!r} is given twice")
        result[key] = value
    return result


def load_file(path):
    """The dict that a JSON file holds. Errors: ConfigError."""
    try:
        with open(path) as file:
            return json.load(file, object_pairs_hook=_no_duplicates)
    except FileNotFoundError:
        raise ConfigError(f"config file {os.fspath(path)} does not exist") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"config file {os.fspath(path)} is not JSON: {error}") from None


def _load(config):
    if isinstance(config, dict):
        return config
    if isinstance(config, (str, os.PathLike)):
        return load_file(config)
    raise ConfigError(f"config must be a dict or the path of a JSON file, not {type(config).__name__}")


def _canonical(key, known):
    key = _ALIASES.get(key, key)
    if key not in known and key.startswith("stage3_"):
        return key[len("stage3_") :]
    return key


def _walk(given, known, path, notes):
    """The honoured keys of one section, defaults left out."""
    if not isinstance(given, dict):
        raise ConfigError(f"{path or 'the config'}: must be an object, not {given!r}")
    result = {}
    for original, value in given.items():
        key = _canonical(original, known)
        where = f"{path}.{original}" if path else original
        if key not in known:
            near = difflib.get_close_matches(original, list(known), n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known here are {', '.join(sorted(known))}"
            raise ConfigError(f"{where}: unknown key{hint}")
        if key in result:
            raise ConfigError(f"{where}: given twice, under two names")
        if value == "auto":
            continue
        rule = known[key]
        if isinstance(rule, dict):
            if value is not None:
                result[key] = _walk(value, rule, where, notes)
        elif rule[0] == "use":
            result[key] = value
        elif rule[0] == "note":
            notes.append(f"{where}: {rule[1]}")
        elif not any(value == off and isinstance(value, bool) == isinstance(off, bool) for off in rule[2]):
            raise ConfigError(f"{where}: {rule[1]}")
    return result


def _number(section, key, path, default, kind=float, low=None):
    value = section.get(key, default)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or (kind is int and value != int(value)):
        raise ConfigError(f"{path}{key}: must be a number, not {value!r}")
    if low is not None and value < low:
        raise ConfigError(f"{path}{key}: must be at least {low}, not {value!r}")
    return kind(value)


def _batches(top):
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    train, micro, steps = (_number(top, name, "", None, int, 1) for name in names)
    if train is None and micro is None:
        return 1, steps or 1
    if train is None:
        steps = steps or 1
    elif micro is None:
        steps = steps or 1
        if train % steps:
            raise ConfigError(f"train_batch_size {train} is not a multiple of gradient_accumulation_steps {steps}")
        micro = train // steps
    elif steps is None:
        if train % micro:
            raise ConfigError(f"train_batch_size {train} is not a multiple of train_micro_batch_size_per_gpu {micro}")
        steps = train // micro
    elif train != micro * steps:
        raise ConfigError(
            f"train_batch_size {train} is not train_micro_batch_size_per_gpu {micro} x gradient_accumulation_steps {steps}"
        )
    return micro, steps


def _optimizer(section, notes):
    if section is None:
        return None
    kind = str(section.get("type", "AdamW")).lower()
    if kind not in ("adam", "adamw"):
        raise ConfigError(f"optimizer.type: {section.get('type')!r} is not offered; use AdamW or Adam")
    params = section.get("params") or {}
    for key in params:
        if key == "max_grad_norm":
            raise ConfigError("optimizer.params.max_grad_norm: use gradient_clipping instead")
        if key not in _ADAM_PARAMS:
            near = difflib.get_close_matches(key, sorted(_ADAM_PARAMS), n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"optimizer.params.{key}: unknown key{hint}")
    params = {key: value for key, value in params.items() if value != "auto"}
    if params.get("amsgrad"):
        raise ConfigError("optimizer.params.amsgrad: not offered; leave it out")
    if "torch_adam" in params:
        notes.append("optimizer.params.torch_adam: AdamW is the library's own")
    path = "optimizer.params."
    betas = params.get("betas", (0.9, 0.999))
    if not isinstance(betas, (list, tuple)) or len(betas) != 2:
        raise ConfigError(f"{path}betas: must be two numbers, not {betas!r}")
    decoupled = kind == "adamw" or bool(params.get("adam_w_mode", True))
    return {
        "lr": _number(params, "lr", path, 1e-3, low=0),
        "betas": (float(betas[0]), float(betas[1])),
        "eps": _number(params, "eps", path, 1e-8, low=0),
        # DeepSpeed's AdamW defaults to 0.01 through torch; its Adam to 0.
        "weight_decay": _number(params, "weight_decay", path, 0.01 if kind == "adamw" else 0.0, low=0),
        "l2_decay": not decoupled,
        "bias_correction": bool(params.get("bias_correction", True)),
    }


def _offload(zero, key):
    section = zero.get(key) or {}
    device = section.get("device") or "none"
    if device not in ("none", "cpu", "nvme"):
        raise ConfigError(f"zero_optimization.{key}.device: must be none, cpu or nvme, not {device!r}")
    return device, section.get("nvme_path")


def load_config(config):
    """Reads a DeepSpeed configuration (dict, or path of a JSON file). Errors: ConfigError."""
    notes = []
    top = _walk(_load(config), _KEYS, "", notes)
    micro, steps = _batches(top)
    fp16, bf16 = top.get("fp16", {}), top.get("bf16", {})
    if fp16.get("enabled") and bf16.get("enabled"):
        raise ConfigError("fp16.enabled and bf16.enabled exclude each other")
    dtype = "fp16" if fp16.get("enabled") else "bf16" if bf16.get("enabled") else "fp32"
    grad_dtype = top.get("data_types", {}).get("grad_accum_dtype")
    if grad_dtype not in (None, "fp32", "bf16", "fp16"):
        raise ConfigError(f"data_types.grad_accum_dtype: must be fp32, bf16 or fp16, not {grad_dtype!r}")
    zero = top.get("zero_optimization", {})
    stage = _number(zero, "stage", "zero_optimization.", 0, int, 0)
    if stage > 3:
        raise ConfigError(f"zero_optimization.stage: must be 0 to 3, not {stage}")
    optimizer_device, optimizer_path = _offload(zero, "offload_optimizer")
    param_device, param_path = _offload(zero, "offload_param")
    own = dict(top.get("sluice", {}))
    paths = own.pop("nvme_path", None) or [p for p in (optimizer_path, param_path) if p]
    paths = tuple(dict.fromkeys([paths] if isinstance(paths, (str, os.PathLike)) else paths))
    if "nvme" in (optimizer_device, param_device) and not paths:
        raise ConfigError('device "nvme" needs nvme_path, a directory on the drive to use')
    for key in ("hbm", "pinned", "nvme"):
        own[key] = parse_bytes(own.get(key), f"sluice.{key}")
    return Config(
        micro_batch=micro,
        accumulation=steps,
        clip_norm=_number(top, "gradient_clipping", "", 1.0, low=0),
        dtype=dtype,
        grad_dtype=grad_dtype,
        loss_scale={key: value for key, value in fp16.items() if key != "enabled"} if dtype == "fp16" else {},
        optimizer=_optimizer(top.get("optimizer"), notes),
        offload_optimizer=optimizer_device,
        offload_param=param_device,
        nvme_paths=paths,
        persistence_threshold=_number(zero, "param_persistence_threshold", "zero_optimization.", None, int, 0),
        queue_depth=_number(top.get("aio", {}), "queue_depth", "aio.", None, int, 1),
        drop_last=bool(top.get("dataloader_drop_last", False)),
        steps_per_print=_number(top, "steps_per_print", "", None, int, 1),
        own=own,
        notes=tuple(notes),
    )
