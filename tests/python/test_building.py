"""Models that are built inside sluice.init() in the ways people build them, and given to initialize()."""

import contextlib
import copy
import gc
import os
import subprocess
import sys

import pytest
import torch
from test_spool import descriptors
from training import ROOT, same

import sluice
from sluice.residency import away

TIERS = {"hbm": "1MiB", "pinned": "8MiB", "device": "host", "workers": 1}
CONFIG = {"sluice": TIERS}


def net(width=24, layers=4):
    return torch.nn.Sequential(*[torch.nn.Linear(width, width) for _ in range(layers)])


def seeded(seed=1, make=net, **options):
    torch.manual_seed(seed)
    return make(**options)


def init(directory, limit_bytes=1):
    return sluice.init(directory=directory, limit_bytes=limit_bytes)


def zero_init(directory):
    context = sluice.zero.Init()
    context._directory, context._limit = directory, 1
    return context


CONTEXTS = [init, zero_init]


def masters(model):
    """What an engine that is given the model has."""
    engine = sluice.initialize(model=model, config=CONFIG)[0]
    try:
        return dict(engine.fp32_state_dict())
    finally:
        engine.close()


def values(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


# ---- Ways to build


def plain(model_of):
    return model_of()


def on_meta_then_assigned(model_of):
    """from_pretrained() of Transformers, version 4 and 5."""
    with torch.device("meta"):
        model = model_of()
    model.load_state_dict(seeded().state_dict(), assign=True)
    return model


def on_meta_then_one_by_one(model_of):
    with torch.device("meta"):
        model = model_of()
    for name, value in seeded().state_dict().items():
        path, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(path), leaf, torch.nn.Parameter(value))
    return model


def on_meta_then_into_dicts(model_of):
    """As accelerate's set_module_tensor_to_device()."""
    with torch.device("meta"):
        model = model_of()
    for name, value in seeded().state_dict().items():
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        module._parameters[leaf] = type(module._parameters[leaf])(value, requires_grad=True)
    return model


def on_meta_then_to_empty(model_of):
    with torch.device("meta"):
        model = model_of()
    model.to_empty(device="cpu")
    torch.manual_seed(1)
    return model.apply(lambda m: m.reset_parameters() if isinstance(m, torch.nn.Linear) else None)


def loaded(model_of):
    model = model_of()
    model.load_state_dict(seeded(1).state_dict())
    return model


def skipped(model_of):
    """torch.nn.utils.skip_init(), and no_init contexts that take the initialisers away."""
    model = torch.nn.Sequential(*[torch.nn.utils.skip_init(torch.nn.Linear, 24, 24) for _ in range(4)])
    model.load_state_dict(seeded(1).state_dict())
    return model


def without_initialisers(model_of):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Linear, "reset_parameters", lambda self: None)
        model = model_of()
    model.load_state_dict(seeded(1).state_dict())
    return model


def initialised_while_gathered(model_of):
    """initialize_weights_zero3() of Transformers, and DeepSpeed's own idiom."""
    model, source = model_of(), seeded(1)
    for name, module in model.named_children():
        with sluice.zero.GatheredParameters(list(module.parameters(recurse=False)), modifier_rank=0), torch.no_grad():
            module.weight.copy_(source.get_submodule(name).weight)
            module.bias.data.copy_(source.get_submodule(name).bias.data)
    return model


def cloned_layers(model_of):
    """nn.TransformerEncoder makes deep copies of its layers."""
    first = model_of()[0]
    model = torch.nn.Sequential(*[copy.deepcopy(first) for _ in range(4)])
    for module, source in zip(model, seeded(1)):
        with torch.no_grad():
            module.weight.copy_(source.weight), module.bias.copy_(source.bias)
    return model


def nested(model_of):
    torch.manual_seed(1)
    with sluice.init(limit_bytes=1):
        first = model_of()[:2]
    with sluice.zero.Init(enabled=False):
        return first.extend(model_of()[:2])


def in_a_default_dtype(model_of):
    torch.set_default_dtype(torch.bfloat16)
    try:
        torch.manual_seed(1)
        return model_of()
    finally:
        torch.set_default_dtype(torch.float32)


def in_a_device_context(model_of):
    with torch.device("cpu"):
        return model_of()


def converted(model_of):
    return model_of().half()


def converted_and_loaded(model_of):
    model = model_of().to(torch.bfloat16)
    model.load_state_dict(seeded(1).state_dict())
    return model


WAYS = [
    plain, on_meta_then_assigned, on_meta_then_one_by_one, on_meta_then_into_dicts, on_meta_then_to_empty, loaded, skipped,
    without_initialisers, initialised_while_gathered, cloned_layers, nested, in_a_default_dtype, in_a_device_context, converted,
    converted_and_loaded,
]  # fmt: skip


@pytest.mark.parametrize("context", CONTEXTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("way", WAYS, ids=lambda f: f.__name__)
def test_the_engine_has_the_values_that_were_built(way, context, tmp_path):
    torch.manual_seed(1)
    expected = way(net)
    torch.manual_seed(1)
    with context(tmp_path):
        model = way(net)
    gc.collect()
    assert sum(away.is_owned(p) for p in model.parameters()) >= 6, "nothing was spooled, so this proves nothing"
    assert type(model[0]._parameters) is dict
    assert same(dict(model.state_dict()), dict(expected.state_dict()))
    wanted = {name: value.float() for name, value in values(expected).items()}
    assert same(masters(model), wanted)
    del model
    gc.collect()
    assert descriptors(tmp_path) == []


@pytest.mark.parametrize("operation", ["plain", "load", "state_dict"])
def test_after_the_block_it_is_a_model_like_any_other(operation, tmp_path):
    """And what is built then is in RAM."""
    with init(tmp_path):
        model = seeded()
    later = seeded(2)
    assert not any(away.is_owned(p) for p in later.parameters())
    if operation == "load":
        model.load_state_dict(later.state_dict())
    elif operation == "state_dict":
        later.load_state_dict(model.state_dict())
    else:
        model, later = seeded(), seeded()
    assert same(masters(model), values(later))


def test_two_models_in_one_block_and_one_of_them_dropped(tmp_path):
    with init(tmp_path):
        one, dropped, other = seeded(1), seeded(2), seeded(3)
    del dropped
    gc.collect()
    assert same(masters(one), values(seeded(1)))
    assert len(descriptors(tmp_path)) == 1
    assert same(masters(other), values(seeded(3)))
    assert descriptors(tmp_path) == []


def test_places_in_the_file_are_used_again(tmp_path):
    with init(tmp_path):
        model = seeded(layers=20)
        (fd,) = descriptors(tmp_path)
        size = os.fstat(fd).st_size
        for _ in range(3):
            model.apply(lambda m: isinstance(m, torch.nn.Linear) and m.reset_parameters())
        for _ in range(3):
            model = seeded(layers=20)
        assert os.fstat(fd).st_size <= 2 * size + 4 * 24 * 24 * 2  # the new model while there is the old one
    del model
    assert descriptors(tmp_path) == []


def test_one_context_object_may_be_entered_again_and_again(tmp_path):
    context = init(tmp_path)
    with context:
        outer = seeded(1)
        with context:
            inner = seeded(2)
        outer.append(torch.nn.Linear(24, 24))
    with context:
        last = seeded(3)
    assert [sum(away.is_owned(p) for p in m.parameters()) for m in (outer, inner, last)] == [10, 8, 8]
    assert same(masters(inner), values(seeded(2))) and same(masters(last), values(seeded(3)))


def test_an_exception_ends_the_block(tmp_path):
    with pytest.raises(KeyError), init(tmp_path):
        model = seeded()
        raise KeyError
    assert not any(away.is_owned(p) for p in seeded().parameters())
    assert torch.nn.modules.module._global_parameter_registration_hooks == {}
    assert same(masters(model), values(seeded()))


def test_parameters_that_cannot_come_back_as_they_were_stay_in_ram(tmp_path):
    class Own(torch.nn.Parameter):
        pass

    shared = torch.randn(24, 24)
    with init(tmp_path):
        model = seeded()
        model[0].weight = Own(torch.randn(24, 24))
        model[1].weight = torch.nn.Parameter(torch.randn(24, 24).t())
        model[2].weight = torch.nn.Parameter(shared)
        model[3].weight = torch.nn.Parameter(torch.randn(24, 24, device="meta"))
        model.register_parameter("none", None)
        model.register_parameter("empty", torch.nn.Parameter(torch.empty(0, 3)))
        model.register_parameter("one", torch.nn.Parameter(torch.tensor(2.5)))
        model.register_parameter("bytes", torch.nn.Parameter(torch.arange(9), requires_grad=False))
        model.append(torch.nn.LazyLinear(4))
        model.append(seeded())
    kept = [model[0].weight, model[1].weight, model[2].weight, model[3].weight, model.empty, model[4].weight]
    assert not any(away.is_owned(p) for p in kept)
    assert away.is_owned(model.one) and away.is_owned(model.bytes)
    shared.fill_(7)
    assert model[2].weight.eq(7).all() and model[1].weight.stride() == (1, 24) and type(model[0].weight) is Own
    assert model.one.item() == 2.5 and model.bytes.tolist() == list(range(9))


def test_what_has_no_values_is_named(tmp_path):
    def check(model, error, words, face=lambda model: sluice.initialize(model=model, config=CONFIG)):
        with pytest.raises(error, match=words):
            face(model)

    with torch.device("meta"):
        model = net()
    words = r"0.weight, 0.bias, 1.weight, 1.bias, 2.weight and 3 more of the model are on the meta device .*assign=True"
    check(model, ValueError, words)
    check(model, ValueError, words, lambda model: sluice.attach(model, **TIERS))
    model.load_state_dict({k: v for k, v in seeded().state_dict().items() if k != "2.bias"}, assign=True, strict=False)
    check(model, ValueError, "^2.bias of the model are on the meta device")
    model[2].bias = torch.nn.Parameter(torch.zeros(24))
    model.register_buffer("frequencies", torch.zeros(3, device="meta"), persistent=False)
    check(model, ValueError, "^frequencies of the model")
    model.frequencies = torch.zeros(3)
    check(torch.nn.Sequential(torch.nn.LazyLinear(3)), ValueError, "0.weight, 0.bias of the model have no shape yet")
    assert masters(model)["2.bias"].eq(0).all()  # refusals left it as it was
    check(model, sluice.FailedPrecondition, "parameter 0.weight has no values, since an engine that had them was closed")
    engine = sluice.initialize(model=seeded(), config=CONFIG)[0]
    check(torch.nn.Sequential(engine.module[1]), sluice.FailedPrecondition, "parameter 0.weight is attached already")
    engine.close()


# ---- Nothing is lost where giving a model to an engine fails


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("spooled", [False, True])
def test_a_load_that_fails_leaves_the_model_its_values(spooled, dtype, tmp_path, monkeypatch):
    with init(tmp_path) if spooled else contextlib.nullcontext():
        model = seeded(layers=8).to(dtype)
        model[3].weight.data = model[3].weight.data.to(torch.float32)
    expected = values(model)
    begin = sluice.native.values.write_all

    def failing(runtime, items, *arguments):
        def some():
            for number, item in enumerate(items):
                if number == 9:
                    raise KeyboardInterrupt
                yield item

        return begin(runtime, some(), *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sluice.native.values, "write_all", failing)
        sluice.initialize(model=model, config={**CONFIG, "bf16": {"enabled": True}})
    assert same(values(model), expected)
    assert not model._forward_pre_hooks and not model[0]._forward_hooks
    assert same(masters(model), {name: value.float() for name, value in expected.items()})


# ---- RAM


SCRIPT = """
import gc, sys, torch, sluice
from torch import nn
torch.set_num_threads(1)
LAYERS, WIDTH = 16, 1024  # 64 MiB
sluice.spools.handing_back.LIMIT_BYTES = 8 << 20
def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon"))
class Peak:
    value = 0
    def __init__(self): self.value = 0
    def look(self, *_): self.value = max(self.value, anonymous() - before)
def value(i): return torch.full((WIDTH, WIDTH), float(i))
def make(): return nn.Sequential(*[nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)])
def looking(model):
    for p in model.parameters():
        peak.look()
        yield p
nn.Linear(WIDTH, WIDTH)(torch.ones(1, WIDTH)).sum().backward()
torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1)
peak, before = Peak(), anonymous()
how = sys.argv[1]
with sluice.init(directory=sys.argv[2], limit_bytes=8 << 20):
    if how.startswith("meta"):
        with torch.device("meta"):
            model = make()
        for i, module in enumerate(model):
            if how == "meta, dicts":
                module._parameters["weight"] = nn.Parameter(value(i))
            elif how == "meta, assigned":
                model.load_state_dict({f"{i}.weight": value(i)}, assign=True, strict=False)
            else:
                module.weight = nn.Parameter(value(i))
            peak.look()
    elif how == "copies":
        model = nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False))
        for i in range(1, LAYERS):
            model.append(__import__("copy").deepcopy(model[0]))
            peak.look()
    else:
        model = make()
        peak.look()
dtype = torch.float32
for i, p in enumerate(looking(model)):
    if how == "load":
        model.load_state_dict({f"{i}.weight": value(i)}, strict=False)
    elif not how.startswith("meta"):
        with sluice.zero.GatheredParameters([p], modifier_rank=0):
            p.data.copy_(value(i))
if how == "half":
    model.half(); dtype = torch.float16
if how == "bfloat16":
    for p in looking(model): p.data = p.data.bfloat16()
    dtype = torch.bfloat16
peak.look()
with torch.no_grad():
    x = torch.ones(1, WIDTH, dtype=dtype)
    for module in model:
        module(x); peak.look()
for i, p in enumerate(looking(model)):
    assert p.dtype == dtype and p[5, 7] == i and p[-1, -1] == i, i
print(peak.value)
tiers = {"hbm": "12MiB", "pinned": "24MiB", "nvme_path": sys.argv[2], "workers": 1, "chunk_elements": 1 << 18, "device": "host"}
def attached():
    global before
    result = sluice.attach(model.requires_grad_(False), unit_elements=1 << 20, **tiers)
    assert result.report()["nvme"]["params_bytes"] > 0
    arenas = sum(result.report()["bytes_now"][t] for t in ("hbm", "pinned"))
    before += arenas
    return result, arenas
engine, arenas = attached()
peak = Peak()
for i in (0, 1, LAYERS // 2, LAYERS - 1):
    assert model[i].weight[3, 3] == i, i
peak.look()
engine.destroy()
peak.look()
before -= arenas
for i, p in enumerate(looking(model)):
    assert p[5, 7] == i and p[-1, -1] == i, i
print(peak.value)
engine, _ = attached()
for i in (0, 1, LAYERS // 2, LAYERS - 1):
    assert model[i].weight[3, 3] == i, i
engine.close()
"""


@pytest.mark.parametrize("how", ["meta, dicts", "meta, assigned", "copies", "load", "half", "bfloat16"])
def test_the_whole_is_never_in_ram(how, tmp_path):
    """A model of 64 MiB, of which 8 MiB are to be in RAM while it is built, and 24 MiB after an engine."""
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, how, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "python")}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    built, ended = (int(line) >> 20 for line in result.stdout.split())
    assert built < 32, f"{built} MiB"
    assert ended < 48, f"{ended} MiB"
