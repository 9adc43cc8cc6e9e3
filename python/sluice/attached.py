"""Keeps a module's parameters on the tiers: brings a unit into HBM around its layer's forward, and again where
backward needs it, and hands gradients over as they arrive.

Whose a parameter is at the moment says its class (away.py). While a unit is entered its parameters are Here, their memory is
the unit's slot. Otherwise they are Away: the tiers', or on loan to whoever touches them (loans.py). So a unit comes in by
whatever door: the call of its layer, of a module in it or around it, or the use of a parameter by any torch function, in a
method, a parametrization, or another module that was handed it. What is used while modules run is entered until the innermost
one of them has ended. A write in forward is seen when the unit is released, and goes to the master.

Autograd saves views of weights; they are packed as (unit, generation, offset, size, stride) and unpacked wherever the unit
is then. Backward holds one unit at a time, the last one that was asked for. Where others' hooks come first, as in a region
that is recomputed or under save_on_cpu, they get views: of a Parameter itself, which they may keep, the memory is a
placeholder when its module has ended. Recomputation may also begin inside a module, past its hooks
(`checkpoint(self._forward, x)`): what it uses is an alias that keeps its memory. What protects memory is none of this:
a slot is not reused while any tensor over it is alive (the library counts).

Threads: forward and backward of one engine run one after the other; autograd's threads are fine.
"""

import collections
import ctypes
import dataclasses
import sys
import threading
import weakref

import torch

from . import _abi, away, copies, values
from .gradients import Gradients
from .loans import Loans, fingerprint, merged

_capsule_new = ctypes.pythonapi.PyCapsule_New
_capsule_new.restype = ctypes.py_object
_capsule_new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]

_capsule_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_capsule_is_valid.restype = ctypes.c_int
_capsule_is_valid.argtypes = [ctypes.py_object, ctypes.c_char_p]


def _is_full(capsule):
    return bool(_capsule_is_valid(capsule, b"dltensor"))


Packed = collections.namedtuple("Packed", "unit generation offset size stride")


@dataclasses.dataclass(eq=False)
class Place:
    """Where a parameter's values lie in its unit."""

    name: str
    parameter: torch.nn.Parameter
    tensor: int  # its number in the runtime
    unit: int
    offset: int  # in the unit, in elements of the runtime's type for it
    elements: int
    shape: torch.Size
    dtype: torch.dtype  # of its values in compute
    raw: bool  # the runtime keeps its bytes, whatever they mean
    grad_dtype: torch.dtype
    placeholder: torch.Tensor
    version: int = 0  # of the parameter, up to which the tiers know its values
    fingerprint: int | None = None  # of its memory in the slot, if a module asked for `.data`

    @property
    def nbytes(self):
        return self.parameter.numel() * self.dtype.itemsize

    def values_in(self, slot):
        part = slot.narrow(0, self.offset, self.elements)
        return (part.view(self.dtype) if self.raw else part).view(self.shape)


def check_ties(model):
    """Errors: ValueError if two Parameters have memory in common: each would be trained by itself."""
    spans = {}
    for name, parameter in model.named_parameters():
        if parameter.numel() == 0 or parameter.is_meta or away.is_owned(parameter) or parameter.layout != torch.strided:
            continue
        begin = parameter.data_ptr()
        last = sum((size - 1) * stride for size, stride in zip(parameter.shape, parameter.stride()))
        spans.setdefault(parameter.untyped_storage().data_ptr(), []).append(
            (begin, begin + (last + 1) * parameter.element_size(), name)
        )
    for found in spans.values():
        found.sort()
        for (_, end, name), (begin, _, other) in zip(found, found[1:]):
            if begin < end:
                raise ValueError(
                    f"parameters {name} and {other} are two that share memory, and each would be trained by itself: tie them by "
                    "making them one (module.weight = other.weight), or give one a copy (clone())"
                )


# The latest of each model. Its hooks stay when its runtime is closed, and say so to whoever uses the model.
_attached = weakref.WeakKeyDictionary()


def _replace(module, attached):
    previous = _attached.get(module, lambda: None)()
    if previous is not None:
        if previous.open:
            raise _abi.FailedPrecondition(
                "the model is attached already: end that engine first (destroy() gives the model its values back)"
            )
        previous.remove()
    _attached[module] = weakref.ref(attached)  # which lives in the hooks, and so as long as the module


# A region's policy must see the model's operations only, as often in recomputation as before.
_unseen = torch._C._DisableTorchDispatch


def _here():
    """Thread and backward that code runs in: each has hooks of its own for saved tensors."""
    return threading.get_ident(), torch._C._current_graph_task_id()


def _in_backward():
    return torch._C._current_graph_task_id() >= 0


class _Asked:
    """An acquisition whose end was not seen. An interrupt may come between any two lines: 0 is the ticket of one that is
    not begun and of one that is over."""

    def __init__(self):
        self.ticket = _abi.Ticket()
        self._view = ctypes.c_void_p()
        self._capsule = None
        self._flat = None
        self._begun = False

    def begin(self, runtime, unit):
        if not self._begun and not self.ticket:
            runtime.start_acquire(unit, self.ticket)
        self._begun = True

    @property
    def begun(self):
        return self._begun or bool(self.ticket)

    def take_view(self, runtime, unit):
        """The slot as a tensor. Called again after an interrupt, it goes on where it was."""
        if self._flat is None:
            if self._capsule is not None and not _is_full(self._capsule):  # its tensor was lost, and the view with it
                self._view = ctypes.c_void_p()
                self._capsule = None
            if not self._view:
                runtime.unit_view(unit, self._view)
            if self._capsule is None:
                self._capsule = _capsule_new(self._view, b"dltensor", None)
            self._flat = torch.utils.dlpack.from_dlpack(self._capsule)
        return self._flat

    def end_view(self):
        """Lets go of a view that was begun."""
        if self._flat is None and self._view:
            if self._capsule is None:
                self._capsule = _capsule_new(self._view, b"dltensor", None)
            if _is_full(self._capsule):
                torch.utils.dlpack.from_dlpack(self._capsule)
        self._flat = None


class Attached:
    """units, doors: of units.partition(), whose units' type has `dtype` (in compute), `grad_dtype` and `raw`.
    optimized(): ids of Parameters whose gradients are handed over; of others, `.grad` stays as PyTorch left it."""

    def __init__(self, runtime, units, doors, optimized):
        self._runtime = runtime
        self._units = units
        self.device = runtime.device.torch if runtime.device is not None else torch.device("cpu")
        self._lock = threading.RLock()
        self._places = []  # by unit: [Place]
        self.place_of = {}  # id of Parameter -> Place
        self.loans = Loans(self._read_place, self._write_place)
        self.gradients = Gradients(runtime, self.place_of, optimized, self.device)
        self._count = [0] * len(units)  # how often the unit is entered now
        self._running = []  # by module that runs forward now: the units it has entered
        self._pushed = []  # by module that runs forward now: who pushed hooks for saved tensors (_here()), or None
        self._held = None  # the unit that backward holds
        self._asked = {}  # unit -> _Asked
        self._flat = {}  # unit -> its slot as a tensor, while acquired
        self._unit_at = {}  # address of a slot -> unit, while acquired
        self._generation = [0] * len(units)  # how often the unit's values have changed
        self._copies = {}  # id of Parameter -> its values, for a state_dict that is being made
        self._unwritten = {}  # number -> (place, values) of writes that wait until the unit is released
        self._releasing = set()  # units whose release was begun
        self.tensors = {}  # id of Parameter -> tensor number
        self._handles = []
        self._traceable = []  # what torch.compile would trace into
        _replace(doors[0].module, self)
        for index, unit in enumerate(units):
            self._places.append([self._place(index, name, parameter) for name, parameter in unit.parameters])
        for door in doors:
            self._hang(door)

    def _place(self, unit, name, parameter):
        number = len(self.tensors)
        info, kind = self._runtime.tensor_info(number), self._units[unit].type
        place = Place(
            *(name, parameter, number, unit, info.offset, info.elements, parameter.shape, kind.dtype, kind.raw),
            grad_dtype=kind.grad_dtype,
            placeholder=away.placeholder(parameter.shape, kind.dtype, self.device),
            version=away.version(parameter),
        )
        self.place_of[id(parameter)] = place
        self.tensors[id(parameter)] = number
        return place

    def _hang(self, door):
        module = door.module
        enter, leave = copies.Hook(self._make_enter(door)), copies.Hook(self._leave_inner if door.inner else self._leave_module)
        self._handles += [
            module.register_forward_pre_hook(enter, prepend=True),
            module.register_forward_hook(leave, always_call=True),
            module.register_state_dict_pre_hook(copies.Hook(self._begin_state_dict)),
            module.register_state_dict_post_hook(copies.Hook(self._end_state_dict)),
        ]
        if not door.inner:
            self._traceable += [enter, leave]

    @property
    def open(self):
        return self._runtime.open

    def remove(self):
        """Takes the hooks off. Parameters stay as they are."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.gradients.remove()
        self.loans.end()

    def disown(self):
        """The values are gone: whoever uses a parameter from now on is told."""
        self.gradients.remove()
        self.loans.end()
        for place in self.place_of.values():
            away.put_away(place.parameter, None)
            away.set_memory(place.parameter, place.placeholder)

    # ---- As the owner of parameters (away.py)

    def use(self, parameter):
        with self._lock, _unseen():
            place = self.place_of[id(parameter)]
            if parameter in self.loans:
                self.loans.lend(place)
            elif self._running:
                self._enter(place.unit)
                self._innermost().append(place.unit)
                if isinstance(parameter, away.Away):
                    self._show(place)  # its loan has ended since the unit was entered
                return parameter
            elif _in_backward():
                return self._alias_in_backward(place)
            else:
                self.loans.lend(place)
            self.gradients.watch(parameter, place)
            return away.alias(parameter)

    def used(self, parameter, tensor, shared):
        if not shared:
            return
        if parameter in self.loans:
            self.loans.share(parameter)
        elif tensor is parameter:
            self._share_slot(parameter)

    def _share_slot(self, parameter):
        """Others see the memory of one that is Here: numpy may write to it past its version."""
        place = self.place_of[id(parameter)]
        if place.fingerprint is None and self.device.type == "cpu":
            place.fingerprint = fingerprint(parameter)

    def data(self, parameter):
        if isinstance(parameter, away.Away):
            tensor = self.use(parameter)
            self.used(parameter, tensor, shared=True)
            if tensor is not parameter:
                return tensor.detach()
        with _unseen():
            self._share_slot(parameter)
            return away.detached(parameter)

    def set_data(self, parameter, tensor):
        place = self.place_of[id(parameter)]
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"parameter {place.name}: its data must be a tensor, not {type(tensor).__name__}")
        wanted = place.shape, place.dtype, self.device
        if (tensor.shape, tensor.dtype, tensor.device) != wanted or tensor.layout != torch.strided:
            raise _abi.FailedPrecondition(
                f"parameter {place.name} is {place.dtype} of shape {tuple(place.shape)} on {self.device} while it is on the "
                f"tiers, and can't become {tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}: choose its type "
                "before sluice.initialize() (or with bf16 or fp16 of the config, or dtype of sluice.attach())"
            )
        with self._lock, _unseen():
            if parameter not in self.loans and self._running:
                self.use(parameter) if isinstance(parameter, away.Away) else None
                with torch.no_grad():
                    away.detached(parameter).copy_(tensor)
            else:
                self.loans.replace(place, tensor.detach())

    def grad(self, parameter):
        return self.gradients.get(parameter)

    def set_grad(self, parameter, gradient):
        self.gradients.set(parameter, gradient)

    def read(self, parameter):
        place = self.place_of[id(parameter)]
        with self._lock, _unseen():
            if parameter in self.loans or self._count[place.unit] > 0:
                return away.detached(parameter).clone(memory_format=torch.contiguous_format).cpu()
            return self._stored(place)

    def taken(self, parameter):
        return self._copies.pop(id(parameter), None)

    def gather(self, parameter):
        """Lends it until end_gather(), which must follow. One that its module computes with now stays as it is."""
        with self._lock:
            if isinstance(parameter, away.Away):
                self.loans.gather(self.place_of[id(parameter)])
                return True
        return False

    def end_gather(self, parameter):
        with self._lock:
            self.loans.end_gather(self.place_of[id(parameter)])

    # ---- Values

    def _stored(self, place):
        """A copy in RAM of what the tiers have."""
        waiting = self._unwritten.get(place.tensor, (place, None))[1]
        if waiting is not None:
            return waiting.cpu()
        request = (0, place.tensor, place.shape)
        return values.read_all(self._runtime, [request], _abi.PARAM, place.dtype)[0]

    def _read_place(self, place):
        return self._stored(place).to(self.device)

    def _write_place(self, place, after):
        """`after`: what the parameter is from now on."""
        if place.unit in self._flat or place.unit in self._asked:  # the library refuses writes to what is acquired
            self._unwritten[place.tensor] = place, after
            if place.unit in self._flat:
                place.values_in(self._flat[place.unit]).copy_(after)
            return
        self._unwritten.pop(place.tensor, None)
        if after is None:  # what it was
            value = None if place.raw else self._master(place)
        else:
            value = merged(self._stored(place), after.cpu().contiguous(), lambda: self._master(place))
        if value is not None:
            raw = (place.tensor,) if place.raw else ()
            values.write_all(self._runtime, [(place.tensor, value)], _abi.MASTER, raw)

    def _master(self, place):
        return values.read_all(self._runtime, [(0, place.tensor, place.shape)], _abi.MASTER, torch.float32)[0]

    def _write_what_waits(self, unit):
        for number, (place, after) in list(self._unwritten.items()):
            if place.unit == unit:
                self._write_place(place, after)
                self._unwritten.pop(number, None)

    def _begin_state_dict(self, module, prefix, keep_vars):
        """What module takes into its state_dict are copies; all of its own parameters are read at once."""
        own = [p for p in module.parameters(recurse=False) if id(p) in self.place_of]
        stored = [p for p in own if isinstance(p, away.Away) and p not in self.loans and not self._unwritten]
        requests = [(id(p), self.tensors[id(p)], p.shape, self.place_of[id(p)].dtype) for p in stored]
        self._copies.update(values.read_all(self._runtime, requests, _abi.PARAM))
        self._copies.update((id(p), self.read(p)) for p in own if id(p) not in self._copies)

    def _end_state_dict(self, module, state_dict, prefix, local_metadata):
        for key, parameter in module.named_parameters(prefix[:-1], recurse=False, remove_duplicate=False):
            copy = self._copies.pop(id(parameter), None)
            if copy is not None and key in state_dict and state_dict[key] is not parameter:
                state_dict[key] = copy  # of a parameter whose module computes now: it was not asked for

    def settle_values(self):
        """Everything that was written to parameters is on the tiers."""
        with self._lock:
            self.loans.settle()

    def renew_values(self):
        """What is on loan has what is on the tiers."""
        with self._lock:
            self.loans.renew()

    # ---- Forward

    def _make_enter(self, door):
        def enter(module, args):
            entered = []
            self._running.append(entered)  # _leave_module follows, whatever happens from here on
            self._pushed.append(self._push_hooks())
            for unit in door.units:
                self._enter(unit)
                entered.append(unit)

        def enter_inner(module, args):
            if torch.compiler.is_compiling():
                return
            if self._running and all(self._count[unit] for unit in door.units):
                self._running.append(None)
            else:
                enter(module, args)

        return enter_inner if door.inner else enter

    def _leave_inner(self, module, args, output):
        if torch.compiler.is_compiling():
            return
        if self._running and self._running[-1] is None:
            self._running.pop()
        else:
            self._leave_module(module, args, output)

    def _leave_module(self, module, args, output):
        if self._pushed and self._pushed.pop() is not None:
            torch._C._autograd._pop_saved_tensors_default_hooks()
        if self._running:
            for unit in reversed(self._running.pop()):
                self._leave(unit)

    def _innermost(self):
        """The units entered by the innermost module that has entered its own."""
        return next(entered for entered in reversed(self._running) if entered is not None)

    def _acquire(self, unit):
        if unit in self._flat:
            return
        if unit in self._releasing:
            self._finish_release(unit)
        if self._held is not None:
            self._let_go()
        asked = self._asked.setdefault(unit, _Asked())
        asked.begin(self._runtime, unit)
        try:
            self._runtime.wait(asked.ticket)
        except _abi.SluiceError:
            del self._asked[unit]
            raise
        self._take_view(unit, asked)

    def _take_view(self, unit, asked):
        """An interrupt may come anywhere in here: called again, it goes on where it was, and settle() undoes it."""
        flat = asked.take_view(self._runtime, unit)
        self._unit_at[flat.data_ptr()] = unit
        self._flat[unit] = flat
        self._asked.pop(unit, None)
        self._check_kept_views(unit)

    def _check_kept_views(self, unit):
        for place in self._places[unit]:
            version = away.version(place.parameter)
            if version != place.version and place.parameter not in self.loans:
                place.version = version
                self._unwritten[place.tensor] = place, None  # the slot may be the one that was written to
                raise RuntimeError(
                    f"parameter {place.name} was written to through a view that was kept from a forward: nothing comes of "
                    "it. Write to the parameter itself, or inside sluice.zero.GatheredParameters"
                )

    def _release_if_unused(self, unit):
        if self._count[unit] > 0 or unit == self._held or unit not in self._flat:
            return
        self._take_writes(unit)
        self._releasing.add(unit)
        flat = self._flat.pop(unit)
        self._unit_at.pop(flat.data_ptr(), None)  # an interrupt may have come before it was there
        del flat
        self._runtime.release(unit)
        self._releasing.discard(unit)
        self._write_what_waits(unit)

    def _finish_release(self, unit):
        """Of a release that was interrupted: before the library was told, or after."""
        try:
            self._runtime.release(unit)
        except _abi.FailedPrecondition:
            pass  # it was told
        self._releasing.discard(unit)

    def _take_writes(self, unit):
        """What was written to parameters while they were in the slot."""
        for place in self._places[unit]:
            version = away.version(place.parameter)
            if place.parameter in self.loans:
                continue
            if version != place.version or self._is_written_unseen(place):
                here = isinstance(place.parameter, away.Here)
                written = away.detached(place.parameter) if here else place.values_in(self._flat[unit])
                self._unwritten[place.tensor] = place, written.clone(memory_format=torch.contiguous_format)
                place.version = version

    def _is_written_unseen(self, place):
        before, place.fingerprint = place.fingerprint, None
        return before is not None and isinstance(place.parameter, away.Here) and fingerprint(place.parameter) != before

    def _enter(self, unit):
        with self._lock, _unseen():
            self._acquire(unit)
            self._count[unit] += 1
            if self._count[unit] == 1:
                for place in self._places[unit]:
                    self._show(place)

    def _show(self, place):
        parameter = place.parameter
        if parameter in self.loans:
            return
        away.set_memory(parameter, place.values_in(self._flat[place.unit]))
        parameter.__class__ = away.Here
        self.gradients.watch(parameter, place)

    def _leave(self, unit):
        with self._lock, _unseen():
            self._count[unit] -= 1
            if self._count[unit] > 0:
                return
            self._take_writes(unit)
            self.hide(unit)
            self._release_if_unused(unit)

    def hide(self, unit):
        for place in self._places[unit]:
            self.hide_parameter(place.parameter)

    def hide_parameter(self, parameter):
        """Its values are with the tiers from now on."""
        if parameter not in self.loans:
            away.put_away(parameter, self)
            away.set_memory(parameter, self.place_of[id(parameter)].placeholder)

    def hide_again(self, parameter):
        """Of one that others had, and whose values the tiers have now."""
        self.place_of[id(parameter)].version = away.version(parameter)
        self.hide_parameter(parameter)


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
            return pack(away.detached(tensor) if id(tensor) in self.place_of else tensor)

        pack_view.sluice = self
        return pack_view

    def _pop_hooks(self):
        """Those of modules that an interrupt kept from leaving. A backward's are gone with it."""
        while self._pushed:
            if self._pushed.pop() == _here():
                torch._C._autograd._pop_saved_tensors_default_hooks()

    def _pack(self, tensor):
        if tensor.layout != torch.strided or tensor.device != self.device:
            return tensor
        unit = self._unit_at.get(tensor.untyped_storage().data_ptr())
        if unit is None or tensor.dtype != self._flat[unit].dtype:
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

    def _alias_in_backward(self, place):
        """For code that is recomputed past the hooks: the unit is held, the parameter hidden again."""
        parameter = place.parameter
        if self._count[place.unit] > 0:
            self._show(place)
            return away.alias(parameter)
        self._acquire(place.unit)
        self._hold(place.unit)
        try:
            self._show(place)
            return away.alias(parameter)
        finally:
            self.hide_parameter(parameter)

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
            self.gradients.ask_again()
            self._held = None
            self._pop_hooks()
            self._running.clear()
            self._copies.clear()
            for unit in list(self._releasing):
                self._finish_release(unit)
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
                    asked.end_view()
                    self._releasing.add(unit)
                    self._finish_release(unit)
            except _abi.SluiceError:
                pass  # it was not acquired
            del self._asked[unit]

    def gradients_used(self, updated):
        """The gradients handed over were used for an update, or (updated is false) dropped."""
        with self._lock:
            for place in self.gradients.handed_over.values():
                self._generation[place.unit] += int(updated)
            self.gradients.forget()
            if updated:
                self.renew_values()
