"""Cuts a module into units: what is fetched, updated and released together.

A unit is a layer, whatever its size. Layers are the children of containers (ModuleList, Sequential, ModuleDict); a module
that has repeated blocks somewhere inside is descended until they are found, and what lies beside them (embeddings, a last
norm, a head) becomes units too. A layer larger than the target is cut further: its own parameters form one unit, its children
are looked at in turn. A unit of parameters that a module has beside its children is in use for as long as they are, one after
another, so it stays in HBM. Neighbours that are tiny are one unit. All of a unit is of one type: a layer of several types is
several units. Parameters over one storage are tied: they belong to the first unit that has one, and every module that uses
them brings in that unit.
"""

import collections
import dataclasses

import torch

CONTAINERS = (torch.nn.ModuleList, torch.nn.Sequential, torch.nn.ModuleDict)


@dataclasses.dataclass
class Unit:
    name: str
    parameters: list  # of (name, Parameter)
    stays: bool = False  # in HBM: others are acquired while it is
    type: object = None  # what type_of said of all of them


@dataclasses.dataclass
class Door:
    """When `module` is called, the units with these indices are brought in. `inner`: it lies inside a layer, whose own call
    has brought them in already, as a rule."""

    module: torch.nn.Module
    units: list
    inner: bool = False


def partition(root, target_elements, least_elements=0, type_of=lambda name, parameter: None):
    """Returns (units, doors). target_elements: the most that a layer may have to be one unit; least_elements: neighbours with
    fewer are merged up to so many. type_of(name, parameter): parameters of which it says the same can be in one unit.
    Parameters without elements are in none. Every module with parameters in it, and the root, has a door."""
    cut = _Cut(root, target_elements, type_of)
    groups = _merged(cut.groups, least_elements)
    units = [Unit(name, parameters, stays, kind) for name, parameters, stays, kind in groups]
    unit_of = {id(p): index for index, unit in enumerate(units) for _, p in unit.parameters}
    doors = []
    for module in root.modules():
        whole = module in cut.layers
        own = module.parameters(recurse=whole)
        if module is root or any(True for _ in module.parameters()):
            entered = sorted({unit_of[id(p)] for p in own if id(p) in unit_of})
            doors.append(Door(module, entered, inner=not whole and module not in cut.descended))
    return units, doors


class _Cut:
    def __init__(self, root, target_elements, type_of):
        self._target = target_elements
        self._type_of = type_of
        self._seen = set()
        self.groups = []  # (name, [(name, parameter)], stays, type)
        self.layers = set()  # modules that are units as a whole
        self.descended = set()
        self._visit("", root)

    def _visit(self, name, module):
        if module in self.layers or module in self.descended:
            return
        prefix = name + "." if name else ""
        children = list(module.named_children())
        if not self._is_descended(name, module, children):
            self.layers.add(module)
            self._add(name, [(prefix + n, p) for n, p in module.named_parameters()], stays=False)
            return
        self.descended.add(module)
        own = [(prefix + n, p) for n, p in module.named_parameters(recurse=False)]
        self._add(name, own, stays=any(True for _, child in children for _ in child.parameters()))
        for child_name, child in children:
            self._visit(prefix + child_name, child)

    def _is_descended(self, name, module, children):
        if not name or isinstance(module, CONTAINERS) or has_blocks(module):
            return True
        return bool(children) and sum(p.numel() for p in module.parameters()) > self._target

    def _add(self, name, named_parameters, stays):
        by_type = collections.OrderedDict()
        for parameter_name, parameter in named_parameters:
            if id(parameter) not in self._seen and parameter.numel() > 0:
                self._seen.add(id(parameter))
                by_type.setdefault(self._type_of(parameter_name, parameter), []).append((parameter_name, parameter))
        for kind, parameters in by_type.items():
            self.groups.append((name or "(root)", parameters, stays, kind))


def has_blocks(module):
    """Whether there are repeated blocks in it: a container with two children of one class that have children themselves."""
    for inner in module.modules():
        if isinstance(inner, CONTAINERS):
            classes = collections.Counter(type(c) for c in inner.children() if _is_block(c))
            if any(count > 1 for count in classes.values()):
                return True
    return False


def _is_block(module):
    return any(any(True for _ in child.parameters()) for child in module.children())


def _merged(groups, least_elements):
    result, sizes = [], []
    for name, parameters, stays, kind in groups:
        size = sum(p.numel() for _, p in parameters)
        if result and not stays and not result[-1][2] and result[-1][3] == kind and size + sizes[-1] <= least_elements:
            first, before, _, _ = result[-1]
            result[-1] = (f"{first.split(' to ')[0]} to {name}", before + parameters, False, kind)
            sizes[-1] += size
        else:
            result.append((name, parameters, stays, kind))
            sizes.append(size)
    return result
