"""Keeps a module's parameters on the tiers: brings a unit into HBM around its module's forward, and again where
backward needs it, and hands gradients over as they arrive.

While a unit is acquired, its parameters' `data` are views of its slot. Otherwise `data` is a NaN expanded to the
parameter's shape: shape and `.grad` work, reads give NaN, in-place writes raise. Autograd saves views of weights;
they are packed as (unit, offset, size, stride) and unpacked wherever the unit is then. A slot is not reused while any
tensor over it is alive (the library counts), so packing only shortens the time a slot is held.

Threads: forward and backward of one engine run one after the other; autograd's threads are fine.
"""

import collections
import ctypes
import threading

import torch

from . import _abi

DTYPES = {_abi.F32: torch.float32, _abi.BF16: torch.bfloat16, _abi.F16: torch.float16}
_PENDING_BYTES_MAX = 64 << 20  # of gradients whose hand-over has not ended

_capsule_new = ctypes.pythonapi.PyCapsule_New
_capsule_new.restype = ctypes.py_object
_capsule_new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


def placeholder(shape, dtype):
    """What a released parameter's data is."""
    return torch.full((), float("nan"), dtype=dtype).expand(shape)


Packed = collections.namedtuple("Packed", "unit offset size stride")


class Attached:
    """units: list of units.Unit; tensor_base[u]: the number of the unit's first tensor in the runtime."""

    def __init__(self, runtime, units, brackets, dtype):
        self._runtime = runtime
        self._units = units
        self._dtype = dtype
        self._lock = threading.RLock()
        self._places = []  # by unit: [(parameter, offset, elements, shape)]
        self._count = [0] * len(units)  # brackets that hold the unit now
        self._kept = set()  # units that backward holds
        self._flat = {}  # unit -> its slot as a tensor, while acquired
        self._unit_at = {}  # address of a slot -> unit, while acquired
        self._grads_left = [0] * len(units)
        self._pending = collections.deque()  # (ticket, gradient)
        self._pending_bytes = 0
        self.tensors = {}  # id of Parameter -> tensor number
        self._handles = []

        number = 0
        for index, unit in enumerate(units):
            places = []
            for _, parameter in unit.parameters:
                info = runtime.tensor_info(number)
                places.append((parameter, info.offset, info.elements, parameter.shape))
                self.tensors[id(parameter)] = number
                hook = self._make_grad_hook(index, number)
                if parameter.requires_grad:
                    self._handles.append(parameter.register_post_accumulate_grad_hook(hook))
                number += 1
            self._places.append(places)
        for bracket in brackets:
            self._handles.append(
                bracket.module.register_forward_pre_hook(self._make_enter(bracket.units), prepend=True)
            )
            self._handles.append(
                bracket.module.register_forward_hook(self._make_leave(bracket.units), always_call=True)
            )

    def remove(self):
        """Takes the hooks off. Parameters stay as they are."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    # ---- Forward

    def _make_enter(self, units):
        def enter(module, args):
            done = []
            try:
                for unit in units:
                    self._enter(unit)
                    done.append(unit)
            except BaseException:
                for unit in reversed(done):
                    self._leave(unit)
                raise

        return enter

    def _make_leave(self, units):
        def leave(module, args, output):
            for unit in reversed(units):
                self._leave(unit)

        return leave

    def _acquire(self, unit):
        if unit in self._flat:
            return
        self._runtime.acquire(unit)
        pointer = self._runtime.unit_view(unit)
        flat = torch.utils.dlpack.from_dlpack(_capsule_new(pointer, b"dltensor", None))
        self._flat[unit] = flat
        self._unit_at[flat.data_ptr()] = unit

    def _release_if_unused(self, unit):
        if self._count[unit] > 0 or unit in self._kept:
            return
        flat = self._flat.pop(unit, None)
        if flat is None:
            return
        del self._unit_at[flat.data_ptr()]
        del flat
        self._runtime.release(unit)

    def _enter(self, unit):
        with self._lock:
            self._acquire(unit)
            self._count[unit] += 1
            if self._count[unit] > 1:
                return
            flat = self._flat[unit]
            for parameter, offset, elements, shape in self._places[unit]:
                parameter.data = flat.narrow(0, offset, elements).view(shape)

    def _leave(self, unit):
        with self._lock:
            if self._count[unit] == 0:  # the pre-hook failed
                return
            self._count[unit] -= 1
            if self._count[unit] > 0:
                return
            self.hide(unit)
            self._release_if_unused(unit)

    def hide(self, unit):
        """Gives the unit's parameters their placeholders."""
        for parameter, _, _, shape in self._places[unit]:
            parameter.data = placeholder(shape, self._dtype)

    # ---- Backward

    def saved_tensors_hooks(self):
        """For the whole of a forward pass."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def _pack(self, tensor):
        if tensor.dtype != self._dtype or tensor.layout != torch.strided or tensor.device.type != "cpu":
            return tensor
        unit = self._unit_at.get(tensor.untyped_storage().data_ptr())
        if unit is None:
            return tensor
        return Packed(unit, tensor.storage_offset(), tensor.size(), tensor.stride())

    def _unpack(self, packed):
        if not isinstance(packed, Packed):
            return packed
        with self._lock:
            if packed.unit not in self._kept:
                self._acquire(packed.unit)
                self._kept.add(packed.unit)
            return self._flat[packed.unit].as_strided(packed.size, packed.stride, packed.offset)

    def begin_backward(self):
        for index, unit in enumerate(self._units):
            self._grads_left[index] = sum(1 for _, p in unit.parameters if p.requires_grad)

    def end_backward(self):
        """Releases what backward still holds, also after an exception."""
        with self._lock:
            for unit in list(self._kept):
                self._kept.discard(unit)
                self._release_if_unused(unit)

    def _make_grad_hook(self, unit, tensor):
        def on_grad(parameter):
            gradient = parameter.grad
            parameter.grad = None
            with self._lock:
                self._hand_over(tensor, gradient)
                del gradient
                self._grads_left[unit] -= 1
                if self._grads_left[unit] == 0 and unit in self._kept:
                    self._kept.discard(unit)
                    self._release_if_unused(unit)

        return on_grad

    def _hand_over(self, tensor, gradient):
        gradient = gradient.detach()
        if gradient.is_sparse:
            gradient = gradient.to_dense()
        gradient = gradient.contiguous()
        ticket = self._runtime.grad(tensor, gradient.data_ptr(), gradient.numel())
        self._pending.append((ticket, gradient))
        self._pending_bytes += gradient.nbytes
        self._reap(wait_for=0 if self._pending_bytes <= _PENDING_BYTES_MAX else 1)

    def _reap(self, wait_for):
        """Drops gradients whose hand-over has ended; waits for the first `wait_for` of them."""
        while self._pending:
            ticket, gradient = self._pending[0]
            if wait_for > 0:
                self._runtime.wait(ticket)
                wait_for -= 1
            elif not self._runtime.done(ticket):
                return
            self._pending.popleft()
            self._pending_bytes -= gradient.nbytes

    def finish_gradients(self):
        """Waits until all gradients were taken over."""
        with self._lock:
            self._reap(wait_for=len(self._pending))
