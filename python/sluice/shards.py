"""Values of a model in safetensors files, read one tensor at a time. One thread."""

import json
import os
import pathlib

_INDEX = "model.safetensors.index.json"


class Shards:
    """source: a file, several, or a directory (with model.safetensors.index.json, or else all its *.safetensors).
    Errors: FileNotFoundError, ValueError."""

    def __init__(self, source):
        try:
            import safetensors
        except ImportError:
            raise ImportError("weights: to read safetensors files, install the package safetensors") from None
        self._open_file = safetensors.safe_open
        self._files = {}  # path -> the open file
        self._where = {}  # name -> path
        for path in _paths(source):
            for name in self._file(path).keys():
                if name in self._where:
                    raise ValueError(f"weights: {name} is in {self._where[name].name} and in {path.name}")
                self._where[name] = path

    def _file(self, path):
        if path not in self._files:
            self._files[path] = self._open_file(path, framework="pt")
        return self._files[path]

    @property
    def names(self):
        return self._where.keys()

    def find(self, names):
        """The first of the names that is there, or None."""
        return next((name for name in names if name in self._where), None)

    def shape(self, name):
        return tuple(self._file(self._where[name]).get_slice(name).get_shape())

    def read(self, name):
        """A tensor of its own, in the type that it has in the file."""
        return self._file(self._where[name]).get_tensor(name)


def _paths(source):
    if not isinstance(source, (str, os.PathLike)):
        return [pathlib.Path(path) for path in source]
    path = pathlib.Path(source)
    if not path.is_dir():
        return [path]
    if (path / _INDEX).exists():
        index = json.loads((path / _INDEX).read_text(encoding="utf-8"))
        return [path / name for name in sorted(set(index["weight_map"].values()))]
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"weights: there is no *.safetensors in {path}")
    return files
