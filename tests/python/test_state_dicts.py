"""load_state_dict() of optimizers takes a state_dict as a whole, or refuses it and changes nothing; state_dict() is exact."""

import copy

import pytest
import torch
from adamw_loop import TIERS, make_model, train

import sluice

CONFIG = {
    "gradient_clipping": 0,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-2}},
    "zero_optimization": {"stage": 3},
    "sluice": {"hbm": "1MiB", "pinned": "8MiB", "device": "host"},
}


class Plain:
    """sluice.AdamW, and sluice.AdamW with overlap."""

    def __init__(self, overlap):
        self.model = make_model()
        self.optimizer = sluice.AdamW(
            self.model.named_parameters(), lr=1e-2, overlap=self.model if overlap else None, **TIERS
        )

    def train(self, steps):
        train(self.model, self.optimizer, steps)

    def values(self):
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}

    def close(self):
        self.optimizer.close()


class Engine:
    def __init__(self):
        self.engine, self.optimizer, *_ = sluice.initialize(model=make_model(), config=CONFIG)

    def train(self, steps):
        for step in range(steps):
            torch.manual_seed(step)
            self.engine.backward(self.engine(torch.randn(4, 8)).square().mean())
            self.engine.step()

    def values(self):
        return self.engine.fp32_state_dict()

    def close(self):
        self.engine.close()


MAKERS = {"AdamW": lambda: Plain(False), "AdamW(overlap)": lambda: Plain(True), "engine": Engine}


def entry_without(key):
    return lambda entry: {k: v for k, v in entry.items() if k != key}


def entry_with(**values):
    return lambda entry: {**entry, **values}


def entry_changed(key, change):
    return lambda entry: {**entry, key: change(entry[key])}


def moments(change):
    return {f"{key} {name}": entry_changed(key, one) for key in ("exp_avg", "exp_avg_sq") for name, one in change.items()}


WRONG_ENTRIES = {
    **{f"without {key}": entry_without(key) for key in ("step", "exp_avg", "exp_avg_sq")},
    "empty": lambda entry: {},
    "amsgrad": entry_with(max_exp_avg_sq=torch.zeros(3)),
    "of SGD": lambda entry: {"momentum_buffer": entry["exp_avg"]},
    "with more": entry_with(exp_inf=torch.zeros(3)),
    **moments(
        {
            "flat": lambda t: torch.cat([t.reshape(-1), t.reshape(-1)]),
            "one dimension more": lambda t: t[None],
            "scalar": lambda t: torch.zeros(()),
            "transposed": lambda t: t.t().contiguous() if t.dim() == 2 else t[:, None],
            "integers": lambda t: t.to(torch.int32),
            "complex": lambda t: t.to(torch.complex64),
            "meta": lambda t: t.to("meta"),
            "sparse": lambda t: t.to_sparse(),
            "None": lambda t: None,
            "a list": lambda t: t.tolist(),
        }
    ),
    "master transposed": lambda entry: {**entry, "master": entry["exp_avg"][None]},
    **{
        f"step {value!r}": entry_with(step=value)
        for value in (-1, 0.5, float("nan"), float("inf"), None, "3", True, 2**49, torch.tensor(-1.0), torch.zeros(2))
    },
    "step NaN in a tensor": entry_with(step=torch.tensor(float("nan"))),
}


def at(position):
    """A change of the saved state_dict's entry there."""

    def change(saved, one):
        saved["state"][position] = one(saved["state"][position])
        return saved

    return change


def in_group(change):
    def changed(saved):
        change(saved["param_groups"][0])
        return saved

    return changed


def more_groups(saved):
    saved["param_groups"].append({**saved["param_groups"][0], "params": []})
    return saved


def unknown_state(saved):
    saved["state"][99] = saved["state"][0]
    return saved


WRONG_WHOLES = {
    "no state": lambda saved: {"param_groups": saved["param_groups"]},
    "no groups": lambda saved: {"state": saved["state"]},
    "more groups": more_groups,
    "fewer parameters": in_group(lambda group: group["params"].pop()),
    "a parameter twice": in_group(lambda group: group.update(params=[0, *group["params"][:-1]])),
    "states of none": unknown_state,
    "lr missing": in_group(lambda group: group.pop("lr")),
    "lr negative": in_group(lambda group: group.update(lr=-1.0)),
    "lr NaN": in_group(lambda group: group.update(lr=float("nan"))),
    "betas of one": in_group(lambda group: group.update(betas=(1.0, 0.9))),
    "eps missing": in_group(lambda group: group.pop("eps")),
    "amsgrad": in_group(lambda group: group.update(amsgrad=True)),
    "maximize": in_group(lambda group: group.update(maximize=True)),
}


def snapshot(subject):
    packed = subject.optimizer.state_dict()
    flat = {f"{i} {k}": v for i, entry in packed["state"].items() for k, v in entry.items()}
    return {**flat, **subject.values()}, copy.deepcopy(packed["param_groups"])


def assert_unchanged(subject, before, what):
    now = snapshot(subject)
    assert now[1] == before[1], what
    assert now[0].keys() == before[0].keys(), what
    assert [key for key, value in now[0].items() if not torch.equal(value, before[0][key])] == [], what


@pytest.mark.parametrize("name", MAKERS)
def test_what_can_not_be_loaded_changes_nothing(name):
    subject, other = MAKERS[name](), MAKERS[name]()
    other.train(3)
    saved = other.optimizer.state_dict()
    for group in saved["param_groups"]:
        group["lr"] = 0.5
    subject.train(2)
    before = snapshot(subject)
    last = len(saved["state"]) - 1
    for what, one in WRONG_ENTRIES.items():
        for position in (0, last // 2, last):
            with pytest.raises((ValueError, TypeError), match="state_dict: of parameter [0-9]"):
                subject.optimizer.load_state_dict(at(position)(copy.deepcopy(saved), one))
            assert_unchanged(subject, before, f"{what} at {position}")
    for what, whole in WRONG_WHOLES.items():
        with pytest.raises(ValueError, match="state_dict"):
            subject.optimizer.load_state_dict(whole(copy.deepcopy(saved)))
        assert_unchanged(subject, before, what)
    subject.optimizer.load_state_dict(saved)
    now = subject.optimizer.state_dict()
    assert all(torch.equal(now["state"][i]["exp_avg"], entry["exp_avg"]) for i, entry in saved["state"].items())
    assert now["param_groups"][0]["lr"] == 0.5
    subject.close(), other.close()


@pytest.mark.parametrize("name", MAKERS)
def test_what_a_load_writes_may_fail_and_is_known_then(name, monkeypatch):
    subject, other = MAKERS[name](), MAKERS[name]()
    other.train(3), subject.train(2)
    saved = other.optimizer.state_dict()
    real, calls = sluice.native.values.write_all, []

    def fail(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError("on purpose")
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(sluice.native.values, "write_all", fail)
        with pytest.raises(MemoryError):
            subject.optimizer.load_state_dict(saved)
    for use in (subject.optimizer.state_dict, lambda: subject.train(1)):
        with pytest.raises(sluice.FailedPrecondition, match="load_state_dict.* interrupted"):
            use()
    subject.optimizer.load_state_dict(saved)
    now = subject.optimizer.state_dict()
    assert all(torch.equal(now["state"][i]["exp_avg_sq"], e["exp_avg_sq"]) for i, e in saved["state"].items())
    subject.close(), other.close()


@pytest.mark.parametrize("name", MAKERS)
def test_hooks_of_state_dicts_are_called_as_pytorch_calls_them(name):
    subject = MAKERS[name]()
    subject.train(1)
    seen = []
    optimizer = subject.optimizer
    optimizer.register_state_dict_pre_hook(lambda o: seen.append("pre"))
    optimizer.register_state_dict_post_hook(lambda o, packed: seen.append(len(packed["state"])))
    saved = optimizer.state_dict()

    def halve(o, packed):
        packed["param_groups"][0]["lr"] = 0.25
        return packed

    optimizer.register_load_state_dict_pre_hook(halve)
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append("loaded"))
    optimizer.load_state_dict(saved)
    assert seen == ["pre", 8, "loaded"] and optimizer.param_groups[0]["lr"] == 0.25
    subject.close()


STEPS = [1, 2**24 - 1, 2**24, 2**24 + 1, 2**31 + 1, 2**40 + 3, 2**48]


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("steps", STEPS)
def test_the_number_of_steps_is_exact(name, steps):
    subject = MAKERS[name]()
    subject.train(1)
    saved = subject.optimizer.state_dict()
    for entry in saved["state"].values():
        entry["step"] = steps
    subject.optimizer.load_state_dict(saved)
    for _ in range(2):
        saved = subject.optimizer.state_dict()
        assert {int(entry["step"]) for entry in saved["state"].values()} == {steps}
        assert all(isinstance(entry["step"], torch.Tensor) for entry in saved["state"].values())
        subject.optimizer.load_state_dict(saved)
    model = make_model()
    theirs = torch.optim.AdamW(model.parameters())
    theirs.load_state_dict(saved)
    train(model, theirs, 1)
    assert {int(entry["step"]) for entry in theirs.state_dict()["state"].values()} == {steps + 1}
    subject.close()


def test_a_loaded_state_does_not_depend_on_what_was_there_before():
    """PyTorch's has no masters: they begin as the parameters, whatever the optimizer's were."""

    def run(before):
        model = make_model(dtype=torch.bfloat16)
        other = make_model(dtype=torch.bfloat16)
        theirs = torch.optim.AdamW(other.parameters(), lr=1e-4)
        train(other, theirs, 3)
        optimizer = sluice.AdamW(model.parameters(), lr=1e-4, **TIERS)
        train(model, optimizer, before)
        model.load_state_dict(other.state_dict())
        optimizer.load_state_dict(theirs.state_dict())
        train(model, optimizer, 3)
        masters = {i: entry["master"] for i, entry in optimizer.state_dict()["state"].items()}
        optimizer.close()
        return masters

    first, second = run(0), run(2)
    assert all(torch.equal(value, second[key]) for key, value in first.items())
