"""Gradient checkpointing of both kinds, whose regions are layers: the numbers of PyTorch. (A region that is not reentrant holds all
that it has used until its backward is over, so a small budget must hold a region's units.)"""

import pytest
import torch
from faces import Plain, assert_close, assert_same, one_step, opened

KINDS = {"reentrant": True, "not reentrant": False}


@pytest.fixture(params=KINDS)
def reentrant(request):
    return KINDS[request.param]


def checkpointed(case, reentrant):
    def make():
        model = case.make()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        return model

    return make


def trained(trainer, case):
    losses = torch.stack([one_step(trainer, case, step) for step in range(2)])
    return losses, dict(trainer.values())


def test_recomputation_gives_the_numbers_of_pytorch(case, face, reentrant, tmp_path):
    make = checkpointed(case, reentrant)
    try:
        expected = trained(Plain(make()), case)
    except RuntimeError as error:
        pytest.skip(f"PyTorch itself can't: {error}")
    found = {}
    for budget in ("plain", "tiny"):
        with opened(face, make, budget, tmp_path, whole_layers=True) as trainer:
            found[budget] = trained(trainer, case)
        assert_close(found[budget][0], expected[0], f"losses with a {budget} budget")
        assert_close(found[budget][1], expected[1], f"values with a {budget} budget")
    assert_same(found["tiny"][1], found["plain"][1], "values with both budgets")
