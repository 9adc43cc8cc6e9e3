"""What autograd saves for backward while modules compute: views of slots, packed as (unit, generation, offset, size, stride),
with the parameter they are of and its version: one that was written to since is as wrong as PyTorch says it is.

Where others' hooks come first, as in a region that is recomputed or under save_on_cpu, they get views: of a Parameter itself,
which they may keep, the memory is a placeholder when its module has ended.
"""

import collections

import torch

from . import away

Packed = collections.namedtuple("Packed", "unit generation place version offset size stride")


class SavedTensors:
    """slots: of slots.Slots. bring(unit, generation): brings it in for backward, or raises if it has other values by now."""

    def __init__(self, slots, device, is_mine, place_at, generation, bring):
        self._slots = slots
        self._device = device
        self._is_mine = is_mine  # whether a tensor is a Parameter on the tiers
        self._place_at = place_at  # (unit, offset) -> the parameter's place that a view begins in
        self._generation = generation  # by unit: how often its values have changed
        self._bring = bring
        self._pushed = []  # by module that runs forward now: whether it pushed hooks
        self._ended = False

    def whole_pass(self):
        """For the whole of a forward pass."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def enter(self):
        """While a module runs, our hooks come first."""
        self._pushed.append(self._push())

    def leave(self):
        if self._pushed and self._pushed.pop():
            torch._C._autograd._pop_saved_tensors_default_hooks()

    def end(self):
        """Nothing is in a slot any more: what graphs save from now on is as it is, also where hooks are left on another thread."""
        self._ended = True
        self.settle()

    def settle(self):
        """Of modules that an interrupt kept from leaving. A backward's hooks are gone with it."""
        self._pushed.clear()
        while self._is_ours(torch._C._autograd._top_saved_tensors_default_hooks(True)):
            torch._C._autograd._pop_saved_tensors_default_hooks()

    def _is_ours(self, hooks):
        return hooks is not None and (hooks[0] == self._pack or getattr(hooks[0], "sluice", None) is self)

    def _push(self):
        """Whether any were."""
        if not torch._C._autograd._saved_tensors_hooks_is_enabled():
            return False
        top = torch._C._autograd._top_saved_tensors_default_hooks(True)
        if self._is_ours(top):
            return False
        hooks = (self._pack, self._unpack) if top is None else (self._make_pack_for(top[0]), top[1])
        torch._C._autograd._push_saved_tensors_default_hooks(*hooks)
        return True

    def _make_pack_for(self, pack):
        def pack_view(tensor):
            return pack(away.detached(tensor) if self._is_mine(tensor) else tensor)

        pack_view.sluice = self
        return pack_view

    def _pack(self, tensor):
        unit = None
        if tensor.layout is torch.strided and tensor.device == self._device and not self._ended:
            unit = self._slots.unit_of(tensor)
        if unit is None and self._is_mine(tensor):  # on loan: the loan lasts as long as its memory is held, but not the Parameter
            return away.detached(tensor)
        if unit is None or tensor.dtype != self._slots[unit].dtype:
            # What a graph saves of its own results must not hold the graph.
            return tensor.detach() if tensor.grad_fn is not None else tensor
        offset = tensor.storage_offset()
        place = self._place_at(unit, offset)
        version = away.version(place.parameter)
        return Packed(unit, self._generation[unit], place, version, offset, tensor.size(), tensor.stride())

    def _unpack(self, packed):
        if not isinstance(packed, Packed):
            return packed
        if away.version(packed.place.parameter) != packed.version:
            raise RuntimeError(
                f"parameter {packed.place.name}, which was saved for backward, has been modified by an inplace operation since: "
                "write to it after backward, or before forward uses it"
            )
        slot = self._bring(packed.unit, packed.generation)
        return slot.as_strided(packed.size, packed.stride, packed.offset)
