"""Deep copies and pickles of a model on the tiers: they have nothing of Sluice."""

import torch


def nothing(*arguments):
    """What a copy has in place of a hook."""


def _nothing():
    return nothing


class Hook:
    """A hook that stays with its module: copies and pickles of the module have `nothing` instead."""

    def __init__(self, function):
        self._function = function

    def __call__(self, *arguments):
        return self._function(*arguments)

    def hide_from_compiler(self):
        """torch.compile runs the hook as it is: it breaks the graph there."""
        self._function = torch._dynamo.disable(self._function)

    def __deepcopy__(self, memo):
        return nothing

    def __reduce__(self):
        return _nothing, ()
