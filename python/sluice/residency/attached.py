"""Keeps a module's parameters on the tiers: brings a unit into HBM around its layer's forward, and again where
backward needs it, and hands gradients over as they arrive.

Whose a parameter is at the moment says its class (away.py). While a unit is entered its parameters are Here, their memory is
the unit's slot. Otherwise they are Away: the tiers', or on loan to whoever touches them (loans.py). So a unit comes in by
whatever door: the call of its layer, of a module in it or around it, or the use of a parameter by any torch function, in a
method, a parametrization, or another module that was handed it. What is used while modules run is entered until the innermost
one of them has ended, or until there is no room for another unit. A write in forward is seen when the unit is released, and
goes to the master.

Autograd saves views of weights; they are packed as (unit, generation, offset, size, stride) and unpacked wherever the unit
is then. Backward holds one unit at a time, the last one that was asked for. Where others' hooks come first, as in a region
that is recomputed or under save_on_cpu, they get views: of a Parameter itself, which they may keep, the memory is a
placeholder when its module has ended. Recomputation may also begin inside a module, past its hooks
(`checkpoint(self._forward, x)`): what it uses is an alias that keeps its memory. What protects memory is none of this:
a slot is not reused while any tensor over it is alive (the library counts).

Threads: forward and backward of one engine run one after the other; autograd's threads are fine.
"""

import bisect
import sys
import threading
import weakref

import torch

from ..native import abi
from . import away, copies
from .gradients import Gradients
from .loans import Loans, fingerprint
from .places import Place
from .saved import SavedTensors
from .slots import Slots
from .stored import Stored

# The latest of each model, weakly: its hooks keep it. They stay when its runtime is closed, and say so to whoever uses the
# model.
_attached = weakref.WeakKeyDictionary()


def _latest(module):
    return _attached.get(module, lambda: None)()


def of(module):
    """The Attached whose runtime has the module's values, or None."""
    attached = _latest(module)
    return attached if attached is not None and attached.open else None


def forget(module):
    """It is an ordinary model again."""
    _attached.pop(module, None)


def _replace(module, attached):
    previous = _latest(module)
    if previous is not None:
        previous.remove()
    _attached[module] = weakref.ref(attached)  # which lives in the hooks, and so as long as the module


# A region's policy must see the model's operations only, as often in recomputation as before.
_unseen = torch._C._DisableTorchDispatch


class _Entered:
    """Units that a module which runs now has entered."""

    def __init__(self):
        self.called = []  # by its call
        self.looked_up = []  # by the use of parameters meanwhile


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
        self.tensors = {}  # id of Parameter -> tensor number
        self._slots = Slots(runtime)
        self._stored = Stored(runtime, self._slots, self.device)
        self.loans = Loans(runtime.library, self._stored.lend, self._stored.write)
        self.gradients = Gradients(runtime, self.place_of, optimized, self.device)
        self._generation = [0] * len(units)  # how often the unit's values have changed
        mine = lambda tensor: id(tensor) in self.place_of
        self._saved = SavedTensors(
            self._slots, self.device, mine, self._place_at, self._generation, self._bring_for_backward
        )
        self._count = [0] * len(units)  # how often the unit is entered now
        self._running = []  # by module that runs forward now: _Entered, or None: that of the one around it
        self._cache_bytes = runtime.report()["hbm"]["cache_bytes"] or sys.maxsize  # 0: nothing moves
        self._in_use = []  # units of parameters that a torch function was given, which has not returned
        self._held = None  # the unit that backward holds
        self._copies = {}  # id of Parameter -> its values, for a state_dict that is being made
        self._handles = []
        self._traceable = []  # what torch.compile would trace into
        _replace(doors[0].module, self)
        for index, unit in enumerate(units):
            places = [self._place(index, name, parameter) for name, parameter in unit.parameters]
            self._places.append(sorted(places, key=lambda place: place.offset))
        self._offsets = [[place.offset for place in places] for places in self._places]
        self._bytes = [sum(place.nbytes for place in places) for places in self._places]
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

    @property
    def runtime(self):
        return self._runtime

    def remove(self):
        """Takes the hooks off. Parameters stay as they are."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._saved.end()
        self.gradients.remove()
        self.loans.end()

    def disown(self):
        """The values are gone: whoever uses a parameter from now on is told."""
        self._saved.end()
        self.gradients.remove()
        self.loans.end()
        for place in self.place_of.values():
            if away.is_owned(place.parameter) and away.owner_of(place.parameter) is self:
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
                self._innermost().looked_up.append(place.unit)
                self._in_use.append(place.unit)
                if isinstance(parameter, away.Away):
                    self._show([place])  # its loan has ended since the unit was entered
                return parameter
            elif torch._C._current_graph_task_id() >= 0:  # backward runs
                return self._alias_in_backward(place)
            else:
                self.loans.lend(place)
            self.gradients.watch(parameter, place)
            return away.alias(parameter)

    def used(self, parameter, tensor, shared):
        if tensor is parameter and (unit := self.place_of[id(parameter)].unit) in self._in_use:
            self._in_use.remove(unit)
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
            place.fingerprint = fingerprint(self._runtime.library, parameter)

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
            advice = "choose its type before sluice.initialize() (or with bf16 or fp16 of the config, or dtype of sluice.attach())"
            if tensor.shape != place.shape:
                advice = "change its shape (resize_token_embeddings and the like) before sluice.initialize() or sluice.attach()"
            raise abi.FailedPrecondition(
                f"parameter {place.name} is {place.dtype} of shape {tuple(place.shape)} on {self.device} while it is on the "
                f"tiers, and can't become {tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}: {advice}"
            )
        with self._lock, _unseen():
            if parameter not in self.loans and self._running:
                if isinstance(parameter, away.Away):
                    self.used(parameter, self.use(parameter), shared=False)
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
            return self._stored.read(place)

    def taken(self, parameter):
        return self._copies.pop(id(parameter), None)

    def gather(self, parameter, holder):
        """Lends it until end_gather() of that holder, which must follow. One that its module computes with now stays as it
        is."""
        with self._lock:
            if isinstance(parameter, away.Away):
                self.loans.gather(self.place_of[id(parameter)], holder)

    def end_gather(self, parameter, holder):
        with self._lock:
            if parameter in self.loans:  # not if the engine has ended meanwhile
                self.loans.end_gather(self.place_of[id(parameter)], holder)

    def loans_in_words(self, parameters):
        """Of those that are on loan, a line each that says which values they have."""
        with self._lock, _unseen():
            on_loan = [p for p in parameters if p in self.loans]
            return [f"parameter {self.place_of[id(p)].name} {fingerprint(self._runtime.library, p):x}" for p in on_loan]

    # ---- Values

    def _begin_state_dict(self, module, prefix, keep_vars):
        """What module takes into its state_dict are copies; all of its own parameters are read at once."""
        own = [p for p in module.parameters(recurse=False) if id(p) in self.place_of]
        stored = [self.place_of[id(p)] for p in own if isinstance(p, away.Away) and p not in self.loans]
        self._copies.update(self._stored.read_many(stored))
        self._copies.update((id(p), self.read(p)) for p in own if id(p) not in self._copies)

    def _end_state_dict(self, module, state_dict, prefix, local_metadata):
        for key, parameter in module.named_parameters(prefix[:-1], recurse=False, remove_duplicate=False):
            copy = self._copies.pop(id(parameter), None)
            if copy is not None and key in state_dict and state_dict[key] is not parameter:
                state_dict[key] = copy  # of a parameter whose module computes now: it was not asked for

    def settle_values(self):
        """Everything that was written to parameters is on the tiers."""
        with self._lock:
            self._stored.flush()
            self.loans.settle()

    def renew_values(self):
        """What is on loan has what is on the tiers."""
        with self._lock:
            self.loans.renew()

    # ---- Forward

    def _make_enter(self, door):
        def enter(module, args):
            entered = _Entered()
            self._running.append(entered)  # _leave_module follows, whatever happens from here on
            self._saved.enter()
            for unit in door.units:
                self._enter(unit)
                entered.called.append(unit)

        def enter_inner(module, args):
            if torch.compiler.is_compiling():
                return
            if self._running:
                for unit in door.units:
                    if not self._count[unit]:
                        break
                else:
                    self._running.append(None)
                    return
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
        self._saved.leave()
        if self._running:
            entered = self._running.pop()
            for unit in reversed(entered.called + entered.looked_up):
                self._leave(unit)

    def _innermost(self):
        """The units entered by the innermost module that has entered its own."""
        return next(entered for entered in reversed(self._running) if entered is not None)

    def _acquire(self, unit):
        if unit in self._slots:
            self._slots.acquire(unit)  # for the calling thread's stream
            return
        self._let_go()
        self._leave_looked_up(unit)
        self._slots.acquire(unit)
        self._check_kept_views(unit)

    def _leave_looked_up(self, unit):
        """Leaves units that were looked up, the first ones first, until the others and `unit` take a quarter of the cache at
        most: room for layers must be left. Who uses their parameters again enters them again."""
        found = [(entered, other) for entered in filter(None, self._running) for other in entered.looked_up]
        taken = self._bytes[unit] + sum(self._bytes[other] for _, other in found)
        for entered, other in found:
            if taken <= self._cache_bytes // 4:
                return
            if other not in self._in_use:
                entered.looked_up.remove(other)
                self._leave(other)
                taken -= self._bytes[other]

    def _not_on_loan(self, unit):
        """The unit's places whose parameters are not."""
        places = self._places[unit]
        return [place for place in places if place.parameter not in self.loans] if self.loans else places

    def _check_kept_views(self, unit):
        places = self._not_on_loan(unit)
        for place, version in zip(places, away.versions(place.parameter for place in places)):
            if version != place.version:
                place.version = version
                self._stored.wait_to_write(place, None)  # the slot may be the one that was written to
                raise RuntimeError(
                    f"parameter {place.name} was written to through a view that was kept from a forward: nothing comes of "
                    "it. Write to the parameter itself, or inside sluice.zero.GatheredParameters"
                )

    def _release_if_unused(self, unit):
        if self._count[unit] == 0 and unit != self._held and unit in self._slots:
            self._take_writes(unit)
            self._slots.release(unit)
            self._stored.flush()

    def _take_writes(self, unit):
        """What was written to parameters while they were in the slot."""
        places = self._not_on_loan(unit)
        for place, version in zip(places, away.versions(place.parameter for place in places)):
            if version != place.version or (place.fingerprint is not None and self._is_written_unseen(place)):
                here = isinstance(place.parameter, away.Here)
                written = away.detached(place.parameter) if here else place.values_in(self._slots[unit])
                self._stored.wait_to_write(place, written.clone(memory_format=torch.contiguous_format))
                place.version = version

    def _is_written_unseen(self, place):
        before, place.fingerprint = place.fingerprint, None
        if not isinstance(place.parameter, away.Here):
            return False
        return fingerprint(self._runtime.library, place.parameter) != before

    def _enter(self, unit):
        with self._lock, _unseen():
            self._acquire(unit)
            self._count[unit] += 1
            if self._count[unit] == 1:
                self._show(self._not_on_loan(unit))

    def _show(self, places):
        """places: of one unit, which is acquired."""
        slot = self._slots[places[0].unit] if places else None
        away.show([(place.parameter, place.values_in(slot)) for place in places])
        self.gradients.watch_all(places)

    def _leave(self, unit):
        with self._lock, _unseen():
            self._count[unit] -= 1
            if self._count[unit] > 0:
                return
            self._take_writes(unit)
            self.hide(unit)
            self._release_if_unused(unit)

    def hide(self, unit):
        away.hide([(place.parameter, place.placeholder) for place in self._not_on_loan(unit)], self)

    def hide_parameter(self, parameter):
        """Its values are with the tiers from now on."""
        if parameter not in self.loans:
            away.put_away(parameter, self)
            away.set_memory(parameter, self.place_of[id(parameter)].placeholder)

    def hide_again(self, parameter, memory):
        """Of one that others had, and whose values the tiers have now. memory: that of its loan, if it is on loan."""
        away.put_away(parameter, self)
        away.set_memory(parameter, memory)
        self.place_of[id(parameter)].version = away.version(parameter)
        self.values_changed(parameter)
        self.hide_parameter(parameter)

    # ---- Backward

    def saved_tensors_hooks(self):
        """For the whole of a forward pass."""
        return self._saved.whole_pass()

    def _place_at(self, unit, offset):
        return self._places[unit][bisect.bisect_right(self._offsets[unit], offset) - 1]

    def values_changed(self, parameter):
        """By a load or the like: what was saved for backward is of the past."""
        with self._lock:
            self._generation[self.place_of[id(parameter)].unit] += 1

    def _bring_for_backward(self, unit, generation):
        with self._lock:
            if generation != self._generation[unit]:
                raise RuntimeError(
                    f"a weight of unit {self._units[unit].name!r} that was saved for backward has been updated since: call "
                    "backward before step, or run forward again"
                )
            self._acquire(unit)
            self._hold(unit)
            return self._slots[unit]

    def _alias_in_backward(self, place):
        """For code that is recomputed past the hooks: the unit is held, the parameter hidden again."""
        parameter = place.parameter
        self._acquire(place.unit)
        if self._count[place.unit] > 0:
            self._show([place])
            return away.alias(parameter)
        self._hold(place.unit)
        try:
            self._show([place])
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
            self.gradients.hand_over()
            self.gradients.ask_again()
            self._held = None
            self._saved.settle()
            self._running.clear()
            self._in_use.clear()
            self._copies.clear()
            self._slots.settle(wait=False)
            for unit in self._slots.acquired:
                if self._count[unit] > 0:
                    self._count[unit] = 0
                    self.hide(unit)
                self._release_if_unused(unit)

    def settle_all(self):
        """settle(), and waits for what was asked for when an interrupt came."""
        self.settle()
        with self._lock:
            self._slots.settle(wait=True)

    def gradients_used(self, updated):
        """The gradients handed over were used for an update, or (updated is false) dropped."""
        with self._lock:
            for place in self.gradients.handed_over.values():
                self._generation[place.unit] += int(updated)
            self.gradients.forget()
            if updated:
                self.renew_values()
