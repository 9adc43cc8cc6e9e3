"""Parameters that no optimizer states are kept for: they did not require a gradient when the engine was made, and nobody
named them for its optimizer. They are loaded once and never written back."""

from ..native import abi
from ..residency import away
from .optimizer import NoOptimizer


def find(optimizer, model, named, made, advice):
    """What of `model` keeps no states under that optimizer of an engine's. The rest as for Frozen."""
    if isinstance(optimizer, NoOptimizer):
        return AllFrozen(optimizer, model)
    return Frozen(model, named, made, advice)


class Frozen:
    """named: ids of Parameters that keep states, frozen or not. made, advice: for messages."""

    def __init__(self, model, named, made, advice):
        self._parameters = [(n, p) for n, p in model.named_parameters() if not p.requires_grad and id(p) not in named]
        self._ids = frozenset(id(p) for _, p in self._parameters)
        self._made, self._advice = made, advice

    def __contains__(self, parameter):
        return id(parameter) in self._ids

    def keep(self, units):
        """What is kept of the units' tensors, for abi.Runtime."""
        parameters = [p for unit in units for _, p in unit.parameters]
        return {number: abi.KEEP_PARAM for number, p in enumerate(parameters) if p in self}

    def check_trains(self):
        """Errors: FailedPrecondition if nothing can be trained."""

    def check_optimized(self, parameters):
        """Errors: ValueError if any of them has no states."""
        count = sum(p in self for p in parameters)
        if count:
            raise ValueError(
                f"optimizer: {count} of {len(parameters)} parameters did not require a gradient when {self._made}: they have "
                f"no states and can't be optimized; {self._advice}"
            )

    def check_still(self):
        """Errors: FailedPrecondition if one requires a gradient now, which would be for nothing."""
        for (name, _), thawed in zip(self._parameters, away.require_grad(p for _, p in self._parameters)):
            if thawed:
                raise abi.FailedPrecondition(
                    f"parameter {name} requires a gradient now, but did not when {self._made}: it has no states and can't be "
                    f"optimized; freeze it again, or {self._advice}"
                )

    def states_note(self, model, optimized):
        """What the parameters cost that have states and that `optimized` doesn't train now, as a note of the configuration;
        or nothing."""
        trained = {id(p) for p in optimized if p.requires_grad}
        elements = sum(p.numel() for p in model.parameters() if p not in self and id(p) not in trained)
        if not elements:
            return ()
        return (
            f"model_parameters: optimizer states, 12 bytes each, are kept for {elements} values that nothing trains now, since "
            "they were named or require a gradient: if that is to stay so, freeze them and leave them out",
        )


class AllFrozen(Frozen):
    """All parameters of a model that nobody named an optimizer for. They may require gradients, which are PyTorch's own
    then; only what would train them raises."""

    def __init__(self, optimizer, model):
        self._ids = frozenset(map(id, model.parameters()))
        self._refuse = optimizer.refuse

    def check_trains(self):
        self._refuse()

    def check_optimized(self, parameters):
        if parameters:
            self._refuse()

    def check_still(self):
        self._refuse()

    def states_note(self, model, optimized):
        return ("optimizer: none was named, so no states are kept, and step() raises",)
