"""A part of ZeRO's table (ranks_table.py): every stage, states and parameters on every tier, in worlds of one to four ranks, come to the
same bits in each world, near PyTorch's losses, in the bytes that the formulas say. The script runs all of it."""

import pytest
import ranks_table
from ranks_table import Case, Table

# By world: stage, states, parameters. Every stage in each; every pair of places in some.
PARTS = {
    1: [(0, "none", "none"), (2, "nvme", "cpu"), (3, "cpu", "nvme")],
    2: [(0, "cpu", "none"), (1, "nvme", "none"), (2, "none", "cpu"), (3, "none", "nvme"), (3, "nvme", "cpu")],
    3: [(0, "nvme", "nvme"), (1, "cpu", "cpu"), (3, "nvme", "nvme")],
    4: [(1, "none", "none"), (2, "nvme", "cpu"), (3, "cpu", "none")],
}
STEPS = 6  # past the steps that overflow


@pytest.mark.parametrize("world", PARTS)
def test_places_come_to_the_same_bits_near_pytorch_in_the_bytes_of_the_formula(ranks, world, tmp_path):
    table = Table(ranks, str(tmp_path), STEPS)
    for part in PARTS[world]:
        table.run(Case(world, *part))
    assert table.farthest[world] <= 1e-5


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_an_overflow_on_one_rank_is_left_out_by_all_in_half_precision(ranks, dtype, tmp_path):
    table = Table(ranks, str(tmp_path), STEPS)
    for part in ((0, "cpu", "none"), (1, "nvme", "none"), (3, "nvme", "nvme")):
        table.run(Case(2, *part, dtype))
    table.run(Case(3, 2, "cpu", "none", dtype))


def test_the_arithmetic_counts_the_model():
    """formula() knows nothing of what the planner or the model say."""
    model = ranks_table.Odd()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (trained, trained + ranks_table.FROZEN) == (ranks_table.TRAINED, sum(p.numel() for p in model.parameters()))
    assert sum(ranks_table.formula(Case(4, 3, "nvme", "nvme", "bf16")).values()) == (14 * trained + 2 * (trained + ranks_table.FROZEN)) / 4
    assert sum(ranks_table.formula(Case(4, 1, "cpu", "none")).values()) == 16 * trained / 4 + 4 * (trained + ranks_table.FROZEN)
    counts = [ranks_table.sizes(4, step) for step in range(ranks_table.STEPS)]
    assert all(len(set(of_ranks)) > 1 for of_ranks in counts[:-1]) and sum(counts[-1]) < min(map(sum, counts[:-1]))
