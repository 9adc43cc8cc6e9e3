"""Updates of sluice.AdamW that fail midway: what is written and what is not is known, and whoever could read it is told."""

import copy
import pickle
import re

import pytest
import torch
from adamw_loop import TIERS, assert_equal, make_model
from training import SIMULATION

import sluice
from sluice.residency import away

READ, WRITE = 0, 1  # core/sim_faults.h
ERROR, REFUSED, SHORT, CORRUPT, LOST = range(1, 6)
TINY = {"pinned": "128KiB", "nvme_path": "/simulated", "chunk_elements": 4096, "workers": 1, "library": SIMULATION}


def gradients(model, step):
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def memory(model):
    return {name: away.memory(parameter).clone() for name, parameter in model.named_parameters()}


def generations(steps):
    """The values after 0, 1, ... steps, when nothing fails."""
    model = make_model()
    optimizer = sluice.AdamW(model.named_parameters(), lr=1e-2, **TIERS)
    result = [memory(model)]
    for step in range(steps):
        gradients(model, step)
        optimizer.step()
        result.append(memory(model))
    optimizer.close()
    return result


EXPECTED = generations(6)


def listed(message, what):
    """{name: rest} of one of the lists in the message."""
    words = next(part for part in message.split("; ") if part.startswith(f"{what}: "))
    return dict(re.findall(r"([\w.]+) \(([^)]*)\)", words.partition(". Load")[0]))


def check_words(message, model):
    """What the message says of each parameter is so. Returns how many are in which list."""
    now, counted = memory(model), []
    for what in ("updated", "half written", "not updated"):
        found = listed(message, what)
        counted.append(len(found))
        for name, rest in found.items():
            step = int(re.search(r"step (\d+)", rest).group(1))
            if what == "half written":
                written = now[name] == EXPECTED[step][name]
                assert 0 < int(written.sum()) == int(rest.split()[0]) < written.numel(), (name, rest)
                assert torch.equal(now[name][~written], EXPECTED[step - 1][name][~written])
            else:
                assert torch.equal(now[name], EXPECTED[step][name]), (name, rest)
    assert sum(counted) == len(now)
    return counted


USES = {
    "step": lambda model, optimizer: optimizer.step(),
    "synchronize": lambda model, optimizer: optimizer.synchronize(),
    "state_dict": lambda model, optimizer: optimizer.state_dict(),
    "load_state_dict": lambda model, optimizer: optimizer.load_state_dict({"state": {}, "param_groups": []}),
    "add_param_group": lambda model, optimizer: optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))]}),
    "forward": lambda model, optimizer: model(torch.zeros(1, 8)),
    "the module's state_dict": lambda model, optimizer: model.state_dict(),
    "a sum": lambda model, optimizer: model[2].weight.sum(),
    "data": lambda model, optimizer: model[2].weight.data,
    "deepcopy": lambda model, optimizer: copy.deepcopy(model),
    "pickle": lambda model, optimizer: pickle.dumps(model),
    "GatheredParameters": lambda model, optimizer: sluice.zero.GatheredParameters(model.parameters()).__enter__(),
    "safe_get": lambda model, optimizer: sluice.utils.safe_get_full_fp32_param(model[2].weight),
    "close": lambda model, optimizer: optimizer.close(),
}


def run(seam, fault, nth, overlap):
    """(model, optimizer, the error or None): six steps, in the third or later of which something fails."""
    model = make_model()
    optimizer = sluice.AdamW(
        model.named_parameters(), lr=1e-2, overlap=model if overlap else None, simulated_seed=nth, **TINY
    )
    for step in range(6):
        gradients(model, step)
        if step == 2:
            optimizer.runtime.script_fault(seam, fault, nth)
        try:
            optimizer.step()
            if step == 5:
                optimizer.synchronize()
        except sluice.SluiceError as error:
            return model, optimizer, error
    return model, optimizer, None


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(
    "seam, fault", [(READ, ERROR), (READ, REFUSED), (READ, SHORT), (READ, CORRUPT), (READ, LOST), (WRITE, ERROR), (WRITE, CORRUPT)]
)
def test_what_is_half_written_is_known(seam, fault, overlap):
    """The n-th read or write fails, for every n until none does."""
    ended, failed = 0, 0
    lists = [0, 0, 0]
    # A read that moves nothing may find the same bytes in its buffer, left there by the write before it.
    enough = 20 if (seam, fault) == (READ, LOST) else 3
    for nth in range(1, 80):
        model, optimizer, error = run(seam, fault, nth, overlap)
        if error is None:
            assert_equal(memory(model), EXPECTED[6])
            optimizer.close()
            ended += 1
            if ended == enough:
                break
            continue
        failed += 1
        for number, count in enumerate(check_words(str(error), model)):
            lists[number] += count
        assert optimizer.report()["failure"] == str(error)
        for use in USES.values():  # close() is the last
            with pytest.raises(type(error), match=re.escape(str(error))):
                use(model, optimizer)
        optimizer.close()
        assert all(type(p) is torch.nn.Parameter for p in model.parameters())
    assert ended == enough and failed >= (1 if (seam, fault) == (READ, LOST) else 3)
    if fault == CORRUPT and seam == READ:
        assert min(lists) > 0, "nothing was half written, so this proves little"


def test_parameters_that_are_updated_in_a_copy_keep_their_old_values():
    for nth in range(1, 6):
        model = make_model()
        model[2].weight.data = model[2].weight.data.t().contiguous().t()
        optimizer = sluice.AdamW(model.named_parameters(), lr=1e-2, simulated_seed=nth, **TINY)
        gradients(model, 0)
        optimizer.step()
        optimizer.runtime.script_fault(READ, CORRUPT, nth)
        with pytest.raises(sluice.DataLoss) as caught:
            for step in range(1, 6):
                gradients(model, step)
                optimizer.step()
        check_words(str(caught.value), model)
        assert "2.weight" in listed(str(caught.value), "not updated")
        with pytest.raises(sluice.DataLoss):
            optimizer.close()


def test_an_error_that_ends_nothing_is_raised_as_it_is():
    model = make_model()
    optimizer = sluice.AdamW(model.parameters(), lr=1e-2, **TIERS)
    gradients(model, 0)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = -1.0
    with pytest.raises(sluice.InvalidArgument, match="lr: must be finite and must not be negative, but is -1.0$"):
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 1e-2
    gradients(model, 1)
    optimizer.step()
    assert_equal(memory(model), EXPECTED[2])
    optimizer.close()
