"""Which of the ranks a process is, and which cores are its own. Needs neither PyTorch nor the library."""

from .binding import Binding, bind, few_cores_warning
from .cores import cores_of_local_rank
from .place import RankError, RankPlace, find_place

__all__ = ["Binding", "RankError", "RankPlace", "bind", "cores_of_local_rank", "few_cores_warning", "find_place"]
