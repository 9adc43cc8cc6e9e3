"""initialize() with parameters that don't require a gradient: LoRA's base, and layers that are thawed later."""

import pytest
import sluice
import torch
from training import batch, config, loss_of, mlp, one_step, same, train


class LoRA(torch.nn.Module):
    """A frozen layer with two small ones beside it that are trained."""

    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = torch.nn.Linear(base.in_features, 4, bias=False)
        self.up = torch.nn.Linear(4, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def lora():
    model = mlp()
    for index in (0, 2, 4):
        model[index] = LoRA(model[index])
    return model


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def elements(parameters):
    return sum(p.numel() for p in parameters)


def plainly(model, steps):
    """Losses of `steps` steps, with a sluice.AdamW over what is trained."""
    optimizer = sluice.AdamW(trained(model), lr=1e-2, weight_decay=0.05, pinned="16MiB", workers=1)
    losses = []
    for step in range(steps):
        x, y = batch(step)
        optimizer.zero_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    optimizer.close()
    return losses


NAMED = {
    "nothing": lambda model: {},
    "what is trained": lambda model: {"model_parameters": filter(lambda p: p.requires_grad, model.parameters())},
    "a function": lambda model: {"optimizer": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.05)},
}


@pytest.mark.parametrize("drive", [False, True])
@pytest.mark.parametrize("named", NAMED)
def test_a_frozen_base_has_no_states_and_is_never_written_back(engines, tmp_path, named, drive):
    model, plain = lora(), lora()
    given = config(tmp_path if drive else None, gradient_clipping=0)
    if drive:
        given["sluice"] |= {"hbm": "200KiB", "pinned": "136KiB"}
    engine = engines(model, given, **NAMED[named](model))
    assert engine.config_notes == engines(mlp(), config()).config_notes
    before = engine.module_state_dict()
    engine.synchronize()
    engine.runtime.reset_counters()
    assert train(engine, 3) == plainly(plain, 3)
    engine.synchronize()
    report = engine.report()
    states = sum(report[tier]["states_bytes"] for tier in ("pinned", "nvme"))
    assert report["parameters_updated"] == elements(trained(model))
    assert 12 * elements(trained(model)) <= states < 16 * elements(trained(model))  # chunks are aligned
    if drive:
        assert report["nvme"]["params_bytes"] > 4 * elements(model[2].base.parameters())
        assert report["nvme"]["states_bytes"] == states
        assert 3 * states <= report["counters"]["nvme_write_bytes"] < 3 * 2 * states  # and parameters of what is trained
    after = engine.module_state_dict()
    assert same(dict(after), dict(plain.state_dict()))
    assert all(same(after[name], before[name]) for name in before if "base" in name)
    assert list(engine.optimizer_state_dict()) == [n for n, p in model.named_parameters() if p.requires_grad]


def test_a_frozen_parameter_has_no_moments(engines):
    model = lora()
    engines(model, config())
    moments = [sluice.utils.safe_get_full_optimizer_state(p, "exp_avg") for p in model.parameters()]
    assert [m is not None for m in moments] == [p.requires_grad for p in model.parameters()]


def test_what_is_frozen_keeps_no_fp32_master(engines):
    model, whole = lora(), lora()
    masters = engines(model, config(bf16={"enabled": True})).fp32_state_dict()
    for name, parameter in whole.named_parameters():
        kept = parameter if parameter.requires_grad else parameter.bfloat16().float()
        assert same(masters[name], kept.detach()), name


@pytest.mark.parametrize("client", [False, True])
def test_what_was_named_can_be_thawed(engines, client):
    """With the bits that it has where everything had states from the start."""

    def run(**more):
        model = more.pop("model")
        model[2].requires_grad_(False)
        engine = engines(model, config(), **more)
        one_step(engine, 0)
        model[2].requires_grad_(True)
        one_step(engine, 1)
        return engine

    model = mlp()
    if client:
        named = {"optimizer": torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.05)}
    else:
        named = {"model_parameters": model.parameters()}
    engine = run(model=model, **named)
    steps = {name: state["step"] for name, state in engine.optimizer_state_dict().items()}
    assert (steps["0.weight"], steps["2.weight"], steps["2.bias"]) == (2, 1, 1)
    frozen = elements(model[2].parameters())
    assert f"are kept for {frozen} values that nothing trains now" in engine.config_notes[-1]


def test_what_is_kept_for_nothing_is_told(engines):
    """Only the head was named, but the rest requires gradients too."""
    model = mlp()
    engine = engines(model, config(), model_parameters=model[6].parameters())
    assert f"are kept for {elements(model[:6].parameters())} values that nothing trains now" in engine.config_notes[-1]


def test_thawing_what_has_no_states_is_an_error_at_the_next_step(engines):
    model, plain = mlp(), mlp()
    for each in (model, plain):
        each[2].requires_grad_(False)
    engine = engines(model, config())
    model[2].requires_grad_(True)
    x, y = batch(0)
    engine.backward(loss_of(engine(x), y))
    words = "parameter 2.weight requires a gradient now, but did not when the engine was made.*in model_parameters"
    for _ in range(2):
        with pytest.raises(sluice.FailedPrecondition, match=words):
            engine.step()
    assert (engine.micro_steps, engine.global_steps) == (0, 0)
    with pytest.raises(ValueError, match="2 of 2 parameters did not require a gradient.*in model_parameters"):
        engine.optimizer.add_param_group({"params": list(model[2].parameters())})
    model[2].requires_grad_(False)  # the gradients that were handed over are still there
    engine.step()
    other = engines(plain, config())
    one_step(other, 0)
    assert same(dict(engine.module_state_dict()), dict(other.module_state_dict()))


def test_a_thawed_parameter_of_an_attached_module_is_an_error_too():
    model = mlp()
    model[2].requires_grad_(False)
    attached = sluice.attach(model, hbm="1MiB", pinned="16MiB", workers=1, optimizer=torch.optim.AdamW)
    model[2].bias.requires_grad_(True)
    loss_of(model(batch(0)[0]), batch(0)[1]).backward()
    with pytest.raises(sluice.FailedPrecondition, match="parameter 2.bias .* was attached.*before sluice.attach"):
        attached.optimizer.step()
    attached.close()
