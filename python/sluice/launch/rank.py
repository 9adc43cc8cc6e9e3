"""What torchrun starts for each rank: binds its cores, if asked to, and becomes the script, with --local_rank if that is
wanted. Its flags are those of the launcher that concern a rank; before them --set_threads, where OMP_NUM_THREADS is to be
the number of the rank's physical cores. It is run as a file, and takes only the parts of the package that need no PyTorch:
the script will load that.
"""

import os
import pathlib
import sys
import types
import warnings


def main(words):
    from sluice.launch.flags import parse

    set_threads = words[:1] == ["--set_threads"]
    options = parse(words[set_threads:])
    if options.get("bind_cores_to_rank") or options.get("bind_core_list") is not None:
        bind(options, set_threads)
    head = [] if options.get("no_python") else [sys.executable, "-u", *(["-m"] if options.get("module") else [])]
    local_rank = [] if options.get("no_local_rank") else [f"--local_rank={os.environ['LOCAL_RANK']}"]
    command = [*head, options.script, *local_rank, *options.arguments]
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"sluice launch: {command[0]}: {error.strerror}")


def bind(options, set_threads):
    from sluice import ranks
    from sluice.ranks.host_lists import cores_in
    from sluice.ranks.machine import node_of_gpu

    warnings.showwarning = lambda message, *_, **__: print(f"sluice launch: {message}", file=sys.stderr, flush=True)
    listed = options.get("bind_core_list")
    gpus = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    try:
        cores = None if listed is None else cores_in(listed)
        place = ranks.find_place()
        nodes = [node_of_gpu(gpu) for gpu in gpus[: place.local_world]]
        known = nodes.__getitem__ if len(nodes) == place.local_world else None
        bound = ranks.bind(place, known, cores)
    except (ranks.RankError, OSError, ValueError) as error:
        sys.exit(f"sluice launch: cores of ranks: {error}")
    if set_threads:
        os.environ["OMP_NUM_THREADS"] = str(bound.physical)


if __name__ == "__main__":
    package = types.ModuleType("sluice")
    package.__path__ = [str(pathlib.Path(__file__).resolve().parents[1])]
    sys.modules["sluice"] = package
    main(sys.argv[1:])
