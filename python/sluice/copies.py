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


def wait_first(parameter, synchronize):
    """Until wait_no_more(), a copy of the parameter first calls synchronize(), which gives it its values."""

    def deepcopy(memo):
        synchronize()
        return type(parameter).__deepcopy__(parameter, memo)

    def reduce(protocol):
        synchronize()
        return type(parameter).__reduce_ex__(parameter, protocol)

    parameter.__deepcopy__ = deepcopy
    parameter.__reduce_ex__ = reduce


def wait_no_more(parameter):
    del parameter.__deepcopy__, parameter.__reduce_ex__
