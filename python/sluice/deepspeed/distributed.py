"""Ranks: this version has one. DeepSpeed's entry points are here, and refuse more than one by name."""

import os

import torch


def check_single_rank():
    """Errors: RuntimeError if the environment (WORLD_SIZE of torchrun) or torch.distributed has more than one rank."""
    world = int(os.environ.get("WORLD_SIZE") or 1)
    source = "WORLD_SIZE"
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        world, source = torch.distributed.get_world_size(), "torch.distributed"
    if world > 1:
        raise RuntimeError(
            f"{source} says {world} ranks: this version of Sluice has no collectives and trains with one; "
            "each rank would train a model of its own. Start one process"
        )


def init_distributed(
    dist_backend=None,
    auto_mpi_discovery=True,
    distributed_port=None,
    verbose=True,
    timeout=None,
    init_method=None,
    dist_init_required=None,
    config=None,
    rank=-1,
    world_size=-1,
):
    """DeepSpeed's call. With one rank there is nothing to set up. Errors: RuntimeError with more than one."""
    if world_size > 1:
        raise RuntimeError(f"world_size {world_size}: this version of Sluice has no collectives; start one process")
    check_single_rank()


def add_config_arguments(parser):
    """Adds --deepspeed and --deepspeed_config to an argparse parser; initialize(args=...) reads the latter."""
    group = parser.add_argument_group("Sluice", "under DeepSpeed's names")
    group.add_argument("--deepspeed", action="store_true", help="accepted for DeepSpeed's sake")
    group.add_argument("--deepspeed_config", default=None, type=str, help="configuration (JSON) for initialize()")
    return parser
