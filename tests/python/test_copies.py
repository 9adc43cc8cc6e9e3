"""Values of an attached model as programs take them: state_dict, deep copies, pickles, averages, evaluation, while updates
are under way; and what may change between steps."""

import copy
import io
import pickle

import pytest
import sluice
import torch
from reference_loop import ReferenceLoop
from training import batch, config, loss_of, mlp, one_step, paired, same, smallest


def tight(path, **sections):
    given = config(path, gradient_clipping=0.0, **sections)
    for tier in ("hbm", "pinned"):
        given["sluice"][tier] = int(1.1 * smallest(mlp(), given, tier))
    return given


def reference(given, steps):
    loop = ReferenceLoop(mlp(), clip=0.0, **given["optimizer"]["params"])
    for step in range(steps):
        one_step(loop, step)
    return loop.model


TAKERS = {
    "state_dict": lambda model: model.state_dict(),
    "a part's state_dict": lambda model: {f"2.{k}": v for k, v in model[2].state_dict().items()},
    "deepcopy": lambda model: copy.deepcopy(model).state_dict(),
    "deepcopy of a part": lambda model: {f"2.{k}": v for k, v in copy.deepcopy(model[2]).state_dict().items()},
    "pickle": lambda model: pickle.loads(pickle.dumps(model)).state_dict(),
    "torch.save of the model": lambda model: saved(model).state_dict(),
    "torch.save of the state_dict": lambda model: saved(model.state_dict()),
}


def saved(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=isinstance(thing, dict))


@pytest.mark.parametrize("name", TAKERS)
def test_values_right_after_step_while_updates_run(engines, tmp_path, name):
    """step() has returned, its updates run on: what is taken then has them all, and taking changes nothing."""
    given = tight(tmp_path)
    engine = engines(mlp(), given)
    for step in range(3):
        one_step(engine, step)
        taken = TAKERS[name](engine.module)
        expected = reference(given, step + 1).state_dict()
        assert taken and all(same(value, expected[key]) for key, value in taken.items())
    assert same(dict(engine.fp32_state_dict()), expected)


def test_a_copy_is_a_plain_module(engines, tmp_path):
    """It computes, trains and is copied by itself, and the original's hooks don't know it."""
    given = tight(tmp_path)
    engine = engines(mlp(), given)
    one_step(engine, 0)
    before = engine.report()["counters"]["acquires"]
    for plain in (copy.deepcopy(engine.module), pickle.loads(pickle.dumps(engine.module))):
        expected = reference(given, 1)
        x, y = batch(1)
        assert same(plain(x), expected(x))
        optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
        loss_of(plain(x), y).backward()
        optimizer.step()
        assert not same(dict(plain.state_dict()), dict(expected.state_dict()))
        assert same(dict(copy.deepcopy(plain).state_dict()), dict(plain.state_dict()))
    assert engine.report()["counters"]["acquires"] == before
    assert type(plain[0]._parameters) is dict


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = torch.nn.Linear(37, 37, bias=False), torch.nn.Linear(37, 37)
        self.a.weight = self.b.weight
        self.b.bias.requires_grad_(False)

    def forward(self, x):
        return self.b(self.a(x))[:, :11]


def test_copies_keep_requires_grad_and_tied_weights(engines):
    engine = engines(Tied(), config())
    one_step(engine, 0)
    for plain in (copy.deepcopy(engine.module), pickle.loads(pickle.dumps(engine.module))):
        assert plain.a.weight is plain.b.weight
        assert plain.a.weight.requires_grad and not plain.b.bias.requires_grad
        assert same(plain.a.weight.detach(), engine.module_state_dict()["b.weight"])
    state = engine.module_state_dict()
    assert same(state["a.weight"], state["b.weight"])


def test_evaluation_averages_and_logging_between_steps(engines, tmp_path):
    """A loop that looks at everything after every step, as plain PyTorch sees it."""

    def body(trainer, step):
        model = trainer.module if hasattr(trainer, "module") else trainer.model
        loss = one_step(trainer, step)
        model.eval()
        with torch.no_grad():
            validation = [loss_of(trainer(batch(100 + i)[0]), batch(100 + i)[1]) for i in range(2)]
        model.train()
        state = model.state_dict()
        averages = trainer.__dict__.setdefault("ema", {key: value.clone() for key, value in state.items()})
        for key, value in state.items():
            averages[key].lerp_(value, 0.1)
        norms = [value.norm().item() for value in state.values()]
        return loss, validation, norms, {key: value.clone() for key, value in averages.items()}

    engine = paired(engines, mlp, config(tmp_path, gradient_clipping=0.0), body, steps=4, hbm=1.1, pinned=1.1)
    assert engine.report()["counters"]["evictions"] > 0


def test_evaluation_is_a_trace_of_its_own(engines, tmp_path):
    engine = engines(mlp(), tight(tmp_path))
    for step in range(6):
        one_step(engine, step)
        with torch.no_grad():
            engine(batch(step)[0])
        if step == 1:
            engine.runtime.reset_counters()
    counters = engine.report()["counters"]
    assert counters["trace_departures"] == 0 and counters["acquires"] > 0


def test_requires_grad_toggled(engines, tmp_path):
    """Frozen in some steps and trained in others, one from the beginning."""

    def make():
        model = mlp()
        model[4].requires_grad_(False)
        return model

    def body(trainer, step):
        model = trainer.module if hasattr(trainer, "module") else trainer.model
        model[2].requires_grad_(step % 2 == 0)
        model[4].requires_grad_(step >= 2)
        return one_step(trainer, step)

    engine = paired(engines, make, config(tmp_path, gradient_clipping=0.0), body, steps=5, hbm=1.1)
    steps = {name: state["step"] for name, state in engine.optimizer_state_dict().items()}
    assert steps == {"0.weight": 5, "0.bias": 5, "2.weight": 3, "2.bias": 3, "4.weight": 3, "4.bias": 3, "6.weight": 5, "6.bias": 5}


def test_add_param_group_and_groups_of_their_own(engines, tmp_path):
    """Against torch.optim.AdamW with the same groups. A parameter that is in no group keeps its value and its `.grad`."""
    given = config(tmp_path, gradient_clipping=0.0)
    given["sluice"]["hbm"] = smallest(mlp(), given, "hbm")
    model, plain = mlp(), mlp()
    engine, optimizer, _, _ = sluice.initialize(
        model=model, config=given, model_parameters=[{"params": list(model[0].parameters()), "lr": 1e-3}]
    )
    theirs = torch.optim.AdamW(
        [{"params": list(plain[0].parameters()), "lr": 1e-3}], foreach=False, **given["optimizer"]["params"]
    )
    start = dict(engine.module_state_dict())
    for step in range(4):
        if step == 2:
            for module, target in ((model, optimizer), (plain, theirs)):
                target.add_param_group({"params": list(module[2].parameters()), "weight_decay": 0.3, "betas": (0.8, 0.9)})
        x, y = batch(step)
        theirs.zero_grad()
        plain[2].zero_grad()
        loss_of(plain(x), y).backward()
        theirs.step()
        model[2].zero_grad()
        engine.backward(loss_of(engine(x), y))
        engine.step()
        if step == 1:
            assert same(engine.module_state_dict()["2.weight"], start["2.weight"])
    result = engine.module_state_dict()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(result[name], value, rtol=1e-4, atol=1e-5)
    assert same(result["6.weight"], start["6.weight"])
    torch.testing.assert_close(model[6].weight.grad, plain[6].weight.grad, rtol=1e-5, atol=1e-7)
    engine.close()


def test_buffers_and_small_parameters(engines, tmp_path):
    """Buffers stay with the module; units below the persistence threshold are never evicted."""

    def make():
        torch.manual_seed(0)
        layers = [torch.nn.Linear(37, 61), torch.nn.BatchNorm1d(61), torch.nn.Tanh()]
        for _ in range(3):
            layers += [torch.nn.Linear(61, 61), torch.nn.BatchNorm1d(61), torch.nn.Tanh()]
        return torch.nn.Sequential(*layers, torch.nn.Linear(61, 11))

    given = config(tmp_path, gradient_clipping=0.0)
    given["zero_optimization"]["stage3_param_persistence_threshold"] = 200
    seen = []

    def body(trainer, step):
        loss = one_step(trainer, step)
        model = trainer.module if hasattr(trainer, "module") else trainer.model
        seen.append({name: buffer.clone() for name, buffer in model.named_buffers()})
        return loss

    engine = paired(engines, make, given, body, hbm=1)
    assert same(seen[:3], seen[3:]) and seen[2]["1.num_batches_tracked"] == 3
    report = engine.report()
    assert report["hbm"]["resident_bytes"] == 4 * 4096 and report["counters"]["evictions"] > 0


def test_a_closed_engine_says_so(engines, tmp_path):
    engine = engines(mlp(), config(tmp_path))
    one_step(engine, 0)
    values = engine.module_state_dict()
    engine.close()
    engine.close()
    model = engine.module
    for use in (lambda: engine(batch(0)[0]), lambda: model(batch(0)[0]), model.state_dict, lambda: copy.deepcopy(model)):
        with pytest.raises(sluice.FailedPrecondition, match="closed"):
            use()
    with pytest.raises(sluice.FailedPrecondition, match="load_state_dict"):
        sluice.initialize(model=model, config=config(tmp_path))
    model.load_state_dict(values, assign=True)
    again = engines(model, config(tmp_path))
    assert same(dict(again.module_state_dict()), dict(values))
    one_step(again, 1)


def test_one_engine_for_one_model(engines):
    engine = engines(mlp(), config())
    with pytest.raises(sluice.FailedPrecondition, match="attached already"):
        sluice.initialize(model=engine.module, config=config())
    one_step(engine, 0)


def test_the_model_serves_without_its_engine(engines, tmp_path):
    """An engine that is collected does not take the values with it."""
    given = tight(tmp_path)
    model = mlp()
    engine = sluice.initialize(model=model, config=given)[0]
    one_step(engine, 0)
    del engine
    expected = reference(given, 1)
    assert same(dict(model.state_dict()), dict(expected.state_dict()))
    with torch.no_grad():
        assert same(model(batch(1)[0]), expected(batch(1)[0]))
