"""Which rank a process is: every launcher's environment, whole, in part and contradicting itself."""

import itertools
import warnings

import pytest

from sluice.ranks import RankError, RankPlace, find_place
from sluice.ranks.host_lists import cores_in, hosts_in, tasks_of_node

# source: (names of rank, world, local rank, local world, what else it says, where rank 0 is then)
SOURCES = {
    "torchrun": (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
        {"MASTER_ADDR": "alpha", "MASTER_PORT": "1234"},
        ("alpha", 1234),
    ),
    "openmpi": (
        tuple(f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")),
        {"MASTER_ADDR": "alpha"},
        ("alpha", 29500),
    ),
    "pmi": (
        ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
        {"MASTER_ADDR": "alpha", "MASTER_PORT": "1234"},
        ("alpha", 1234),
    ),
    "slurm": (
        ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE"),
        {"SLURM_STEP_ID": "0", "SLURM_JOB_NODELIST": "node[07-09,11],x", "SLURM_JOB_ID": "30001"},
        ("node07", 15001),
    ),
}
NUMBERS = (5, 8, 1, 4)


def environment(source, numbers=NUMBERS):
    names, more, _ = SOURCES[source]
    return {**dict(zip(names, map(str, numbers))), **more}


@pytest.mark.parametrize("source", SOURCES)
def test_every_launcher_is_understood(source):
    for world, local_world in ((1, 1), (2, 1), (2, 2), (8, 4), (512, 8)):
        for rank in {0, 1, world - 1} & set(range(world)):
            place = find_place(environment(source, (rank, world, rank % local_world, local_world)))
            assert place == RankPlace(rank, world, rank % local_world, local_world, source, *SOURCES[source][2])
            assert place.rendezvous() == SOURCES[source][2]


def test_an_environment_that_says_nothing_is_one_rank():
    for more in ({}, {"MASTER_ADDR": "alpha"}, {"RANK": "", "WORLD_SIZE": ""}, {"PATH": "/bin", "SLURM_JOB_ID": "7"}):
        assert find_place(more) == RankPlace(0, 1, 0, 1, "none", None, None)
    assert find_place({}).rendezvous() == ("127.0.0.1", 29500)


@pytest.mark.parametrize("source", SOURCES)
def test_half_of_it_is_an_error_that_names_both_halves(source):
    names = SOURCES[source][0]
    for count in range(1, 4):
        for there in itertools.combinations(range(4), count):
            half = environment(source)
            for at in set(range(4)) - set(there):
                del half[names[at]]
            kept = [names[at] for at in there]
            if source == "torchrun" and kept == ["LOCAL_WORLD_SIZE"]:
                continue  # says nothing of a rank
            with pytest.raises(RankError) as error:
                find_place(half)
            missing = set(names) - set(kept)
            assert any(name in str(error.value).replace(",", " ").split() for name in missing), str(error.value)


@pytest.mark.parametrize("source", SOURCES)
def test_a_world_of_one_needs_no_local_ranks(source):
    alone = environment(source, (0, 1, 0, 1))
    names = SOURCES[source][0]
    del alone[names[3]]
    for name in (names[2], names[0]):  # its rank neither, but to Slurm, which says it of every task
        del alone[name]
        if name != names[0] or source != "slurm":
            assert find_place(alone) == RankPlace(0, 1, 0, 1, source, *SOURCES[source][2])
    if source == "torchrun":
        assert find_place({"WORLD_SIZE": "1"}) == RankPlace(0, 1, 0, 1, "torchrun", None, None)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize("wrong", ["-1", "1.0", "two", "0x1", " 1", "1" * 10, "٣"])
def test_what_is_no_number_is_an_error_that_names_it(source, at, wrong):
    name = SOURCES[source][0][at]
    with pytest.raises(RankError, match=rf"^{name} must be a whole number"):
        find_place({**environment(source), name: wrong})


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    "numbers, named",
    [((8, 8, 1, 4), (0, 1)), ((9, 8, 1, 4), (0, 1)), ((5, 8, 4, 4), (2, 3)), ((1, 2, 1, 4), (1, 3)), ((0, 1, 0, 2), (1, 3))],
)
def test_contradictions_name_the_variables(source, numbers, named):
    with pytest.raises(RankError) as error:
        find_place(environment(source, numbers))
    assert all(SOURCES[source][0][at] in str(error.value) for at in named)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("port", ["0", "65536", "http", "-1"])
def test_a_port_that_is_none_is_an_error(source, port):
    with pytest.raises(RankError, match="^MASTER_PORT"):
        find_place({**environment(source), "MASTER_PORT": port})


@pytest.mark.parametrize("missing", [("MASTER_ADDR",), ("MASTER_PORT",), ("MASTER_ADDR", "MASTER_PORT")])
def test_torchrun_says_where_rank_0_is(missing):
    lacking = {name: value for name, value in environment("torchrun").items() if name not in missing}
    with pytest.raises(RankError, match=missing[0]):
        find_place(lacking)


@pytest.mark.parametrize("inner, outer", [(a, b) for a, b in itertools.permutations(SOURCES, 2)])
def test_the_innermost_launcher_is_believed(inner, outer):
    order = ["torchrun", "openmpi", "pmi", "slurm"]
    both = {**environment(outer, (0, 2, 0, 1)), **environment(inner)}
    assert find_place(both).source == min(inner, outer, key=order.index)


@pytest.mark.parametrize("outer", ["openmpi", "pmi", "slurm"])
def test_a_script_may_set_rank_and_world_by_hand_from_what_its_launcher_says(outer):
    by_hand = {**environment(outer), "RANK": "5", "WORLD_SIZE": "8", "MASTER_ADDR": "alpha", "MASTER_PORT": "1234"}
    assert find_place(by_hand) == RankPlace(*NUMBERS, outer, "alpha", 1234)
    with pytest.raises(RankError, match="LOCAL_RANK"):
        find_place({**by_hand, "RANK": "6"})


@pytest.mark.parametrize("source", ["openmpi", "pmi"])
def test_mpi_says_where_rank_0_is_on_one_host_only(source):
    def without_address(numbers):
        return {name: value for name, value in environment(source, numbers).items() if not name.startswith("MASTER")}

    assert find_place(without_address((1, 4, 1, 4))).rendezvous() == ("127.0.0.1", 29500)
    place = find_place(without_address(NUMBERS))
    assert place.master_addr is None
    with pytest.raises(RankError, match="MASTER_ADDR"):
        place.rendezvous()


# Slurm's own words


def test_a_step_of_slurm_is_smaller_than_its_job():
    step = {"SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_NODELIST": "node09", "SLURM_NTASKS": "8"}
    job = environment("slurm", (2, 8, 2, 4))
    assert find_place({**job, **step}) == RankPlace(2, 3, 2, 3, "slurm", "node09", 15001)


@pytest.mark.parametrize("node, local_world", [(0, 4), (1, 4), (2, 3)])
def test_hosts_with_different_numbers_of_tasks(node, local_world):
    uneven = {"SLURM_STEP_TASKS_PER_NODE": "4(x2),3", "SLURM_NODEID": str(node)}
    place = find_place({**environment("slurm", (node * 4, 11, 0, 9)), **uneven})
    assert (place.local_rank, place.local_world) == (0, local_world)
    with pytest.raises(RankError, match="SLURM_STEP_TASKS_PER_NODE.*node 3"):
        find_place({**environment("slurm", (node * 4, 11, 0, 9)), **uneven, "SLURM_NODEID": "3"})


def test_pmi_under_srun_is_slurms():
    both = {**environment("slurm"), "PMI_RANK": "5", "PMI_SIZE": "8"}
    assert find_place(both).source == "slurm"


def test_a_batch_script_is_one_process_and_is_told_of_srun():
    batch = environment("slurm", (0, 8, 0, 4))
    del batch["SLURM_STEP_ID"]
    with pytest.warns(RuntimeWarning, match="SLURM_NTASKS is 8.*srun"):
        assert find_place(batch).world == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_place({**batch, "SLURM_NTASKS": "1"}).source == "none"


def test_slurm_without_a_list_of_nodes_needs_an_address():
    bare = environment("slurm")
    del bare["SLURM_JOB_NODELIST"]
    with pytest.raises(RankError, match="SLURM_JOB_NODELIST"):
        find_place(bare)
    assert find_place({**bare, "MASTER_ADDR": "beta"}).master_addr == "beta"


@pytest.mark.parametrize(
    "text, hosts",
    [
        ("a", ["a"]),
        ("a,b-1.c", ["a", "b-1.c"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("n[08-11,3]", ["n08", "n09", "n10", "n11", "n3"]),
        ("n[1-2]-ib,login", ["n1-ib", "n2-ib", "login"]),
        ("r[1-2]n[3,05]", ["r1n3", "r1n05", "r2n3", "r2n05"]),
        ("[1-2]", ["1", "2"]),
        ("n[098-101]", ["n098", "n099", "n100", "n101"]),
    ],
)
def test_lists_of_hosts(text, hosts):
    assert list(hosts_in(text)) == hosts


@pytest.mark.parametrize("text", ["", ",a", "a,", "n[", "n]", "n[]", "n[2-1]", "n[a]", "n[1-]", "n[[1]]", "a b", "n[1-2", "-;"])
def test_lists_that_are_none(text):
    with pytest.raises(ValueError):
        list(hosts_in(text))
    if text:
        with pytest.raises(RankError, match="SLURM_JOB_NODELIST"):
            find_place({**environment("slurm"), "SLURM_JOB_NODELIST": text if text != "a," else ",a"})


def test_the_first_of_a_million_hosts_costs_no_more_than_the_first():
    assert find_place({**environment("slurm"), "SLURM_JOB_NODELIST": "n[1-999999999]"}).master_addr == "n1"


def test_counts_and_cores():
    assert [tasks_of_node("4(x2),3", node) for node in range(3)] == [4, 4, 3]
    for text in ("", "4(x2", "x", "4,,4"):
        with pytest.raises(ValueError):
            tasks_of_node(text, 5)
    assert cores_in("0-3,8\n") == (0, 1, 2, 3, 8) and cores_in("\n") == () and cores_in("5,1,1") == (1, 5)
    for text in ("a", "3-1", "1,", "-1", "1-2-3", "99999"):
        with pytest.raises(ValueError):
            cores_in(text)
