"""Calls that several ranks make together: no_sync(), gradients that are looked at, values read and changed, and parameters used
outside their module. The oracle is a plain loop over the ranks."""

import pytest
import ranks_calls as calls
from ranks_jobs import RANKS

STAGES, PLACES = (0, 1, 2, 3), ("none", "cpu", "nvme")


def check(results, expected):
    losses, masters = expected
    for rank, (mine, digest) in enumerate(results):
        assert tuple(mine) == losses[rank] and digest == masters, rank


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("window", calls.WINDOWS)
def test_gradients_kept_apart_are_a_plain_loops(ranks, window, dtype, tmp_path):
    expected = calls.accumulated(window, dtype)
    stages = STAGES if window == "none" else (0, 1)
    for stage in stages:
        check(ranks.run(calls.accumulate, stage, "cpu", str(tmp_path), window, dtype), expected)


def test_gradients_kept_apart_of_states_on_nvme(ranks, tmp_path):
    check(ranks.run(calls.accumulate, 1, "nvme", str(tmp_path), "but the last"), calls.accumulated("but the last"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_look_at_gradients_amid_an_accumulation_changes_nothing(ranks, dtype, tmp_path):
    expected = calls.accumulated("none", dtype)
    for stage in STAGES:
        check(ranks.run(calls.accumulate, stage, "cpu", str(tmp_path), "none", dtype, True), expected)


@pytest.mark.parametrize("stage", STAGES)
def test_what_no_sync_refuses(ranks, stage):
    (said, masters), (others, other_masters) = ranks.run(calls.refusals, stage)
    assert masters == other_masters
    if stage >= 2:
        assert said == others and f"no_sync() is not offered at stage {stage}" in said[0] and "stage to 0 or 1" in said[0]
    else:
        assert said[0] != others[0]  # a gradient of each rank's own
        assert said[1:] == others[1:] and "step() inside" in said[1] and "no_sync() inside" in said[2]


@pytest.mark.parametrize("count", [16, 21])
def test_epochs_with_a_smaller_last_batch_are_as_near_to_pytorch_as_fp32_is(ranks, count):
    expected = ranks.run(calls.epoch_ddp, count, 3)
    seen = set()
    for stage in STAGES:
        for (losses, masters), wanted in zip(ranks.run(calls.epoch, stage, count, 3), expected):
            assert [size for size, _ in losses] == [size for size, _ in wanted] and losses[-1][0] == 2
            assert all(abs(a - b) <= 1e-5 * max(1, b) for (_, a), (_, b) in zip(losses, wanted))
            seen.add(masters)
    assert len(seen) == 1


@pytest.mark.parametrize("modifier", [0, 1, "same", "read", "differ"])
def test_parameters_are_gathered_for_reading_and_changing(ranks, modifier, tmp_path):
    seen = []
    for number, stage in enumerate(STAGES):
        place = PLACES[number % 3]
        seen += ranks.run(calls.gathered, stage, place, str(tmp_path), modifier)
    assert all(result == seen[0] for result in seen)
    refused, _, _, _, mean = seen[0]
    if modifier == "differ":
        assert "inside GatheredParameters of rank 1 is not that of rank 0: parameter 0.weight" in refused and "modifier_rank" in refused
    else:
        assert refused is None
    wanted = {0: 0.25, 1: 0.5, "same": 0.5}.get(modifier)
    assert mean == wanted if wanted else abs(mean) < 0.1


def test_accessors_give_and_take_whole_values_at_every_stage(ranks, tmp_path):
    seen = []
    for stage in STAGES:
        for place in PLACES if stage in (1, 3) else PLACES[1:2]:
            for digests, got in ranks.run(calls.accessors, stage, place, str(tmp_path)):
                assert got == [True] * 7, (stage, place)
                seen.append(digests)
    assert all(digests == seen[0] for digests in seen)


def test_parameters_used_outside_their_module_come_to_a_plain_loops_bits(ranks, tmp_path):
    expected = calls.borrowed()
    for stage in STAGES:
        for place in PLACES[:: 1 if stage == 3 else 2]:
            assert ranks.run(calls.borrow, stage, place, str(tmp_path)) == [expected] * RANKS, (stage, place)


def test_attach_trains_one_rank_only(ranks):
    for said, same in ranks.run(calls.attach):
        assert same and len(said) == 1
        assert "trains with one rank, and there are 2" in said[0] and "sluice.initialize()" in said[0]
