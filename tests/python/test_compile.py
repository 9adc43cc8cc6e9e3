"""torch.compile inside units and across them, with the bits of the same compiled model kept whole."""

import pytest
import torch
from torch.utils.checkpoint import CheckpointError, checkpoint
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


class Inner(Block):
    """Its arithmetic is one graph, also where it is computed a second time."""

    def __init__(self, reentrant, past_hooks):
        super().__init__()
        self.norm = torch.nn.LayerNorm(61)
        self.compute = torch.compile(self._compute, backend="aot_eager", fullgraph=not past_hooks)
        self.reentrant, self.past_hooks = reentrant, past_hooks

    def _compute(self, x):
        return super().forward(self.norm(x))

    def forward(self, x):
        if self.past_hooks:
            return checkpoint(self.compute, x, use_reentrant=self.reentrant)
        return self.compute(x)


@pytest.mark.parametrize("reentrant, past_hooks", [(None, False), (False, False), (True, False), (False, True), (True, True)])
def test_compiled_inside_a_unit(engines, tmp_path, reentrant, past_hooks):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first = torch.nn.Linear(FEATURES, 61)
            self.blocks = torch.nn.ModuleList(Inner(reentrant, past_hooks) for _ in range(4))
            self.last = torch.nn.Linear(61, CLASSES)

        def forward(self, x):
            x = self.first(x)
            for block in self.blocks:
                whole = reentrant is None or past_hooks
                x = block(x) if whole else checkpoint(block, x, use_reentrant=reentrant)
            return self.last(x)

    results = []
    for hbm in (None, 200_000):
        torch._dynamo.reset()
        given = config(tmp_path, sluice={"chunk_elements": 4096, "unit_elements": 20_000, "hbm": hbm})
        engine = engines(Net(), given)
        if past_hooks and not reentrant:  # compiled anew, what was saved is not the same
            with pytest.raises(CheckpointError):
                train(engine, 1)
            return
        results.append((train(engine, 3), list(engine.module_state_dict().values())))
        assert (engine.report()["counters"]["evictions"] > 0) == (hbm is not None)
        assert engine.skipped_steps == 0
    assert same(results[0], results[1])
