"""ZeRO's table: every stage, with states and parameters on every tier, for worlds of one to four ranks. One model has what is odd:
batches of different sizes, the last one smaller, frozen parameters, tied weights, two groups of the optimizer, and tensors of
fewer elements than there are ranks.

test_ranks_table.py runs a part of it. All of it, and the table of docs/zero.md from what was measured:

    python tests/python/ranks_table.py                       checks everything; prints a line per training
    python tests/python/ranks_table.py --table docs/zero.md  and writes the table there
"""

import argparse
import dataclasses
import itertools
import pathlib
import re
import sys
import tempfile

import sluice
import torch
from ranks_jobs import digest
from training import CLASSES, FEATURES, batch, loss_of

HIDDEN = 768  # a square of it has 144 cells, which 2, 3 and 4 ranks share equally
CHUNK = 16384
STEPS = 20
OVERFLOWS = {2: 1, 5: 0}  # step: whose gradients are infinite in it, of as many ranks as there are
STAGES, PLACES = (0, 1, 2, 3), ("none", "cpu", "nvme")
TIERS = ("hbm", "pinned", "nvme")


class Odd(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(11)
        self.first = torch.nn.Linear(FEATURES, HIDDEN)
        self.second = torch.nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.frozen = torch.nn.Linear(HIDDEN, HIDDEN, bias=False).requires_grad_(False)
        self.third = torch.nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.tied = torch.nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.tied.weight = self.second.weight
        self.last = torch.nn.Linear(HIDDEN, CLASSES)
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.shift = torch.nn.Parameter(torch.zeros(3))

    def forward(self, x):
        x = torch.tanh(self.frozen(torch.tanh(self.second(torch.tanh(self.first(x))))))
        x = torch.tanh(self.tied(torch.tanh(self.third(x * self.scale))))
        return self.last(x) + torch.nn.functional.pad(self.shift, (0, CLASSES - 3))


def groups(model):
    """Matrices decay, at another rate than the rest."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() > 1], "lr": 2e-3, "weight_decay": 0.1},
        {"params": [p for p in trained if p.dim() <= 1], "lr": 5e-3, "weight_decay": 0.0},
    ]


def sizes(world, step):
    """Of the ranks' batches."""
    return [3 if step == STEPS - 1 else 6 + (rank + step) % 3 for rank in range(world)]


def part(rank, world, step, dtype=torch.float32):
    counts = sizes(world, step)
    x, y = batch(step, sum(counts), dtype)
    begin = sum(counts[:rank])
    return x[begin : begin + counts[rank]], y[begin : begin + counts[rank]]


# ---- The arithmetic

TRAINED = (FEATURES + 1 + 2 * HIDDEN + CLASSES) * HIDDEN + CLASSES + 1 + 3
FROZEN = HIDDEN * HIDDEN
UNIT = HIDDEN * HIDDEN  # the largest unit's
STATE = 12


@dataclasses.dataclass(frozen=True)
class Case:
    world: int
    stage: int
    states: str
    params: str
    dtype: str = "fp32"

    @property
    def size(self):
        return 4 if self.dtype == "fp32" else 2


def formula(case):
    """Bytes of a rank on each tier, by what they are: {(what, tier): bytes}. On the host device states that may not leave HBM are in
    RAM, and where they may go to NVMe budgets are the smallest that work. Parameters that ranks keep whole stay in memory."""
    of_states = case.world if case.stage >= 1 else 1
    of_params = case.world if case.stage == 3 else 1
    states = "nvme" if case.states == "nvme" else "pinned"
    params = {"none": "hbm", "cpu": "pinned", "nvme": "nvme" if case.stage == 3 or case.world == 1 else "pinned"}[case.params]
    expected = {(what, tier): 0 for what in ("states", "gradients", "params") for tier in TIERS}
    expected["states", states] = STATE * TRAINED / of_states
    expected["gradients", states] = case.size * TRAINED / of_states
    expected["params", params] = case.size * (TRAINED + FROZEN) / of_params
    return expected


def buffers(case, report):
    """Bytes in RAM of what passes through: as many buffers as the report says, of a chunk each; and among ranks three of the largest
    unit's gradients, two of what the others have of this rank's shard of it, and of parameters on NVMe the largest shard."""
    pinned = report["pinned"]
    chunk = pinned["state_buffers"] * STATE + pinned["param_buffers"] * case.size + pinned["grad_buffers"] * case.size
    total = CHUNK * chunk
    if case.world > 1:
        total += case.size * UNIT * (3 + 2 * (case.world - 1) / case.world)
        if case.stage == 3 and case.params == "nvme":
            total += case.size * UNIT / case.world
    return total


def measured(report):
    return {
        ("states", "hbm"): report["hbm"]["states_bytes"],
        ("gradients", "hbm"): report["hbm"]["gradients_bytes"],
        ("params", "hbm"): report["hbm"]["resident_bytes"],
        **{(what, tier): report[tier][f"{what}_bytes"] for what in ("states", "gradients", "params") for tier in TIERS[1:]},
    }


def problems(case, report):
    """What of a rank's bytes isn't the formula's within 5 %, in words."""
    expected, found = formula(case), measured(report)
    whole = sum(expected.values())
    wrong = []
    for key, wanted in expected.items():
        # Where nothing is expected, what is too small to move may be.
        if abs(found[key] - wanted) > max(0.05 * wanted, 0.005 * whole):
            wrong.append(f"{key[0]} on {key[1]}: {found[key]} bytes, not {wanted:.0f}")
    for tier in TIERS:  # without what pads them, and with the small units that stay in HBM
        if abs(report["params_home_bytes"][tier] - expected["params", tier]) > max(0.05 * expected["params", tier], 0.005 * whole):
            wrong.append(f"the home of {report['params_home_bytes'][tier]} bytes of parameters is {tier}, not of {expected['params', tier]:.0f}")
    now = report["bytes_now"]
    totals = {tier: sum(found[what, tier] for what in ("states", "gradients", "params")) for tier in TIERS}
    totals["pinned"] = sum(expected[what, "pinned"] for what in ("states", "gradients", "params")) + buffers(case, report)
    totals["hbm"] += report["hbm"]["cache_bytes"]
    for tier, wanted in totals.items():
        if abs(now[tier] - wanted) > 0.05 * wanted:
            wrong.append(f"{tier} holds {now[tier]} bytes, not {wanted:.0f}")
    return wrong


# ---- What a rank does


def configuration(case, path):
    def place(device):
        return {"device": device, **({"nvme_path": path} if device == "nvme" else {})}

    precision = {"fp32": {}, "bf16": {"bf16": {"enabled": True}}, "fp16": {"fp16": {"enabled": True, "initial_scale_power": 8, "hysteresis": 1}}}
    return {
        "train_micro_batch_size_per_gpu": 1,  # of a loader's; batches here are of any size
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
        "zero_optimization": {
            "stage": case.stage, "offload_optimizer": place(case.states), "offload_param": place(case.params),
            "stage3_param_persistence_threshold": 4096,
        },
        "sluice": {"chunk_elements": CHUNK, "workers": 1},
        **precision[case.dtype],
    }  # fmt: skip


def with_budgets(given, case):
    """As small as they can be, of the tiers that something is to leave."""
    own = dict(given["sluice"])
    for tier, tight in (("hbm", case.params != "none"), ("pinned", "nvme" in (case.states, case.params))):
        if tight:
            own[tier] = _smallest({**given, "sluice": {**own, tier: 1}}, tier)
    return {**given, "sluice": own}


def _smallest(given, tier):
    model = Odd()
    try:
        sluice.initialize(model=model, config=given, model_parameters=groups(model))
    except (sluice.ResourceExhausted, sluice.Unavailable) as error:  # its own, or what another has told that was faster
        others = 0 if isinstance(error, sluice.ResourceExhausted) else 1 << 16  # whose shard may be smaller
        return int(re.search(r"smallest that would is .*?\((\d+) bytes\)", str(error)).group(1)) + others
    raise AssertionError(f"a {tier} budget of 1 byte was accepted")


def train(rank, case, path, steps=STEPS):
    """(losses, norms, digests of masters, states and parameters, skipped steps, loss scale, report, sent bytes a step)"""
    model = Odd()
    engine = sluice.initialize(model=model, config=with_budgets(configuration(case, path), case), model_parameters=groups(model))[0]
    try:
        losses, norms = [], []
        for step in range(steps):
            x, y = part(rank, case.world, step, engine.dtype)
            loss = loss_of(engine(x), y)
            losses.append(loss.item())
            infinite = case.dtype != "fp32" and OVERFLOWS.get(step) is not None and OVERFLOWS[step] % case.world == rank
            engine.backward(loss * float("inf") if infinite else loss)
            engine.step()
            norms.append(engine.get_global_grad_norm())
        masters = engine.fp32_state_dict()
        states = {f"{n} {k}": torch.as_tensor(v) for n, s in engine.optimizer_state_dict().items() for k, v in s.items()}
        bits = digest(masters), digest(states), digest(engine.module_state_dict())
        result = losses, tuple(map(str, norms)), bits, (engine.skipped_steps, engine.loss_scale()), engine.report()
    except BaseException:
        engine.close()
        raise
    try:
        engine.close()
    except sluice.Unavailable as error:  # the training is over; who runs many of them counts these
        return *result, str(error)
    return *result, None


def train_ddp(rank, world, steps=STEPS):
    """(losses, norms) of PyTorch's DistributedDataParallel, or of plain PyTorch, in fp32."""
    model = trained = Odd()
    if world > 1:
        sluice.init_distributed()
        trained = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(groups(model))
    losses, norms = [], []
    for step in range(steps):
        x, y = part(rank, world, step)
        loss = loss_of(trained(x), y)
        losses.append(loss.item())
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0).item())
        optimizer.step()
        optimizer.zero_grad()
    return losses, norms


# ---- What the ranks of a case come to


class Table:
    """Runs cases of one world after another, and keeps what was seen. ranks: a Group of as many."""

    def __init__(self, ranks, path, steps=STEPS):
        self._ranks, self._path, self._steps = ranks, path, steps
        self._ddp = {}  # by world
        self._bits = {}  # by (world, type): (losses by rank, norms, bits) of the first case
        self.reports = {}  # Case -> by rank
        self.farthest = {}  # by world: of losses from DDP's
        self.not_closed = []  # (Case, rank, words): engines whose end failed

    def run(self, case):
        """Errors: AssertionError."""
        results = self._ranks.run(train, case, self._path, self._steps, world=case.world)
        self.not_closed += [(case, rank, result[5]) for rank, result in enumerate(results) if result[5]]
        found = [result[0] for result in results], {result[1:4] for result in results}
        assert len(found[1]) == 1, f"{case}: ranks come to different bits"
        first, wanted = self._bits.setdefault((case.world, case.dtype), (case, found))
        assert found == wanted, f"{case} comes to other bits than {first}"
        (_, bits, (skipped, scale)), = found[1]
        if case.dtype == "fp32":
            self._check_losses(case, found[0])
        expected = 0 if case.dtype == "fp32" else len([step for step in OVERFLOWS if step < self._steps])
        assert skipped == expected, f"{case}: {skipped} steps left out"
        assert scale == (2**8 / 2**expected if case.dtype == "fp16" else 1), f"{case}: loss scale {scale}"
        self.reports[case] = [result[4] for result in results]
        wrong = [f"rank {rank}: {words}" for rank, report in enumerate(self.reports[case]) for words in problems(case, report)]
        assert not wrong, f"{case}: {wrong}"

    def _check_losses(self, case, losses):
        world = case.world
        if world not in self._ddp:
            self._ddp[world] = self._ranks.run(train_ddp, world, self._steps, world=world)
        for mine, (theirs, _) in zip(losses, self._ddp[world]):
            far = max(abs(a - b) for a, b in zip(mine, theirs))
            self.farthest[world] = max(self.farthest.get(world, 0), far)
            assert far <= 1e-5, f"{case}: losses are {far} from PyTorch's"


def cases(world):
    """All of a world: fp32 everywhere, half precision with states and parameters on tiers that differ by stage."""
    for stage, states, params in itertools.product(STAGES, PLACES, PLACES):
        yield Case(world, stage, states, params)
    for dtype, stage, number in itertools.product(("bf16", "fp16"), STAGES, range(2)):
        states = PLACES[(stage + number) % 3]
        yield Case(world, stage, states, PLACES[(stage + 2 * number) % 3], dtype)


# ---- The table

BEGIN, END = "<!-- made by tests/python/ranks_table.py -->", "<!-- end of what it made -->"


def _megabytes(report):
    return " / ".join(f"{report['bytes_now'][tier] / 1e6:.1f}" for tier in TIERS)


def markdown(table, worlds):
    lines = [
        BEGIN, "",
        f"A model of {TRAINED + FROZEN:,} parameters, {FROZEN:,} of them frozen, in fp32, {STEPS} steps. MB in HBM / RAM / NVMe of rank 0,",
        "everything counted. Budgets are the smallest that work where something is to leave a tier, so what may go to NVMe is there. On",
        "the host device states are in RAM where none may leave HBM, as with `cpu`.", "",
        "| stage | states | parameters | " + " | ".join("1 rank" if w == 1 else f"{w} ranks" for w in worlds) + " |",
        "|---|---|---|" + "---|" * len(worlds),
    ]  # fmt: skip
    for stage, states, params in itertools.product(STAGES, PLACES[1:], PLACES):
        cells = [_megabytes(table.reports[Case(world, stage, states, params)][0]) for world in worlds]
        lines.append(f"| {stage} | {states} | {params} | " + " | ".join(cells) + " |")
    words = ", ".join(f"{table.farthest[world]:.1e} ({world})" for world in worlds)
    lines += ["", f"The farthest loss from DistributedDataParallel's, by ranks: {words}.", "", END]
    return "\n".join(lines)


def main():
    from ranks_group import Group

    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--table", type=pathlib.Path, help="the page to write the table into")
    arguments.add_argument("--worlds", type=int, nargs="+", default=[1, 2, 3, 4])
    arguments.add_argument("--types", nargs="+", default=["fp32", "bf16", "fp16"], choices=["fp32", "bf16", "fp16"])
    arguments.add_argument("--path", help="a directory on the drive to use")
    given = arguments.parse_args()
    ranks, failed = Group(max(given.worlds), modules=("ranks_table",)), 0
    with tempfile.TemporaryDirectory(dir=given.path) as path:
        table = Table(ranks, path)
        for case in itertools.chain(*map(cases, given.worlds)):
            if case.dtype not in given.types:
                continue
            try:
                table.run(case)
                print(case, _megabytes(table.reports[case][0]), flush=True)
            except AssertionError as error:
                failed += 1
                print("FAILED", error, flush=True)
                if not ranks.alive:
                    table._ranks = ranks = Group(max(given.worlds), modules=("ranks_table",))
    ranks.close()
    print(f"{len(table.reports)} trainings, {failed} failed; farthest losses {table.farthest}")
    for case, rank, words in table.not_closed:
        print(f"NOT CLOSED rank {rank} of {case}: {words}")
    if given.table and not failed:
        text = given.table.read_text()
        before, _, rest = text.partition(BEGIN)
        given.table.write_text(before + markdown(table, given.worlds) + rest.partition(END)[2])
    return 1 if failed or table.not_closed else 0


if __name__ == "__main__":
    import ranks_table  # the functions that ranks are sent have its name

    sys.exit(ranks_table.main())
