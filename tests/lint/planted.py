"""Nothing of the planted bugs is in the library: planted.py LIBRARY SIMULATION, each of archives and objects.

In the simulation's the same symbols are found, so that the search is known to find them.
"""

import subprocess
import sys


def symbols(path):
    listed = subprocess.run(["nm", "--demangle", path], capture_output=True, text=True, check=True)
    return {line.split(maxsplit=2)[-1] for line in listed.stdout.splitlines() if "sluice::" in line}


def main():
    library, simulation = (symbols(path) for path in sys.argv[1:3])
    ask = "sluice::Planted(sluice::Context const&, sluice::PlantedBug)"
    assert ask in simulation, "the simulation has no planted bugs: this looks for the wrong symbol"
    found = sorted(name for name in library if "planted" in name.lower())
    assert len(library) > 100, f"{sys.argv[1]} has only {len(library)} symbols: not the library?"
    if found:
        sys.exit(f"{sys.argv[1]} has places for planted bugs: {found}")
    print(f"{len(library)} symbols, none of a planted bug")


main()
