"""Which cores a local rank has, over machines of many shapes; and that it has them afterwards."""

import json
import os
import random
import subprocess
import sys

import pytest

from sluice.ranks import RankPlace, cores_of_local_rank, few_cores_warning
from sluice.ranks.cores import physical_cores
from sluice.ranks.machine import node_of_gpu, nodes_of_machine, siblings_of


def machine(physical, threads, far=True):
    """(siblings, nodes) of a machine with so many physical cores on each node. `far`: siblings are numbered as on most
    machines, all first threads and then all second ones; or else side by side."""
    total, siblings, nodes, at = sum(physical), {}, {}, 0
    for node, count in enumerate(physical):
        nodes[node] = []
        for core in range(at, at + count):
            those = [core + thread * total if far else core * threads + thread for thread in range(threads)]
            nodes[node] += those
            siblings.update({one: tuple(those) for one in those})
        at += count
    return siblings, nodes


def shapes(seed):
    """Machines of 1 to 256 cores and 1 to 8 nodes, even and not, of which all or some cores are allowed."""
    draw = random.Random(seed)
    for _ in range(40):
        nodes = draw.choice([1, 1, 2, 2, 3, 4, 8])
        threads = draw.choice([1, 2, 2, 4])
        even = draw.random() < 0.5
        most = max(1, 256 // (nodes * threads))
        size = draw.randint(1, most)
        physical = [size if even else draw.randint(0 if nodes > 1 else 1, most) for _ in range(nodes)]
        if not sum(physical):
            physical[0] = 1
        siblings, by_node = machine(physical, threads, draw.random() < 0.5)
        allowed = sorted(siblings)
        if draw.random() < 0.4:
            allowed = sorted(draw.sample(allowed, draw.randint(1, len(allowed))))
        for world in sorted({1, 2, draw.randint(1, 16), nodes, draw.choice([3, 8, 64])}):
            wants = draw.choice([None, None, "even", "random", "some"])
            wanted = {
                None: None,
                "even": [rank * nodes // world for rank in range(world)],
                "random": [draw.randrange(nodes) for _ in range(world)],
                "some": [draw.choice([None, draw.randrange(nodes), 99]) for _ in range(world)],
            }[wants]
            if wanted is not None and not {node for node, cores in by_node.items() if set(cores) & set(allowed)} & set(wanted):
                wanted = None
            yield allowed, siblings, by_node, world, wanted


def shares(allowed, siblings, nodes, world, wanted):
    prefer = None if wanted is None else wanted.__getitem__
    return [cores_of_local_rank(allowed, siblings, nodes, rank, world, prefer) for rank in range(world)]


@pytest.mark.parametrize("seed", range(8))
def test_ranks_share_without_overlap(seed):
    for shape in shapes(seed):
        allowed, siblings, nodes, world, wanted = shape
        found = shares(*shape)
        everything = [core for cores in found for core in cores]
        assert all(cores and cores == tuple(sorted(cores)) for cores in found)
        assert set(everything) <= set(allowed)
        if len(allowed) >= world:
            assert len(set(everything)) == len(everything)
            if wanted is None and world < len(physical_cores(allowed, siblings, nodes)):
                assert set(everything) == set(allowed)
        elif wanted is None:
            assert set(everything) == set(allowed)
            assert max(everything.count(core) for core in allowed) <= -(-world // len(allowed))


@pytest.mark.parametrize("seed", range(8))
def test_pieces_of_a_node_are_whole_cores_contiguous_and_equal(seed):
    for shape in shapes(seed):
        allowed, siblings, nodes, world, wanted = shape
        if len(allowed) < world:
            continue
        found = shares(*shape)
        by_node = physical_cores(allowed, siblings, nodes)
        node_of = {core: node for node, groups in by_node.items() for group in groups for core in group}
        if wanted is None and world < len(by_node):
            order = [rank for node in by_node for rank, cores in enumerate(found) if {node_of[c] for c in cores} & {node}]
            assert order == sorted(order) and len(order) == len(by_node)  # whole nodes, side by side
            continue
        assert all(len({node_of[core] for core in cores}) == 1 for cores in found)
        for node, groups in by_node.items():
            mates = [set(cores) for cores in found if node_of[cores[0]] == node]
            line = [core for group in groups for core in group]
            assert not mates or set().union(*mates) == set(line)
            assert all(line.index(min(m, key=line.index)) + len(m) - 1 == line.index(max(m, key=line.index)) for m in mates)
            if len(mates) <= len(groups):
                owners = [[at for at, mate in enumerate(mates) if mate & set(group)] for group in groups]
                assert not mates or all(len(those) == 1 for those in owners)
                sizes = [sum(1 for group in groups if mate & set(group)) for mate in mates]
            else:
                sizes = [len(mate) for mate in mates]
            assert not sizes or max(sizes) - min(sizes) <= 1
            if wanted is None:
                assert len(mates) <= len(groups) or world > sum(map(len, by_node.values()))


@pytest.mark.parametrize("seed", range(8))
def test_a_rank_is_on_its_gpus_node_while_that_has_cores(seed):
    for allowed, siblings, nodes, world, wanted in shapes(seed):
        if wanted is None or len(allowed) < world:
            continue
        found = shares(allowed, siblings, nodes, world, wanted)
        for rank, node in enumerate(wanted):
            here = set(nodes.get(node, ())) & set(allowed)
            if sum(1 for earlier in wanted[:rank] if earlier == node) < len(here):
                assert set(found[rank]) <= here


@pytest.mark.parametrize("seed", range(4))
def test_nobody_is_crowded_where_there_is_room(seed):
    """Without preferences the poorest rank has what it would have if every node were shared by its best number of ranks."""
    for allowed, siblings, nodes, world, wanted in shapes(seed):
        by_node = physical_cores(allowed, siblings, nodes)
        groups = [len(those) for those in by_node.values()]
        if wanted is not None or not len(by_node) <= world <= sum(groups):
            continue
        found = shares(allowed, siblings, nodes, world, None)
        group_of = {core: (node, at) for node, those in by_node.items() for at, one in enumerate(those) for core in one}
        poorest = min(len({group_of[core] for core in cores}) for cores in found)
        best = max(size for size in range(1, max(groups) + 1) if sum(count // size for count in groups) >= world)
        assert poorest == best


@pytest.mark.parametrize(
    "physical, threads, world, wanted, found",
    [
        ([4], 1, 1, None, [(0, 1, 2, 3)]),
        ([4], 1, 2, None, [(0, 1), (2, 3)]),
        ([4], 2, 2, None, [(0, 1, 4, 5), (2, 3, 6, 7)]),
        ([2], 2, 4, None, [(0,), (2,), (1,), (3,)]),
        ([2, 2], 1, 1, None, [(0, 1, 2, 3)]),
        ([4, 4], 1, 3, None, [(0, 1), (2, 3), (4, 5, 6, 7)]),
        ([2, 6], 1, 2, None, [(2, 3, 4), (5, 6, 7)]),  # the poorest decides how fast all are
        ([2, 6], 1, 4, None, [(0, 1), (2, 3), (4, 5), (6, 7)]),
        ([1, 1, 1, 1], 1, 2, None, [(0, 1), (2, 3)]),
        ([9, 1, 1, 1], 1, 3, None, [tuple(range(9)), (9, 10), (11,)]),
        ([2], 1, 4, None, [(0,), (0,), (1,), (1,)]),
        ([1], 1, 3, None, [(0,), (0,), (0,)]),
        ([4, 4], 1, 4, [1, 0, 1, 0], [(4, 5), (0, 1), (6, 7), (2, 3)]),
        ([4, 4], 1, 2, [1, 1], [(4, 5), (6, 7)]),
        ([4, 4], 1, 2, [1, None], [(4, 5, 6, 7), (0, 1, 2, 3)]),
        ([1, 4], 1, 3, [0, 0, 0], [(0,), (1, 2), (3, 4)]),
        ([4, 4], 1, 2, [7, -1], [(0, 1, 2, 3), (4, 5, 6, 7)]),
        ([1, 1], 1, 4, [1, 1, 1, 0], [(1,), (1,), (1,), (0,)]),
    ],
)
def test_machines_by_hand(physical, threads, world, wanted, found):
    siblings, nodes = machine(physical, threads)
    assert shares(sorted(siblings), siblings, nodes, world, wanted) == found


def test_a_machine_of_which_nothing_is_known_is_one_node_of_single_cores():
    assert shares([3, 5, 7, 9], {}, {}, 2, None) == [(3, 5), (7, 9)]
    with pytest.raises(ValueError, match="no core"):
        cores_of_local_rank([], {}, {}, 0, 1)
    for rank, world in ((-1, 2), (2, 2), (0, 0)):
        with pytest.raises(ValueError, match="local rank"):
            cores_of_local_rank([0], {}, {}, rank, world)


def test_what_the_kernel_says(tmp_path):
    def put(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    assert siblings_of([0, 1], tmp_path) == {} and nodes_of_machine(tmp_path) == {} and node_of_gpu("0", tmp_path) is None
    put("sys/devices/system/cpu/cpu0/topology/thread_siblings_list", "0,64\n")
    put("sys/devices/system/node/node1/cpulist", "2-3\n")
    put("sys/devices/system/node/node0/cpulist", "0-1\n")
    put("sys/devices/system/node/node2/cpulist", "\n")  # memory only
    assert siblings_of([0, 1], tmp_path) == {0: (0, 64)}
    assert nodes_of_machine(tmp_path) == {0: (0, 1), 1: (2, 3)}
    for bus, node in (("0000:3B:00.0", "0"), ("0000:AF:00.0", "1"), ("0000:D8:00.0", "-1")):
        put(f"proc/driver/nvidia/gpus/{bus}/information", f"Model: x\nGPU UUID: \t GPU-{bus[5:7]}-77\n")
        put(f"sys/bus/pci/devices/{bus.lower()}/numa_node", f"{node}\n")
    found = [node_of_gpu(gpu, tmp_path) for gpu in ("0", "1", "2", "3", "GPU-AF-77", "GPU-AF", "GPU-", "MIG-1")]
    assert found == [0, 1, None, None, 1, 1, None, None]


# Bound for real


BINDS = """
import json, os, sys, threading, warnings
from sluice.ranks import RankPlace, bind
stop = threading.Event()
threading.Thread(target=stop.wait, daemon=True).start()
environment, arguments, place = json.loads(sys.argv[1])
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    try:
        bound = bind(RankPlace(*place, None, None), environment=environment, **arguments)
        told = [list(bound.cores), bound.physical, bound.why]
    except Exception as error:
        told = [type(error).__name__, str(error)]
masks = sorted({tuple(sorted(os.sched_getaffinity(int(task)))) for task in os.listdir("/proc/self/task")})
threads = sys.modules["torch"].get_num_threads() if arguments.get("threads") else None
print(json.dumps([told, masks, [str(one.message) for one in said], threads]))
"""
CORES = sorted(os.sched_getaffinity(0))


def binds(place, environment=None, **arguments):
    given = json.dumps([environment or {}, arguments, place])
    stub = "import sys, types\np = types.ModuleType('sluice')\np.__path__ = [sys.argv[2]]\nsys.modules['sluice'] = p\n"
    folder = os.path.dirname(os.path.abspath(sys.modules["sluice"].__file__))
    command = [sys.executable, "-P", "-c", stub + BINDS, given, folder]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(said)


@pytest.mark.skipif(len(CORES) < 2, reason="there is one core")
def test_every_thread_is_bound_and_few_cores_are_warned_of():
    halves = [CORES[: len(CORES) // 2], CORES[len(CORES) // 2 :]]
    for rank in (0, 1):
        (cores, physical, why), masks, said, threads = binds((rank, 2, rank, 2, "torchrun"), threads=rank == 0)
        assert masks == [cores] and "2" in why and 1 <= physical <= len(cores)
        assert threads == (physical if rank == 0 else None)
        if len(nodes_of_machine()) <= 1 and all(len(s) == 1 for s in siblings_of(CORES).values()):
            assert cores == halves[rank]
        assert bool(said) == (len(cores) < 2) and all(f"rank {rank} has 1 core" in words for words in said)


def test_more_ranks_than_cores_share_them_and_are_told():
    world = len(CORES) + 1
    _, masks, said, _ = binds((world - 1, world, world - 1, world, "torchrun"))
    assert len(masks) == len(masks[0]) == 1 and f"{world} ranks of this host share {len(CORES)} core" in said[0]


def test_cores_may_be_listed():
    (cores, *_), masks, said, _ = binds((0, 1, 0, 1, "none"), cores=[CORES[0]])
    assert [cores] == masks == [[CORES[0]]] and "1 core" in said[0]
    for wrong in ([], [CORES[0], 60000]):
        error, masks, *_ = binds((0, 1, 0, 1, "none"), cores=wrong)
        assert error[0] == "RankError" and masks == [CORES]


@pytest.mark.parametrize("source, environment", [("slurm", {"SLURM_CPUS_ON_NODE": "9999"}), ("openmpi", {}), ("pmi", {})])
def test_a_rank_keeps_the_cores_that_its_launcher_gave_it(source, environment):
    (cores, _, why), masks, *_ = binds((1, 2, 1, 2, source), environment)
    if source == "slurm":
        assert [cores] == masks == [CORES] and "slurm gave this rank" in why
    else:  # of all that there are, nothing was given
        assert ("share" in why) == (len(CORES) == os.cpu_count())


@pytest.mark.parametrize("source", ["torchrun", "openmpi", "pmi", "slurm", "none"])
def test_a_rank_with_few_cores_is_told_what_to_set(source):
    place = RankPlace(3, 8, 1, 4, source, None, None)
    advice = {"slurm": "--cpus-per-task", "openmpi": "--map-by", "pmi": "-bind-to", "torchrun": "fewer ranks", "none": "allow"}
    assert "rank 3 has 1 core" in few_cores_warning(place, 1) and advice[source] in few_cores_warning(place, 1)
    assert few_cores_warning(place, 2) is None and few_cores_warning(place, 64) is None
