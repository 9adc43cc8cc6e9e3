"""Ctrl-C while a rank waits for another one in the library: a real signal, of processes that torchrun might have started."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest
from ranks_group import free_port

HERE = pathlib.Path(__file__).resolve().parent

# The victim waits in sluice_runtime_create for the other rank, which says so and then does not come, or comes at last.
SCRIPT = """
import json, os, signal, sys, threading
import sluice, torch
from ranks_jobs import given
from sluice.native import abi
from training import mlp

rank, victim, stays, swap = int(os.environ["RANK"]), int(sys.argv[1]), sys.argv[2], sys.argv[3]
create = abi.Library.call

def call(library, name, *arguments):
    if name == "sluice_runtime_create":
        print("creates", flush=True)
        if rank != victim:
            if stays == "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            sys.stdin.readline()
    return create(library, name, *arguments)

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
    def __init__(self, rank, port, *arguments):
        environment = {
            **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join((str(HERE.parents[1] / "python"), str(HERE))),
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *map(str, arguments)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip

    def line(self):
        return self.process.stdout.readline().strip()


@pytest.mark.parametrize("victim, stays", [(0, "stopped"), (1, "late")])
def test_ctrl_c_ends_a_wait_for_a_rank_in_the_library(tmp_path, victim, stays):
    port = free_port()
    ranks = [Rank(rank, port, victim, stays, tmp_path) for rank in range(2)]
    try:
        assert [rank.line() for rank in ranks] == ["creates"] * 2
        mine, other = ranks[victim], ranks[1 - victim]
        if stays == "stopped":
            os.waitid(os.P_PID, other.process.pid, os.WSTOPPED | os.WNOWAIT)
        mine.process.send_signal(signal.SIGINT)
        said, same, threads, left = json.loads(mine.line())
        assert said.startswith("KeyboardInterrupt") and same and threads == [] and left == []
        other.process.send_signal(signal.SIGCONT)
        other.process.stdin.write("\n")
        other.process.stdin.flush()
        said, same, threads, left = json.loads(other.line())
        assert f"rank {victim} " in said and "KeyboardInterrupt" in said and same and threads == [] and left == []
        assert [rank.process.wait() for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.process.kill()
            rank.process.communicate()
