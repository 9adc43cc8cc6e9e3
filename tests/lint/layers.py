"""The arrows of docs/architecture.md: which folder may include which."""

from tracked import ROOT, finish, includes, tracked

BELOW = {"core", "nvme", "comm", "optim"}  # of offload
# By folder; a room of a folder is named with it, and has arrows of its own.
LAYERS = {
    "core": {"core"},
    "nvme": {"core", "nvme"},
    "comm": {"core", "comm"},
    "optim": {"core", "optim"},
    "offload": {"offload"},  # the C ABI, which includes nothing of ours
    "offload/plan": {"core", "optim", "offload/plan"},
    "offload/run": BELOW | {"offload/plan", "offload/run"},
    "offload/abi": BELOW | {"offload", "offload/plan", "offload/run", "offload/abi"},
    "offload/sim": BELOW | {"offload", "offload/plan", "offload/run", "offload/abi", "offload/sim"},
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
    files = tracked(".h", ".hpp", ".c", ".cc", ".cu")
    finish([p for name in files for p in problems_of(name, (ROOT / name).read_text())], len(files))


main()
