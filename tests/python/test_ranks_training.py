"""Two ranks train one model: as PyTorch's DistributedDataParallel does, and to the same bits at every stage."""

import itertools

import pytest
import ranks_jobs as jobs
from ranks_pair import Pair

STAGES, PLACES = (0, 1, 2), ("none", "cpu", "nvme")


@pytest.fixture(scope="module")
def processes():
    made = [Pair()]
    yield made
    made[-1].close()


@pytest.fixture
def pair(processes):
    if not processes[-1].alive:  # an earlier test failed
        processes.append(Pair())
    return processes[-1]


def close(mine, theirs, tolerance):
    return len(mine) == len(theirs) and all(abs(a - b) <= tolerance * max(1, abs(b)) for a, b in zip(mine, theirs))


@pytest.mark.parametrize("kind", jobs.MODELS)
def test_stages_and_places_come_to_the_same_bits_and_as_near_to_pytorch_as_fp32_is(pair, kind, tmp_path):
    expected = pair.run(jobs.train_ddp, kind)
    seen = set()
    for stage, place in itertools.product(STAGES, PLACES):
        results = pair.run(jobs.train, kind, jobs.given(stage, place, str(tmp_path)))
        for rank, (losses, norms, masters, states, parameters, *_, report) in enumerate(results):
            assert close(losses, expected[rank][0], 1e-5), (stage, place, rank)
            assert close(norms, expected[rank][1], 1e-5), (stage, place, rank)
            assert (report["rank"], report["ranks"], report["zero_stage"]) == (rank, 2, stage)
            seen.add((masters, states, parameters, tuple(norms)))
    assert len(seen) == 1
