"""Units are layers, not the whole model: that is what a forward waits for, and what a small budget must hold."""

import pytest
import torch
from faces import FACES, opened

CONTAINERS = (torch.nn.ModuleList, torch.nn.Sequential)


def blocks_of(model):
    """Names of the innermost modules that are repeated: each has others of its class beside it, and children."""
    found = []
    for name, module in model.named_modules():
        children = [c for c in module.children() if any(True for _ in c.children())]
        classes = [type(c) for c in children]
        if isinstance(module, CONTAINERS):
            found += [f"{name}.{n}" for n, c in module.named_children() if classes.count(type(c)) > 1]
    return [name for name in found if not any(other.startswith(name + ".") for other in found)]


@pytest.mark.parametrize("face", [face for face in FACES if face != "overlap"])
def test_every_layer_is_a_unit(case, face, tmp_path):
    tiers = {"hbm": "16MiB", "pinned": "64MiB", "persistence_threshold": 0, "nvme_path": tmp_path}
    with opened(face, case.make, tiers, tmp_path) as trainer:
        blocks = blocks_of(trainer.model)
        assert len(blocks) == case.layers
        units = [[name for name, _ in unit.parameters] for unit in trainer.engine._units]
        assert trainer.report()["units"] == len(units)
        for block in blocks:
            with_it = [unit for unit in units if any(name.startswith(block + ".") for name in unit)]
            assert len(with_it) == 1 and all(name.startswith(block + ".") for name in with_it[0]), (block, with_it)
