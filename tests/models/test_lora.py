"""Adapters of PEFT over models on the tiers: the base is frozen, and what PEFT merges, disables and exports is what it does
to a plain model."""

import functools

import peft
import torch
from faces import HYPER, Plain, assert_close, assert_same, one_step, opened
from test_training import evaluated, generated

import sluice


def with_adapters(case, dtype=None):
    model = case.make()
    if dtype is not None:
        model.to(dtype)
    if len(case.lora) == 1 and case.lora[0].startswith(".*"):
        targets = case.lora[0]
    else:
        targets = list(case.lora)
    torch.manual_seed(3)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False)
    return peft.get_peft_model(model, config)


def step_of(trainer, case, step):
    loss = one_step(trainer, case, step)
    trainer.model.eval()
    return loss


def look(model, case, step):
    with torch.no_grad():
        found = {"loss": model(**case.batch(step)).loss}
        with model.disable_adapter():
            found["the base's loss"] = model(**case.batch(step)).loss
        if case.prompt:
            found |= generated(model, case, step)
    return found


def copy_of(trainer, make):
    model = make()
    model.load_state_dict(trainer.values())
    return model.eval()


def test_adapters_train_generate_and_are_disabled(case, face, budget, tmp_path):
    make = functools.partial(with_adapters, case)
    plain = Plain(make())
    with opened(face, make, budget, tmp_path) as trainer:
        for step in range(2):
            assert_close(step_of(trainer, case, step), step_of(plain, case, step), "loss")
            assert_same(look(trainer.model, case, step), look(copy_of(trainer, make), case, step), f"after step {step}")
        assert_close(dict(trainer.values()), plain.values(), "values")
        mine = peft.get_peft_model_state_dict(trainer.model)
        assert_close(mine, peft.get_peft_model_state_dict(plain.model), "the adapters that are exported")


def test_adapters_are_merged_and_unmerged_while_gathered(case, face, budget, tmp_path):
    make = functools.partial(with_adapters, case)
    with opened(face, make, budget, tmp_path) as trainer:
        step_of(trainer, case, 0)
        plain = copy_of(trainer, make)
        for each in (trainer.model, plain):
            with sluice.zero.GatheredParameters(list(each.parameters()), modifier_rank=0):
                each.merge_adapter()
                found = look_merged(each, case)
                each.unmerge_adapter()
            each.found = found
        assert_same(trainer.model.found, plain.found, "what a merged model gives")
        assert_close(dict(trainer.values()), dict(plain.state_dict()), "values", atol=1e-6)
        assert_close(look(trainer.model, case, 1), look(plain, case, 1), "afterwards")
        step_of(trainer, case, 1)  # goes on


def look_merged(model, case):
    with torch.no_grad():
        found = {"loss": model(**case.batch(1)).loss}
        if case.prompt:
            found |= generated(model, case, 1)
        found |= {name: value.clone() for name, value in model.state_dict().items()}
    return found
