"""python -m sluice.deepspeed script.py ARGUMENTS: runs a script to which `deepspeed` is Sluice's, and so to all that it starts.

    python -m sluice.deepspeed train.py --deepspeed ds_config.json
    python -m sluice.deepspeed -m package.module ARGUMENTS
    torchrun --nproc-per-node 2 -m sluice.deepspeed train.py
"""

import os
import runpy
import sys

from .dropin import install


def main():
    words = sys.argv[1:]
    as_module = words[:1] == ["-m"]
    words = words[as_module:]
    if not words or words[0] in ("-h", "--help"):
        print(__doc__.strip())
        return 0 if words else 2
    if words[0].startswith("-"):
        print(f"sluice.deepspeed: error: {words[0]}: a script is wanted, or -m and a module", file=sys.stderr)
        return 2
    if not as_module and not os.path.exists(words[0]):
        print(f"sluice.deepspeed: error: there is no script {words[0]}", file=sys.stderr)
        return 2
    install()
    sys.argv[:] = words
    if as_module:
        sys.path[0] = os.getcwd()
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(os.path.abspath(words[0]))
        runpy.run_path(words[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
