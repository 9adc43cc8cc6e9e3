"""sluice.AdamW: a torch optimizer whose states live on the tiers, for any training loop.

    optimizer = sluice.AdamW(model.parameters(), lr=1e-4, pinned="32GiB", nvme_path="/mnt/nvme")

Parameters and `.grad` stay PyTorch's; step() reads the one and writes the other. So clip_grad_norm_, GradScaler, LR
schedulers and closures work as ever. The runtime, and with it all memory and disk space, is taken at the first step.
"""

import os
import sys
import warnings

import torch

from . import _abi, copies, hyperparameters, registry, units
from .away import placeholder
from .config import parse_bytes
from .state_store import StateStore, check_parameter, in_place, units_of

_WHOLE = 1 << 60  # elements; no module is cut


class AdamW(torch.optim.Optimizer):
    """PyTorch's AdamW, with states in fp32 on pinned RAM and NVMe, and an fp32 master of bf16 and fp16 parameters.

    pinned, nvme: budgets in bytes, or like "8GiB"; None: chosen from the machine, as needed. nvme_path: a directory, or
    several on different drives; None: nothing goes to a drive. workers: threads that update; None: chosen.
    adamw_mode=False: weight decay is added to the gradient (Adam).

    step() returns with the parameters written. With overlap=module it returns earlier: the update runs on, and each
    layer of the module waits for its own part before its forward; until then its parameters read NaN. synchronize()
    waits for all; state_dict() and load_state_dict() of the module and its parts, and of the optimizer, deep copies,
    pickles and sluice.zero.GatheredParameters do so themselves.

    A parameter without gradient is left alone. A parameter that was changed from outside is taken as it is: the master
    follows. If a gradient is not finite, nothing is changed, a warning says so, and was_step_applied() is false.
    Subnormals are flushed to zero. Not thread-safe: one thread trains.
    """

    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=1e-2,
        amsgrad=False,
        *,
        maximize=False,
        foreach=None,
        capturable=False,
        differentiable=False,
        fused=None,
        bias_correction=True,
        adamw_mode=True,
        pinned=None,
        nvme=None,
        nvme_path=None,
        workers=None,
        overlap=None,
        chunk_elements=None,
        library=None,
        simulated_seed=None,
    ):
        if amsgrad or maximize or differentiable or capturable:
            raise ValueError("amsgrad, maximize, differentiable and capturable are not offered")
        paths = (nvme_path,) if isinstance(nvme_path, (str, os.PathLike)) else tuple(nvme_path or ())
        self._options = {
            "pinned_bytes": -1 if pinned is None else parse_bytes(pinned, "pinned"),
            "nvme_bytes": -1 if nvme is None else parse_bytes(nvme, "nvme"),
            "nvme_paths": paths,
            "lowest_state_tier": _abi.NVME if paths else _abi.PINNED,
            "workers": workers or 0,
            "chunk_elements": chunk_elements or 0,
        }
        self._library = _abi.Library(library) if library else None
        self._seed = simulated_seed
        self._module = overlap
        self._store = None
        self._grown = False  # parameters were added since the store was made
        self._spooled = None  # states on their way into a new store
        self._closed = False
        self._applied = False
        self._hidden = {}  # id of Parameter -> its data, while its update is under way
        self._handles = []
        self._traceable = []  # hooks that torch.compile would trace into
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "bias_correction": bias_correction,
            "l2_decay": not adamw_mode,
        }
        super().__init__(params, defaults)
        registry.add(self)

    # ---- Groups

    def add_param_group(self, param_group):
        """Also after steps: states move through a temporary file (in nvme_path, if there is one) at the next step."""
        super().add_param_group(param_group)
        try:
            for parameter in self.param_groups[-1]["params"]:
                check_parameter(parameter)
            hyperparameters.checked(self.param_groups[-1])
        except BaseException:
            self.param_groups.pop()
            raise
        self._grown = self._store is not None

    def __setstate__(self, state):
        super().__setstate__(state)
        for group in self.param_groups:
            if "decoupled_weight_decay" in group:  # a state_dict of PyTorch's
                group.setdefault("l2_decay", not group["decoupled_weight_decay"])
            for key, value in self.defaults.items():
                group.setdefault(key, value)

    # ---- Steps

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every parameter that has a gradient. Returns what the closure returns."""
        self._check_open()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.synchronize()
        store = self._started()
        chosen = {}
        for group in self.param_groups:
            values = None
            for parameter in group["params"]:
                if parameter.grad is not None:
                    values = values or hyperparameters.checked(group)
                    chosen[store.number[id(parameter)]] = values
        if not chosen:
            return loss
        self._applied = bool(store.step(chosen).applied)
        if not self._applied:
            warnings.warn("sluice.AdamW: a gradient is not finite: this step changed nothing", stacklevel=2)
        updated = [store.parameters[number] for number in chosen]
        torch.autograd.graph.increment_version(updated)
        if self._module is None or not self._applied:
            store.finish()
        else:
            self._hide(updated)
        return loss

    def was_step_applied(self):
        """Whether the last step() updated: false if a gradient was not finite."""
        return self._applied

    def synchronize(self):
        """Waits until every parameter is written. Does nothing if all are."""
        if self._store is not None and self._hidden:
            self._store.finish()
            for parameter in self._store.parameters:
                self._show(parameter)

    def _started(self):
        self._check_open()
        if self._store is not None and not self._grown:
            return self._store
        self.synchronize()
        self._check_overlap()
        if self._store is not None:
            self._spool()
        store = StateStore(self._units(), self._options, self._library, self._seed)
        if self._spooled is not None:
            try:
                store.restore(self._spooled)
            except BaseException:
                store.close()
                raise
            self._spooled.file.close()
            self._spooled = None
        self._store, self._grown = store, False
        self._place_hooks()
        return store

    def _check_open(self):
        if self._closed:
            raise _abi.FailedPrecondition("the optimizer is closed: its states are gone")

    def _spool(self):
        """Ends the store. Its states stay in the file until a new store has all of them."""
        paths = self._options["nvme_paths"]
        self._spooled = self._store.spool(paths[0] if paths else None)
        old, self._store = self._store, None
        old.close()

    def _units(self):
        mine = {id(p): p for group in self.param_groups for p in group["params"]}
        result = []
        if self._module is not None:
            for unit in units.partition(self._module, _WHOLE)[0]:
                parameters = [mine.pop(id(p)) for _, p in unit.parameters if id(p) in mine]
                if parameters:
                    result.append((unit.name, parameters))
        return result + units_of(mine.values())

    # ---- Overlap with the next forward

    def _check_overlap(self):
        if self._module is not None and not all(in_place(p) for group in self.param_groups for p in group["params"]):
            raise ValueError("overlap: every parameter must be contiguous and in RAM")

    def _place_hooks(self):
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._module is None:
            return
        before_forward, wait = copies.Hook(self._before_forward), copies.Hook(lambda *a: self.synchronize())
        for bracket in units.partition(self._module, _WHOLE)[1]:
            self._handles.append(bracket.module.register_forward_pre_hook(before_forward, prepend=True))
        self._traceable.append(before_forward)
        for module in self._module.modules():
            self._handles.append(module.register_state_dict_pre_hook(wait))
            self._handles.append(module.register_load_state_dict_pre_hook(wait))

    def _before_forward(self, module, args):
        if not self._hidden:
            return
        recurse = module is not self._module and not isinstance(module, units.CONTAINERS)
        for parameter in module.parameters(recurse=recurse):
            if id(parameter) in self._hidden:
                self._store.wait_for_unit(self._store.unit_of[id(parameter)])
                self._show(parameter)

    def _hide(self, parameters):
        if "torch._dynamo" in sys.modules:  # loading it takes seconds, so not before somebody compiles
            while self._traceable:
                self._traceable.pop().hide_from_compiler()
        for parameter in parameters:
            self._hidden[id(parameter)] = parameter.data
            parameter.data = placeholder(parameter.shape, parameter.dtype)
            copies.wait_first(parameter, self.synchronize)

    def _show(self, parameter):
        data = self._hidden.pop(id(parameter), None)
        if data is not None:
            parameter.data = data
            copies.wait_no_more(parameter)

    # ---- States

    def state_dict(self):
        """As torch.optim.AdamW's, with moments in fp32, and `master` for parameters that aren't fp32. All of it is in
        RAM then."""
        self._check_open()
        self.synchronize()
        packed = super().state_dict()
        if self._store is None and self._spooled is None:
            return packed
        store = self._started()
        order = [p for group in self.param_groups for p in group["params"]]
        for index, parameter in enumerate(order):
            steps = store.steps(parameter)
            if steps == 0:
                continue
            packed["state"][index] = {
                "step": torch.tensor(float(steps)),
                "exp_avg": store.read(parameter, _abi.EXP_AVG),
                "exp_avg_sq": store.read(parameter, _abi.EXP_AVG_SQ),
            }
            if parameter.dtype != torch.float32:
                packed["state"][index]["master"] = store.read(parameter, _abi.MASTER)
        return packed

    def load_state_dict(self, state_dict):
        """From another sluice.AdamW, or from torch.optim.AdamW or Adam."""
        self._check_open()
        self.synchronize()
        super().load_state_dict({"state": {}, "param_groups": state_dict["param_groups"]})
        order = [p for group in self.param_groups for p in group["params"]]
        names = [index for group in state_dict["param_groups"] for index in group["params"]]
        store = self._started()
        for parameter, name in zip(order, names, strict=True):
            entry = state_dict["state"].get(name)
            if entry is None:
                store.set_steps(parameter, 0)
                entry = {"exp_avg": torch.zeros(parameter.shape), "exp_avg_sq": torch.zeros(parameter.shape)}
            elif "max_exp_avg_sq" in entry:
                raise ValueError("the state_dict is of an optimizer with amsgrad, which is not offered")
            else:
                store.set_steps(parameter, int(entry["step"]))
            for key, field in (("exp_avg", _abi.EXP_AVG), ("exp_avg_sq", _abi.EXP_AVG_SQ), ("master", _abi.MASTER)):
                if key in entry:
                    store.write(parameter, field, entry[key])

    def report(self):
        """Counters, budgets and placement; None before the first step."""
        return None if self._store is None else self._store.runtime.report()

    # ---- As a holder of parameters (registry.py)

    streams = False

    @property
    def runtime(self):
        return self._started().runtime

    def tensor_of(self, parameter):
        if self._store is not None:
            known = self._store.number
        else:
            known = self._spooled.steps if self._spooled is not None else {}
        return self._started().number[id(parameter)] if id(parameter) in known else None

    def finish_gradients(self):
        """Nothing is kept of a gradient between steps."""

    # ---- The end

    def close(self):
        """Gives memory and disk space back. The parameters have their last values; the states are gone, and nothing
        can be stepped, saved or loaded any more."""
        if self._closed:
            return
        self.synchronize()
        self._closed = True
        registry.discard(self)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        store, self._store = self._store, None
        spooled, self._spooled = self._spooled, None
        if spooled is not None:
            spooled.file.close()
        if store is not None:
            store.close()

    def __del__(self):
        if self.__dict__.get("_store") is not None:
            self._store.close()  # what an update writes into lives until here

    def __deepcopy__(self, memo):
        raise TypeError("an optimizer with states on the tiers can't be copied: make a new one and load_state_dict()")

    def __reduce__(self):
        raise TypeError("an optimizer with states on the tiers can't be pickled: save its state_dict()")
