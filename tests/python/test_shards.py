"""Safetensors files as they come from strangers: whatever is wrong with one is an error that names it, and no value becomes
another on its way into a module."""

import json
import os
import random
import struct

import pytest
import sluice
import torch
from sluice.residency.shards import Shards

safetensors_torch = pytest.importorskip("safetensors.torch")
TIERS = {"hbm": "1MiB", "pinned": "8MiB", "workers": 1}
INDEX = "model.safetensors.index.json"


def file_of(header, data=b"", length=None):
    """The bytes of a file with that header: an object, or JSON as text or bytes."""
    text = header if isinstance(header, (bytes, str)) else json.dumps(header)
    text = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


TWICE = '{"a": %s, "b": %s, "a": %s}' % tuple(map(json.dumps, (entry(), entry(offsets=(8, 16)), entry(offsets=(16, 24)))))
DATA = bytes(24)
BAD = {
    "empty": b"",
    "short": b"\x01\x02",
    "header missing": struct.pack("<Q", 100),
    "header half there": file_of({"a": entry()})[:-5],
    "header of 2^63": file_of({"a": entry()}, DATA, 1 << 63),
    "header of 2^64-1": file_of({"a": entry()}, DATA, (1 << 64) - 1),
    "header of 101 MB": file_of({"a": entry()}, DATA, 101 << 20),
    "header of 0": file_of(b"", DATA),
    "zeros": bytes(1024),
    "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "pickle": b"\x80\x02}q\x00." * 20,
    "no json": file_of(b"{", DATA),
    "no utf-8": file_of(b'{"\xff": 1}', DATA),
    "deep": file_of(b'{"a":' + b"[" * 100_000, DATA),
    "a list": file_of([], DATA),
    "null": file_of(None, DATA),
    "a name twice": file_of(TWICE, DATA),
    "a key of an entry twice": file_of('{"a": {"dtype": "F32", "shape": [2], "shape": [2], "data_offsets": [0, 8]}}', bytes(8)),
    "no entry": file_of({"a": 5}, DATA),
    "no dtype": file_of({"a": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "no offsets": file_of({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
    "unknown dtype": file_of({"a": entry("F128")}, bytes(8)),
    "negative size": file_of({"a": entry(shape=(-2,))}, bytes(8)),
    "size that overflows": file_of({"a": entry(shape=(1 << 62, 1 << 62))}, bytes(8)),
    "size of text": file_of({"a": entry(shape=("2",))}, bytes(8)),
    "other size than offsets": file_of({"a": entry(shape=(3,))}, bytes(8)),
    "offsets backwards": file_of({"a": entry(offsets=(8, 0))}, bytes(8)),
    "offsets negative": file_of({"a": entry(offsets=(-8, 0))}, bytes(8)),
    "offsets beyond the end": file_of({"a": entry(offsets=(0, 8))}, bytes(4)),
    "offsets that overlap": file_of({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)),
    "a hole": file_of({"a": entry(), "b": entry(offsets=(16, 24))}, DATA),
    "more data than entries": file_of({"a": entry()}, DATA),
    "three offsets": file_of({"a": entry(offsets=(0, 4, 8))}, bytes(8)),
}


@pytest.mark.parametrize("what", BAD)
def test_a_file_that_is_none_is_an_error_that_names_it(tmp_path, what):
    path = tmp_path / "model.safetensors"
    path.write_bytes(BAD[what])
    for source in (path, tmp_path, [str(path)], os.fsencode(path)):
        with pytest.raises(ValueError, match=f"weights: {path} ") as error:
            Shards(source)
        assert len(str(error.value)) < 1000


def test_a_name_that_is_there_twice_is_named(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(file_of(TWICE, DATA))
    with pytest.raises(ValueError, match="'a' is in it twice"):
        Shards(tmp_path)


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_file_is_refused_or_has_what_it_says(tmp_path, seed):
    """Bytes of a good file changed, cut and put in: never another error, and never a tensor of another size."""
    draw = random.Random(seed)
    path = tmp_path / "model.safetensors"
    safetensors_torch.save_file({"a": torch.ones(3), "b.c": torch.zeros(2, 2, dtype=torch.bfloat16)}, path)
    good, refused = path.read_bytes(), 0
    for _ in range(300):
        data = bytearray(good)
        for _ in range(draw.randint(1, 3)):
            at = draw.randrange(min(len(data), 200))
            data[at : at + draw.choice([0, 1, 1, 5])] = bytes(draw.choices(range(256), k=draw.choice([0, 1, 1, 3])))
        path.write_bytes(data)
        try:
            shards = Shards(path)
            for name in shards.names:
                assert tuple(shards.read(name).shape) == shards.shape(name)
        except ValueError as error:
            assert str(error).startswith("weights: "), bytes(data)
            refused += 1
    assert refused > 100


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo.safetensors")
    (tmp_path / "dir.safetensors").mkdir()
    for path in (tmp_path / "fifo.safetensors", tmp_path, "/dev/zero"):
        with pytest.raises((ValueError, OSError), match="weights: .*not a regular file|directory"):
            Shards(path)
    for path in ("a\0b", b"a\0b", 5, None, [5], object()):
        with pytest.raises((ValueError, TypeError)):
            Shards(path)
    with pytest.raises(FileNotFoundError, match="none.safetensors"):
        Shards(tmp_path / "none.safetensors")


# ---- An index


def with_index(directory, weight_map):
    safetensors_torch.save_file({"a": torch.ones(2)}, directory / "one.safetensors")
    text = weight_map if isinstance(weight_map, (str, bytes)) else json.dumps({"metadata": {}, "weight_map": weight_map})
    (directory / INDEX).write_bytes(text.encode() if isinstance(text, str) else text)
    return directory


OUTSIDE = ["../secret.safetensors", "/etc/passwd", "x/../../secret.safetensors", "..", ".", "", "a\0b", 5, None, ["one.safetensors"]]


@pytest.mark.parametrize("file", OUTSIDE, ids=repr)
def test_an_index_names_files_of_its_directory_only(tmp_path, file):
    safetensors_torch.save_file({"b": torch.ones(2)}, tmp_path / "secret.safetensors")
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match=f"{INDEX} has b in .*, which is no file of that directory"):
        Shards(with_index(tmp_path / "model", {"a": "one.safetensors", "b": file}))


BAD_INDEX = {
    "empty": "", "a list": "[]", "no map": '{"metadata": {}}', "map of null": '{"weight_map": null}', "map of a list": '{"weight_map": []}',
    "an empty map": '{"weight_map": {}}', "broken": '{"weight_map": ', "deep": "[" * 100_000, "latin-1": '{"é": 1}'.encode("latin-1"),
    "a name twice": '{"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}}',
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_INDEX)
def test_a_bad_index_is_named(tmp_path, what):
    with pytest.raises(ValueError, match=f"weights: {tmp_path}/{INDEX} "):
        Shards(with_index(tmp_path, BAD_INDEX[what]))


def test_what_an_index_promises_is_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{INDEX} needs {tmp_path}/two.safetensors, which does not exist"):
        Shards(with_index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"}))
    with pytest.raises(ValueError, match=f"{INDEX} says that b is in one.safetensors, and it is not"):
        Shards(with_index(tmp_path, {"a": "one.safetensors", "b": "one.safetensors"}))
    assert list(Shards(with_index(tmp_path, {"a": "one.safetensors"})).names) == ["a"]


def test_links_are_followed(tmp_path):
    """As a hub's cache lays them out."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    safetensors_torch.save_file({"a": torch.ones(2)}, tmp_path / "blobs" / "0123")
    (tmp_path / "snapshot" / "one.safetensors").symlink_to("../blobs/0123")
    (tmp_path / "snapshot" / INDEX).write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
    assert Shards(tmp_path / "snapshot").read("a").tolist() == [1, 1]


# ---- Types

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
WHOLE = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool]
QUANTIZED = [torch.float8_e4m3fn, torch.float8_e5m2]
TYPES = [*FLOATS, *WHOLE, *QUANTIZED, torch.complex64]


class One(torch.nn.Module):
    def __init__(self, dtype, buffer):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2, 2))
        value = torch.zeros(4).to(dtype)
        if buffer:
            self.register_buffer("value", value)
        else:
            self.value = torch.nn.Parameter(value, requires_grad=False)


@pytest.mark.parametrize("file_type", TYPES, ids=str)
@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64], ids=str)
def test_a_buffer_gets_values_of_its_own_kind_or_none(tmp_path, file_type, own):
    values = torch.tensor([0.0, 1.0, 1.0, 0.0]).to(file_type)
    safetensors_torch.save_file({"value": values}, tmp_path / "a.safetensors")
    module = One(own, buffer=True)
    good = file_type == own or (file_type in FLOATS and own in FLOATS)
    if good:
        sluice.attach(module, weights=tmp_path, **TIERS).close()
        assert module.value.dtype == own and torch.equal(module.value, values.to(own))
    else:
        words = "without their scales" if file_type in QUANTIZED else "not converted into each other"
        with pytest.raises(ValueError, match=f"weights: value is of type .* in a.safetensors, {own} in the module: .*{words}"):
            sluice.attach(module, weights=tmp_path, **TIERS)
        assert not module.value.any()


@pytest.mark.parametrize("file_type", TYPES, ids=str)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_parameter_gets_floats_or_none(tmp_path, file_type, dtype):
    values = torch.tensor([0.0, 1.0, 1.0, 0.0]).to(file_type)
    safetensors_torch.save_file({"value": values}, tmp_path / "a.safetensors")
    module = One(torch.float32, buffer=False)
    if file_type in FLOATS:
        attached = sluice.attach(module, weights=tmp_path, dtype=dtype, **TIERS)
        assert module.state_dict()["value"].float().tolist() == [0, 1, 1, 0]
        attached.close()
    else:
        with pytest.raises(ValueError, match="weights: value is of type"):
            sluice.attach(module, weights=tmp_path, dtype=dtype, **TIERS)
