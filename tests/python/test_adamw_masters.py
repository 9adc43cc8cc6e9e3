"""Of an fp32 parameter sluice.AdamW keeps moments only: the same bits as with a master beside it, PyTorch's numbers, and 8
bytes an element. Types may change midway, and states go to and from whoever keeps a master."""

import copy

import pytest
import torch
from adamw_loop import TIERS, assert_close, assert_equal, batches, make_model, train, values

import sluice
from sluice.optimizers import state_store

SETTINGS = {"lr": 1e-2, "eps": 1e-3}  # small gradients are not amplified, so that both round alike
DRIVE = {"pinned": "150KiB", "chunk_elements": 4096, "workers": 1}


def states(optimizer):
    packed = optimizer.state_dict()["state"]
    return {f"{i} {key}": value.clone() for i, entry in packed.items() for key, value in entry.items()}


# ---- What a loop may do, with an optimizer of make(parameters, module, **settings). Each returns what it comes to.


def plain(make):
    model = make_model()
    optimizer = make(model.parameters(), model)
    return {**train(model, optimizer, 5), **states(optimizer)}


def decayed(make):
    model = make_model()
    optimizer = make(model.parameters(), model, weight_decay=0.3, betas=(0.8, 0.9))
    return {**train(model, optimizer, 5), **states(optimizer)}


def of_any_memory(make):
    """Not contiguous, not aligned, in the middle of a storage, beside each other in one; and a scalar."""
    torch.manual_seed(1)
    whole = torch.randn(40, 60)
    unaligned = torch.frombuffer(bytearray(4 * 5000 + 1), dtype=torch.float32, offset=1)
    shapes = whole[:10].t(), whole[10:20, ::2], whole[10:20, 1::2], whole[20:30], whole[30:], torch.randn(()), unaligned
    parameters = [torch.nn.Parameter(tensor) for tensor in shapes]
    optimizer = make(parameters, None)
    for step in range(4):
        torch.manual_seed(step)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape)
        optimizer.step()
    return {**{str(n): p.detach().clone() for n, p in enumerate(parameters)}, **states(optimizer)}


def sometimes(make):
    """Gradients that come and go, parameters that are frozen meanwhile, sparse gradients where they are taken."""
    model = make_model()
    sparse = make is not pytorch
    model.append(torch.nn.Embedding(50, 8, sparse=sparse))
    optimizer = make(model.parameters(), model)
    for number, batch in enumerate(batches(6)):
        model[2].requires_grad_(number % 2 == 0)
        optimizer.zero_grad()
        given = batch + model[5](torch.tensor([number, number, 7, 8]))
        model[:5](given).square().mean().backward()
        if number == 3:
            model[0].weight.grad = None
        optimizer.step()
    return {**values(model), **states(optimizer)}


def grown(make):
    model = make_model()
    optimizer = make(model[0].parameters(), model)
    train(model, optimizer, 2)
    optimizer.add_param_group({"params": model[2].parameters(), "lr": 2e-2})
    train(model, optimizer, 2)
    optimizer.add_param_group({"params": [*model[3].parameters(), *model[4].parameters()]})
    return {**train(model, optimizer, 2), **states(optimizer)}


def written(make):
    """By the program, through every door."""
    model = make_model()
    optimizer = make(model.parameters(), model)
    for step in range(4):
        train(model, optimizer, 1, seed=step)
        with torch.no_grad():
            model[0].weight.mul_(0.5)
        model[2].weight.data[3] = 0.25
        model[4].weight.data = torch.full_like(model[4].weight, 0.125)
        model[3].load_state_dict({name: value * 0.75 for name, value in model[3].state_dict().items()})
        new = torch.full_like(model[2].bias, 0.5)
        if make is pytorch:
            model[2].bias.data.copy_(new)
        else:
            sluice.utils.safe_set_full_fp32_param(model[2].bias, new)
            found = sluice.utils.safe_get_full_fp32_param(model[2].bias)
            assert torch.equal(found, new) and found.data_ptr() != model[2].bias.data_ptr()
    return {**train(model, optimizer, 1), **states(optimizer)}


def saved_and_loaded(make):
    model = make_model()
    optimizer = make(model.parameters(), model)
    train(model, optimizer, 3)
    saved = copy.deepcopy(optimizer.state_dict())  # PyTorch's has the very states, and takes the very ones
    train(model, optimizer, 1)
    optimizer.load_state_dict(copy.deepcopy(saved))
    train(model, optimizer, 2)
    weights = values(model)
    if make is not pytorch:
        optimizer.close()
    model = make_model(seed=7)
    model.load_state_dict(weights)
    optimizer = make(model.parameters(), model, lr=3e-2)
    optimizer.load_state_dict(copy.deepcopy(saved))
    return {**train(model, optimizer, 2), **states(optimizer)}


def pytorch(parameters, module, **settings):
    return torch.optim.AdamW(parameters, **{**SETTINGS, **settings})


def in_ram(parameters, module, **settings):
    return sluice.AdamW(parameters, **{**SETTINGS, **TIERS, **settings})


RUNS = [plain, decayed, of_any_memory, sometimes, grown, written, saved_and_loaded]


@pytest.mark.parametrize("where", ["RAM", "drive", "overlap"])
@pytest.mark.parametrize("run", RUNS, ids=lambda f: f.__name__)
def test_it_is_as_with_a_master_beside_it_and_as_pytorch_s(run, where, tmp_path, monkeypatch):
    def make(parameters, module, **settings):
        tiers = {**DRIVE, "nvme_path": tmp_path} if where == "drive" else TIERS
        overlap = module if where == "overlap" else None
        return sluice.AdamW(parameters, **{**SETTINGS, **tiers, "overlap": overlap, **settings})

    ours = run(make)
    assert not [name for name in ours if "master" in name]
    with monkeypatch.context() as patch:
        patch.setattr(state_store, "own_master", lambda parameter: False)
        assert_equal(ours, run(in_ram))
    theirs = run(pytorch)
    assert ours.keys() == theirs.keys()
    assert_close(ours, theirs)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("drive", [False, True], ids=["RAM", "drive"])
def test_states_take_8_bytes_an_element_of_fp32_and_12_of_others(drive, dtype, tmp_path):
    elements = 10 * 4096
    tiers = {**DRIVE, "pinned": "300KiB", "nvme_path": tmp_path} if drive else TIERS
    parameter = torch.nn.Parameter(torch.ones(elements, dtype=dtype))
    optimizer = sluice.AdamW([parameter], **tiers)
    for _ in range(2):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    report, each = optimizer.report(), 8 if dtype == torch.float32 else 12
    assert report["pinned"]["states_bytes"] + report["nvme"]["states_bytes"] == each * elements
    moved = report["nvme"]["states_bytes"] + report["nvme"]["gradients_bytes"]
    assert (moved > 0) == drive
    assert report["step_traffic"]["nvme_read_bytes"] == report["step_traffic"]["nvme_write_bytes"] == moved
    optimizer.close()


# ---- Types that change midway


def with_gradients(model, step):
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("after", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("before", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_type_may_change_between_steps(before, after, overlap):
    """It goes on as an optimizer that is made anew with the same moments, and as PyTorch's over fp32 copies."""
    model = make_model(dtype=before)
    optimizer = sluice.AdamW(model.parameters(), **SETTINGS, overlap=model if overlap else None, **TIERS)
    for step in range(3):
        with_gradients(model, step)
        optimizer.step()
    model.zero_grad()
    for parameter in (*model[0].parameters(), *model[3].parameters()):
        parameter.data = parameter.data.to(after)
    state = optimizer.state_dict()
    copies = []
    for entry, parameter in zip(state["state"].values(), model.parameters()):
        assert ("master" in entry) == (parameter.dtype != torch.float32)
        kept = entry.get("master", parameter.detach())
        same = kept.to(parameter.dtype) == parameter
        assert same.all() or torch.float32 not in (before, after)
        copies.append(torch.where(same, kept, parameter.detach().float()))
    theirs = torch.optim.AdamW([torch.nn.Parameter(copy) for copy in copies], **SETTINGS)
    moments = {i: {k: v for k, v in entry.items() if k != "master"} for i, entry in state["state"].items()}
    theirs.load_state_dict({**state, "state": moments})
    other = make_model()
    for mine, parameter in zip(other.parameters(), model.parameters()):
        mine.data = parameter.detach().clone()
    fresh = sluice.AdamW(other.parameters(), **SETTINGS, **TIERS)
    fresh.load_state_dict(state)
    for step in range(3, 6):
        for net, using in ((model, optimizer), (other, fresh)):
            with_gradients(net, step)
            using.step()
        for parameter, copy in zip(other.parameters(), theirs.param_groups[0]["params"]):
            copy.grad = parameter.grad.float()
        theirs.step()
    optimizer.synchronize()
    assert_equal({**values(model), **states(optimizer)}, {**values(other), **states(fresh)})
    masters = [e.get("master", p.detach()) for e, p in zip(fresh.state_dict()["state"].values(), other.parameters())]
    for master, parameter, copy in zip(masters, other.parameters(), theirs.param_groups[0]["params"]):
        torch.testing.assert_close(master, copy.detach(), rtol=1e-5, atol=2e-5)
        assert torch.equal(parameter, master.to(parameter.dtype))
    optimizer.close(), fresh.close()


def test_a_type_that_changes_there_and_back_changes_nothing():
    model, other = make_model(), make_model()
    optimizers = [sluice.AdamW(net.parameters(), **SETTINGS, **TIERS) for net in (model, other)]
    for step in range(4):
        for net, optimizer in zip((model, other), optimizers):
            with_gradients(net, step)
            optimizer.step()
        for parameter in model.parameters():
            kept, parameter.grad = parameter.data, None
            parameter.data = parameter.data.double()
            parameter.data = kept
    assert_equal({**values(model), **states(optimizers[0])}, {**values(other), **states(optimizers[1])})
    for optimizer in optimizers:
        optimizer.close()


# ---- States of others


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_states_with_a_master_are_loaded_and_the_fp32_parameter_stays(dtype):
    """As an optimizer of 16-bit parameters saves them, and as one that keeps no master does."""
    source = make_model(dtype=torch.bfloat16)
    optimizer = sluice.AdamW(source.parameters(), **SETTINGS, **TIERS)
    for step in range(3):
        with_gradients(source, step)
        optimizer.step()
    state = optimizer.state_dict()
    optimizer.close()
    assert all("master" in entry for entry in state["state"].values())
    without = {i: {k: v for k, v in entry.items() if k != "master"} for i, entry in state["state"].items()}

    def run(state, start):
        model = make_model()
        for parameter, value in zip(model.parameters(), start):
            parameter.data = value.to(dtype, copy=True)
        optimizer = sluice.AdamW(model.parameters(), **SETTINGS, **TIERS)
        optimizer.load_state_dict(state)
        with_gradients(model, 4)
        optimizer.step()
        result = {**values(model), **states(optimizer)}
        optimizer.close()
        return result

    masters = [entry["master"] for entry in state["state"].values()]
    ours = run(state, masters)
    if dtype == torch.float32:
        assert_equal(ours, run({**state, "state": without}, masters))
        rounded = [master.bfloat16() for master in masters]  # the parameters say what they are
        assert_equal(run(state, rounded), run({**state, "state": without}, rounded))
    else:
        with_gradients(source, 4)
        again = sluice.AdamW(source.parameters(), **SETTINGS, **TIERS)
        again.load_state_dict(state)
        again.step()
        assert_equal(ours, {**values(source), **states(again)})
        again.close()
        begun = run({**state, "state": without}, masters)  # masters begin as the parameters
        for name, parameter in zip(values(source), masters):
            assert torch.allclose(begun[name].float(), parameter, rtol=2e-2, atol=2e-2)


def test_a_state_is_a_copy_and_a_parameter_not_contiguous_has_one_too():
    weight = torch.nn.Parameter(torch.randn(30, 20).t())
    optimizer = sluice.AdamW([weight], **SETTINGS, **TIERS)
    weight.grad = torch.randn(weight.shape)
    optimizer.step()
    master = sluice.utils.safe_get_full_fp32_param(weight)
    assert torch.equal(master, weight) and master.is_contiguous() and not master.requires_grad
    master.zero_()
    assert weight.abs().sum() > 0
    sluice.utils.safe_set_full_fp32_param(weight, torch.full((20, 30), 2.0))
    moment = sluice.utils.safe_get_full_optimizer_state(weight, "exp_avg_sq")
    sluice.utils.safe_set_full_optimizer_state(weight, moment * 3, "exp_avg_sq")
    assert torch.equal(optimizer.state_dict()["state"][0]["exp_avg_sq"], moment * 3)
    assert (weight == 2).all()
    weight.grad = torch.zeros(weight.shape)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert (weight == 2).all()
    optimizer.close()
