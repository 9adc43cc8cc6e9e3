"""What the two ranks of test_ranks_training.py do. Each returns plain values."""

import contextlib
import hashlib
import itertools
import os
import unittest.mock

import sluice
import torch
from sluice.collectives import attendance
from sluice.collectives.value_group import ValueGroup
from sluice.collectives.world import find_world
from sluice.engine import beginning, engine
from ranks_group import TIMEOUT_S
from training import CLASSES, FEATURES, batch, config, loss_of, mlp

RANKS = 2
SIZE = 16  # of a rank's micro-batch
STEPS = 10


class Odd(torch.nn.Module):
    """Tied weights, a frozen layer, a buffer, a parameter without elements, and a layer that few steps use."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(FEATURES, 67)
        self.frozen = torch.nn.Linear(67, 67).requires_grad_(False)
        self.norm = torch.nn.BatchNorm1d(67)
        self.seldom = torch.nn.Linear(67, 67)
        self.again = torch.nn.Linear(67, FEATURES, bias=False)
        self.again.weight = torch.nn.Parameter(self.first.weight.detach().t().contiguous())
        self.tied = torch.nn.Linear(FEATURES, 67)
        self.tied.weight = self.first.weight
        self.nothing = torch.nn.Parameter(torch.empty(0))
        self.last = torch.nn.Linear(67, CLASSES)

    def forward(self, x, seldom=False):
        hidden = torch.tanh(self.norm(self.frozen(self.first(x))))
        if seldom:
            hidden = hidden + self.seldom(hidden)
        return self.last(torch.tanh(self.tied(self.again(hidden))))


def odd(seed=0):
    torch.manual_seed(seed)
    return Odd()


MODELS = {"mlp": mlp, "odd": odd}


def given(stage, where, path=None, accumulation=1, **changes):
    zero = {"stage": stage, "offload_param": {"device": "none"}}
    zero["offload_optimizer"] = {"device": where, "nvme_path": path} if where == "nvme" else {"device": where}
    sizes = {"train_batch_size": SIZE * RANKS * accumulation, "gradient_accumulation_steps": accumulation}
    return config(None, zero_optimization=zero, **{**sizes, **changes})


def with_own(configuration, **own):
    return {**configuration, "sluice": {**configuration["sluice"], **own}}


def part(rank, step, dtype=torch.float32):
    x, y = batch(step, SIZE * RANKS, dtype)
    mine = slice(rank * SIZE, (rank + 1) * SIZE)
    return x[mine], y[mine]


def digest(values):
    """Of a dict of tensors, bit by bit."""
    text = hashlib.sha256()
    for name, value in sorted(values.items()):
        text.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        text.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return text.hexdigest()


def _arguments(kind, rank, step):
    """Ranks use the layer that few steps use in steps of their own."""
    return {"seldom": step % 3 == rank} if kind == "odd" else {}


def train(rank, kind, configuration, dtype="float32", steps=STEPS):
    """(losses, norms, digests of masters, states and parameters, loss scale, steps skipped, what the report says of ranks)"""
    model = MODELS[kind](seed=rank)  # rank 0's counts
    engine = sluice.initialize(model=model, config=configuration)[0]
    try:
        losses, norms, micro = [], [], 0
        for _ in range(steps):
            for _ in range(engine.gradient_accumulation_steps()):
                x, y = part(rank, micro, getattr(torch, dtype))
                loss = loss_of(engine(x, **_arguments(kind, rank, micro)), y)
                losses.append(loss.item())
                engine.backward(loss)
                engine.step()
                micro += 1
            norms.append(engine.get_global_grad_norm())
        names = dict(model.named_parameters(remove_duplicate=False))  # running means are each rank's own
        masters, parameters = ({n: v for n, v in d.items() if n in names} for d in
                               (engine.fp32_state_dict(), engine.module_state_dict()))  # fmt: skip
        states = {f"{n} {k}": torch.as_tensor(v) for n, s in engine.optimizer_state_dict().items() for k, v in s.items()}
        return (
            losses, norms, digest(masters), digest(states), digest(parameters), engine.loss_scale(), engine.skipped_steps,
            engine.report()["ranks"],
        )  # fmt: skip
    finally:
        engine.close()


def train_ddp(rank, kind, accumulation=1):
    """(losses, norms) of PyTorch's own."""
    sluice.init_distributed()
    model = torch.nn.parallel.DistributedDataParallel(MODELS[kind](seed=rank), find_unused_parameters=kind == "odd")
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.05)
    losses, norms, micro = [], [], 0
    for _ in range(STEPS):
        for n in range(accumulation):
            x, y = part(rank, micro)
            with contextlib.nullcontext() if n == accumulation - 1 else model.no_sync():
                loss = loss_of(model(x, **_arguments(kind, rank, micro)), y)
                losses.append(loss.item())
                (loss / accumulation).backward()
            micro += 1
        norms.append(torch.nn.utils.clip_grad_norm_(trained, 1.0).item())
        optimizer.step()
        optimizer.zero_grad()
    return losses, norms


@contextlib.contextmanager
def made(rank, configuration, kind="mlp", **more):
    """(engine, its model): rank 0's values, on both."""
    model = MODELS[kind](seed=rank)
    engine = sluice.initialize(model=model, config=configuration, **more)[0]
    try:
        yield engine, model
    finally:
        engine.close()


def one_step(engine, rank, step, change=lambda loss: loss):
    x, y = part(rank, step)
    loss = change(loss_of(engine(x.to(engine.dtype)), y))
    engine.backward(loss)
    engine.step()


def overflow_on_one(rank, stage, who, dynamic):
    """(steps skipped, loss scale, digest of masters) where one rank's gradients are infinite in the second step."""
    fp16 = {"enabled": True, "initial_scale_power": 8, "hysteresis": 1, "loss_scale": 0 if dynamic else 128}
    with made(rank, given(stage, "cpu", fp16=fp16)) as (engine, _):
        for step in range(4):
            bad = step == 1 and rank == who
            one_step(engine, rank, step, lambda loss: loss * float("inf") if bad else loss)  # noqa: B023
        return engine.skipped_steps, engine.loss_scale(), digest(engine.fp32_state_dict())


def begin(rank):
    """(rank's values before and after, buffers after) of a model that is another on each rank."""
    model = odd(seed=rank)
    model.norm.running_mean += rank
    before = digest(dict(model.named_parameters()))
    engine = sluice.initialize(model=model, config=given(1, "cpu"))[0]
    after = digest({n: p for n, p in engine.fp32_state_dict().items() if n in dict(model.named_parameters())})
    buffers = digest(dict(model.named_buffers()))
    engine.destroy()
    return before, after, buffers, digest(dict(model.named_parameters()))


CANT_BEGIN = {"before the library is asked": ("device", "cuda"), "while it plans": ("pinned", 1)}


def cant_begin(rank, victim, when, over_gloo):
    """What each rank is told where one can't make its engine, and the digest of one that is made afterwards."""
    key, value = CANT_BEGIN[when]
    wanted = given(1, "cpu")
    if rank == victim:
        wanted = with_own(wanted, **{key: value})
    with unittest.mock.patch.dict(os.environ, SLUICE_LOCAL_RANKS="0" if over_gloo else "1"):
        try:
            sluice.initialize(model=mlp(), config=wanted)
            said = "nothing"
        except Exception as error:
            said = str(error)
        with made(rank, given(1, "cpu")) as (engine, _):
            return said, digest(engine.fp32_state_dict())


COLLECTIVES = {
    "texts": lambda world, _: world.texts("text"),
    "what worked": lambda world, _: world.check_worked(None),
    "a value of this rank's": lambda world, victim: world.broadcast(torch.zeros(9), victim),
    "a value of the other's": lambda world, victim: world.broadcast(torch.zeros(9), 1 - victim),
}


def interrupted(rank, victim, what, wait):
    """What a rank is told of a collective in whose n-th wait one is interrupted, if that came so far, and of the next one."""
    world, told = find_world(TIMEOUT_S), []
    there = _failing(ValueGroup, "_wait", wait, KeyboardInterrupt("by the user")) if rank == victim else contextlib.nullcontext()
    for around in (there, contextlib.nullcontext()):
        try:
            with around:
                COLLECTIVES[what](world, victim)
            told.append("nothing")
        except BaseException as error:
            told.append(f"{type(error).__name__}: {error}")
    world.meet(TIMEOUT_S)
    world.close()
    return told


def begin_over_gloo(rank, own):
    """What each rank is told. own: by rank, of the configuration."""
    with unittest.mock.patch.dict(os.environ, SLUICE_LOCAL_RANKS="0"):
        try:
            with made(rank, with_own(given(1, "cpu"), **own[rank])):
                return "nothing"
        except (sluice.SluiceError, ValueError) as error:
            return str(error)


def _fails(error):
    def make(_):
        raise error

    return make


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield 0


# What one rank gives to initialize() instead, and what it is told of it.
CANT_START = {
    "no model": ({"model": None}, "model: a torch.nn.Module is needed"),
    "no configuration": ({"config": None}, "config: a dict or the path"),
    "a path that is not there": ({"config": "/nowhere/ds.json"}, "/nowhere/ds.json"),
    "a value": ({"config": {"train_batch_size": "many"}}, "many"),
    "an optimizer by name": ({"config": given(1, "cpu", train_batch_size=96, optimizer={"type": "Nothing"})}, "Nothing"),
    "an optimizer's import": ({"optimizer": _fails(ImportError("no such optimizer"))}, "no such optimizer"),
    "an interrupt": ({"optimizer": _fails(KeyboardInterrupt("by the user"))}, "by the user"),
    "another's parameters": ({"model_parameters": [torch.nn.Parameter(torch.zeros(3))]}, "1 of 1 parameters are not the model's"),
    "a scheduler": ({"lr_scheduler": _fails(ZeroDivisionError("in a scheduler"))}, "in a scheduler"),
    "training data": ({"training_data": Stream()}, "an IterableDataset can't be split"),
    "a model of nothing": ({"model": torch.nn.ReLU()}, "no parameters"),
}
# Or it fails in the n-th call of one of these, with its runtime.
CANT_FINISH = {
    "while it attaches": (engine.Engine, "_attach", 1),
    "in the first of its values": (beginning.Trimmer, "freed", 1),
    "amid its values": (beginning.Trimmer, "freed", 4),
    "with its buffers": (engine.Engine, "_place_buffers", 1),
}


@contextlib.contextmanager
def _failing(where, name, call, error=None):
    calls, before = itertools.count(1), getattr(where, name)

    def fails(*given):
        if next(calls) == call:
            raise error or ArithmeticError(f"in {name}")
        return before(*given)

    with unittest.mock.patch.object(where, name, fails):
        yield


def cant_start(rank, victim, when, look_s=0.2):
    """What each rank is told where one fails before it has an engine, and the digest of what all make afterwards."""
    wanted = given(1, "cpu", train_batch_size=96)  # of two ranks, or of three
    own, there = CANT_START.get(when, ({},))[0], contextlib.nullcontext()
    if rank == victim and when in CANT_FINISH:
        there = _failing(*CANT_FINISH[when])
    with unittest.mock.patch.object(attendance, "_LOOK_S", look_s):
        try:
            with there:
                sluice.initialize(**{"model": odd(), "config": wanted, **(own if rank == victim else {})})
            said = "nothing"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        with made(rank, wanted) as (engine, _):
            return said, digest(engine.fp32_state_dict())


def nothing(rank):
    """A world of its own: those who come from it have no process groups."""


def facts(rank):
    """What the engine says of ranks and batches, and what it refuses."""
    refused = []
    with made(rank, given(2, "none", accumulation=3)) as (engine, _):
        for call in (lambda: engine.no_sync().__enter__(), lambda: engine.set_train_batch_size(SIZE * RANKS * 3 + 1)):
            try:
                call()
            except (NotImplementedError, ValueError) as error:
                refused.append(str(error))
        batch_info = engine.get_batch_info()
        engine.set_train_batch_size(SIZE * RANKS * 5)
        sizes = engine.gradient_accumulation_steps(), engine.train_batch_size()
        ranks = engine.global_rank, engine.local_rank, engine.world_size, engine.dp_world_size
    try:
        sluice.initialize(model=mlp(), config={**given(0, "none"), "train_batch_size": 33})
    except sluice.ConfigError as error:
        refused.append(str(error))
    distributed = sluice.comm
    distributed.barrier()
    return ranks, batch_info, sizes, refused, distributed.get_rank(), distributed.get_world_size()


def loaded(rank, count, size):
    """The samples that each rank's loader gives in an epoch."""
    data = torch.utils.data.TensorDataset(torch.arange(count))
    config = given(0, "none", train_batch_size=size * RANKS)
    engine, _, loader, _ = sluice.initialize(model=mlp(), config=config, training_data=data)
    engine.close()
    return [batch[0].tolist() for batch in loader]


def values(rank, stage, place, path):
    """Digests of masters after a change of rank 1's in a gathering, a load, a gradient clipped from outside, and of what one rank
    alone reads."""
    seen = []
    with made(rank, given(stage, place, path)) as (engine, model):
        one_step(engine, rank, 0)
        with sluice.zero.GatheredParameters(list(model.parameters()), modifier_rank=1):
            with torch.no_grad():
                model[0].weight.fill_(rank * 0.25)
        seen.append(float(engine.module_state_dict()["0.weight"].mean()))
        saved, states = engine.fp32_state_dict(), engine.optimizer.state_dict()
        one_step(engine, rank, 1)
        engine.load_state_dict(saved)
        engine.optimizer.load_state_dict(states)
        seen.append(digest(engine.fp32_state_dict()) == digest(saved))
        x, y = part(rank, 2)
        engine.backward(loss_of(engine(x), y))
        seen.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)))
        engine.step()
        seen.append(engine.get_global_grad_norm())
        if rank == 0 and stage < 3:
            seen.append(digest(engine.module_state_dict()))
        one_step(engine, rank, 3)
        return seen[:4], digest(engine.fp32_state_dict())


def train_then_leave(rank, stage, place, leaver):
    """What the rank that stays is told."""
    import os
    import signal

    with made(rank, given(stage, "cpu")) as (engine, _):
        one_step(engine, rank, 0)
        if rank == leaver:
            if place == "backward":
                x, y = part(rank, 1)
                engine.backward(loss_of(engine(x), y))
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            for step in range(1, 5):
                one_step(engine, rank, step)
        except sluice.SluiceError as error:
            return str(error)
    return "nothing"


def communication(rank):
    """How the ranks reach each other, as the report has it."""
    with made(rank, given(2, "cpu")) as (engine, _):
        return engine.report()["ranks"]["communication"]


def another_model(rank, difference):
    models = {"shape": lambda: mlp(hidden=211 + rank), "frozen": lambda: mlp(), "stage": lambda: mlp()}
    model = models[difference]()
    if difference == "frozen" and rank == 1:
        model[0].weight.requires_grad_(False)
    try:
        sluice.initialize(model=model, config=given(rank if difference == "stage" else 1, "none"))
    except ValueError as error:
        return str(error)
    return "nothing"
