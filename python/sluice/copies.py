"""Deep copies and pickles of a model on the tiers: they have the parameters' values, exact and up to date, and nothing
of Sluice. So does state_dict()."""

import collections

import torch

from . import _abi, values


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


def intercept(parameter, runtime, number, dtype):
    """From now on copies of the parameter have the values of tensor `number`."""

    def read():
        return values.read_all(runtime, [(0, number, parameter.shape)], _abi.PARAM, dtype)[0]

    def reduce(protocol):
        return torch._utils._rebuild_parameter, (read(), parameter.requires_grad, collections.OrderedDict())

    parameter.__deepcopy__ = lambda memo: torch.nn.Parameter(read(), parameter.requires_grad)
    parameter.__reduce_ex__ = reduce


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


def fill_state_dict(runtime, tensors, dtype):
    """A state_dict hook: puts values in place of the module's own placeholders. tensors: id of Parameter -> number."""

    def fill(module, state_dict, prefix, local_metadata):
        own = module.named_parameters(prefix[:-1], recurse=False, remove_duplicate=False)
        requests = [
            (key, tensors[id(parameter)], parameter.shape)
            for key, parameter in own
            if key in state_dict and id(parameter) in tensors
        ]
        state_dict.update(values.read_all(runtime, requests, _abi.PARAM, dtype))

    return Hook(fill)
