"""The states of sluice.AdamW: saved and loaded, kept when groups are added, read and set one by one."""

import pickle

import pytest
import torch
from adamw_loop import TIERS, assert_close, assert_equal, make_model, train, values

import sluice


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_run_goes_on_from_its_state_dict_to_the_last_bit(dtype, tmp_path):
    model = make_model(dtype=dtype)
    optimizer = sluice.AdamW(model.parameters(), lr=1e-2, **TIERS)
    train(model, optimizer, 3)
    saved = pickle.loads(pickle.dumps((model.state_dict(), optimizer.state_dict())))
    expected = train(model, optimizer, 3, seed=5)
    optimizer.close()
    model = make_model(seed=9, dtype=dtype)
    optimizer = sluice.AdamW(model.parameters(), pinned="170KiB", nvme_path=tmp_path, chunk_elements=4096, workers=1)
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    assert optimizer.param_groups[0]["lr"] == 1e-2
    assert_equal(train(model, optimizer, 3, seed=5), expected)
    optimizer.close()


def test_state_goes_from_pytorch_and_to_it():
    model, other = make_model(), make_model()
    theirs = torch.optim.AdamW(other.parameters(), lr=1e-2)
    model.load_state_dict({name: value for name, value in train(other, theirs, 3).items()})
    ours = sluice.AdamW(model.parameters(), **TIERS)
    ours.load_state_dict(theirs.state_dict())
    assert_close(train(model, ours, 3), train(other, theirs, 3))
    theirs = torch.optim.AdamW(other.parameters())
    other.load_state_dict(model.state_dict())
    theirs.load_state_dict(ours.state_dict())
    assert_close(train(model, ours, 2), train(other, theirs, 2))
    adam = torch.optim.Adam(other.parameters())
    ours.load_state_dict(adam.state_dict())
    assert ours.param_groups[0]["l2_decay"] and ours.state_dict()["state"] == {}
    amsgrad = torch.optim.AdamW(other.parameters(), amsgrad=True)
    train(other, amsgrad, 1)
    with pytest.raises(ValueError, match="amsgrad"):
        ours.load_state_dict(amsgrad.state_dict())
    ours.close()


@pytest.mark.parametrize("drive", [False, True])
def test_a_group_added_between_steps_trains_and_the_others_keep_their_states(drive, tmp_path):
    tiers = {"pinned": "170KiB", "nvme_path": tmp_path, "chunk_elements": 4096, "workers": 1} if drive else TIERS

    def run(kind, **tiers):
        model = make_model()
        optimizer = kind(model[0].parameters(), lr=1e-2, eps=1e-3, **tiers)  # a gradient of 1e-8 is not amplified
        train(model, optimizer, 2)
        optimizer.add_param_group({"params": model[2].parameters(), "lr": 2e-2})
        train(model, optimizer, 2)
        optimizer.add_param_group({"params": list(model[3].parameters()) + list(model[4].parameters())})
        train(model, optimizer, 2)
        assert [int(entry["step"]) for entry in optimizer.state_dict()["state"].values()] == [6, 6, 4, 4, 2, 2, 2, 2]
        return values(model)

    assert_close(run(sluice.AdamW, **tiers), run(torch.optim.AdamW))


@pytest.mark.parametrize("call", ["spool", "__init__", "restore", "set_steps"])
def test_states_outlive_a_failure_to_make_room_for_more(call, monkeypatch):
    """The call fails twice; whatever is asked for meanwhile fails too, and then all states are there."""

    def run(fail):
        model = make_model()
        optimizer = sluice.AdamW(model[0].parameters(), lr=1e-2, **TIERS)
        train(model, optimizer, 2)
        optimizer.add_param_group({"params": model[2].parameters()})
        if fail:
            with monkeypatch.context() as patch:
                patch.setattr(sluice.adamw.StateStore, call, refuse)
                with pytest.raises(MemoryError):
                    train(model, optimizer, 1)
                for use in (optimizer.state_dict, lambda: sluice.utils.safe_get_full_fp32_param(model[0].weight)):
                    with pytest.raises(MemoryError):
                        use()
        train(model, optimizer, 2)
        state = optimizer.state_dict()["state"]
        assert [int(entry["step"]) for entry in state.values()] == [4, 4, 2, 2]
        optimizer.close()
        return values(model) | {f"exp_avg {i}": entry["exp_avg"] for i, entry in state.items()}

    def refuse(*arguments):
        raise MemoryError("on purpose")

    assert_equal(run(True), run(False))


def test_single_values_of_a_group_just_added_with_overlap_are_not_mixed_up():
    model = make_model()
    optimizer = sluice.AdamW(model[4].parameters(), overlap=model, **TIERS)
    train(model, optimizer, 1)
    optimizer.add_param_group({"params": model[0].parameters()})  # goes before model[4] in the new store
    master = sluice.utils.safe_get_full_fp32_param(model[4].weight)
    optimizer.synchronize()
    assert torch.equal(master, model[4].weight)
    optimizer.close()


@pytest.mark.parametrize("steps", [0, 1])
def test_a_closed_optimizer_says_so(steps):
    model = make_model()
    optimizer = sluice.AdamW(model.parameters(), **TIERS)
    train(model, optimizer, steps)
    optimizer.close()
    optimizer.close()
    before = values(model)
    for use in (
        optimizer.step,
        optimizer.state_dict,
        lambda: optimizer.load_state_dict(torch.optim.AdamW(make_model().parameters()).state_dict()),
    ):
        with pytest.raises(sluice.FailedPrecondition, match="closed"):
            use()
    assert_equal(values(model), before)
    assert sluice.utils.safe_get_full_fp32_param(model[0].weight) is None


def test_single_states_can_be_read_and_set_by_deepspeeds_functions():
    model = make_model()
    optimizer = sluice.AdamW(model.parameters(), lr=1e-2, **TIERS)
    train(model, optimizer, 2)
    weight = model[0].weight
    moment = sluice.utils.safe_get_full_optimizer_state(weight, "exp_avg")
    assert torch.equal(moment, optimizer.state_dict()["state"][0]["exp_avg"])
    sluice.utils.safe_set_full_optimizer_state(weight, moment * 2, "exp_avg")
    assert torch.equal(optimizer.state_dict()["state"][0]["exp_avg"], moment * 2)
    with sluice.zero.GatheredParameters(model.parameters(), modifier_rank=0), torch.no_grad():
        weight.zero_()  # they are where they always are
    assert weight.abs().sum() == 0
    optimizer.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("overlap", [False, True])
def test_a_master_that_was_set_goes_on(dtype, overlap):
    """The next step starts from it, all 32 bits, and the parameter follows at once."""
    model = make_model(dtype=dtype)
    optimizer = sluice.AdamW(model.parameters(), lr=1e-2, overlap=model if overlap else None, **TIERS)
    train(model, optimizer, 2)
    weight = model[0].weight
    value = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
    sluice.utils.safe_set_full_fp32_param(weight, value)
    assert torch.equal(weight, value.to(dtype))
    optimizer.param_groups[0]["lr"] = 0.0
    train(model, optimizer, 1)
    assert torch.equal(sluice.utils.safe_get_full_fp32_param(weight), value)
    optimizer.synchronize()
    assert torch.equal(weight, value.to(dtype))
    optimizer.close()
