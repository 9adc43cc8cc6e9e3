"""The arrows of docs/architecture.md: which folder may include which."""

from tracked import ROOT, finish, includes, tracked

LAYERS = {
    "core": {"core"},
    "nvme": {"core", "nvme"},
    "comm": {"core", "comm"},
    "optim": {"core", "optim"},
    "offload": {"core", "nvme", "comm", "optim", "offload"},
}
TOP = {"tools", "bench", "python", "tests", "examples"}  # may include any layer


def problems_of(name, text):
    folder = name.split("/")[0]
    for line, path in includes(text):
        target = path.split("/")[0]
        if ".." in path.split("/"):
            yield f"{name}:{line}: include from the repository's root, not relative to a file: {path}"
        elif folder not in LAYERS:
            if folder not in TOP:
                yield f"{name}:{line}: a folder that no layer is: add it to docs/architecture.md and here"
        elif "/" in path and target in LAYERS.keys() | TOP and target not in LAYERS[folder]:
            allowed = ", ".join(sorted(LAYERS[folder]))
            yield f"{name}:{line}: {folder} may include {allowed} only, not {path}"


def self_test():
    """The check finds what it should, and nothing else."""
    refused = {
        "core/a.cc": '#include "nvme/b.h"\n',
        "nvme/a.h": '  #  include <optim/b.h>\n',
        "offload/a.cc": '#include "tests/b.h"\n',
        "tools/a.cc": '#include "../core/b.h"\n',
        "other/a.cc": '#include "core/b.h"\n',
    }
    allowed = {
        "core/a.cc": '#include "core/b.h"\n#include "absl/status/status.h"\n#include <vector>\n',
        "offload/a.cc": '#include "optim/b.h"\n// #include "tests/b.h"\n',
        "tests/core/a.cc": '#include "offload/b.h"\n',
    }
    assert all(len(list(problems_of(name, text))) == 1 for name, text in refused.items())
    assert not any(list(problems_of(name, text)) for name, text in allowed.items())


def main():
    self_test()
    files = tracked(".h", ".hpp", ".c", ".cc", ".cu")
    finish([p for name in files for p in problems_of(name, (ROOT / name).read_text())], len(files))


main()
