"""load_state_dict() of a model whose parameters are on the tiers."""

import contextlib

import torch

from ..native import abi, values
from . import away


@contextlib.contextmanager
def into_masters(module, runtime, attached):
    """While it is open, module.load_state_dict() finds each module's own parameters as their fp32 masters, and what it
    leaves there is written back when that module is done. So names are matched, and hooks run, as PyTorch does it.
    While no forward runs; in RAM: the parameters of one module, and of those it is in.
    """
    shown = {}  # id of Parameter -> (Parameter, the memory it had)
    mine = {}  # module -> those it shows

    def show(child, *_):
        own = child.parameters(recurse=False)
        places = [attached.place_of[id(p)] for p in own if id(p) in attached.place_of]
        places = [place for place in places if id(place.parameter) not in shown and not place.raw]
        requests = [(place, place.tensor, place.shape) for place in places]
        for place, master in values.read_all(runtime, requests, abi.MASTER, torch.float32).items():
            parameter = place.parameter
            shown[id(parameter)] = parameter, away.memory(parameter)
            away.give_back(parameter)
            parameter.data = master
            mine.setdefault(child, []).append(place)

    def write(child, _):
        places = mine.pop(child, [])
        values.write_all(runtime, [(place.tensor, place.parameter.data) for place in places], abi.MASTER)
        for place in places:
            attached.hide_again(*shown.pop(id(place.parameter)))

    handles = []
    try:
        for child in module.modules():
            handles.append(child.register_load_state_dict_pre_hook(show))
            handles.append(child.register_load_state_dict_post_hook(write))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, memory in shown.values():
            attached.hide_again(parameter, memory)
        attached.renew_values()
