"""What the library is told of a configuration."""

import ctypes

import torch

from ..native import abi
from ..residency.precision import NUMBERS

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_TIERS = {"none": abi.HBM, "cpu": abi.PINNED, "nvme": abi.NVME}
_REDUCTIONS = {"ordered": 0, "library": 1}
_ENGINES = {"auto": 0, "io_uring": 1, "threads": 2, "libaio": 3}
_UNIT_ELEMENTS = 64 << 20  # at most
_RESIDENT_ELEMENTS = 16384  # units of at most so many stay in HBM, where the configuration doesn't say


def unit_sizes(config, itemsize):
    """Elements of a unit at most, and of tiny ones that are merged: those that stay in HBM either way. itemsize: bytes of a
    parameter in compute."""
    own, tiny = config.own, config.persistence_threshold
    if own.get("unit_elements"):
        return own["unit_elements"], 0
    tiny = _RESIDENT_ELEMENTS if tiny is None else tiny
    hbm = own.get("hbm")
    if config.offload_param == "none" or not hbm:
        return _UNIT_ELEMENTS, tiny
    return max(1, min(_UNIT_ELEMENTS, hbm // (4 * itemsize))), tiny


def library_options(config, world=None):
    """The abi.Options of a configuration. world: the ranks, if there are several."""
    own = config.own
    options = {
        "zero_stage": config.zero_stage,
        "param_dtype": NUMBERS[DTYPES[config.dtype]],
        "grad_dtype": NUMBERS[DTYPES[config.grad_dtype or config.dtype]],
        "lowest_param_tier": _TIERS[config.offload_param],
        "lowest_state_tier": _TIERS[config.offload_optimizer],
        "nvme_paths": config.nvme_paths,
        "io_engine": _choice("sluice.io_engine", own.get("io_engine", "auto"), _ENGINES),
        "io_depth": own.get("io_depth") or config.queue_depth or 0,
        "workers": own.get("workers") or 0,
        "chunk_elements": own.get("chunk_elements") or 0,
        "link_bytes_per_second": float(own.get("link_bytes_per_second") or 0),
        "overlap": int(own.get("overlap") is not False),
        "trace_spans_max": own.get("trace_spans") or 0,
        "reduction": _choice("sluice.reduction", own.get("reduction", "ordered"), _REDUCTIONS),
    }
    for key, field in (("hbm", "hbm_bytes"), ("pinned", "pinned_bytes"), ("nvme", "nvme_bytes")):
        if own.get(key) is not None:
            options[field] = own[key]
    if config.persistence_threshold is not None:
        options["resident_elements_max"] = config.persistence_threshold
    if config.dtype == "fp16":
        scale = config.loss_scale
        options["static_loss_scale"] = float(scale.get("loss_scale", 0))
        options["initial_scale_power"] = int(scale.get("initial_scale_power", 16))
        options["loss_scale_window"] = int(scale.get("loss_scale_window", 1000))
        options["hysteresis"] = int(scale.get("hysteresis", 2))
        options["consecutive_hysteresis"] = int(scale.get("consecutive_hysteresis", False))
        options["min_loss_scale"] = float(scale.get("min_loss_scale", 1))
    result = abi.Options(**options)
    if world is not None:
        result.rank, result.ranks = world.rank, world.size
        result.rank_timeout_ms = round(1e3 * (own.get("rank_timeout") or 0))
        result._tables = world.tables()  # which the library copies, and closes
        result.comm, result.comm_groups = ctypes.addressof(result._tables), len(result._tables)
        result._when_given = world.forget_tables
    return result


def _choice(name, value, choices):
    if value not in choices:
        raise ValueError(f"{name}: must be one of {', '.join(choices)}, not {value!r}")
    return choices[value]
