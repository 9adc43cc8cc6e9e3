"""Checkpoints of several ranks: they go on to the same bits, also on another number of ranks, and all hear why one can't."""

import os

import checkpoint_jobs as jobs
import pytest
from ranks_jobs import given
from training import config

import sluice

TYPES = {"fp32": {}, "bf16": {"bf16": {"enabled": True}}, "fp16": {"fp16": {"enabled": True, "initial_scale_power": 22, "hysteresis": 1}}}
PLACES = [(1, "cpu"), (3, "nvme"), (0, "none")]
RNG = {"chunk_elements": 4096, "workers": 1, "checkpoint": {"rng": True}}


def _given(stage, where, path, kind, **more):
    made = given(stage, where, str(path), accumulation=2, **TYPES[kind], **more)
    if stage == 3 and where == "nvme":
        made["zero_optimization"]["offload_param"] = {"device": "nvme", "nvme_path": str(path)}
    return made


@pytest.mark.parametrize("kind", TYPES)
def test_two_ranks_go_on_at_any_stage_and_place(ranks, tmp_path, kind):
    for at, (stage, where) in enumerate(PLACES):
        directory = str(tmp_path / f"saved {at}")
        saved = ranks.run(jobs.train_and_save, "odd", _given(stage, where, tmp_path, kind), 2, 4, directory)
        assert saved[0][1:] == saved[1][1:]
        for other in (PLACES[at], PLACES[(at + 1) % len(PLACES)]):
            found = ranks.run(jobs.load_and_train, "odd", _given(*other, tmp_path, kind), directory, 4)
            for rank, (losses, there, end, client_state) in enumerate(found):
                assert (losses, there, end) == saved[rank] and client_state == {"rank": rank}, (at, other)


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_saved_by_two_loaded_by_one_saved_by_one_loaded_by_others(ranks, engines, tmp_path, kind):
    """What is loaded has the same bits each time; and the run that went over one rank goes on as if it had not."""
    paths = [str(tmp_path / name) for name in ("two", "one", "three")]
    made = _given(3, "nvme", tmp_path, kind)
    saved = ranks.run(jobs.train_and_save, "odd", made, 2, 4, paths[0])
    alone = {**config(tmp_path, **TYPES[kind])}
    engine = engines(jobs.model("odd", 9), alone)
    path, client_state = engine.load_checkpoint(paths[0])
    assert path and client_state == {"rank": 0} and jobs.digest(engine) == saved[0][1]
    engine.save_checkpoint(paths[1])
    (found, _) = ranks.run(jobs.load_and_train, "odd", _given(1, "cpu", tmp_path, kind), paths[1], 4)
    assert found[:3] == saved[0]
    three = {**made, "train_batch_size": 96}
    for (_, there, _, _) in ranks.run(jobs.load_and_train, "odd", three, paths[0], 2, paths[2], world=3):
        assert there == saved[0][1]
    (found, other) = ranks.run(jobs.load_and_train, "odd", made, paths[2], 4)
    assert found[:3] == saved[0] and other[:3] == saved[1]


def test_random_numbers_of_every_rank_go_on(ranks, tmp_path):
    made = {**given(2, "cpu"), "sluice": RNG}
    saved = ranks.run(jobs.train_and_save, "dropping", made, 2, 4, str(tmp_path))
    found = ranks.run(jobs.load_and_train, "dropping", made, str(tmp_path), 4)
    assert [f[:3] for f in found] == saved and saved[0][0] != saved[1][0]


@pytest.mark.parametrize("mode", ["Warn", "Ignore", "Fail"])
def test_tags_that_differ(ranks, tmp_path, mode):
    for said, there in ranks.run(jobs.tags_that_differ, given(1, "cpu"), str(tmp_path / "a"), mode):
        assert ("'tag0', 'tag1'" in said) == (mode != "Ignore")
        assert there == (False if mode == "Fail" else ["latest", "tag0"])


@pytest.mark.parametrize("what", ["save", "load"])
@pytest.mark.parametrize("victim", [0, 1])
def test_all_hear_why_one_cannot(ranks, tmp_path, what, victim):
    """Nothing has changed then, and they go on together."""
    found = ranks.run(jobs.one_cannot, given(1, "cpu"), str(tmp_path), victim, what)
    words = "client_state['x']: a builtins.object can't be saved" if what == "save" else "where 0.weight was saved"
    for rank, (said, unchanged) in enumerate(found):
        assert words in said and unchanged
        assert ("could not go on" in said) == (rank != victim)
        assert said.startswith("ValueError: ") == (what == "load")  # on all alike
    assert sorted(os.listdir(tmp_path)) == ["before", "later", "latest"]


@pytest.mark.parametrize("victim", [0, 1])
def test_what_one_cannot_put_back_none_trains_with(ranks, tmp_path, victim):
    """The library has loaded, and then one rank can't go on: a schedule or a module of the user's that raises."""
    for said, step, losses in ranks.run(jobs.one_cannot_put_back, given(1, "cpu"), str(tmp_path), victim):
        assert "the user's own" in said and "loaded in part" in step and len(losses) == 1


def test_a_tag_that_is_missing_is_so_for_all(ranks, tmp_path):
    for said in ranks.run(jobs.no_such_tag, given(1, "cpu"), str(tmp_path)):
        assert said == "NotFound"


def test_other_numbers_of_ranks_keep_their_own_random_numbers(ranks, engines, tmp_path):
    made = {**given(2, "cpu"), "sluice": RNG}
    ranks.run(jobs.train_and_save, "mlp", made, 1, 1, str(tmp_path))
    engine = engines(jobs.model("mlp"), config())
    with pytest.warns(RuntimeWarning, match="2 ranks saved theirs, and there are 1"):
        engine.load_checkpoint(tmp_path)
    assert isinstance(engine, sluice.Engine)
