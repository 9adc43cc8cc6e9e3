"""Cuts a module into units: what is fetched and released together.

Containers (ModuleList, Sequential, ModuleDict) and the root are always descended; their children, usually the layers of a
model, become units. A child larger than the target is cut further: its own parameters form one unit, its children are
looked at in turn. That unit is in use for as long as they are, one after another, so it stays in HBM. A parameter that
several modules share belongs to the first unit that has it, and every module that uses it brings in that unit.
"""

import dataclasses

import torch

CONTAINERS = (torch.nn.ModuleList, torch.nn.Sequential, torch.nn.ModuleDict)


@dataclasses.dataclass
class Unit:
    name: str
    parameters: list  # of (name, Parameter)
    stays: bool = False  # in HBM: others are acquired while it is


@dataclasses.dataclass
class Bracket:
    """While `module` computes forward, the units with these indices are in HBM; and what else it looks up."""

    module: torch.nn.Module
    units: list


def partition(root, target_elements):
    """Returns (units, brackets). target_elements: the most that a module may have to become one unit as a whole."""
    units, brackets = [], []
    unit_of = {}  # id of Parameter -> unit index

    def add(name, module, named_parameters, stays=False):
        fresh = [(n, p) for n, p in named_parameters if id(p) not in unit_of]
        for parameter_name, parameter in fresh:
            if not parameter.is_floating_point():
                raise TypeError(f"parameter {parameter_name} is {parameter.dtype}: only floating-point ones are offloaded")
            unit_of[id(parameter)] = len(units)
        if fresh:
            units.append(Unit(name or "(root)", fresh, stays))
        brackets.append(Bracket(module, sorted({unit_of[id(p)] for _, p in named_parameters})))

    def visit(name, module):
        prefix = name + "." if name else ""
        children = list(module.named_children())
        descend = not name or isinstance(module, CONTAINERS)
        if not descend and children:
            descend = sum(p.numel() for p in module.parameters()) > target_elements
        if not descend:
            add(name, module, [(prefix + n, p) for n, p in module.named_parameters()])
            return
        own = [(prefix + n, p) for n, p in module.named_parameters(recurse=False)]
        add(name, module, own, stays=any(True for child in module.children() for _ in child.parameters()))
        for child_name, child in children:
            visit(prefix + child_name, child)

    visit("", root)
    return units, brackets
