"""A process that has loaded everything and forks one child per script, so that tests may have many processes.

Reads one JSON object a line: {"script", "argument", "out", "error"}; the child runs the script with sys.argv[1] = argument
and ends as a program does. Answers with the child's exit status, negative for a signal.
"""

import gc
import json
import os
import signal
import sys
import traceback

import torch._dynamo  # noqa: F401  every optimizer loads it
import training  # noqa: F401  loads torch, sluice and what the scripts use


def main():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
    gc.freeze()  # nothing of it is collected when a child ends, which would take a second
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            for descriptor, path in ((1, job["out"]), (2, job["error"])):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), descriptor)
            os.close(0)
            sys.argv[1:] = [job["argument"]]
            exec(compile(job["script"], "<script>", "exec"), {"__name__": "__main__"})
            return
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    try:
        main()
    except Exception:
        traceback.print_exc()
        sys.exit(1)
