"""Groups of ranks, by DeepSpeed's names: all ranks train one model by its data, and there are no other groups."""

import torch.distributed as dist

from .. import comm, refusal


def get_data_parallel_world_size():
    """All ranks."""
    return comm.get_world_size()


def get_data_parallel_rank():
    """Among all."""
    return comm.get_rank()


def get_data_parallel_group():
    """Of all ranks."""
    return dist.group.WORLD


def get_model_parallel_world_size():
    """No model is split that way."""
    return 1


def get_model_parallel_rank():
    return 0


get_tensor_model_parallel_world_size = get_model_parallel_world_size
get_tensor_model_parallel_rank = get_model_parallel_rank
_get_data_parallel_world_size = get_data_parallel_world_size
_get_data_parallel_rank = get_data_parallel_rank
_get_data_parallel_group = get_data_parallel_group
_get_sequence_parallel_world_size = get_model_parallel_world_size
_get_sequence_parallel_rank = get_model_parallel_rank
_get_model_parallel_world_size = get_model_parallel_world_size
_get_model_parallel_rank = get_model_parallel_rank

_SEQUENCES = "sequence parallelism is not offered"
_EXPERTS = "expert parallelism is not offered: each rank runs the experts that its data needs"
_NOT_OFFERED = {
    "_get_sequence_parallel_group": _SEQUENCES,
    "_get_sequence_data_parallel_group": _SEQUENCES,
    "_get_expert_parallel_group": _EXPERTS,
    "_get_expert_data_parallel_group": _EXPERTS,
    "_create_expert_and_data_parallel": _EXPERTS,
    "_get_model_parallel_group": "tensor parallelism is not offered",
    "get_tensor_model_parallel_group": "tensor parallelism is not offered",
}

__getattr__ = refusal.of_names("sluice.utils.groups", _NOT_OFFERED)
