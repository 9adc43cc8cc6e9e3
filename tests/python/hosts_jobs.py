"""What a rank of test_hosts.py does: trains a few steps at stage 3, parameters and states on NVMe, and says how it ended. At a
moment that it is told of it may stop, or kill itself."""

import json
import os
import signal
import sys
import time

import sluice
import torch
from ranks_jobs import digest
from sluice.collectives import comm_table
from sluice.collectives.group_server import GroupServer
from sluice.collectives.value_group import ValueGroup
from sluice.collectives.world import World
from training import batch, config, loss_of, mlp

SIZE, STEPS = 4, 4
MOMENTS = ("start", "groups", "values", "forward", "backward", "step", "update", "close")
_STEP = 2  # in which it is


def _configuration(job):
    swap = {"device": "nvme", "nvme_path": job["swap"]}
    zero = {"stage": job["stage"], "offload_optimizer": swap, "offload_param": swap if job["stage"] == 3 else {"device": "none"}}
    given = config(None, zero_optimization=zero, train_batch_size=SIZE * job["ranks"])
    given["sluice"] = {**given.get("sluice", {}), "rank_timeout": job["timeout_s"]}
    return given


def _before(owner, name, count, act):
    """Calls act() before the call number `count` of a method."""
    real, calls = getattr(owner, name), []

    def wrapped(*args, **kwargs):
        calls.append(0)
        if len(calls) == count:
            act()
        return real(*args, **kwargs)

    setattr(owner, name, wrapped)


def _train(job, act):
    torch.set_num_threads(1)
    act("start")
    _before(World, "tables", 1, lambda: act("groups"))
    _before(ValueGroup, "broadcast", 3, lambda: act("values"))
    model = mlp(seed=job["rank"], hidden=96)
    engine = sluice.initialize(model=model, config=_configuration(job))[0]
    losses = []
    try:
        for step in range(STEPS):
            here = act if step == _STEP else lambda moment: None
            x, y = (part[job["rank"] * SIZE :][:SIZE] for part in batch(step, SIZE * job["ranks"]))
            first = model[0].register_forward_pre_hook(lambda *_: here("forward"))  # noqa: B023
            hidden = engine(x)
            first.remove()
            hidden.register_hook(lambda _: here("backward"))  # noqa: B023
            loss = loss_of(hidden, y)
            losses.append(loss.item())
            engine.backward(loss)
            here("step")
            engine.step()
            here("update")
        seen = digest(engine.fp32_state_dict())
        act("close")
    finally:
        engine.close()
    return {"digest": seen, "losses": losses}


def run(job, say):
    def act(moment):
        if job["moment"] != moment:
            return
        say(moment)
        if job["signal"] == "deaf":  # whatever ends or fails, the library does not hear of it
            GroupServer.wait = lambda server, number, seconds: (time.sleep(seconds), (comm_table.PENDING, ""))[1]
        elif job["signal"]:
            os.kill(os.getpid(), signal.Signals[job["signal"]])

    try:
        print(json.dumps(_train(job, act)), file=sys.stderr)
    except sluice.SluiceError as error:
        print(json.dumps({"error": str(error)}), file=sys.stderr)
    os._exit(0)
