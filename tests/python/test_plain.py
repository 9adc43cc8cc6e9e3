"""Values of checkpoints: each kind comes back as it was, to the bit; what can't is refused by its place; and any bytes are values or
a ValueError."""

import collections
import enum
import math
import pathlib
import random
import struct

import pytest
import torch

from sluice.checkpoints import plain, tensor_files

numpy = pytest.importorskip("numpy")

TENSOR_TYPES = list(dict.fromkeys(plain.DTYPES[name] for name in tensor_files.DTYPES if name in plain.DTYPES))
NUMPY_TYPES = ["?", "i1", "<i2", ">i4", "<i8", "u1", "<u8", "<f2", ">f4", "<f8", "<c8", "<c16"]
FLOATS = [0.0, -0.0, 1.5, 5e-324, 1e308, math.inf, -math.inf, math.nan, struct.unpack(">d", bytes.fromhex("fff8000000000123"))[0]]
INTS = [0, -1, 2**63 - 1, -(2**63), 2**63, -(2**63) - 1, 1 << 20000]
TEXTS = ["", "a", "é\0\n\"\\", "𝄞", "__proto__", "tensor"]
HALVES = ["\ud800", "\udc00", "a\udcff", "\ud800\udc00", "\udc00\ud800"]  # surrogates are no text
Named = collections.namedtuple("Named", "a b")


def same(a, b):
    """In type and bits."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        kinds = a.dtype == b.dtype and a.shape == b.shape and a.requires_grad == b.requires_grad
        return kinds and plain.raw_bytes(a).equal(plain.raw_bytes(b))
    if isinstance(a, (numpy.ndarray, numpy.generic)):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, float):
        return struct.pack(">d", a) == struct.pack(">d", b)
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        factories = getattr(a, "default_factory", None) is getattr(b, "default_factory", None)
        return factories and same(list(a.keys()), list(b.keys())) and same(list(a.values()), list(b.values()))
    if isinstance(a, (set, frozenset)):
        return a == b and {type(x) for x in a} == {type(x) for x in b}
    return a == b


def back(value):
    return plain.decode(plain.encode({"x": value}))["x"]


def tensor(draw, dtype, shape):
    count = math.prod(shape) * dtype.itemsize
    raw = bytes(draw.randrange(2) if dtype == torch.bool else draw.randrange(256) for _ in range(count))
    whole = torch.frombuffer(bytearray(raw), dtype=torch.uint8) if count else torch.empty(0, dtype=torch.uint8)
    return whole.view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)


@pytest.mark.parametrize("dtype", TENSOR_TYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3, 5)], ids=str)
@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_tensors_of_every_type_and_shape(dtype, shape):
    value = tensor(random.Random(1), dtype, shape)
    assert same(back(value), value)
    if len(shape) == 3:
        for view in (value.transpose(0, 2), value[:, 1:], value[1], value[:1].expand(4, -1, -1)):
            assert same(back(view), view.contiguous())


def test_marks_and_memory_of_tensors():
    leaf = torch.randn(3, requires_grad=True)
    parameter = torch.nn.Parameter(torch.randn(2), requires_grad=False)
    shared = torch.arange(6.0)
    for value in (leaf, parameter, torch.nn.Parameter(torch.randn(2, 2)), torch.randn(3, dtype=torch.complex64).conj()):
        found = back(value)
        assert same(found, value.resolve_conj()) and found.is_leaf
    assert same(back(leaf * 2), (leaf * 2).detach().requires_grad_())
    one, other = back([shared, shared])
    one.fill_(7)
    assert same(other, shared)
    tiny = torch.zeros(1 << 20)[5:6]
    assert len(plain.encode({"x": tiny})) < 1000


@pytest.mark.parametrize("dtype", NUMPY_TYPES)
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)], ids=str)
def test_arrays_and_scalars_of_every_type(dtype, shape):
    draw = numpy.random.default_rng(1)
    value = draw.integers(0, 2, shape).astype(dtype) if dtype == "?" else (draw.normal(size=shape) * 50).astype(dtype)
    value = numpy.asarray(value, dtype)
    assert same(back(value), value) and same(back(value.T), value.T)
    if value.size:
        scalar = value.reshape(-1)[0]
        assert same(back(scalar), scalar)


def test_simple_values():
    for value in (*FLOATS, *INTS, *TEXTS, None, True, b"", bytes(range(256)), 1j, complex(math.nan, -0.0)):
        _is_whole(value)


def _is_whole(value):
    assert same(back(value), value)
    if value == value:
        assert same(back({value: 1}), {value: 1}) and same(back({value}), {value}) and same(back((value,)), (value,))


def test_containers():
    counted = collections.defaultdict(list, {"a": [1], (2, None): []})
    for value in (
        {"b": 1, "a": 2}, {1: "a", None: "b", (1, frozenset({2})): "c", b"x": 3, 1.5: 4}, {"tensor": {"at": 0}}, {}, [], (), set(),
        frozenset({1, "a"}), collections.OrderedDict([("z", 1), (3, 2)]), counted, collections.Counter({"a": 2, 3: -1}),
        collections.defaultdict(None, {1: 2}),
        torch.Size([2, 3]), torch.Size([]), torch.float8_e4m3fn, torch.qint8, torch.device("cuda:3"), torch.device("cpu"),
        {torch.float32: torch.device("meta")}, [[[{"a": [(1, [2])]}]]], random.Random(3).getstate(), numpy.random.get_state(),
    ):  # fmt: skip
        assert same(back(value), value), value
    assert same(back(Named(1, [2])), (1, [2]))


def drawn(draw, depth=0):
    simple = [
        lambda: draw.choice(INTS), lambda: draw.choice(FLOATS), lambda: draw.choice(TEXTS), lambda: draw.choice([None, True, False]),
        lambda: complex(draw.choice(FLOATS), draw.choice(FLOATS)),
        lambda: draw.randbytes(draw.randrange(9)), lambda: draw.getrandbits(draw.choice([8, 64, 200])) - 2**63,
    ]  # fmt: skip
    key = lambda: draw.choice([draw.choice(TEXTS), draw.randrange(99), (draw.choice(TEXTS), draw.randrange(9)), draw.randbytes(3)])
    if depth > 4 or draw.random() < 0.4:
        kinds = [*simple, lambda: tensor(draw, draw.choice(TENSOR_TYPES), draw.choice([(), (0,), (3,), (2, 2)]))]
        kinds += [lambda: numpy.frombuffer(draw.randbytes(16), draw.choice(["<f4", "<i2", "u1"])), lambda: numpy.float32(draw.random())]
        return draw.choice(kinds)()
    below = lambda: drawn(draw, depth + 1)
    count = range(draw.randrange(4))
    return draw.choice(
        [
            lambda: [below() for _ in count], lambda: tuple(below() for _ in count), lambda: {key(): below() for _ in count},
            lambda: {draw.choice(TEXTS): below() for _ in count}, lambda: {key() for _ in count},
            lambda: frozenset(key() for _ in count), lambda: collections.OrderedDict((key(), below()) for _ in count),
            lambda: collections.defaultdict(int, {key(): below() for _ in count}),
        ]
    )()  # fmt: skip


def test_random_values():
    for seed in range(400):
        value = drawn(random.Random(seed))
        assert same(back(value), value), f"seed {seed}"


WRAPS = {
    "list": lambda inner: [inner], "tuple": lambda inner: (inner,), "dict": lambda inner: {"a": inner}, "items": lambda inner: {1: inner},
    "ordered": lambda inner: collections.OrderedDict(a=inner), "defaultdict": lambda inner: collections.defaultdict(int, {2: inner}),
}  # fmt: skip


def test_random_values_at_every_depth():
    """What is encoded can be decoded, also at the deepest place that there is; one deeper is refused."""
    for seed in range(400):
        draw = random.Random(seed)
        value, deepest = drawn(draw), seed % 2
        levels = draw.choices(list(WRAPS.values()), k=plain._DEPTH_MAX - height(value) - deepest)
        for wrap in levels:
            value = wrap(value)
        if deepest:
            assert same(back(value), value), f"seed {seed}"
        else:
            with pytest.raises(ValueError, match="nested more than"):
                plain.encode({"x": value})


def height(value):
    """How many levels are below it."""
    if isinstance(value, dict):
        return 1 + max((max(height(key), height(item)) for key, item in value.items()), default=-1)
    if isinstance(value, (list, tuple, set, frozenset)) and not isinstance(value, torch.Size):
        return 1 + max(map(height, value), default=-1)
    return 0


def test_random_texts():
    """Each comes back as it was, or is refused: no two become one."""
    found = collections.Counter()
    for seed in range(400):
        draw = random.Random(seed)
        text = "".join(draw.choice([*TEXTS, *HALVES]) for _ in range(draw.randrange(4)))
        place = draw.choice([lambda: text, lambda: {text: 1}, lambda: {1: [text]}, lambda: {(text, 1): 2}, lambda: {text}, lambda: (text,)])
        is_text = not any("\ud800" <= character <= "\udfff" for character in text)
        found[is_text] += 1
        if is_text:
            assert same(back(place()), place()), f"seed {seed}"
        else:
            with pytest.raises(TypeError, match=r"^x\b.*surrogate") as error:
                plain.encode({"x": place()})
            str(error.value).encode()
    assert min(found.values()) > 100, found


def test_halves_of_characters_are_refused_by_their_place():
    for half in HALVES:
        for value, place in ((half, r"client_state['a'][0]"), ({half: 1}, r"client_state['a'][0]"), ({1: half}, r"client_state['a'][0][1]")):
            with pytest.raises(TypeError) as error:
                plain.encode({"client_state": {"a": [value]}})
            assert str(error.value).startswith(f"{place}: ")
        with pytest.raises(TypeError, match="surrogate"):
            plain.encode({half: 1})
        text = ascii(half)[1:-1]
        for crafted_text in (f'{{"dict":{{"a":"{text}"}}}}', f'{{"dict":{{"{text}":1}}}}'):
            if half != "\ud800\udc00":  # which JSON has for one whole character
                with pytest.raises(ValueError, match="surrogate"):
                    plain.decode(crafted(crafted_text))


def test_random_changes_of_bytes_are_values_or_an_error():
    """And never another error, nor much memory, nor anything run."""
    found = collections.Counter()
    for seed in range(4000):
        draw = random.Random(seed)
        data = bytearray(plain.encode({"x": drawn(draw), "y": [drawn(draw)]}))
        for _ in range(draw.choice([1, 1, 2, 8])):
            at = draw.randrange(len(data))
            change = draw.randrange(4)
            if change == 0:
                data[at] ^= 1 << draw.randrange(8)
            elif change == 1:
                del data[at : at + draw.randrange(1, 9)]
            elif change == 2:
                data[at:at] = data[draw.randrange(len(data)) :][: draw.randrange(1, 30)]
            else:
                data[at : at + 1] = draw.choice([b"9", b"[", b"{", b'"', b"e", b"-", b"\0", b"\xff"])
            if not data:
                break
        try:
            values = plain.decode(bytes(data))
            found["a value"] += 1
            assert same(plain.decode(plain.encode(values)), values), f"seed {seed}"
        except ValueError:
            found["an error"] += 1
    assert min(found.values()) > 50, found


class Colour(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    LOW = 1


class Text(str):
    pass


class Mapping(dict):
    pass


@pytest.mark.parametrize(
    "value, what",
    [
        (Colour.RED, "Colour"), (Level.LOW, "Level"), (Text("a"), "Text"), (Mapping(), "Mapping"), (object(), "object"),
        (print, "builtin"), (lambda: 0, "function"), (pathlib.Path("a"), "Path"), (range(3), "range"), (iter([]), "iterator"),
        (bytearray(b"a"), "bytearray"), (numpy.array([object()]), "object"),
        (numpy.array(["a"]), "<U1"), (numpy.ma.array([1]), "MaskedArray"), (numpy.longdouble(1), "float128"),
        (numpy.datetime64("2026-01-01"), "datetime64"), (torch.empty(2, device="meta"), "meta"), (torch.eye(2).to_sparse(), "dense"),
        (collections.defaultdict(lambda: 0), "defaultdict"),
        (torch.Generator(), "Generator"), (torch.nn.Linear(1, 1), "Linear"), (int, "type"),
    ],
)  # fmt: skip
def test_what_cannot_be_saved_is_refused_by_its_place(value, what):
    with pytest.raises(TypeError) as error:
        plain.encode({"client_state": {"ok": 1, "deep": [0, {3: value}]}})
    words = str(error.value)
    assert words.startswith("client_state['deep'][1][3]: ") and what in words and "can't be saved: " in words


def test_keys_that_cannot_be_saved():
    for key in (torch.ones(1), Colour.RED, (1, object())):
        for value in ({key: 1}, {key}):
            with pytest.raises(TypeError, match=r"client_state\['a'\]: .* as a key"):
                plain.encode({"client_state": {"a": value}})


def test_what_holds_itself_or_is_too_deep():
    endless = []
    endless.append(endless)
    deep = 0
    for _ in range(100):
        deep = [deep]
    for value in (endless, deep):
        with pytest.raises(ValueError, match="nested more than"):
            plain.encode({"a": value})


def crafted(text, *tensors):
    import json

    header = {"__metadata__": {"format": "sluice.plain", "value": text}}
    header.update((str(n), entry) for n, entry in enumerate(tensors))
    head = json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100000, '{"dict":' * 500 + "1" + "}" * 500, "NaN", "-Infinity", "1e999", "9" * 5000, '{"dict":{"a":1,"a":2}}', '{"b":1}',
        '{"dict":{"a":{"items":[[{"tensor":{"at":0,"dtype":"float32","shape":[0]}},1]]}}}', '{"dict":{"a":{"set":[1,true]}}}',
        '{"dict":{"a":{"int":"0x"}}}', '{"dict":{"a":{"float":"zz"}}}', '{"dict":{"a":{"bytes":"*"}}}', '{"dict":{"a":{"size":[-1]}}}',
        '{"dict":{"a":{"device":"os.system(1)"}}}', '{"dict":{"a":{"device":"nothing"}}}', '{"dict":{"a":{"dtype":"load"}}}',
        '{"dict":{"a":{"scalar":{"dtype":"|O8","hex":"0000000000000000"}}}}', '{"dict":{"a":{"scalar":{"dtype":"|b1","hex":"02"}}}}',
        '{"dict":{"a":{"defaultdict":{"factory":"eval","items":[]}}}}', '{"dict":{"a":{"tensor":{"at":0,"dtype":"float32","shape":[1]}}}}',
        '{"dict":{"a":{"tensor":{"at":0,"dtype":"float32","shape":[4611686018427387904,0]}}}}', "[]", "1", "",
        '{"dict":{"a":{"complex":[1,2]}}}', '{"dict":{"a":{"complex":[1.0]}}}', '{"dict":{"a":{"complex":[1.0,{"complex":[1.0,1.0]}]}}}',
        '{"dict":{"a":{"complex":[1.0,1e999]}}}', '{"dict":{"a":{"set":[[1]]}}}', '{"dict":{"a":{"tuple":3}}}', '{"dict":{"a":{"ordered":[[1]]}}}',
    ],
)  # fmt: skip
def test_crafted_bytes_are_refused(text):
    with pytest.raises(ValueError):
        plain.decode(crafted(text))


def test_bytes_that_are_no_file():
    whole = plain.encode({"a": torch.arange(5)})
    for data in (b"", b"\0" * 7, b"\xff" * 8, whole[:-1], whole + b"\0", struct.pack("<Q", 1 << 40) + whole[8:], whole[8:]):
        with pytest.raises(ValueError, match="not values of a checkpoint"):
            plain.decode(data)


@pytest.mark.parametrize("dtype", TENSOR_TYPES, ids=str)
def test_some_tensors_without_the_rest(dtype):
    """Any of them, in any order; not as what they aren't, nor where none is."""
    draw, name = random.Random(4), tensor_files.name_of(dtype)
    given = [tensor(draw, dtype, shape) for shape in ((), (0,), (3,), (2, 0, 3), (2, 3, 5))]
    data = plain.encode({"a": given[:2], "b": {1: given[2:]}, "c": "x" * 100})
    places = list(enumerate(given))
    for order in (places, places[::-1], places[1:3], []):
        found = list(plain.tensors_at(data, [(at, name, tuple(value.shape)) for at, value in order]))
        assert len(found) == len(order) and all(same(a, b) for a, (_, b) in zip(found, order))
    found[:] = plain.tensors_at(data, [(2, name, (3,))] * 2)
    plain.raw_bytes(found[0]).fill_(0)
    assert same(found[1], given[2]) and same(plain.decode(data)["b"][1][0], given[2])
    other = "int64" if name != "int64" else "float64"
    for wanted in ((5, name, (3,)), (-1, name, (3,)), (2, name, (4,)), (2, name, (3, 1) if _entry_of(dtype) else (2,)), (2, other, (3,))):
        with pytest.raises(ValueError, match="not values of a checkpoint"):
            list(plain.tensors_at(data, [wanted]))
    for broken in (b"", data[:-1], data[:20], b"\xff" * 30):
        with pytest.raises(ValueError, match="not values of a checkpoint"):
            list(plain.tensors_at(broken, [(4, name, (2, 3, 5))]))


def _entry_of(dtype):
    """Whether the file says of which type, and so which shape, it is."""
    return tensor_files.DTYPES[tensor_files.name_of(dtype)]


@pytest.mark.parametrize(
    "entry",
    [
        1, [], {}, {"dtype": "F32", "shape": [1]}, {"dtype": "F32", "shape": [1], "data_offsets": [0]},
        {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}, {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [1], "data_offsets": ["0", 4]}, {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [1 << 62, (1 << 62) + 4]}, {"dtype": "I32", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "more": 1},
    ],
)  # fmt: skip
def test_crafted_places_of_tensors_are_refused(entry):
    with pytest.raises(ValueError, match="not values of a checkpoint"):
        list(plain.tensors_at(crafted("1", entry), [(0, "float32", (1,))]))


def test_any_reader_of_safetensors_sees_the_tensors():
    safetensors = pytest.importorskip("safetensors.torch")
    given = {f"{n}": tensor(random.Random(n), dtype, (2, 3)) for n, dtype in enumerate(TENSOR_TYPES)}
    found = safetensors.load(bytes(plain.encode(given)))
    for name, value in given.items():
        assert plain.raw_bytes(found[name]).equal(plain.raw_bytes(value))
