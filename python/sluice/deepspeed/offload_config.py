"""Names of what can be elsewhere, and where, as DeepSpeed's programs write them."""

import enum


class OffloadDeviceEnum(str, enum.Enum):
    """Of offload_param.device and offload_optimizer.device."""

    none = "none"
    cpu = "cpu"
    nvme = "nvme"


class OffloadStateTypeEnum(str, enum.Enum):
    """Of offload_states()."""

    optim_states = "optim_states"
    hp_params = "hp_params"
    lp_params = "lp_params"
    lp_grads = "lp_grads"
    contiguous_grad_buffer = "contiguous_grad_buffer"
