"""Two ranks train one model: as PyTorch's DistributedDataParallel does, and to the same bits at every stage."""

import itertools

import pytest
import ranks_jobs as jobs
from ranks_group import Group

STAGES = (0, 1, 2, 3)


def close(mine, theirs, tolerance):
    return len(mine) == len(theirs) and all(abs(a - b) <= tolerance * max(1, abs(b)) for a, b in zip(mine, theirs))


@pytest.mark.parametrize("kind", jobs.MODELS)
def test_stages_and_places_come_to_the_same_bits_and_as_near_to_pytorch_as_fp32_is(ranks, kind, tmp_path):
    expected = ranks.run(jobs.train_ddp, kind)
    seen = set()
    for stage, place in ((0, "none"), (1, "cpu"), (2, "nvme"), (3, "none"), (3, "nvme")):  # all of them: ranks_table.py
        results = ranks.run(jobs.train, kind, jobs.given(stage, place, str(tmp_path)))
        for rank, (losses, norms, masters, states, parameters, *_, report) in enumerate(results):
            assert close(losses, expected[rank][0], 1e-5), (stage, place, rank)
            assert close(norms, expected[rank][1], 1e-5), (stage, place, rank)
            assert (report["rank"], report["ranks"], report["zero_stage"]) == (rank, 2, stage)
            seen.add((masters, states, parameters, tuple(norms)))
    assert len(seen) == 1


def test_accumulated_gradients_are_as_near_to_pytorch(ranks):
    expected = ranks.run(jobs.train_ddp, "mlp", 3)
    for stage in STAGES:
        results = ranks.run(jobs.train, "mlp", jobs.given(stage, "cpu", accumulation=3))
        for result, wanted in zip(results, expected):
            assert close(result[0], wanted[0], 1e-5) and close(result[1], wanted[1], 1e-5), stage


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_ranks_have_the_same_bits_in_half_precision(ranks, dtype):
    torch_name = {"bf16": "bfloat16", "fp16": "float16"}[dtype]
    seen = set()
    for stage in STAGES:
        results = ranks.run(jobs.train, "mlp", jobs.given(stage, "cpu", **{dtype: {"enabled": True}}), torch_name)
        seen.update((tuple(norms), *rest) for _, norms, *rest, _ in results)
    assert len(seen) == 1


@pytest.mark.parametrize("dtype, near", [("fp32", 1e-5), ("bf16", 2e-2), ("fp16", 2e-2)])
def test_the_librarys_reduction_is_as_near_and_the_same_on_all_ranks(ranks, dtype, near):
    precision = {} if dtype == "fp32" else {dtype: {"enabled": True}}
    torch_name = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[dtype]
    for stage in STAGES:
        ordered = ranks.run(jobs.train, "mlp", jobs.given(stage, "cpu", **precision), torch_name)
        library = ranks.run(jobs.train, "mlp", jobs.with_own(jobs.given(stage, "cpu", **precision), reduction="library"), torch_name)
        assert library[0][1:-1] == library[1][1:-1], stage
        for mine, theirs in zip(library, ordered):
            assert close(mine[0], theirs[0], near) and close(mine[1], theirs[1], near), stage
            assert (mine[-1]["reduction"], theirs[-1]["reduction"]) == ("library", "ordered")
            kinds = {t["kind"] for t in mine[-1]["traffic"] if t["group"] == "gradients"}
            assert "reduce-scatter" in kinds and "all-to-all" not in kinds


@pytest.mark.parametrize("own, words", [
    ([{"reduction": "library"}] * 2, "reduction 'library': the ranks' communicator can't add up gradients itself"),
    ([{"reduction": "library"}, {}], "('reduction', 'library')"),
])
def test_a_reduction_that_ranks_cant_do_is_refused(ranks, own, words):
    for said in ranks.run(jobs.begin_over_gloo, own):
        assert words in said, said


@pytest.mark.parametrize("dynamic", [True, False])
def test_an_overflow_on_one_rank_is_left_out_by_all(ranks, dynamic):
    seen = set()
    for stage, who in itertools.product(STAGES, (0, 1)):
        seen.update(ranks.run(jobs.overflow_on_one, stage, who, dynamic))
    assert len(seen) == 1
    skipped, scale, _ = seen.pop()
    assert (skipped, scale) == (1, 128)


def test_all_ranks_begin_with_the_values_of_rank_0(ranks):
    (before, *after), (other, *others) = ranks.run(jobs.begin)
    assert before != other and after == others
    assert after[0] == after[2] == before  # fp32: what it trains, and what destroy() gives back


@pytest.mark.parametrize("over_gloo", [False, True])
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("when", jobs.CANT_BEGIN)
def test_all_hear_of_one_that_cant_make_its_engine(ranks, when, victim, over_gloo):
    told = ranks.run(jobs.cant_begin, victim, when, over_gloo)
    (own, masters), (other, other_masters) = told[victim], told[1 - victim]
    assert own != "nothing" and f"rank {victim} " in other and own[:100] in other
    assert masters == other_masters


@pytest.mark.parametrize("what", jobs.COLLECTIVES)
def test_all_hear_of_one_that_is_interrupted_amid_what_all_do(ranks, what):
    for wait in itertools.count(1):
        told = ranks.run(jobs.interrupted, wait % 2, what, wait)
        mine, other = told[wait % 2], told[1 - wait % 2]
        if mine == ["nothing"] * 2:
            break
        assert mine[0] == "KeyboardInterrupt: by the user", told
        said = f"Unavailable: rank {wait % 2} left what all ranks do: KeyboardInterrupt: by the user"
        assert mine[1] == said and other[1].startswith(said), told
    assert wait > 1


@pytest.mark.parametrize("number, when", list(enumerate((*jobs.CANT_START, *jobs.CANT_FINISH))))
def test_all_hear_of_one_that_fails_anywhere_before_it_has_an_engine(ranks, number, when):
    for world, victim, fresh in (((2, 0, True), (3, 1, False)), ((2, 1, False), (3, 0, True)))[number % 2]:
        if fresh:  # nobody has set up torch.distributed
            ranks.run(jobs.nothing, world=4)
        told = ranks.run(jobs.cant_start, victim, when, world=world)
        assert jobs.CANT_START.get(when, (None, "ArithmeticError"))[1] in told[victim][0]
        for rank in set(range(world)) - {victim}:
            assert f"Unavailable: rank {victim} can't begin: {told[victim][0][:100]}" in told[rank][0]
        assert len({masters for _, masters in told}) == 1


def test_what_an_engine_says_of_ranks_and_batches(ranks):
    for rank, (numbers, batches, sizes, refused, place, world) in enumerate(ranks.run(jobs.facts)):
        assert numbers == (rank, rank, 2, 2) and (place, world) == (rank, 2)
        assert batches == (96, 16, 3) and sizes == (5, 160)
        assert [words in said for words, said in zip(("no_sync() is not offered at stage 2", "16 of 2 ranks", "2 ranks"), refused)] == [True] * 3


@pytest.mark.parametrize("count", [16, 17])
def test_training_data_is_split_among_ranks(ranks, count):
    parts = ranks.run(jobs.loaded, count, 4)
    assert [len(part) for part in parts] == [(count + 7) // 8] * 2
    samples = sorted(itertools.chain(*parts[0], *parts[1]))
    assert set(samples) == set(range(count)) and len(samples) == count + count % 2


def test_values_and_gradients_are_read_and_changed_together(ranks, tmp_path):
    seen = [r for stage in STAGES for r in ranks.run(jobs.values, stage, "nvme" if stage % 2 else "cpu", str(tmp_path))]
    assert all(result == seen[0] for result in seen)
    (mean, loaded, norm, clipped), _ = seen[0]
    assert mean == 0.25 and loaded and norm > 0.25 and close([clipped], [0.25], 1e-3)


@pytest.mark.parametrize("stage, place, local", list(zip(STAGES, 2 * ["between steps", "backward"], "0110")))
def test_a_rank_that_is_killed_ends_the_other_with_its_name(monkeypatch, stage, place, local):
    monkeypatch.setenv("SLUICE_LOCAL_RANKS", local)  # 0: over gloo
    pair, leaver = Group(), stage % 2
    try:
        pair.begin(jobs.train_then_leave, stage, place, leaver)
        words = pair.result(1 - leaver)
        said = (f"rank {leaver} is gone",) if local == "1" else (f"rank {leaver}: Connection", f"rank {leaver}: Read error")
        assert any(text in words for text in said), words
    finally:
        pair.end()


@pytest.mark.parametrize("local", ["0", "1"])
def test_which_way_the_ranks_speak_is_in_the_report(monkeypatch, local):
    monkeypatch.setenv("SLUICE_LOCAL_RANKS", local)
    pair = Group()
    try:
        said = pair.run(jobs.communication)
        assert said[0] == said[1] and ("gloo" in said[0]) == (local == "0") and ("one host" in said[0]) == (local == "1")
    finally:
        pair.end()


@pytest.mark.parametrize("difference, words", [
    ("shape", "parameter 0.weight (212, 37)"), ("frozen", "parameter 0.weight"), ("stage", "zero_stage 1, but zero_stage 0")
])  # fmt: skip
def test_ranks_with_other_models_are_told_where_they_differ(ranks, difference, words):
    for said in ranks.run(jobs.another_model, difference):
        assert "of rank 1 is not that of rank 0" in said and words in said
