"""Which DeepSpeed's names these are, under the names that programs ask by. Sluice's own version: sluice.version()."""

from .names import PEER_VERSION

version = PEER_VERSION
git_hash = git_branch = "sluice"
