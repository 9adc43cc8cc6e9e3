"""Several ranks over gloo on this machine: Sluice beside PyTorch's DistributedDataParallel and FSDP2, and beside DeepSpeed.

    .venv/bin/python bench/ranks.py [--cases NAME,NAME] [--ranks N] [--rounds N] [--steps N] [--tokens N] [--json FILE]
                                    [--peer-python FILE]

Each case is as many processes as there are ranks, each with so many of PyTorch's threads (--threads); all live through the
whole run and step when it is their case's turn, the others sleep then. Every case trains the same GPT on the same text with AdamW and has the
same work in a step: forward, backward, update of fp32 masters. A round goes through all cases, so a machine that wanders does
so for all. Printed are medians over all steps, ratios that are made within rounds, and what each of Sluice's ranks has sent, of
what its stage's formula says (docs/zero.md).

Cases: sluice-STAGE-OFFLOAD, deepspeed-STAGE-OFFLOAD (OFFLOAD: none, cpu, nvme; with stage 3 of parameters too), ddp, fsdp2.
A name that ends in -bf16 computes in bf16, else in fp32. DeepSpeed is not a dependency: --peer-python names a Python that has
it, and the same PyTorch.
"""

import argparse
import json
import os
import pathlib
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time

from machine import REPOSITORY, setup

CASES = "ddp,fsdp2,sluice-0-none,sluice-1-none,sluice-2-none,sluice-3-none"
LENGTH = 64


def make_model(args, dtype):
    import torch

    sys.path.insert(0, str(REPOSITORY / "examples"))
    import gpt

    torch.manual_seed(0)
    return gpt.GPT(args.layers, args.hidden, LENGTH).to(dtype), gpt.Text(None, int(os.environ["RANK"]))


def zero_config(args, stage, offload, bf16):
    zero = {"stage": stage}
    if offload != "none":
        device = {"device": offload}
        if offload == "nvme":
            device["nvme_path"] = args.nvme_path
        zero["offload_optimizer"] = device
        if stage == 3:
            zero["offload_param"] = dict(device)
    return {
        "train_micro_batch_size_per_gpu": max(1, args.tokens // LENGTH),
        "bf16": {"enabled": bf16},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "weight_decay": 0.1}},
    }


def make_engine(args, module, stage, offload, bf16):
    """The step of a library with DeepSpeed's interface."""
    import torch

    model, text = make_model(args, torch.float32)
    parameters = sum(p.numel() for p in model.parameters())
    config = zero_config(args, stage, offload, bf16)
    if module.__name__ == "deepspeed":
        if offload == "nvme":
            config["zero_optimization"]["sub_group_size"] = int(1e8)
            config["aio"] = {"block_size": 1 << 20, "queue_depth": 32, "thread_count": 2}
    elif offload == "nvme":
        config["sluice"] = {"hbm": parameters * 2 + (64 << 20), "pinned": parameters * 2 + (64 << 20)}
    engine, *_ = module.initialize(model=model, model_parameters=model.parameters(), config=config)

    def step():
        engine.backward(engine(*text.batch(max(1, args.tokens // LENGTH), LENGTH)))
        engine.step()

    return step, lambda: {**engine.report(), "parameters": parameters} if module.__name__ == "sluice" else {}


def make_step(args):
    """A function that takes one step, and what can be said of the case."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(args.threads)
    name, *rest = args.child.split("-")
    bf16 = "bf16" in rest
    if name in ("sluice", "deepspeed"):
        module = __import__(name)
        if name == "deepspeed":
            module.init_distributed(dist_backend="gloo")
        return make_engine(args, module, int(rest[0]), rest[1], bf16)
    dist.init_process_group("gloo")
    model, text = make_model(args, torch.bfloat16 if bf16 else torch.float32)
    if name == "ddp":
        model = torch.nn.parallel.DistributedDataParallel(model)
    else:
        from torch.distributed.fsdp import fully_shard

        mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)

    def step():
        model(*text.batch(max(1, args.tokens // LENGTH), LENGTH)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, dict


def child(args):
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print
    step, about = make_step(args)
    for _ in range(3):
        step()
    print(json.dumps({}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["steps"] == 0:
            print(json.dumps(about()), file=answers, flush=True)
            continue
        step()  # the caches and the clock's frequency are another's
        seconds, ran = [], time.process_time()
        for _ in range(asked["steps"]):
            began = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - began)
        ran = (time.process_time() - ran) / asked["steps"]
        print(json.dumps({"seconds": seconds, "cpu_seconds": ran}), file=answers, flush=True)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


_started = []  # cases


class Case:
    """The ranks of one case, which step when told to."""

    def __init__(self, name, args, options):
        python = args.peer_python if name.startswith("deepspeed") else sys.executable
        port = free_port()
        cores = sorted(os.sched_getaffinity(0))
        self._ranks = []
        _started.append(self)
        for rank in range(args.ranks):
            env = {
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": str(args.ranks),
                "LOCAL_RANK": str(rank),
                "LOCAL_WORLD_SIZE": str(args.ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": str(max(1, len(cores) // args.ranks)),
                "DS_ACCELERATOR": "cpu",
                "GLOO_SOCKET_IFNAME": "lo",
            }
            command = [python, __file__, "--child", name, *options]
            self._ranks.append(
                subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
        self._answers()

    def _answers(self):
        answers = {}
        while len(answers) < len(self._ranks):
            waited = [rank.stdout for rank in self._ranks if rank not in answers]
            ready, _, _ = select.select(waited, [], [])
            for rank in self._ranks:
                if rank.stdout in ready:
                    line = rank.stdout.readline()
                    if not line:
                        sys.exit(f"{' '.join(rank.args)} ended with {rank.wait()}")
                    answers[rank] = json.loads(line)
        return [answers[rank] for rank in self._ranks]

    def ask(self, **asked):
        for rank in self._ranks:
            rank.stdin.write(json.dumps(asked) + "\n")
            rank.stdin.flush()
        return self._answers()

    def steps(self, count):
        """Seconds of each step: those of the rank that takes longest. Seconds a step that all threads of all ranks ran."""
        answers = self.ask(steps=count)
        seconds = [max(each) for each in zip(*(answer["seconds"] for answer in answers))]
        return {"seconds": seconds, "cpu_seconds": sum(answer["cpu_seconds"] for answer in answers)}

    def close(self):
        for rank in self._ranks:
            rank.kill()  # they have nothing to clean up, and Sluice's files go with the process
            rank.wait()


def peer_of(name, names):
    """The case that `name` is measured against, or None."""
    kind, *rest = name.split("-")
    if kind != "sluice":
        return None
    stage, offload, *more = rest
    wanted = ["-".join(["deepspeed", *rest])]
    if offload == "none":
        wanted.insert(0, "-".join(["fsdp2" if stage == "3" else "ddp", *more]))
    return next((w for w in wanted if w in names), None)


def sent_of_formula(name, before, after, steps):
    """What each rank of a case of Sluice's has sent in so many steps, of what docs/zero.md says; None for others, and for one rank."""
    kind, *rest = name.split("-")
    ranks = len(before)
    if kind != "sluice" or ranks == 1:
        return None
    elements = (3 if rest[0] == "3" else 2) * before[0]["parameters"] * (ranks - 1) / ranks
    formula = elements * (2 if "bf16" in rest else 4) * steps

    def sent(report):
        return sum(one["sent_bytes"] for one in report["ranks"]["traffic"] if one["group"] != "agreement")

    return [(sent(late) - sent(early)) / formula for early, late in zip(before, after)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=CASES)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="of each case in a round (default 3)")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=512, help="of each rank in a step (default 512)")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch in each rank (default 1)")
    parser.add_argument("--nvme-path", metavar="DIR", default=tempfile.gettempdir())
    parser.add_argument("--peer-python", metavar="FILE", default=sys.executable)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args)
    names = args.cases.split(",")
    passed = ("nvme_path", "layers", "hidden", "tokens", "threads")
    options = [text for o in passed for text in (f"--{o.replace('_', '-')}", str(getattr(args, o)))]
    rounds = []
    try:
        cases = {name: Case(name, args, options) for name in names}
        before = {name: case.ask(steps=0) for name, case in cases.items()}
        for number in range(args.rounds):
            rounds.append({name: case.steps(args.steps) for name, case in cases.items()})
            print(f"round {number + 1} of {args.rounds}", file=sys.stderr, flush=True)
        reports = {name: case.ask(steps=0) for name, case in cases.items()}
    finally:
        for case in _started:
            case.close()
    results = []
    for name in names:
        seconds = [s for one in rounds for s in one[name]["seconds"]]
        ran = statistics.median(one[name]["cpu_seconds"] for one in rounds)
        result = {"name": name, "value": statistics.median(seconds), "unit": "s", "cpu_s": ran}
        text = f"{name:<22} {result['value']:.3f} s ({min(seconds):.3f} to {max(seconds):.3f}), cores ran {ran:.3f} s"
        peer = peer_of(name, names)
        if peer is not None:
            each = [statistics.median(one[name]["seconds"]) / statistics.median(one[peer]["seconds"]) for one in rounds]
            result |= {"peer": peer, "ratio_to_peer": statistics.median(each), "ratios": each}
            text += f", {result['ratio_to_peer']:.2f} of {peer} ({', '.join(f'{r:.2f}' for r in each)})"
        sent = sent_of_formula(name, before[name], reports[name], args.rounds * (args.steps + 1))
        if sent is not None:
            result["sent_of_formula"] = sent
            text += f", sent {', '.join(f'{s:.3f}' for s in sent)} of the formula"
        results.append(result)
        print(text)
    if args.json:
        whole = {"setup": setup(vars(args)), "cases": results, "rounds": rounds, "reports": reports}
        pathlib.Path(args.json).write_text(json.dumps(whole, indent=1))


main()
