"""The demo, smaller, for many steps, looked at from outside: soak.py STEPS. Its memory must not grow: after the first
steps, the peak of the last third of the run may be above that of the first third by GROWTH_MAX and no more."""

import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHAPE = ["--layers", "6", "--hidden", "256", "--seq", "64", "--batch", "4", "--no-probe"]
WARM_UP = 10  # steps
GROWTH_MAX = 4 << 20


def start(steps, path):
    return subprocess.Popen(
        [sys.executable, "train_gpt.py", *SHAPE, "--steps", str(steps), "--nvme-path", path],
        cwd=ROOT / "examples",
        env={**os.environ, "PYTHONPATH": str(ROOT / "python")},
        stderr=subprocess.PIPE,
        text=True,
    )


def peak_since_last(process):
    """Bytes of RAM that the process had at most since this was asked before."""
    proc = pathlib.Path("/proc") / str(process.pid)
    peak = re.search(r"^VmHWM:\s+(\d+) kB$", (proc / "status").read_text(), re.MULTILINE)
    (proc / "clear_refs").write_text("5")
    return int(peak[1]) * 1024


def watch(process, steps):
    """Peaks between the lines that it prints, every few steps; the lines end up on the screen."""
    peaks = []
    for line in process.stderr:
        print(line, end="", file=sys.stderr)
        done = re.search(rf" (\d+)/{steps} ", line)
        if done and int(done[1]) < steps:  # at the last one it may be gone
            peaks.append((int(done[1]), peak_since_last(process)))
    if process.wait() != 0:
        sys.exit(f"soak: the demo ended with exit code {process.returncode}")
    return [peak for step, peak in peaks if step > WARM_UP]


def growth(peaks):
    """From the first third to the last one, in bytes."""
    third = len(peaks) // 3
    return max(peaks[-third:]) - max(peaks[:third])


def self_test():
    assert growth([5, 1, 1, 9, 1, 6]) == 1
    assert growth([3, 2, 1]) == -2


def main():
    self_test()
    steps = int(sys.argv[1])
    if steps < 30:
        sys.exit("soak: at least 30 steps are needed to see memory grow")
    with tempfile.TemporaryDirectory() as path:
        peaks = watch(start(steps, path), steps)
    grown = growth(peaks)
    print(f"soak: {steps} steps, peak {max(peaks) >> 20} MiB, grown by {grown / (1 << 20):.1f} MiB")
    if grown > GROWTH_MAX:
        sys.exit(f"soak: memory grew by more than {GROWTH_MAX >> 20} MiB: {peaks}")


main()
