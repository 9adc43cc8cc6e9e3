"""Sluice: training with parameters and optimizer states on HBM, pinned RAM and NVMe.

    engine, optimizer, loader, scheduler = sluice.initialize(model=model, config="ds_config.json")
    for batch in data:
        loss = engine(batch)
        engine.backward(loss)
        engine.step()
"""

import importlib
import sys

from .adamw import AdamW
from .attachment import Attachment, attach
from .building import init
from .deepspeed import NOT_OFFERED as _NOT_OFFERED
from .deepspeed import checkpointing, comm, ops, schedulers, utils, zero
from .deepspeed import refusal as _refusal
from .deepspeed.command_line import add_config_arguments
from .deepspeed.comm import init_distributed
from .deepspeed.config import ConfigError
from .deepspeed.initializing import initialize
from .engine.engine import Engine, engine_of
from .native.abi import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    Library,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    SluiceError,
    Unavailable,
)

# Modules that programs and pickles name, by public path, and where they are. Either path is the same module.
_PATHS = {
    "checkpointing": "deepspeed.checkpointing",
    "comm": "deepspeed.comm",
    "config": "deepspeed.config",
    "copies": "residency.copies",
    "devices": "native.devices",
    "ops": "deepspeed.ops",
    "ops.adam": "deepspeed.ops.adam",
    "schedulers": "deepspeed.schedulers",
    "utils": "deepspeed.utils",
    "zero": "deepspeed.zero",
}


def _publish(path, place):
    """What the module defines says the public path, to pickle, help() and tracebacks."""
    module = importlib.import_module(f"{__name__}.{place}")
    for item in vars(module).values():
        if callable(item) and getattr(item, "__module__", None) == module.__name__:
            item.__module__ = f"{__name__}.{path}"
    sys.modules[f"{__name__}.{path}"] = module
    if "." not in path:
        globals()[path] = module


for _path, _place in _PATHS.items():
    _publish(_path, _place)

DeepSpeedEngine = Engine

__all__ = [
    "AdamW",
    "Attachment",
    "ConfigError",
    "DataLoss",
    "DeepSpeedEngine",
    "Engine",
    "FailedPrecondition",
    "InvalidArgument",
    "NotFound",
    "PermissionDenied",
    "ResourceExhausted",
    "SluiceError",
    "Unavailable",
    "add_config_arguments",
    "attach",
    "checkpointing",
    "comm",
    "doctor",
    "engine_of",
    "init",
    "init_distributed",
    "initialize",
    "ops",
    "schedulers",
    "utils",
    "version",
    "zero",
]


def version():
    """The library's version."""
    return Library.default().version()


def doctor(path=None):
    """What this machine has, what Sluice would choose, and advice, as a dict. path: a directory for swap files."""
    return Library.default().doctor(path)


__getattr__ = _refusal.of_names(__name__, _NOT_OFFERED)
