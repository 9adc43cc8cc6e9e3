#!python
"""The `sluice` command of an installed wheel: runs the program inside the package, without importing it (and torch)."""

import importlib.util
import os
import sys

folder = importlib.util.find_spec("sluice").submodule_search_locations[0]
program = os.path.join(folder, "bin", "sluice")
os.execv(program, ["sluice", *sys.argv[1:]])
