"""The flags of `sluice launch`, one table: what is taken, what it must be, and what is said of flags that others have."""

import dataclasses
import difflib
import re

USAGE = "usage: sluice launch [FLAGS] SCRIPT [ARGUMENTS]"
_WHOLE = re.compile(r"[0-9]{1,9}", re.ASCII)


class LaunchError(Exception):
    """Nothing was started; the message says why. `code` is the exit status: 1 it can't be done here, 2 not understood."""

    def __init__(self, message, code=2):
        super().__init__(message)
        self.code = code


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag, by all of its names; its value is stored under the first, without dashes."""

    names: tuple
    value: str | None  # what help calls the value; None: a switch
    help: str
    low: int | None = None  # of a number; None: a text
    high: int | None = None

    @property
    def key(self):
        return self.names[0].lstrip("-")


FLAGS = (
    Flag(("--num_gpus", "--num_accelerators"), "N", "ranks on each host, one per GPU (default: all GPUs)", 1),
    Flag(("--num_nodes",), "N", "hosts: the first N of the hostfile", 1),
    Flag(("--include", "-i"), "HOSTS", "hosts and GPUs to use: host1:0,1@host2 (localhost:2 without a hostfile)"),
    Flag(("--exclude", "-e"), "HOSTS", "hosts and GPUs not to use, written likewise"),
    Flag(("--hostfile", "-H"), "FILE", "lines of `HOST slots=N`; none is read unless named"),
    Flag(("--master_addr",), "HOST", "where rank 0 runs (default: the first host; 127.0.0.1 on one host)"),
    Flag(("--master_port",), "PORT", "its port (default: 29500; on one host another if that is taken)", 1, 65535),
    Flag(("--node_rank",), "N", "several hosts: run what is this host's, of which it is the N-th from 0", 0),
    Flag(("--launcher",), "WHICH", "several hosts: `none` prints what to run on each, `ssh` runs it there (default: none)"),
    Flag(("--no_ssh",), None, "the same as --launcher none"),
    Flag(("--module",), None, "SCRIPT is a module, as in python -m"),
    Flag(("--no_python",), None, "SCRIPT is a program"),
    Flag(("--no_local_rank",), None, "don't give --local_rank=N to the script (LOCAL_RANK is always in its environment)"),
    Flag(("--bind_cores_to_rank",), None, "local ranks share the cores without overlap, on the NUMA nodes of their GPUs"),
    Flag(("--bind_core_list",), "CORES", "cores to share among them: 0-15,32-47; binds, too"),
    Flag(("--python",), "PYTHON", "the interpreter of torchrun and of the script (default: this one)"),
)

_MPI = "start ranks by `mpirun -n N python train.py`: they find themselves in its environment (docs/launch.md)"
_SRUN = "start ranks by `srun python train.py`: they find themselves in its environment (docs/launch.md)"
_ELASTIC = "ranks stay the same while they train: `torchrun --nnodes=MIN:MAX train.py` starts them anew when hosts come or go"
_SSH_FILE = "put what ssh needs to know of a host into ~/.ssh/config"
# Flags of the `deepspeed` launcher that aren't here: (whether a value follows, what to use).
REFUSED = {
    "--autotuning": (True, "`sluice plan` says what fits where, before anything runs"),
    "--elastic_training": (False, _ELASTIC),
    "--min_elastic_nodes": (True, _ELASTIC),
    "--max_elastic_nodes": (True, _ELASTIC),
    "--launcher_args": (True, "give srun and mpirun their options yourself; " + _SSH_FILE),
    "--ssh_port": (True, _SSH_FILE + " (Port)"),
    "--no_ssh_check": (False, "leave it out: ssh is not tried beforehand"),
    "--force_multi": (False, "leave it out: --launcher ssh starts a single host by ssh, too"),
    "--save_pid": (False, "leave it out: on one host torchrun keeps the process id of what you start"),
    "--enable_each_rank_log": (True, "`torchrun --log-dir DIR --redirects 3 train.py` writes a log for each rank"),
    "--venv_script": (True, "--python names the environment's interpreter"),
    "--log_level": (True, "leave it out: the launcher says a line or two"),
    "--quiet": (False, "leave it out: the launcher says a line or two"),
    "-q": (False, "leave it out: the launcher says a line or two"),
    "--comment": (True, _SRUN),
    "--account": (True, _SRUN),
}
LAUNCHERS = ("none", "ssh")
REFUSED_LAUNCHERS = {
    "pdsh": "use --launcher ssh",
    "slurm": _SRUN,
    "openmpi": _MPI,
    "mpich": _MPI,
    "mvapich": _MPI,
    "impi": _MPI,
    "jsrun": _MPI.replace("mpirun", "jsrun"),
}
_BY_NAME = {name: flag for flag in FLAGS for name in flag.names}


@dataclasses.dataclass(frozen=True)
class Options:
    """What was asked for. `flags`: values by key; what wasn't given isn't there. `script` is None after --help."""

    flags: dict
    script: str | None
    arguments: tuple

    def get(self, key):
        return self.flags.get(key)


def parse(words):
    """Flags up to the script; all that follows it is the script's. `--flag value` and `--flag=value`, with _ or - between
    words. Errors: LaunchError."""
    flags, at = {}, 0
    while at < len(words) and words[at].startswith("-") and words[at] != "--":
        if words[at] in ("--help", "-h"):
            return Options({}, None, ())
        name, equals, value = words[at].partition("=")
        name = "--" + name[2:].replace("-", "_") if name.startswith("--") else name
        flag = _BY_NAME.get(name)
        if flag is None:
            raise LaunchError(_unknown(name))
        at += 1
        if flag.value is None:
            if equals:
                raise LaunchError(f"{name} takes no value")
            flags[flag.key] = True
            continue
        if not equals:
            if at == len(words) or words[at].startswith("--"):
                raise LaunchError(f"{name} needs a value: {name} {flag.value}")
            value = words[at]
            at += 1
        flags[flag.key] = _checked(flag, name, value)
    at += at < len(words) and words[at] == "--"
    if at == len(words):
        raise LaunchError(f"no script was named\n{USAGE}")
    flags = {key: value for key, value in flags.items() if value != ""}  # --include="" is what a script's empty variable gives
    _check_together(flags)
    return Options(flags, words[at], tuple(words[at + 1 :]))


def _checked(flag, name, value):
    if flag.low is None:
        return value
    if not _WHOLE.fullmatch(value) or int(value) < flag.low or (flag.high is not None and int(value) > flag.high):
        most = "" if flag.high is None else f" to {flag.high}"
        raise LaunchError(f"{name}: must be a whole number from {flag.low}{most or ' on'}, not {value!r}")
    return int(value)


def _unknown(name):
    if name in REFUSED:
        return f"{name} is not a flag of this launcher: {REFUSED[name][1]}"
    near = difflib.get_close_matches(name, _BY_NAME, 1, 0.75)
    return f"unknown flag {name}; " + (f"did you mean {near[0]}?" if near else "`sluice launch --help` lists the flags")


def _check_together(flags):
    launcher = flags.get("launcher")
    if launcher is not None and launcher not in LAUNCHERS:
        advice = REFUSED_LAUNCHERS.get(launcher.lower(), "must be `none` or `ssh`")
        raise LaunchError(f"--launcher {launcher}: {advice}")
    for one, other, advice in (
        ("include", "exclude", "name the hosts and GPUs to use, or those not to"),
        ("include", "num_gpus", "the ones included are counted"),
        ("include", "num_nodes", "the ones included are counted"),
        ("exclude", "num_gpus", "what is left is counted"),
        ("exclude", "num_nodes", "what is left is counted"),
        ("module", "no_python", "a module is Python's to run"),
    ):
        if one in flags and other in flags:
            raise LaunchError(f"--{one} and --{other} exclude each other: {advice}")
    if launcher == "ssh":
        for other in ("node_rank", "no_ssh"):
            if other in flags:
                raise LaunchError(f"--launcher ssh starts every host; --{other} is for starting each by hand: give one")


def help_text():
    """The page that --help prints."""
    lines = [USAGE, "", "Starts the ranks of SCRIPT by torchrun. Everything after SCRIPT is the script's own.", ""]
    for flag in FLAGS:
        names = ", ".join(flag.names) + (f" {flag.value}" if flag.value else "")
        lines += [f"  {names}", f"      {flag.help}"]
    lines += ["", "Under srun and mpirun nothing needs to be launched: ranks find themselves in the environment."]
    return "\n".join(lines) + "\n"
