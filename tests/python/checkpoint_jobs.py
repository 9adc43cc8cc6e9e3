"""What the tests of checkpoints train, on one rank and on several, and what a run is."""

import os
import random
import warnings

import ranks_jobs
import sluice
import torch
from training import config, loss_of


class Dropping(torch.nn.Module):
    """With dropout, an extra state, and a buffer that no state_dict has."""

    def __init__(self):
        super().__init__()
        self.odd = ranks_jobs.Odd()
        self.drop = torch.nn.Dropout(0.2)
        self.calls = 0
        self.register_buffer("table", torch.arange(3.0), persistent=False)

    def get_extra_state(self):
        return {"calls": self.calls}

    def set_extra_state(self, state):
        self.calls = state["calls"]

    def forward(self, x, seldom=False):
        self.calls += 1
        return self.odd(self.drop(x) + random.random() * self.table[0], seldom)


def model(kind, seed=0):
    torch.manual_seed(seed)
    return {"odd": ranks_jobs.Odd, "dropping": Dropping, "mlp": lambda: ranks_jobs.mlp(seed)}[kind]()


def micro(engine, rank, number, losses):
    """One micro-batch."""
    x, y = ranks_jobs.part(rank, number, engine.dtype)
    more = {"seldom": number % 3 == rank} if not isinstance(engine.module, torch.nn.Sequential) else {}
    loss = loss_of(engine(x, **more), y)
    losses.append(loss.item())
    engine.backward(loss)
    engine.step()


def steps(engine, rank, first, end):
    """Losses of steps [first, end)."""
    losses, every = [], engine.gradient_accumulation_steps()
    for number in range(first * every, end * every):
        micro(engine, rank, number, losses)
    return losses


def state(engine):
    """All of a run but what is of the past."""
    groups = [{k: v for k, v in group.items() if k != "params"} for group in engine.optimizer.param_groups]
    return {
        "masters": engine.fp32_state_dict(),
        "states": engine.optimizer_state_dict(),
        "parameters": {name: value.clone() for name, value in engine.module_state_dict().items() if name != "_extra_state"},
        "scale": engine.loss_scale(),
        "counters": (engine.global_steps, engine.skipped_steps),
        "groups": groups,
        "schedule": engine.lr_scheduler.state_dict() if engine.lr_scheduler else None,
    }


def digest(engine):
    """Of what is the same on all ranks. Collective."""
    found = state(engine)
    parameters = dict(engine.module.named_parameters(remove_duplicate=False))
    texts = [ranks_jobs.digest({n: v for n, v in found[key].items() if n in parameters}) for key in ("masters", "parameters")]
    states = {f"{n} {k}": torch.as_tensor(v) for n, s in found["states"].items() for k, v in s.items()}
    return (*texts, ranks_jobs.digest(states), found["scale"], found["counters"], str(found["groups"]))


# ---- Several ranks


def begun(rank, kind, given, seed=0):
    return sluice.initialize(model=model(kind, seed + rank), config=given)[0]


def train_and_save(rank, kind, given, saved_at, end, directory, tag=None):
    """(losses after, digest where it was saved, digest at the end)"""
    torch.manual_seed(rank), random.seed(rank)
    engine = begun(rank, kind, given)
    try:
        torch.manual_seed(rank), random.seed(rank)
        steps(engine, rank, 0, saved_at)
        engine.save_checkpoint(directory, tag, client_state={"rank": rank})
        there = digest(engine)
        losses = steps(engine, rank, saved_at, end)
        return losses, there, digest(engine)
    finally:
        engine.close()


def load_and_train(rank, kind, given, directory, end, save_to=None):
    """(losses, digest where it was loaded, digest at the end, client state)"""
    torch.manual_seed(77 + rank), random.seed(77 + rank)
    engine = begun(rank, kind, given, seed=5)
    try:
        path, client_state = engine.load_checkpoint(directory)
        assert path
        there = digest(engine)
        if save_to:
            engine.save_checkpoint(save_to, client_state=client_state)
        losses = steps(engine, rank, engine.global_steps, end)
        return losses, there, digest(engine), client_state
    finally:
        engine.close()


def tags_that_differ(rank, given, directory, mode):
    """(what was said, whether it was saved)"""
    engine = begun(rank, "mlp", {**given, "checkpoint": {"tag_validation": mode}})
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                engine.save_checkpoint(directory, f"tag{rank}")
            except ValueError as error:
                return str(error), os.path.exists(directory)
        return " ".join(str(w.message) for w in caught), sorted(os.listdir(directory))
    finally:
        engine.close()


def one_cannot(rank, given, directory, victim, what):
    """What each rank is told where one has a client state that can't be saved, or loads into another model."""
    engine = begun(rank, "mlp", given)
    try:
        engine.save_checkpoint(directory, "before")
        before = digest(engine)
        try:
            if what == "save":
                engine.save_checkpoint(directory, "after", client_state={"x": object() if rank == victim else 1})
            else:
                if rank == victim:
                    engine.optimizer.param_groups[0]["params"].reverse()
                engine.load_checkpoint(directory)
            said = "nothing"
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        if rank == victim and what == "load":
            engine.optimizer.param_groups[0]["params"].reverse()
        engine.save_checkpoint(directory, "later")
        return said, digest(engine) == before
    finally:
        engine.close()


def one_cannot_put_back(rank, given, directory, victim):
    """What each rank is told where one fails after the library has loaded; what a step says then; and losses after all."""
    engine = begun(rank, "mlp", given)
    try:
        engine.save_checkpoint(directory)

        def fail(counters):
            raise LookupError("the user's own")

        if rank == victim:
            engine._put_counters = fail
        said = []
        for call in (lambda: engine.load_checkpoint(directory), engine.step):
            try:
                call()
                said.append("nothing")
            except Exception as error:
                said.append(str(error))
        engine.__dict__.pop("_put_counters", None)
        engine.load_checkpoint(directory)
        return *said, steps(engine, rank, 0, 1)
    finally:
        engine.close()


def no_such_tag(rank, given, directory):
    engine = begun(rank, "mlp", given)
    try:
        engine.load_checkpoint(directory, tag="missing")
    except Exception as error:
        return type(error).__name__
    finally:
        engine.close()


# ---- Killed (checkpoint_killer.py)

EVERY = 2  # steps from one save to the next


def killed_config(world, directory):
    schedule = {"type": "WarmupLR", "params": {"warmup_num_steps": 5, "warmup_max_lr": 0.02}}
    own = {"chunk_elements": 4096, "workers": 1, "checkpoint": {"keep_last": 2, "rng": True}}
    made = config(directory) if world == 1 else ranks_jobs.given(2, "nvme", directory)
    return {**made, "bf16": {"enabled": True}, "scheduler": schedule, "sluice": own}


def train_on(rank, world, swap, directory, end, tell):
    """Goes on from what there is, saves every so many steps, and tells tell(words) of each."""
    engine = begun(rank, "dropping", killed_config(world, swap))
    torch.manual_seed(rank), random.seed(rank)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine.load_checkpoint(directory)
    tell(f"begun {engine.global_steps}")
    while engine.global_steps < end:
        steps(engine, rank, engine.global_steps, engine.global_steps + 1)
        tell(f"stepped {engine.global_steps}")
        if engine.global_steps % EVERY == 0:
            engine.save_checkpoint(directory)
            hidden = [name for name in os.listdir(directory) if name.startswith(".")]
            tell(f"left {hidden}" if rank == 0 and hidden else f"saved {engine.global_steps}")
    tell(f"ended {digest(engine)}")
    engine.close()
