"""Starts what was asked for: on this host by becoming torchrun, on others by ssh, or by saying what to run there."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import torch

from ..ranks.host_lists import cores_in
from ..ranks.place import PORT
from . import command
from .flags import LaunchError, help_text, parse
from .hosts import LOCAL, hosts_of, names_of_this_host, visible_gpus

_GRACE_S = 40  # torchrun itself gives its ranks 30
_POLL_S = 0.1


def main(words):
    """Runs the command line, and returns the exit status where it doesn't become torchrun."""
    try:
        options = parse(words)
        if options.script is None:
            print(help_text(), end="")
            return 0
        return _launch(options, os.environ)
    except LaunchError as error:
        _say(f"error: {error}")
        return error.code


def _say(text):
    print(f"sluice launch: {text}", file=sys.stderr, flush=True)


def _launch(options, environment):
    listed = options.get("bind_core_list")
    try:
        if listed is not None and not cores_in(listed):
            raise ValueError("no core is named")
    except ValueError as error:
        raise LaunchError(f"--bind_core_list {listed}: {error}") from None
    gpus = visible_gpus(torch.cuda.device_count(), environment) if options.get("hostfile") is None else ()
    this_host = names_of_this_host()
    hosts = hosts_of(options, gpus, this_host)
    if hosts[0].gpus is None:
        _say(f"no GPUs were found here: {hosts[0].ranks} {'rank' if hosts[0].ranks == 1 else 'ranks'} on CPUs")
    alone = len(hosts) == 1 and hosts[0].name in this_host and options.get("launcher") != "ssh"
    node = 0 if alone and options.get("node_rank") is None else options.get("node_rank")
    if node is not None and node >= len(hosts):
        count = "is 1 host" if len(hosts) == 1 else f"are {len(hosts)} hosts"
        raise LaunchError(f"--node_rank {node}: there {count}, from 0 on")
    address = _address(options, hosts, alone)
    port = options.get("master_port") or (_free_port() if alone else PORT)
    python = options.get("python") or sys.executable
    commands = [
        command.torchrun(options, hosts, number, address, port, python, environment) for number in range(len(hosts))
    ]
    if node is not None:
        _say_few_cores(options, hosts[node].ranks)
        return _become(commands[node], {**environment, **command.variables(hosts[node])})
    started = [(host, {**command.exported(environment), **command.variables(host)}) for host in hosts]
    if options.get("launcher") == "ssh":
        return _over_ssh(started, commands, this_host)
    return _print(started, commands)


def _say_few_cores(options, ranks):
    cores = len(os.sched_getaffinity(0))
    bound = options.get("bind_cores_to_rank") or options.get("bind_core_list") is not None  # then each rank speaks
    if not bound and cores < 2 * ranks:
        share = "rank has" if ranks == 1 else "ranks share"
        wants = "a rank wants 2 or more, for computing, updates and I/O"
        _say(f"{ranks} {share} {cores} {'core' if cores == 1 else 'cores'}: {wants}")


def _address(options, hosts, alone):
    address = options.get("master_addr")
    if address is not None:
        return address
    if alone:
        return "127.0.0.1"
    if hosts[0].name is None:
        raise LaunchError("--num_nodes without --hostfile needs --master_addr, and --node_rank on each host")
    if len(hosts) > 1 and hosts[0].name in (LOCAL, "127.0.0.1"):
        raise LaunchError(f"other hosts can't reach {hosts[0].name}: --master_addr must say where rank 0 runs")
    return hosts[0].name


def _free_port():
    """torchrun's usual port, or another if that is taken."""
    for port in (PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return probe.getsockname()[1]
    return PORT


def _become(words, environment):
    sys.stdout.flush()
    try:
        os.execvpe(words[0], words, environment)
    except OSError as error:
        raise LaunchError(f"--python {words[0]}: {error.strerror}", 1) from None


def _print(started, commands):
    for number, ((host, additions), words) in enumerate(zip(started, commands)):
        name = f"node {number}" if host.name is None else f"{host.name} (node {number})"
        print(f"# {name}\n{command.line(words, additions)}", flush=True)
    by_hand = "run each line on its host, or this command on each with --node_rank"
    _say(f"nothing was started: {by_hand}" + ("" if started[0][0].name is None else "; --launcher ssh does it from here"))
    return 0


def _over_ssh(started, commands, this_host):
    """Runs every host's command. The first that fails, or a signal, ends all."""
    if any(host.name is None for host, _ in started):
        raise LaunchError("--launcher ssh needs a --hostfile that names the hosts")
    ssh = shutil.which("ssh")
    if ssh is None:
        raise LaunchError("--launcher ssh: there is no ssh on PATH", 1)
    stopped = []
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, lambda which, frame: stopped.append(which)) for number in signals]
    running = {}
    try:
        for (host, additions), words in zip(started, commands):
            script = command.guarded(words, additions)
            local = ["sh", "-c", script]
            argv = local if host.name in this_host else [ssh, "-o", "BatchMode=yes", host.name, command.shlex.join(local)]
            running[host.name] = subprocess.Popen(argv, stdin=subprocess.PIPE, start_new_session=True)
        return _watched(running, stopped)
    finally:
        _end(running)
        for number, handler in zip(signals, before):
            signal.signal(number, handler)


def _watched(running, stopped):
    while running and not stopped:
        for name, process in list(running.items()):
            status = process.poll()
            if status is None:
                continue
            del running[name]
            if status != 0:
                reason = ", or ssh could not reach it" if status == 255 else ""
                others = f"; ending {', '.join(running)}" if running else ""
                _say(f"{name} ended with status {status}{reason}{others}")
                return status if status > 0 else 128 - status
        time.sleep(_POLL_S)
    return 128 + stopped[0] if stopped else 0


def _end(running):
    """Closes what the commands watch: they end themselves."""
    for process in running.values():
        process.stdin.close()
    for process in running.values():
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
