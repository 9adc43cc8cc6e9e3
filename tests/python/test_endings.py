"""How engines end: destroy() gives the model its values back, close() does not, and what is dropped goes away whole."""

import copy
import gc
import os
import warnings
import weakref

import interrupts
import pytest
import torch
from test_spool import descriptors
from training import same

import sluice
from sluice.residency import away
from sluice.spools import handing_back

TIERS = {"hbm": "1MiB", "pinned": "8MiB", "device": "host", "workers": 1, "chunk_elements": 4096}


ADAMW = {"optimizer": {"type": "AdamW", "params": {"lr": 1e-2}}}


def make(seed=1):
    torch.manual_seed(seed)
    layers = torch.nn.Linear(24, 48), torch.nn.LayerNorm(48), torch.nn.Linear(48, 48), torch.nn.Linear(48, 4)
    model = torch.nn.Sequential(*layers)
    model[1].bias.requires_grad_(False)
    model.register_buffer("scale", torch.full((3,), 2.0))
    return model


def x(dtype=torch.float32):
    return torch.randn(6, 24, generator=torch.Generator().manual_seed(2)).to(dtype)


def config(directory, **more):
    place = {"device": "nvme", "nvme_path": str(directory)}
    zero = {"stage": 3, "offload_optimizer": place, "offload_param": place}
    return {"zero_optimization": zero, **ADAMW, "sluice": TIERS, **more}


def initialize(model, directory, **more):
    return sluice.initialize(model=model, config=config(directory, **more))[0]


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-2)


FACES = {
    "initialize": initialize,
    "initialize in bf16": lambda model, directory: initialize(model, directory, bf16={"enabled": True}),
    "initialize in fp16": lambda model, directory: initialize(model, directory, fp16={"enabled": True, "loss_scale": 2.0}),
    "attach": lambda model, directory: sluice.attach(model, optimizer=adamw, nvme_path=directory, **TIERS),
    "attach in bf16": lambda model, directory: sluice.attach(
        model, optimizer=adamw, dtype=torch.bfloat16, nvme_path=directory, **TIERS
    ),
}


def one_step(engine):
    engine.train()
    loss = engine(x(engine.dtype)).square().mean()
    engine.backward(loss)
    engine.step()
    return loss.detach()


def computed(model):
    """The values that it computes with, read through state_dict()."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def threads():
    return set(os.listdir("/proc/self/task"))


def more_threads(before):
    """What there is beyond those. The kernel lists a thread that was joined a moment longer."""
    for _ in range(20_000):
        if not threads() - before:
            break
    return threads() - before


# ---- destroy()


def nothing_more(engine):
    pass


def a_backward(engine):
    engine.backward(engine(x(engine.dtype)).square().mean())


def a_failed_forward(engine):
    with pytest.raises(RuntimeError):
        engine(torch.ones(2, 3, dtype=engine.dtype))


def a_write(engine):
    with torch.no_grad():
        engine.module[2].weight.mul_(2)


def a_held_view(engine):
    engine.view = engine.module[2].weight.data
    engine.view.fill_(5)


def a_held_graph(engine):
    engine.graph = engine(x(engine.dtype)).square().mean()


def a_gradient(engine):
    engine.module[2].weight.grad = torch.ones_like(engine.module[2].weight)


LAST = [nothing_more, a_backward, a_failed_forward, a_write, a_held_view, a_held_graph, a_gradient]


@pytest.mark.parametrize("limit", [1, 64 << 20], ids=["spooled", "in RAM"])
@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("last", LAST, ids=lambda f: f.__name__)
def test_destroy_gives_the_model_its_values_back(last, face, limit, tmp_path, monkeypatch):
    monkeypatch.setattr(handing_back, "LIMIT_BYTES", limit)
    model = make()
    FACES[face](make(), tmp_path).destroy()  # what is made once in a process
    make()(x()).sum().backward()
    gc.collect()
    before = threads()
    engine = FACES[face](model, tmp_path)
    for _ in range(2):
        one_step(engine)
    last(engine)
    expected = computed(model)
    buffers = list(model.buffers())
    engine.destroy()
    assert any(away.is_owned(p) for p in model.parameters()) == (limit == 1)
    assert len(descriptors(tmp_path)) == (limit == 1)
    assert not more_threads(before)
    assert model._compiled_call_impl is None
    for module in model.modules():
        hooks = (module._forward_pre_hooks, module._forward_hooks, module._state_dict_pre_hooks, module._state_dict_hooks)
        assert not any(hooks), module
    assert all(p.grad is None and not p._post_accumulate_grad_hooks for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in make().parameters()]
    assert all(one is other for one, other in zip(model.buffers(), buffers))
    assert same(computed(model), expected)
    assert all(type(p) is torch.nn.Parameter for p in model.parameters()) and descriptors(tmp_path) == []
    engine.destroy(), engine.close()
    with pytest.raises(sluice.FailedPrecondition, match="this engine was closed"):
        engine(x(engine.dtype)) if face.startswith("initialize") else engine.step()
    plain = copy.deepcopy(make()).to(engine.dtype)
    for name, parameter in plain.named_parameters():
        parameter.data = parameter.data.to(expected[name].dtype)
    for name, buffer in plain.named_buffers():
        buffer.data = buffer.data.to(expected[name].dtype)
    plain.load_state_dict(expected)
    for trained in (model, plain):
        optimizer = torch.optim.SGD([p for p in trained.parameters() if p.requires_grad], lr=0.1)
        trained(x(engine.dtype)).square().mean().backward()
        optimizer.step()
    assert same(computed(model), computed(plain))


@pytest.mark.parametrize("limit", [1, 64 << 20], ids=["spooled", "in RAM"])
@pytest.mark.parametrize("second", FACES)
@pytest.mark.parametrize("first", FACES)
def test_a_model_goes_from_engine_to_engine(first, second, limit, tmp_path, monkeypatch):
    """The next one trains as it does any model with these values."""
    monkeypatch.setattr(handing_back, "LIMIT_BYTES", limit)
    model = make()
    engine = FACES[first](model, tmp_path)
    one_step(engine)
    engine.destroy()
    fresh = copy.deepcopy(model)
    assert same(computed(fresh), computed(model))
    results = []
    for trained in (model, fresh):
        engine = FACES[second](trained, tmp_path)
        results.append([one_step(engine) for _ in range(2)] + [dict(engine.fp32_state_dict())])
        engine.close()
    assert same(*results)
    assert descriptors(tmp_path) == []


def test_what_masters_have_beyond_the_type_of_compute_goes_by_state_dict(tmp_path):
    model = make()
    engine = initialize(model, tmp_path, bf16={"enabled": True})
    one_step(engine)
    masters = dict(engine.fp32_state_dict())
    engine.destroy()
    again = initialize(model, tmp_path, bf16={"enabled": True})
    rounded = {name: value.bfloat16().to(value.dtype) for name, value in masters.items()}  # 2.0, the buffer's, stays
    assert same(dict(again.fp32_state_dict()), rounded)
    again.load_state_dict(masters)
    assert same(dict(again.fp32_state_dict()), masters)
    again.close()


def test_destroy_inside_a_gather(tmp_path):
    model = make()
    engine = initialize(model, tmp_path)
    with sluice.zero.GatheredParameters([model[2].weight], modifier_rank=0):
        model[2].weight.data.fill_(3)
        engine.destroy()
        model[2].weight.data[0] = 4
    assert model[2].weight[0].eq(4).all() and model[2].weight[1:].eq(3).all()


@pytest.mark.parametrize("end", ["destroy", "close"])
def test_a_second_engine_is_refused_while_the_first_is_open(end, tmp_path):
    model = make()
    for face in FACES.values():
        engine = face(model, tmp_path)
        expected = computed(model)
        for other in FACES.values():
            with pytest.raises(sluice.FailedPrecondition, match=r"attached already: end that engine first \(destroy\(\)"):
                other(model, tmp_path)
        assert same(computed(model), expected)
        getattr(engine, end)()
        if end == "close":
            with pytest.raises(sluice.FailedPrecondition, match="has no values"):
                face(model, tmp_path)
            with pytest.raises(sluice.FailedPrecondition, match="closed"):
                model[2].weight.sum()
            model = make()


def test_destroy_says_what_failed_and_close_ends_it(tmp_path, monkeypatch):
    model = make()
    engine = initialize(model, tmp_path)

    def fail(self):
        raise sluice.DataLoss("block 5 is another")

    with monkeypatch.context() as patch, pytest.raises(sluice.DataLoss, match="block 5"):
        patch.setattr(sluice.native.abi.Runtime, "drain", fail)
        engine.destroy()
    one_step(engine)
    monkeypatch.setattr(handing_back, "LIMIT_BYTES", 1)
    with monkeypatch.context() as patch, pytest.raises(sluice.DataLoss, match="block 5"):
        patch.setattr(sluice.spools.spool.SpoolFile, "write", lambda *arguments: fail(None))
        engine.destroy()
    with pytest.raises(sluice.FailedPrecondition, match=r"destroy\(\) of this engine was interrupted: call it again"):
        one_step(engine)
    expected = computed(model)
    engine.destroy()
    assert same(computed(model), expected)


class FailingLoader(torch.utils.data.Dataset):
    """Of which no loader can be made."""

    def __len__(self):
        raise RuntimeError("no data")


REFUSED = {  # what initialize() is given beside a model that is on the tiers by then
    "a schedule": {"lr_scheduler": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer)},
    "the data": {"training_data": FailingLoader()},
}


@pytest.mark.parametrize("more", [{}, {"bf16": {"enabled": True}}, {"fp16": {"enabled": True}}], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("refused", REFUSED)
def test_an_initialize_that_fails_leaves_the_model_as_it_was(refused, more, tmp_path):
    model = make()
    with pytest.raises(Exception) as raised:
        sluice.initialize(model=model, config=config(tmp_path, **more), **REFUSED[refused])
    assert not isinstance(raised.value, sluice.SluiceError)
    assert not any(away.is_owned(p) for p in model.parameters())
    assert same(dict(model.named_parameters()), dict(make().named_parameters()))
    assert descriptors(tmp_path) == []
    one_step(initialize(model, tmp_path))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_initialize_that_fails_rounds_nothing_that_is_frozen(dtype, tmp_path):
    """Without an optimizer nothing is trained, so bf16 is all that an engine keeps."""
    model = make().to(dtype)
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    evaluated = config(tmp_path, bf16={"enabled": True})
    del evaluated["optimizer"]
    with pytest.raises(ValueError, match="no optimizer"):
        sluice.initialize(model=model, config=evaluated, lr_scheduler=lambda optimizer: None)
    assert same(dict(model.named_parameters()), expected)
    assert descriptors(tmp_path) == []


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_an_initialize_whose_values_cannot_be_had_again_takes_nothing(error, tmp_path, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr("sluice.engine.engine.Engine._place_buffers", fail)
    monkeypatch.setattr("sluice.spools.handing_back.HandingBack.give", fail)
    with pytest.raises(error):
        sluice.initialize(model=make(), config=config(tmp_path))
    assert descriptors(tmp_path) == []


# ---- Engines that are dropped


def dropped_engine(face):
    def make_it(directory):
        model = make()
        return model, FACES[face](model, directory), x(torch.bfloat16 if "bf16" in face else torch.float32)

    return make_it


class _AdamW:
    """sluice.AdamW with the calls of an engine."""

    def __init__(self, model, optimizer):
        self.model, self.optimizer = model, optimizer

    def __call__(self, batch):
        return self.model(batch)

    def backward(self, loss):
        loss.backward()

    def step(self):
        self.optimizer.step()


def dropped_optimizer(overlap):
    def make_it(directory):
        model = make()
        trained = [p for p in model.parameters() if p.requires_grad]
        tiers = {"pinned": "8MiB", "nvme_path": directory, "workers": 1}
        return model, _AdamW(model, sluice.AdamW(trained, lr=1e-2, overlap=model if overlap else None, **tiers)), x()

    return make_it


def dropped_build(directory):
    with sluice.init(directory=directory, limit_bytes=1):
        model = make()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    return model, _AdamW(model, optimizer), x()


MAKERS = {face: dropped_engine(face) for face in ("initialize", "initialize in bf16", "attach")}
MAKERS |= {"AdamW": dropped_optimizer(False), "AdamW(overlap)": dropped_optimizer(True), "init": dropped_build}


def after_steps(model, engine, batch):
    for _ in range(2):
        engine.backward(engine(batch).square().mean())
        engine.step()


def with_a_graph(model, engine, batch):
    after_steps(model, engine, batch)
    return engine(batch).square().mean()


def after_a_failed_step(model, engine, batch):
    after_steps(model, engine, batch)
    engine.backward(engine(batch).mul(float("nan")).mean())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine.step()


def with_a_scheduler(model, engine, batch):
    optimizer = engine.optimizer
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    after_steps(model, engine, batch)
    scheduler.step()
    return scheduler


def with_a_loan(model, engine, batch):
    after_steps(model, engine, batch)
    gather = sluice.zero.GatheredParameters(list(model.parameters()))
    gather.__enter__()
    return gather, model[2].weight.data


def after_a_failed_forward(model, engine, batch):
    after_steps(model, engine, batch)
    with pytest.raises(RuntimeError):
        engine(batch[:, :5])


def unused(model, engine, batch):
    pass


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize(
    "use",
    [unused, after_steps, with_a_graph, after_a_failed_step, with_a_scheduler, with_a_loan, after_a_failed_forward],
    ids=lambda f: f.__name__,
)
def test_what_is_dropped_goes_away_whole(use, maker, tmp_path):
    """Its threads, files and memory, with the last reference to it, and to what was made of it."""

    def once():
        model, engine, batch = MAKERS[maker](tmp_path)
        left = use(model, engine, batch)
        ends = [weakref.ref(model), weakref.ref(engine)]
        runtimes = [getattr(engine, "runtime", None) or getattr(getattr(engine, "optimizer", None), "runtime", None)]
        ends += [weakref.ref(runtime) for runtime in runtimes if runtime is not None]
        del model, engine, left, runtimes
        return ends

    once()
    gc.collect()
    before = threads()
    mapped = _mapped()
    for _ in range(2):
        ends = once()
        gc.collect()
        assert [end() for end in ends] == [None] * len(ends)
        assert not more_threads(before) and descriptors(tmp_path) == []
    assert _mapped() - mapped < 4 << 20


def _mapped():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


# ---- Interrupts


def tiny(seed=1):
    torch.manual_seed(seed)
    return torch.nn.Sequential(*[torch.nn.Linear(3, 3) for _ in range(3)])


def built(directory):
    with sluice.init(directory=directory, limit_bytes=1):
        return tiny()


def touch(model):
    return sum(p.sum() for p in model.parameters())


def gathered(model):
    with sluice.zero.GatheredParameters(list(model.parameters())):
        pass


def interrupted(call, point):
    """Between its body and its end, where no signal comes, an interrupt of this grain cuts Python's `with` itself short: so
    what PyTorch keeps by thread is put right."""
    try:
        interrupts.interrupt(call, point)
    finally:
        torch._C._set_torch_function_state(torch._C._TorchFunctionState.ENABLED)
        torch.set_grad_enabled(True)
    assert not torch.is_inference_mode_enabled()


SPOOL_CALLS = {
    "use": touch,
    "data": lambda model: [p.data.sum() for p in model.parameters()],
    "set_data": lambda model: [setattr(p, "data", torch.ones_like(p)) for p in model.parameters()],
    "gather": gathered,
}


@pytest.mark.parametrize("name", SPOOL_CALLS)
def test_an_interrupted_use_of_spooled_parameters_loses_nothing(name, tmp_path):
    call, expected = SPOOL_CALLS[name], dict(tiny().named_parameters())
    points = interrupts.points(lambda: call(built(tmp_path)), every=7)
    for point in points:
        model = built(tmp_path)
        interrupted(lambda model=model: call(model), point)
        touch(model)
        for key, parameter in model.named_parameters():
            wanted = expected[key]
            assert torch.equal(parameter, wanted) or (name == "set_data" and parameter.eq(1).all()), (point, key)
        call(model)


def test_an_interrupted_block_ends(tmp_path):
    """What is built afterwards is in RAM, and what was built has its values."""
    expected = dict(tiny().named_parameters())
    models = []

    def build():
        models.clear()
        with sluice.init(directory=tmp_path, limit_bytes=1):
            models.append(tiny())

    for point in interrupts.points(build, every=7):
        interrupted(build, point)
        gc.collect(0)
        assert not any(away.is_owned(p) for p in tiny(2).parameters())
        for model in models:
            assert same(dict(model.named_parameters()), expected), point


def test_an_interrupted_destroy_can_be_called_again(tmp_path, monkeypatch):
    monkeypatch.setattr(handing_back, "LIMIT_BYTES", 1)

    def ready():
        model = tiny()
        engine = sluice.initialize(model=model, config={**ADAMW, "sluice": {**TIERS, "hbm": "64KiB", "pinned": "256KiB"}})[0]
        engine.backward(engine(torch.ones(2, 3)).sum())
        engine.step()
        return model, engine

    model, engine = ready()
    expected = computed(model)
    points = interrupts.points(engine.destroy, every=23)
    assert same(computed(model), expected)
    for point in points:
        model, engine = ready()
        interrupted(engine.destroy, point)
        engine.destroy()
        assert same(computed(model), expected), point
        assert not engine.runtime.open


@pytest.mark.parametrize("face", ["initialize", "attach"])
def test_an_engine_that_only_its_model_keeps_can_be_found_and_ended(face):
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
    start = lambda: (
        sluice.attach(model, hbm="1MiB", pinned="8MiB") if face == "attach" else sluice.initialize(model=model, config={})[0]
    )
    start()
    gc.collect()
    with pytest.raises(sluice.FailedPrecondition, match=r"sluice\.engine_of\(model\)"):
        start()
    expected = model.state_dict()
    sluice.engine_of(model).destroy()
    assert sluice.engine_of(model) is None and all(torch.equal(v, expected[k]) for k, v in model.state_dict().items())
    start().close()


def test_a_graph_that_never_gets_a_backward_goes_away():
    """So does all that it saved, and the engine."""
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2), torch.nn.Softmax(-1))
    engine = sluice.attach(model, optimizer=torch.optim.AdamW, hbm="1MiB", pinned="8MiB")
    left = []
    for _ in range(3):
        loss = model(torch.ones(1, 8)).sum()
        left.append(weakref.ref(loss))
    runtime, parameter = weakref.ref(engine.runtime), weakref.ref(model[0].weight)
    del loss, model, engine
    gc.collect()
    assert not any(reference() for reference in left) and runtime() is None and parameter() is None


def test_a_parameter_with_a_class_of_its_own_is_refused_by_name():
    class Own(torch.nn.Parameter):
        pass

    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    model[0].weight = Own(torch.ones(4, 4))
    with pytest.raises(TypeError, match="parameter 0.weight is a Own"):
        sluice.attach(model, hbm="1MiB", pinned="8MiB")
    assert type(model[0].weight) is Own
