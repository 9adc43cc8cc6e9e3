"""What is run on each host: torchrun's arguments, as a list and as a line for a shell."""

import os
import pathlib
import shlex

RANK = pathlib.Path(__file__).with_name("rank.py")
# Variables that mean the same on every host; others are each host's own.
EXPORTED = ("NCCL_", "OMP_", "PYTHON", "SLUICE_", "UCX_")
_TO_RANK = ("module", "no_python", "no_local_rank", "bind_cores_to_rank")


def torchrun(options, hosts, node, address, port, python, environment):
    """The arguments that start the ranks of hosts[node]. `--` keeps torchrun from reading the script's as its own: it would
    refuse a script's --log for being short for two of its flags."""
    command = [python, "-P", "-m", "torch.distributed.run", f"--nnodes={len(hosts)}"]
    command += [f"--nproc-per-node={hosts[node].ranks}", f"--node-rank={node}"]
    command += [f"--master-addr={address}", f"--master-port={port}"]
    binds = options.get("bind_cores_to_rank") or options.get("bind_core_list") is not None
    if options.get("no_local_rank") and not binds:
        command += ["--module"] if options.get("module") else ["--no-python"] if options.get("no_python") else []
    else:
        command += ["--no-python", "--", python, "-P", str(RANK), *_rank_flags(options, binds, environment)]
    return [*command, "--", options.script, *options.arguments]


def _rank_flags(options, binds, environment):
    flags = [f"--{key}" for key in _TO_RANK if options.get(key)]
    if options.get("bind_core_list") is not None:
        flags.append(f"--bind_core_list={options.get('bind_core_list')}")
    # torchrun sets it to 1 where it isn't set; only here is it known whether it was.
    return ["--set_threads", *flags] if binds and not environment.get("OMP_NUM_THREADS") else flags


def variables(host):
    """What the ranks of a host have in their environment beside what the host itself says."""
    return {} if host.gpus is None else {"CUDA_VISIBLE_DEVICES": ",".join(host.gpus)}


def exported(environment):
    """What goes along to other hosts, by name."""
    return {name: value for name, value in sorted(environment.items()) if name.startswith(EXPORTED)}


def line(command, additions, directory=None):
    """The command for a POSIX shell on any host, in this directory."""
    words = ["env", *(f"{name}={value}" for name, value in additions.items()), *command] if additions else command
    return f"cd {shlex.quote(directory or os.getcwd())} && {shlex.join(words)}"


def guarded(command, additions, directory=None):
    """A script for `sh -c` that runs the command and ends it when stdin ends, as it does when whoever started it is gone.
    It must leave nothing behind that holds stdin: the session of ssh would stay for that."""
    start, run = line(command, additions, directory).split(" && ", 1)
    return (  # one line: the shell that a login gets may be csh, which takes no others in quotes
        f"{start} || exit 1; exec 3<&0; {run} </dev/null 3<&- & ranks=$!; "
        "{ read -r _ <&3; kill $ranks; } >/dev/null 2>&1 & watch=$!; "
        "wait $ranks; status=$?; kill $watch 2>/dev/null; exit $status"
    )
