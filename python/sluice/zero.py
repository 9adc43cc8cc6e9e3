"""DeepSpeed's `zero` namespace, as far as it has a meaning here."""

import torch

from . import _abi, _refusal, registry
from .config import load_config
from .attached import is_placeholder, placeholder
from .init import init


class Init(init):
    """DeepSpeed's name for sluice.init: the model is built without ever being whole in RAM, with the same weights for
    the same seed. The arguments are DeepSpeed's. A configuration is read for one thing: where offload_param is on NVMe,
    the temporary file goes there. Parameters are initialised in their own type; `dtype` and the rest have no effect."""

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
        directory = None
        config = config if config is not None else config_dict_or_path
        if config is not None:
            read = load_config(config)
            if read.offload_param == "nvme":
                directory = read.nvme_paths[0]
        super().__init__(directory=directory)

    def __enter__(self):
        return super().__enter__() if self._enabled else self

    def __exit__(self, *exception):
        return super().__exit__(*exception) if self._enabled else False


class GatheredParameters:
    """While it is open, the parameters given have their values, after all updates; others are left as they are.

    modifier_rank: None: what is written meanwhile is lost. 0: it is written to the fp32 master; elements that were not
    changed keep theirs to the last bit. Not to be used inside a forward to modify. The values take RAM meanwhile (twice
    with modifier_rank).
    """

    def __init__(self, params, modifier_rank=None, fwd_module=None, enabled=True):
        if isinstance(params, torch.Tensor):
            params = [params]
        self._params = list({id(p): p for p in params}.values()) if enabled else []
        self._modify = modifier_rank is not None
        self._open = []  # (registry.Found, values before or None)

    def __enter__(self):
        try:
            for parameter in self._params:
                self._gather(parameter)
        except BaseException:
            self._hide()
            raise
        return self

    def _gather(self, parameter):
        found = registry.find(parameter)
        if found is None:
            return
        if not found.holder.streams:
            found.holder.synchronize()
            return
        if not is_placeholder(parameter.data):  # its module computes now
            if self._modify:
                raise RuntimeError("a parameter can't be modified while its module computes")
            return
        before = found.read(_abi.PARAM, found.holder.dtype).to(found.holder.device)
        parameter.data = before.clone() if self._modify else before
        self._open.append((found, before if self._modify else None))

    def __exit__(self, kind, error, trace):
        try:
            if kind is None and self._modify:
                for found, before in self._open:
                    _write_back(found, before)
        finally:
            self._hide()
        return False

    def _hide(self):
        for found, _ in self._open:
            found.parameter.data = placeholder(found.parameter.shape, found.holder.dtype, found.holder.device)
        self._open.clear()


def _write_back(found, before):
    before, after = before.cpu(), found.parameter.detach().cpu()
    bits = {2: torch.int16, 4: torch.int32}[before.element_size()]
    changed = before.view(bits) != after.contiguous().view(bits)
    if changed.any():
        found.write(_abi.MASTER, torch.where(changed, after.float(), found.read(_abi.MASTER, torch.float32)))


_NOT_OFFERED = {
    "register_external_parameter": "give the other module the parameter as an attribute too: such are tied",
    "unregister_external_parameter": "see register_external_parameter",
    "TiledLinear": "large layers are moved as they are, or in smaller units (sluice.unit_elements)",
    "TiledLinearReturnBias": "see TiledLinear",
    "MiCS_Init": "MiCS is not offered; use zero.Init",
}

__getattr__ = _refusal.of_names(__name__, _NOT_OFFERED)
