"""load_state_dict() of a model whose parameters are on the tiers."""

import contextlib

import torch

from . import _abi, values


@contextlib.contextmanager
def into_masters(module, runtime, attached):
    """While it is open, module.load_state_dict() finds each module's own parameters as their fp32 masters, and what it
    leaves there is written back when that module is done. So names are matched, and hooks run, as PyTorch does it.
    While no forward runs; in RAM: the parameters of one module, and of those it is in.
    """
    shown = {}  # id of Parameter -> Parameter
    mine = {}  # module -> those it shows

    def show(child, *_):
        own = child.parameters(recurse=False)
        found = {id(p): p for p in own if id(p) in attached.tensors and id(p) not in shown}
        requests = [(key, attached.tensors[key], parameter.shape) for key, parameter in found.items()]
        for key, master in values.read_all(runtime, requests, _abi.MASTER, torch.float32).items():
            shown[key] = found[key]
            found[key].data = master
            mine.setdefault(child, []).append(found[key])

    def write(child, _):
        parameters = mine.pop(child, [])
        values.write_all(runtime, [(attached.tensors[id(p)], p.data) for p in parameters], _abi.MASTER)
        for parameter in parameters:
            attached.hide_parameter(shown.pop(id(parameter)))

    handles = []
    try:
        for child in module.modules():
            handles.append(child.register_load_state_dict_pre_hook(show))
            handles.append(child.register_load_state_dict_post_hook(write))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter in shown.values():
            attached.hide_parameter(parameter)
