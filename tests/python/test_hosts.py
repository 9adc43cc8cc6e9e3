"""Ranks on one host and on two (network namespaces with a link between them) that are killed, frozen, or cut off at any moment:
every other one ends with an error that names the rank, and nothing is left on the disks."""

import contextlib
import json
import os
import pathlib
import select
import signal
import subprocess
import sys

import hosts_jobs
import pytest
from ranks_group import free_port
from training import ROOT

LIMIT_S = 40  # after which a case hangs
PATIENCE_S = 2  # how long a rank waits for another one: sluice.rank_timeout
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT / 'python'}:{pathlib.Path(__file__).parent}", "OMP_NUM_THREADS": "1"}


class Zygote:
    """The forker of ranks; begin() and end() of cases, which run side by side."""

    def __init__(self, folder):
        command = [sys.executable, str(pathlib.Path(__file__).with_name("hosts_zygote.py"))]
        self._process = subprocess.Popen(
            command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0
        )
        self._folder = folder
        self._cases = 0
        self._said = b""

    def begin(self, ranks, hosts=((None, "127.0.0.1", "lo"),), stage=3, moment=None, victim=None, signal_name=None):
        """A case: ranks of a training, spread over `hosts`: (network namespace, address, interface) of each."""
        self._cases += 1
        folder = self._folder / str(self._cases)
        port, jobs, each = free_port(), [], ranks // len(hosts)
        for rank in range(ranks):
            namespace, _, interface = hosts[rank // each]
            swap = folder / f"swap{rank // each}"
            swap.mkdir(parents=True, exist_ok=True)
            environment = {
                "RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank % each, "LOCAL_WORLD_SIZE": each,
                "MASTER_ADDR": hosts[0][1], "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": interface,
            }  # fmt: skip
            if signal_name == "deaf":
                environment["SLUICE_LOCAL_RANKS"] = 0  # it is gloo's server that is
            jobs.append({
                "case": self._cases, "rank": rank, "ranks": ranks, "stage": stage, "swap": str(swap), "namespace": namespace,
                "out": str(folder / f"rank{rank}"), "environment": {k: str(v) for k, v in environment.items()},
                "moment": moment if rank == victim else None, "signal": signal_name, "timeout_s": PATIENCE_S,
            })  # fmt: skip
        self._process.stdin.write(json.dumps(jobs).encode() + b"\n")
        self._process.stdin.flush()
        return Case(self, folder, ranks)

    def line(self):
        while b"\n" not in self._said:
            if not select.select([self._process.stdout], [], [], LIMIT_S)[0]:
                os.killpg(self._process.pid, signal.SIGKILL)
                raise AssertionError(f"nothing has ended for {LIMIT_S} s")
            self._said += os.read(self._process.stdout.fileno(), 1 << 16)
        line, _, self._said = self._said.partition(b"\n")
        return json.loads(line)

    def close(self):
        self._process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(LIMIT_S)


class Case:
    def __init__(self, zygote, folder, ranks):
        self._zygote, self._folder, self.ranks = zygote, folder, ranks
        self.pids, self.ended, self.moments = {}, {}, set()
        zygote.__dict__.setdefault("open", {})[zygote._cases] = self

    def _read(self):
        line = self._zygote.line()
        case, rank = self._zygote.open[line["case"]], line["rank"]
        if "pid" in line:
            case.pids[rank] = line["pid"]
        elif "at" in line:
            case.moments.add(line["at"])
        else:
            case.ended[rank] = line["status"]

    def wait_for(self, moment):
        while moment not in self.moments:
            self._read()

    def end(self, ranks=None):
        """What those ranks have printed, by rank, when they have ended."""
        ranks = range(self.ranks) if ranks is None else ranks
        while not all(rank in self.ended for rank in ranks):
            self._read()
        return {rank: self._said(rank) for rank in ranks}

    def _said(self, rank):
        """The last line, or everything, if that is no JSON."""
        text = (self._folder / f"rank{rank}").read_text()
        try:
            return json.loads(text.splitlines()[-1])
        except (IndexError, ValueError):
            return {"crashed": text}

    def check_nothing_left(self):
        assert [name for swap in self._folder.glob("swap*") for name in os.listdir(swap)] == []


@pytest.fixture(scope="module")
def zygote(tmp_path_factory):
    made = Zygote(tmp_path_factory.mktemp("hosts"))
    yield made
    made.close()


@pytest.fixture
def hosts():
    """((namespace, address, interface), ...) of two hosts, and cut(), which takes their link down."""
    names = [f"sluice{os.getpid()}{end}" for end in "ab"]
    made = []

    def ip(*words):
        return subprocess.run(["ip", *words], capture_output=True, text=True)

    try:
        for name in names:
            try:
                added = ip("netns", "add", name)
            except FileNotFoundError:
                pytest.skip("there is no `ip` (Debian's iproute2), so no network namespaces")
            if added.returncode != 0:
                pytest.skip(f"network namespaces can't be made here: {added.stderr.strip()}")
            made.append(name)
        linked = ip("link", "add", "veth0", "netns", names[0], "type", "veth", "peer", "name", "veth0", "netns", names[1])
        if linked.returncode != 0:
            pytest.skip(f"a veth pair can't be made here: {linked.stderr.strip()}")
        for number, name in enumerate(names):
            for words in (
                f"addr add 10.99.0.{number + 1}/24 dev veth0", "link set veth0 up", "link set lo up",
            ):  # fmt: skip
                assert ip("-n", name, *words.split()).returncode == 0
        yield (
            tuple((name, f"10.99.0.{number + 1}", "veth0") for number, name in enumerate(names)),
            lambda: ip("-n", names[0], "link", "set", "veth0", "down"),
        )
    finally:
        for name in made:
            ip("netns", "del", name)


def check_named(said, victims, who):
    assert any(f"rank {victim}" in said.get("error", "") for victim in victims), (who, said)


def test_two_hosts_come_to_the_bits_of_one(zygote, hosts):
    cases = [zygote.begin(4), zygote.begin(4, hosts[0]), zygote.begin(4, stage=0)]
    results = [case.end() for case in cases]
    for result, case in zip(results, cases):
        assert result == results[0]
        case.check_nothing_left()
    assert len({one["digest"] for one in results[0].values()}) == 1


def test_a_link_that_is_cut_ends_all_ranks_of_both_hosts(zygote, hosts):
    case = zygote.begin(4, hosts[0], moment="backward", victim=0)
    case.wait_for("backward")
    hosts[1]()
    words = case.end()
    for rank, said in words.items():
        check_named(said, (2, 3) if rank < 2 else (0, 1), rank)
    case.check_nothing_left()


@pytest.mark.parametrize("moment", hosts_jobs.MOMENTS)
def test_a_rank_that_is_killed_or_frozen_ends_the_others_with_its_name(zygote, moment):
    at = hosts_jobs.MOMENTS.index(moment)
    cases = []
    for ranks, signal_name in ((4, ("SIGKILL", "SIGSTOP")[at % 2]), (2, ("SIGSTOP", "SIGKILL")[at % 2])):
        victim = (at + 1) % ranks
        cases.append((zygote.begin(ranks, moment=moment, victim=victim, signal_name=signal_name), victim, signal_name))
    for case, victim, signal_name in cases:
        case.wait_for(moment)
        others = [rank for rank in range(case.ranks) if rank != victim]
        for rank, said in case.end(others).items():
            if moment == "close" and "digest" in said:
                continue  # it needed nothing more
            check_named(said, [victim], (signal_name, rank))
        if signal_name == "SIGSTOP":
            os.kill(case.pids[victim], signal.SIGCONT)
            case.end()
        case.check_nothing_left()


def test_what_the_framework_does_not_end_is_given_up_and_its_memory_kept(zygote):
    case = zygote.begin(2, moment="backward", victim=0, signal_name="deaf")
    said = case.end()
    assert "operations among ranks, which the framework does not end" in said[0].get("error", ""), said
    check_named(said[1], [0], 1)
    case.check_nothing_left()
