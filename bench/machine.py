"""What the figures of a benchmark were measured on."""

import os
import pathlib
import platform
import subprocess

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


def setup(options):
    """options: of the run, by name."""
    commit = subprocess.run(["git", "-C", str(REPOSITORY), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    model = next((line.split(": ")[1] for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    return {
        "commit": commit.stdout.strip(),
        "cpu": model.strip(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "load_average": os.getloadavg(),
        "options": {name: value for name, value in options.items() if name != "child"},
    }
