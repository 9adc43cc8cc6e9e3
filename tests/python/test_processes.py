"""Ctrl-C, exit and fork in every phase of a step, each in a process of its own. What they print is what happened; none may
hang, crash, or leave a file behind."""

import json
import os
import pathlib
import select
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest
from training import ROOT

PRELUDE = """
import os, signal, sys, threading, torch, sluice
torch.set_num_threads(1)
from training import batch, config, loss_of, mlp, one_step, smallest, same
given = config(sys.argv[1], gradient_clipping=0.0)
given["sluice"]["hbm"] = int(1.1 * smallest(mlp(), given, "hbm"))
given["sluice"]["pinned"] = int(1.1 * smallest(mlp(), given, "pinned"))
"""
ENGINE = """
engine = sluice.initialize(model=mlp(), config=given)[0]
x, y = batch(0)
"""
TIMEOUT_S = 60
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT / 'python'}:{pathlib.Path(__file__).parent}"}


@pytest.fixture(scope="module")
def zygote():
    command = [sys.executable, str(pathlib.Path(__file__).with_name("zygote.py"))]
    process = subprocess.Popen(
        command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0
    )
    yield process
    process.stdin.close()
    process.wait(TIMEOUT_S)


@pytest.fixture
def run(zygote, tmp_path):
    """run(script, code) -> words printed, text of stderr. The script's swap directory is empty afterwards."""
    swap = tmp_path / "swap"
    swap.mkdir()

    def run(script, code=0):
        out, error = tmp_path / "out", tmp_path / "error"
        script = PRELUDE + ENGINE + textwrap.dedent(script)
        job = {"script": script, "argument": str(swap), "out": str(out), "error": str(error)}
        zygote.stdin.write(json.dumps(job) + "\n")
        zygote.stdin.flush()
        if not select.select([zygote.stdout], [], [], TIMEOUT_S)[0]:
            os.killpg(zygote.pid, signal.SIGKILL)
            pytest.fail(f"still running after {TIMEOUT_S} s: {error.read_text()}")
        assert int(zygote.stdout.readline()) == code, error.read_text()
        assert os.listdir(swap) == []
        return out.read_text().split(), error.read_text()

    return run


PHASES = {
    "nothing done yet": "",
    "inside forward": "engine.module[2].register_forward_hook(lambda *a: {end}); engine(x)",
    "between forward and backward": "loss = loss_of(engine(x), y); {end}",
    "inside backward": "engine.module[2].register_full_backward_pre_hook(lambda *a: {end}); one_step(engine, 0)",
    "between backward and step": "engine.backward(loss_of(engine(x), y)); {end}",
    "after step, its updates under way": "one_step(engine, 0); one_step(engine, 1); {end}",
    "while reading values": "one_step(engine, 0); engine.module.register_state_dict_post_hook(lambda *a: {end}); "
    "engine.module.state_dict()",
}


@pytest.mark.parametrize("phase", PHASES)
def test_exit_in_each_phase(run, phase):
    for end, code in (("sys.exit(3)", 3), ("os._exit(4)", 4), ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL)):
        script = PHASES[phase].format(end=end) or end
        _, error = run(script, code)
        assert "Traceback" not in error


@pytest.mark.parametrize("phase", PHASES)
def test_ctrl_c_in_each_phase(run, phase):
    """KeyboardInterrupt comes out of the call, and the same engine then trains as if nothing had happened."""
    body = PHASES[phase].format(end="signal.raise_signal(signal.SIGINT)") or "signal.raise_signal(signal.SIGINT)"
    script = f"""
    before = engine.fp32_state_dict()
    hooks = len(engine.module[2]._forward_hooks), len(engine.module[2]._backward_pre_hooks)
    try:
        {body}
        print("not interrupted")
    except KeyboardInterrupt:
        print("interrupted")
    for table in (engine.module[2]._forward_hooks, engine.module[2]._backward_pre_hooks):
        for key in list(table)[1 if table is engine.module[2]._forward_hooks else 0:]:
            del table[key]
    done = engine.global_steps
    engine.zero_grad()
    losses = [one_step(engine, done + step).item() for step in range(2)]
    other = sluice.initialize(model=mlp(), config=given)[0]
    expected = [one_step(other, step).item() for step in range(done + 2)]
    assert losses == expected[done:], (losses, expected)
    assert same(dict(engine.fp32_state_dict()), dict(other.fp32_state_dict()))
    print("same")
    """
    out, _ = run(script)
    assert out == ["interrupted", "same"]


def test_ctrl_c_while_waiting_in_the_library(run):
    """The wait for a unit that has no room, since a view of another is kept, is left at once, and taken up again later."""
    script = """
    view, waiting, wait = [], threading.Event(), engine.runtime.wait
    handle = engine.module[0].register_forward_pre_hook(lambda module, a: view.append(module.weight.detach()))
    def interrupt():
        waiting.wait()
        os.kill(os.getpid(), signal.SIGINT)
    def watched(ticket):
        if view: waiting.set()
        return wait(ticket)
    engine.runtime.wait = watched
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        engine(x)
        print("not interrupted")
    except KeyboardInterrupt:
        print("interrupted")
    thread.join()
    view.clear()
    handle.remove()
    losses = [one_step(engine, step).item() for step in range(2)]
    other = sluice.initialize(model=mlp(), config=given)[0]
    assert losses == [one_step(other, step).item() for step in range(2)]
    print("same")
    """
    out, _ = run(script)
    assert out == ["interrupted", "same"]


def test_fork(run):
    """A child can't use the engine, and its end takes nothing from the parent."""
    script = """
    one_step(engine, 0)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        for use in (engine.module.state_dict, lambda: engine(x), engine.report, lambda: engine.step()):
            try:
                use()
                print("worked")
            except sluice.FailedPrecondition as error:
                print("refused" if "forked child" in str(error) else error)
        engine.close()
        sys.exit(5)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
    one_step(engine, 1)
    other = sluice.initialize(model=mlp(), config=given)[0]
    one_step(other, 0), one_step(other, 1)
    print(same(dict(engine.fp32_state_dict()), dict(other.fp32_state_dict())))
    """
    out, error = run(script)
    assert out == ["refused"] * 4 + ["True"] and "Traceback" not in error


@pytest.mark.parametrize("parent", ["live", "closed"])
def test_a_forked_child_creates_one_of_its_own(run, parent):
    """With every kind of I/O, whatever the parent has: it trains as the parent would."""
    script = f"""
    if {parent == "closed"}:
        engine.close()
    def losses(io):
        config = {{**given, "sluice": {{**given["sluice"], "io_engine": io}}}}
        e = sluice.initialize(model=mlp(), config=config)[0]
        values = [one_step(e, step).item() for step in range(2)]
        e.close()
        return values
    kinds = ["auto", "threads", "libaio", "io_uring"]
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm({TIMEOUT_S // 2})
        for kind in kinds:
            try:
                os.write(writer, (repr(losses(kind)) + "\\n").encode())
            except (sluice.Unavailable, sluice.PermissionDenied):
                os.write(writer, b"not here\\n")
        os._exit(5)
    os.close(writer)
    told = open(reader).read().splitlines()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
    expected = repr(losses("threads"))
    print(len(told), set(told) <= {{expected, "not here"}}, told[1] == expected)
    """
    out, error = run(script)
    assert out == ["4", "True", "True"] and "Traceback" not in error


def test_forked_data_loader_workers(run):
    """Workers come and go in the middle of steps, while updates are under way."""
    script = """
    class Data(torch.utils.data.Dataset):
        def __len__(self): return 64
        def __getitem__(self, index):
            x, y = batch(index, 1)
            return x[0], y[0]
    losses = []
    for workers in (2, 0):
        e = sluice.initialize(model=mlp(), config=given)[0]
        e.backward(loss_of(e(x), y)); e.step()
        loader = torch.utils.data.DataLoader(Data(), batch_size=16, num_workers=workers, multiprocessing_context="fork" if workers else None)
        losses.append([])
        for inputs, labels in loader:
            loss = loss_of(e(inputs), labels)
            e.backward(loss); e.step()
            losses[-1].append(loss.item())
        e.close()
    print(len(losses[0]), losses[0] == losses[1])
    """
    out, _ = run(script)
    assert out == ["4", "True"]


def test_a_model_larger_than_the_drive_has_room_for(tmp_path):
    """A file system of 1 MiB, where the states need more: refused at start, naming need and room, and nothing is left."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare command")
    mount = f"mount -t tmpfs -o size=1m none {tmp_path} && exec {sys.executable} -c \"$0\" {tmp_path}"
    script = PRELUDE + textwrap.dedent(
        """
        try:
            sluice.initialize(model=mlp(), config=given)
        except sluice.ResourceExhausted as error:
            print(error)
        print(os.listdir(sys.argv[1]))
        given["sluice"]["nvme"] = 100_000
        try:
            sluice.initialize(model=mlp(), config=given)
        except sluice.ResourceExhausted as error:
            print(error)
        """
    )
    result = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, script],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    if result.returncode != 0 and ("mount" in result.stderr or "unshare" in result.stderr):
        pytest.skip(f"a file system of its own can't be mounted here: {result.stderr.strip()}")
    drive, left, budget = result.stdout.splitlines()
    assert "of swap space" in drive and "free" in drive and str(tmp_path) in drive
    assert left == "[]"
    assert "the nvme budget of" in budget and "the smallest that would is" in budget
