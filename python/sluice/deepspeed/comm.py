"""Ranks, under DeepSpeed's names: torch.distributed, which is set up as the launcher's environment says."""

import datetime

import torch.distributed as dist
from torch.distributed import (  # noqa: F401  for programs
    ReduceOp,
    all_gather,
    all_gather_into_tensor,
    all_gather_object,
    all_reduce,
    all_to_all_single,
    broadcast,
    broadcast_object_list,
    destroy_process_group,
    gather,
    irecv,
    is_available,
    isend,
    monitored_barrier,
    new_group,
    recv,
    reduce,
    reduce_scatter_tensor,
    scatter,
    send,
)

from ..collectives import initialise, is_initialised
from ..ranks import find_place
from . import dropin, refusal


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
    """DeepSpeed's call. Sets up torch.distributed where there are several ranks and nobody has; with one only for those who
    have asked for `deepspeed` itself (install()), as frameworks count on it. dist_backend: of the default group; Sluice's own are gloo's. Errors: RankError, a RuntimeError, naming the
    variables that contradict each other or are missing."""
    if dist_init_required is False:
        return
    timeout = datetime.timedelta(seconds=timeout) if isinstance(timeout, (int, float)) else timeout
    initialise(dist_backend, distributed_port, timeout, init_method, rank, world_size, alone=dropin.is_active())


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


def get_world_group():
    """All ranks."""
    return dist.group.WORLD


def get_global_rank(group=None, group_rank=0):
    """Among all ranks, of a rank of `group`."""
    return group_rank if group is None else dist.get_global_rank(group, group_rank)


def get_all_ranks_from_group(group=None):
    """Which of all ranks those of `group` are."""
    return list(range(get_world_size())) if group is None else dist.get_process_group_ranks(group)


_NOT_OFFERED = {
    "log_summary": "torch.profiler shows what is sent; Engine.report() has the bytes",
    "configure": "comms_logger is not offered: torch.profiler shows what is sent",
    "inference_all_reduce": "use all_reduce",
    "initialize_mesh_device": "use torch.distributed.device_mesh.init_device_mesh",
}

__getattr__ = refusal.of_names("sluice.comm", _NOT_OFFERED)
