"""Makes `deepspeed` importable, as Sluice's own modules under that name.

install() does it for this process and those that it starts; `python -m sluice.deepspeed script.py` before a script runs. Each
module `deepspeed.X` is one of Sluice's, never a copy (names.py says which); the package metadata have it as well. What Sluice
lacks can be imported all the same: using it raises, and says what to do. Nothing of this is active otherwise.

Processes that are started inherit it by PYTHONPATH: its first folder, `children`, has a sitecustomize.py, which makes `deepspeed` there
what it is here when somebody asks for it, costs nothing else, and runs the sitecustomize.py that would have come otherwise.
"""

import importlib
import importlib.abc
import importlib.metadata
import importlib.util
import os
import sys

from . import names, refusal

CHILDREN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "children")
# These decide when they are imported what `deepspeed` is.
_EARLY = ("transformers", "accelerate", "peft", "trl", "lightning", "lightning_fabric", "pytorch_lightning")


class _Distribution(importlib.metadata.Distribution):
    """What importlib.metadata tells of `deepspeed`."""

    def read_text(self, filename):
        if filename == "METADATA":
            return (
                f"Metadata-Version: 2.1\nName: deepspeed\nVersion: {names.PEER_VERSION}\n"
                "Summary: Sluice under DeepSpeed's name (sluice.deepspeed)\n"
            )
        return "deepspeed\n" if filename == "top_level.txt" else None

    def locate_file(self, path):
        return os.path.join(os.path.dirname(__file__), path)


class _RefusedModule(importlib.abc.Loader):
    def __init__(self, advice):
        self._advice = advice

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        module.__doc__ = f"Not offered: {self._advice}."
        made = {}

        def find(name):
            if name.startswith("__"):
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
            if name not in made:
                made[name] = refusal.stand_in(f"{module.__name__}.{name}", self._advice)
            return made[name]

        module.__getattr__ = find


class _Alias(importlib.abc.Loader):
    """Of one of MODULES where sys.modules lacks it: it is there already, under its own name."""

    def __init__(self, module):
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec):
        return self._module

    def exec_module(self, module):
        module.__spec__ = self._spec


class _Finder(importlib.abc.MetaPathFinder):
    """Of `deepspeed` and all below it. What MODULES has is in sys.modules from the start, where Python looks first."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] != "deepspeed":
            return None
        below = name.partition(".")[2]
        if below in names.MODULES:
            return importlib.util.spec_from_loader(name, _Alias(_ours(below)))
        advice = names.refused(below)
        if advice is None:
            raise ModuleNotFoundError(
                f"No module named {name!r}: Sluice stands in for DeepSpeed here (sluice.deepspeed), and has no module of that name",
                name=name,
            )
        return importlib.util.spec_from_loader(name, _RefusedModule(advice), is_package=True)

    def find_distributions(self, context=importlib.metadata.DistributionFinder.Context()):
        if context.name is None or context.name.lower() == "deepspeed":
            yield _Distribution()


_finder = _Finder()


def _ours(name):
    package = __name__.rpartition(".deepspeed.")[0]
    return importlib.import_module(f"{package}.{names.MODULES[name]}")


def is_active():
    """Whether `deepspeed` is Sluice's in this process."""
    return _finder in sys.meta_path


def install():
    """Makes `deepspeed` importable in this process and those that it starts, as Sluice's own modules under that name. The first
    line of a program: errors: RuntimeError if something was imported that has looked for DeepSpeed already, naming it. Does
    nothing the second time."""
    if is_active():
        return
    _check_nothing_came_before()
    begin()
    paths = [CHILDREN, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))


def _check_nothing_came_before():
    how = (
        "make `import sluice.deepspeed; sluice.deepspeed.install()` the first line of the program, or start it by "
        "`python -m sluice.deepspeed script.py`"
    )
    if "deepspeed" in sys.modules:
        where = getattr(sys.modules["deepspeed"], "__file__", None) or "elsewhere"
        raise RuntimeError(f"sluice.deepspeed.install(): another deepspeed was imported already, from {where}: {how}")
    early = [name for name in _EARLY if name in sys.modules]
    if early:
        raise RuntimeError(
            f"sluice.deepspeed.install(): {' and '.join(early)} came first, and would go on without DeepSpeed: {how}"
        )


def begin():
    """install() without its conditions, and for this process only: what inherits it calls this. Returns what finds `deepspeed`."""
    if not is_active():
        found = {name: _ours(name) for name in names.MODULES}
        found["runtime.zero.partition_parameters"].add_status()
        sys.meta_path.insert(0, _finder)
        for name, module in found.items():
            sys.modules[f"deepspeed.{name}".rstrip(".")] = module
            parent, _, leaf = name.rpartition(".")
            if name and getattr(found[parent], leaf, None) is not module:
                setattr(found[parent], leaf, module)
    return _finder
