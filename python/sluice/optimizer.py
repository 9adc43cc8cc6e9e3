"""The optimizer as loops and LR schedulers see it when the engine owns the step, and how it comes about: from the
configuration, or from a client's torch optimizer."""

import torch

from . import _abi, hyperparameters, values
from .adamw import AdamW

DEFAULTS = {
    "lr": 1e-3,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0.0,
    "l2_decay": False,
    "bias_correction": True,
}


_STATES = (("exp_avg", _abi.EXP_AVG), ("exp_avg_sq", _abi.EXP_AVG_SQ), ("master", _abi.MASTER))


class EngineOptimizer(torch.optim.Optimizer):
    """param_groups are read at each step. The states live in the runtime; step() is the engine's. Parameters in no
    group are left alone."""

    def __init__(self, groups, defaults):
        self.engine = None  # a weak reference, set by the engine
        super().__init__(groups, defaults)

    def add_param_group(self, group):
        super().add_param_group(group)
        try:
            hyperparameters.checked(self.param_groups[-1])
            if self.engine is not None:
                self._alive().check_optimized(self.param_groups[-1]["params"])
        except BaseException:
            self.param_groups.pop()
            raise

    def groups_by_id(self):
        """id of Parameter -> its group, as the groups are now."""
        return {id(p): group for group in self.param_groups for p in group["params"]}

    def step(self, closure=None):
        if closure is not None:
            raise ValueError("closures are not supported: call engine.backward() and engine.step()")
        # LR schedulers check that the optimizer stepped before them, by this method.
        return self.engine().step() if self.engine is not None else None

    def zero_grad(self, set_to_none=True):
        self.engine().zero_grad()

    # ---- States

    def state_dict(self):
        """As torch.optim.AdamW's, with moments in fp32, and `master` where parameters aren't fp32. All of it is in RAM
        then."""
        packed = super().state_dict()
        engine = self._alive()
        stepped = {}
        for index, parameter in enumerate(self._order()):
            steps = engine.runtime.tensor_info(engine.tensor_of(parameter)).step
            if steps > 0:
                stepped[index] = (engine.tensor_of(parameter), parameter.shape)
                packed["state"][index] = {"step": torch.tensor(float(steps))}
        for key, field in _STATES:
            if key == "master" and engine.dtype == torch.float32:
                continue
            requests = [(index, number, shape) for index, (number, shape) in stepped.items()]
            for index, value in values.read_all(engine.runtime, requests, field, torch.float32).items():
                packed["state"][index][key] = value
        return packed

    def load_state_dict(self, state_dict):
        """From another engine's optimizer, a sluice.AdamW, or torch.optim.AdamW or Adam. Parameters that have no states
        there begin anew."""
        engine = self._alive()
        names = [name for group in state_dict["param_groups"] for name in group["params"]]
        mine, saved = (
            [len(group["params"]) for group in groups] for groups in (self.param_groups, state_dict["param_groups"])
        )
        if mine != saved:
            raise ValueError(f"state_dict: its groups have {saved} parameters, the optimizer's {mine}")
        entries = list(zip(self._order(), (state_dict["state"].get(name) for name in names)))
        for parameter, entry in entries:
            _check_states(parameter, entry)
        self._load_groups(state_dict["param_groups"])
        engine.synchronize()
        for parameter, entry in entries:
            engine.runtime.set_step(engine.tensor_of(parameter), int(entry["step"]) if entry else 0)
        for key, field in _STATES:
            values.write_all(engine.runtime, _tensors_of(entries, key, engine.tensor_of), field)

    def _load_groups(self, saved):
        """Into the very groups there are: a client's optimizer has them too."""
        mine = self.param_groups
        missing = [{k: group[k] for k in ("l2_decay", "bias_correction")} for group in mine]
        super().load_state_dict({"state": {}, "param_groups": saved})
        for group, loaded, more in zip(mine, self.param_groups, missing, strict=True):
            if "decoupled_weight_decay" in loaded:  # PyTorch's
                more["l2_decay"] = not loaded["decoupled_weight_decay"]
            group.clear()
            group.update({**more, **loaded})
        self.param_groups = mine

    def _order(self):
        return [p for group in self.param_groups for p in group["params"]]

    def _alive(self):
        engine = self.engine() if self.engine is not None else None
        if engine is None:
            raise _abi.FailedPrecondition("the optimizer's engine is gone, and the states with it")
        return engine

    @property
    def cur_scale(self):
        """The loss scale in use."""
        return self.engine().loss_scale()

    loss_scale = cur_scale


def _check_states(parameter, entry):
    if entry is None:
        return
    if "max_exp_avg_sq" in entry:
        raise ValueError("the state_dict is of an optimizer with amsgrad, which is not offered")
    for key in ("step", "exp_avg", "exp_avg_sq"):
        if key not in entry:
            raise ValueError(f"the state_dict has no {key!r} for a parameter")
    for key, _ in _STATES:
        if key in entry and entry[key].shape != parameter.shape:
            raise ValueError(
                f"the state_dict has {key} of shape {tuple(entry[key].shape)} for a parameter of shape "
                f"{tuple(parameter.shape)}"
            )


def _tensors_of(entries, key, tensor_of):
    for parameter, entry in entries:
        if entry is not None and key in entry:
            yield tensor_of(parameter), entry[key]
        elif entry is None and key != "master":
            yield tensor_of(parameter), torch.zeros(parameter.shape)


def _checked_group(group, l2_decay):
    if group.get("amsgrad") or group.get("maximize"):
        raise ValueError("optimizer: amsgrad and maximize are not offered")
    group.setdefault("l2_decay", l2_decay and not group.get("decoupled_weight_decay", False))
    group.setdefault("bias_correction", True)
    hyperparameters.checked(group)
    group["lr"] = float(group["lr"])
    group["betas"] = tuple(map(float, group["betas"]))
    return group


def _from_client(optimizer):
    """The engine's optimizer over the very groups of a torch Adam or AdamW: whoever holds the client's, such as an
    LR scheduler made for it, goes on setting the rates."""
    if not isinstance(optimizer, (torch.optim.Adam, AdamW)):
        raise TypeError(
            f"optimizer: {type(optimizer).__name__} is not offered; use torch.optim.AdamW or Adam, or configure one"
        )
    if len(optimizer.state) > 0 or getattr(optimizer, "report", lambda: None)() is not None:
        raise ValueError("optimizer: it has stepped already; its states can't be taken over: pass a fresh one")
    l2_decay = not isinstance(optimizer, (torch.optim.AdamW, AdamW))
    groups = [_checked_group(group, l2_decay) for group in optimizer.param_groups]
    return EngineOptimizer(groups, {**DEFAULTS, **{k: v for k, v in groups[0].items() if k in DEFAULTS}})


def make_optimizer(model, configured, client, model_parameters):
    """(the engine's optimizer, the client's or None).

    configured: hyperparameters of the configuration, or None. client: a torch optimizer, or a function from the
    parameters to one; it goes before what is configured. model_parameters: parameters, or groups of them; None: those of
    the model that require a gradient now.
    """
    if model_parameters is None:
        model_parameters = (p for p in model.parameters() if p.requires_grad)
    parameters = list(model_parameters)
    if client is not None and not isinstance(client, torch.optim.Optimizer):
        if not callable(client):
            raise TypeError(f"optimizer: must be a torch optimizer or a function, not {type(client).__name__}")
        client = client(parameters)
    if client is not None:
        return _from_client(client), client
    defaults = configured or DEFAULTS
    groups = parameters if parameters and isinstance(parameters[0], dict) else [{"params": parameters}]  # may be none
    return EngineOptimizer([dict(group) for group in groups], dict(defaults)), None
