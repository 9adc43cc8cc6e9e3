"""What a process inherits from one in which `deepspeed` is Sluice's (sluice/deepspeed/dropin.py): the same, once it asks for
`deepspeed`. Python imports this at its start, as the folder is first in PYTHONPATH, in place of another sitecustomize.py, which runs
then."""

import importlib.machinery
import importlib.util
import os
import sys

_FOLDER = os.path.dirname(os.path.abspath(__file__))


class _Waiting:
    """Is asked before others where modules are, and goes when `deepspeed` is wanted."""

    @classmethod
    def _begin(cls):
        if cls in sys.meta_path:
            sys.meta_path.remove(cls)
        try:
            from sluice.deepspeed import dropin
        except ModuleNotFoundError as error:
            if error.name != "sluice":
                raise
            sys.path.append(os.path.abspath(os.path.join(_FOLDER, *[os.pardir] * 3)))
            from sluice.deepspeed import dropin
        return dropin.begin()

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] != "deepspeed":
            return None
        finder = cls._begin()
        sys.modules.pop(name, None)  # else Python would load again what is there
        return finder.find_spec(name)

    @classmethod
    def find_distributions(cls, context):
        if (context.name or "").lower() != "deepspeed":  # nor where all are listed, as PyTorch does in its own import
            return
        yield from cls._begin().find_distributions(context)


def _run_the_other():
    paths = [path for path in sys.path if os.path.abspath(path or os.curdir) != _FOLDER]
    spec = importlib.machinery.PathFinder.find_spec(__name__, paths)
    if spec is not None and spec.loader is not None:
        other = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(other)


if not any(getattr(finder, "__name__", "") == "_Waiting" for finder in sys.meta_path):
    sys.meta_path.insert(0, _Waiting)
_run_the_other()
