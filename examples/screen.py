"""What train_gpt.py shows: a progress line while it runs, and the summary."""

import sys
import time

_REDRAWN_AFTER = 0.5  # seconds: what is drawn is asked of the engine, which takes a few milliseconds
_SIZES = ("B", "KiB", "MiB", "GiB", "TiB")


def size(value):
    """1536 -> "1.5 KiB"; None, a budget without limit -> "any"."""
    if value is None:
        return "any"
    value = float(value)
    for name in _SIZES:
        if value < 1024 or name == _SIZES[-1]:
            return f"{value:.1f} {name}" if value < 100 and name != "B" else f"{value:.0f} {name}"
        value /= 1024


def duration(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"


class Screen:
    """A line that is redrawn on a terminal, or one line every few steps elsewhere. Writes to standard error. quiet: nothing."""

    def __init__(self, steps, quiet=False):
        self._quiet = quiet
        self._steps = steps
        self._terminal = sys.stderr.isatty() and not quiet
        self._began = None
        self._drawn = 0.0

    def say(self, text):
        if not self._quiet:
            print(text, file=sys.stderr, flush=True)

    def begin(self, run):
        plan, budgets = run.report["planned_bytes"], run.report["budgets_bytes"]
        whole = run.parameters * (2 * run.dtype.itemsize + 12)
        self.say(
            f"{run.parameters / 1e6:.1f} million parameters need {size(whole)} with gradients and states: "
            f"hbm {size(budgets['hbm'])}, pinned {size(budgets['pinned'])}, nvme {size(plan['nvme'])} in {run.path}"
        )
        self.say(f"{run.report['device']}; {run.report['engine'].split(':')[0]}; {run.report['executor']}")
        self._began = time.perf_counter()

    def due(self, done):
        """Whether a line is drawn after so many steps."""
        if done in (1, self._steps) or not self._terminal:
            return done in (1, self._steps) or done % 5 == 0
        return time.perf_counter() - self._drawn > _REDRAWN_AFTER

    def show(self, run):
        done = len(run.losses)
        self._drawn = time.perf_counter()
        elapsed = time.perf_counter() - self._began
        recent = run.step_seconds[-5:]
        tokens = run.tokens * len(recent) / sum(recent)
        now, budgets = run.report["bytes_now"], run.report["budgets_bytes"]
        efficiency = run.report["steps"]["efficiency"]
        waits = {name: share for name, share in run.report["waited_for"]["share"].items() if share > 0.005}
        parts = [
            f"{self._bar(done)} {done}/{self._steps}",
            f"loss {run.losses[-1]:.3f}",
            f"{tokens:,.0f} tok/s",
            f"{duration(elapsed / done * (self._steps - done))} left",
            f"hbm {size(now['hbm'])}/{size(budgets['hbm'])}",
            f"pinned {size(now['pinned'])}/{size(budgets['pinned'])}",
            f"nvme {size(now['nvme'])}",
        ]
        if efficiency is not None:
            parts.append(f"efficiency {efficiency:.2f}")
        if waits:
            parts.append("waits for " + ", ".join(f"{name} {share:.0%}" for name, share in waits.items()))
        line = "  ".join(parts)
        if self._terminal:
            end = "\n" if done == self._steps else ""
            print(f"\r\x1b[K{line}", end=end, file=sys.stderr, flush=True)
        else:
            self.say(line)

    def _bar(self, done, width=16):
        full = done * width // self._steps
        return "[" + "#" * full + "." * (width - full) + "]"


def print_summary(figures):
    """The figures of a run, for a person, on standard output."""
    if not figures["steps"]:
        print("no step was finished")
        return
    timed = figures["step_seconds_median"]
    counted = max(1, figures["steps"] - 1)
    rows = [("loss", f"{figures['loss_first']:.3f} at first, {figures['loss_last']:.3f} over the last ten steps")]
    if timed:
        rows.append(("step", f"{timed:.2f} s, {figures['tokens_per_step'] / timed:,.0f} tokens/s"))
    if figures["efficiency"] is not None:
        terms = figures["floor_terms"]
        backward = max(terms["backward"] + terms["gradients"], terms["spill"])
        rows.append(("floor", f"{terms['total']:.2f} s a step when last measured: backward {backward:.2f}, then the "
                     f"longer of forward and update {terms['forward'] + terms['update'] + terms['checksum'] + terms['copies']:.2f}"
                     f" and the drive {terms['io']:.2f}"))
        rows.append(("efficiency", f"{figures['efficiency']:.2f}, the median: each step against the lesser floor measured around it"))
    waits = {name: seconds / counted for name, seconds in figures["stall_seconds"].items() if seconds / counted >= 0.005}
    rows.append(("waits a step", ", ".join(f"{name} {seconds:.2f} s" for name, seconds in waits.items()) or "none"))
    budgets = figures["budgets_bytes"]
    for tier, peak in figures["peak_bytes"].items():
        rows.append((tier, size(peak) + (f" of {size(budgets[tier])}" if tier in budgets else " as needed")))
    rows.append(("process", f"{size(figures['peak_rss_bytes'])} at its peak, the tiers in memory included"))
    rows.append(("moved a step", f"{size(figures['read_bytes'] / counted)} read, {size(figures['written_bytes'] / counted)} written, "
                 f"{figures['evictions'] / counted:.0f} evictions, {figures['demand_misses_after_first_step']} demand misses in all"))
    if timed:
        day = figures["written_bytes"] / counted / timed * 86400
        rows.append(("a day of this", f"would write {day / 1e12:.1f} TB to the drive"))
    rows.append(("with", f"{figures['engine'].split(':')[0]}; {figures['device']}"))
    print()
    for name, text in rows:
        print(f"{name:>14}  {text}")
