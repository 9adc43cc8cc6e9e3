"""Accelerate's loop, PEFT's adapters and TRL's trainers, unmodified, on Sluice."""

import pytest
from configs import OPTIMIZER, config
from test_trainer import check


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_accelerate(dropin, plain, tmp_path, stage, ranks):
    given = config(stage, tmp_path)
    given |= {"train_micro_batch_size_per_gpu": 4 // ranks, "gradient_accumulation_steps": 2, "gradient_clipping": 0.5}
    del given["train_batch_size"]
    for key in ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold"):
        given["zero_optimization"].pop(key, None)
    check(dropin, plain, "cases_hf.loop", given, ("losses", "total", "rate", "kind", "weights"), ranks)


@pytest.mark.parametrize("stage", [2, 3])
def test_adapters(dropin, plain, tmp_path, stage):
    found, theirs = check(dropin, plain, "cases_hf.adapters", config(stage, tmp_path), ("losses", "counts", "kind"))
    assert found["merged"] < 1e-4 and found["logits"] == pytest.approx(theirs["logits"], rel=1e-4)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("stage", [2, 3])
def test_sft(dropin, plain, tmp_path, stage, lora, ranks):
    check(dropin, plain, "cases_trl.sft", config(stage, tmp_path), ranks=ranks, lora=lora)


def test_sft_with_checkpointing(dropin, plain, tmp_path):
    check(dropin, plain, "cases_trl.sft", config(3, tmp_path), lora=True, gradient_checkpointing=True)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("stage", [2, 3])
def test_dpo_with_a_reference_model(dropin, plain, tmp_path, stage, ranks):
    found, _ = check(dropin, plain, "cases_trl.dpo", config(stage, tmp_path), ("losses", "rewards"), ranks=ranks)
    assert found["reference"]


def test_dpo_with_adapters(dropin, plain, tmp_path):
    check(dropin, plain, "cases_trl.dpo", config(3, tmp_path), ("losses", "rewards"), lora=True)


def of_lightning(stage, folder):
    """Lightning fills in nothing: numbers, and clipping by its own argument."""
    given = config(stage, folder, train_micro_batch_size_per_gpu=4, zero_allow_untested_optimizer=True)
    for key in ("train_batch_size", "gradient_accumulation_steps", "gradient_clipping", "steps_per_print"):
        del given[key]
    for key in ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold"):
        given["zero_optimization"].pop(key, None)
    return given


@pytest.mark.parametrize("stage", [2, 3])
def test_lightning(dropin, plain, tmp_path, stage):
    given = of_lightning(stage, tmp_path)
    check(dropin, plain, "cases_lightning.fit", given, ("losses", "evaluated"), ours={"summary": True})


@pytest.mark.parametrize("stage", [2, 3])
def test_fabric(dropin, plain, tmp_path, stage):
    check(dropin, plain, "cases_lightning.fabric", of_lightning(stage, tmp_path) | {"gradient_clipping": 0.0})


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("stage", [2, 3])
def test_accelerates_state(dropin, plain, tmp_path, stage, ranks):
    given = config(stage, tmp_path) | {"train_micro_batch_size_per_gpu": 4 // ranks, "gradient_clipping": 0.0}
    given |= {"gradient_accumulation_steps": 1}
    del given["train_batch_size"]
    for key in ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold"):
        given["zero_optimization"].pop(key, None)
    found, _ = check(dropin, plain, "cases_hf.saved_state", given, ("losses", "again", "same"), ranks)
    assert found["same"] == 1.0


@pytest.mark.parametrize("stage", [2, 3])
def test_lightning_resumes(dropin, plain, tmp_path, stage):
    found, _ = check(dropin, plain, "cases_lightning.resumed", of_lightning(stage, tmp_path), ("losses", "again"))
    assert found["again"] == found["losses"][4:]


@pytest.mark.parametrize("stage", [2, 3])
def test_fabrics_checkpoint(dropin, plain, tmp_path, stage):
    given = of_lightning(stage, tmp_path) | {"gradient_clipping": 0.0}
    found, _ = check(dropin, plain, "cases_lightning.fabric_saved", given, ("losses", "again", "epoch"))
    assert found["again"] == found["losses"][4:]
