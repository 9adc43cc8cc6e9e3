"""Trains a byte-level GPT with its parameters, gradients and optimizer states on three tiers.

Without arguments: 101 million parameters in bf16 on the sources of the Python that runs this, with budgets that are each
smaller than what the model needs, so everything moves. Ends with a summary; Ctrl-C ends it early and cleanly.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import sys
import tempfile
import time

import torch

import gpt
import sluice
from screen import Screen, print_summary
from sluice import devices, probe
from sluice.config import ConfigError, load_config, load_file, parse_bytes
from sluice.deepspeed.comm import get_rank

_PROBE_EVERY = 4  # steps between looks at what the machine does
_BLOCKS = 2  # of the model, that compute is measured with
_WARM_UP = 10  # steps over which the learning rate grows to --lr
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_argument_group("model and training")
    model.add_argument("--layers", type=int, default=8)
    model.add_argument("--hidden", type=int, default=1024)
    model.add_argument("--seq", type=int, default=128, help="bytes in a sequence (default 128)")
    model.add_argument("--batch", type=int, help="sequences in a step (default 8)")
    model.add_argument("--steps", type=int, default=30)
    model.add_argument("--dtype", choices=list(_DTYPES), help="of the parameters in compute (default bf16)")
    model.add_argument("--clip", type=float, help="largest global norm of the gradients (default 1.0); 0: off")
    model.add_argument("--lr", type=float, help="after the warm-up (default 4e-4)")
    model.add_argument("--seed", type=int, default=0)
    model.add_argument("--text", metavar="FILE", help="what to train on (default: the sources of this Python)")
    tiers = parser.add_argument_group("tiers (sizes like 512MiB)")
    tiers.add_argument("--hbm", metavar="SIZE", help="default: half of the parameters in --dtype")
    tiers.add_argument("--pinned", metavar="SIZE", help="default: 5 bytes a parameter, 6 in fp32")
    tiers.add_argument("--nvme-path", metavar="DIR", help="where to swap to (default: the system's temporary directory)")
    tiers.add_argument("--stage", type=int, choices=(0, 1, 2, 3), help="of ZeRO: what several ranks share (default 3)")
    tiers.add_argument("--config", metavar="FILE", help="a DeepSpeed configuration instead of the defaults; options given "
                       "here overrule it")
    tiers.add_argument("--device", help="where to compute: auto (the default), host, cuda or cuda:<number>")
    tiers.add_argument("--engine", choices=("auto", "io_uring", "libaio", "threads"), help="default: auto")
    tiers.add_argument("--workers", type=int, help="threads that update states (default: one less than cores)")
    tiers.add_argument("--no-overlap", action="store_true", help="debug aid: every movement waits for the one before")
    output = parser.add_argument_group("output")
    output.add_argument("--json", metavar="FILE", help="write the figures of the run")
    output.add_argument("--trace", metavar="FILE", help="write what happened when, for Perfetto (ui.perfetto.dev)")
    output.add_argument("--no-probe", action="store_true", help="leave out the probes; no floor, no efficiency")
    return parser.parse_args(arguments)


def default_config(args, parameters):
    """Everything offloaded, HBM for half of the parameters, and RAM for a third of what does not fit there."""
    dtype = args.dtype or "bf16"
    size = _DTYPES[dtype].itemsize
    nvme = {"device": "nvme", "nvme_path": args.nvme_path or tempfile.gettempdir()}
    config = {
        "train_batch_size": 8,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": 3, "offload_optimizer": nvme, "offload_param": dict(nvme)},
        "optimizer": {"type": "AdamW", "params": {"lr": 4e-4, "betas": [0.9, 0.95], "weight_decay": 0.1}},
        "sluice": {"hbm": parameters * size // 2, "pinned": parameters * min(size + 3, 6)},
    }
    if dtype != "fp32":
        config[dtype] = {"enabled": True}
    return config


def make_config(args, parameters):
    """What sluice.initialize() is given: the file of --config or the defaults, overruled by the options given."""
    config = load_file(args.config) if args.config else default_config(args, parameters)
    own = config.setdefault("sluice", {})
    if args.dtype is not None:
        for name in ("bf16", "fp16"):
            config.setdefault(name, {})["enabled"] = name == args.dtype
    if args.batch is not None:
        for name in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
            config.pop(name, None)
        config["train_batch_size"] = args.batch
    if args.stage is not None:
        zero = config.setdefault("zero_optimization", {})
        zero["stage"] = args.stage
        if args.stage < 3:  # every rank has all parameters
            zero.pop("offload_param", None)
            own.pop("hbm", None)
    if args.lr is not None:
        config.setdefault("optimizer", {"type": "AdamW"}).setdefault("params", {})["lr"] = args.lr
    if args.clip is not None:
        config["gradient_clipping"] = args.clip
    given = {
        "hbm": parse_bytes(args.hbm, "--hbm"),
        "pinned": parse_bytes(args.pinned, "--pinned"),
        "nvme_path": args.nvme_path,
        "device": args.device,
        "io_engine": args.engine,
        "workers": args.workers,
        "overlap": False if args.no_overlap else None,
        "trace_spans": 1 << 20 if args.trace else None,
    }
    own.update({name: value for name, value in given.items() if value is not None})
    return config


class Rates:
    """What a step's floor is computed from, measured again and again while the run goes on, as a machine that others use is not
    the same all the time: compute with everything resident, memory, the link and the drive."""

    def __init__(self, args, batch, dtype, path, device):
        self._layers = args.layers
        self._device = device
        self._drive = probe.DriveProbe(path)
        tokens, targets = gpt.Text(args.text, 0).batch(batch, args.seq)
        with torch.random.fork_rng():
            self._blocks = torch.nn.Sequential(*(gpt.Block(args.hidden) for _ in range(_BLOCKS))).to(device, dtype)
            self._hollow = gpt.GPT(0, args.hidden, args.seq).to(device, dtype)
            x = torch.randn(batch, args.seq, args.hidden, dtype=dtype, device=device, requires_grad=True)
        self._repeat = 3  # the first time: what is new is slow
        self._block_inputs = (x,)
        self._hollow_inputs = (tokens.to(device), targets.to(device))

    def measure(self):
        """As Runtime.set_rates() takes them. While nothing else of this process runs."""
        block = probe.compute(self._blocks, self._block_inputs, self._repeat)
        rest = probe.compute(self._hollow, self._hollow_inputs, self._repeat)
        self._repeat = 1
        rates = probe.memory()
        if self._device.type == "cuda":
            rates["copy_bytes"] = probe.link(self._device)
        return {
            **rates,
            "forward_seconds": block[0] / _BLOCKS * self._layers + rest[0],
            "backward_seconds": block[1] / _BLOCKS * self._layers + rest[1],
            "nvme_bytes": self._drive.measure(),
            "shared_cores": int(self._device.type == "cpu"),
        }


def read_process_io():
    """What the system says that this process read from drives and wrote to them, in bytes."""
    lines = pathlib.Path("/proc/self/io").read_text().splitlines()
    values = dict(line.split(": ") for line in lines)
    return {name: int(values[name]) for name in ("read_bytes", "write_bytes")}


class Run:
    """The training loop and its figures."""

    def __init__(self, args):
        self.args = args
        self.losses = []
        self.step_seconds = []
        self.interrupted = False
        with torch.device("meta"):
            self.parameters = sum(p.numel() for p in gpt.GPT(args.layers, args.hidden, args.seq).parameters())
        config = make_config(args, self.parameters)
        read = load_config(config)
        self.dtype = _DTYPES[read.dtype]
        self.batch, self.accumulation = read.micro_batch, read.accumulation
        self.path = read.nvme_paths[0] if read.nvme_paths else tempfile.gettempdir()
        device = devices.choose(config["sluice"].get("device") or "auto").torch
        # They are those of one micro-batch a step.
        probed = not args.no_probe and self.accumulation == 1
        self.rates = Rates(args, self.batch, self.dtype, self.path, device) if probed else None
        torch.manual_seed(args.seed)
        with sluice.init(directory=self.path):
            model = gpt.GPT(args.layers, args.hidden, args.seq)
        scheduler = None if config.get("scheduler") else self._warm_up
        self.engine, *_ = sluice.initialize(model=model, config=config, lr_scheduler=scheduler)
        self.text = gpt.Text(args.text, args.seed + self.engine.global_rank)  # each rank has windows of its own
        self.report = self.engine.report()
        self.system = read_process_io()

    @staticmethod
    def _warm_up(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(1.0, (n + 1) / _WARM_UP))

    @property
    def tokens(self):
        """In one step, of all ranks."""
        return self.batch * self.accumulation * self.args.seq * self.engine.world_size

    def train(self, screen):
        try:
            for step in range(self.args.steps):
                self._step(step)
                if screen.due(step + 1):
                    self.report = self.engine.report()
                    screen.show(self)
        except KeyboardInterrupt:
            self.interrupted = True
        self.engine.synchronize()
        self.report = self.engine.report()
        self.system = {name: value - self.system[name] for name, value in read_process_io().items()}

    def _step(self, step):
        if step == 1:  # the first step learns the trace; what follows is counted
            self.engine.synchronize()
            self.engine.runtime.reset_counters()
            self.system = read_process_io()
        if self.rates is not None and step % _PROBE_EVERY == 2:
            self.engine.synchronize()
            before = read_process_io()
            self.engine.runtime.set_rates(**self.rates.measure())
            # What the probe moves is not the run's.
            self.system = {name: self.system[name] + n - before[name] for name, n in read_process_io().items()}
        batches = [self.text.batch(self.batch, self.args.seq) for _ in range(self.accumulation)]
        began = time.perf_counter()
        loss = sum(self._micro_step(batch) for batch in batches) / self.accumulation
        ended = time.perf_counter()
        self.losses.append(loss)
        self.step_seconds.append(ended - began)

    def _micro_step(self, batch):
        """The loss of one micro-batch; the last one of a step starts the update."""
        tokens, targets = (part.to(self.engine.device) for part in batch)
        with self.engine.span("forward"):
            loss = self.engine(tokens, targets)
        with self.engine.span("backward"):
            self.engine.backward(loss)
        with self.engine.span("step"):
            self.engine.step()
        return loss.item()

    def figures(self):
        counters, steps = self.report["counters"], self.report["steps"]
        terms = steps["floor_seconds"] if self.rates is not None else None
        return {
            "params": self.parameters,
            "steps": len(self.losses),
            "tokens_per_step": self.tokens,
            "loss_first": self.losses[0] if self.losses else None,
            "loss_last": statistics.fmean(self.losses[-10:]) if self.losses else None,
            "losses": self.losses,
            "step_seconds": self.step_seconds,
            "step_seconds_median": steps["seconds"]["p50"],
            "floor_seconds": terms and terms["total"],
            "floor_terms": terms,
            "rates": steps["rates"],
            "efficiency": steps["efficiency"],
            "demand_misses_after_first_step": counters["demand_misses"],
            "stall_seconds": self.report["waited_for"]["seconds"],
            "evictions": counters["evictions"],
            "budgets_bytes": {k: v for k, v in self.report["budgets_bytes"].items() if v is not None},
            "peak_bytes": self.report["bytes_now"],
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "read_bytes": counters["nvme_read_bytes"],
            "written_bytes": counters["nvme_write_bytes"],
            "system": self.system,
            "chunks_per_unit": self.report["chunks"] / self.report["units"],
            "engine": self.report["engine"],
            "device": self.report["device"],
            "overlap": not self.args.no_overlap,
            "interrupted": self.interrupted,
            "report": self.report,
        }


def main():
    args = parse_arguments()
    rank = get_rank()
    screen = Screen(args.steps, quiet=rank > 0)
    screen.say(f"measuring this machine, building a GPT of {args.layers} layers of {args.hidden}")
    try:
        run = Run(args)
    except (ConfigError, sluice.SluiceError, OSError, ValueError) as error:
        sys.exit(f"train_gpt: {error}")
    screen.begin(run)
    try:
        run.train(screen)
    except sluice.SluiceError as error:
        sys.exit(f"train_gpt: training stopped: {error}")
    figures = run.figures()
    if args.trace and rank == 0:
        run.engine.write_trace(args.trace)
    run.engine.close()
    if rank == 0:
        print_summary(figures)
    if args.json and rank == 0:
        with open(args.json, "w") as file:
            json.dump(figures, file, indent=1)
    return 130 if run.interrupted else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ninterrupted before the first step", file=sys.stderr)
        os._exit(130)
