"""Sluice: training with parameters and optimizer states on HBM, pinned RAM and NVMe.

    engine, optimizer, loader, scheduler = sluice.initialize(model=model, config="ds_config.json")
    for batch in data:
        loss = engine(batch)
        engine.backward(loss)
        engine.step()
"""

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
from .config import ConfigError
from .engine import Engine, initialize
from .init import init

__all__ = [
    "ConfigError",
    "DataLoss",
    "Engine",
    "FailedPrecondition",
    "InvalidArgument",
    "NotFound",
    "PermissionDenied",
    "ResourceExhausted",
    "SluiceError",
    "Unavailable",
    "doctor",
    "init",
    "initialize",
    "version",
]


def version():
    """The library's version."""
    return Library.default().version()


def doctor(path=None):
    """What this machine has, what Sluice would choose, and advice, as a dict. path: a directory for swap files."""
    return Library.default().doctor(path)
