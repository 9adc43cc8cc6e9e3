"""Values of a model in safetensors files, read one tensor at a time. One thread."""

import json
import os
import pathlib
import stat
import struct

import torch

from ..native.checked import shown

_INDEX = "model.safetensors.index.json"
_TEXT_MAX = 100 << 20  # bytes of a header, or of an index: safetensors' own limit
# Types of a file that a parameter or buffer of a floating-point type can be given.
_FLOATS = {"F16", "BF16", "F32", "F64"}
_OWN = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "BOOL": torch.bool}
_OWN |= {"U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64}
_OWN |= {"U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "C64": torch.complex64}
_OWN |= {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}


class Shards:
    """source: a file, several, or a directory (with model.safetensors.index.json, or else all its *.safetensors).
    Errors: OSError (FileNotFoundError ...), ValueError naming the file."""

    def __init__(self, source):
        try:
            import safetensors
        except ImportError:
            raise ImportError("weights: to read safetensors files, install the package safetensors") from None
        self._safetensors = safetensors
        self._files = {}  # path -> the open file
        self._where = {}  # name -> path
        paths, promised = _paths(source)
        for path in paths:
            for name in self._open(path).keys():
                if name in self._where:
                    raise ValueError(f"weights: {name} is in {self._where[name].name} and in {path.name}")
                self._where[name] = path
        for name, path in promised.items():
            if self._where.get(name) != path:
                raise ValueError(f"weights: {_INDEX} says that {name} is in {path.name}, and it is not")

    def _open(self, path):
        if path not in self._files:
            _check_header(path)
            try:
                self._files[path] = self._safetensors.safe_open(path, framework="pt")
            except (self._safetensors.SafetensorError, ValueError) as error:
                raise ValueError(f"weights: {path} is not a safetensors file: {error}") from None
        return self._files[path]

    @property
    def names(self):
        return self._where.keys()

    def find(self, names):
        """The first of the names that is there, or None."""
        return next((name for name in names if name in self._where), None)

    def shape(self, name):
        return tuple(self._slice(name).get_shape())

    def check_type(self, name, tensor):
        """Errors: ValueError where `tensor`, a parameter or buffer, can't have the values without becoming others."""
        found = self._slice(name).get_dtype()
        if found in _FLOATS and tensor.is_floating_point() and tensor.element_size() > 1:
            return
        if _OWN.get(found) == tensor.dtype:
            return
        what = f"weights: {name} is of type {found} in {self._where[name].name}, {tensor.dtype} in the module"
        if found == "F4" or found.startswith(("F8_", "F6_")):
            raise ValueError(f"{what}: quantized values mean nothing without their scales: convert the files to bf16 first")
        raise ValueError(f"{what}: they are not converted into each other")

    def read(self, name):
        """A tensor of its own, in the type that it has in the file."""
        return self._files[self._where[name]].get_tensor(name)

    def _slice(self, name):
        return self._files[self._where[name]].get_slice(name)


def _paths(source):
    """(the files, and where an index says that each name is)"""
    if not isinstance(source, (str, bytes, os.PathLike)):
        return [_path(path) for path in source], {}
    path = _path(source)
    if not path.is_dir():
        return [path], {}
    if (path / _INDEX).exists():
        promised = {name: _inside(path, name, file) for name, file in _weight_map(path / _INDEX).items()}
        return sorted(set(promised.values())), promised
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"weights: there is no *.safetensors in {path}")
    return files, {}


def _path(source):
    if not isinstance(source, (str, bytes, os.PathLike)) or "\0" in os.fsdecode(source):
        raise ValueError(f"weights: must be a path, or several, not {shown(source)}")
    return pathlib.Path(os.fsdecode(source))


def _inside(directory, name, file):
    """The file that an index names, which must lie in its directory: an index comes from strangers."""
    path = pathlib.PurePath(file) if isinstance(file, str) and "\0" not in file else None
    if path is None or not path.parts or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"weights: {directory / _INDEX} has {name} in {shown(file)}, which is no file of that directory")
    found = directory / path
    if not found.exists():
        raise FileNotFoundError(f"weights: {directory / _INDEX} needs {found}, which does not exist")
    return found


def _weight_map(path):
    index = _parsed(path, _read(path, 0, None), "an index")
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"weights: {path} has no weight_map that says which file has what")
    return weight_map


def _check_header(path):
    """What the package does not look at. Errors: ValueError naming the file, OSError."""
    begin = _read(path, 0, 8)
    if len(begin) < 8:
        raise ValueError(f"weights: {path} is not a safetensors file: it has {len(begin)} bytes")
    (length,) = struct.unpack("<Q", begin)
    if length > _TEXT_MAX:
        raise ValueError(f"weights: {path} is not a safetensors file: its header would have {length} bytes")
    _parsed(path, _read(path, 8, length), "a safetensors file")


def _read(path, offset, length):
    # A FIFO's open would wait for a writer.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError(f"weights: {path} is not a regular file")
        file.seek(offset)
        data = file.read(_TEXT_MAX + 1 if length is None else length)
    if len(data) > _TEXT_MAX:
        raise ValueError(f"weights: {path} has more than {_TEXT_MAX >> 20} MiB")
    return data


def _parsed(path, data, what):
    """The object that `data` is in JSON."""

    def once(pairs):
        result = dict(pairs)
        if len(result) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{shown(twice)} is in it twice")
        return result

    try:
        result = json.loads(data.decode("utf-8"), object_pairs_hook=once)
    except RecursionError:
        raise ValueError(f"weights: {path} is not {what}: it is nested too deeply") from None
    except ValueError as error:  # also UnicodeDecodeError and JSONDecodeError
        raise ValueError(f"weights: {path} is not {what}: {error}") from None
    if not isinstance(result, dict):
        raise ValueError(f"weights: {path} is not {what}: it holds {shown(result)}")
    return result
