"""What `sluice launch` starts: torchrun's arguments on this host and on others, recorded by programs that stand in for
Python and ssh; and scripts that it really starts."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys

import pytest
from training import ROOT

from sluice.launch import command, run
from sluice.launch.flags import LaunchError, parse
from sluice.launch.hosts import hosts_of, parse_choice, read_hostfile, visible_gpus

GPUS = tuple(map(str, range(4)))
HERE = {"localhost", "127.0.0.1", "me", "me.domain"}
ARGUMENTS = ["--lr", "1e-3", "--log", "-i", "--", "a b", "--nnodes=7"]


@pytest.fixture
def hostfile(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("# ours\nalpha slots=4\n\n  beta   slots = 2  # half of it\ngamma slots=4\n")
    return str(path)


# Which hosts and GPUs


def hosts(*flags, gpus=GPUS):
    return [(host.name, host.ranks, host.gpus) for host in hosts_of(parse([*flags, "train.py"]), gpus, HERE)]


@pytest.mark.parametrize(
    "flags, found",
    [
        ([], GPUS),
        (["--num_gpus", "2"], ("0", "1")),
        (["--num_gpus=4"], GPUS),
        (["--num_nodes", "1"], GPUS),
        (["--include", "localhost:2,0"], ("0", "2")),
        (["--include=me:3"], ("3",)),
        (["--include", "localhost"], GPUS),
        (["--include", "localhost:01@localhost:1,3"], ("1", "3")),
        (["--include", "localhost:1@localhost"], GPUS),
        (["--exclude", "localhost:0,3"], ("1", "2")),
    ],
)
def test_this_host(flags, found):
    assert hosts(*flags) == [("localhost", len(found), found)]


@pytest.mark.parametrize(
    "flags, found",
    [
        ([], [("alpha", 4), ("beta", 2), ("gamma", 4)]),
        (["--num_nodes", "2"], [("alpha", 4), ("beta", 2)]),
        (["--num_gpus", "2"], [("alpha", 2), ("beta", 2), ("gamma", 2)]),
        (["--num_nodes=1", "--num_gpus=3"], [("alpha", 3)]),
        (["--include", "gamma@alpha:3,1"], [("alpha", ("1", "3")), ("gamma", 4)]),
        (["--exclude", "alpha@gamma:0"], [("beta", 2), ("gamma", ("1", "2", "3"))]),
        (["--exclude", "beta:0,1"], [("alpha", 4), ("gamma", 4)]),
    ],
)
def test_hosts_of_a_file(hostfile, flags, found):
    whole = [(name, tuple(map(str, range(gpus))) if isinstance(gpus, int) else gpus) for name, gpus in found]
    assert hosts("--hostfile", hostfile, *flags, gpus=()) == [(name, len(gpus), gpus) for name, gpus in whole]


def test_ranks_on_cpus():
    assert hosts("--num_gpus", "3", gpus=()) == [("localhost", 3, None)]
    assert hosts("--num_gpus", "3", "--num_nodes=2", gpus=()) == [(None, 3, None)] * 2
    assert hosts("--num_nodes=2") == [(None, 4, GPUS)] * 2


@pytest.mark.parametrize(
    "flags, gpus, words",
    [
        ([], (), "no GPUs were found here; --num_gpus N"),
        (["--include", "localhost:0"], (), "no GPUs were found here"),
        (["--num_gpus", "5"], GPUS, r"localhost has 4 \(0, 1, 2, 3\)"),
        (["--include", "localhost:4"], GPUS, "localhost has no GPU 4; it has 0, 1, 2, 3"),
        (["--include", "alpha:0"], GPUS, "alpha is unknown.*--hostfile"),
        (["--exclude", "localhost"], GPUS, "no GPU is left"),
        (["--hostfile=FILE", "--include", "delta"], (), "delta is unknown: known are alpha, beta, gamma"),
        (["--hostfile=FILE", "--include", "localhost"], (), "localhost is unknown"),
        (["--hostfile=FILE", "--include", "beta:2"], (), "beta has no GPU 2"),
        (["--hostfile=FILE", "--num_nodes", "4"], (), "--num_nodes 4: .* names 3"),
        (["--hostfile=FILE", "--num_gpus", "3"], (), "--num_gpus 3: beta has 2"),
        (["--hostfile=FILE", "--exclude", "alpha@beta@gamma"], (), "no GPU is left"),
        (["--hostfile", "/nowhere/hosts"], (), "/nowhere/hosts: No such file"),
    ],
)
def test_hosts_that_cannot_be(hostfile, flags, gpus, words):
    with pytest.raises(LaunchError, match=words):
        hosts(*[flag.replace("FILE", hostfile) for flag in flags], gpus=gpus)


@pytest.mark.parametrize("text", ["", "a:", "a:b", "a:0,", "a:-1", "a@", "@a", "a:0:1", "-o:1", "a b", "a:٣", "u@a:x"])
def test_choices_that_are_none(text):
    with pytest.raises(LaunchError, match="--include"):
        parse_choice(text, "--include")


@pytest.mark.parametrize(
    "line",
    ["alpha", "alpha slots=0", "alpha slots=", "alpha slots=two", "alpha slots=-1", "alpha 4", "slots=4", "alpha slots=4 x",
     "first slots=2", "-oProxyCommand=x slots=1", "a;b slots=1", "user@alpha slots=2", "alpha slots=12345"],
)  # fmt: skip
def test_a_bad_line_of_a_hostfile_is_named_by_number(tmp_path, line):
    path = tmp_path / "hosts"
    path.write_text(f"# a comment\nfirst slots=1\n{line}\nlast slots=1\n")
    with pytest.raises(LaunchError, match=rf"^{path}:3: "):
        read_hostfile(path)


def test_a_hostfile_without_hosts(tmp_path):
    for text in (b"", b"# nothing\n\n", b"\xff\xfe"):
        (tmp_path / "hosts").write_bytes(text)
        with pytest.raises(LaunchError, match="hosts: "):
            read_hostfile(tmp_path / "hosts")


def test_gpus_have_the_names_that_this_process_knows_them_by():
    assert visible_gpus(2, {}) == ("0", "1") and visible_gpus(0, {}) == ()
    assert visible_gpus(2, {"CUDA_VISIBLE_DEVICES": "3, 5"}) == ("3", "5")
    assert visible_gpus(1, {"CUDA_VISIBLE_DEVICES": "GPU-7f,9,-1"}) == ("GPU-7f",)
    assert visible_gpus(0, {"CUDA_VISIBLE_DEVICES": ""}) == ()


# What is run there


def started(monkeypatch, capfd, words, gpus=GPUS, environment=None):
    """(exit status, [program and arguments, variables] that it became or None, stdout, stderr) of the launcher."""
    became = []

    def execvpe(path, arguments, variables):
        became.append((arguments, variables))
        raise OSError(2, "as told")

    monkeypatch.setattr(run.os, "execvpe", execvpe)
    monkeypatch.setattr(run.torch.cuda, "device_count", lambda: len(gpus))
    for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (environment or {}).items():
        monkeypatch.setenv(name, value)
    capfd.readouterr()
    status = run.main(words)
    out, said = capfd.readouterr()
    return status, became[0] if became else None, out, said


def torchrun(nodes=1, ranks=4, node=0, address="127.0.0.1", port=29500, python=sys.executable):
    return [python, "-P", "-m", "torch.distributed.run", f"--nnodes={nodes}", f"--nproc-per-node={ranks}",
            f"--node-rank={node}", f"--master-addr={address}", f"--master-port={port}"]  # fmt: skip


def rank(*flags, python=sys.executable):
    return ["--no-python", "--", python, "-P", str(command.RANK), *flags, "--"]


@pytest.mark.parametrize(
    "flags, expected",
    [
        ([], torchrun() + rank()),
        (["--num_gpus=2"], torchrun(ranks=2) + rank()),
        (["--module"], torchrun() + rank("--module")),
        (["--no_python"], torchrun() + rank("--no_python")),
        (["--no_local_rank"], [*torchrun(), "--"]),
        (["--no_local_rank", "--module"], [*torchrun(), "--module", "--"]),
        (["--no_local_rank", "--no_python"], [*torchrun(), "--no-python", "--"]),
        (["--bind_cores_to_rank"], torchrun() + rank("--set_threads", "--bind_cores_to_rank")),
        (["--no_local_rank", "--bind_core_list=0"], torchrun() + rank("--set_threads", "--no_local_rank", "--bind_core_list=0")),
        (["--master_port", "1234", "--master_addr=h"], torchrun(address="h", port=1234) + rank()),
        (["--python", "py"], torchrun(python="py") + rank(python="py")),
        (["--node_rank=0"], torchrun() + rank()),
        (["--launcher=none"], torchrun() + rank()),
        (["--no_ssh"], torchrun() + rank()),
    ],
)
def test_on_this_host_it_becomes_torchrun(monkeypatch, capfd, flags, expected):
    monkeypatch.setattr(run, "_free_port", lambda: 29500)
    _, (words, variables), out, _ = started(monkeypatch, capfd, [*flags, "train.py", *ARGUMENTS])
    assert words == [*expected, "train.py", *ARGUMENTS] and out == ""
    assert variables["CUDA_VISIBLE_DEVICES"] == ("0,1" if "--num_gpus=2" in flags else "0,1,2,3")


def test_threads_are_the_users_where_he_says_so(monkeypatch, capfd):
    words = ["--bind_cores_to_rank", "train.py"]
    _, (words, _), *_ = started(monkeypatch, capfd, words, environment={"OMP_NUM_THREADS": "3"})
    assert "--set_threads" not in words


def test_cpus_are_said_in_a_line(monkeypatch, capfd):
    _, (words, variables), _, said = started(monkeypatch, capfd, ["--num_gpus", "1", "train.py"], gpus=())
    assert "--nproc-per-node=1" in words and "CUDA_VISIBLE_DEVICES" not in variables
    assert said.splitlines()[0] == "sluice launch: no GPUs were found here: 1 rank on CPUs"
    cores = len(os.sched_getaffinity(0))
    *_, said = started(monkeypatch, capfd, ["--num_gpus", str(cores), "train.py"], gpus=())
    assert f"{cores} {'ranks share' if cores > 1 else 'rank has'} {cores} core" in said


def test_a_port_that_is_taken_is_not_taken_again(monkeypatch, capfd):
    with socket.socket() as other:
        try:
            other.bind(("127.0.0.1", 29500))
            other.listen()
        except OSError:  # somebody else's: as good
            pass
        _, (words, _), *_ = started(monkeypatch, capfd, ["train.py"])
    port = next(int(word.partition("=")[2]) for word in words if word.startswith("--master-port"))
    assert port != 29500 and 1024 <= port < 65536


def test_each_of_several_hosts_is_told_what_to_run(monkeypatch, capfd, hostfile):
    export = {"NCCL_DEBUG": "INFO", "HF_TOKEN": "secret"}
    words = ["--hostfile", hostfile, "--exclude=alpha:0", "train.py", *ARGUMENTS]
    status, became, out, said = started(monkeypatch, capfd, words, environment=export)
    assert status == 0 and became is None and "nothing was started" in said and "secret" not in out
    lines = out.splitlines()
    assert lines[0::2] == ["# alpha (node 0)", "# beta (node 1)", "# gamma (node 2)"]
    for node, (line, gpus) in enumerate(zip(lines[1::2], (["1", "2", "3"], ["0", "1"], ["0", "1", "2", "3"]))):
        cd, where, then, env, *more = shlex.split(line)
        assert (cd, where, then, env) == ("cd", os.getcwd(), "&&", "env")
        variables = [word for word in more if "=" in word and not word.startswith("-")][: more.index(sys.executable)]
        assert {"NCCL_DEBUG=INFO", f"CUDA_VISIBLE_DEVICES={','.join(gpus)}"} <= set(variables)
        expected = torchrun(3, len(gpus), node, "alpha") + rank()
        assert more[more.index(sys.executable) :] == [*expected, "train.py", *ARGUMENTS]
        by_hand = started(monkeypatch, capfd, ["--node_rank", str(node), *words])
        assert by_hand[1][0] == [*expected, "train.py", *ARGUMENTS]
        assert by_hand[1][1]["CUDA_VISIBLE_DEVICES"] == ",".join(gpus)


def test_hosts_that_no_file_names(monkeypatch, capfd):
    words = ["--num_nodes=2", "--num_gpus=2", "--master_addr=h", "--master_port=77", "train.py"]
    status, became, out, _ = started(monkeypatch, capfd, words)
    assert status == 0 and became is None and [line for line in out.splitlines() if line[0] == "#"] == ["# node 0", "# node 1"]
    _, (words, _), *_ = started(monkeypatch, capfd, ["--node_rank=1", *words])
    assert words == [*torchrun(2, 2, 1, "h", 77), *rank(), "train.py"]


@pytest.mark.parametrize(
    "flags, words, code",
    [
        (["--num_nodes=2", "--num_gpus=1"], "--master_addr", 2),
        (["--node_rank=1"], "--node_rank 1: there is 1 host", 2),
        (["--num_nodes=2", "--master_addr=h", "--node_rank=2"], "there are 2 hosts", 2),
        (["--launcher=ssh", "--num_nodes=2", "--master_addr=h"], "--hostfile that names the hosts", 2),
        (["--bind_core_list=3-1"], "--bind_core_list 3-1", 2),
        (["--bind_core_list= "], "no core is named", 2),
        (["--num_gpus=9"], "localhost has 4", 1),
        (["--autotuning=run"], "--autotuning is not a flag", 2),
    ],
)
def test_what_cannot_be_started_is_an_error(monkeypatch, capfd, flags, words, code):
    status, became, out, said = started(monkeypatch, capfd, [*flags, "train.py"])
    assert (status, became, out) == (code, None, "") and words in said and said.startswith("sluice launch: error: ")


def test_an_interpreter_that_is_not_there(monkeypatch, capfd):
    status, _, _, said = started(monkeypatch, capfd, ["--python=/nowhere/python", "train.py"])
    assert status == 1 and "--python /nowhere/python: as told" in said


def test_other_hosts_cannot_reach_localhost(monkeypatch, capfd, tmp_path):
    (tmp_path / "hosts").write_text("localhost slots=1\nbeta slots=1\n")
    status, _, _, said = started(monkeypatch, capfd, ["--hostfile", str(tmp_path / "hosts"), "train.py"])
    assert status == 2 and "can't reach localhost" in said


# ssh, by a program that runs what it is told to on this host


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder where `ssh`, first on PATH, and `python`, for --python, write down what they are given."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "ssh").write_text(
        f"#!{sys.executable} -S\nimport json, os, pathlib, sys\nhost = sys.argv[-2]\n"
        f"pathlib.Path({str(tmp_path)!r}, 'ssh-' + host).write_text(json.dumps(sys.argv[1:]))\n"
        "if host == 'gone': sys.exit(255)\n"
        "os.environ['FAKE_HOST'] = host\nos.execv('/bin/sh', ['sh', '-c', sys.argv[-1]])\n"
    )
    (programs / "python").write_text(
        f"#!{sys.executable} -S\nimport json, os, pathlib, signal, sys, time\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\nhost = os.environ.get('FAKE_HOST', 'here')\n"
        "def ended(*_):\n    (folder / ('ended-' + host)).touch()\n    os._exit(143)\n"
        "signal.signal(signal.SIGTERM, ended)\n"
        "told = [sys.argv[1:], os.getcwd(), os.environ.get('CUDA_VISIBLE_DEVICES'), os.environ.get('NCCL_DEBUG')]\n"
        "(folder / ('new-' + host)).write_text(json.dumps(told))\n"
        "os.rename(folder / ('new-' + host), folder / ('run-' + host))\n"
        "todo = sys.argv[-1]\n"
        "if todo == 'wait' or todo == 'fail' and host != 'beta': time.sleep(60)\n"
        "sys.exit(7 if todo == 'fail' else 0)\n"
    )
    for program in programs.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    return tmp_path


def over_ssh(monkeypatch, capfd, elsewhere, names, *script):
    (elsewhere / "hosts").write_text("".join(f"{name} slots=2\n" for name in names))
    words = ["--launcher=ssh", "--hostfile", str(elsewhere / "hosts"), "--python", str(elsewhere / "bin" / "python")]
    if names[0] == "localhost":
        words += ["--master_addr", "me"]
    return started(monkeypatch, capfd, [*words, *script], environment={"NCCL_DEBUG": "a 'b' $c"})


def read(path):
    return json.loads(path.read_text())


def test_ssh_starts_every_host_and_waits_for_all(monkeypatch, capfd, elsewhere):
    before = signal.getsignal(signal.SIGTERM)
    status, *_ = over_ssh(monkeypatch, capfd, elsewhere, ["alpha", "beta", "localhost"], "train.py", *ARGUMENTS)
    assert status == 0 and signal.getsignal(signal.SIGTERM) is before
    python = str(elsewhere / "bin" / "python")
    for node, name in enumerate(["alpha", "beta", "here"]):
        words, where, gpus, nccl = read(elsewhere / f"run-{name}")
        expected = torchrun(3, 2, node, "alpha", python=python) + rank(python=python)
        assert [python, *words] == [*expected, "train.py", *ARGUMENTS]
        assert (where, gpus, nccl) == (os.getcwd(), "0,1", "a 'b' $c")
    for name in ("alpha", "beta"):
        assert read(elsewhere / f"ssh-{name}")[:3] == ["-o", "BatchMode=yes", name]
    assert not (elsewhere / "ssh-localhost").exists()


@pytest.mark.parametrize("names", [["alpha", "beta", "gamma"], ["localhost", "beta"]])
def test_the_first_that_fails_ends_the_others(monkeypatch, capfd, elsewhere, names):
    status, _, _, said = over_ssh(monkeypatch, capfd, elsewhere, names, "train.py", "fail")
    assert status == 7 and "beta ended with status 7; ending" in said
    for name in names:
        ran = "here" if name == "localhost" else name
        assert name == "beta" or not (elsewhere / f"run-{ran}").exists() or (elsewhere / f"ended-{ran}").exists()


def test_a_host_that_ssh_cannot_reach(monkeypatch, capfd, elsewhere):
    status, _, _, said = over_ssh(monkeypatch, capfd, elsewhere, ["alpha", "gone"], "train.py", "wait")
    assert status == 255 and "gone ended with status 255, or ssh could not reach it; ending alpha" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_whoever_ends_the_launcher_ends_what_it_started(elsewhere, number):
    (elsewhere / "hosts").write_text("alpha slots=1\nlocalhost slots=1\n")
    python = str(elsewhere / "bin" / "python")
    words = ["--launcher=ssh", "--hostfile", str(elsewhere / "hosts"), "--python", python, "train.py", "wait"]
    launcher = subprocess.Popen([sys.executable, "-m", "sluice.launch", *words], env=with_package())
    until(lambda: all((elsewhere / f"run-{name}").exists() for name in ("alpha", "here")), launcher)
    launcher.send_signal(number)
    assert launcher.wait(30) == (-9 if number == signal.SIGKILL else 128 + number)
    until(lambda: all((elsewhere / f"ended-{name}").exists() for name in ("alpha", "here")))


def until(true, process=None):
    """Waits for what another process does; if it never does, the test's own limit ends this."""
    while not true():
        assert process is None or process.poll() is None
        os.sched_yield()


def with_package(**more):
    return {**os.environ, "PYTHONPATH": str(ROOT / "python"), **more}


# For real

SCRIPT = """
import json, os, pathlib, sys
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS")
told = [{name: os.environ.get(name) for name in names}, sorted(os.sched_getaffinity(0)), sys.argv[1:], sys.path[0], __name__]
pathlib.Path("told-" + os.environ["RANK"]).write_text(json.dumps(told))
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "logging.py").write_text("raise SystemExit('a file of the user, by the name of a module of Python')\n")
    return tmp_path


def launch(folder, *words, program=(sys.executable, "-P", "-m", "sluice.launch")):
    done = subprocess.run([*program, *words], cwd=folder, env=with_package(), capture_output=True, text=True)
    return done, [json.loads((folder / f"told-{rank}").read_text()) for rank in range(2) if done.returncode == 0]


def sluice_program():
    """The `sluice` command that this tree has built, or the package's own door."""
    built = ROOT / "build" / "release" / "tools" / "sluice"
    if not built.exists():
        return sys.executable, "-P", "-m", "sluice.launch"
    return str(built), "launch", "--python", sys.executable


def test_two_ranks_run_and_know_who_they_are(folder):
    done, told = launch(folder, "--num_gpus", "2", "script.py", *ARGUMENTS, program=sluice_program())
    assert done.returncode == 0, done.stderr
    for number, (variables, cores, arguments, path, name) in enumerate(told):
        world = {"RANK": str(number), "WORLD_SIZE": "2", "LOCAL_RANK": str(number), "LOCAL_WORLD_SIZE": "2"}
        assert world.items() <= variables.items() and set(cores) == os.sched_getaffinity(0)
        assert arguments == [f"--local_rank={number}", *ARGUMENTS] and path == str(folder) and name == "__main__"


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one core")
def test_ranks_that_are_bound_share_no_core(folder):
    done, told = launch(folder, "--num_gpus=2", "--bind_cores_to_rank", "--no_local_rank", "--module", "script", "x")
    assert done.returncode == 0, done.stderr
    first, second = (set(cores) for _, cores, *_ in told)
    assert first and second and not first & second and first | second <= os.sched_getaffinity(0)
    for variables, cores, arguments, *_ in told:
        assert arguments == ["x"] and 1 <= int(variables["OMP_NUM_THREADS"]) <= len(cores)
    assert ("has 1 core" in done.stderr) == (min(len(first), len(second)) < 2)


def as_rank(folder, *words):
    """What torchrun starts for rank 1 of 2, by itself."""
    world = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "7"}
    world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    program = [sys.executable, "-P", str(command.RANK), *words]
    done = subprocess.run(program, cwd=folder, env={**os.environ, **world}, capture_output=True, text=True)
    return done, json.loads((folder / "told-1").read_text()) if (folder / "told-1").exists() else None


def test_a_rank_becomes_the_script(folder):
    cores = sorted(os.sched_getaffinity(0))
    for words, arguments in (
        (["script.py"], ["--local_rank=1"]),
        (["--module", "script"], ["--local_rank=1"]),
        (["--no_local_rank", "script.py"], []),
        (["--no_python", "--no_local_rank", sys.executable, "script.py"], []),
    ):
        done, (variables, allowed, found, *_) = as_rank(folder, *words, *ARGUMENTS)
        assert done.returncode == 0 and found == arguments + ARGUMENTS and allowed == cores, done.stderr
        assert variables["OMP_NUM_THREADS"] == "7"
    done, _ = as_rank(folder, "--no_python", "/nowhere/program")
    assert done.returncode == 1 and done.stderr == "sluice launch: /nowhere/program: No such file or directory\n"
    done, _ = as_rank(folder, "--no_python", sys.executable, "script.py")  # no interpreter has this flag
    assert done.returncode == 2 and "--local_rank=1" in done.stderr


def test_a_list_of_cores_is_what_is_shared(folder):
    cores = sorted(os.sched_getaffinity(0))
    done, told = as_rank(folder, "--set_threads", f"--bind_core_list={cores[-1]}", "script.py")
    assert told[1] == [cores[-1]] and told[0]["OMP_NUM_THREADS"] == "1"  # and not the 7 that was set
    assert done.stderr.startswith("sluice launch: 2 ranks of this host share 1 core: ")
    assert "sluice launch: rank 1 has 1 core: " in done.stderr and "Warning" not in done.stderr
    (folder / "told-1").unlink()
    done, told = as_rank(folder, "--bind_core_list=60000", "script.py")
    assert done.returncode == 1 and told is None and "cores 60000 can't be used here: allowed are" in done.stderr


def test_help_is_a_page_of_all_flags(capsys):
    assert run.main(["--help"]) == 0
    page = capsys.readouterr().out
    assert "--hostfile, -H FILE" in page and max(map(len, page.splitlines())) <= 110
