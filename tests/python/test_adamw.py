"""sluice.AdamW in loops of PyTorch's: against torch.optim.AdamW by tolerance, against other placements by bits."""

import copy
import pickle

import pytest
import torch
from adamw_loop import TIERS, assert_close, assert_equal, batches, make_model, train, values

import sluice


# ---- The arithmetic, and where the states are


@pytest.mark.parametrize(
    "ours, theirs, settings",
    [
        (sluice.AdamW, torch.optim.AdamW, {}),
        (sluice.AdamW, torch.optim.AdamW, {"lr": 1e-2, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.3}),
        (sluice.ops.adam.DeepSpeedCPUAdam, torch.optim.Adam, {"lr": 1e-2}),
    ],
)
def test_it_computes_what_pytorch_computes(ours, theirs, settings):
    model, other = make_model(), make_model()
    optimizer = ours(model.parameters(), **settings, **TIERS)
    assert optimizer.report() is None
    assert_close(train(model, optimizer), train(other, theirs(other.parameters(), **settings)))
    optimizer.close()


def test_without_adamw_mode_the_decay_is_added_to_the_gradient():
    model, other = make_model(), make_model()
    optimizer = sluice.AdamW(model.parameters(), lr=1e-2, weight_decay=0.3, adamw_mode=False, **TIERS)
    expected = train(other, torch.optim.Adam(other.parameters(), lr=1e-2, weight_decay=0.3))
    assert_close(train(model, optimizer), expected)
    optimizer.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_placement_gives_the_same_bits(dtype, tmp_path):
    def run(**tiers):
        model = make_model(dtype=dtype)
        optimizer = sluice.AdamW(model.parameters(), lr=1e-2, **tiers)
        result = train(model, optimizer)
        report = optimizer.report()
        optimizer.close()
        return result, report

    expected, report = run(**TIERS)
    assert report["nvme"]["states_bytes"] == 0
    streamed, report = run(pinned="170KiB", nvme_path=tmp_path, chunk_elements=4096, workers=1)
    assert report["nvme"]["states_bytes"] > 0 and report["counters"]["chunks_updated"] > 0
    assert_equal(streamed, expected)
    workers, _ = run(pinned="8MiB", workers=2, chunk_elements=8192)
    assert_equal(workers, expected)
    assert list(tmp_path.iterdir()) == []


def test_masters_of_bf16_parameters_do_not_lose_small_updates():
    parameter = torch.nn.Parameter(torch.ones(5000, dtype=torch.bfloat16))
    optimizer = sluice.AdamW([parameter], lr=1e-3, weight_decay=0, **TIERS)
    for _ in range(8):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    torch.testing.assert_close(
        optimizer.state_dict()["state"][0]["master"], torch.full((5000,), 0.992), rtol=0, atol=1e-4
    )
    assert torch.equal(parameter, torch.full_like(parameter, 0.992))
    optimizer.close()


def test_a_budget_that_can_not_work_names_the_smallest_that_would():
    model = make_model()
    optimizer = sluice.AdamW(model.parameters(), pinned=4096)
    with pytest.raises(sluice.ResourceExhausted, match="pinned budget of 4 KiB.*smallest that would"):
        train(model, optimizer, 1)
    with pytest.raises(sluice.ConfigError, match="pinned: 'lots' is not a size"):
        sluice.AdamW(model.parameters(), pinned="lots")


# ---- What loops do between backward and step


def test_the_gradient_is_untouched_until_the_step_and_after_it():
    model = make_model()
    optimizer = sluice.AdamW(model.parameters(), **TIERS)
    model(batches(1)[0]).sum().backward()
    before = {name: (parameter.grad, parameter.grad.clone()) for name, parameter in model.named_parameters()}
    optimizer.step()
    for name, parameter in model.named_parameters():
        gradient, copied = before[name]
        assert parameter.grad is gradient and torch.equal(gradient, copied)
    optimizer.close()


@pytest.mark.filterwarnings("error")  # no scheduler complains about the order of calls
def test_clipping_groups_and_schedulers_work_as_ever():
    def run(kind, **tiers):
        model = make_model()
        small = [p for p in model.parameters() if p.dim() == 1]
        large = [p for p in model.parameters() if p.dim() > 1]
        groups = [{"params": large}, {"params": small, "weight_decay": 0.0, "lr": 3e-2}]
        optimizer = kind(groups, lr=1e-2, weight_decay=0.2, **tiers)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=[1e-2, 3e-2], total_steps=8)

        for batch in batches(6):
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            scheduler.step()
        return values(model)

    assert_close(run(sluice.AdamW, **TIERS), run(torch.optim.AdamW))


def test_a_closure_is_called_with_gradients_on():
    model, other = make_model(), make_model()
    batch = batches(1)[0]

    def closure_for(net, optimizer):
        def closure():
            optimizer.zero_grad()
            loss = net(batch).square().mean()
            loss.backward()
            return loss

        return closure

    ours = sluice.AdamW(model.parameters(), lr=1e-2, **TIERS)
    theirs = torch.optim.AdamW(other.parameters(), lr=1e-2)
    for _ in range(3):
        loss = ours.step(closure_for(model, ours))
        torch.testing.assert_close(loss, theirs.step(closure_for(other, theirs)))
    assert_close(values(model), values(other))
    ours.close()


def test_grad_scaler_unscales_and_skips():
    def run(kind, **tiers):
        model = make_model()
        optimizer = kind(model.parameters(), lr=1e-2, **tiers)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
        for number, batch in enumerate(batches(6)):
            optimizer.zero_grad()
            loss = model(batch).square().mean() * (float("inf") if number == 2 else 1.0)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
        return values(model), scaler.get_scale()

    ours, scale = run(sluice.AdamW, **TIERS)
    theirs, expected = run(torch.optim.AdamW)
    assert scale == expected
    assert_close(ours, theirs)


def test_a_gradient_that_is_not_finite_changes_nothing_and_says_so():
    model = make_model()
    optimizer = sluice.AdamW(model.parameters(), **TIERS)
    train(model, optimizer, 2)
    before, state = values(model), optimizer.state_dict()
    model(batches(1)[0]).sum().backward()
    model[0].bias.grad[3] = float("nan")
    with pytest.warns(UserWarning, match="not finite: this step changed nothing"):
        optimizer.step()
    assert not optimizer.was_step_applied()
    assert_equal(values(model), before)
    assert torch.equal(optimizer.state_dict()["state"][0]["exp_avg"], state["state"][0]["exp_avg"])
    train(model, optimizer, 1)
    assert optimizer.was_step_applied()
    optimizer.close()


def test_parameters_without_gradient_are_left_alone():
    model, other = make_model(), make_model()
    for net in (model, other):
        net[2].requires_grad_(False)
    optimizer = sluice.AdamW(model.parameters(), lr=1e-2, **TIERS)
    optimizer.step()  # no gradient at all
    theirs = torch.optim.AdamW(other.parameters(), lr=1e-2)
    train(model, optimizer, 2), train(other, theirs, 2)
    for net in (model, other):
        net[2].requires_grad_(True)
    train(model, optimizer, 3), train(other, theirs, 3)
    assert_close(values(model), values(other))
    assert [int(entry["step"]) for entry in optimizer.state_dict()["state"].values()] == [5, 5, 3, 3, 5, 5, 5, 5]
    optimizer.close()


# ---- Parameters that are changed, or lie oddly


def test_what_is_written_into_a_parameter_from_outside_counts():
    def run(kind, **tiers):
        model = make_model()
        optimizer = kind(model.parameters(), lr=1e-2, **tiers)
        train(model, optimizer, 2)
        with torch.no_grad():
            model[0].weight.mul_(0.5)
        model[2].weight.data[3] = 0.25
        model[4].weight.data = torch.full_like(model[4].weight, 0.125)
        return train(model, optimizer, 2, seed=3)

    assert_close(run(sluice.AdamW, **TIERS), run(torch.optim.AdamW))


def test_parameters_that_are_not_contiguous_are_updated_too():
    def run(kind, **tiers):
        torch.manual_seed(1)
        model = torch.nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
        assert not model.weight.is_contiguous()
        optimizer = kind(model.parameters(), lr=1e-2, **tiers)
        for seed in range(3):
            torch.manual_seed(seed)
            optimizer.zero_grad()
            model(torch.randn(2, 3, 8, 8)).square().mean().backward()
            optimizer.step()
        return values(model)

    assert_close(run(sluice.AdamW, **TIERS), run(torch.optim.AdamW))


def test_parameters_of_several_types():
    def run(kind, **tiers):
        torch.manual_seed(1)
        whole = torch.nn.Parameter(torch.randn(3000))
        half = torch.nn.Parameter(torch.randn(3000).bfloat16())
        optimizer = kind([whole, half], lr=1e-2, **tiers)
        for seed in range(3):
            torch.manual_seed(seed)
            for parameter in (whole, half):
                parameter.grad = torch.randn(3000).to(parameter.dtype)
            optimizer.step()
        return {"whole": whole.detach(), "half": half.detach().float()}

    ours, theirs = run(sluice.AdamW, **TIERS), run(torch.optim.AdamW)
    assert_close({"whole": ours["whole"]}, theirs)
    assert_close({"half": ours["half"]}, theirs, rtol=2e-2, atol=2e-2)  # PyTorch's moments are bf16


def test_sparse_gradients_are_made_dense():
    torch.manual_seed(1)
    embedding = torch.nn.Embedding(50, 8, sparse=True)
    dense = torch.nn.Embedding(50, 8)
    dense.load_state_dict(embedding.state_dict())
    optimizer = sluice.AdamW(embedding.parameters(), lr=1e-2, **TIERS)
    other = torch.optim.AdamW(dense.parameters(), lr=1e-2)
    for net, using in ((embedding, optimizer), (dense, other)):
        net(torch.tensor([1, 4, 4])).sum().backward()
        using.step()
    assert_close(values(embedding), values(dense))
    optimizer.close()


# ---- Edges


def test_arguments_that_are_not_offered_are_refused():
    parameter = torch.nn.Parameter(torch.zeros(3))
    for wrong in ("amsgrad", "maximize", "differentiable", "capturable"):
        with pytest.raises(ValueError, match=wrong):
            sluice.AdamW([parameter], **{wrong: True})
    for key, value in (("lr", -1), ("eps", -1), ("weight_decay", -1), ("betas", (1.0, 0.9))):
        with pytest.raises(ValueError, match=key):
            sluice.AdamW([parameter], **{key: value})
    with pytest.raises(ValueError, match="fp32_optimizer_states"):
        sluice.ops.adam.DeepSpeedCPUAdam([parameter], fp32_optimizer_states=False)
    with pytest.raises(NotImplementedError, match="FusedAdam is not offered"):
        sluice.ops.adam.FusedAdam([parameter])


def test_it_is_neither_copied_nor_pickled():
    optimizer = sluice.AdamW([torch.nn.Parameter(torch.zeros(3))])
    with pytest.raises(TypeError, match="state_dict"):
        copy.deepcopy(optimizer)
    with pytest.raises(TypeError, match="state_dict"):
        pickle.dumps(optimizer)


def test_deepspeeds_cpu_adam_says_what_the_engine_is_to_do():
    def run(make):
        model = make_model()
        config = {
            "gradient_clipping": 0,
            "zero_optimization": {"stage": 3},
            "sluice": {"hbm": "1MiB", "pinned": "8MiB"},
        }
        engine, *_ = sluice.initialize(model=model, optimizer=make(model.parameters()), config=config)
        for batch in batches(3):
            engine.backward(engine(batch).square().mean())
            engine.step()
        result = engine.fp32_state_dict()
        engine.close()
        return result

    by_name = run(lambda p: sluice.ops.adam.DeepSpeedCPUAdam(p, lr=1e-2, weight_decay=0.1, adamw_mode=False))
    assert_equal(by_name, run(lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=0.1)))
    model = make_model()
    used = sluice.AdamW(model.parameters(), **TIERS)
    train(model, used, 1)
    with pytest.raises(ValueError, match="stepped already"):
        sluice.initialize(model=model, optimizer=used, config={})
    used.close()
