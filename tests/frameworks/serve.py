"""Runs cases (cases_*.py), each in processes forked for it from one that has imported all frameworks, as that takes seconds.

Started plainly it is what a script is without DeepSpeed; by `python -m sluice.deepspeed` one to which DeepSpeed is Sluice. Reads a JSON
object a line, {"module", "case", "arguments", "ranks", "folder", "port"}; answers with one: what each rank has returned, or
how it failed.
"""

import gc
import importlib
import json
import os
import signal
import sys
import traceback

import torch

LIMIT_S = 150


def child(job, rank):
    log = os.open(os.path.join(job["folder"], f"log{rank}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(job["folder"])
    signal.alarm(LIMIT_S)
    torch.set_num_threads(1)
    if job["ranks"] > 1:
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(job["ranks"]),
            LOCAL_WORLD_SIZE=str(job["ranks"]),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(job["port"]),
        )
    found = getattr(importlib.import_module(job["module"]), job["case"])(**job["arguments"])
    with open(os.path.join(job["folder"], f"result{rank}"), "w") as file:
        json.dump(found, file)


def run(job):
    children = []
    for rank in range(job["ranks"]):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                child(job, rank)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    if any(codes):
        return {"failed": codes, "logs": [ending(job["folder"], rank) for rank in range(job["ranks"])]}
    return {"results": [json.load(open(os.path.join(job["folder"], f"result{rank}"))) for rank in range(job["ranks"])]}


def ending(folder, rank):
    with open(os.path.join(folder, f"log{rank}"), errors="replace") as file:
        return file.read()[-4000:]


def main():
    for module in ("models", "cases_hf", "cases_trl", "cases_lightning"):
        importlib.import_module(module)
    gc.freeze()  # nothing of it is collected when a child ends, which would take a second
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
