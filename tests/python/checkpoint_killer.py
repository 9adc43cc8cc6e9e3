"""Kills a training that saves every 2 steps, again and again, at moments drawn from a seed, and looks at how it goes on.

checkpoint_killer.py RANKS MOMENTS SEED DIRECTORY    prints {"killed", "ended", "saving", "problems"}

Half of the moments are anywhere in a run, from its first line on, the others shortly after a save has begun.
"""

import gc
import json
import os
import random
import select
import shutil
import signal
import sys
import time

import checkpoint_jobs as jobs
import torch
import torch._dynamo  # noqa: F401  every optimizer loads it, and that takes a second
from ranks_group import free_port

END = 6  # steps of a training


def begin(world, directory):
    """(process ids, where rank 0 tells)"""
    port, (read, write) = free_port(), os.pipe()
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            os.close(read)
            os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world))
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            torch.set_num_threads(1)

            def tell(words, rank=rank):
                if rank == 0 or words.startswith("failed"):
                    os.write(write, f"{words}\n".encode())

            try:
                jobs.train_on(rank, world, directory, f"{directory}/saved", END, tell)
            except BaseException as error:
                tell(f"failed {type(error).__name__}: {error}")
            os._exit(0)
        children.append(child)
    os.close(write)
    return children, read


def run(world, directory, moment):
    """The lines that were told, with when, and whether it was killed. moment(lines): when it is to be killed, in seconds from
    the beginning, or None."""
    began = time.monotonic()
    children, read = begin(world, directory)
    lines, text, killed = [], b"", False
    while True:
        when = moment(lines)
        left = None if when is None else max(0.0, began + when - time.monotonic())
        if not select.select([read], [], [], left)[0]:
            killed = True
            break
        got = os.read(read, 1 << 16)
        if not got:
            break
        *whole, text = (text + got).split(b"\n")
        lines += [(line.decode(), time.monotonic() - began) for line in whole]
    for child in children:
        if killed:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    while killed and (got := os.read(read, 1 << 16)):  # what it still told
        *whole, text = (text + got).split(b"\n")
        lines += [(line.decode(), time.monotonic() - began) for line in whole]
    os.close(read)
    return lines, killed


def number(lines, word):
    found = [int(line.split()[1]) for line, _ in lines if line.startswith(word + " ")]
    return found[-1] if found else None


def main(world, moments, seed, directory):
    draw, problems, killed, ended, saving = random.Random(seed), [], 0, 0, 0
    os.makedirs(directory, exist_ok=True)
    gc.freeze()
    lines, _ = run(world, directory, lambda lines: None)
    wanted, whole = lines[-1][0], lines[-1][1]
    assert wanted.startswith("ended "), lines
    saves = [(line, at) for line, at in lines if line.startswith(("stepped", "saved"))]
    of_save = max(b[1] - a[1] for a, b in zip(saves, saves[1:]) if b[0].startswith("saved"))
    shutil.rmtree(f"{directory}/saved")
    least = 0  # where the next run must begin at least
    while killed < moments:
        if draw.random() < 0.5:
            at = draw.uniform(0, whole)
            moment = lambda lines, at=at: at
        else:
            step, after = draw.randrange(1, END // jobs.EVERY + 1) * jobs.EVERY, draw.uniform(0, of_save)
            moment = lambda lines, step=step, after=after: next((t + after for line, t in lines if line == f"stepped {step}"), None)
        lines, was_killed = run(world, directory, moment)
        killed += was_killed
        words = [line for line, _ in lines]
        problems += [f"{killed}: {line}" for line in words if line.startswith(("left", "failed")) and not was_killed]
        problems += [f"{killed}: {line}" for line in words if line.startswith("left")]
        start = number(lines, "begun")
        if start is not None and (start < least or start % jobs.EVERY):
            problems.append(f"{killed}: begun at {start}, not {least}")
        stepped = number(lines, "stepped") or 0
        saving += was_killed and stepped % jobs.EVERY == 0 and stepped > 0 and number(lines, "saved") != stepped
        least = max(least, number(lines, "saved") or 0, stepped - jobs.EVERY)
        if not was_killed:
            ended += 1
            if words[-1] != wanted:
                problems.append(f"{killed}: {words[-1]}, not {wanted}")
            shutil.rmtree(f"{directory}/saved")
            least = 0
    print(json.dumps({"killed": killed, "ended": ended, "saving": saving, "problems": problems}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
