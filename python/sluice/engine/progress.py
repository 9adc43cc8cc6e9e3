"""What steps_per_print and wall_clock_breakdown print: one line each, to stdout."""

import contextlib
import time


class StepPrinter:
    """every: steps between two lines of progress, None: none. times: whether to print the times of every step; they are
    those of the caller's thread, in ms. One thread."""

    def __init__(self, every, times, clock=time.perf_counter):
        self.every = every
        self.times = times
        self._clock = clock
        self._spent = {"forward": 0.0, "backward": 0.0, "step": 0.0}

    @contextlib.contextmanager
    def timed(self, name):
        """Adds what the body takes to the line of this step."""
        begin = self._clock()
        try:
            yield
        finally:
            self._spent[name] += self._clock() - begin

    def stepped(self, step, skipped, optimizer):
        """After each step at a boundary."""
        if self.every is not None and step % self.every == 0:
            rates = [group["lr"] for group in optimizer.param_groups]
            moments = [tuple(group["betas"]) for group in optimizer.param_groups]
            print(f"step={step}, skipped={skipped}, lr={rates}, mom={moments}", flush=True)
        if self.times:
            parts = " | ".join(f"{name}: {1e3 * seconds:.2f}" for name, seconds in self._spent.items())
            print(f"time (ms) | {parts}", flush=True)
        self._spent = dict.fromkeys(self._spent, 0.0)
