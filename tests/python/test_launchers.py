"""The example as it is under MPI's launcher: the same losses at every stage, in the memory that the plan says."""

import shutil
import subprocess
import sys

import pytest
from training import ROOT


@pytest.mark.parametrize("launcher", ["mpirun"])  # torchrun: bench/stage_memory.py by itself, which takes longer
def test_the_example_holds_what_the_plan_says_and_comes_to_the_same_losses(launcher):
    if not shutil.which(launcher):
        pytest.skip("there is no mpirun (Debian's openmpi-bin)")
    if not (ROOT / "build/release/tools/sluice").exists():
        pytest.skip("there is no sluice command to plan with: build the target sluice_cli")
    command = [sys.executable, str(ROOT / "bench" / "stage_memory.py"), "--launcher", launcher, "--stages", "1,3"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "the same losses, and bytes within 5 %" in result.stdout
