"""Values of an engine's model: what others ask of a holder of parameters, state dicts, and what lists the model."""

import collections

import torch

from ..native import abi, values
from ..residency import loading


class EngineValues:
    """Mixed into Engine. Expects runtime, module and what Engine._attach() makes."""

    # ---- As a holder of parameters (registry.py)

    def agree_on_loans(self, parameters, rank):
        """Of parameters on loan: all ranks' values become those of that rank. None: they must be the same. Does nothing with one
        rank. Errors: ValueError if they are not; they are then what they were."""
        if self._world is None:
            return
        if rank is not None:
            for parameter in parameters:
                self._world.share(parameter, rank)
            return
        try:
            self._world.check_same(self._attached.loans_in_words(parameters), "what was written inside GatheredParameters")
        except ValueError as error:
            self.renew_values()
            raise ValueError(f"{error}: write the same on all ranks, or name the one that counts (modifier_rank)") from None

    streams = True

    def tensor_of(self, parameter):
        return self._attached.tensors.get(id(parameter))

    def groups_changed(self):
        """The optimizer has other parameters than before."""
        if "_attached" in self.__dict__:
            self._attached.gradients.ask_again()

    def values_changed(self, parameter):
        """Not by a step: what was saved for backward is of the past."""
        self._attached.values_changed(parameter)

    def settle_values(self):
        """Everything that was written to parameters is on the tiers."""
        self._attached.settle_values()

    def renew_values(self):
        """Parameters that are on loan have what is on the tiers."""
        self._attached.renew_values()

    def finish_gradients(self):
        """What `.grad` is now is on the tiers. """
        self._attached.gradients.settle()
        self.runtime.lent.finish()

    def module_state_dict(self):
        """The model's state_dict: exact copies of the compute parameters, after all updates. At stage 3, or with parameters on
        NVMe, all ranks must call it."""
        return self.module.state_dict()

    def zero_gather_16bit_weights_on_model_save(self):
        """Whether frameworks may ask for the whole model to save it: always."""
        return True

    def _zero3_consolidated_16bit_state_dict(self, exclude_frozen_parameters=False):
        """module_state_dict() by the name that frameworks call, in RAM; None on other ranks than 0."""
        found = self.module_state_dict()
        if self.global_rank != 0:
            return None
        left_out = set()
        if exclude_frozen_parameters:
            named = self.module.named_parameters(remove_duplicate=False)
            left_out = {name for name, parameter in named if not parameter.requires_grad}
        return {name: _in_ram(value) for name, value in found.items() if name not in left_out}

    def state_dict(self, *args, **kwargs):
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict, strict=True, assign=False):
        """Into the fp32 masters and the model's buffers; what fp32 values have beyond the model's type is kept. The
        states of the optimizer stay. All ranks must load the same. Errors: the module's."""
        if assign:
            raise ValueError("assign: the model's parameters are on the tiers, and can't be replaced")
        self._check_open()
        self._attached.settle_all()
        self._attached.settle_values()
        self._end_iteration()
        with loading.into_masters(self.module, self.runtime, self._attached):
            return self.module.load_state_dict(state_dict, strict)

    # What lists the model, here as there. children() stay empty: to(), half() and the like don't reach what is placed.

    def named_modules(self, *args, **kwargs):
        return self.module.named_modules(*args, **kwargs)

    def modules(self, *args, **kwargs):
        """Itself first, by which frameworks find it."""
        yield self
        yield from self.module.modules(*args, **kwargs)

    def named_parameters(self, *args, **kwargs):
        return self.module.named_parameters(*args, **kwargs)

    def parameters(self, *args, **kwargs):
        return self.module.parameters(*args, **kwargs)

    def named_buffers(self, *args, **kwargs):
        return self.module.named_buffers(*args, **kwargs)

    def buffers(self, *args, **kwargs):
        return self.module.buffers(*args, **kwargs)

    def fp32_state_dict(self):
        """What a plain model loads strictly: the fp32 masters under all the names of each parameter (those without values of
        floating point as they are), and buffers as the model's state_dict has them. At stages 1 to 3 each rank has a part of
        the masters only, so all must call it: one alone waits for the others, and fails after 10 minutes."""
        self._attached.settle_values()
        found = values.read_all(self.runtime, self._master_requests(), abi.MASTER)
        result = collections.OrderedDict()
        for name, parameter in self.module.named_parameters(remove_duplicate=False):
            result[name] = found[id(parameter)] if id(parameter) in found else parameter.detach()
        for prefix, module in self.module.named_modules(remove_duplicate=False):
            start = prefix + "." if prefix else ""
            buffers = ((n, b) for n, b in module._buffers.items() if n not in module._non_persistent_buffers_set)
            result.update((start + n, b.detach().clone()) for n, b in buffers if b is not None)
            if type(module).get_extra_state is not torch.nn.Module.get_extra_state:
                result[start + "_extra_state"] = module.get_extra_state()
        return result

    def _master_requests(self):
        for place in self._attached.place_of.values():
            yield id(place.parameter), place.tensor, place.shape, place.dtype if place.raw else torch.float32

    def optimizer_state_dict(self):
        """exp_avg and exp_avg_sq (fp32) and the number of updates, by parameter name. At stages 1 to 3 all ranks must call
        it, as fp32_state_dict()."""
        kept = [(n, number, p.shape) for n, number, p in self._named() if not self.is_frozen(p)]
        averages = values.read_all(self.runtime, kept, abi.EXP_AVG, torch.float32)
        squares = values.read_all(self.runtime, kept, abi.EXP_AVG_SQ, torch.float32)
        return {
            name: {
                "exp_avg": averages[name],
                "exp_avg_sq": squares[name],
                "step": self.runtime.tensor_info(number).step,
            }
            for name, number, _ in kept
        }

    def _named(self):
        for unit in self._units:
            for name, parameter in unit.parameters:
                yield name, self._attached.tensors[id(parameter)], parameter


def _in_ram(value):
    return value.detach().cpu() if isinstance(value, torch.Tensor) else value
