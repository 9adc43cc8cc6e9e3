"""Which rank this process is, by the environment that its launcher gave it.

Launchers are asked from the innermost out, since each passes on what it found: torchrun under srun is torchrun, mpirun in
a batch script of Slurm's is mpirun. An environment that says nothing is one rank; one that says half is an error.
"""

import dataclasses
import itertools
import os
import re
import warnings

from .host_lists import hosts_in, tasks_of_node

PORT = 29500  # torchrun's
_LOCALHOST = "127.0.0.1"
_WHOLE = re.compile(r"[0-9]{1,9}", re.ASCII)
_OPEN_MPI = tuple(f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))
_PMI = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


class RankError(RuntimeError):
    """What the environment says of ranks contradicts itself or is incomplete; the message names the variables."""


@dataclasses.dataclass(frozen=True)
class RankPlace:
    """One rank of a world. `source`: torchrun, openmpi, pmi, slurm, or none (one rank). Where rank 0 can be met is None
    where the launcher doesn't say: nobody else is to be met, or MASTER_ADDR must be set (rendezvous())."""

    rank: int
    world: int
    local_rank: int
    local_world: int
    source: str
    master_addr: str | None
    master_port: int | None

    def rendezvous(self):
        """(address, port) of rank 0. Errors: RankError if the launcher says neither and the world has several ranks."""
        if self.master_addr is None and self.world > 1:
            raise RankError(
                f"{self.world} ranks ({self.source}) on several hosts, and MASTER_ADDR isn't set: give every rank the host "
                "of rank 0 (mpirun -x MASTER_ADDR=HOST, or -genv MASTER_ADDR HOST)"
            )
        return self.master_addr or _LOCALHOST, self.master_port or PORT


def find_place(environment=None):
    """The RankPlace of this process. Errors: RankError."""
    variables = _Variables(os.environ if environment is None else environment)
    place = _torchrun(variables) or _openmpi(variables) or _pmi(variables) or _slurm(variables)
    if place is not None:
        return place
    if variables.text("LOCAL_RANK") is not None:
        raise RankError("LOCAL_RANK is set, and neither RANK nor WORLD_SIZE is: set all three, or none")
    tasks = variables.text("SLURM_NTASKS")
    if variables.text("SLURM_PROCID") is not None and tasks not in (None, "1"):
        words = f"SLURM_NTASKS is {tasks}, but this process is no task of a step: it is one rank. `srun python ...` starts all"
        warnings.warn(words, RuntimeWarning, stacklevel=2)
    return RankPlace(0, 1, 0, 1, "none", None, None)


class _Variables:
    """An environment, where an empty variable is one that isn't set."""

    def __init__(self, environment):
        self._environment = environment

    def text(self, name):
        return self._environment.get(name) or None

    def number(self, name, low=0, high=None):
        text = self.text(name)
        if text is None:
            return None
        if not _WHOLE.fullmatch(text) or int(text) < low or (high is not None and int(text) > high):
            most = "" if high is None else f" to {high}"
            raise RankError(f"{name} must be a whole number from {low}{most or ' on'}, not {text[:80]!r}")
        return int(text)

    def port(self):
        return self.number("MASTER_PORT", 1, 65535)

    def any(self, names):
        return any(self.text(name) is not None for name in names)

    def missing(self, names):
        return [name for name in names if self.text(name) is None]

    def all_of(self, names, source):
        """The numbers of rank, world, rank and ranks of this host: variables by these names. A world of one has one host."""
        rank, world, *local = (self.number(name, low) for name, low in zip(names, (0, 1, 0, 1)))
        if world == 1:
            rank = 0 if rank is None else rank
            local = [0 if local[0] is None else local[0], 1 if local[1] is None else local[1]]
        if None in (rank, world, *local):
            there = [name for name in names if self.text(name) is not None]
            raise RankError(
                f"{source}: {_list(there)} set, and {_list(self.missing(names))} not: half of what says which rank this is. "
                "Set all of them, or none"
            )
        return rank, world, *local


def _list(names):
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"


def _checked(place, names):
    """`place`, if its numbers can be those of one rank. Errors: RankError, with the names of the variables."""
    rank, world, local_rank, local_world = names
    for small, large, is_small, is_large in (
        (rank, world, place.rank, place.world),
        (local_rank, local_world, place.local_rank, place.local_world),
    ):
        if is_small >= is_large:
            raise RankError(f"{small} is {is_small} and {large} is {is_large}: a rank is less than the number of ranks")
    if place.local_world > place.world:
        raise RankError(
            f"{local_world} is {place.local_world} and {world} is {place.world}: a host has no more ranks than there are"
        )
    return place


def _torchrun(variables):
    if not variables.any(_TORCHRUN[:2]):
        return None
    rank, world = variables.number("RANK"), variables.number("WORLD_SIZE", 1)
    if None not in (rank, world) and world > 1 and not variables.any(_TORCHRUN[2:]):
        # Scripts that set the two by hand leave the rest to whoever started them.
        outer = _openmpi(variables) or _pmi(variables) or _slurm(variables)
        if outer is not None and (outer.rank, outer.world) == (rank, world):
            return outer
    numbers = variables.all_of(_TORCHRUN, "torchrun")
    address, port = variables.text("MASTER_ADDR"), variables.port()
    if world > 1 and None in (address, port):
        lacking = _list(variables.missing(("MASTER_ADDR", "MASTER_PORT")))
        raise RankError(f"torchrun: RANK and WORLD_SIZE are set, and {lacking} not: nobody can say where rank 0 is")
    return _checked(RankPlace(*numbers, "torchrun", address, port), _TORCHRUN)


def _mpi(variables, names, source):
    rank, world, local_rank, local_world = variables.all_of(names, source)
    address = variables.text("MASTER_ADDR") or (_LOCALHOST if local_world == world else None)
    place = RankPlace(rank, world, local_rank, local_world, source, address, variables.port() or PORT)
    return _checked(place, names)


def _openmpi(variables):
    return _mpi(variables, _OPEN_MPI, "openmpi") if variables.any(_OPEN_MPI) else None


def _pmi(variables):
    """MPICH's and Intel's launcher. Slurm sets the first two as well, and says the rest in its own words."""
    if not variables.any(_PMI) or (not variables.any(_PMI[2:]) and _in_step(variables)):
        return None
    return _mpi(variables, _PMI, "pmi")


def _in_step(variables):
    """Whether srun started this process. In a batch script SLURM_PROCID is set too, and is 0 whatever else is said."""
    return variables.any(("SLURM_STEP_ID", "SLURM_STEPID"))


def _slurm(variables):
    if not _in_step(variables):
        return None
    world_name = "SLURM_STEP_NUM_TASKS" if variables.any(("SLURM_STEP_NUM_TASKS",)) else "SLURM_NTASKS"
    rank, world = variables.number("SLURM_PROCID"), variables.number(world_name, 1)
    nodelist = "SLURM_STEP_NODELIST" if variables.any(("SLURM_STEP_NODELIST",)) else "SLURM_JOB_NODELIST"
    hosts = _first_hosts(variables, nodelist)
    local_rank, local_world, local_name = variables.number("SLURM_LOCALID"), *_local_tasks(variables, world, hosts)
    if world == 1:
        local_rank, local_world = local_rank or 0, local_world or 1
    names = ("SLURM_PROCID", world_name, "SLURM_LOCALID", local_name)
    lacking = [name for name, value in zip(names, (rank, world, local_rank, local_world)) if value is None]
    if lacking:
        raise RankError(f"slurm: SLURM_STEP_ID is set, and {_list(lacking)} not: half of what says which rank this is")
    address = variables.text("MASTER_ADDR") or (hosts[0] if hosts else None)
    if address is None and world > 1:
        raise RankError("slurm: neither SLURM_JOB_NODELIST nor MASTER_ADDR is set: nobody can say where rank 0 is")
    port = variables.port() or _slurm_port(variables)
    return _checked(RankPlace(rank, world, local_rank, local_world, "slurm", address, port), names)


def _first_hosts(variables, name):
    """The first two hosts of the list: the first is where rank 0 is, and whether there are others is all that matters."""
    try:
        return list(itertools.islice(hosts_in(variables.text(name) or ""), 2)) if variables.text(name) else []
    except ValueError as error:
        raise RankError(f"{name}: {error}") from None


def _local_tasks(variables, world, hosts):
    """(ranks of this host or None, the variable that says so)."""
    name, node = "SLURM_STEP_TASKS_PER_NODE", variables.number("SLURM_NODEID")
    if variables.text(name) is not None and node is not None:
        try:
            return tasks_of_node(variables.text(name), node), name
        except ValueError as error:
            raise RankError(f"{name}: {error} (SLURM_NODEID is {node})") from None
    name = "SLURM_NTASKS_PER_NODE"  # of the job, whose steps may be smaller
    return world if len(hosts) == 1 else variables.number(name, 1), name


def _slurm_port(variables):
    """The same for all ranks of a job, and seldom another job's: below those that the kernel hands out."""
    job = variables.number("SLURM_JOB_ID")
    return PORT if job is None else 15000 + job % 15000
