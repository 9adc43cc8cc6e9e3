"""One checkpoint among those of a directory, as all ranks see it: saved, found, its attachments read. What a runtime's ranks do
together stands here once, for engines and for optimizers without one.

A rank attaches run.safetensors, values by plain.py; rank 0 also model.json, for people and tools: what tensors there are.
"""

import contextlib
import json
import os
import secrets
import warnings

import torch

from ..native import checkpoint_abi
from ..native.errors import NotFound, SluiceError
from . import plain, structure

RUN, MODEL = "run.safetensors", "model.json"


def save(runtime, world, directory, tag, make, latest=True, without_frozen=False, keep=None):
    """Returns when the checkpoint is durable on all ranks. world: the ranks, or None for one. make(): this rank's attachments,
    tensors of bytes by name. keep: (last, every) of what there is to stay afterwards, or None. Errors: those of make(), on all
    ranks, with nothing saved then; the library's."""
    problem, attachments = None, {}
    try:
        os.makedirs(directory, exist_ok=True)
        attachments = make()
    except Exception as error:
        problem = error
    number = _agreed_number(world, problem)
    checkpoint_abi.save(runtime, directory, tag, number, attachments, latest, without_frozen)
    if keep is not None and (world is None or world.rank == 0):
        try:
            checkpoint_abi.prune(runtime.library, directory, *keep)
        except SluiceError as error:  # what was to be saved is saved
            warnings.warn(f"{tag} is saved, but older checkpoints could not be removed: {error}", RuntimeWarning, stacklevel=3)


def _agreed_number(world, problem):
    """Rank 0's draw. Errors: the problem, on all ranks."""
    number = secrets.randbelow((1 << 64) - 1) + 1
    if world is None:
        if problem is not None:
            raise problem
        return number
    agree(world, problem)
    shared = torch.frombuffer(bytearray(number.to_bytes(8, "little")), dtype=torch.uint8)
    world.broadcast(shared)
    return int.from_bytes(bytes(shared.tolist()), "little")


def agree(world, problem):
    """Raises the problem if there is one, and on the other ranks an error that names this one."""
    if world is not None:
        world.check_worked(problem)
    if problem is not None:
        raise problem


def as_text(value):
    """An attachment of JSON."""
    return as_bytes(bytearray(json.dumps(value).encode()))


def as_bytes(data):
    """An attachment over a bytearray's memory."""
    return torch.frombuffer(data, dtype=torch.uint8)


class Generation:
    """A checkpoint that there is. ranks: how many saved it."""

    def __init__(self, library, directory, tag, ranks):
        self._library = library
        self._directory, self.tag, self.ranks = directory, tag, ranks

    @property
    def path(self):
        return os.path.join(os.fsdecode(self._directory), self.tag)

    def attachment(self, rank, name):
        """As a bytearray. Errors: NotFound, DataLoss."""
        return checkpoint_abi.attachment(self._library, self._directory, self.tag, rank, name)

    def values(self, rank, name):
        """Those of plain.py that a rank attached. Errors: ValueError, naming the file."""
        with self._naming(rank, name):
            return plain.decode(self.attachment(rank, name))

    def buffers(self, described):
        """Yields (name, tensor) of rank 0's. described: as model() has them. The file is in RAM meanwhile, but not decoded."""
        if described:
            with self._naming(0, RUN):
                wanted = [(buffer["at"], buffer["dtype"], buffer["shape"]) for buffer in described.values()]
                yield from zip(described, plain.tensors_at(self.attachment(0, RUN), wanted))

    def run(self, rank):
        """The values that a rank attached of its run, checked (structure.py). Errors: as above."""
        with self._naming(rank, RUN):
            return structure.run(plain.decode(self.attachment(rank, RUN)))

    def model(self):
        """model.json, checked (structure.py). Errors: ValueError, naming the file."""
        try:
            text = self.attachment(0, MODEL)
        except NotFound:
            raise ValueError(f"{self.path} has no {MODEL}: no engine has saved it") from None
        with self._naming(0, MODEL):
            return structure.model(text)

    @contextlib.contextmanager
    def _naming(self, rank, name):
        try:
            yield
        except ValueError as error:
            raise ValueError(f"{name} of rank {rank} in {self.path}: {error}") from None


def find(library, world, directory, tag=None):
    """The Generation of that tag, or without one that which `latest` names, or the newest that is whole; None if there is
    none. All ranks find rank 0's. Errors: NotFound where a tag was given; the library's."""
    problem, words = None, ""
    if world is None or world.rank == 0:
        try:
            words = _words(library, directory, tag)
        except Exception as error:
            problem = error
    agree(world, problem)
    if world is not None:
        words = world.texts(words)[0]
    return Generation(library, directory, *json.loads(words)) if words else None


def _words(library, directory, tag):
    """The tag and number of ranks, or nothing."""
    if tag == "":
        raise ValueError("tag: is empty; without one (None) the checkpoint that `latest` names is loaded, or the newest that is whole")
    try:
        found = checkpoint_abi.describe(library, directory, "" if tag is None else tag)
    except NotFound:
        if tag is not None:
            raise
        return ""
    if found["note"]:
        warnings.warn(f"{directory}: {found['note']}", RuntimeWarning, stacklevel=4)
    return json.dumps([found["tag"], found["ranks"]])
