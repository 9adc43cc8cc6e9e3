"""Sluice: training with parameters and optimizer states on HBM, pinned RAM and NVMe.

    engine, optimizer, loader, scheduler = sluice.initialize(model=model, config="ds_config.json")
    for batch in data:
        loss = engine(batch)
        engine.backward(loss)
        engine.step()
"""

from . import _refusal, checkpointing, ops, schedulers, utils, zero
from ._abi import (
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
from .adamw import AdamW
from .config import ConfigError
from .distributed import add_config_arguments, init_distributed
from .engine import Engine, engine_of
from .init import init
from .initializing import initialize
from .streaming import Attachment, attach

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


# What DeepSpeed has under these names, and Sluice does not offer.
_NOT_OFFERED = {
    "OnDevice": "build the model under sluice.init()",
    "PipelineEngine": "pipeline parallelism is not offered",
    "PipelineModule": "pipeline parallelism is not offered",
    "pipe": "pipeline parallelism is not offered",
    "tp_model_init": "tensor parallelism is not offered",
    "module_inject": "tensor parallelism and kernel injection are not offered",
    "init_inference": "inference is model.eval() under torch.no_grad() with sluice.initialize()",
    "InferenceEngine": "inference is model.eval() under torch.no_grad() with sluice.initialize()",
    "moe": "DeepSpeed's expert layers are not offered; torch's own modules work",
    "comm": "one rank: there is nothing to exchange",
}

__getattr__ = _refusal.of_names(__name__, _NOT_OFFERED)
