"""Training, with generate() and evaluation by other doors between the steps: PyTorch's numbers, and the same bits whatever the
budget."""

import torch
from faces import Plain, assert_close, assert_same, one_step, opened, plain_copy

STEPS = 3


def trained(trainer, case):
    losses = torch.stack([one_step(trainer, case, step) for step in range(STEPS)])
    return losses, dict(trainer.values())


def test_training_gives_the_numbers_of_pytorch(case, face, tmp_path):
    expected = trained(Plain(case.make()), case)
    found = {}
    for budget in ("plain", "tiny"):
        with opened(face, case.make, budget, tmp_path) as trainer:
            found[budget] = trained(trainer, case)
        assert_close(found[budget][0], expected[0], f"losses with a {budget} budget")
        assert_close(found[budget][1], expected[1], f"values with a {budget} budget")
    assert_same(found["tiny"][0], found["plain"][0], "losses with both budgets")
    assert_same(found["tiny"][1], found["plain"][1], "values with both budgets")


def generated(model, case, step):
    inputs = case.batch(step)
    model.eval()
    output = model.generate(
        **{name: inputs[name] for name in case.prompt},
        **{"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True},
    )
    return {"tokens": output.sequences, "logits": torch.stack(output.logits)}


def evaluated(model, case, step):
    """By every door but forward, and by every leaf that is known well enough to be called alone."""
    model.eval()
    inputs = case.batch(step)
    found = {name: door(model, inputs) for name, door in case.doors.items()}
    generator = torch.Generator().manual_seed(step)
    for name, module in model.named_modules():
        called = type(module).forward
        if called is torch.nn.Linear.forward:
            found[name] = module(torch.randn(2, module.in_features, generator=generator))
        elif called is torch.nn.LayerNorm.forward:
            found[name] = module(torch.randn(2, *module.normalized_shape, generator=generator))
        elif called is torch.nn.Embedding.forward:
            found[name] = module(torch.arange(2))
    for name, parameter in model.named_parameters():
        found["sum of " + name] = parameter.sum()
    return found


def test_generate_and_other_doors_between_steps(case, face, budget, tmp_path):
    with opened(face, case.make, budget, tmp_path) as trainer, torch.no_grad():
        for step in range(2):
            with torch.enable_grad():
                one_step(trainer, case, step)
            found = [evaluated(trainer.model, case, step)]  # the first to use what is updated
            if case.prompt:
                found.append(generated(trainer.model, case, step))
            plain = plain_copy(trainer, case.make)
            expected = [evaluated(plain, case, step)]
            if case.prompt:
                expected.append(generated(plain, case, step))
            for mine, theirs in zip(found, expected):
                assert_same(mine, theirs, f"after step {step}")


def test_generate_is_the_first_to_use_what_is_updated(case, face, budget, tmp_path):
    with opened(face, case.make, budget, tmp_path) as trainer:
        one_step(trainer, case, 0)
        with torch.no_grad():
            found = generated(trainer.model, case, 0) if case.prompt else {}
            output = trainer.model.eval()(**case.batch(1)).loss
        plain = plain_copy(trainer, case.make).eval()
        with torch.no_grad():
            assert_same(found, generated(plain, case, 0) if case.prompt else {}, "generate()")
            assert_same(output, plain(**case.batch(1)).loss, "forward")


def test_gradients_by_other_doors(case, face, budget, tmp_path):
    """Backward of what was not computed by the model's own forward."""
    losses = [lambda m, i, door=door: door(m, i).float().square().mean() for door in case.doors.values()]
    plain = Plain(case.make())
    with opened(face, case.make, budget, tmp_path) as trainer:
        for step, loss_of in enumerate(losses):
            for each in (trainer, plain):
                each.model.train()
                torch.manual_seed(step)
                each.backward(loss_of(each.model, case.batch(step)))
                each.step()
        assert_close(dict(trainer.values()), plain.values(), "values")
