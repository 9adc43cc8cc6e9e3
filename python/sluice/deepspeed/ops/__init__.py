"""DeepSpeed's names for optimizers."""

from . import adam

__all__ = ["adam"]
