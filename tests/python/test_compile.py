"""torch.compile inside units and across them, with the bits of the same compiled model kept whole."""

import pytest
import torch
from training import CLASSES, FEATURES, config, same, train

pytestmark = pytest.mark.filterwarnings("ignore")


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up = torch.nn.Linear(61, 122)
        self.down = torch.nn.Linear(122, 61)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(x)))


def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(FEATURES, 61), *[Block() for _ in range(4)], torch.nn.Linear(61, CLASSES)
    )


def compile_before(model):
    for block in model[1:5]:
        block.compile(backend="aot_eager")
    return model


def wrap(model):
    for index in range(1, 5):
        model[index] = torch.compile(model[index], backend="aot_eager")
    return model


@pytest.mark.parametrize("how", ["each unit, in place", "each unit, wrapped", "each unit, after", "the whole model"])
def test_compiled(engines, tmp_path, how):
    results = []
    for hbm in (None, 130_000):
        torch._dynamo.reset()
        model = make()
        if how == "each unit, in place":
            compile_before(model)
        elif how == "each unit, wrapped":
            wrap(model)
        given = config(tmp_path, sluice={"chunk_elements": 4096, "unit_elements": 20_000, "hbm": hbm})
        engine = engines(model, given)
        if how == "each unit, after":
            compile_before(model)
        elif how == "the whole model":
            model.compile(backend="aot_eager")
        results.append((train(engine, 3), list(engine.module_state_dict().values())))
        assert (engine.report()["counters"]["evictions"] > 0) == (hbm is not None)
    assert same(results[0], results[1])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
