"""Values leave and enter a model on the tiers by PyTorch's and Transformers' own calls."""

import copy

import pytest
import torch
from faces import Plain, assert_close, assert_same, one_step, opened, plain_copy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import sluice


@pytest.fixture
def stepped(case, face, budget, tmp_path):
    with opened(face, case.make, budget, tmp_path) as trainer:
        one_step(trainer, case, 0)
        yield trainer


def loss_of(model, case, step=1):
    with torch.no_grad():
        return model.eval()(**case.batch(step)).loss


def test_a_plain_model_loads_the_state_dict_strictly(case, stepped):
    plain = case.make()
    plain.load_state_dict(stepped.model.state_dict())
    assert_same(loss_of(stepped.model, case), loss_of(plain, case), "loss")


def test_saved_as_transformers_do(case, stepped, tmp_path):
    stepped.model.save_pretrained(tmp_path / "saved")
    plain = type(stepped.model).from_pretrained(tmp_path / "saved")
    assert_same(loss_of(stepped.model, case), loss_of(plain, case), "loss")


def test_loads_what_a_plain_model_has(case, stepped):
    other = Plain(case.make())
    one_step(other, case, 5)
    stepped.model.load_state_dict(other.model.state_dict())
    assert_same(loss_of(stepped.model, case), loss_of(other.model, case), "loss")
    one_step(stepped, case, 1)  # goes on


def test_a_deep_copy_is_a_plain_model(case, stepped):
    copied = copy.deepcopy(stepped.model)
    plain = plain_copy(stepped, case.make)
    one_step(stepped, case, 1)
    assert_same(loss_of(copied, case), loss_of(plain, case), "loss")


def test_averages(case, face, budget, tmp_path):
    plain = Plain(case.make())
    with opened(face, case.make, budget, tmp_path) as trainer:
        averages = []
        for each in (plain, trainer):
            average = AveragedModel(each.model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
            for step in range(2):
                one_step(each, case, step)
                average.update_parameters(each.model)
            averages.append(average)
        assert_close(dict(averages[1].module.state_dict()), dict(averages[0].module.state_dict()), "averages")
        assert_close(loss_of(averages[1].module, case), loss_of(averages[0].module, case), "loss")


def test_clipping_clips(case, budget, tmp_path):
    norms, values = [], []
    with opened("attach", case.make, budget, tmp_path) as attached, opened("overlap", case.make, budget, tmp_path) as overlap:
        for each in (Plain(case.make()), attached, overlap):
            each.model.train()
            for step in range(2):
                torch.manual_seed(step)
                each.backward(each.forward(case.batch(step)).loss)
                norms.append(torch.nn.utils.clip_grad_norm_(each.model.parameters(), 0.5))
                each.step()
            values.append(dict(each.values()))
        for mine in (1, 2):
            assert_close(torch.stack(norms[2 * mine : 2 * mine + 2]), torch.stack(norms[:2]), "norms")
            assert_close(values[mine], values[0], "values")


def test_more_words(case, face, stepped):
    """resize_token_embeddings gives parameters another shape, which an engine refuses, and goes on; sluice.AdamW refuses the
    step, as its states are of the old shape."""
    if not case.prompt or "input_ids" not in case.prompt:
        pytest.skip("no embedding of words")
    model, before = stepped.model, dict(stepped.model.state_dict())
    if face == "overlap":
        model.resize_token_embeddings(101, mean_resizing=False)
        with pytest.raises(sluice.SluiceError, match="elements, not"):
            one_step(stepped, case, 1)
        return
    with pytest.raises(sluice.FailedPrecondition, match="change its shape"):
        model.resize_token_embeddings(101, mean_resizing=False)
    assert_same(dict(model.state_dict()), before, "values")
    one_step(stepped, case, 1)
