"""What each rank holds at every ZeRO stage, beside what `sluice plan` says, and whether all stages come to the same losses.

    .venv/bin/python bench/stage_memory.py [--launcher torchrun|mpirun] [--ranks N] [--stages 0,1,2,3] [--offload cpu|nvme|none]

Runs examples/train_gpt.py as it is, a small model, once for each stage, under torchrun or Open MPI's mpirun; the plan is of the
same shapes, and RAM is limited to it and 5 %. Exits with 1 if a loss
differs, or if what rank 0 holds, HBM, RAM and NVMe together, is not within 5 % of the plan. Stage 1 is compared with the plan's
stage 2: Sluice keeps the same of both (docs/zero.md).
"""

import argparse
import json
import os
import pathlib
import shutil
import socket
import struct
import subprocess
import sys
import tempfile

import torch

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))

import gpt  # noqa: E402  the path comes first

LAYERS, HIDDEN, SEQ = 32, 256, 32
WITHIN = 0.05
TIMEOUT_S = 300


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def launch(launcher, ranks):
    """(what comes before the script, variables) of `ranks` ranks on this host."""
    port = free_port()
    if launcher == "torchrun":
        return [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", f"--master-port={port}"], {}
    return ["mpirun", "-n", str(ranks), "--bind-to", "none", "--oversubscribe", sys.executable], {
        "MASTER_PORT": str(port), "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }  # fmt: skip


def shapes_of():
    with torch.device("meta"):
        return gpt.GPT(LAYERS, HIDDEN, SEQ)


def write_shapes(path):
    """A safetensors file of the model's shapes, for the plan; its values are a hole in the file."""
    header, at = {}, 0
    for name, parameter in shapes_of().named_parameters():
        end = at + 2 * parameter.numel()
        header[name] = {"dtype": "BF16", "shape": list(parameter.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)


def plan(shapes, ranks, offload):
    """By stage: bytes of a rank."""
    command = [ROOT / "build/release/tools/sluice", "plan", "--model", shapes, "--gpus", ranks, "--device", "host", "--json"]
    said = json.loads(subprocess.run([*map(str, command)], check=True, capture_output=True, text=True).stdout)
    ways = {w["stage"]: w for w in said["ways"] if w["offload_optimizer"] == offload and w["offload_param"] == "none"}
    return {
        stage: {"hbm": w["gpu_bytes"], "ram": w["ram_bytes"] // ranks, "nvme": w["nvme_bytes"] // ranks}
        for stage, w in ways.items()
    }


def train(folder, launcher, ranks, stage, offload, budgets):
    """The figures of one run."""
    figures = folder / f"figures{stage}.json"
    given = {
        "train_batch_size": 2 * ranks, "bf16": {"enabled": True},
        "zero_optimization": {"stage": stage, "offload_optimizer": {"device": offload, "nvme_path": str(folder)}},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}, "sluice": budgets,
    }  # fmt: skip
    config = folder / f"config{stage}.json"
    config.write_text(json.dumps(given))
    before, variables = launch(launcher, ranks)
    command = [
        *before, "train_gpt.py", "--config", config, "--layers", LAYERS, "--hidden", HIDDEN, "--seq", SEQ, "--steps", 3,
        "--no-probe", "--json", figures,
    ]  # fmt: skip
    environment = {"OMP_NUM_THREADS": "1", **os.environ, **variables, "PYTHONPATH": str(ROOT / "python")}
    result = subprocess.run(
        [*map(str, command)], cwd=ROOT / "examples", env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    if result.returncode != 0:
        sys.exit(f"stage {stage}: exit code {result.returncode}\n{result.stdout[-2000:]}{result.stderr[-4000:]}")
    return json.loads(figures.read_text())


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launcher", choices=("torchrun", "mpirun"), default="torchrun")
    parser.add_argument("--ranks", type=int, help="default: 4 under torchrun, 2 under mpirun")
    parser.add_argument("--stages", default="0,1,2,3")
    parser.add_argument("--offload", choices=("cpu", "nvme"), default="cpu", help="where the optimizer's states go")
    args = parser.parse_args(arguments)
    ranks = args.ranks or {"torchrun": 4, "mpirun": 2}[args.launcher]
    if args.launcher == "mpirun" and not shutil.which("mpirun"):
        sys.exit("there is no mpirun (Debian's openmpi-bin)")
    wrong, losses = [], {}
    with tempfile.TemporaryDirectory() as temp:
        folder = pathlib.Path(temp)
        write_shapes(folder / "shapes.safetensors")
        planned = plan(folder / "shapes.safetensors", ranks, args.offload)
        print(f"{ranks} ranks under {args.launcher}, states on {args.offload}: MB of a rank\nstage  HBM    RAM    NVMe   all    plan   loss")
        for stage in map(int, args.stages.split(",")):
            expected = planned[2 if stage == 1 else stage]
            budgets = {"pinned": int((1 + WITHIN) * expected["ram"]), **({"hbm": int((1 + WITHIN) * expected["hbm"])} if stage == 3 else {})}
            figures = train(folder, args.launcher, ranks, stage, args.offload, budgets)
            losses[stage] = figures["losses"]
            held = figures["peak_bytes"]
            whole, wanted = sum(held.values()), sum(expected.values())
            cells = (held["hbm"], held["pinned"], held["nvme"], whole, wanted)
            print(f"{stage:<5}", *(f"{n / 1e6:6.1f}" for n in cells), f"{figures['losses'][-1]:.6f}", flush=True)
            if abs(whole - wanted) > WITHIN * wanted:
                wrong.append(f"stage {stage}: {whole} bytes, but the plan says {wanted}")
            if losses[stage] != next(iter(losses.values())):
                wrong.append(f"stage {stage}: the losses are others")
    print("\n".join(wrong) or "the same losses, and bytes within 5 % of the plan")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
