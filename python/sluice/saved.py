"""What autograd saves for backward while modules compute: views of slots, packed as (unit, generation, offset, size, stride).

Where others' hooks come first, as in a region that is recomputed or under save_on_cpu, they get views: of a Parameter itself,
which they may keep, the memory is a placeholder when its module has ended.
"""

import collections
import threading

import torch

from . import away

Packed = collections.namedtuple("Packed", "unit generation offset size stride")


def _here():
    """Thread and backward that code runs in: each has hooks of its own for saved tensors."""
    return threading.get_ident(), torch._C._current_graph_task_id()


class SavedTensors:
    """slots: of slots.Slots. bring(unit, generation): brings it in for backward, or raises if it has other values by now."""

    def __init__(self, slots, device, is_mine, generation, bring):
        self._slots = slots
        self._device = device
        self._is_mine = is_mine  # whether a tensor is a Parameter on the tiers
        self._generation = generation  # by unit: how often its values have changed
        self._bring = bring
        self._pushed = []  # by module that runs forward now: who pushed hooks (_here()), or None

    def whole_pass(self):
        """For the whole of a forward pass."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def enter(self):
        """While a module runs, our hooks come first."""
        self._pushed.append(self._push())

    def leave(self):
        if self._pushed and self._pushed.pop() is not None:
            torch._C._autograd._pop_saved_tensors_default_hooks()

    def settle(self):
        """Of modules that an interrupt kept from leaving. A backward's hooks are gone with it."""
        while self._pushed:
            if self._pushed.pop() == _here():
                torch._C._autograd._pop_saved_tensors_default_hooks()

    def _push(self):
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
            return pack(away.detached(tensor) if self._is_mine(tensor) else tensor)

        pack_view.sluice = self
        return pack_view

    def _pack(self, tensor):
        if tensor.layout != torch.strided or tensor.device != self._device:
            return tensor
        unit = self._slots.unit_of(tensor)
        if unit is None or tensor.dtype != self._slots[unit].dtype:
            return tensor
        return Packed(unit, self._generation[unit], tensor.storage_offset(), tensor.size(), tensor.stride())

    def _unpack(self, packed):
        if not isinstance(packed, Packed):
            return packed
        slot = self._bring(packed.unit, packed.generation)
        return slot.as_strided(packed.size, packed.stride, packed.offset)
