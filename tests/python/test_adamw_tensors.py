"""sluice.AdamW over parameters and gradients of every kind: PyTorch's numbers, or a refusal that names the parameter."""

import contextlib
import itertools

import pytest
import torch
from adamw_loop import TIERS, assert_close, assert_equal, batches, make_model, values

import sluice

EPS = 1e-3  # small gradients are not amplified, so that both round alike


def both(make, gradients, steps=3, **settings):
    """The parameters after some steps, ours and PyTorch's. make() -> Parameters; gradients(parameters, step) sets them."""
    results = []
    for kind, tiers in ((sluice.AdamW, TIERS), (torch.optim.AdamW, {})):
        parameters = make()
        optimizer = kind(parameters, lr=1e-2, eps=EPS, **settings, **tiers)
        for step in range(steps):
            torch.manual_seed(step)
            gradients(parameters, step)
            optimizer.step()
        results.append({str(n): p.detach().float() for n, p in enumerate(parameters)})
        if kind is sluice.AdamW:
            optimizer.close()
    return results


def parameters_of(*shapes, dtype=torch.float32):
    torch.manual_seed(9)
    return [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes]


# ---- Parameters


LAYOUTS = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.t(),
    "every second row": lambda t: t.repeat_interleave(2, 0)[::2],
    "columns of something wider": lambda t: torch.cat([t, t], 1)[:, : t.shape[1]],
    "in the middle of a storage": lambda t: torch.cat([torch.zeros(7), t.reshape(-1)])[7:].view(t.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (70, 90)])
def test_parameters_of_any_layout(layout, shape):
    def make():
        torch.manual_seed(9)
        return [torch.nn.Parameter(LAYOUTS[layout](torch.randn(shape)))]

    def gradients(parameters, step):
        for parameter in parameters:
            parameter.grad = torch.randn(shape).view(parameter.shape) if layout != "transposed" else torch.randn(shape).t()

    assert_close(*both(make, gradients))


def test_scalars_and_parameters_without_elements():
    shapes = [(), (0,), (3, 0), (1,), (4097,)]

    def gradients(parameters, step):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape)

    assert_close(*both(lambda: parameters_of(*shapes), gradients))
    parameters = parameters_of(*shapes)
    optimizer = sluice.AdamW(parameters, **TIERS)
    gradients(parameters, 0)
    optimizer.step()
    theirs = torch.optim.AdamW(parameters_of(*shapes))
    theirs.load_state_dict(optimizer.state_dict())
    theirs.step(), gradients(theirs.param_groups[0]["params"], 1), theirs.step()
    optimizer.load_state_dict(theirs.state_dict())
    gradients(parameters, 1)
    optimizer.step()
    assert {int(entry["step"]) for entry in optimizer.state_dict()["state"].values()} == {3}
    optimizer.close()
    nothing = sluice.AdamW([torch.nn.Parameter(torch.zeros(0))], **TIERS)
    nothing.param_groups[0]["params"][0].grad = torch.zeros(0)
    nothing.step()
    assert nothing.state_dict()["state"] == {} and nothing.report() is None
    nothing.close()


REFUSED = {
    **{
        str(dtype): (lambda d=dtype: torch.zeros(3).to(d), TypeError)
        for dtype in (torch.float64, torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2)
    },
    "expanded": (lambda: torch.zeros(1).expand(5), ValueError),
    "overlapping itself": (lambda: torch.zeros(9).as_strided((3, 3), (2, 1)), ValueError),
    "meta": (lambda: torch.zeros(3, device="meta"), ValueError),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_parameters_that_can_not_be_optimized_are_refused_by_name(kind):
    make, error = REFUSED[kind]
    wrong = torch.nn.Parameter(make())
    good = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(error, match="parameter 1 of group 0"):
        sluice.AdamW([good, wrong])
    with pytest.raises(error, match="parameter a.wrong"):
        sluice.AdamW([("a.good", good), ("a.wrong", wrong)])
    optimizer = sluice.AdamW([good], lr=1e-2, **TIERS)
    good.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(error, match="parameter 0 of group 1"):
        optimizer.add_param_group({"params": [wrong]})
    assert len(optimizer.param_groups) == 1
    optimizer.step()
    optimizer.close()


def test_a_type_that_becomes_another_later_is_refused_then():
    model = make_model()
    optimizer = sluice.AdamW(model.named_parameters(), lr=1e-2, **TIERS)
    model(batches(1)[0]).sum().backward()
    optimizer.step()
    before = values(model)
    model[2].weight.grad = None
    model[2].weight.data = model[2].weight.data.double()
    model[2].weight.grad = torch.ones_like(model[2].weight)
    with pytest.raises(TypeError, match="parameter 2.weight is torch.float64"):
        optimizer.step()
    model[2].weight.grad = None
    model[2].weight.data = model[2].weight.data.float()
    assert_equal(values(model), before)
    optimizer.close()


# ---- Two Parameters over one memory


WHOLE = torch.arange(24.0).view(4, 6)
SHARING = {
    "the same": (lambda t: t, lambda t: t),
    "a view": (lambda t: t, lambda t: t.view(-1)),
    "transposed": (lambda t: t, lambda t: t.t()),
    "a row": (lambda t: t, lambda t: t[2]),
    "a column": (lambda t: t, lambda t: t[:, 3]),
    "one element": (lambda t: t[:3], lambda t: t[2:, 5:]),
    "rows that meet": (lambda t: t[:3], lambda t: t[2:]),
    "strided rows": (lambda t: t[::2], lambda t: t[2:]),
    "another type": (lambda t: t, lambda t: t.view(torch.bfloat16)[0]),
}
APART = {
    "halves": (lambda t: t[:2], lambda t: t[2:]),
    "columns": (lambda t: t[:, :3], lambda t: t[:, 3:]),
    "every second": (lambda t: t.view(-1)[::2], lambda t: t.view(-1)[1::2]),
    "none of it": (lambda t: t[:0], lambda t: t),
    "interleaved rows": (lambda t: t[::2], lambda t: t[1::2]),
}


@pytest.mark.parametrize("case", SHARING)
@pytest.mark.parametrize("swapped", [False, True])
def test_parameters_that_share_memory_are_refused_by_name(case, swapped):
    storage = WHOLE.clone()
    one, other = (torch.nn.Parameter(view(storage)) for view in SHARING[case][:: -1 if swapped else 1])
    between = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="parameters 0 of group 0 and 2 of group 0 share memory.*module.weight ="):
        sluice.AdamW([one, between, other])
    optimizer = sluice.AdamW([("a", one), ("b", between)], **TIERS)
    with pytest.raises(ValueError, match="parameters a and c share memory"):
        optimizer.add_param_group({"params": [("c", other)]})
    # And where it comes to be so later.
    far = torch.nn.Parameter(other.detach().clone())
    optimizer.add_param_group({"params": [("d", far)]})
    far.data = other.data
    one.grad, far.grad = torch.ones_like(one), torch.ones_like(far)
    before = storage.clone()
    with pytest.raises(ValueError, match="parameters a and d share memory"):
        optimizer.step()
    assert torch.equal(storage, before)
    optimizer.close()


@pytest.mark.parametrize("case", APART)
def test_parameters_beside_each_other_in_one_storage_are_trained(case):
    def make():
        storage = WHOLE.clone()
        return [torch.nn.Parameter(view(storage)) for view in APART[case]]

    def gradients(parameters, step):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape)

    assert_close(*both(make, gradients))


def test_a_parameter_that_two_modules_share_counts_once():
    def make():
        torch.manual_seed(1)
        one, other = torch.nn.Linear(5, 5), torch.nn.Linear(5, 5)
        other.weight = one.weight
        return torch.nn.Sequential(one, other)

    results = []
    for kind, tiers in ((sluice.AdamW, TIERS), (torch.optim.AdamW, {})):
        model = make()
        optimizer = kind(model.parameters(), lr=1e-2, eps=EPS, **tiers)
        for step in range(3):
            torch.manual_seed(step)
            optimizer.zero_grad()
            model(torch.randn(4, 5)).square().mean().backward()
            optimizer.step()
        results.append(values(model))
    assert_close(*results)


# ---- Gradients


def expanded(parameters, step):
    for parameter in parameters:
        parameter.grad = torch.randn(1).to(parameter.dtype).expand(parameter.shape)


def transposed(parameters, step):
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape[::-1]).to(parameter.dtype).t()


def shared(parameters, step):
    gradient = torch.randn(parameters[0].shape).to(parameters[0].dtype)
    for parameter in parameters:
        parameter.grad = gradient


def views_of_one(parameters, step):
    whole = torch.randn(len(parameters), *parameters[0].shape).to(parameters[0].dtype)
    for parameter, gradient in zip(parameters, whole):
        parameter.grad = gradient


def the_parameter_itself(parameters, step):
    for parameter in parameters:
        parameter.grad = parameter.detach()


def sometimes(parameters, step):
    for number, parameter in enumerate(parameters):
        gradient = torch.randn(parameter.shape).to(parameter.dtype)
        parameter.grad = gradient if (step + number) % 2 else None


def zeros(parameters, step):
    for parameter in parameters:
        parameter.grad = torch.zeros(parameter.shape, dtype=parameter.dtype)


@pytest.mark.parametrize(
    "gradients", [expanded, transposed, shared, views_of_one, the_parameter_itself, sometimes, zeros], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_of_any_layout_and_of_any_memory(gradients, dtype):
    close = {} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}  # PyTorch's moments are bf16
    assert_close(*both(lambda: parameters_of((70, 80), (70, 80), dtype=dtype), gradients), **close)


SPARSE = {
    "coo": lambda g: g.to_sparse(),
    "with one place twice": lambda g: torch.sparse_coo_tensor([[0, 0], [1, 1]], [1.0, 2.0], g.shape, check_invariants=False),
}


@pytest.mark.parametrize("kind", SPARSE)
def test_sparse_gradients_count_as_their_dense_ones(kind):
    def run(dense):
        (parameter,) = parameters_of((6, 4))
        optimizer = sluice.AdamW([parameter], lr=1e-2, **TIERS)
        for step in range(3):
            torch.manual_seed(step)
            gradient = SPARSE[kind](torch.randn(6, 4))
            parameter.grad = gradient.to_dense() if dense else gradient
            optimizer.step()
        optimizer.close()
        return parameter.detach()

    assert torch.equal(run(False), run(True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("first", [False, True])
def test_gradients_wider_than_their_parameters_lose_nothing(dtype, first):
    """`grad_dtype` lets 16-bit parameters have fp32 gradients, from the beginning or from some step on."""
    steps = 4
    torch.manual_seed(2)
    gradients = [torch.randn(5000) * (1 + 2**-12) for _ in range(steps)]
    if not first:
        gradients[:2] = [g.to(dtype).float() for g in gradients[:2]]

    def run(parameter, wide):
        optimizer = sluice.AdamW([parameter], lr=1e-2, **TIERS)
        for step, gradient in enumerate(gradients):
            kind = wide if first or step >= 2 else parameter.dtype
            parameter.grad, parameter.grad_dtype = None, kind
            parameter.grad = gradient.to(kind)
            optimizer.step()
        state = optimizer.state_dict()["state"][0]
        optimizer.close()
        return [state["exp_avg"], state["exp_avg_sq"], state.get("master", parameter.detach())]

    torch.manual_seed(3)
    value = torch.randn(5000).to(dtype)
    narrow = run(torch.nn.Parameter(value.clone()), torch.float32)
    plain = run(torch.nn.Parameter(value.float()), torch.float32)
    assert torch.equal(narrow[0], plain[0]) and torch.equal(narrow[1], plain[1])
    torch.testing.assert_close(narrow[2], plain[2], rtol=1e-2, atol=1e-2)


# ---- GradScaler


def scaled(kind, overlap, dtype, unscale, clip, bad, accumulate):
    model = make_model(dtype=dtype)
    more = {"overlap": model if overlap else None, **TIERS} if kind is sluice.AdamW else {}
    optimizer = kind(model.parameters(), lr=1e-2, eps=EPS, **more)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=2)
    scales = []
    for number, batch in enumerate(batches(6, dtype=dtype)):
        if number % accumulate == 0:
            optimizer.zero_grad()
        loss = model(batch).float().square().mean() * (float("inf") if number in bad else 1.0)
        scaler.scale(loss).backward()
        if (number + 1) % accumulate:
            continue
        if unscale:
            scaler.unscale_(optimizer)
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    if kind is sluice.AdamW:
        optimizer.close()
    return values(model), scales


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("unscale, clip", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("bad, accumulate", [((), 1), ((0,), 1), ((2, 3), 1), ((5,), 1), ((), 2), ((3,), 2)])
def test_grad_scaler_unscales_skips_and_grows(overlap, unscale, clip, bad, accumulate):
    arguments = torch.float32, unscale, clip, bad, accumulate
    ours, theirs = (scaled(kind, overlap, *arguments) for kind in (sluice.AdamW, torch.optim.AdamW))
    assert ours[1] == theirs[1]
    assert_close(ours[0], theirs[0])


# ---- Groups


def test_groups_may_be_frozen_added_and_changed_in_any_order():
    """Each of these before the first step, between steps, and several at once."""

    def add(model, optimizer):
        if len(optimizer.param_groups) == 1:
            optimizer.add_param_group({"params": list(model[4].parameters()), "lr": 3e-2, "weight_decay": 0.5})

    def freeze(model, optimizer):
        for parameter in model[2].parameters():
            parameter.requires_grad_(not parameter.requires_grad)
            parameter.grad = None

    def rates(model, optimizer):
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * 0.5
            group["betas"] = (0.7, 0.8)

    def nothing(model, optimizer):
        optimizer.add_param_group({"params": []})

    changes = (add, freeze, rates, nothing)

    def run(kind, order, **tiers):
        model = make_model()
        optimizer = kind(list(model[0].parameters()) + list(model[2].parameters()), lr=1e-2, eps=EPS, **tiers)
        for number, batch in enumerate(batches(6)):
            for change in order[number : number + 1]:
                change(model, optimizer)
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
        with contextlib.suppress(AttributeError):
            optimizer.close()
        return values(model)

    for order in itertools.permutations(changes):
        assert_close(run(sluice.AdamW, order, **TIERS), run(torch.optim.AdamW, order))


# ---- Parameters whose values are elsewhere

CONFIG = {"zero_optimization": {"stage": 3}, "sluice": {"hbm": "1MiB", "pinned": "8MiB", "device": "host"}}


@pytest.mark.parametrize("kind", [sluice.AdamW, sluice.ops.adam.DeepSpeedCPUAdam])
def test_an_optimizer_may_be_made_for_a_model_that_is_being_built(kind, tmp_path):
    """And handed to the engine, which has the values then: step() is the engine's."""

    def run(spool):
        torch.manual_seed(1)
        with sluice.init(directory=tmp_path, limit_bytes=1000) if spool else contextlib.nullcontext():
            model = make_model()
        optimizer = kind(list(model.named_parameters()), lr=1e-2)
        if spool:
            for parameter in model.parameters():
                parameter.grad = torch.ones(parameter.shape)
            with pytest.raises(sluice.FailedPrecondition, match="parameter 0.weight has its values elsewhere"):
                optimizer.step()
            optimizer.zero_grad()
        engine = sluice.initialize(model=model, optimizer=optimizer, config=CONFIG)[0]
        for batch in batches(2):
            engine.backward(engine(batch).square().mean())
            engine.step()
        result = engine.fp32_state_dict()
        engine.close()
        return result

    assert_equal(run(True), run(False))


def test_parameters_that_an_engine_has_are_stepped_by_it():
    model = make_model()
    optimizer = sluice.AdamW(model.named_parameters(), lr=1e-2)
    engine = sluice.initialize(model=model, optimizer=optimizer, config=CONFIG)[0]
    engine.backward(engine(batches(1)[0]).square().mean())
    before = engine.fp32_state_dict()
    for parameter in model.parameters():
        if parameter.grad is not None:
            with pytest.raises(sluice.FailedPrecondition, match="has its values elsewhere.*its step"):
                optimizer.step()
            break
    assert_equal(engine.fp32_state_dict(), before)
    engine.close()
