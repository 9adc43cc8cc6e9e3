"""Ranks, under DeepSpeed's names: torch.distributed, which is set up as the launcher's environment says."""

import datetime

import torch.distributed as dist

from ..collectives import initialise, is_initialised
from ..ranks import find_place


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
    """DeepSpeed's call. Sets up torch.distributed where there are several ranks and nobody has; with one there is nothing to
    set up. dist_backend: of the default group; Sluice's own are gloo's. Errors: RankError, a RuntimeError, naming the
    variables that contradict each other or are missing."""
    if dist_init_required is False:
        return
    timeout = datetime.timedelta(seconds=timeout) if isinstance(timeout, (int, float)) else timeout
    initialise(dist_backend, distributed_port, timeout, init_method, rank, world_size)


def is_initialized():
    """Whether torch.distributed has been set up."""
    return is_initialised()


def get_rank(group=None):
    """Of this process among all ranks, or those of `group`; 0 with one rank."""
    return dist.get_rank(group) if is_initialised() else find_place().rank


def get_world_size(group=None):
    """Ranks that there are, or those of `group`."""
    return dist.get_world_size(group) if is_initialised() else find_place().world


def get_local_rank():
    """Of this process among those of its host."""
    return find_place().local_rank


def barrier(group=None):
    """Returns when all ranks have called it; with one rank, at once."""
    if is_initialised():
        dist.barrier(group)
    elif find_place().world > 1:
        raise RuntimeError("barrier() before init_distributed() or initialize(): the ranks don't know each other yet")


def add_config_arguments(parser):
    """Adds --deepspeed and --deepspeed_config to an argparse parser; initialize(args=...) reads the latter."""
    group = parser.add_argument_group("Sluice", "under DeepSpeed's names")
    group.add_argument("--deepspeed", action="store_true", help="accepted for DeepSpeed's sake")
    group.add_argument("--deepspeed_config", default=None, type=str, help="configuration (JSON) for initialize()")
    return parser
