"""What ranks do in test_ranks_calls.py: gradients kept apart, values read and changed, parameters used elsewhere."""

import contextlib

import sluice
import torch
from ranks_jobs import RANKS, SIZE, digest, given, made, one_step, part
from ranks_reference import RanksReference
from training import CLASSES, FEATURES, loss_of, mlp

# Of a window of three micro-steps, which are inside no_sync(), and the size of each's batch.
WINDOWS = {
    "none": (), "but the last": (0, 1), "the first": (0,), "the second": (1,), "all": (0, 1, 2), "the last": (2,),
}  # fmt: skip
SIZES = (SIZE, SIZE - 5, 3)


def _loss(model, rank, step, dtype):
    x, y = part(rank, step, dtype)
    size = SIZES[step % len(SIZES)]
    return loss_of(model(x[:size]), y[:size])


def accumulate(rank, stage, place, path, window, dtype="float32", looks=False):
    """(losses, digest of masters) after two steps of three micro-steps. looks: at gradients, as all ranks have them, after the
    first micro-step of each, keeping what was seen."""
    kind, apart, losses = getattr(torch, dtype), WINDOWS[window], []
    half = {"bf16": {"enabled": True}} if dtype == "bfloat16" else {}
    with made(rank, given(stage, place, path, accumulation=3, **half)) as (engine, model):
        for step in range(6):
            with engine.no_sync() if step % 3 in apart else contextlib.nullcontext():
                loss = _loss(engine, rank, step, kind)
                losses.append(loss.item())
                engine.backward(loss)
            if looks:
                seen = looked_at(model, seen if step % 3 else None)
            engine.step()
        return losses, digest(engine.fp32_state_dict())


def looked_at(model, before):
    """The gradients, which are in the tensors that they were in before, and the same without a look."""
    if before is not None:
        kept = [g.clone() for g in before]
    seen = [p.grad for p in model.parameters()]
    if before is not None:
        assert all(a is b for a, b in zip(seen, before)) and all(map(torch.equal, seen, kept))
    return seen


def accumulated(window, dtype="float32"):
    """What ranks come to: (losses by rank, digest of masters)."""
    kind, apart = getattr(torch, dtype), WINDOWS[window]
    loop = RanksReference(mlp(seed=0), RANKS, dtype=kind, accumulation=3, lr=1e-2, weight_decay=0.05)
    losses = []
    for step in range(6):
        losses.append(loop.micro_step(lambda model, rank: _loss(model, rank, step, kind), step % 3 in apart))  # noqa: B023
        if step % 3 == 2:
            loop.step()
    return list(zip(*losses)), digest(loop.values())


def refusals(rank, stage):
    """What no_sync() refuses, and that a gradient inside it is this rank's own."""
    said = []
    with made(rank, given(stage, "cpu")) as (engine, model):
        def inside():
            with engine.no_sync():
                if stage < 2:
                    engine.backward(_loss(engine, rank, 0, torch.float32))
                    said.append(digest({"gradient": model[0].weight.grad}))
                    for call in (engine.step, lambda: engine.no_sync().__enter__()):
                        try:
                            call()
                        except sluice.FailedPrecondition as error:
                            said.append(str(error))

        try:
            inside()
        except NotImplementedError as error:
            said.append(str(error))
        engine.zero_grad()
        one_step(engine, rank, 0)
        return said, digest(engine.fp32_state_dict())


def epoch(rank, stage, count, size):
    """(losses, digest) of two epochs of what initialize()'s loader gives, whose last batch is smaller."""
    model = mlp()
    engine, _, loader, _ = sluice.initialize(model=model, config=given(stage, "cpu", train_batch_size=size * RANKS), training_data=_data(count))
    losses = []
    for number in range(2):
        loader.sampler.set_epoch(number)
        for x, y in loader:
            loss = loss_of(engine(x), y)
            losses.append((len(x), loss.item()))
            engine.backward(loss)
            engine.step()
    result = losses, digest(engine.fp32_state_dict())
    engine.close()
    return result


def epoch_ddp(rank, count, size):
    sluice.init_distributed()
    model = torch.nn.parallel.DistributedDataParallel(mlp())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.05)
    sampler = torch.utils.data.distributed.DistributedSampler(_data(count), RANKS, rank)
    losses = []
    for number in range(2):
        sampler.set_epoch(number)
        for x, y in torch.utils.data.DataLoader(_data(count), batch_size=size, sampler=sampler):
            loss = loss_of(model(x), y)
            losses.append((len(x), loss.item()))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return losses


def _data(count):
    x = torch.randn(count, FEATURES, generator=torch.Generator().manual_seed(5))
    return torch.utils.data.TensorDataset(x, x[:, :CLASSES].argmax(1))


# ---- Values


def gathered(rank, stage, place, path, modifier):
    """(what is refused, digest of masters, mean of one) after ranks wrote inside GatheredParameters: as `modifier` says, the rank
    that counts; "same": all the same; "differ": not so; "read": nothing."""
    refused = None
    with made(rank, given(stage, place, path)) as (engine, model):
        one_step(engine, rank, 0)
        writes = {"same": 0.5, "differ": 0.5 + rank}.get(modifier, 0.25 * (rank + 1))
        try:
            with sluice.zero.GatheredParameters(model.parameters(), modifier if isinstance(modifier, int) else None):
                seen = digest(dict(model.named_parameters()))
                if modifier != "read":
                    with torch.no_grad():
                        model[0].weight.fill_(writes)
                        model[2].bias[3] = writes
        except ValueError as error:
            refused = str(error)
        values = engine.fp32_state_dict()
        one_step(engine, rank, 1)
        return refused, seen, digest(values), digest(engine.fp32_state_dict()), float(values["0.weight"].mean())


def accessors(rank, stage, place, path):
    """Digests of what safe_get_full gives, before and after what safe_set_full sets, and of masters after a step with a changed
    gradient; and whether what was set was got."""
    u, seen, got = sluice.utils, [], []
    with made(rank, given(stage, place, path)) as (engine, model):
        one_step(engine, rank, 0)
        weight = model[0].weight
        states = {key: u.safe_get_full_optimizer_state(weight, key) for key in ("exp_avg", "exp_avg_sq")}
        seen.append(digest({"master": u.safe_get_full_fp32_param(weight), **states}))
        for key, value in states.items():
            u.safe_set_full_optimizer_state(weight, value * 2, key)
            got.append(torch.equal(u.safe_get_full_optimizer_state(weight, key), value * 2))
        value = torch.linspace(-1, 1, weight.numel()).view(weight.shape)
        u.safe_set_full_fp32_param(weight, value)
        got += [torch.equal(u.safe_get_full_fp32_param(weight), value), torch.equal(weight.detach(), value)]
        x, y = part(rank, 1)
        engine.backward(loss_of(engine(x), y))
        gradient = u.safe_get_full_grad(weight)
        seen.append(digest({"gradient": gradient}))
        u.safe_update_full_grad_vectorized(list(model.parameters()), lambda gradient, parameter: gradient / 4)
        got.append(torch.equal(u.safe_get_full_grad(weight), gradient / 4))
        u.safe_set_full_grad(weight, gradient)
        got.append(torch.equal(weight.grad, gradient))
        engine.step()
        seen += [digest(engine.fp32_state_dict()), engine.get_global_grad_norm()]
        if rank == 1:  # shards are nobody's to look at alone
            try:
                u.safe_get_local_fp32_param(weight)
            except AttributeError as error:
                got.append("with full in its name" in str(error))
        else:
            got.append(True)
        one_step(engine, rank, 2)
        return seen, got


class Borrowing(torch.nn.Module):
    """A parameter is used by other modules than its own, in a function, in a method that isn't forward, and outside modules."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.first = torch.nn.Linear(FEATURES, 67)
        self.second = torch.nn.Linear(67, 67)
        self.last = torch.nn.Linear(67, CLASSES)
        self.scale = torch.nn.Parameter(torch.linspace(0.5, 1.5, 67))

    def forward(self, x):
        hidden = torch.tanh(self.first(x)) * self.scale
        hidden = torch.tanh(torch.nn.functional.linear(hidden, self.second.weight + 0.0))
        hidden = hidden @ self.first.weight @ self.first.weight.t()
        return self.last(hidden + self.second.bias)

    def penalty(self):
        return 1e-3 * (self.first.weight.square().sum() + self.scale.abs().sum())


def borrow(rank, stage, place, path):
    configuration = given(stage, place, path)
    if stage == 3:
        configuration["zero_optimization"]["offload_param"] = dict(configuration["zero_optimization"]["offload_optimizer"])
    engine = sluice.initialize(model=Borrowing(), config=configuration)[0]
    try:
        sluice.zero.register_external_parameter(engine.module.last, engine.module.first.weight)
        sluice.utils.set_z3_leaf_modules(engine.module, [Borrowing])
        for step in range(4):
            x, y = part(rank, step)
            loss = loss_of(engine(x), y) + engine.module.penalty()
            engine.backward(loss)
            engine.step()
        norm = float(engine.module.first.weight.norm())  # of all of it
        return norm, digest(engine.fp32_state_dict())
    finally:
        engine.close()


def borrowed():
    loop = RanksReference(Borrowing(), RANKS, lr=1e-2, weight_decay=0.05)
    for step in range(4):
        def loss(model, rank):
            x, y = part(rank, step)  # noqa: B023
            return loss_of(model(x), y) + model.penalty()

        loop.micro_step(loss)
        loop.step()
    values = loop.values()
    return float(values["first.weight"].norm()), digest(values)


def attach(rank):
    """What attach() says to several ranks, and that it evaluates."""
    sluice.init_distributed()
    said, model = [], mlp()
    x, _ = part(0, 0)
    with torch.no_grad():
        expected = model(x)
    try:
        sluice.attach(model, optimizer=torch.optim.AdamW)
    except ValueError as error:
        said.append(str(error))
    attached = sluice.attach(model, hbm="8MiB", pinned="64MiB")
    with torch.no_grad():
        same = torch.equal(model(x), expected)
    attached.close()
    return said, same
