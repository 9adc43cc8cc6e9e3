"""The end-to-end step: the demo with overlap and without, in pairs, one after the other, so that a drive or a machine that
wanders does so for both. Prints each pair and the medians; --json writes them with their setup.

    .venv/bin/python bench/step_bench.py [--pairs N] [--json FILE] [-- OPTIONS OF examples/train_gpt.py]

The ratio is of the medians of the steps' times, as the runtime knows them (neither the first nor those in which something was
measured). Efficiency is the median of floor over measured of the runs with overlap: what the floor is, offload/plan/floor.h says,
and which floor a step is held against, offload/run/step_times.h. The floor printed is the last.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

from machine import REPOSITORY, setup


def run_demo(options):
    with tempfile.NamedTemporaryFile(suffix=".json") as figures:
        command = [sys.executable, str(REPOSITORY / "examples" / "train_gpt.py"), "--json", figures.name, *options]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            sys.exit(f"{' '.join(command)} failed:\n{result.stderr}")
        return json.load(figures)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("options", nargs="*", help="of the demo, after --")
    args = parser.parse_args()
    pairs = []
    for number in range(args.pairs):
        overlapped = run_demo(args.options)
        serial = run_demo([*args.options, "--no-overlap", "--no-probe"])
        ratio = serial["step_seconds_median"] / overlapped["step_seconds_median"]
        pairs.append({"overlapped": overlapped, "serial": serial, "ratio": ratio})
        terms = overlapped["floor_terms"]
        print(
            f"pair {number + 1}: {overlapped['step_seconds_median']:.2f} s with overlap, "
            f"{serial['step_seconds_median']:.2f} s without, ratio {ratio:.2f}; floor {terms['total']:.2f} s "
            f"(backward {terms['backward']:.2f}, forward {terms['forward']:.2f}, drive {terms['io']:.2f}), "
            f"efficiency {overlapped['efficiency']:.2f}",
            flush=True,
        )
    summary = {
        "setup": {**setup(vars(args)), "engine": pairs[0]["overlapped"]["engine"], "device": pairs[0]["overlapped"]["device"]},
        "ratio_median": statistics.median(p["ratio"] for p in pairs),
        "efficiency_median": statistics.median(p["overlapped"]["efficiency"] for p in pairs),
        "pairs": pairs,
    }
    print(f"median: ratio {summary['ratio_median']:.2f}, efficiency {summary['efficiency_median']:.2f}; {summary['setup']}")
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(summary, indent=1))


main()
