"""The lane of frameworks (scripts/test-frameworks): needs the packages of scripts/requirements-frameworks.txt, and never the network."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "python"))


class Server:
    """serve.py, with DeepSpeed's names or without."""

    def __init__(self, folder, *how):
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT / "python"),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": "1",
        }
        self._folder, self._count = folder, 0
        self._log = open(folder / "server", "w")
        self._process = subprocess.Popen(
            [sys.executable, *how, str(HERE / "serve.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
            cwd=folder,
        )
        assert self._process.stdout.readline() == "ready\n", (folder / "server").read_text()[-4000:]

    def run(self, case, ranks=1, **arguments):
        """What the case has returned, on rank 0."""
        module, case = case.split(".")
        self._count += 1
        folder = self._folder / f"{self._count}-{case}"
        folder.mkdir()
        job = {"module": module, "case": case, "arguments": arguments, "ranks": ranks, "folder": str(folder), "port": free_port()}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert "results" in answer, "\n".join(answer["logs"])
        return answer["results"][0]

    def close(self):
        self._process.stdin.close()
        self._process.wait()
        self._log.close()


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """run(case, ...) without DeepSpeed. What was run before is remembered."""
    server = Server(tmp_path_factory.mktemp("plain"))
    known = {}

    def run(case, **arguments):
        key = json.dumps([case, arguments])
        if key not in known:
            known[key] = server.run(case, **arguments)
        return known[key]

    yield run
    server.close()


@pytest.fixture(scope="session")
def dropin(tmp_path_factory):
    """run(case, ...) where `deepspeed` is Sluice."""
    server = Server(tmp_path_factory.mktemp("dropin"), "-m", "sluice.deepspeed")
    yield server.run
    server.close()
