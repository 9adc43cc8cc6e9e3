"""DeepSpeed's activation checkpointing under its name, over torch.utils.checkpoint."""

import torch.utils.checkpoint

_configured = False


def checkpoint(function, *args):
    """Computes function(*args) without saving activations; backward computes it again. (The form that torch calls
    non-reentrant.)"""
    return torch.utils.checkpoint.checkpoint(function, *args, use_reentrant=False)


def configure(
    mpu_,
    deepspeed_config=None,
    partition_activations=None,
    contiguous_checkpointing=None,
    num_checkpoints=None,
    checkpoint_in_cpu=None,
    synchronize=None,
    profile=None,
):
    """Accepted: with one rank, and activations where PyTorch puts them, none of these has an effect."""
    if mpu_ is not None:
        raise ValueError("mpu: model parallelism is not offered")
    global _configured
    _configured = True


def is_configured():
    return _configured


def reset():
    """Nothing is kept between iterations: nothing to do."""
