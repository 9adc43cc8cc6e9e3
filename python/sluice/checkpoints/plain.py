"""Python values as bytes and back, without pickle: JSON, and tensors beside it, as a safetensors file.

What there is: None, bool, int, float, str, bytes, list, tuple (a named one becomes a plain one), dict, OrderedDict, Counter,
defaultdict, set, frozenset, torch's tensors, Parameters, Size, dtype and device, numpy's arrays and scalars of numbers; each comes back as its
own type, with the same bits. Tensors come back in RAM, each with memory of its own. Anything else is refused by its place, and so
is text with surrogates: in JSON two of them are one character.

The JSON has None, bool, str, list, finite floats and ints of 64 bits as they are; all others are objects of one key, which says
what they are. It is the entry "value" of the file's metadata; the tensors are named by their number, in the order of their
use. What is read is not trusted: any bytes give values of these types, or a ValueError.
"""

import base64
import binascii
import collections
import ctypes
import json
import math
import re
import struct
import sys

import torch

from . import tensor_files
from .tensor_files import raw_bytes

_DEPTH_MAX = 64
_SIMPLE_INT = 1 << 63
DTYPES = {tensor_files.name_of(d): d for d in vars(torch).values() if isinstance(d, torch.dtype)}
_FACTORIES = {f.__name__: f for f in (bool, int, float, str, list, tuple, dict, set)}
_NUMPY = re.compile(r"[<>|][biufc](?:1|2|4|8|16)")  # what the machine's C would have otherwise is left out
_ADVICE = (
    "checkpoints hold plain values only (None, numbers, text, bytes, lists, tuples, dicts, sets, tensors, arrays of numbers): "
    "convert it, leave it out, or save it in a file of its own"
)


def encode(values):
    """values: a dict by name, in which places are named in messages. Errors: TypeError for what can't be in a checkpoint, with
    its place; ValueError for what is nested too deeply, or holds itself."""
    encoder = _Encoder()
    text = json.dumps(encoder.top(values), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    entries = [(str(number), entry, raw.numel()) for number, (entry, raw) in enumerate(encoder.tensors)]
    head = tensor_files.header(entries, {"format": "sluice.plain", "value": text})
    result = bytearray(len(head) + sum(raw.numel() for _, raw in encoder.tensors))
    result[: len(head)] = head
    at = len(head)
    for _, raw in encoder.tensors:
        if raw.numel():
            torch.frombuffer(result, dtype=torch.uint8, count=raw.numel(), offset=at).copy_(raw)
        at += raw.numel()
    return result


def decode(data):
    """What encode() was given. Errors: ValueError, for any other bytes."""
    try:
        return _decode(_as_memory(data))
    except _OTHER_ERRORS as error:
        raise ValueError(f"not values of a checkpoint: {error}") from None


def tensors_at(data, wanted):
    """Yields some of the tensors that encode() was given, without marks; the rest is not decoded. wanted: [(number in the order
    of their use, name of the dtype, shape)]. Errors: ValueError where they are others, or no tensors of encode()'s."""
    try:
        entries, _, values = _opened(_as_memory(data))
        for number, name, shape in wanted:
            begin, count = _place_in(entries, number, name, shape), math.prod(shape) * DTYPES[name].itemsize
            if begin + count > len(values):
                raise _wrong(f"tensor {number} is cut off")
            yield _copy_of(values[begin : begin + count], name, shape)
    except _OTHER_ERRORS as error:
        raise ValueError(f"not values of a checkpoint: {error}") from None


_OTHER_ERRORS = (RecursionError, RuntimeError, OverflowError, TypeError)


def _as_memory(data):
    """Bytes that can be written to are read where they are: PyTorch takes no others."""
    found = memoryview(data).cast("B")
    return memoryview(bytearray(found)) if found.readonly else found


def _entry(dtype, shape, count):
    """What the file's header says of a tensor's type."""
    name = tensor_files.DTYPES[dtype]
    return {"dtype": name, "shape": shape} if name else {"dtype": "U8", "shape": [count]}


class _Encoder:
    def __init__(self):
        self.tensors = []  # (entry of the header, its bytes as a tensor)
        self._path = []

    def top(self, values):
        for name in filter(_has_surrogates, values):
            raise TypeError(f"the name {name!r} can't be saved: it has surrogates")
        return {"dict": {name: self._in(name, value) for name, value in values.items()}}

    def _in(self, step, value):
        """value, which is at `step` of what is being encoded."""
        self._path.append(step)
        if len(self._path) > _DEPTH_MAX:
            raise ValueError(f"{self._where()[:200]}: nested more than {_DEPTH_MAX} deep, or it holds itself")
        method = self._METHODS.get(type(value))
        found = method(self, value) if method is not None else self._other(value)
        self._path.pop()
        return found

    def _where(self):
        first, *rest = self._path
        return str(first) + "".join(f"[{step!r}]" for step in rest)

    def _refuse(self, what, advice=_ADVICE):
        raise TypeError(f"{self._where()}: {what} can't be saved: {advice}")

    def _as_it_is(self, value):
        return value

    def _str(self, value):
        if _has_surrogates(value):
            self._refuse(f"text with surrogates, {value[:40]!r},", "save its bytes; those of a path are os.fsencode(path)")
        return value

    def _int(self, value):
        return value if -_SIMPLE_INT <= value < _SIMPLE_INT else {"int": hex(value)}

    def _float(self, value):
        return value if math.isfinite(value) else {"float": struct.pack(">d", value).hex()}

    def _bytes(self, value):
        return {"bytes": base64.b64encode(value).decode()}

    def _items(self, values):
        return [self._in(step, value) for step, value in enumerate(values)]

    def _pairs(self, value):
        return [[self._key(key), self._in(key, item)] for key, item in value.items()]

    def _key(self, key):
        if not _is_key(key):
            self._refuse(f"a {type(key).__qualname__} as a key", "use text or numbers as keys")
        return self._in(key, key)

    def _dict(self, value):
        if all(type(key) is str for key in value):
            return {"dict": {self._str(key): self._in(key, item) for key, item in value.items()}}
        return {"items": self._pairs(value)}

    def _defaultdict(self, value):
        factory = None if value.default_factory is None else getattr(value.default_factory, "__name__", None)
        if _FACTORIES.get(factory) is not value.default_factory:
            self._refuse("a defaultdict of anything but a plain type")
        return {"defaultdict": {"factory": factory, "items": self._pairs(value)}}

    def _set(self, value):
        return {type(value).__name__: [self._key(item) for item in value]}

    def _tensor(self, value):
        name = tensor_files.name_of(value.dtype)
        if value.layout != torch.strided or value.is_meta or value.is_nested:
            self._refuse("a tensor on the meta device" if value.is_meta else "a tensor that is not dense", "make it a dense one")
        if name not in tensor_files.DTYPES:
            self._refuse(f"a tensor of {value.dtype}", "give it a type that has no scales")
        raw, shape = raw_bytes(value), list(value.shape)
        found = {"at": len(self.tensors), "dtype": name, "shape": shape}
        if value.requires_grad:
            found["requires_grad"] = True
        if isinstance(value, torch.nn.Parameter):
            found["parameter"] = True
        self.tensors.append((_entry(name, shape, raw.numel()), raw))
        return {"tensor": found}

    def _other(self, value):
        if isinstance(value, torch.nn.Parameter):  # also one that is on the tiers
            return self._tensor(value)
        if isinstance(value, tuple) and hasattr(type(value), "_fields"):
            return {"tuple": self._items(value)}
        numpy = sys.modules.get("numpy")
        if numpy is not None and (type(value) is numpy.ndarray or isinstance(value, numpy.generic)):
            return self._numpy(numpy, value)
        self._refuse(f"a {type(value).__module__}.{type(value).__qualname__}")

    def _numpy(self, numpy, value):
        if not _NUMPY.fullmatch(value.dtype.str) or value.dtype.str[1:] == "f16":
            self._refuse(f"numpy's {value.dtype}")
        if isinstance(value, numpy.generic):
            return {"scalar": {"dtype": value.dtype.str, "hex": value.tobytes().hex()}}
        raw = torch.empty(value.nbytes, dtype=torch.uint8, device="cpu")
        if value.nbytes:
            ctypes.memmove(raw.data_ptr(), value.tobytes(), value.nbytes)
        self.tensors.append((_entry("uint8", [raw.numel()], raw.numel()), raw))
        return {"array": {"at": len(self.tensors) - 1, "dtype": value.dtype.str, "shape": list(value.shape)}}

    _METHODS = {
        **dict.fromkeys((type(None), bool), _as_it_is),
        str: _str,
        int: _int,
        float: _float,
        complex: lambda self, value: {"complex": [self._float(value.real), self._float(value.imag)]},
        bytes: _bytes,
        list: _items,
        tuple: lambda self, value: {"tuple": self._items(value)},
        dict: _dict,
        collections.OrderedDict: lambda self, value: {"ordered": self._pairs(value)},
        collections.Counter: lambda self, value: {"counter": self._pairs(value)},
        collections.defaultdict: _defaultdict,
        set: _set,
        frozenset: _set,
        torch.Tensor: _tensor,
        torch.Size: lambda self, value: {"size": list(value)},
        torch.dtype: lambda self, value: {"dtype": tensor_files.name_of(value)},
        torch.device: lambda self, value: {"device": str(value)},
    }


def _has_surrogates(text):
    try:
        text.encode()
        return False
    except UnicodeEncodeError:
        return True


def _is_key(value):
    """Whether it can be a key, or in a set: what is equal to itself once more when it comes back."""
    if type(value) in (tuple, frozenset):
        return all(map(_is_key, value))
    plain = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
    numpy = sys.modules.get("numpy")
    return type(value) in plain or (numpy is not None and isinstance(value, numpy.generic))


# ---- Back


def _opened(data):
    """(entries of tensors, the text of the values, the tensors' bytes)"""
    if len(data) < 8:
        raise ValueError(f"not values of a checkpoint: they have {len(data)} bytes")
    (length,) = struct.unpack("<Q", data[:8])
    if length > min(tensor_files.HEADER_MAX, len(data) - 8):
        raise ValueError(f"not values of a checkpoint: the header would have {length} of {len(data)} bytes")
    header = _parsed(bytes(data[8 : 8 + length]))
    metadata = header.pop("__metadata__", None) if type(header) is dict else None
    if type(metadata) is not dict or metadata.keys() != {"format", "value"} or metadata["format"] != "sluice.plain":
        raise ValueError("not values of a checkpoint: the header doesn't say so")
    return header, metadata["value"], data[8 + length :]


def _decode(data):
    entries, text, values = _opened(data)
    decoder = _Decoder(entries, values)
    found = decoder.value(_parsed(text), 0)
    decoder.check_end()
    if type(found) is not dict:
        raise ValueError("not values of a checkpoint: they have no names")
    return found


def _parsed(text):
    def once(pairs):
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key is there twice")
        return found

    def whole(digits):
        if len(digits) > 20 or not -_SIMPLE_INT <= int(digits) < _SIMPLE_INT:
            raise ValueError("a number is too large")
        return int(digits)

    def refuse(name):
        raise ValueError(f"{name} is no JSON")

    if type(text) not in (str, bytes):
        raise ValueError("not values of a checkpoint: the header has no text")
    try:
        return json.loads(text, object_pairs_hook=once, parse_int=whole, parse_constant=refuse)
    except ValueError as error:  # also UnicodeDecodeError and JSONDecodeError
        raise ValueError(f"not values of a checkpoint: {error}") from None


def _wrong(what):
    return ValueError(f"not values of a checkpoint: {what}")


def _typed(value, *types):
    if type(value) not in types:
        raise _wrong(f"a {type(value).__name__} where a {types[0].__name__} is needed")
    return value


class _Decoder:
    def __init__(self, entries, data):
        self._entries = entries
        self._data = data
        self._at = 0  # bytes used
        self._count = 0  # tensors

    def check_end(self):
        if self._count != len(self._entries) or self._at != len(self._data):
            raise _wrong(f"{len(self._entries)} tensors of {len(self._data)} bytes, of which {self._count} and {self._at} are used")

    def value(self, found, depth):
        if depth > _DEPTH_MAX:
            raise _wrong(f"nested more than {_DEPTH_MAX} deep")
        if type(found) is float and not math.isfinite(found):
            raise _wrong("a number is too large")
        if type(found) is list:
            return [self.value(item, depth + 1) for item in found]
        if type(found) is str:
            return self._text(found)
        if type(found) is not dict:
            return found
        if len(found) != 1:
            raise _wrong(f"an object of {len(found)} keys")
        ((kind, inner),) = found.items()
        method = self._METHODS.get(kind)
        if method is None:
            raise _wrong(f"{kind[:40]!r} is no type of value")
        return method(self, inner, depth + 1)

    def _text(self, found):
        if _has_surrogates(found):
            raise _wrong("text with surrogates")
        return found

    def _list(self, inner, depth):
        return [self.value(item, depth) for item in _typed(inner, list)]

    def _key(self, found, depth):
        key = self.value(found, depth)
        if not _is_key(key):
            raise _wrong(f"a {type(key).__name__} as a key")
        return key

    def _pairs(self, inner, depth):
        pairs = []
        for pair in _typed(inner, list):
            if len(_typed(pair, list)) != 2:
                raise _wrong("an item that is no pair")
            pairs.append((self._key(pair[0], depth), self.value(pair[1], depth)))
        return pairs

    def _filled(self, result, inner, depth):
        pairs = self._pairs(inner, depth)
        result.update(pairs)
        if len(result) != len(pairs):
            raise _wrong("a key is there twice")
        return result

    def _dict(self, inner, depth):
        return {self._text(key): self.value(item, depth) for key, item in _typed(inner, dict).items()}

    def _defaultdict(self, inner, depth):
        if _typed(inner, dict).keys() != {"factory", "items"}:
            raise _wrong("a defaultdict of other parts")
        name = _typed(inner["factory"], str, type(None))
        if name is not None and name not in _FACTORIES:
            raise _wrong("a defaultdict of no plain type")
        return self._filled(collections.defaultdict(_FACTORIES[name] if name else None), inner["items"], depth)

    def _set(self, inner, depth):
        items = [self._key(item, depth) for item in _typed(inner, list)]
        if len(found := set(items)) != len(items):
            raise _wrong("an item is in a set twice")
        return found

    def _int(self, inner, depth):
        if not re.fullmatch("-?0x[0-9a-f]+", _typed(inner, str)):
            raise _wrong("an int that is none")
        return int(inner, 16)

    def _float(self, inner, depth):
        if not re.fullmatch("[0-9a-f]{16}", _typed(inner, str)):
            raise _wrong("a float that is none")
        return struct.unpack(">d", bytes.fromhex(inner))[0]

    def _complex(self, inner, depth):
        if len(_typed(inner, list)) != 2:
            raise _wrong("a complex number that is none")
        return complex(*map(self._part, inner))

    def _part(self, found):
        """A float of a complex number: no level of its own."""
        if type(found) is dict and found.keys() == {"float"}:
            return self._float(found["float"], 0)
        if type(found) is not float or not math.isfinite(found):
            raise _wrong("a complex number that is none")
        return found

    def _bytes(self, inner, depth):
        try:
            return base64.b64decode(_typed(inner, str), validate=True)
        except binascii.Error as error:
            raise _wrong(f"bytes: {error}") from None

    def _shape(self, found):
        if any(type(size) is not int or size < 0 for size in _typed(found, list)) or len(found) > 64:
            raise _wrong("a shape that is none")
        return found

    def _raw(self, found, itemsize, name):
        """The bytes of the next tensor, which must be as the header says. name: of its type; None: bytes."""
        shape = self._shape(found["shape"])
        count = math.prod(shape) * itemsize
        begin, self._at = self._at, self._at + count
        entry = self._entries.get(str(self._count))
        expected = {**(_entry(name, shape, count) if name else _entry("uint8", [count], count)), "data_offsets": [begin, self._at]}
        if _typed(found["at"], int) != self._count or entry != expected or self._at > len(self._data):
            raise _wrong(f"tensor {self._count} is not what the header says")
        self._count += 1
        return self._data[begin : self._at]

    def _tensor(self, inner, depth):
        needed, marks = {"at", "dtype", "shape"}, {"requires_grad", "parameter"}
        given = _typed(inner, dict).keys()
        if not needed <= given <= needed | marks or any(inner[mark] is not True for mark in given & marks):
            raise _wrong("a tensor of other parts")
        name = _typed(inner["dtype"], str)
        if name not in tensor_files.DTYPES or name not in DTYPES:
            raise _wrong(f"tensors of {name[:40]!r} are not known here")
        dtype = DTYPES[name]
        raw = self._raw(inner, dtype.itemsize, name)
        tensor = _copy_of(raw, name, inner["shape"])
        wanted = "requires_grad" in inner
        if "parameter" in inner:
            return torch.nn.Parameter(tensor, requires_grad=wanted)
        return tensor.requires_grad_(wanted)

    def _array(self, inner, depth):
        if _typed(inner, dict).keys() != {"at", "dtype", "shape"}:
            raise _wrong("an array of other parts")
        numpy, dtype = _numpy_dtype(inner["dtype"])
        raw = self._raw(inner, dtype.itemsize, None)
        if dtype.kind == "b":
            _check_truth(raw)
        return numpy.frombuffer(raw, dtype).reshape(inner["shape"]).copy()

    def _scalar(self, inner, depth):
        if _typed(inner, dict).keys() != {"dtype", "hex"}:
            raise _wrong("a scalar of other parts")
        numpy, dtype = _numpy_dtype(inner["dtype"])
        if not re.fullmatch(f"[0-9a-f]{{{2 * dtype.itemsize}}}", _typed(inner["hex"], str)):
            raise _wrong("a scalar that is none")
        raw = bytes.fromhex(inner["hex"])
        if dtype.kind == "b" and raw not in (b"\0", b"\1"):
            raise _wrong("a truth value that is none")
        return numpy.frombuffer(raw, dtype)[0]

    def _dtype(self, inner, depth):
        if _typed(inner, str) not in DTYPES:
            raise _wrong("a dtype that PyTorch doesn't have")
        return DTYPES[inner]

    def _device(self, inner, depth):
        if not re.fullmatch("[a-z]{1,20}(:[0-9]{1,2})?", _typed(inner, str)):
            raise _wrong("a device that is none")
        return torch.device(inner)

    _METHODS = {
        "int": _int,
        "float": _float,
        "complex": _complex,
        "bytes": _bytes,
        "tuple": lambda self, inner, depth: tuple(self._list(inner, depth)),
        "dict": _dict,
        "items": lambda self, inner, depth: self._filled({}, inner, depth),
        "ordered": lambda self, inner, depth: self._filled(collections.OrderedDict(), inner, depth),
        "counter": lambda self, inner, depth: collections.Counter(self._filled({}, inner, depth)),
        "defaultdict": _defaultdict,
        "set": _set,
        "frozenset": lambda self, inner, depth: frozenset(self._set(inner, depth)),
        "tensor": _tensor,
        "size": lambda self, inner, depth: torch.Size(self._shape(inner)),
        "dtype": _dtype,
        "device": _device,
        "array": _array,
        "scalar": _scalar,
    }


def _place_in(entries, number, name, shape):
    """The first byte of a tensor, which must be of that kind."""
    entry = entries.get(str(number))
    offsets = entry.get("data_offsets") if type(entry) is dict else None
    if type(offsets) is not list or len(offsets) != 2 or type(offsets[0]) is not int or offsets[0] < 0:
        raise _wrong(f"tensor {number} has no place")
    count = math.prod(shape) * DTYPES[name].itemsize
    if entry != {**_entry(name, list(shape), count), "data_offsets": [offsets[0], offsets[0] + count]}:
        raise _wrong(f"tensor {number} is not {name} of shape {tuple(shape)}")
    return offsets[0]


def _copy_of(raw, name, shape):
    """A tensor of these bytes."""
    if name == "bool":
        _check_truth(raw)
    tensor = torch.empty(shape, dtype=DTYPES[name], device="cpu")
    if raw.nbytes:
        raw_bytes(tensor).copy_(torch.frombuffer(raw, dtype=torch.uint8))
    return tensor


def _check_truth(raw):
    if raw.nbytes and torch.frombuffer(raw, dtype=torch.uint8).max() > 1:
        raise _wrong("a truth value that is none")


def _numpy_dtype(name):
    try:
        import numpy
    except ImportError:
        raise _wrong("numpy's arrays, and numpy is not installed") from None
    if not _NUMPY.fullmatch(_typed(name, str)) or name[1:] == "f16":
        raise _wrong("an array of other things than numbers")
    try:
        return numpy, numpy.dtype(name)
    except TypeError as error:
        raise _wrong(str(error)) from None
