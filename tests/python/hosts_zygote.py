"""A process that has loaded everything and forks the ranks of trainings, each into the network of its host.

Reads one JSON object a line, a list of hosts_jobs.Job's fields, and forks a child for each. Answers with lines of JSON: {"case",
"rank", "pid"} of every child, what children write themselves ("at": a moment that they have come to), and, when one has ended,
{"case", "rank", "status"}, negative for a signal.
"""

import ctypes
import gc
import json
import os
import select
import signal
import sys
import traceback

import hosts_jobs
import torch._dynamo  # noqa: F401  every optimizer loads it

_CLONE_NEWNET = 0x40000000


def enter(namespace):
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), f"setns to {namespace}")
    os.close(descriptor)


def say(**words):
    os.write(1, (json.dumps(words) + "\n").encode())


def child(job):
    os.dup2(os.open(job["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)
    os.close(0)
    os.environ.update(job["environment"])
    if job["namespace"]:
        enter(job["namespace"])
    hosts_jobs.run(job, lambda moment: say(case=job["case"], rank=job["rank"], at=moment))


def main():
    gc.freeze()
    children, asked = {}, b""
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([0, wake], [], [])
        if wake in ready:
            os.read(wake, 1 << 12)
            for pid in [*children]:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    job = children.pop(pid)
                    say(case=job["case"], rank=job["rank"], status=os.waitstatus_to_exitcode(status))
        if 0 in ready:
            come = os.read(0, 1 << 16)
            if not come:
                return
            *lines, asked = (asked + come).split(b"\n")
            for job in (job for line in lines for job in json.loads(line)):
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    child(job)
                    return
                children[pid] = job
                say(case=job["case"], rank=job["rank"], pid=pid)


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
