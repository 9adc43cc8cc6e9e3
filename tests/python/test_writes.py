"""A write to a parameter by any way, at any time, through any face, whatever the budget, is taken as PyTorch takes it, or raises
with what to do instead. Never dropped. The oracle is the same program over plain PyTorch."""

import contextlib

import pytest
import sluice
import torch
from test_doors import BUDGETS, WIDTH, Model, placed, tokens
from torch.nn.utils import parametrize


def numbers(parameter):
    return torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape)


class Shift(torch.nn.Module):
    def forward(self, weight):
        return weight + 0.25


def left_parametrized(module, name):
    parametrize.register_parametrization(module, name, Shift())
    parametrize.remove_parametrizations(module, name, leave_parametrized=True)


def by_data_of_a_view(p):
    p.data.view(-1)[:1].mul_(3)


def by_numpy(p):
    array = p.detach().numpy()
    array *= 2


def by_kept_data(p):
    data = p.data
    data.add_(1)
    data.mul_(2)


@torch.no_grad()
def by_foreach(p):
    torch._foreach_mul_([p], 1.5)


def no_grad(write):
    def writes(p):
        with torch.no_grad():
            write(p)

    return writes


WRITES = {
    "data.copy_": lambda p: p.data.copy_(numbers(p)),
    "data.fill_": lambda p: p.data.fill_(0.125),
    "data.zero_": lambda p: p.data.zero_(),
    "data =": lambda p: setattr(p, "data", numbers(p)),
    "data = a view of others": lambda p: setattr(p, "data", torch.stack([numbers(p), numbers(p)])[1]),
    "data +=": lambda p: setattr(p, "data", p.data + 1),
    "data of a view": by_data_of_a_view,
    "data kept for a while": by_kept_data,
    "copy_ under no_grad": no_grad(lambda p: p.copy_(numbers(p))),
    "mul_ under no_grad": no_grad(lambda p: p.mul_(2)),
    "an index under no_grad": no_grad(lambda p: p.view(-1).__setitem__(0, 5.0)),
    "+= under no_grad": no_grad(lambda p: p.__iadd__(1)),
    "detach().add_": lambda p: p.detach().add_(1),
    "set_": no_grad(lambda p: p.set_(numbers(p))),
    "out=": no_grad(lambda p: torch.mul(p, 2, out=p)),
    "nn.init.normal_": lambda p: (torch.manual_seed(3), torch.nn.init.normal_(p)),
    "nn.init.constant_": lambda p: torch.nn.init.constant_(p, 0.5),
    "nn.init.zeros_": lambda p: torch.nn.init.zeros_(p),
    "numpy": by_numpy,
    "foreach": by_foreach,
    "vector_to_parameters": lambda p: torch.nn.utils.vector_to_parameters(numbers(p).view(-1), [p]),
    "clamp_ under no_grad": no_grad(lambda p: p.clamp_(-0.01, 0.01)),
    "lerp_ of an average": no_grad(lambda p: p.lerp_(numbers(p), 0.5)),
}
TARGETS = {
    "of a layer": lambda m: m.model.decoder.layers[1].up.weight,
    "of one element": lambda m: m.model.decoder.layers[1].scale,
    "of the root": lambda m: m.project,
    "without dimensions": lambda m: m.temperature,
    "tied": lambda m: m.head.weight,
}


def in_forward(engine, model, target, write):
    layers = model.model.decoder.layers
    handle = layers[1].up.register_forward_hook(lambda *a: None if write(target(model)) is None else None)
    with torch.no_grad():
        model(tokens())
    handle.remove()


def between_steps(engine, model, target, write):
    write(target(model))


def in_a_gather(engine, model, target, write):
    with sluice.zero.GatheredParameters(list(model.parameters())) if engine else contextlib.nullcontext():
        write(target(model))


def in_a_gather_with_a_forward(engine, model, target, write):
    with sluice.zero.GatheredParameters([target(model)], modifier_rank=0) if engine else contextlib.nullcontext():
        with torch.no_grad():
            model(tokens())
            write(target(model))
            model(tokens())


def before_backward(engine, model, target, write):
    """Of a graph that has not used it."""
    loss = (model.model.decoder.layers[0](torch.ones(2, WIDTH))).sum()
    write(target(model))
    loss.backward()


MOMENTS = {
    f.__name__: f for f in (between_steps, in_forward, in_a_gather, in_a_gather_with_a_forward, before_backward)
}


def step(model, optimizer, number):
    optimizer.zero_grad()
    model(tokens(number)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("face", ["initialize", "attach"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_every_write_is_taken(face, moment, budget):
    engine, model, optimizer = placed(face, BUDGETS[budget])
    plain = Model()
    theirs = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.1, foreach=False)
    for number, (name, write) in enumerate(WRITES.items()):
        for where, target in TARGETS.items():
            MOMENTS[moment](engine, model, target, write)
            MOMENTS[moment](None, plain, target, write)
            found, wanted = target(model).detach().clone(), target(plain).detach()
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4, msg=lambda m: f"{name}, {where}: {m}")
        with torch.no_grad():
            ours, expected = model(tokens(number)), plain(tokens(number))
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3, msg=lambda m: f"{name}: {m}")
        with torch.no_grad():  # Large values make what follows drift apart.
            for p, q in zip(model.parameters(), plain.parameters()):
                q.copy_(numbers(q) * 0.1)
                p.copy_(q)
        step(model, optimizer, number)
        step(plain, theirs, number)
        masters = engine.fp32_state_dict()
        for key, value in plain.state_dict().items():
            torch.testing.assert_close(masters[key], value, rtol=1e-3, atol=1e-3, msg=lambda m: f"{name}, {key}: {m}")
    engine.close()


CHANGES_OF_TYPE = {
    "data of another type": lambda m: setattr(m.project, "data", m.project.data.to(torch.bfloat16)),
    "data of another shape": lambda m: setattr(m.project, "data", torch.zeros(3)),
    "module.to": lambda m: m.to(torch.bfloat16),
    "module.half": lambda m: m.model.decoder.half(),
    "module.double": lambda m: m.model.decoder.layers[0].double(),
}


@pytest.mark.parametrize("name", CHANGES_OF_TYPE)
@pytest.mark.parametrize("face", ["initialize", "attach"])
def test_what_can_not_be_taken_says_so_and_changes_nothing(face, name):
    engine, model, optimizer = placed(face, {})
    step(model, optimizer, 0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(RuntimeError):
        CHANGES_OF_TYPE[name](model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    step(model, optimizer, 1)
    engine.close()


def test_what_changes_no_type_is_taken():
    engine, model, optimizer = placed("attach", {})
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert model.to("cpu").float().to(torch.float32) is model
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    step(model, optimizer, 0)
    engine.close()


def test_a_load_into_the_model_is_taken():
    engine, model, optimizer = placed("initialize", {})
    torch.manual_seed(9)
    other = Model()
    for parameter in other.parameters():
        parameter.data.add_(1)
    model.load_state_dict(other.state_dict())
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in engine.fp32_state_dict().items())
    engine.close()


def test_memory_that_is_held_stays_the_parameters():
    """As in PyTorch: what `.data` gave is the parameter, before and after steps."""
    engine, model, optimizer = placed("attach", {})
    plain = Model()
    theirs = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.1, foreach=False)
    held = [{name: p.data for name, p in m.named_parameters()} for m in (model, plain)]
    for number in range(3):
        for m, optimizer_of_it, memory in ((model, optimizer, held[0]), (plain, theirs, held[1])):
            memory["project"].mul_(0.5)
            step(m, optimizer_of_it, number)
        for name, value in held[0].items():
            torch.testing.assert_close(value, held[1][name], rtol=1e-4, atol=1e-5)
        for key, value in model.state_dict().items():
            torch.testing.assert_close(value, plain.state_dict()[key], rtol=1e-4, atol=1e-5)
    engine.close()


def test_a_view_kept_from_forward_and_written_to_later_is_refused():
    """Its memory is a slot that the unit has left."""
    engine, model, _ = placed("attach", {"hbm": "64MiB"})
    kept = []
    layer = model.model.decoder.layers[0]
    layer.register_forward_hook(lambda m, args, out: kept.append(m.up.weight.data))
    with torch.no_grad():
        model(tokens())
        kept[0].add_(1)
        with pytest.raises(RuntimeError, match="parameter model.decoder.layers.0.up.weight was written to through a view"):
            model(tokens())
        kept.clear()
        assert torch.equal(model(tokens()), Model()(tokens()))
    engine.close()


def test_bf16_masters_keep_their_bits_where_nothing_was_written():
    """A gather, a read and a write of one element leave the other masters' lower bits alone."""
    given = {"bf16": {"enabled": True}, "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}
    engine = sluice.initialize(model=Model(), config=given)[0]
    engine.backward(engine(tokens()).float().square().mean())
    engine.step()
    model, before = engine.module, {k: v.clone() for k, v in engine.fp32_state_dict().items()}
    assert any(not torch.equal(value, value.bfloat16().float()) for value in before.values())
    with sluice.zero.GatheredParameters(list(model.parameters()), modifier_rank=0), torch.no_grad():
        model(tokens())
        model.project[1, 2] = 0.3
    model.project.data[3, 3] = 0.7
    with torch.no_grad():
        model.project.data.numel(), [p.sum() for p in model.parameters()]
    before["project"][1, 2] = torch.tensor(0.3).bfloat16()
    before["project"][3, 3] = torch.tensor(0.7).bfloat16()
    after = engine.fp32_state_dict()
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    engine.close()


@torch.no_grad()
def rescaled(model):
    """As RWKV does at the first evaluation after training."""
    for parameter in model.parameters():
        parameter.mul_(0.5)
    return 0


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("face", ["initialize", "attach"])
def test_a_forward_may_write_to_all_parameters_whatever_the_budget(face, budget):
    engine, model, _ = placed(face, BUDGETS[budget])
    plain = Model()
    with torch.no_grad():
        assert torch.equal(model(tokens(), rescaled), plain(tokens(), rescaled))
        assert torch.equal(model(tokens()), plain(tokens()))
    assert all(torch.equal(v, plain.state_dict()[k]) for k, v in model.state_dict().items())
    engine.close()


@pytest.mark.parametrize("value, advice", [(torch.zeros(3, 3), "change its shape"), (torch.zeros(WIDTH, WIDTH).half(), "choose its type")])
def test_a_refused_write_says_what_to_change(value, advice):
    engine, model, _ = placed("attach", {})
    with pytest.raises(sluice.FailedPrecondition, match=advice):
        model.project.data = value
    engine.close()


def test_loans_over_one_memory_end():
    """As vector_to_parameters makes them."""
    engine, model, _ = placed("attach", {})
    plain = Model()
    vector = torch.linspace(-1, 1, sum(p.numel() for p in plain.parameters()))
    for m in (model, plain):
        torch.nn.utils.vector_to_parameters(vector.clone(), m.parameters())
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(model(tokens()), plain(tokens()), rtol=1e-4, atol=1e-4)
    assert not engine._attached.loans
    engine.close()


@pytest.mark.parametrize("how", ["gathered", "kept"])
def test_fp32_values_that_are_loaded_over_a_loan_keep_all_their_bits(how):
    given = {"bf16": {"enabled": True}, "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}
    engine = sluice.initialize(model=Model(), config=given)[0]
    values = {key: torch.full_like(value, 1.0001).float() for key, value in Model().state_dict().items()}
    kept = engine.module.project.data
    with sluice.zero.GatheredParameters([engine.module.temperature]) if how == "gathered" else contextlib.nullcontext():
        engine.load_state_dict(values)
    assert all(torch.equal(value, values[key]) for key, value in engine.fp32_state_dict().items())
    assert torch.equal(kept, values["project"].bfloat16())
    engine.close()
