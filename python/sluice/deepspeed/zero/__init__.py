"""DeepSpeed's `zero` namespace, as far as it has a meaning here."""

import torch

from ...building import init
from ...collectives import initialise
from ...residency import away, registry
from .. import dropin, parameters, refusal
from ..config import load_config


class Init(init):
    """DeepSpeed's name for sluice.init: the model is built without ever being whole in RAM, with the same weights for
    the same seed. The arguments are DeepSpeed's. A configuration is read for one thing: where offload_param is on NVMe,
    the temporary file goes there. Parameters are initialised in their own type; `dtype` and the rest have no effect. To programs that
    say `deepspeed` it sets up torch.distributed, too, and marks parameters (ds_id and so on), as they count on that."""

    def __init__(
        self,
        module=None,
        data_parallel_group=None,
        mem_efficient_linear=True,
        remote_device=None,
        pin_memory=False,
        config_dict_or_path=None,
        config=None,
        enabled=True,
        dtype=None,
        mpu=None,
        **others,
    ):
        if mpu is not None:
            raise ValueError("mpu: model parallelism is not offered")
        self._enabled = enabled
        if enabled and dropin.is_active():
            initialise(alone=True)
        directory = None
        config = config if config is not None else config_dict_or_path
        if config is not None:
            read = load_config(config, scheduled=False)
            if read.offload_param == "nvme":
                directory = read.nvme_paths[0]
        super().__init__(directory=directory)
        self.mark = parameters.mark if dropin.is_active() else None

    def __enter__(self):
        return super().__enter__() if self._enabled else self

    def __exit__(self, *exception):
        return super().__exit__(*exception) if self._enabled else False


class GatheredParameters:
    """While it is open, the parameters given are on loan: they have their values, after all updates, in memory of their own;
    a forward computes with them, and a step renews them. What is written meanwhile is kept, as by PyTorch: it goes to the fp32
    master, and elements that were not changed keep theirs to the last bit. Others are left as they are. The values take memory
    on the model's device meanwhile.

    With several ranks all must open and close it, whoever reads. At its end all have what modifier_rank has; if that is None, all
    must have written the same, or nothing. Errors: ValueError, on all ranks, where they have not: nothing was written then. With
    one rank modifier_rank has no effect.
    """

    def __init__(self, params, modifier_rank=None, fwd_module=None, enabled=True):
        if isinstance(params, torch.Tensor):
            params = [params]
        self._params = list({id(p): p for p in params}.values()) if enabled else []
        self._open = []  # (owner, parameter)
        self._modifier_rank = modifier_rank

    def __enter__(self):
        try:
            for parameter in self._params:
                if away.is_owned(parameter):
                    owner = away.owner_of(parameter)
                    self._open.append((owner, parameter))  # first: an interrupt may come in between
                    owner.gather(parameter, self)
                elif (found := registry.find(parameter)) is not None:
                    found.holder.synchronize()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind, error, trace):
        try:
            if kind is None:
                self._agree()
        finally:
            self._end()
        return False

    def _agree(self):
        by_holder = {}
        for _, parameter in self._open:
            found = registry.find(parameter)
            if found is not None and found.holder.streams:
                by_holder.setdefault(found.holder, []).append(parameter)
        for holder, parameters in by_holder.items():
            holder.agree_on_loans(parameters, self._modifier_rank)

    def _end(self):
        """All of them, whatever becomes of one. Errors: the first."""
        errors = []
        while self._open:
            owner, parameter = self._open[-1]
            try:
                owner.end_gather(parameter, self)
            except Exception as error:
                errors.append(error)
            self._open.pop()
        if errors:
            raise errors[0]


def register_external_parameter(module, parameter):
    """No effect: a parameter comes in wherever it is used, by whatever module."""
    if not isinstance(module, torch.nn.Module) or not isinstance(parameter, torch.nn.Parameter):
        raise TypeError("register_external_parameter() takes a module and a Parameter")


def unregister_external_parameter(module, parameter):
    """See register_external_parameter()."""
    register_external_parameter(module, parameter)


_NOT_OFFERED = {
    "TiledLinear": "large layers are moved as they are, or in smaller units (sluice.unit_elements)",
    "TiledLinearReturnBias": "see TiledLinear",
    "MiCS_Init": "MiCS is not offered; use zero.Init",
}

__getattr__ = refusal.of_names("sluice.zero", _NOT_OFFERED)
