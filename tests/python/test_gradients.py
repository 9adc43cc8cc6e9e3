"""Gradients as PyTorch programs look at them, change them and set them, where an engine takes them: the same words do the
same. The oracle is the same program over plain PyTorch with torch.optim.AdamW."""

import contextlib

import pytest
import sluice
import torch
from sluice.native import abi
from test_doors import WIDTH, Model, config, placed, tokens

HYPER = {"lr": 1e-2, "weight_decay": 0.1, "eps": 1.0}  # A large eps makes AdamW feel a gradient's length.


def loss_of(model, number, scale=10.0):
    return scale * model(tokens(number)).square().mean()


def by_norm(model, number, optimizer):
    loss_of(model, number).backward()
    return torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)


def by_norm_inf(model, number, optimizer):
    loss_of(model, number).backward()
    return torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05, norm_type=float("inf"))


def by_norm_foreach(model, number, optimizer):
    loss_of(model, number).backward()
    return torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05, foreach=False)


def by_value(model, number, optimizer):
    loss_of(model, number).backward()
    torch.nn.utils.clip_grad_value_(model.parameters(), 1e-3)


def total_norm(model, number, optimizer):
    loss_of(model, number).backward()
    return torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])


def looked_at(model, number, optimizer):
    loss_of(model, number).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def looked_at_and_accumulated(model, number, optimizer):
    loss_of(model, number).backward()
    first = model.project.grad.clone()
    loss_of(model, number + 7).backward()
    return first, model.project.grad.clone(), model.temperature.grad.clone()


def kept_while_accumulated(model, number, optimizer):
    loss_of(model, number).backward()
    kept = model.project.grad
    loss_of(model, number + 7).backward()
    return kept.clone()


def scaled_by_hand(model, number, optimizer):
    loss_of(model, number).backward()
    for parameter in model.parameters():
        parameter.grad.mul_(0.1)
    model.project.grad.data.add_(0.5)
    model.temperature.grad /= 3


def set_by_hand(model, number, optimizer):
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.01 * (number + 1))


def replaced(model, number, optimizer):
    loss_of(model, number).backward()
    model.project.grad = model.project.grad.sign()
    model.temperature.grad = torch.tensor(0.25)


def surgery(model, number, optimizer):
    parameters, out = list(model.parameters()), model(tokens(number))
    one = torch.autograd.grad(out[..., 0].square().mean(), parameters, retain_graph=True)
    two = torch.autograd.grad(out[..., 1].abs().mean(), parameters)
    for p, a, b in zip(parameters, one, two):
        p.grad = torch.where(a * b < 0, torch.zeros_like(a), a + b)


def none_of_some(model, number, optimizer):
    loss_of(model, number).backward()
    model.project.grad = None
    del model.temperature.grad


def none_then_again(model, number, optimizer):
    loss_of(model, number).backward()
    model.project.grad = None
    loss_of(model, number + 3).backward()


def zeroed_by_the_module(model, number, optimizer):
    loss_of(model, number).backward()
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    loss_of(model, number + 3).backward()


def zeroed_one_by_one(model, number, optimizer):
    loss_of(model, number).backward()
    for parameter in model.parameters():
        parameter.grad.zero_()
    loss_of(model, number + 3).backward()


def zeroed_in_part(model, number, optimizer):
    loss_of(model, number).backward()
    model.model.decoder.layers[0].zero_grad()


def a_penalty_of_gradients(model, number, optimizer):
    parameters = [model.project, model.model.decoder.layers[1].up.weight]
    loss = loss_of(model, number, 1.0)
    found = torch.autograd.grad(loss, parameters, create_graph=True)
    (loss + sum(g.square().sum() for g in found)).backward()


def noise(model, number, optimizer):
    loss_of(model, number).backward()
    generator = torch.Generator().manual_seed(number)
    for parameter in model.parameters():
        parameter.grad += 0.01 * torch.randn(parameter.shape, generator=generator)


def grad_scaler(model, number, optimizer):
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    scaler.scale(loss_of(model, number)).backward()
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
    scaler.step(optimizer)
    scaler.update()
    return norm, scaler.get_scale()


def grad_scaler_with_an_overflow(model, number, optimizer):
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    loss = scaler.scale(loss_of(model, number))
    (loss * float("inf") if number == 1 else loss).backward()
    scaler.step(optimizer)
    scaler.update()
    return scaler.get_scale()


STEPS_ITSELF = grad_scaler, grad_scaler_with_an_overflow
PROGRAMS = [
    by_norm, by_norm_inf, by_norm_foreach, by_value, total_norm, looked_at, looked_at_and_accumulated, kept_while_accumulated,
    scaled_by_hand, set_by_hand, replaced, surgery, none_of_some, none_then_again, zeroed_by_the_module, zeroed_one_by_one,
    zeroed_in_part, a_penalty_of_gradients, noise, *STEPS_ITSELF,
]  # fmt: skip


def close(ours, theirs, name):
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        ours, theirs = list(ours.values()), list(theirs.values())
    if isinstance(ours, (tuple, list)):
        for a, b in zip(ours, theirs, strict=True):
            close(a, b, name)
    elif ours is not None:
        torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(theirs), rtol=1e-3, atol=1e-4, msg=lambda m: f"{name}: {m}")


@pytest.mark.parametrize("hbm", ["64MiB", None])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
@pytest.mark.parametrize("face", ["initialize", "attach"])
def test_what_a_program_does_with_gradients(face, program, hbm):
    own = {"hbm": hbm} if hbm else {}
    engine, model, optimizer = placed(face, own, **HYPER)
    plain = Model()
    theirs = torch.optim.AdamW(plain.parameters(), foreach=False, **HYPER)
    for number in range(3):
        results = []
        for module, its_optimizer in ((model, optimizer), (plain, theirs)):
            its_optimizer.zero_grad()
            results.append(program(module, number, its_optimizer))
            if program not in STEPS_ITSELF:
                its_optimizer.step()
        close(*results, f"{program.__name__}, step {number}")
        for key, value in model.state_dict().items():
            torch.testing.assert_close(value, plain.state_dict()[key], rtol=1e-4, atol=1e-5, msg=lambda m: f"{key}: {m}")
    states = engine.optimizer_state_dict()
    for name, parameter in plain.named_parameters():
        assert states[name]["step"] == (theirs.state[parameter]["step"].item() if parameter in theirs.state else 0), name
    engine.close()


# ---- Hooks of others

TIMES = {"before": True, "after": False}


@pytest.mark.parametrize("when", TIMES)
def test_post_accumulate_hooks_of_others_see_the_gradient_and_may_change_it(when):
    def hang(model, seen):
        def hook(parameter):
            seen.append(parameter.grad.norm().item())
            parameter.grad.mul_(0.5)

        model.project.register_post_accumulate_grad_hook(hook)
        model.temperature.register_hook(lambda g: g * 2)

    runs = []
    for ours in (True, False):
        seen = []
        model = Model()
        if when == "before":
            hang(model, seen)
        if ours:
            make = lambda p: torch.optim.AdamW(p, **HYPER)
            attached = sluice.attach(model, optimizer=make, hbm="64MiB", pinned="64MiB", workers=1)
            optimizer = attached.optimizer
        else:
            optimizer = torch.optim.AdamW(model.parameters(), foreach=False, **HYPER)
        if when == "after":
            hang(model, seen)
        for number in range(3):
            optimizer.zero_grad()
            loss_of(model, number).backward()
            optimizer.step()
        runs.append((seen, dict(model.state_dict())))
    torch.testing.assert_close(*runs, rtol=1e-4, atol=1e-5)


def test_a_hook_that_steps_in_backward_as_fused_optimizers_do():
    """It takes the gradient and leaves none: then the engine has none of it either."""
    attached, model, optimizer = placed("attach", {}, **HYPER)
    taken = []

    def hook(parameter):
        taken.append(parameter.grad.clone())
        parameter.grad = None

    model.project.register_post_accumulate_grad_hook(hook)
    before = model.state_dict()
    loss_of(model, 0).backward()
    optimizer.step()
    after = model.state_dict()
    assert torch.equal(before["project"], after["project"]) and not torch.equal(before["head.weight"], after["head.weight"])
    plain = Model()
    loss_of(plain, 0).backward()
    torch.testing.assert_close(taken, [plain.project.grad], rtol=1e-4, atol=1e-6)
    attached.close()


# ---- An engine's own calls


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_an_engines_gradients_are_there_between_backward_and_step(dtype, accumulation):
    given = config({"hbm": "64MiB"})
    given["gradient_accumulation_steps"] = accumulation
    if dtype != "fp32":
        given[dtype] = {"enabled": True, **({"initial_scale_power": 4} if dtype == "fp16" else {})}
    engine = sluice.initialize(model=Model(), config=given)[0]
    plain = Model().to(engine.dtype)
    for number in range(accumulation):
        engine.backward(engine(tokens(number)).float().square().mean())
        (plain(tokens(number)).float().square().mean() * engine.loss_scale() / accumulation).backward()
        for (name, ours), theirs in zip(engine.module.named_parameters(), plain.parameters()):
            assert ours.grad.dtype == theirs.grad.dtype == engine.dtype
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-2, atol=1e-3, msg=name)
        engine.step()
    assert all(p.grad is None for p in engine.module.parameters())
    engine.close()


def test_safe_get_full_grad_is_what_grad_is():
    engine = sluice.initialize(model=Model(), config=config({"hbm": "64MiB"}))[0]
    engine.backward(engine(tokens()).sum())
    engine.module.project.grad.fill_(0.5)
    assert sluice.utils.safe_get_full_grad(engine.module.project).unique() == 0.5
    engine.module.project.grad = None
    assert sluice.utils.safe_get_full_grad(engine.module.project) is None
    engine.close()


WRONG = {
    "shape": (torch.zeros(3), "shape"),
    "no tensor": (1.0, "Tensor or None"),
    "complex": (torch.zeros(WIDTH, WIDTH, dtype=torch.complex64), "complex|shape"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_gradient_is_refused_as_pytorch_refuses_it(name):
    attached, model, _ = placed("attach", {})
    value, words = WRONG[name]
    with contextlib.ExitStack() as stack:
        stack.enter_context(pytest.raises((RuntimeError, TypeError), match=words))
        model.project.grad = value
    assert model.project.grad is None
    attached.close()


def test_sparse_gradients_are_there_too():
    model = torch.nn.Sequential(torch.nn.Embedding(10, 8, sparse=True), torch.nn.Linear(8, 1))
    attached = sluice.attach(model, optimizer=lambda p: torch.optim.AdamW(p), hbm="1MiB", pinned="8MiB")
    model(torch.tensor([1, 3])).sum().backward()
    assert model[0].weight.grad.to_dense().abs().sum(1).nonzero().flatten().tolist() == [1, 3]
    attached.optimizer.step()
    attached.close()


# ---- Groups that come later, and values that change between forward and backward


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_gradient_of_a_parameter_that_joins_the_optimizer_counts_in_this_step(by_hand):
    results = []
    for ours in (True, False):
        model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
        torch.manual_seed(0)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
        first, last = list(model[0].parameters()), list(model[1].parameters())
        if ours:
            given = {"optimizer": {"type": "AdamW", "params": {"lr": 0.1}}, "gradient_clipping": 0}
            given["sluice"] = {"hbm": "1MiB", "pinned": "8MiB"}
            groups = [{"params": first}, {"params": [last[0]], "lr": 0.1}]
            engine, optimizer, *_ = sluice.initialize(model=model, config=given, model_parameters=list(model.parameters()))
            del groups
            optimizer.param_groups[0]["params"] = first
        else:
            optimizer = torch.optim.AdamW(first, lr=0.1, weight_decay=0.0, foreach=False)
        if not by_hand:
            model(torch.ones(1, 8)).sum().backward()
        optimizer.add_param_group({"params": last})
        if by_hand:
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        results.append(dict(model.state_dict()))
    for key, value in results[0].items():
        torch.testing.assert_close(value, results[1][key], rtol=1e-4, atol=1e-5, msg=lambda m: f"{key}: {m}")


CHANGES = {
    "in place": lambda e, m: m.project.mul_(2),
    "in place, and read": lambda e, m: (m.project.mul_(2), e.synchronize()),
    "a gather": lambda e, m: write_in_a_gather(m),
    "safe_set": lambda e, m: sluice.utils.safe_set_full_fp32_param(m.project, torch.ones(WIDTH, WIDTH)),
    "a load": lambda e, m: e.load_state_dict(Model().state_dict()),
}


def write_in_a_gather(model):
    with sluice.zero.GatheredParameters([model.project], modifier_rank=0):
        model.project.mul_(2)


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("hbm", ["64MiB", None])
def test_a_weight_that_changes_between_forward_and_backward_is_an_error_as_in_pytorch(name, hbm):
    engine, model, _ = placed("initialize", {"hbm": hbm} if hbm else {})
    loss = loss_of(model, 0)
    with torch.no_grad():
        CHANGES[name](engine, model)
    with pytest.raises(RuntimeError, match="modified by an inplace operation|has been updated since"):
        loss.backward()
    engine.zero_grad()
    loss_of(model, 1).backward()
    engine.close()


def test_gradients_of_a_unit_go_in_one_call_and_live_no_longer(monkeypatch):
    """But where they are large: each goes as it comes."""
    calls, alive = [], []

    def spied(self, gradients, stream, ticket, start=abi.Runtime.start_grads):
        calls.append([number for _, _, number, _ in gradients])
        start(self, gradients, stream, ticket)

    monkeypatch.setattr(abi.Runtime, "start_grads", spied)
    for width, together in ((16, True), (768, False)):
        torch.manual_seed(1)
        layers = [torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.Linear(width, width)) for _ in range(3)]
        unused = torch.nn.Linear(width, width)
        layers[1].append(unused)
        layers[1].forward = lambda x, layer=layers[1]: layer[1](layer[0](x))
        model = torch.nn.Sequential(*layers)
        own = {"unit_elements": 3 * width * (width + 1), "hbm": "64MiB", "pinned": "256MiB", "device": "host"}
        engine = sluice.initialize(model=model, config={"zero_optimization": {"stage": 3}, "optimizer": {"type": "AdamW"},
                                                        "sluice": own})[0]  # fmt: skip
        numbers = {engine.tensor_of(p): name for name, p in model.named_parameters()}
        for p in model.parameters():
            p.register_post_accumulate_grad_hook(lambda p: alive.append(len(engine._attached.gradients._batch.gradients)))
        calls.clear(), alive.clear()
        loss = engine(torch.ones(2, width)).square().mean()
        engine.backward(loss)
        handed = [number for call in calls for number in call]
        assert sorted(handed) == sorted(n for n, name in numbers.items() if not name.startswith("1.2."))
        unit_of = {place.tensor: place.unit for place in engine._attached.place_of.values()}
        units = [{unit_of[number] for number in call} for call in calls]
        assert all(len(unit) == 1 for unit in units)
        if together:
            assert len(set().union(*units)) == len(units) < len(handed), "one call for each unit"
        else:
            assert max(alive) <= 1, "a weight goes at once, with the bias before it"
        assert not engine._attached.gradients._batch.gradients
        engine.close()
