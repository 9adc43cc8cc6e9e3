"""Gives a rank its cores, and says so where they are few."""

import dataclasses
import os
import warnings

from .cores import cores_of_local_rank, physical_cores
from .machine import allowed_cores, nodes_of_machine, siblings_of
from .place import RankError

_FEW = 2  # a rank with fewer computes, updates and reads on one core
_MORE = {
    "torchrun": "start fewer ranks on this host, or allow them more cores (taskset, the container's cpuset)",
    "openmpi": "mpirun --bind-to none, or --map-by slot:PE=CORES, gives each rank more",
    "pmi": "mpiexec -bind-to none, or -bind-to core:CORES, gives each rank more",
    "slurm": "set --cpus-per-task (srun doesn't take it from sbatch: export SRUN_CPUS_PER_TASK=CORES); the default is 1",
    "none": "allow this process more cores (taskset, the container's cpuset)",
}


@dataclasses.dataclass(frozen=True)
class Binding:
    """The cores of a rank, how many physical cores these are, and in `why` how they came to be its own."""

    cores: tuple
    physical: int
    why: str


def few_cores_warning(place, count):
    """What to say of a rank that has `count` cores, or None if that is enough."""
    if count >= _FEW:
        return None
    return f"rank {place.rank} has {_cores(count)}: computing, updates and I/O take turns on it; {_MORE[place.source]}"


def bind(place, node_of_device=None, cores=None, threads=False, environment=None):
    """Binds every thread of this process to the cores of its rank, and returns the Binding. Call it before threads are
    bound in other ways. A rank that Slurm or MPI has given cores of its own keeps them.

    node_of_device: a function from a local rank, of any rank of this host, to the NUMA node of its GPU or None. cores: those to
    share, instead of all that are allowed. threads: PyTorch's are set to the number of the rank's physical cores. Warns
    where ranks share cores or have fewer than 2. Errors: RankError if `cores` are not allowed; OSError.
    """
    environment = os.environ if environment is None else environment
    allowed = allowed_cores()
    if cores is not None:
        strange = sorted(set(cores) - set(allowed))
        if strange or not cores:
            raise RankError(f"cores {_list(strange) or 'of an empty list'} can't be used here: allowed are {_list(allowed)}")
    siblings, nodes = siblings_of(allowed), nodes_of_machine()
    own = _given(place, len(allowed), environment) if cores is None else None
    if own is not None:
        mine, why = allowed, own
    else:
        pool = sorted(set(allowed if cores is None else cores))
        mine = cores_of_local_rank(pool, siblings, nodes, place.local_rank, place.local_world, node_of_device)
        why = f"local rank {place.local_rank} of {place.local_world}, which share {_cores(len(pool))}"
        _set_affinity(mine)
        if len(pool) < place.local_world:
            words = f"{place.local_world} ranks of this host share {_cores(len(pool))}: {_MORE[place.source]}"
            warnings.warn(words, RuntimeWarning, stacklevel=2)
    few = few_cores_warning(place, len(mine))
    if few is not None:
        warnings.warn(few, RuntimeWarning, stacklevel=2)
    physical = sum(map(len, physical_cores(mine, siblings, nodes).values()))
    if threads:
        import torch  # this package does without it

        torch.set_num_threads(physical)
    return Binding(tuple(mine), physical, why)


def _cores(count):
    return "1 core" if count == 1 else f"{count} cores"


def _list(cores):
    return ", ".join(map(str, cores))


def _given(place, allowed, environment):
    """Why the allowed cores are this rank's alone, or None if the ranks of this host are to share them."""
    if place.local_world == 1 or place.source not in ("slurm", "openmpi", "pmi"):
        return None
    text = environment.get("SLURM_CPUS_ON_NODE", "") if place.source == "slurm" else ""
    here = int(text) if text.isdecimal() else os.cpu_count()
    return f"{place.source} gave this rank {allowed} of {here} cores" if allowed < here else None


def _set_affinity(cores):
    """Of this thread, whose later ones inherit it, and of those that there are."""
    os.sched_setaffinity(0, cores)
    for task in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(task), cores)
        except ProcessLookupError:  # it has ended
            pass
