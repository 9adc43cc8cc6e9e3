"""A mixture of experts whose ranks run different ones in every step comes to the bits of a plain loop, and nobody waits for ever."""

import pytest
import ranks_experts as experts

STEPS = 6


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_with_experts_of_their_own_come_to_a_plain_loops_bits(ranks, world, tmp_path):
    losses, masters = experts.expected(world, STEPS)
    assert len({tuple(of_rank) for of_rank in losses}) == world
    ways = [(stage, "none") for stage in range(4)] + [(3, "cpu"), (3, "nvme")] if world == 2 else [(world - 2, "nvme"), (3, "cpu")]
    seen = set()
    for stage, place in ways:
        results = ranks.run(experts.run, stage, place, str(tmp_path), STEPS, world=world)
        assert [result[0] for result in results] == losses, (stage, place)
        assert {result[1] for result in results} == {masters}, (stage, place)
        seen |= {tuple(result[2]) for result in results}
    assert len(seen) == 1


@pytest.mark.parametrize("stage", [1, 3])
def test_so_they_do_over_several_micro_steps(ranks, stage, tmp_path):
    losses, masters = experts.expected(2, STEPS, accumulation=3)
    results = ranks.run(experts.run, stage, "cpu", str(tmp_path), STEPS, 3)
    assert [result[:2] for result in results] == [(of_rank, masters) for of_rank in losses]


@pytest.mark.parametrize("busy", [2, 6])
def test_so_they_do_beside_busy_processes(ranks, busy, tmp_path):
    losses, masters = experts.expected(2, STEPS)
    with experts.Busy(busy):
        results = ranks.run(experts.run, 3, "cpu", str(tmp_path), STEPS)
    assert [result[:2] for result in results] == [(of_rank, masters) for of_rank in losses]
