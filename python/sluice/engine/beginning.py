"""From units of a model to a runtime that has their values."""

import itertools

import torch

from ..native import abi, devices, values
from ..spools.trimmer import Trimmer
from .library_options import library_options


def make_runtime(config, units, keep, world=None):
    """(the runtime of those units as the configuration wants it, the torch.device that it computes on). keep: as for
    abi.Runtime. world: the ranks, if there are several."""
    if world is not None:
        world.tables()  # all ranks speak: before anything that one of them may fail at
    library = abi.Library(config.own["library"]) if config.own.get("library") else abi.Library.default()
    seed = config.own.get("simulated_seed")
    local_rank = None if world is None else world.local_rank
    device = devices.choose("host" if seed is not None else config.own.get("device") or "auto", library, local_rank)
    # Every tensor is a group of its own there, so that parameters may join the optimizer's groups at any time.
    number = itertools.count()
    runtime = abi.Runtime(
        [(u.name, [(n, u.type.elements(p), next(number)) for n, p in u.parameters]) for u in units],
        library_options(config, world),
        library=library,
        seed=seed,
        device=device,
        keep=keep,
        stay=[number for number, unit in enumerate(units) if unit.stays],
        types={number: unit.type.numbers for number, unit in enumerate(units)},
    )
    return runtime, device.torch


def write_masters(runtime, attached, units, initial_values):
    """Writes every master from what initial_values(parameter) says; the parameters of a unit are hidden when theirs are on the
    way. attached: the model's Attached."""
    trimmer = Trimmer()

    def items():
        for index, unit in enumerate(units):
            for _, parameter in unit.parameters:
                initial = initial_values(parameter)
                yield attached.tensors[id(parameter)], initial
                trimmer.freed(initial.nbytes)
            attached.hide(index)

    with torch.no_grad():
        parameters = (p for unit in units for _, p in unit.parameters)
        raw = {attached.tensors[id(p)] for p in parameters if attached.place_of[id(p)].raw}
        values.write_all(runtime, items(), abi.MASTER, raw)
    trimmer.trim()
