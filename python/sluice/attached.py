"""Keeps a module's parameters on the tiers: brings a unit into HBM around its module's forward, and again where
backward needs it, and hands gradients over as they arrive.

While a unit is entered, its parameters' `data` are views of its slot. Otherwise `data` is a NaN expanded to the
parameter's shape: shape and `.grad` work, reads give NaN, in-place writes raise (fill_ and its like when the unit is entered
next). A module may use a parameter of another (tied weights, an attention that reads its projection's weight): whatever is
looked up during forward is entered until the module that runs has ended.

Autograd saves views of weights; they are packed as (unit, generation, offset, size, stride) and unpacked wherever the unit
is then. Backward holds one unit at a time, the last one that was asked for. Where others' hooks come first, as in a region
that is recomputed or under save_on_cpu, they get views: of a Parameter itself, which they may keep, the data is a
placeholder when its module has ended. Recomputation may also begin inside a module, past its hooks
(`checkpoint(self._forward, x)`): what it looks up is an alias that keeps its memory. What protects memory is none of this:
a slot is not reused while any tensor over it is alive (the library counts).

Threads: forward and backward of one engine run one after the other; autograd's threads are fine.
"""

import collections
import ctypes
import sys
import threading
import weakref

import torch

from . import _abi, copies

DTYPES = {_abi.F32: torch.float32, _abi.BF16: torch.bfloat16, _abi.F16: torch.float16}

_capsule_new = ctypes.pythonapi.PyCapsule_New
_capsule_new.restype = ctypes.py_object
_capsule_new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


def placeholder(shape, dtype, device=None):
    """What a released parameter's data is."""
    return torch.full((), float("nan"), dtype=dtype, device=device).expand(shape)


def is_placeholder(tensor):
    one = tensor.numel() > 0 and tensor.untyped_storage().nbytes() == tensor.element_size()
    return one and bool(tensor.as_strided((), ()).isnan())


Packed = collections.namedtuple("Packed", "unit generation offset size stride")
Place = collections.namedtuple("Place", "parameter tensor offset elements shape")


# The latest of each model. Its hooks stay when its runtime is closed, and say so to whoever uses the model.
_attached = weakref.WeakKeyDictionary()


def _replace(module, attached):
    previous = _attached.get(module)
    if previous is not None:
        if previous.open:
            raise _abi.FailedPrecondition("the model is attached already: close that engine first")
        previous.remove()
    _attached[module] = attached


class _Parameters(dict):
    """A module's table of parameters, which is told when one is looked up, and what to give."""

    def __init__(self, parameters, look_up):
        super().__init__(parameters)
        self._look_up = look_up

    def __getitem__(self, name):
        parameter = super().__getitem__(name)
        return parameter if parameter is None else self._look_up(parameter)

    def __setitem__(self, name, parameter):
        super().__setitem__(name, original(parameter))

    def __reduce_ex__(self, protocol):
        return dict, (dict(self),)


# A region's policy must see the model's operations only, as often in recomputation as before.
_unseen = torch._C._DisableTorchDispatch


def _here():
    """Thread and backward that code runs in: each has hooks of its own for saved tensors."""
    return threading.get_ident(), torch._C._current_graph_task_id()


def _alias(parameter):
    """A tensor over the parameter's present memory, through which gradients go to it."""
    alias = torch.ops.aten.alias(parameter)
    alias._sluice_alias_of = parameter
    return alias


def original(parameter):
    """The Parameter, of what a look at a module's parameter may give."""
    return getattr(parameter, "_sluice_alias_of", parameter)


class _Asked:
    """An acquisition whose end was not seen. An interrupt may come between any two lines: 0 is the ticket of one that is
    not begun and of one that is over."""

    def __init__(self):
        self.ticket = _abi.Ticket()
        self._begun = False

    def begin(self, runtime, unit):
        if not self._begun and not self.ticket:
            runtime.start_acquire(unit, self.ticket)
        self._begun = True

    @property
    def begun(self):
        return self._begun or bool(self.ticket)


class Attached:
    """units: list of units.Unit. dtype: of parameters in compute; grad_dtype: gradients are handed over in.
    optimized(): ids of Parameters whose gradients are handed over, asked for once per backward; of others, `.grad`
    stays as PyTorch left it."""

    def __init__(self, runtime, units, brackets, dtype, grad_dtype, optimized):
        self._runtime = runtime
        self._units = units
        self._dtype = dtype
        self._device = runtime.device.torch if runtime.device is not None else torch.device("cpu")
        self._grad_dtype = grad_dtype
        self._optimized = optimized
        self._wanted = None  # what it answered in this backward
        self._lock = threading.RLock()
        self._places = []  # by unit: [Place]
        self._unit_of = {}  # id of Parameter -> unit
        self._place_of = {}  # id of Parameter -> Place
        self._count = [0] * len(units)  # how often the unit is entered now
        self._running = []  # by module that runs forward now: the units it has entered
        self._pushed = []  # by module that runs forward now: who pushed hooks for saved tensors (_here()), or None
        self._held = None  # the unit that backward holds
        self._asked = {}  # unit -> _Asked
        self._flat = {}  # unit -> its slot as a tensor, while acquired
        self._unit_at = {}  # address of a slot -> unit, while acquired
        self._nans = [placeholder((), dtype, self._device) for _ in units]  # what placeholders are expanded from
        self._versions = [None] * len(units)  # of the unit's parameters, when it was entered
        self._generation = [0] * len(units)  # how often the unit's values have changed
        self._touched = set()  # units with a gradient in this step
        self._hooked = set()  # tensors whose parameter has a gradient hook
        self.tensors = {}  # id of Parameter -> tensor number
        self._handles = []
        self._look_up_past_hooks = copies.Hook(self._look_up_in_backward)
        self._traceable = [self._look_up_past_hooks]  # what torch.compile would trace into
        self._modules = []  # weak references to those whose table of parameters is ours
        _replace(brackets[0].module, self)

        number = 0
        for index, unit in enumerate(units):
            places = []
            for _, parameter in unit.parameters:
                info = runtime.tensor_info(number)
                places.append(Place(parameter, number, info.offset, info.elements, parameter.shape))
                self._place_of[id(parameter)] = places[-1]
                self.tensors[id(parameter)] = number
                self._unit_of[id(parameter)] = index
                copies.intercept(parameter, runtime, number, dtype)
                number += 1
            self._places.append(places)
        for bracket in brackets:
            self._bracket(bracket)

    def _bracket(self, bracket):
        enter, leave = copies.Hook(self._make_enter(bracket.units)), copies.Hook(self._leave_module)
        module = bracket.module
        self._handles += [
            module.register_forward_pre_hook(enter, prepend=True),
            module.register_forward_hook(leave, always_call=True),
        ]
        self._traceable += [enter, leave]
        for child in module.modules():
            if child._parameters and not isinstance(child._parameters, _Parameters):
                child._parameters = _Parameters(child._parameters, self._look_up)
                self._modules.append(weakref.ref(child))
                hook = copies.fill_state_dict(self._runtime, self.tensors, self._dtype)
                self._handles.append(child.register_state_dict_post_hook(hook))

    @property
    def open(self):
        return self._runtime.open

    def remove(self):
        """Takes the hooks off. Parameters stay as they are."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for module in filter(None, (reference() for reference in self._modules)):
            module._parameters = dict(module._parameters)
        self._modules.clear()

    # ---- Forward

    def _make_enter(self, units):
        def enter(module, args):
            entered = []
            self._running.append(entered)  # _leave_module follows, whatever happens from here on
            self._pushed.append(self._push_hooks())
            for unit in units:
                self._enter(unit)
                entered.append(unit)

        return enter

    def _leave_module(self, module, args, output):
        if self._pushed and self._pushed.pop() is not None:
            torch._C._autograd._pop_saved_tensors_default_hooks()
        if self._running:
            for unit in reversed(self._running.pop()):
                self._leave(unit)

    def _look_up(self, parameter):
        if not self._running:
            return self._look_up_past_hooks(parameter)
        unit = self._unit_of.get(id(parameter))
        if unit is not None and self._count[unit] == 0:
            self._enter(unit)
            self._running[-1].append(unit)
        return parameter

    def _look_up_in_backward(self, parameter):
        unit = self._unit_of.get(id(parameter))
        if unit is None or torch._C._current_graph_task_id() < 0:  # backward does not run
            return parameter
        with self._lock, _unseen():
            if self._count[unit] > 0:
                return _alias(parameter)
            self._acquire(unit)
            self._hold(unit)
            try:
                self._show(unit, self._place_of[id(parameter)])
                return _alias(parameter)
            finally:
                self.hide_parameter(parameter)

    def _acquire(self, unit):
        if unit in self._flat:
            return
        if self._held is not None:
            self._let_go()
        asked = self._asked.setdefault(unit, _Asked())
        asked.begin(self._runtime, unit)
        try:
            self._runtime.wait(asked.ticket)
        except _abi.SluiceError:
            del self._asked[unit]
            raise
        pointer = self._runtime.unit_view(unit)
        flat = torch.utils.dlpack.from_dlpack(_capsule_new(pointer, b"dltensor", None))
        self._flat[unit] = flat
        self._unit_at[flat.data_ptr()] = unit
        del self._asked[unit]

    def _release_if_unused(self, unit):
        if self._count[unit] > 0 or unit == self._held:
            return
        flat = self._flat.pop(unit, None)
        if flat is None:
            return
        self._unit_at.pop(flat.data_ptr(), None)  # an interrupt may have come before it was there
        del flat
        self._runtime.release(unit)

    def _check_placeholder(self, unit):
        # On a GPU a look at the value would wait for everything before it.
        if self._device.type == "cpu" and not self._nans[unit].isnan():
            self._nans[unit].fill_(float("nan"))
            raise RuntimeError(
                f"a parameter of unit {self._units[unit].name!r} was written to while its values were elsewhere: nothing came "
                "of it"
            )

    def _enter(self, unit):
        with self._lock, _unseen():
            if self._count[unit] == 0:
                self._check_placeholder(unit)
            self._acquire(unit)
            self._count[unit] += 1
            if self._count[unit] > 1:
                return
            for place in self._places[unit]:
                self._show(unit, place)
            self._versions[unit] = [place.parameter._version for place in self._places[unit]]

    def _show(self, unit, place):
        parameter = place.parameter
        parameter.data = self._flat[unit].narrow(0, place.offset, place.elements).view(place.shape)
        if parameter.requires_grad and place.tensor not in self._hooked:
            self._hooked.add(place.tensor)
            hook = self._make_grad_hook(unit, place.tensor)
            self._handles.append(parameter.register_post_accumulate_grad_hook(hook))

    def _leave(self, unit):
        with self._lock, _unseen():
            self._count[unit] -= 1
            if self._count[unit] > 0:
                return
            written = [
                place.parameter._version != version for place, version in zip(self._places[unit], self._versions[unit])
            ]
            self.hide(unit)
            self._release_if_unused(unit)
            if any(written):
                name = self._units[unit].parameters[written.index(True)][0]
                raise RuntimeError(
                    f"parameter {name} was written to in forward, which would be lost: its value is the optimizer's; write it "
                    "between steps, within sluice.zero.GatheredParameters([parameter], modifier_rank=0)"
                )

    def hide(self, unit):
        """Gives the unit's parameters their placeholders."""
        for place in self._places[unit]:
            place.parameter.data = self._nans[unit].expand(place.shape)

    def hide_parameter(self, parameter):
        parameter.data = self._nans[self._unit_of[id(parameter)]].expand(parameter.shape)

    # ---- Backward

    def saved_tensors_hooks(self):
        """For the whole of a forward pass."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def _push_hooks(self):
        """Hooks for what is saved while a module runs, unless ours come first already."""
        if not torch._C._autograd._saved_tensors_hooks_is_enabled():
            return None
        top = torch._C._autograd._top_saved_tensors_default_hooks(True)
        if top is None:
            hooks = self._pack, self._unpack
        elif top[0] == self._pack or getattr(top[0], "sluice", None) is self:
            return None
        else:
            hooks = self._make_pack_for(top[0]), top[1]
        torch._C._autograd._push_saved_tensors_default_hooks(*hooks)
        return _here()

    def _make_pack_for(self, pack):
        def pack_view(tensor):
            return pack(tensor.detach() if id(tensor) in self._unit_of else tensor)

        pack_view.sluice = self
        return pack_view

    def _pop_hooks(self):
        """Those of modules that an interrupt kept from leaving. A backward's are gone with it."""
        while self._pushed:
            if self._pushed.pop() == _here():
                torch._C._autograd._pop_saved_tensors_default_hooks()

    def _pack(self, tensor):
        if tensor.dtype != self._dtype or tensor.layout != torch.strided or tensor.device != self._device:
            return tensor
        unit = self._unit_at.get(tensor.untyped_storage().data_ptr())
        if unit is None:
            return tensor
        return Packed(unit, self._generation[unit], tensor.storage_offset(), tensor.size(), tensor.stride())

    def _unpack(self, packed):
        if not isinstance(packed, Packed):
            return packed
        with self._lock:
            unit = packed.unit
            if packed.generation != self._generation[unit]:
                raise RuntimeError(
                    f"a weight of unit {self._units[unit].name!r} that was saved for backward has been updated since: call "
                    "backward before step, or run forward again"
                )
            self._acquire(unit)
            self._hold(unit)
            return self._flat[unit].as_strided(packed.size, packed.stride, packed.offset)

    def _hold(self, unit):
        if self._held != unit:
            self._let_go()
            self._held = unit

    def _let_go(self):
        held, self._held = self._held, None
        if held is not None:
            self._release_if_unused(held)

    def settle(self):
        """While no module runs, also after an exception or Ctrl-C anywhere: releases every unit. Does not wait."""
        if "torch._dynamo" in sys.modules:  # loading it takes seconds, so not before somebody compiles
            while self._traceable:
                self._traceable.pop().hide_from_compiler()
        with self._lock:
            self._wanted = None
            self._held = None
            self._pop_hooks()
            self._running.clear()
            for unit in list(self._flat):
                self._asked.pop(unit, None)
                if self._count[unit] > 0:
                    self._count[unit] = 0
                    self.hide(unit)
                self._release_if_unused(unit)
            self._end_asked(self._runtime.done)

    def settle_all(self):
        """settle(), and waits for what was asked for when an interrupt came."""
        self.settle()
        with self._lock:
            self._end_asked(lambda ticket: self._runtime.wait(ticket) is None)

    def _end_asked(self, is_over):
        for unit, asked in list(self._asked.items()):
            try:
                if asked.begun:
                    if not is_over(asked.ticket):
                        continue
                    self._runtime.release(unit)
            except _abi.SluiceError:
                pass  # it was not acquired
            del self._asked[unit]

    def _make_grad_hook(self, unit, tensor):
        def on_grad(parameter):
            if self._wanted is None:
                self._wanted = self._optimized()
            if id(parameter) not in self._wanted:
                return
            gradient = parameter.grad.detach()
            parameter.grad = None
            if gradient.is_sparse:
                gradient = gradient.to_dense()
            gradient = gradient.to(self._grad_dtype).contiguous()
            arguments = (tensor, gradient.data_ptr(), gradient.numel())
            with self._lock:
                self._touched.add(unit)
                self._runtime.lent.lend(gradient, lambda ticket: self._runtime.start_grad(*arguments, ticket))

        return on_grad

    def gradients_used(self, updated):
        """The gradients handed over were used for an update, or (updated is false) dropped."""
        with self._lock:
            for unit in self._touched:
                self._generation[unit] += int(updated)
            self._touched.clear()
