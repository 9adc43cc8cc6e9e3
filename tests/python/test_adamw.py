"""sluice.AdamW in loops of PyTorch's: against torch.optim.AdamW by tolerance, against other placements by bits."""

import copy
import io
import pickle

import pytest
import torch

import sluice

TIERS = {"pinned": "8MiB", "workers": 1}


def make_model(seed=1, dtype=torch.float32):
    torch.manual_seed(seed)
    layers = (
        torch.nn.Linear(8, 96),
        torch.nn.ReLU(),
        torch.nn.Linear(96, 64),
        torch.nn.LayerNorm(64),
        torch.nn.Linear(64, 4),
    )
    return torch.nn.Sequential(*layers).to(dtype)


def batches(count, seed=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 8, generator=generator).to(dtype) for _ in range(count)]


def train(model, optimizer, steps=4, between=None, seed=2):
    for batch in batches(steps, seed, next(model.parameters()).dtype):
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        if between is not None:
            between()
        optimizer.step()
    return values(model)


def values(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_close(ours, theirs, rtol=1e-5, atol=2e-5):  # of updates of about 1e-2; Adam amplifies the smallest gradients
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert [name for name, value in ours.items() if not torch.equal(value, theirs[name])] == []


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
    streamed, report = run(pinned="190KiB", nvme_path=tmp_path, chunk_elements=4096, workers=1)
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
    for bad, error in ((torch.zeros(3, dtype=torch.float64), TypeError), (torch.zeros(0), ValueError)):
        with pytest.raises(error):
            sluice.AdamW([torch.nn.Parameter(bad)])


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


# ---- state_dict, and groups that are added


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_run_goes_on_from_its_state_dict_to_the_last_bit(dtype, tmp_path):
    model = make_model(dtype=dtype)
    optimizer = sluice.AdamW(model.parameters(), lr=1e-2, **TIERS)
    train(model, optimizer, 3)
    saved = pickle.loads(pickle.dumps((model.state_dict(), optimizer.state_dict())))
    expected = train(model, optimizer, 3, seed=5)
    optimizer.close()
    model = make_model(seed=9, dtype=dtype)
    optimizer = sluice.AdamW(model.parameters(), pinned="190KiB", nvme_path=tmp_path, chunk_elements=4096, workers=1)
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    assert optimizer.param_groups[0]["lr"] == 1e-2
    assert_equal(train(model, optimizer, 3, seed=5), expected)
    optimizer.close()


def test_state_goes_from_pytorch_and_to_it():
    model, other = make_model(), make_model()
    theirs = torch.optim.AdamW(other.parameters(), lr=1e-2)
    model.load_state_dict({name: value for name, value in train(other, theirs, 3).items()})
    ours = sluice.AdamW(model.parameters(), **TIERS)
    ours.load_state_dict(theirs.state_dict())
    assert_close(train(model, ours, 3), train(other, theirs, 3))
    theirs = torch.optim.AdamW(other.parameters())
    other.load_state_dict(model.state_dict())
    theirs.load_state_dict(ours.state_dict())
    assert_close(train(model, ours, 2), train(other, theirs, 2))
    adam = torch.optim.Adam(other.parameters())
    ours.load_state_dict(adam.state_dict())
    assert ours.param_groups[0]["l2_decay"] and ours.state_dict()["state"] == {}
    amsgrad = torch.optim.AdamW(other.parameters(), amsgrad=True)
    train(other, amsgrad, 1)
    with pytest.raises(ValueError, match="amsgrad"):
        ours.load_state_dict(amsgrad.state_dict())
    ours.close()


@pytest.mark.parametrize("drive", [False, True])
def test_a_group_added_between_steps_trains_and_the_others_keep_their_states(drive, tmp_path):
    tiers = {"pinned": "190KiB", "nvme_path": tmp_path, "chunk_elements": 4096, "workers": 1} if drive else TIERS

    def run(kind, **tiers):
        model = make_model()
        optimizer = kind(model[0].parameters(), lr=1e-2, **tiers)
        train(model, optimizer, 2)
        optimizer.add_param_group({"params": model[2].parameters(), "lr": 2e-2})
        train(model, optimizer, 2)
        optimizer.add_param_group({"params": list(model[3].parameters()) + list(model[4].parameters())})
        train(model, optimizer, 2)
        assert [int(entry["step"]) for entry in optimizer.state_dict()["state"].values()] == [6, 6, 4, 4, 2, 2, 2, 2]
        return values(model)

    assert_close(run(sluice.AdamW, **tiers), run(torch.optim.AdamW))


@pytest.mark.parametrize("call", ["spool", "__init__", "restore", "set_steps"])
def test_states_outlive_a_failure_to_make_room_for_more(call, monkeypatch):
    """The call fails twice; whatever is asked for meanwhile fails too, and then all states are there."""

    def run(fail):
        model = make_model()
        optimizer = sluice.AdamW(model[0].parameters(), lr=1e-2, **TIERS)
        train(model, optimizer, 2)
        optimizer.add_param_group({"params": model[2].parameters()})
        if fail:
            with monkeypatch.context() as patch:
                patch.setattr(sluice.adamw.StateStore, call, refuse)
                with pytest.raises(MemoryError):
                    train(model, optimizer, 1)
                for use in (optimizer.state_dict, lambda: sluice.utils.safe_get_full_fp32_param(model[0].weight)):
                    with pytest.raises(MemoryError):
                        use()
        train(model, optimizer, 2)
        state = optimizer.state_dict()["state"]
        assert [int(entry["step"]) for entry in state.values()] == [4, 4, 2, 2]
        optimizer.close()
        return values(model) | {f"exp_avg {i}": entry["exp_avg"] for i, entry in state.items()}

    def refuse(*arguments):
        raise MemoryError("on purpose")

    assert_equal(run(True), run(False))


def test_single_values_of_a_group_just_added_with_overlap_are_not_mixed_up():
    model = make_model()
    optimizer = sluice.AdamW(model[4].parameters(), overlap=model, **TIERS)
    train(model, optimizer, 1)
    optimizer.add_param_group({"params": model[0].parameters()})  # goes before model[4] in the new store
    master = sluice.utils.safe_get_full_fp32_param(model[4].weight)
    optimizer.synchronize()
    assert torch.equal(master, model[4].weight)
    optimizer.close()


@pytest.mark.parametrize("steps", [0, 1])
def test_a_closed_optimizer_says_so(steps):
    model = make_model()
    optimizer = sluice.AdamW(model.parameters(), **TIERS)
    train(model, optimizer, steps)
    optimizer.close()
    optimizer.close()
    before = values(model)
    for use in (
        optimizer.step,
        optimizer.state_dict,
        lambda: optimizer.load_state_dict(torch.optim.AdamW(make_model().parameters()).state_dict()),
    ):
        with pytest.raises(sluice.FailedPrecondition, match="closed"):
            use()
    assert_equal(values(model), before)
    assert sluice.utils.safe_get_full_fp32_param(model[0].weight) is None


# ---- Overlap


class Block(torch.nn.Module):
    """Its attention reads the projection's weight itself."""

    def __init__(self, width):
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(width, 2, batch_first=True)
        self.out = torch.nn.Linear(width, width)

    def forward(self, x):
        return x + self.out(self.attention(x, x, x, need_weights=False)[0])


def make_transformer():
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ModuleList([Block(32), Block(32)])[0], Block(32))


def test_overlap_gives_the_same_bits(tmp_path):
    def run(overlap, **tiers):
        model = make_transformer()
        optimizer = sluice.AdamW(model.parameters(), lr=1e-2, overlap=model if overlap else None, **tiers)
        for number, batch in enumerate(batches(6)):
            optimizer.zero_grad()
            model(batch[None]).square().mean().backward()
            optimizer.step()
            if overlap and number == 2:
                assert model[1].out.weight.isnan().all()
        optimizer.synchronize()
        result = values(model)
        optimizer.close()
        return result

    expected = run(False, **TIERS)
    assert_equal(run(True, **TIERS), expected)
    drive = {"pinned": "300KiB", "nvme_path": tmp_path, "chunk_elements": 4096, "workers": 1}
    assert_equal(run(True, **drive), expected)


def test_with_overlap_what_reads_waits():
    model = make_transformer()
    optimizer = sluice.AdamW(model.parameters(), lr=1e-2, overlap=model, **TIERS)
    plain = make_transformer()
    expected = sluice.AdamW(plain.parameters(), lr=1e-2, **TIERS)

    def step():
        for net, using in ((model, optimizer), (plain, expected)):
            using.zero_grad()
            net(batches(1)[0][None]).square().mean().backward()
            using.step()

    step()
    assert_equal(model.state_dict(), plain.state_dict())  # waits
    step()
    state, other = optimizer.state_dict(), expected.state_dict()
    assert all(torch.equal(state["state"][i]["exp_avg"], other["state"][i]["exp_avg"]) for i in other["state"])
    assert_equal(values(model), values(plain))
    step()
    with torch.no_grad():
        assert torch.equal(model(batches(1)[0][None]), plain(batches(1)[0][None]))
    step()
    optimizer.close()  # leaves the parameters with their values
    assert_equal(values(model), values(plain))
    expected.close()


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def gathered(model):
    with sluice.zero.GatheredParameters(model.parameters()):
        return values(model)


READERS = {
    "deepcopy": lambda model: values(copy.deepcopy(model)),
    "deepcopy of a parent": lambda model: values(copy.deepcopy(torch.nn.ModuleList([model]))[0]),
    "deepcopy of parameters": lambda model: copy.deepcopy(dict(model.named_parameters())),
    "pickle": lambda model: values(pickle.loads(pickle.dumps(model))),
    "torch.save": lambda model: values(saved(model)),
    "GatheredParameters": gathered,
    "state_dict of a part": lambda model: {f"1.{key}": value for key, value in model[1].state_dict().items()},
}


@pytest.mark.parametrize("name", READERS)
def test_with_overlap_copies_have_the_values(name):
    model, plain = make_transformer(), make_transformer()
    optimizer = sluice.AdamW(model.parameters(), lr=1e-2, overlap=model, **TIERS)
    expected = sluice.AdamW(plain.parameters(), lr=1e-2, **TIERS)
    for batch in batches(3):
        for net, using in ((model, optimizer), (plain, expected)):
            using.zero_grad()
            net(batch[None]).square().mean().backward()
            using.step()
        assert model[1].out.weight.isnan().all()
        taken = READERS[name](model)
        assert_equal(taken, {key: value for key, value in values(plain).items() if key in taken})
        assert taken and not model[1].out.weight.isnan().any()
    copied = copy.deepcopy(model)
    assert_equal(values(copied), values(plain))
    assert not vars(copied[0].weight) and not vars(model[0].weight)
    optimizer.close()
    expected.close()
    with torch.no_grad():
        assert torch.equal(copied(batches(1)[0][None]), plain(batches(1)[0][None]))


@pytest.mark.parametrize("part", [False, True])
def test_with_overlap_loaded_values_are_kept(part):
    model, other = make_transformer(), make_transformer()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    optimizer = sluice.AdamW(model.parameters(), lr=1e-2, overlap=model, **TIERS)
    model(batches(1)[0][None]).square().mean().backward()
    optimizer.step()
    loaded, source = (model[1], other[1]) if part else (model, other)
    loaded.load_state_dict(source.state_dict())
    assert_equal(values(loaded), values(source))
    optimizer.zero_grad()
    optimizer.step()
    optimizer.synchronize()
    assert_equal(values(loaded), values(source))
    optimizer.close()


def test_overlap_with_a_compiled_module():
    def run(overlap):
        model = make_model()
        optimizer = sluice.AdamW(model.parameters(), lr=1e-2, overlap=model if overlap else None, **TIERS)
        train(torch.compile(model, backend="aot_eager"), optimizer)
        optimizer.close()
        return values(model)

    assert_equal(run(True), run(False))


def test_overlap_needs_parameters_that_can_be_written_in_place():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last))
    optimizer = sluice.AdamW(model.parameters(), overlap=model, **TIERS)
    model(torch.randn(1, 3, 8, 8)).sum().backward()
    for _ in range(2):
        with pytest.raises(ValueError, match="contiguous"):
            optimizer.step()


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
    with pytest.raises(AttributeError, match="FusedAdam is not offered"):
        sluice.ops.adam.FusedAdam


def test_it_is_neither_copied_nor_pickled():
    optimizer = sluice.AdamW([torch.nn.Parameter(torch.zeros(3))])
    with pytest.raises(TypeError, match="state_dict"):
        copy.deepcopy(optimizer)
    with pytest.raises(TypeError, match="state_dict"):
        pickle.dumps(optimizer)


def test_single_states_can_be_read_and_set_by_deepspeeds_functions():
    model = make_model()
    optimizer = sluice.AdamW(model.parameters(), lr=1e-2, **TIERS)
    train(model, optimizer, 2)
    weight = model[0].weight
    moment = sluice.utils.safe_get_full_optimizer_state(weight, "exp_avg")
    assert torch.equal(moment, optimizer.state_dict()["state"][0]["exp_avg"])
    sluice.utils.safe_set_full_optimizer_state(weight, moment * 2, "exp_avg")
    assert torch.equal(optimizer.state_dict()["state"][0]["exp_avg"], moment * 2)
    with sluice.zero.GatheredParameters(model.parameters(), modifier_rank=0), torch.no_grad():
        weight.zero_()  # they are where they always are
    assert weight.abs().sum() == 0
    optimizer.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("overlap", [False, True])
def test_a_master_that_was_set_goes_on(dtype, overlap):
    """The next step starts from it, all 32 bits, and the parameter follows at once."""
    model = make_model(dtype=dtype)
    optimizer = sluice.AdamW(model.parameters(), lr=1e-2, overlap=model if overlap else None, **TIERS)
    train(model, optimizer, 2)
    weight = model[0].weight
    value = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
    sluice.utils.safe_set_full_fp32_param(weight, value)
    assert torch.equal(weight, value.to(dtype))
    optimizer.param_groups[0]["lr"] = 0.0
    train(model, optimizer, 1)
    assert torch.equal(sluice.utils.safe_get_full_fp32_param(weight), value)
    optimizer.synchronize()
    assert torch.equal(weight, value.to(dtype))
    optimizer.close()


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
