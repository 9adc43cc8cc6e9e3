"""Gradients of parameters whose values are on the tiers: handed over as autograd makes them, and there for whoever looks.

`p.grad` of such a parameter is what was accumulated since the last step, in a tensor of its own: from the first look on, that
tensor is the gradient. So clip_grad_norm_, GradScaler, hooks of others and code that changes or sets `p.grad` do what
they do to any parameter, and step() takes what is there then.

With several ranks it is the mean of all, and a look is for all of them together. What was looked at goes back before the next
forward, so that the others' are added to it as ever, and is looked at again when backward has ended: the tensor stays the same.
Inside apart() (no_sync) a rank adds up its own, which nobody else has heard of, in PyTorch's memory.

Threads: autograd's and the caller's, not at the same time.
"""

import collections
import contextlib
import weakref

import torch

from ..native import abi, values
from . import away


_BATCH_BYTES = 1 << 20  # beyond it a call costs little beside the copy


class _Batch:
    """Gradients of one unit, made on one stream, to be handed over in one call."""

    def __init__(self, unit=None, stream=None):
        self.unit = unit
        self.stream = stream
        self.gradients = {}  # number -> tensor
        self.bytes = 0
        self._begun = False
        self._ticket = None

    @property
    def begun(self):
        """The library has them, or had: what came later would not reach it."""
        return self._begun or bool(self._ticket)

    def hand_over(self, runtime):
        """Once, also if an interrupt ended the call before."""
        if not self.begun and self.gradients:
            items = [(gradient.data_ptr(), gradient.numel(), number, 0) for number, gradient in self.gradients.items()]
            runtime.lent.lend_all(self.gradients.values(), self._start, runtime, items)

    def _start(self, runtime, items, ticket):
        self._ticket = ticket  # until it is waited for, its value tells that the library has them
        runtime.start_grads(items, self.stream, ticket)
        self._begun = True


class Gradients:
    """places: id of Parameter -> attached.Place. optimized(): ids of the Parameters that a step updates; of others,
    `.grad` stays PyTorch's."""

    def __init__(self, runtime, places, optimized, device):
        self._runtime = runtime
        self._places = places
        self._optimized = optimized
        self._device = device
        self._wanted = None  # what optimized() answered last
        self._looked_at = {}  # number -> (the gradient, which somebody has seen or set; its place)
        self.handed_over = {}  # number -> its place: has a gradient in the runtime
        self._batch = _Batch()  # of what was handed over, what the runtime does not have yet
        self._watched = collections.Counter()  # by unit: parameters with hooks
        self._hooks = {}  # number -> handle
        self._left = {}  # number -> its place: not wanted when its gradient came
        self.among_ranks = False  # set by the engine, before there are any
        self._behind = {}  # number -> as _looked_at, whose value the runtime has
        self._own = {}  # number -> (this rank's own, not handed over; its place)
        self._apart = False

    def watch_all(self, places):
        """watch(), of each."""
        for place in places:
            if place.tensor not in self._hooks:
                self.watch(place.parameter, place)

    def watch(self, parameter, place):
        """Takes the parameter's gradients from now on. Needs to be called again where it did not require one."""
        if place.tensor in self._hooks or not parameter.requires_grad:
            return
        this = weakref.ref(self)  # the graph, and the parameter, must not keep the runtime alive, nor itself

        def on_grad(parameter):
            if (gradients := this()) is not None:
                gradients._take(parameter, gradients._places[id(parameter)])

        self._watched[place.unit] += 1
        self._hooks[place.tensor] = parameter.register_post_accumulate_grad_hook(on_grad)

    def hand_over(self):
        """The runtime has what has come so far, or will read it."""
        self._batch.hand_over(self._runtime)
        self._batch = _Batch()

    def _add_to_batch(self, place, gradient):
        stream = self._runtime.stream()
        batch = self._batch
        if batch.begun or place.unit != batch.unit or stream != batch.stream or place.tensor in batch.gradients:
            self.hand_over()
            batch = self._batch = _Batch(place.unit, stream)
        batch.gradients[place.tensor] = gradient
        batch.bytes += gradient.nbytes
        if batch.bytes > _BATCH_BYTES or len(batch.gradients) == self._watched[place.unit]:
            self.hand_over()

    def remove(self):
        for handle in self._hooks.values():
            handle.remove()
        self._hooks.clear()
        self._watched.clear()
        self.forget()

    def is_wanted(self, parameter):
        if self._wanted is None:
            self._wanted = self._optimized()
        return id(parameter) in self._wanted

    def ask_again(self):
        """The optimizer's groups may have changed."""
        self._wanted = None

    def _take(self, parameter, place):
        if not self.is_wanted(parameter):
            self._left[place.tensor] = place
            return
        gradient = away.take_raw_grad(parameter)
        if gradient is None:  # another's hook has used it up
            return
        gradient = gradient.detach()
        if place.tensor in self._looked_at and not self._apart:
            with torch.no_grad():
                self._looked_at[place.tensor][0].add_(gradient)
            return
        gradient = _as_kept(gradient, place)
        if place.tensor in self._own:
            with torch.no_grad():
                gradient = self._own[place.tensor][0].add_(gradient)
        if self._apart:
            self._own[place.tensor] = gradient, place
            return
        self._own.pop(place.tensor, None)
        self.handed_over[place.tensor] = place
        self._add_to_batch(place, _as_kept(gradient, place))

    # ---- Among ranks

    @contextlib.contextmanager
    def apart(self):
        """What comes meanwhile is added to this rank's own, and goes with the first that comes afterwards, or with
        hand_over_own()."""
        self.hand_over()
        self._apart = True
        try:
            yield
        finally:
            self._apart = False

    @property
    def is_apart(self):
        """Whether apart() is open."""
        return self._apart

    @property
    def unused(self):
        """Whether there are any that no step has used."""
        return bool(self.handed_over or self._looked_at or self._behind or self._own)

    def hand_over_own(self):
        """What apart() has left, and no later gradient has taken along. Does nothing inside it."""
        if self._apart:
            return
        while self._own:
            number, (gradient, place) = next(iter(self._own.items()))
            self.handed_over[number] = place
            self._add_to_batch(place, _as_kept(gradient.detach(), place))
            del self._own[number]
        self.hand_over()

    def give_back(self):
        """Before what others have is to be added to it: the runtime has what was looked at, until renew(). Does nothing with
        one rank, or inside apart(). All ranks call it together."""
        if not self.among_ranks or self._apart or not self._looked_at:
            return
        self.settle_looked_at()
        self._behind.update(self._looked_at)
        self._looked_at.clear()

    def renew(self):
        """What was given back has what the runtime has now. All ranks call it together."""
        for number, (gradient, place) in list(self._behind.items()):
            with torch.no_grad():
                gradient.copy_(self._read(place))
            self._looked_at[number] = self._behind.pop(number)

    def _read(self, place):
        request = (0, place.tensor, place.shape)
        return values.read_all(self._runtime, [request], abi.GRAD, place.grad_dtype)[0].to(self._device)

    # ---- As PyTorch sees them

    def get(self, parameter):
        place = self._places[id(parameter)]
        if place.tensor in self._own:
            if place.tensor in self.handed_over or place.tensor in self._looked_at:
                raise abi.FailedPrecondition(
                    f"the gradient of {place.name} is in two parts: one is the mean of all ranks, the other this rank's own, from "
                    "inside no_sync(). Look at it after the next backward outside of it, or before"
                )
            return self._own[place.tensor][0]
        if place.tensor not in self._looked_at and place.tensor in self.handed_over:
            self.hand_over()
            self._runtime.lent.finish()
            if place.tensor in self._behind:  # no backward has ended since
                self.renew()
            else:
                self._looked_at[place.tensor] = self._read(place), place
        return self._looked_at[place.tensor][0] if place.tensor in self._looked_at else away.raw_grad(parameter)

    def set(self, parameter, gradient):
        place = self._places[id(parameter)]
        if not self.is_wanted(parameter):
            self._left[place.tensor] = place
            away.set_raw_grad(parameter, gradient)
            return
        if gradient is not None:
            _check(parameter, gradient)
        self.hand_over()
        away.set_raw_grad(parameter, None)
        self._looked_at.pop(place.tensor, None)
        self._behind.pop(place.tensor, None)
        self._own.pop(place.tensor, None)
        if gradient is not None and self._apart:
            self._own[place.tensor] = gradient, place
        elif gradient is not None:
            self._looked_at[place.tensor] = gradient, place
        elif self.handed_over.pop(place.tensor, None) is not None:
            self._runtime.clear_grad(place.tensor)

    def settle(self):
        """The runtime has what was looked at or set, as it is now, what was left to PyTorch before it was wanted, and what
        ranks had each for itself."""
        self.settle_looked_at()
        self.hand_over_own()

    def settle_looked_at(self):
        """settle(), but for what ranks have each for itself."""
        self.hand_over()
        self._adopt()
        items = []
        for number, (gradient, place) in self._looked_at.items():
            items.append((number, _as_kept(gradient.detach(), place)))
            self.handed_over[number] = place
        values.write_all(self._runtime, items, abi.GRAD)

    def _adopt(self):
        """Gradients of parameters that the optimizer has been given since."""
        for number, place in list(self._left.items()):
            if self.is_wanted(place.parameter):
                del self._left[number]
                gradient = away.raw_grad(place.parameter)
                if gradient is not None and number not in self._looked_at:
                    self._looked_at[number] = gradient, place
                    away.set_raw_grad(place.parameter, None)

    def forget(self):
        """They were used for an update, or dropped."""
        self._looked_at.clear()
        self._behind.clear()
        self._own.clear()
        self.handed_over.clear()
        self._batch = _Batch()


def _as_kept(gradient, place):
    """As the runtime takes it: itself, if it is so."""
    if gradient.is_sparse:
        gradient = gradient.to_dense()
    if gradient.dtype is not place.grad_dtype or not gradient.is_contiguous():
        gradient = gradient.to(place.grad_dtype).contiguous()
    return gradient


def _check(parameter, gradient):
    if not isinstance(gradient, torch.Tensor):
        raise TypeError(f"assigned grad expected to be a Tensor or None but got grad of type {type(gradient).__name__}")
    if gradient.shape != parameter.shape or gradient.is_complex() != parameter.is_complex():
        raise RuntimeError(
            f"assigned grad has shape {tuple(gradient.shape)} for a parameter of shape {tuple(parameter.shape)}"
        )
    if gradient.device != parameter.device:
        raise RuntimeError(f"assigned grad is on {gradient.device}, the parameter on {parameter.device}")
