"""A model that does not fit: 300 million parameters in a memory cgroup of 8 bytes for each."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import uuid

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
EXAMPLES = REPOSITORY / "examples"
PARAMETERS = 302_901_248  # of the shape below
SHAPE = ["--layers", "24", "--hidden", "1024", "--seq", "64"]
DISK_NEEDED = 5 << 30

# The same model as people train it without offloading: bf16 in compute, fp32 masters, AdamW.
PLAIN_LOOP = """
import sys, torch, gpt
model = gpt.GPT(24, 1024, 64)
masters = [p.detach().clone() for p in model.parameters()]
model.bfloat16()
optimizer = torch.optim.AdamW(masters, lr=1e-4)
text = gpt.Text(None, 0)
for step in range(2):
    loss = model(*text.batch(1, 64))
    loss.backward()
    for master, parameter in zip(masters, model.parameters()):
        master.grad, parameter.grad = parameter.grad.float(), None
    optimizer.step()
    for master, parameter in zip(masters, model.parameters()):
        parameter.data.copy_(master)
print("trained", loss.item())
"""


@contextlib.contextmanager
def memory_cgroup(limit):
    """A cgroup.procs file to write a process id to; what is there may use `limit` bytes of memory and no swap."""
    lines = pathlib.Path("/proc/self/cgroup").read_text().splitlines()
    places = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            places.append((pathlib.Path("/sys/fs/cgroup" + path), "memory.max", "memory.swap.max"))
        elif "memory" in controllers.split(","):
            places.append((pathlib.Path("/sys/fs/cgroup/memory" + path), "memory.limit_in_bytes", None))
    for parent, limit_file, swap_file in places:
        group = parent / f"sluice-test-{uuid.uuid4().hex[:8]}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit_file).write_text(str(limit))
            if swap_file is not None and (group / swap_file).exists():
                (group / swap_file).write_text("0")
        except OSError:
            group.rmdir()
            continue
        try:
            yield group / "cgroup.procs"
        finally:
            group.rmdir()
        return
    pytest.skip("no memory cgroup can be made here (it takes root and a writable /sys/fs/cgroup)")


def run_in(procs, command):
    def enter():
        with open(procs, "w") as file:
            file.write(str(os.getpid()))

    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY / 'python'}:{EXAMPLES}"}
    return subprocess.run(
        command, preexec_fn=enter, cwd=EXAMPLES, env=environment, capture_output=True, text=True, timeout=600
    )


def test_the_demo_trains_where_a_pytorch_loop_is_killed(tmp_path):
    if shutil.disk_usage(tmp_path).free < DISK_NEEDED:
        pytest.skip(f"{tmp_path} has less than {DISK_NEEDED >> 30} GiB free")
    figures = tmp_path / "figures.json"
    demo = [sys.executable, "train_gpt.py", *SHAPE, "--batch", "1", "--steps", "3", "--no-probe"]
    with memory_cgroup(8 * PARAMETERS) as procs:
        trained = run_in(procs, [*demo, "--nvme-path", str(tmp_path), "--json", str(figures)])
        assert trained.returncode == 0, trained.stderr
        plain = run_in(procs, [sys.executable, "-c", PLAIN_LOOP])
        assert plain.returncode == -signal.SIGKILL, f"{plain.returncode}: {plain.stdout}{plain.stderr}"
    result = json.loads(figures.read_text())
    assert result["params"] == PARAMETERS
    assert result["steps"] == 3
    for tier, budget in result["budgets_bytes"].items():
        assert result["peak_bytes"][tier] <= budget
    assert result["read_bytes"] > 8 * PARAMETERS and result["written_bytes"] > 8 * PARAMETERS
