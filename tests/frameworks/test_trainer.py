"""Scripts over frameworks, unmodified, on Sluice: the losses, norms and weights are those of the same script in plain PyTorch."""

import pytest
from configs import OPTIMIZER, SCHEDULER, config

NEAR = 1e-5


def near(found, wanted):
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for name in wanted:
            near(found[name], wanted[name])
    elif isinstance(wanted, list):
        assert len(found) == len(wanted) and wanted
        for one, other in zip(found, wanted):
            near(one, other)
    elif isinstance(wanted, str):
        assert found == wanted
    else:
        assert found == pytest.approx(wanted, rel=NEAR, abs=NEAR)


def check(dropin, plain, case, deepspeed, only=("losses",), ranks=1, ours=None, **arguments):
    theirs = plain(case, ranks=ranks, **arguments)
    found = dropin(case, ranks=ranks, deepspeed=deepspeed, **arguments, **(ours or {}))
    assert found["sluice"] and not theirs["sluice"]
    for name in only:
        near(found[name], theirs[name])
    return found, theirs


WHOLE = ("losses", "norms", "evaluated", "weights")


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_trainer_with_its_own_optimizer(dropin, plain, tmp_path, stage, ranks):
    check(dropin, plain, "cases_hf.train", config(stage, tmp_path), WHOLE, ranks)


@pytest.mark.parametrize("stage", [2, 3])
def test_trainer_with_the_configured_optimizer(dropin, plain, tmp_path, stage):
    check(dropin, plain, "cases_hf.train", config(stage, tmp_path, **OPTIMIZER), WHOLE, own_optimizer=True)


def test_trainer_with_accumulation_and_no_clipping(dropin, plain, tmp_path):
    more = {"gradient_accumulation_steps": 2, "max_grad_norm": 0.0}
    check(dropin, plain, "cases_hf.train", config(3, tmp_path), ("losses", "evaluated"), **more)


def test_trainer_with_the_configured_schedule(dropin, plain, tmp_path):
    check(dropin, plain, "cases_hf.warmup", config(3, tmp_path, **OPTIMIZER, **SCHEDULER))


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(dropin, plain, tmp_path, reentrant):
    more = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    check(dropin, plain, "cases_hf.train", config(3, tmp_path), WHOLE, **more)


def test_one_trainer_after_another_over_a_model(dropin, plain, tmp_path):
    check(dropin, plain, "cases_hf.evaluate_first", config(3, tmp_path))


def test_training_twice(dropin, plain, tmp_path):
    check(dropin, plain, "cases_hf.trained_twice", config(3, tmp_path))


@pytest.mark.parametrize("stage", [2, 3])
def test_generation_in_evaluation(dropin, plain, tmp_path, stage):
    check(dropin, plain, "cases_hf.generate", config(stage, tmp_path), ("losses", "words"))


@pytest.mark.parametrize("ranks", [1, 2])
def test_from_pretrained_under_stage_3(dropin, plain, tmp_path, ranks):
    folder = str(tmp_path / "model")
    plain("cases_hf.save_pretrained", folder=folder)
    found, _ = check(
        dropin, plain, "cases_hf.built_under_stage_3", config(3, tmp_path), ("losses", "rates"), ranks, folder=folder
    )
    assert found["finite"]


@pytest.mark.parametrize("stage, ranks", [(2, 1), (3, 1), (3, 2)])
def test_a_saved_model_is_read_by_plain_transformers(dropin, plain, tmp_path, stage, ranks):
    ours, theirs = str(tmp_path / "ours"), str(tmp_path / "theirs")
    plain("cases_hf.saved_model", ranks=ranks, folder=theirs)
    found = dropin("cases_hf.saved_model", ranks=ranks, deepspeed=config(stage, tmp_path), folder=ours)
    assert found["sluice"]
    near(plain("cases_hf.loss_of_saved", folder=ours), plain("cases_hf.loss_of_saved", folder=theirs))


@pytest.mark.parametrize("stage, ranks", [(2, 1), (3, 1), (3, 2)])
def test_resuming(dropin, plain, tmp_path, stage, ranks):
    found, _ = check(dropin, plain, "cases_hf.resumed", config(stage, tmp_path), ("losses", "again", "weights"), ranks)
    assert found["again"] == found["losses"]  # those before the start are the saved Trainer's


@pytest.mark.parametrize("stage", [2, 3])
def test_resuming_with_the_configured_optimizer_and_schedule(dropin, tmp_path, stage):
    found = dropin("cases_hf.resumed", deepspeed=config(stage, tmp_path, **OPTIMIZER, **SCHEDULER), warmup_steps=2)
    assert found["again"] == found["losses"]


@pytest.mark.parametrize("stage", [2, 3])
def test_the_best_model_at_the_end(dropin, plain, tmp_path, stage):
    found, _ = check(dropin, plain, "cases_hf.best_at_end", config(stage, tmp_path), ("losses", "best", "evaluated"))
    assert found["best"] == "2"
