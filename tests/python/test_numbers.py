"""Numbers and texts that cross into C: each arrives as it is, or is refused by the name of its field. The oracle is
arithmetic over the width and sign of the C type."""

import ctypes
import math
import operator
import os
import types

import numpy
import pytest
import sluice
import torch
from sluice.config import load_config, parse_bytes
from sluice.deepspeed.config_keys import KEYS
from sluice.engine.library_options import library_options
from sluice.native import abi
from sluice.native import checked as crossing
from sluice.settings.checking import checked
from sluice.settings.keys import USED, Key
from training import FEATURES, ROOT, mlp

POWERS = [sign * (1 << power) + more for power in (7, 31, 32, 53, 61, 63, 64, 200) for sign in (1, -1) for more in (-1, 0, 1)]
NUMPY = [numpy.int8(-1), numpy.int64(5), numpy.uint64(2**64 - 1), numpy.float32(0.5), numpy.float16(2), numpy.bool_(True)]
REALS = [0.0, 0.5, 4.0, -1.5, 1e308, float("1e400"), -math.inf, math.nan]
OTHERS = [True, False, None, "5", "", b"5", [5], (), {}, 10**5000, 1j, torch.tensor(3), torch.tensor(0.5)]
VALUES = [*POWERS, 0, 1, 5, *NUMPY, *REALS, *OTHERS]


def named(values):
    return [pytest.param(value, id=crossing.shown(value)[:40]) for value in values]


def whole(value):
    """`value` as the int it is, or None: by Python's own protocol for whole numbers."""
    try:
        return None if isinstance(value, (bool, numpy.bool_)) else operator.index(value)
    except TypeError:
        return None


def fits(ctype, value):
    bits = 8 * ctypes.sizeof(ctype)
    signed = ctype(-1).value < 0
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    return value is not None and low <= value <= high


def finite(value):
    """`value` as the float it is, or None."""
    if isinstance(value, (bool, numpy.bool_, torch.Tensor, str, bytes, complex)):
        return None
    try:
        number = float(value)
    except (TypeError, OverflowError):
        return None
    return number if math.isfinite(number) else None


STRUCTURES = [s for s in vars(abi).values() if isinstance(s, type) and issubclass(s, ctypes.Structure) and s is not abi.Structure]
WHOLE = (ctypes.c_int32, ctypes.c_uint32, ctypes.c_int64, ctypes.c_uint64, ctypes.c_size_t)
FIELDS = [(s, name, ctype) for s in STRUCTURES for name, ctype in s._fields_ if ctype in (*WHOLE, ctypes.c_double)]


@pytest.mark.parametrize("structure, name, ctype", FIELDS, ids=[f"{s.__name__}.{name}" for s, name, _ in FIELDS])
def test_a_field_holds_what_it_was_given_or_refuses_by_name(structure, name, ctype):
    for value in VALUES:
        expected = finite(value) if ctype is ctypes.c_double else whole(value)
        good = expected is not None if ctype is ctypes.c_double else fits(ctype, expected)
        made = structure()
        if good:
            setattr(made, name, value)
            assert getattr(made, name) == expected
            continue
        with pytest.raises(sluice.InvalidArgument, match=f"^{name}: must be"):
            setattr(made, name, value)
        if name != "struct_size":
            with pytest.raises(sluice.InvalidArgument, match=f"^{name}: must be"):
                structure(**{name: value})


def test_every_structure_is_looked_at_and_knows_its_fields():
    assert {s.__name__ for s in STRUCTURES} >= {"Options", "Group", "StepArgs", "Rates", "Place", "Gradient"}
    for structure in STRUCTURES:
        with pytest.raises(TypeError, match="has no field wrokers"):
            structure(wrokers=1)


@pytest.mark.parametrize("name, ctype", abi.Gradient._fields_)
@pytest.mark.parametrize("count", [1, 3])
def test_gradients_arrive_as_they_are_or_are_refused_by_name(name, ctype, count):
    """They are converted together."""
    good = dict(data=2**64 - 1, elements=-(2**63), tensor=2**32 - 1, lent=1)
    for value in [*VALUES, ctype(5)]:
        given = [good] * (count - 1) + [{**good, name: value}]
        if value is None and ctype is ctypes.c_void_p or isinstance(value, ctype):
            expected = None if value is None else 5
        else:
            expected = operator.index(value) if isinstance(value, bool) else whole(value)
            if not fits(ctypes.c_uint64 if ctype is ctypes.c_void_p else ctype, expected):
                with pytest.raises(sluice.InvalidArgument, match=f"^{name}: must be"):
                    abi.Gradient.array([tuple(g.values()) for g in given])
                continue
        array = abi.Gradient.array([tuple(g.values()) for g in given])
        arrived = [{field: getattr(gradient, field) for field, _ in abi.Gradient._fields_} for gradient in array]
        null = {"data": None} if (name, expected) == ("data", 0) else {}  # how ctypes says it
        assert arrived == [good] * (count - 1) + [{**good, name: expected, **null}]


class Calls:
    """In place of the library: counts what gets through."""

    def __init__(self):
        self.seen = []

    def __getattr__(self, name):
        return lambda *arguments: self.seen.append((name, arguments)) or 0


ARGUMENTS = [
    (function, index, name, ctype)
    for function, arguments in abi._ARGUMENTS.items()
    for index, (name, ctype) in enumerate(arguments.items())
    if ctype in (*WHOLE, ctypes.c_double, ctypes.c_char_p, ctypes.c_void_p)
]


@pytest.mark.parametrize("function, index, name, ctype", ARGUMENTS, ids=[f"{f}.{n}" for f, _, n, _ in ARGUMENTS])
def test_an_argument_arrives_as_it_is_or_is_refused_by_name(function, index, name, ctype):
    library = abi.Library()
    library._lib = calls = Calls()
    count = len(abi._ARGUMENTS[function])

    def call(value):
        del calls.seen[:]
        types_of = list(abi._ARGUMENTS[function].values())
        others = [0 if t in WHOLE else None for t in types_of]
        library.call(function, *[value if i == index else others[i] for i in range(count)])
        return calls.seen[0][1][index]

    if ctype is ctypes.c_char_p:
        assert call(b"plain") == b"plain"
        with pytest.raises(sluice.InvalidArgument, match=f"^{name}: must not hold a NUL"):
            call(b"cut\0here")
        return
    for value in VALUES:
        if ctype is ctypes.c_void_p and value is None:
            continue
        expected = whole(value)
        if fits(ctypes.c_uint64 if ctype is ctypes.c_void_p else ctype, expected):
            assert call(value) == expected
        else:
            with pytest.raises(sluice.InvalidArgument, match=f"^{name}: must be"):
                call(value)
            assert not calls.seen


class Watched:
    """In place of the library: every argument on its way into it fits its C type, as numbers that nobody looked at must."""

    def __init__(self, library):
        self.seen = set()
        self._library = library

    def __getattr__(self, name):
        function = getattr(self._library, name)

        def call(*arguments):
            self.seen.add(name)
            for ctype, value in zip(abi._ARGUMENTS[name].values(), arguments, strict=True):
                width = ctypes.c_uint64 if ctype is ctypes.c_void_p else ctype
                if width in WHOLE and value is not None:
                    assert isinstance(value, ctype) or fits(width, whole(value)), (name, value)
            return function(*arguments)

        return call if name in abi._ARGUMENTS else function


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("hbm", [None, "256KiB"])
def test_what_the_package_passes_unlooked_at_fits(monkeypatch, dtype, hbm):
    library = abi.Library.default()
    watched = Watched(library._lib)
    monkeypatch.setattr(library, "_lib", watched)
    model = mlp()
    attached = sluice.attach(model, optimizer=torch.optim.AdamW, dtype=dtype, hbm=hbm, chunk_elements=4096, workers=1)
    for _ in range(3):
        model(torch.ones(2, FEATURES, dtype=dtype)).sum().backward()
        attached.step()
        attached.zero_grad()
    attached.destroy()
    assert watched.seen >= {f"sluice_{name}" for name in ("wait", "acquire", "release", "unit_view", "grads")}


def test_the_functions_are_those_of_the_header():
    text = "".join((ROOT / "offload" / name).read_text() for name in ("sluice.h", "sluice_checkpoint.h"))
    for function, arguments in abi._FUNCTIONS.items():
        declared = text[text.index(f"{function}(") :]
        declared = declared[: declared.index(");")]
        for name in arguments:
            assert name in declared, f"{function} has no argument {name}"


# ---- The configuration


def numeric(keys=KEYS, path=()):
    for name, key in keys.items():
        if not isinstance(key, Key):
            yield from numeric(key, (*path, name))
        elif key.kind == USED and key.type in ("number", "count", "positive", "size"):
            yield ".".join((*path, name)), key


NUMERIC = list(numeric())


BESIDES = {"sluice.checkpoint.keep_every": {"keep_last": 1}}  # what a key is of no use without


def nested(path, value):
    *names, last = path.split(".")
    value = {last: value, **BESIDES.get(path, {})}
    for name in reversed(names):
        value = {name: value}
    return value


def acceptable(key, value):
    """The value that a key takes for `value`, or None."""
    if key.type == "size" and isinstance(value, str):
        value = int(value) if value.isdigit() else None
    if isinstance(value, (bool, numpy.bool_, str, bytes, torch.Tensor, complex)) or value is None:
        return None
    try:
        number = float(value) if key.type == "number" else int(value)
    except (TypeError, OverflowError, ValueError):
        return None
    if math.inf in (number, -number) or number != (float(value) if key.type == "number" else value):
        return None
    low = 1 if key.type == "positive" else 0
    high = key.high or {"number": math.inf, "size": 2**61 - 1}.get(key.type, 2**63 - 1)
    return number if low <= number <= high else None


@pytest.mark.parametrize("path, key", NUMERIC, ids=[path for path, _ in NUMERIC])
def test_a_key_takes_a_number_as_it_is_or_refuses_it_by_name(path, key):
    for value in VALUES:
        if value is None:
            continue
        expected = acceptable(key, value)
        if expected is None:
            with pytest.raises(sluice.ConfigError, match=f"^{path}: "):
                load_config(nested(path, value))
            with pytest.raises(sluice.ConfigError, match="^argument: "):
                checked(key, value, "argument")
        else:
            load_config(nested(path, value))
            assert checked(key, value, "argument") == expected


def plan_of(config):
    """What the library says to a configuration, without making anything."""
    own = {**config.own}
    options = library_options(config)
    assert not own.keys() - set(KEYS["sluice"])
    spec = abi.ModelSpec(abi.Library.default(), [("unit", [("tensor", 4096, 0)])])
    try:
        return spec.plan(options)
    finally:
        spec.close()


@pytest.mark.parametrize("path, key", [(p, k) for p, k in NUMERIC if k.high], ids=[p for p, k in NUMERIC if k.high])
def test_the_library_takes_the_most_that_a_key_takes_and_no_more(path, key):
    """Else a number would be refused late, in the library's words, or needlessly."""
    if path == "sluice.simulated_seed":
        pytest.skip("goes to the simulated library only")
    if path.startswith("sluice.checkpoint."):
        pytest.skip("no option of a runtime")
    high = key.high // 4096 * 4096 if path.endswith("chunk_elements") else key.high
    more = {"fp16": {"enabled": True}} if path.startswith("fp16") else {}
    config = nested(path, high)
    for section, keys in more.items():
        config[section] = {**keys, **config[section]}
    plan_of(load_config({**config, "sluice": {"hbm": "1GiB", "pinned": "64GiB", **config.get("sluice", {})}}))
    names = {"queue_depth": "io_depth", "trace_spans": "trace_spans_max", "rank_timeout": "rank_timeout_ms"}
    field = names.get(path.split(".")[-1], path.split(".")[-1])
    if field.endswith("_ms"):
        high *= 1000
    if fits(dict(abi.Options._fields_)[field], high + 4096):
        with pytest.raises(sluice.InvalidArgument, match=f"{field} is"):
            spec = abi.ModelSpec(abi.Library.default(), [("unit", [("tensor", 4096, 0)])])
            spec.plan(abi.Options(**{field: high + 4096 if path.endswith("elements") else high + 1}))


@pytest.mark.parametrize(
    "text, value",
    [("9007199254740993", 2**53 + 1), ("0.5k", 512), ("2305843009213693951", 2**61 - 1), (5e8, 500_000_000), (0, 0)],
)
def test_sizes_are_exact(text, value):
    assert parse_bytes(text) == value


@pytest.mark.parametrize("value", named(["9" * 400, "9" * 60, "1e400", "-1", "1.5.5", "٣MiB", "5 parsecs", 0.5, -5, 2**61, math.inf]))
def test_what_is_no_size_is_refused_by_name(value):
    with pytest.raises(sluice.ConfigError, match="^hbm: "):
        parse_bytes(value, "hbm")


BAD = {"workers": 2**32 + 1, "hbm": 2**64 - 1, "chunk_elements": -1, "persistence_threshold": -5, "clip_norm": math.nan}
BAD |= {"pinned": "lots", "trace_spans": 2**40, "unit_elements": 0.5, "overlap": 2, "nvme_path": "a\0b"}


@pytest.mark.parametrize("name", BAD)
def test_attach_refuses_a_number_by_its_name_and_leaves_the_module_alone(name):
    model = mlp()
    with pytest.raises(sluice.ConfigError, match=f"^{name}: "):
        sluice.attach(model, **{name: BAD[name]})
    assert not any(p.isnan().any() for p in model.parameters())


@pytest.mark.parametrize("name", ["workers", "pinned", "nvme", "chunk_elements", "nvme_path", "simulated_seed"])
def test_adamw_refuses_a_number_by_its_name(name):
    bad = {"nvme": -1, "simulated_seed": 2**64, **BAD}[name]
    with pytest.raises(sluice.ConfigError, match=f"^{name}: "):
        sluice.AdamW(mlp().parameters(), **{name: bad})


# ---- Paths


@pytest.fixture(params=["str", "bytes", "pathlib", "not utf-8"])
def directory(request, tmp_path):
    """A directory on the drive, as users may name it."""
    if request.param == "not utf-8":
        raw = os.fsencode(tmp_path) + b"/\xff\xe9 drive"
        os.mkdir(raw)
        return os.fsdecode(raw)
    return {"str": str, "bytes": os.fsencode, "pathlib": lambda p: p}[request.param](tmp_path)


def test_any_path_of_the_system_works_as_the_place_of_swap_files(directory):
    given = {
        "optimizer": {"type": "AdamW"},
        "zero_optimization": {
            "offload_param": {"device": "nvme", "nvme_path": directory},
            "offload_optimizer": {"device": "nvme", "nvme_path": directory},
        },
        "sluice": {"hbm": "1MiB", "pinned": "4MiB", "workers": 1},
    }
    engine = sluice.initialize(model=mlp(), config=given)[0]
    assert engine.report()["planned_bytes"]["nvme"] >= 0
    engine.close()
    attached = sluice.attach(mlp(), hbm="1MiB", pinned="4MiB", nvme_path=directory, workers=1)
    attached.close()
    model = mlp()
    optimizer = sluice.AdamW(model.parameters(), pinned="8MiB", nvme_path=directory, workers=1)
    model(torch.ones(1, FEATURES)).sum().backward()
    optimizer.step()
    optimizer.close()
    assert sluice.doctor(directory)["path"]["free_bytes"] > 0


@pytest.mark.parametrize("path", named(["a\0b", b"a\0b", "", "\ud800", 5]))
@pytest.mark.parametrize("key", ["zero_optimization.offload_param.nvme_path", "sluice.nvme_path", "sluice.library"])
def test_a_path_that_no_file_system_has_is_refused_by_name(key, path):
    with pytest.raises(sluice.ConfigError, match=f"^{key}: must be"):
        load_config(nested(key, path))
    if not path == "":
        with pytest.raises(sluice.InvalidArgument, match="^nvme_paths: must"):
            abi.Options(nvme_paths=[path])
