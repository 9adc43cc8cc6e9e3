"""Where the model computes: on the host, or on a CUDA GPU through PyTorch.

On a GPU the HBM tier is one allocation of PyTorch's allocator, so that both share the GPU's memory; the library gives it
back when the last tensor over it has died. Streams are PyTorch's current ones at the time of each call.
"""

import ctypes
import logging
import re

import torch

from . import abi

_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype = ctypes.c_void_p
_capsule_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
_capsule_rename = ctypes.pythonapi.PyCapsule_SetName
_capsule_rename.restype = ctypes.c_int
_capsule_rename.argtypes = [ctypes.py_object, ctypes.c_char_p]
_USED = b"used_dltensor"  # the capsule no longer owns the tensor; it keeps a pointer to this name


class Host:
    """reason: why it was chosen."""

    kind = "host"
    torch = torch.device("cpu")

    def __init__(self, reason):
        self.reason = reason

    def stream(self):
        return None

    def prepare(self, spec, options):
        options.device = abi.DEVICE_HOST

    def taken(self):
        pass


class Cuda:
    """The GPU with number `index`, as PyTorch counts them."""

    kind = "cuda"

    def __init__(self, index, reason):
        self.torch = torch.device("cuda", index)
        self.reason = reason
        self._capsule = None

    def stream(self):
        """The calling thread's current stream, as an int."""
        return torch.cuda.current_stream(self.torch).cuda_stream

    def prepare(self, spec, options):
        """Allocates the HBM tier as planned, and puts it into the options. Errors: torch.OutOfMemoryError."""
        options.device, options.device_index = abi.DEVICE_CUDA, self.torch.index
        self._capsule = None  # of a runtime that could not be made: before there is more
        memory = torch.empty(spec.plan(options)["planned_bytes"]["hbm"], dtype=torch.uint8, device=self.torch)
        # The allocator orders reuse on this stream only, and the library's copies are not on it.
        torch.cuda.current_stream(self.torch).synchronize()
        self._capsule = torch.utils.dlpack.to_dlpack(memory)
        options.hbm_memory = _capsule_pointer(self._capsule, b"dltensor")

    def taken(self):
        """The runtime owns the memory now."""
        _capsule_rename(self._capsule, _USED)
        self._capsule = None


def choose(wanted, library=None, local_rank=None):
    """A Host or a Cuda for `wanted`: "auto", "host", "cuda" or "cuda:<number>". "auto" takes a GPU if PyTorch and the
    library can both use one. library: an abi.Library; none: the package's own. local_rank: among several ranks, this one's on its
    host: where nobody has chosen a GPU, it takes the one with that number, which becomes PyTorch's current one.
    Errors: ValueError, Unavailable."""
    match = re.fullmatch(r"(auto|host|cuda)|cuda:([0-9]{1,3})", str(wanted))
    if match is None:
        raise ValueError(f"sluice.device: must be auto, host, cuda or cuda:<number>, not {wanted!r}")
    name, number = match.group(1) or "cuda", match.group(2)
    if name == "host":
        return Host("asked for")
    if not torch.cuda.is_available():
        why = "PyTorch sees no GPU" if torch.version.cuda else "this PyTorch was built without CUDA"
        if name == "cuda":
            raise abi.Unavailable(f"device 'cuda' was asked for: {why}")
        return Host(why)
    index = int(number) if number else torch.cuda.current_device()
    if local_rank is not None and not number and index == 0 and local_rank < torch.cuda.device_count():
        index = local_rank
        torch.cuda.set_device(index)
        logging.getLogger("sluice").info("this rank takes GPU %d, by its number on this host", index)
    library = library or abi.Library.default()
    spec = abi.ModelSpec(library, [("probe", [("probe", 1, 0)])])
    try:
        kind = abi.DEVICE_CUDA if name == "cuda" else abi.DEVICE_AUTO
        chosen = spec.plan(abi.Options(device=kind, device_index=index))["device"]
    finally:
        spec.close()
    return Cuda(index, chosen["reason"]) if chosen["kind"] == "cuda" else Host(chosen["reason"])
