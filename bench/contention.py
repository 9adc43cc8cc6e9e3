"""Who gets the cores: a step with all states in RAM, one with all on the drive, and plain PyTorch's forward and backward, alone
and under k other busy processes, with PyTorch's threads waiting as they do by default and passively (OMP_WAIT_POLICY).

    .venv/bin/python bench/contention.py [--busy 0,1,2,4] [--rounds N] [--steps N] [--tokens N,N] [--threads N,N] [--json FILE]
    .venv/bin/python bench/contention.py --table [--minutes 15] [--json FILE]

Each case is a process that lives through the whole run and steps when it is its turn; the others sleep then. A round goes
through all cases for every k, so a machine that wanders does so for all. Printed are medians over all steps of a case: seconds,
and ratios that are made within rounds. Of a case's threads it also says how long they ran and how long they waited for a core
(/proc/self/task/*/schedstat), a step: those that compute, and Sluice's.

--table goes through 16, 64 and 512 tokens a step on 1 and 2 threads beside 0, 1, 2 and 4 processes, twice, for as many
steps as the minutes allow, and prints the rows of the table in docs/benchmarks.md.

A peer is one more entry of CASES: any program that answers a line {"steps": N, "seconds": S, "tokens": N, "threads": N} on its
standard input with the JSON object that child() prints, after so many steps or so much time, if that is not null.
DeepSpeed's is child() with deepspeed.initialize(model=..., config=ds_config).
"""

import argparse
import itertools
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from machine import REPOSITORY, setup

PASSIVE = {"OMP_WAIT_POLICY": "passive"}
# name: what steps, and what its environment says of waiting
CASES = {
    "plain": ("plain", {}),
    "plain, passive": ("plain", PASSIVE),
    "RAM": ("ram", {}),
    "RAM, passive": ("ram", PASSIVE),
    "drive": ("drive", {}),
    "drive, passive": ("drive", PASSIVE),
}
# The ratios that are shown: name, of, to.
RATIOS = (
    ("RAM: default to passive", "RAM", "RAM, passive"),
    ("drive: default to passive", "drive", "drive, passive"),
    ("RAM to plain", "RAM", "plain"),
    ("drive to plain", "drive", "plain"),
)


def thread_times():
    """Seconds that the threads of this process ran and waited for a core: {"compute": (ran, waited), "sluice": ...}."""
    sums = {"compute": [0, 0], "sluice": [0, 0]}
    for task in pathlib.Path("/proc/self/task").iterdir():
        try:
            name = (task / "comm").read_text()
            ran, waited, _ = (task / "schedstat").read_text().split()
        except OSError:  # it has ended
            continue
        entry = sums["sluice" if name.startswith("sluice") else "compute"]
        entry[0] += int(ran) / 1e9
        entry[1] += int(waited) / 1e9
    return sums


def make_step(kind, args):
    """A function that takes one step of so many tokens, with everything that a user's loop has in it."""
    import torch

    sys.path.insert(0, str(REPOSITORY / "examples"))
    import gpt

    length = 64
    text = gpt.Text(None, 0)

    def batch(tokens):
        return text.batch(max(1, tokens // length), min(tokens, length))

    if kind == "plain":
        model = gpt.GPT(args.layers, args.hidden, length).bfloat16()

        def step(tokens):
            model.zero_grad()
            model(*batch(tokens)).backward()

        return step, {}

    import sluice

    with torch.device("meta"):
        parameters = sum(p.numel() for p in gpt.GPT(args.layers, args.hidden, length).parameters())
    offload = {"device": "nvme", "nvme_path": args.nvme_path}
    # Gradients and parameters in RAM in either case; states too, or none of them.
    pinned = parameters * 16 + (256 << 20) if kind == "ram" else parameters * 2 + (16 << 20)
    config = {
        "train_batch_size": 1,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 3, "offload_optimizer": offload, "offload_param": dict(offload)},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
        "sluice": {"hbm": parameters * 2 + (64 << 20), "pinned": pinned},
    }
    with sluice.init(directory=args.nvme_path):
        model = gpt.GPT(args.layers, args.hidden, length)
    engine, *_ = sluice.initialize(model=model, config=config)

    def step(tokens):
        engine.backward(engine(*batch(tokens)))
        engine.step()

    report = engine.report()
    return step, {name: report.get(name) for name in ("engine", "executor", "device", "cores", "nvme", "pinned")}


def child(args):
    import torch

    step, about = make_step(args.child, args)
    usual = torch.get_num_threads()
    for _ in range(3):
        step(64)
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        torch.set_num_threads(asked["threads"] or usual)
        step(asked["tokens"])  # the caches and the clock's frequency are another's
        seconds, before = [], thread_times()
        while len(seconds) < asked["steps"] and (not seconds or sum(seconds) < (asked["seconds"] or math.inf)):
            began = time.perf_counter()
            step(asked["tokens"])
            seconds.append(time.perf_counter() - began)
        after = thread_times()
        threads = {name: [(a - b) / len(seconds) for a, b in zip(after[name], before[name])] for name in after}
        print(json.dumps({"seconds": seconds, "threads": threads}), flush=True)


class Case:
    """A process that steps when told to."""

    def __init__(self, kind, environment, options):
        env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        command = [sys.executable, __file__, "--child", kind, *options]
        self._process = subprocess.Popen(
            command, env={**env, **environment}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.about = self._answer()

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self._process.args} ended with {self._process.wait()}")
        return json.loads(line)

    def steps(self, **asked):
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self):
        self._process.stdin.close()
        self._process.wait()


def busy_processes(count, nice):
    program = f"import os; os.nice({nice})\nwhile True: pass"
    return [subprocess.Popen([sys.executable, "-c", program]) for _ in range(count)]


def one_round(cases, loads, args, **asked):
    """By load and case: what Case.steps answers."""
    answers = {}
    for load in loads:
        busy = busy_processes(load, args.busy_nice)
        try:
            answers[load] = {name: case.steps(**asked) for name, case in cases.items()}
        finally:
            for process in busy:
                process.kill()
                process.wait()
    return answers


def summarize(rounds, loads, names):
    summary = {}
    for load in loads:
        cells = {}
        for name in names:
            answers = [one[load][name] for one in rounds]
            threads = {
                group: [statistics.median(a["threads"][group][i] for a in answers) for i in range(2)]
                for group in ("compute", "sluice")
            }
            seconds = [s for a in answers for s in a["seconds"]]
            cells[name] = {"seconds": statistics.median(seconds), "spread": _spread(seconds), "threads": threads}
        ratios = {}
        for title, of, to in RATIOS:
            if of in names and to in names:
                each = [_median(one[load][of]) / _median(one[load][to]) for one in rounds]
                ratios[title] = {"median": statistics.median(each), "rounds": each}
        summary[load] = {"cases": cells, "ratios": ratios}
    for load in loads[1:]:
        for name in names:
            each = [_median(one[load][name]) / _median(one[loads[0]][name]) for one in rounds]
            summary[load]["cases"][name]["slowed"] = statistics.median(each)
    return summary


def _median(answer):
    return statistics.median(answer["seconds"])


def _spread(values):
    """The middle half of the values."""
    if len(values) < 2:
        return [values[0], values[0]]
    quarters = statistics.quantiles(values, n=4)
    return [quarters[0], quarters[2]]


def show(summary):
    for load, part in summary.items():
        print(f"{load} other busy processes")
        for name, cell in part["cases"].items():
            low, high = cell["spread"]
            slowed = f", {cell['slowed']:.2f} times as long" if "slowed" in cell else ""
            ran = "; ".join(f"{group} ran {r:.2f} waited {w:.2f}" for group, (r, w) in cell["threads"].items() if r > 0)
            print(f"  {name:<16} {cell['seconds']:.3f} s ({low:.3f} to {high:.3f}){slowed}; {ran}")
        for name, ratio in part["ratios"].items():
            print(f"  {name:<28} {ratio['median']:.2f}  ({', '.join(f'{r:.2f}' for r in ratio['rounds'])})")


def show_rows(summaries, loads):
    """The rows of the docs' table. A name's ratio to passive is the median of the rounds."""
    titles = ["tokens", "threads", "others", "plain", "RAM", "drive", "RAM: default to passive", "drive: default to passive"]
    print("| " + " | ".join([*titles, "slowed: plain, RAM, drive"]) + " |")
    print("|---" * (len(titles) + 1) + "|")
    for (tokens, threads), summary in summaries.items():
        for load in loads:
            cells, ratios = summary[load]["cases"], summary[load]["ratios"]
            row = [tokens, threads or "all", load]
            row += [f"{cells[name]['seconds']:.3f}" for name in ("plain", "RAM", "drive")]
            row += [f"{ratios[f'{name}: default to passive']['median']:.2f}" for name in ("RAM", "drive")]
            row.append(", ".join(f"{cells[name].get('slowed', 1):.2f}" for name in ("plain", "RAM", "drive")))
            print("| " + " | ".join(map(str, row)) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", default="0,1,2,4", help="numbers of other busy processes (default 0,1,2,4)")
    parser.add_argument("--busy-nice", type=int, default=0, help="their niceness (default 0)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="of each case in a round (default 5)")
    parser.add_argument("--cases", help="names, separated by ;")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--nvme-path", metavar="DIR", default=tempfile.gettempdir())
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--tokens", default="64", help="in a step; several one after the other (default 64)")
    parser.add_argument("--threads", default="0", help="of PyTorch, likewise (default 0: its own choice)")
    parser.add_argument("--seconds", type=float, help="at most so long for the steps of a case in a round, and at least one")
    parser.add_argument("--table", action="store_true", help="all of the docs' table")
    parser.add_argument("--minutes", type=float, default=15, help="for --table (default 15)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args)
    began = time.monotonic()
    if args.table:
        args.tokens, args.threads, args.busy, args.rounds, args.steps, args.cases = "16,64,512", "1,2", "0,1,2,4", 2, 99, None
    loads = [int(n) for n in args.busy.split(",")]
    kinds = list(itertools.product(map(int, args.tokens.split(",")), map(int, args.threads.split(","))))
    names = args.cases.split(";") if args.cases else list(CASES)
    options = [text for o in ("nvme_path", "layers", "hidden") for text in (f"--{o.replace('_', '-')}", str(getattr(args, o)))]
    cases = {name: Case(*CASES[name], options) for name in names}
    rounds = {kind: [] for kind in kinds}
    for number in range(args.rounds):
        for done, kind in enumerate(kinds):
            if args.table:  # what is left of the time, half of it for first steps and a last one that takes longer
                left = (args.rounds - number) * len(kinds) - done
                args.seconds = max(0.1, (60 * args.minutes - time.monotonic() + began) / left / len(loads) / len(names) / 2)
            asked = {"steps": args.steps, "seconds": args.seconds, "tokens": kind[0], "threads": kind[1]}
            rounds[kind].append(one_round(cases, loads, args, **asked))
        print(f"round {number + 1} of {args.rounds}", file=sys.stderr, flush=True)
    about = {name: case.about for name, case in cases.items()}
    for case in cases.values():
        case.close()
    summaries = {kind: summarize(rounds[kind], loads, names) for kind in kinds}
    for (tokens, threads), summary in summaries.items():
        print(f"{tokens} tokens a step, threads: {threads or 'PyTorch chooses'}")
        show(summary)
    if args.table:
        show_rows(summaries, loads)
    if args.json:
        runs = [
            {"tokens": kind[0], "threads": kind[1], "summary": summaries[kind], "rounds": rounds[kind]} for kind in kinds
        ]
        result = {"setup": setup(vars(args)), "cases": about, "runs": runs}
        pathlib.Path(args.json).write_text(json.dumps(result, indent=1))


main()
