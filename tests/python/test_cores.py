"""Whose the cores are: PyTorch's threads sleep where they wait, and a caller that waits updates without a trace in its own mode."""

import os
import subprocess
import sys

import pytest
import torch

import sluice

CONFIG = {
    "train_batch_size": 2,
    "bf16": {"enabled": True},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
    "sluice": {"hbm": 1 << 26, "pinned": 1 << 27, "chunk_elements": 4096},
}
PROGRAM = """
import sys
IMPORTS
torch.set_num_threads(int(sys.argv[1]))
torch.ones(1 << 20).add_(1)
engine, *_ = sluice.initialize(model=torch.nn.Linear(8, 8), config=eval(sys.argv[2]))
print(engine.report()["cores"])
engine.close()
"""


@pytest.mark.parametrize("policy", [None, "passive", "active"])
@pytest.mark.parametrize("imports, threads", [("import torch, sluice", 5), ("import sluice, torch", 1)])
def test_pytorchs_threads_sleep_where_they_wait(policy, imports, threads):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    if policy is not None:
        environment["OMP_WAIT_POLICY"] = policy
    command = [sys.executable, "-P", "-c", PROGRAM.replace("IMPORTS", imports), str(threads), repr(CONFIG)]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert "libgomp" not in said or "threads sleep where they wait" in said
    assert "may spin" not in said


def flushes():
    """Whether this thread's arithmetic makes subnormals zero."""
    return (torch.tensor([1e-38]) / 16).item() == 0


@pytest.mark.parametrize("mode", [False, True])
def test_a_caller_that_waits_keeps_its_subnormals(mode):
    before = flushes()
    try:
        torch.set_flush_denormal(mode)
        config = {**CONFIG, "sluice": {**CONFIG["sluice"], "workers": 1}}
        engine, *_ = sluice.initialize(model=torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(6))), config=config)
        for _ in range(5):
            loss = engine(torch.ones(2, 256, dtype=torch.bfloat16)).square().mean()
            assert flushes() == mode
            engine.backward(loss)
            engine.step()
            assert flushes() == mode
            engine.synchronize()
            assert flushes() == mode
        engine.close()
    finally:
        torch.set_flush_denormal(before)


def test_the_report_says_who_computes_and_who_updates():
    engine, *_ = sluice.initialize(model=torch.nn.Linear(8, 8), config={**CONFIG, "sluice": {"workers": 3}})
    cores = engine.report()["cores"]
    engine.close()
    assert cores["workers"] == 3 and cores["update"].startswith("3 workers (as asked for)")
    assert cores["allowed"] <= len(os.sched_getaffinity(0)) <= cores["machine"]
    engine, *_ = sluice.initialize(model=torch.nn.Linear(8, 8), config=CONFIG)
    assert engine.report()["cores"]["workers"] == max(1, cores["allowed"] - 1)
    engine.close()


ALLOWED = """
import os, torch, sluice
bound = len(os.sched_getaffinity(0))
torch.ones(1 << 20).add_(1)
engine, *_ = sluice.initialize(model=torch.nn.Linear(8, 8), config=eval(sys.argv[1]))
masks = set()
for task in os.listdir("/proc/self/task"):
    name = open(f"/proc/self/task/{task}/comm").read()
    if name.startswith("sluice") and "idle" not in name:
        masks.add(tuple(sorted(os.sched_getaffinity(int(task)))))
print(repr((engine.report()["cores"]["allowed"], bound, masks, len(os.sched_getaffinity(0)))))
engine.close()
"""


@pytest.mark.parametrize("bind", [None, "false", "true", "close", "spread"])
def test_a_thread_that_openmp_has_bound_binds_nobody_else(bind):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    if bind is not None:
        environment["OMP_PROC_BIND"] = bind
    command = [sys.executable, "-P", "-c", "import sys" + ALLOWED, repr(CONFIG)]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    allowed, before, masks, after = eval(said)
    assert masks == {tuple(sorted(os.sched_getaffinity(0)))}
    assert allowed <= len(os.sched_getaffinity(0)) and before == after
    plain = [sys.executable, "-P", "-c", "import sys" + ALLOWED, repr(CONFIG)]
    assert allowed == eval(subprocess.run(plain, capture_output=True, text=True, check=True).stdout)[0]


def idle_threads():
    return [name for name in map(lambda task: open(f"/proc/self/task/{task}/comm").read(), os.listdir("/proc/self/task"))
            if name.startswith("sluice-idle")]


def test_engines_share_what_sleeps():
    torch.ones(1 << 20).add_(1)
    engines = [sluice.initialize(model=torch.nn.Linear(8, 8), config=CONFIG)[0]]
    one = len(idle_threads())
    engines += [sluice.initialize(model=torch.nn.Linear(8, 8), config=CONFIG)[0] for _ in range(3)]
    assert len(idle_threads()) == one
    for engine in engines[:3]:
        engine.close()
    assert len(idle_threads()) == one
    engines[3].close()


def test_what_sleeps_ends_with_the_engine():
    torch.ones(1 << 20).add_(1)
    before = set(os.listdir("/proc/self/task"))
    for _ in range(3):
        engine, *_ = sluice.initialize(model=torch.nn.Linear(8, 8), config=CONFIG)
        assert set(os.listdir("/proc/self/task")) - before
        engine.close()
        for _ in range(20_000):
            if not set(os.listdir("/proc/self/task")) - before:
                break
        assert not set(os.listdir("/proc/self/task")) - before
