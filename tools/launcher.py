#!python
"""The `sluice` command of an installed wheel: runs the program inside the package, without importing it (and torch).

Ranks that it launches run under the interpreter that has the wheel, unless another is named."""

import importlib.util
import os
import sys

folder = importlib.util.find_spec("sluice").submodule_search_locations[0]
program = os.path.join(folder, "bin", "sluice")
if not os.environ.get("SLUICE_PYTHON"):
    os.environ["SLUICE_PYTHON"] = sys.executable
os.execv(program, ["sluice", *sys.argv[1:]])
