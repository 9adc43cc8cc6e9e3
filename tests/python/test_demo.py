"""The demo, smaller: what it reports holds, and agrees with what the system says of the process."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
SMALL = ["--layers", "6", "--hidden", "512", "--seq", "64", "--batch", "4", "--lr", "2e-3"]


class Demo:
    """A running demo, looked at from outside whenever it prints a line."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, "train_gpt.py", *arguments],
            cwd=REPOSITORY / "examples",
            env={**os.environ, "PYTHONPATH": str(REPOSITORY / "python")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell may have had it ignored
        )
        self.proc = pathlib.Path("/proc") / str(self.process.pid)

    def lines(self):
        return iter(self.process.stderr.readline, "")

    def arenas(self):
        """Bytes present of the mappings that forks and core dumps leave out: the arenas, and nothing else."""
        total, present = 0, 0
        for line in (self.proc / "smaps").read_text().splitlines():
            if match := re.match(r"Rss:\s+(\d+) kB", line):
                present = int(match[1]) * 1024
            elif line.startswith("VmFlags:") and {"dc", "dd"} <= set(line.split()):
                total += present
        return total

    def swap_files(self):
        """What the file system says that unnamed files of this process take."""
        total = 0
        for link in (self.proc / "fd").iterdir():
            try:
                if os.readlink(link).endswith("(deleted)"):
                    total += link.stat().st_blocks * 512
            except FileNotFoundError:
                continue
        return total


def test_learns_within_its_budgets_and_reports_what_the_system_sees(tmp_path):
    figures = tmp_path / "figures.json"
    demo = Demo(*SMALL, "--steps", "40", "--nvme-path", str(tmp_path), "--json", str(figures), "--no-probe",
                "--trace", str(tmp_path / "trace.json"))
    arenas, files = [], []
    for line in demo.lines():
        if re.search(r" \d+/40 ", line) and demo.process.poll() is None and " 40/40 " not in line:
            arenas.append(demo.arenas())
            files.append(demo.swap_files())
    output = demo.process.stdout.read()
    assert demo.process.wait() == 0, output
    result = json.loads(figures.read_text())

    assert result["loss_last"] <= 0.7 * result["loss_first"]
    # None on a quiet machine; on a loaded one the control thread may come a moment late.
    assert result["demand_misses_after_first_step"] <= result["evictions"] / 50
    assert result["evictions"] > 40
    assert result["chunks_per_unit"] > 2
    for tier, budget in result["budgets_bytes"].items():
        assert result["peak_bytes"][tier] <= budget
    peak = result["peak_bytes"]
    assert arenas and max(arenas) == pytest.approx(peak["hbm"] + peak["pinned"], rel=0.02)
    assert max(files) == pytest.approx(peak["nvme"], rel=0.02)
    assert result["read_bytes"] == pytest.approx(result["system"]["read_bytes"], rel=0.02)
    assert result["written_bytes"] == pytest.approx(result["system"]["write_bytes"], rel=0.02)
    assert "efficiency" not in output and "demand misses" in output
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert {"forward", "backward", "step"} <= {event["name"] for event in events}
    for kind in ("read", "write", "update"):
        assert any(event["name"].startswith(kind) for event in events)


def test_budgets_that_cannot_work_are_refused_with_the_smallest_that_would():
    refused = Demo(*SMALL, "--steps", "1", "--no-probe", "--pinned", "1MiB")
    words = refused.process.communicate()[1]
    assert refused.process.returncode == 1
    smallest = int(re.search(r"the smallest that would is .*?\((\d+) bytes\)", words)[1])
    works = Demo(*SMALL, "--steps", "1", "--no-probe", "--pinned", str(smallest))
    words = works.process.communicate()[1]
    assert works.process.returncode == 0, words


def test_ctrl_c_ends_it_with_a_summary():
    demo = Demo(*SMALL, "--steps", "100000", "--no-probe")
    for line in demo.lines():
        if " 5/100000 " in line:
            demo.process.send_signal(signal.SIGINT)
            break
    output, words = demo.process.communicate(timeout=60)
    assert demo.process.returncode == 130, words
    assert "over the last ten steps" in output
    assert "Traceback" not in words


def test_a_deepspeed_file_replaces_the_defaults_and_options_overrule_it(tmp_path):
    config = {
        "train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "fp16": {"enabled": True},
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "weight_decay": 0.01}},
    }
    (tmp_path / "ds_config.json").write_text(json.dumps(config))
    figures = tmp_path / "figures.json"
    options = ["--config", str(tmp_path / "ds_config.json"), "--engine", "threads", "--json", str(figures)]
    demo = Demo("--layers", "2", "--hidden", "128", "--seq", "32", "--steps", "3", *options)
    words = demo.process.communicate(timeout=120)[1]
    assert demo.process.returncode == 0, words
    result = json.loads(figures.read_text())
    assert result["tokens_per_step"] == 8 * 32
    assert result["efficiency"] is None, "the floor is that of one micro-batch a step"
    assert result["engine"].startswith("threads")
