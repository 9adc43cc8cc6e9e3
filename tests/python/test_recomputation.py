"""Activation checkpointing: regions of one and of several units, around modules and inside them, each compared bit for bit
with the same model in plain PyTorch."""

import functools

import pytest
import sluice
import torch
from nets import HIDDEN, Block, Net, Scaled, given, straight
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    set_checkpoint_early_stop,
)
from training import SIMULATION, batch, loss_of, one_step, paired, same, smallest


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("span", [1, 2, 3])
def test_recomputation(engines, tmp_path, reentrant, span):
    """Regions of one and of several units, with room for the units of one region and little more."""

    def run(blocks, x):
        for first in range(0, len(blocks), span):
            x = checkpoint(straight, blocks[first : first + span], x, use_reentrant=reentrant)
        return x

    engine = paired(engines, lambda: Net(run), given(tmp_path), one_step, hbm=span + 0.5 if span > 1 else 1)
    assert engine.module.blocks[0].passes == 6
    assert engine.report()["counters"]["evictions"] > 0


class Inside(torch.nn.Module):
    """Regions that begin inside the module, past its hooks: the second of two is over the whole of the inner block, and the
    module's own parameter is looked up in both."""

    def __init__(self, reentrant):
        super().__init__()
        self.block = Block()
        self.scale = torch.nn.Parameter(torch.ones(HIDDEN))
        self.reentrant = reentrant

    def _first(self, x):
        return x + self.block.down(torch.tanh(self.block.up(x))) * self.scale

    def _second(self, x):
        return self.block(x) * self.scale

    def forward(self, x):
        x = checkpoint(self._first, x, use_reentrant=self.reentrant)
        return checkpoint(self._second, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("frozen", ["", "norm", "scale", "block"])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_recomputation_that_saves_parameters_themselves(engines, tmp_path, reentrant, frozen, nested):
    """Several layers are one region; nested: each is one of its own in it. Layers are cut into several units."""

    def layers(blocks, x):
        for block in blocks:
            x = checkpoint(block, x, use_reentrant=reentrant) if nested else block(x)
        return x

    def run(blocks, x):
        for first in range(0, len(blocks), 2):
            x = checkpoint(layers, blocks[first : first + 2], x, use_reentrant=reentrant)
        return x

    def make():
        net = Net(run)
        net.blocks = torch.nn.ModuleList(Scaled() for _ in range(4))
        for name, parameter in net.blocks.named_parameters():
            parameter.requires_grad_(not frozen or frozen not in name)
        return net

    engine = paired(engines, make, given(tmp_path, unit_elements=9_000), one_step, hbm=5)
    assert engine.report()["counters"]["evictions"] > 0


def save_some(ctx, op, *args, **kwargs):
    return CheckpointPolicy.MUST_SAVE if op == torch.ops.aten.addmm.default else CheckpointPolicy.PREFER_RECOMPUTE


@pytest.mark.parametrize("past_hooks", [False, True])
def test_recomputation_by_a_policy(engines, tmp_path, past_hooks):
    """The policy sees the operations of the model and no others."""
    contexts = functools.partial(create_selective_checkpoint_contexts, save_some)

    class Inside(Scaled):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=False, context_fn=contexts)

    def run(blocks, x):
        for block in blocks:
            x = block(x) if past_hooks else checkpoint(block, x, use_reentrant=False, context_fn=contexts)
        return x

    def make():
        net = Net(run)
        net.blocks = torch.nn.ModuleList((Inside if past_hooks else Scaled)() for _ in range(4))
        return net

    engine = paired(engines, make, given(tmp_path), one_step, hbm=1)
    assert engine.report()["counters"]["evictions"] > 0


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_of_recurrent_layers(engines, tmp_path, reentrant):
    """They have their own list of their parameters, and remake it when a parameter is another than before."""

    class Recurrent(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.LSTM(HIDDEN, HIDDEN)

        def forward(self, x):
            return x + self.layers(x)[0]

    def run(blocks, x):
        for block in blocks:
            x = checkpoint(block, x, use_reentrant=reentrant)
        return x

    def make():
        net = Net(run)
        net.blocks = torch.nn.ModuleList(Recurrent() for _ in range(5))
        return net

    engine = paired(engines, make, given(tmp_path, unit_elements=40_000), one_step, hbm=1)
    assert engine.report()["counters"]["evictions"] > 0


def test_recomputation_that_swaps_parameters(engines, tmp_path):
    """What torch.func.functional_call puts back is the parameter, not what it found."""

    others = {name: torch.full(p.shape, 0.01) for name, p in Block().named_parameters()}

    def twice(block, x):
        return torch.func.functional_call(block, others, (x,)) + block(x)

    def run(blocks, x):
        for block in blocks:
            x = checkpoint(twice, block, x, use_reentrant=False)
        return x

    engine = paired(engines, lambda: Net(run), given(tmp_path, hbm="64MiB"), one_step)
    assert all(isinstance(p, torch.nn.Parameter) for m in engine.module.modules() for p in m._parameters.values())


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_recomputation_past_the_hooks(engines, tmp_path, reentrant, whole):
    """As models do whose layers checkpoint their own forward. Each layer is one unit, or several, one of them its scale's."""

    def make():
        net = Net(straight)
        net.blocks = torch.nn.ModuleList(Inside(reentrant) for _ in range(5))
        return net

    own = given(tmp_path, unit_elements=20_000 if whole else 9_000)
    engine = paired(engines, make, own, one_step, hbm=1 if whole else 3)
    assert engine.report()["counters"]["evictions"] > 0


def test_recomputation_that_stops_early(engines, tmp_path):
    """The pass through the last block of a region ends with an exception of PyTorch's own; its unit is released all the
    same. (Its `down` is not needed to compute anything that backward wants.)"""
    ends = []

    def run(blocks, x):
        x = checkpoint(straight, blocks[:2], x, use_reentrant=False)
        x = checkpoint(straight, blocks[2:4], x, use_reentrant=False)
        return straight(blocks[4:], x)

    def make():
        net = Net(run)
        net.blocks[1].down.register_forward_hook(lambda *a: ends.append(1))
        return net

    with set_checkpoint_early_stop(True):
        engine = paired(engines, make, given(tmp_path), one_step, hbm=2.5)
    assert len(ends) == 6, "early stop did not stop early, so this proves nothing"
    assert engine.report()["counters"]["evictions"] > 0


def test_a_region_over_too_many_units_is_an_error_that_names_them(engines, tmp_path):
    """Never reuse, never wrong gradients: recomputing six blocks at once needs them all, and there is room for two."""
    whole = lambda blocks, x: checkpoint(straight, blocks, x, use_reentrant=False)
    own = given(tmp_path, library=SIMULATION, simulated_seed=1)  # its clock does not make us wait
    own["sluice"]["hbm"] = int(2.2 * smallest(Net(whole), own, "hbm"))
    engine = engines(Net(whole), own)
    x, y = batch(0)
    loss = loss_of(engine(x), y)
    with pytest.raises(sluice.ResourceExhausted, match=r"no room in HBM for unit 'blocks.2'.*'blocks.0'.*'blocks.1'"):
        engine.backward(loss)
    del loss
    # The engine is as good as before: without the region it trains as if nothing had been.
    engine.zero_grad()
    engine.module.run = straight
    other = engines(Net(straight), given(tmp_path))
    assert same(one_step(engine, 1), one_step(other, 1))
    assert same(dict(engine.fp32_state_dict()), dict(other.fp32_state_dict()))
