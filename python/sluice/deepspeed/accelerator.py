"""The device that this process computes on, with the calls that programs make of DeepSpeed's accelerator. PyTorch answers."""

import os

import torch

from . import refusal


class Accelerator:
    """CUDA's where PyTorch finds a GPU, else the CPU's."""

    def __init__(self):
        self._name = "cuda" if torch.cuda.is_available() else "cpu"
        self._communication_backend_name = "nccl" if self._name == "cuda" else "gloo"

    def device_name(self, device_index=None):
        """cuda, cuda:1 or cpu."""
        return self._name if device_index is None or self._name == "cpu" else f"{self._name}:{int(device_index)}"

    def current_device_name(self):
        """Of this process."""
        return self.device_name(self.current_device())

    def current_device(self):
        """The GPU's number, or cpu."""
        return torch.cuda.current_device() if self._name == "cuda" else "cpu"

    def device(self, device_index=None):
        """A torch.device, to be entered."""
        return torch.device(self.device_name(device_index))

    def device_count(self):
        """GPUs; of CPUs, the ranks of this host."""
        return torch.cuda.device_count() if self._name == "cuda" else int(os.environ.get("LOCAL_WORLD_SIZE") or 1)

    def set_device(self, device_index):
        """Makes a GPU this process's."""
        if self._name == "cuda":
            torch.cuda.set_device(device_index)

    def communication_backend_name(self):
        """Of torch.distributed."""
        return self._communication_backend_name

    def is_available(self):
        return True

    def is_synchronized_device(self):
        """Whether operations have ended when their call returns."""
        return self._name == "cpu"

    def synchronize(self, device_index=None):
        """Waits for the device."""
        if self._name == "cuda":
            torch.cuda.synchronize(device_index)

    def empty_cache(self):
        """Of PyTorch's allocator."""
        if self._name == "cuda":
            torch.cuda.empty_cache()

    def memory_allocated(self, device_index=None):
        """Bytes of PyTorch's allocator that are in use."""
        return torch.cuda.memory_allocated(device_index) if self._name == "cuda" else 0

    def max_memory_allocated(self, device_index=None):
        """The most that there were."""
        return torch.cuda.max_memory_allocated(device_index) if self._name == "cuda" else 0

    def reset_peak_memory_stats(self, device_index=None):
        """max_memory_allocated() begins anew."""
        if self._name == "cuda":
            torch.cuda.reset_peak_memory_stats(device_index)

    def is_bf16_supported(self):
        return True

    def is_fp16_supported(self):
        return True

    def supported_dtypes(self):
        """That models compute in."""
        return [torch.float32, torch.float16, torch.bfloat16]

    def random(self):
        """PyTorch's module of generators."""
        return torch.random

    def manual_seed(self, seed):
        """Of the device's generator."""
        return (torch.cuda if self._name == "cuda" else torch).manual_seed(seed)

    manual_seed_all = manual_seed

    def pin_memory(self, tensor, align_bytes=1):
        """A copy that the device reads from directly; on the CPU the tensor itself."""
        return tensor.pin_memory() if self._name == "cuda" else tensor

    def on_accelerator(self, tensor):
        """Whether it is on such a device."""
        return tensor.device.type == self._name

    def visible_devices_envs(self):
        """Environment variables that choose devices."""
        return ["CUDA_VISIBLE_DEVICES"]


_accelerator = None


def get_accelerator():
    """That of this process."""
    global _accelerator
    if _accelerator is None:
        _accelerator = Accelerator()
    return _accelerator


def is_current_accelerator_supported():
    """Whether Sluice runs here: it does everywhere."""
    return True


__getattr__ = refusal.of_names("sluice.deepspeed.accelerator", {"set_accelerator": "Sluice chooses: set sluice.device in the configuration"})
