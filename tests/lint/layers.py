"""The arrows of docs/architecture.md: which folder may include which, and which room of the Python package may import which."""

import ast

from tracked import ROOT, finish, includes, tracked

BELOW = {"core", "nvme", "comm", "optim"}  # of offload
# By folder; a room of a folder is named with it, and has arrows of its own.
LAYERS = {
    "core": {"core"},
    "nvme": {"core", "nvme"},
    "comm": {"core", "comm"},
    "optim": {"core", "optim"},
    "offload": {"offload"},  # the C ABI, which includes nothing of ours
    "offload/plan": {"core", "comm", "optim", "offload/plan"},
    "offload/checkpoint": {"core", "offload/checkpoint"},
    "offload/run": BELOW | {"offload/checkpoint", "offload/plan", "offload/run"},
    "offload/abi": BELOW | {"offload", "offload/checkpoint", "offload/plan", "offload/run", "offload/abi"},
    "offload/sim": BELOW | {"offload", "offload/checkpoint", "offload/plan", "offload/run", "offload/abi", "offload/sim"},
}
PACKAGE = "python/sluice/"
# Rooms of the package and its faces, the files beside them; each may import those before it that it names.
ROOMS = {
    "probe.py": set(),
    "ranks": set(),
    "launch": {"ranks"},
    "native": set(),
    "settings": {"native"},
    "checkpoints": {"native"},
    "residency": {"native"},
    "spools": {"native", "residency"},
    "optimizers": {"native", "checkpoints", "residency", "spools"},
    "collectives": {"ranks", "native"},
    "building.py": {"spools"},
    "adamw.py": {"native", "settings", "residency", "optimizers"},
    "engine": {"native", "checkpoints", "residency", "spools", "optimizers", "adamw.py"},
    "attachment.py": {"collectives", "settings", "residency", "engine"},
    "deepspeed": {"native", "ranks", "collectives", "settings", "checkpoints", "residency", "building.py", "adamw.py", "engine"},
}
TOP = {"tools", "bench", "python", "tests", "examples"}  # may include any layer


def layer_of(path):
    """The folder or room that a file is in, or none."""
    folders = path.split("/")[:-1]
    names = ["/".join(folders[:2]), *folders[:1]]
    return next((name for name in names if name in LAYERS or name in TOP), None)


def problems_of(name, text):
    layer = layer_of(name)
    for line, path in includes(text):
        target = layer_of(path)
        if ".." in path.split("/"):
            yield f"{name}:{line}: include from the repository's root, not relative to a file: {path}"
        elif layer is None:
            yield f"{name}:{line}: a folder that no layer is: add it to docs/architecture.md and here"
        elif layer in LAYERS and target is not None and target not in LAYERS[layer]:
            yield f"{name}:{line}: {layer} may include {', '.join(sorted(LAYERS[layer]))} only, not {path}"


def imports(name, text):
    """(line number, path in the package) of every import of the package's own in a file of it, wherever it stands."""
    package = ["sluice", *name.removeprefix(PACKAGE).split("/")[:-1]]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            paths = [[*base, alias.name] for alias in node.names]
        elif isinstance(node, ast.Import):
            paths = [alias.name.split(".") for alias in node.names]
        else:
            continue
        yield from ((node.lineno, path[1:]) for path in paths if path[0] == "sluice")


def room_of(path):
    """The room or face that a path in the package leads into, or none."""
    return next((name for name in (path[0], f"{path[0]}.py") if name in ROOMS), None)


def problems_of_python(name, text):
    room = room_of(name.removeprefix(PACKAGE).split("/"))
    if name == PACKAGE + "__init__.py":
        return
    if room is None:
        yield f"{name}:1: no room and no face: add it to docs/architecture.md and here"
        return
    for line, path in imports(name, text):
        target = room_of(path)
        if target is None:
            yield f"{name}:{line}: import from the room that has it, not {'.'.join(['sluice', *path])}"
        elif target != room and target not in ROOMS[room]:
            yield f"{name}:{line}: {room} may import {', '.join(sorted(ROOMS[room])) or 'nothing'} only, not {target}"


def self_test_python():
    refused = {
        "native/a.py": "from ..residency import b\n",
        "native/b.py": "def f():\n    from sluice.engine.engine import Engine\n",
        "native/c.py": "import sluice.settings.keys\n",
        "deepspeed/ops/a.py": "from ...attachment import attach\n",
        "adamw.py": "from .deepspeed.config import load_config\n",
        "attachment.py": "from . import deepspeed\n",
        "residency/a.py": "from .. import utils\n",
        "engine/a.py": "from sluice import Engine\n",
        "other.py": "",
        "other/a.py": "",
    }
    allowed = {
        "__init__.py": "from .deepspeed import zero\n",
        "native/a.py": "import torch\nfrom . import b\nfrom .b import c\nfrom ..native import d\n",
        "deepspeed/ops/a.py": "from .. import refusal\nfrom ...adamw import AdamW\nfrom ...native import abi\n",
        "building.py": "import sluiceway\nfrom .spools.spooled import Spool\n",
    }
    assert all(len(list(problems_of_python(PACKAGE + name, text))) == 1 for name, text in refused.items())
    assert not any(problem for name, text in allowed.items() for problem in problems_of_python(PACKAGE + name, text))
    names = list(ROOMS)
    assert all(names.index(below) < names.index(room) for room, those in ROOMS.items() for below in those)


def self_test():
    """The check finds what it should, and nothing else."""
    refused = {
        "core/a.cc": '#include "nvme/b.h"\n',
        "nvme/a.h": '  #  include <optim/b.h>\n',
        "offload/run/a.cc": '#include "tests/b.h"\n',
        "offload/plan/a.cc": '#include "offload/run/b.h"\n',
        "offload/run/a.h": '#include "offload/sluice.h"\n',
        "tools/a.cc": '#include "../core/b.h"\n',
        "other/a.cc": '#include "core/b.h"\n',
    }
    allowed = {
        "core/a.cc": '#include "core/b.h"\n#include "absl/status/status.h"\n#include <vector>\n',
        "offload/run/a.cc": '#include "optim/b.h"\n#include "offload/plan/c.h"\n// #include "tests/b.h"\n',
        "offload/abi/a.cc": '#include "offload/sluice.h"\n',
        "tests/core/a.cc": '#include "offload/plan/b.h"\n',
    }
    assert all(len(list(problems_of(name, text))) == 1 for name, text in refused.items())
    assert not any(problem for name, text in allowed.items() for problem in problems_of(name, text))


def main():
    self_test()
    self_test_python()
    files = tracked(".h", ".hpp", ".c", ".cc", ".cu")
    problems = [p for name in files for p in problems_of(name, (ROOT / name).read_text())]
    modules = [name for name in tracked(".py") if name.startswith(PACKAGE)]
    problems += [p for name in modules for p in problems_of_python(name, (ROOT / name).read_text())]
    finish(problems, len(files) + len(modules))


main()
