"""The optimizer as loops and LR schedulers see it when the engine owns the step, and how it comes about: from the
configuration, or from a client's torch optimizer. Without either there is none, and no states are kept."""

import math

import torch

from ..adamw import AdamW
from ..native import abi, values
from ..optimizers import hyperparameters, state_dicts

DEFAULTS = {
    "lr": 1e-3,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0.0,
    "l2_decay": False,
    "bias_correction": True,
}


class EngineOptimizer(torch.optim.Optimizer):
    """param_groups are read at each step. The states live in the runtime; step() is the engine's. Parameters in no
    group are left alone."""

    def __init__(self, groups, defaults):
        self.engine = None  # a weak reference, set by the engine
        self._torn = False  # load_state_dict() did not get to its end
        super().__init__(groups, defaults)

    def add_param_group(self, group):
        super().add_param_group(group)
        try:
            hyperparameters.checked(self.param_groups[-1])
            if self.engine is not None:
                engine = self._alive()
                engine.check_optimized(self.param_groups[-1]["params"])
                engine.groups_changed()
        except BaseException:
            self.param_groups.pop()
            raise

    def groups_by_id(self):
        """id of Parameter -> its group, as the groups are now."""
        self._check_whole()
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
        then. With several ranks all must call it, as fp32_state_dict()."""
        engine = self._alive()
        engine.settle_values()
        self._check_whole()
        states, numbers = {}, {}
        for parameter in self._order():
            number = engine.tensor_of(parameter)
            if number is None:  # it has no elements
                continue
            steps = engine.runtime.tensor_info(number).step
            if steps > 0:
                numbers[parameter] = number
                states[parameter] = {"step": state_dicts.step_tensor(steps)}
        for key, field in state_dicts.STATES.items():
            requests = [
                (parameter, number, parameter.shape)
                for parameter, number in numbers.items()
                if key != "master" or parameter.dtype != torch.float32
            ]
            for parameter, value in values.read_all(engine.runtime, requests, field, torch.float32).items():
                states[parameter][key] = value
        with state_dicts.shown_to_pytorch(self, states):
            return super().state_dict()

    def load_state_dict(self, state_dict):
        """From another engine's optimizer, a sluice.AdamW, or torch.optim.AdamW or Adam. Parameters that have no states
        there begin anew. All ranks must load the same. Errors: ValueError, naming the parameter, if any of it can't be taken;
        nothing has changed then."""
        engine = self._alive()
        names = {id(p): name for name, p in engine.module.named_parameters()}
        loading = state_dicts.Loading(self, state_dict, lambda p: names.get(id(p), "(not the model's)"))
        engine.synchronize()
        self._torn = True
        loading.apply_groups()
        for parameter, entry in loading.entries:
            engine.runtime.set_step(engine.tensor_of(parameter), entry["step"] if entry else 0)
        for key, field in state_dicts.STATES.items():
            values.write_all(engine.runtime, _tensors_of(loading.entries, key, engine.tensor_of), field)
        self._torn = False
        loading.finish()

    def _check_whole(self):
        if self._torn:
            raise abi.FailedPrecondition(
                "load_state_dict() of this optimizer was interrupted, so that some states are loaded and others are not: call it "
                "again"
            )

    def _order(self):
        return [p for group in self.param_groups for p in group["params"]]

    def _alive(self):
        engine = self.engine() if self.engine is not None else None
        if engine is None:
            raise abi.FailedPrecondition("the optimizer's engine is gone, and the states with it")
        return engine

    @property
    def cur_scale(self):
        """The loss scale in use."""
        return self.engine().loss_scale()

    loss_scale = cur_scale

    @property
    def overflow(self):
        """Whether the last step at a boundary was left out, as the norm of its gradients was not finite."""
        norm = self._alive().get_global_grad_norm()
        return norm is not None and not math.isfinite(norm)


DeepSpeedOptimizer = EngineOptimizer


class NoOptimizer(EngineOptimizer):
    """Where nobody named an optimizer: no groups, and no states are kept. What would need them raises."""

    def __init__(self):
        super().__init__([{"params": []}], dict(DEFAULTS))
        self.param_groups.clear()

    def refuse(self, *args, **kwargs):
        raise abi.FailedPrecondition(
            'no optimizer was named, so no states are kept and nothing can be trained: give the configuration an "optimizer" '
            "section, or optimizer= (torch.optim.AdamW, say) to sluice.initialize() or sluice.attach()"
        )

    step = load_state_dict = refuse

    def add_param_group(self, group):
        if self.engine is not None:  # else the base class is being made
            self.refuse()
        super().add_param_group(group)


def _tensors_of(entries, key, tensor_of):
    for parameter, entry in entries:
        if entry is not None and key in entry:
            yield tensor_of(parameter), entry[key]
        elif entry is None and key != "master":
            yield tensor_of(parameter), values.zeros(parameter.shape, torch.float32)


def _checked_group(group, l2_decay):
    if group.get("amsgrad") or group.get("maximize"):
        raise ValueError("optimizer: amsgrad and maximize are not offered")
    group.setdefault("l2_decay", l2_decay and not group.get("decoupled_weight_decay", False))
    group.setdefault("bias_correction", True)
    hyperparameters.checked(group)
    group["betas"] = tuple(map(float, group["betas"]))
    if not isinstance(group["lr"], torch.Tensor):  # a tensor stays the client's own: schedules fill it
        group["lr"] = float(group["lr"])
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
    """(the engine's optimizer, the client's or None). Where neither is there, a NoOptimizer.

    configured: hyperparameters of the configuration, or None. client: a torch optimizer, or a function from the
    parameters to one; it goes before what is configured. model_parameters: parameters, or groups of them; None: those of
    the model that require a gradient now.
    """
    if configured is None and client is None:
        return NoOptimizer(), None
    if model_parameters is None:
        model_parameters = (p for p in model.parameters() if p.requires_grad)
    parameters = list(model_parameters)
    if client is not None and not isinstance(client, torch.optim.Optimizer):
        if not callable(client):
            raise TypeError(f"optimizer: must be a torch optimizer or a function, not {type(client).__name__}")
        client = client(parameters)
    if client is not None:
        return _from_client(client), client
    groups = parameters if parameters and isinstance(parameters[0], dict) else [{"params": parameters}]  # may be none
    return EngineOptimizer([dict(group) for group in groups], dict(configured)), None
