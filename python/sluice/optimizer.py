"""The optimizer as loops and LR schedulers see it when the engine owns the step, and how it comes about: from the
configuration, or from a client's torch optimizer."""

import torch

from .adamw import AdamW

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
        self.group_of = {}  # id of Parameter -> its group
        self.engine = None  # a weak reference, set by the engine
        super().__init__(groups, defaults)

    def add_param_group(self, group):
        super().add_param_group(group)
        if self.engine is not None and any(map(self.engine().is_frozen, self.param_groups[-1]["params"])):
            self.param_groups.pop()
            raise ValueError(
                "a parameter that did not require a gradient when the module was attached has no states: it can't be "
                "optimized; let it require one before sluice.attach()"
            )
        self.group_of.update((id(p), self.param_groups[-1]) for p in self.param_groups[-1]["params"])

    def step(self, closure=None):
        if closure is not None:
            raise ValueError("closures are not supported: call engine.backward() and engine.step()")
        # LR schedulers check that the optimizer stepped before them, by this method.
        return self.engine().step() if self.engine is not None else None

    def zero_grad(self, set_to_none=True):
        self.engine().zero_grad()

    @property
    def cur_scale(self):
        """The loss scale in use."""
        return self.engine().loss_scale

    loss_scale = cur_scale


def _checked_group(group, l2_decay):
    if group.get("amsgrad") or group.get("maximize"):
        raise ValueError("optimizer: amsgrad and maximize are not offered")
    group["lr"] = float(group["lr"])
    group["betas"] = tuple(map(float, group["betas"]))
    group.setdefault("l2_decay", l2_decay and not group.get("decoupled_weight_decay", False))
    group.setdefault("bias_correction", True)
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
    parameters to one; it goes before what is configured. model_parameters: parameters, or groups of them; None: all of
    the model's, also those that don't require a gradient now.
    """
    parameters = list(model.parameters() if model_parameters is None else model_parameters)
    if client is not None and not isinstance(client, torch.optim.Optimizer):
        if not callable(client):
            raise TypeError(f"optimizer: must be a torch optimizer or a function, not {type(client).__name__}")
        client = client(parameters)
    if client is not None:
        return _from_client(client), client
    defaults = configured or DEFAULTS
    groups = parameters if parameters and isinstance(parameters[0], dict) else [{"params": parameters}]  # may be none
    return EngineOptimizer([dict(group) for group in groups], dict(defaults)), None
