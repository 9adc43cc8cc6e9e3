"""Which hosts, and which GPUs of each: a hostfile or this host, less what the flags leave out."""

import dataclasses
import re
import socket

from .flags import LaunchError

LOCAL = "localhost"
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", re.ASCII)
_LINE = re.compile(r"(\S+)\s+slots\s*=\s*([0-9]{1,4})", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Host:
    """One host with the ranks that it gets. `gpus`: the names by which CUDA_VISIBLE_DEVICES knows them; None: CPUs. `name` is
    None for a host that nobody has named."""

    name: str | None
    ranks: int
    gpus: tuple | None


def names_of_this_host():
    """The names that mean this host without a look into the network."""
    name = socket.gethostname()
    return {LOCAL, "127.0.0.1", name, name.partition(".")[0]}


def visible_gpus(count, environment):
    """The GPUs that PyTorch sees here, `count` of them, by the names that CUDA_VISIBLE_DEVICES gives them."""
    named = [word.strip() for word in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if word.strip()]
    return tuple(named[:count]) if len(named) >= count else tuple(map(str, range(count)))


def read_hostfile(path):
    """{host: slots}, in the file's order. Errors: LaunchError with the number of the line."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeError) as error:
        raise LaunchError(f"--hostfile {path}: {getattr(error, 'strerror', None) or error}") from None
    slots = {}
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = _LINE.fullmatch(text)
        if match is None or not _HOST.fullmatch(match.group(1)):
            raise LaunchError(f"{path}:{number}: {text!r} is not `HOST slots=N`")
        host, count = match.group(1), int(match.group(2))
        if host in slots:
            raise LaunchError(f"{path}:{number}: {host} was named before")
        if count == 0:
            raise LaunchError(f"{path}:{number}: {host} has no slots; leave it out of the file, or --exclude it")
        slots[host] = count
    if not slots:
        raise LaunchError(f"{path}: names no host; lines are `HOST slots=N`")
    return slots


def parse_choice(text, flag):
    """{host: set of GPUs, or None for all} of "host1:0,1@host2". Errors: LaunchError."""
    chosen = {}
    for part in text.split("@"):
        host, colon, listed = part.partition(":")
        words = [word.strip() for word in listed.split(",")] if colon else []
        if not _HOST.fullmatch(host) or not all(word.isascii() and word.isdecimal() and len(word) < 6 for word in words):
            raise LaunchError(f"{flag} {text}: {part!r} is not HOST or HOST:GPU,GPU; hosts are separated by @")
        gpus = {str(int(word)) for word in words} or None
        before = chosen.get(host, set())
        chosen[host] = None if gpus is None or before is None else before | gpus
    return chosen


def _selected(pool, options, this_host):
    """`pool` ({host: GPUs}), less what --include and --exclude leave out."""
    flag = next((key for key in ("include", "exclude") if options.get(key) is not None), None)
    if flag is None:
        return pool
    left = {} if flag == "include" else dict(pool)
    for host, gpus in parse_choice(options.get(flag), f"--{flag}").items():
        if host not in pool and set(pool) == {LOCAL} and host in this_host:
            host = LOCAL
        if host not in pool:
            alone = set(pool) == {LOCAL}
            known = f"this host is {LOCAL}; others need a --hostfile" if alone else f"known are {', '.join(pool)}"
            raise LaunchError(f"--{flag}: {host} is unknown: {known}")
        strange = sorted((gpus or set()) - set(pool[host]), key=int)
        if strange:
            raise LaunchError(f"--{flag}: {host} has no GPU {', '.join(strange)}; it has {', '.join(pool[host])}")
        if flag == "include":
            left[host] = tuple(gpu for gpu in pool[host] if gpus is None or gpu in gpus)
        else:
            left[host] = tuple(gpu for gpu in pool[host] if gpus is not None and gpu not in gpus)
    left = {host: left[host] for host in pool if left.get(host)}
    if not left:
        raise LaunchError(f"--{flag} {options.get(flag)}: no GPU is left")
    return left


def hosts_of(options, gpus, this_host):
    """The Hosts that are to run, in the order of their ranks. gpus: this host's. Errors: LaunchError."""
    if options.get("hostfile") is not None:
        slots = read_hostfile(options.get("hostfile"))
        pool = {host: tuple(map(str, range(count))) for host, count in slots.items()}
        pool = _selected(pool, options, this_host)
        nodes = options.get("num_nodes") or len(pool)
        if nodes > len(pool):
            raise LaunchError(f"--num_nodes {nodes}: {options.get('hostfile')} names {len(pool)}")
        chosen = [_first(host, pool[host], options) for host in list(pool)[:nodes]]
    elif not gpus:
        chosen = [_on_cpus(options)] * (options.get("num_nodes") or 1)
    else:
        here = _selected({LOCAL: gpus}, options, this_host)[LOCAL]
        chosen = [_first(LOCAL, here, options)] * (options.get("num_nodes") or 1)
    if len(chosen) > 1 and options.get("hostfile") is None:
        return [dataclasses.replace(host, name=None) for host in chosen]
    return chosen


def _first(name, gpus, options):
    count = options.get("num_gpus") or len(gpus)
    if count > len(gpus):
        raise LaunchError(f"--num_gpus {count}: {name} has {len(gpus)} ({', '.join(gpus)})", 1)
    return Host(name, count, gpus[:count])


def _on_cpus(options):
    for flag in ("include", "exclude"):
        if options.get(flag) is not None:
            raise LaunchError(f"--{flag} {options.get(flag)}: no GPUs were found here; --num_gpus N starts N ranks on CPUs", 1)
    if options.get("num_gpus") is None:
        raise LaunchError("no GPUs were found here; --num_gpus N starts N ranks on CPUs", 1)
    return Host(LOCAL, options.get("num_gpus"), None)
