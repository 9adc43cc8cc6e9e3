"""Ctrl-C while a rank waits for another one in the library: a real signal, of processes that torchrun might have started."""

import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading

import pytest
from ranks_group import free_port

HERE = pathlib.Path(__file__).resolve().parent
TIMEOUT_S = 60

# The victim waits for the other rank, which says so and then does not come, or comes at last: in sluice_runtime_create ("creates"),
# or with its runtime until all have theirs ("created").
SCRIPT = """
import json, os, signal, sys, threading
import sluice, torch
from ranks_jobs import given
from sluice.collectives.value_group import ValueGroup
from sluice.native import abi
from training import mlp

rank, victim, stays, where, swap = int(os.environ["RANK"]), int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
create, wait, meet = abi.Library.call, ValueGroup._wait, ValueGroup.meet

def come():
    print(where, flush=True)
    if rank != victim:
        if stays == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        sys.stdin.readline()

def says_that_it_waits(group, one):
    ValueGroup._wait = wait
    come()
    return wait(group, one)

def says_that_it_closes(group, seconds):
    print("closes", flush=True)
    meet(group, seconds)

def call(library, name, *arguments):
    if name == "sluice_runtime_create" and where == "creates":
        come()
    result = create(library, name, *arguments)
    if name == "sluice_runtime_create" and where == "created":
        if rank == victim:
            ValueGroup._wait, ValueGroup.meet = says_that_it_waits, says_that_it_closes
        else:
            come()
    return result

abi.Library.call = call
model = mlp()
before = {n: p.detach().clone() for n, p in model.named_parameters()}
try:
    sluice.initialize(model=model, config=given(2, "nvme", swap))
    said = "nothing"
except BaseException as error:
    said = f"{type(error).__name__}: {error}"
same = all(torch.equal(before[n], p) for n, p in model.named_parameters())
threads = [t.name for t in threading.enumerate() if t.name == "sluice-create"]
print(json.dumps([said, same, threads, os.listdir(swap)]), flush=True)
"""


class Rank:
    def __init__(self, rank, port, local, *arguments):
        environment = {
            **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
            "SLUICE_LOCAL_RANKS": local, "PYTHONPATH": os.pathsep.join((str(HERE.parents[1] / "python"), str(HERE))),
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *map(str, arguments)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        self._lines = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self._lines.put(line.strip())
        self._lines.put("")

    def line(self):
        """The next one; nothing once the process has ended. Errors: queue.Empty if there is none in time."""
        return self._lines.get(timeout=TIMEOUT_S)


def resume(rank):
    rank.process.send_signal(signal.SIGCONT)
    rank.process.stdin.write("\n")
    rank.process.stdin.flush()


@pytest.mark.parametrize("victim, stays, where, local", [
    (0, "stopped", "creates", "1"), (1, "late", "creates", "1"), (0, "stopped", "creates", "0"),  # 0: over gloo
    (0, "late", "created", "0"), (1, "late", "created", "0"),
])  # fmt: skip
def test_ctrl_c_ends_a_wait_for_a_rank(tmp_path, victim, stays, where, local):
    port = free_port()
    ranks = [Rank(rank, port, local, victim, stays, where, tmp_path) for rank in range(2)]
    try:
        assert [rank.line() for rank in ranks] == [where] * 2
        mine, other = ranks[victim], ranks[1 - victim]
        if stays == "stopped":
            os.waitid(os.P_PID, other.process.pid, os.WSTOPPED | os.WNOWAIT)
        mine.process.send_signal(signal.SIGINT)
        if where == "created":  # the other one comes while this one takes its leave
            assert mine.line() == "closes"
            resume(other)
        said, same, threads, left = json.loads(mine.line())
        assert said.startswith("KeyboardInterrupt") and same and threads == [] and (left == [] or where == "created")
        if where == "creates":
            resume(other)
        said, same, threads, left = json.loads(other.line())
        assert f"rank {victim} " in said and "KeyboardInterrupt" in said and same and threads == [] and left == []
        assert [rank.process.wait(TIMEOUT_S) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.process.kill()
            rank.process.wait()
