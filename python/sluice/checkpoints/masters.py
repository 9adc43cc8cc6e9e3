"""Values of a saved model without the model: the fp32 masters of its parameters, as the library loads and verifies them, and its
buffers."""

import itertools
import json
import math
import os
import re

import torch

from ..native import abi, checkpoint_abi, values
from . import generation, tensor_files
from .plain import DTYPES

_GROUP_ELEMENTS = 64 << 20  # that are loaded together, at most, unless one tensor has more


class SavedModel:
    """What `tag` in a directory (None: the one that would be loaded) has of a model. Errors: ValueError, naming the directory, if
    there is none, or one that has no model; the library's."""

    def __init__(self, directory, tag=None, library=None):
        self._library = library or abi.Library.default()
        self._directory = directory
        self._found = generation.find(self._library, None, directory, tag)
        if self._found is None:
            raise ValueError(f"there is no checkpoint in {directory}")
        self._model = self._found.model()
        described = checkpoint_abi.describe(self._library, directory, self._found.tag)
        self._saved = {tensor["name"]: tensor for tensor in described["tensors"] if tensor["fields"]}
        for name, tensor in self._model["tensors"].items():
            self._check(name, tensor)

    def _check(self, name, tensor):
        """model.json against what the library has."""
        count = math.prod(tensor["shape"]) * (DTYPES[tensor["dtype"]].itemsize if self._is_bytes(name) else 1)
        if name in self._saved and count != self._saved[name]["elements"]:
            words = f"{name} has shape {tensor['shape']}, and {self._saved[name]['elements']} elements were saved"
            raise ValueError(f"{generation.MODEL} in {self._found.path}: {words}")

    @property
    def tag(self):
        return self._found.tag

    def aliases(self):
        """Other names of tensors, by the one that it is saved under."""
        named = {**self._model["tensors"], **self._model["buffers"]}
        return {name: tensor["aliases"] for name, tensor in named.items() if tensor["aliases"]}

    def sizes(self, without_frozen=False):
        """Bytes of each tensor, by name, in the order of tensors()."""
        result = {}
        for name in self._names(without_frozen):
            tensor = self._model["tensors"][name]
            result[name] = math.prod(tensor["shape"]) * self._dtype(name).itemsize
        for name, buffer in self._model["buffers"].items():
            result[name] = math.prod(buffer["shape"]) * DTYPES[buffer["dtype"]].itemsize
        return result

    def tensors(self, without_frozen=False):
        """(name, tensor in RAM) of each, once; fp32 what is of floating point and saved as numbers, others as they are. In RAM
        is what the caller keeps, and some hundred MiB; while buffers are read, which are last, also the file that has them,
        rank 0's run.safetensors, twice: as large as its client_state."""
        group, count = [], 0
        for name in self._names(without_frozen):
            elements = math.prod(self._model["tensors"][name]["shape"])
            if group and count + elements > _GROUP_ELEMENTS:
                yield from self._read(group)
                group, count = [], 0
            group.append(name)
            count += elements
        yield from self._read(group)
        yield from self._found.buffers(self._model["buffers"])

    def _names(self, without_frozen):
        for name, tensor in self._model["tensors"].items():
            is_there = name in self._saved or not math.prod(tensor["shape"])
            if not (without_frozen and tensor["frozen"]) and is_there:
                yield name

    def _is_bytes(self, name):
        return name in self._saved and self._saved[name]["dtype"] == "bytes"

    def _dtype(self, name):
        is_numbers = name in self._saved and not self._is_bytes(name)
        return torch.float32 if is_numbers else DTYPES[self._model["tensors"][name]["dtype"]]

    def _read(self, names):
        """All of them by one runtime, which has nothing else."""
        loaded = [name for name in names if math.prod(self._model["tensors"][name]["shape"])]
        shapes = {name: self._model["tensors"][name]["shape"] for name in names}
        found = {}
        if loaded:
            numbers = itertools.count()
            units = [(name, [(name, self._saved[name]["elements"], next(numbers))]) for name in loaded]
            types = {n: (abi.BYTES if self._is_bytes(name) else abi.F32, abi.F32) for n, name in enumerate(loaded)}
            options = abi.Options(lowest_param_tier=abi.PINNED, lowest_state_tier=abi.PINNED)
            runtime = abi.Runtime(units, options, self._library, keep={n: abi.KEEP_PARAM for n in range(len(loaded))}, types=types)
            try:
                checkpoint_abi.load(runtime, self._directory, self._found.tag, without_states=True)
                requests = [(name, n, shapes[name], self._dtype(name)) for n, name in enumerate(loaded)]
                found = values.read_all(runtime, requests, abi.PARAM)
            finally:
                runtime.close()
        for name in names:
            yield name, found[name] if name in found else values.empty(shapes[name], self._dtype(name))


def write_shards(model, directory, shard_bytes, write, stem, suffix, without_frozen=False):
    """Writes the tensors into files of at most so many bytes (or of one tensor), named as Transformers does, by
    write(path, tensors); with an index if they are several. They get their names when all are written; then files of an export
    before, of the same stem, are removed: Transformers would take model.safetensors before any index."""
    os.makedirs(directory, exist_ok=True)
    sizes = model.sizes(without_frozen)
    shards, room = [[]], shard_bytes
    for name, size in sizes.items():
        if shards[-1] and size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= size
    files = [f"{stem}.{suffix}"]
    if len(shards) > 1:
        files = [f"{stem}-{n + 1:05d}-of-{len(shards):05d}.{suffix}" for n in range(len(shards))]
    index = f"{stem}.{suffix}.index.json"
    written = []
    try:
        found = model.tensors(without_frozen)
        for file, names in zip(files, shards):
            written.append(file)
            write(_unfinished(directory, file), dict(itertools.islice(found, len(names))))
        if len(shards) > 1:
            weights = {name: file for file, names in zip(files, shards) for name in names}
            written.append(index)
            with open(_unfinished(directory, index), "w") as file:
                json.dump({"metadata": {"total_size": sum(sizes.values())}, "weight_map": weights}, file, indent=2)
        _remove(os.path.join(directory, index))  # no index speaks of two exports, whatever ends this
        for file in written:
            os.replace(_unfinished(directory, file), os.path.join(directory, file))
    finally:
        for file in written:
            _remove(_unfinished(directory, file))
    numbered = re.compile(rf"{re.escape(stem)}-[0-9]{{5}}-of-[0-9]{{5}}\.{re.escape(suffix)}")
    for file in os.listdir(directory):
        if file not in written and (file in (f"{stem}.{suffix}", index) or numbered.fullmatch(file)):
            _remove(os.path.join(directory, file))


def _unfinished(directory, file):
    return os.path.join(directory, f"{file}.unfinished")


def _remove(path):
    if os.path.isfile(path) or os.path.islink(path):
        os.unlink(path)
