"""sluice.attach: any module, called as ever, with HBM for a fraction of its units."""

import copy
import json

import pytest
import torch

import sluice

TIERS = {"hbm": "48KiB", "pinned": "8MiB", "workers": 1, "chunk_elements": 4096, "persistence_threshold": 0}
TRAINED = TIERS | {"optimizer": torch.optim.AdamW}


class Adapter(torch.nn.Module):
    """A frozen layer, and a small one beside it that is trained."""

    def __init__(self, width):
        super().__init__()
        self.base = torch.nn.Linear(width, width)
        self.base.requires_grad_(False)
        self.down = torch.nn.Linear(width, 4, bias=False)
        self.up = torch.nn.Linear(4, width, bias=False)

    def forward(self, x):
        return torch.relu(self.base(x) + self.up(self.down(x)))


def make_model(seed=1, adapters=False, layers=4):
    torch.manual_seed(seed)
    make = Adapter if adapters else lambda width: torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.ReLU())
    return torch.nn.Sequential(*[make(64) for _ in range(layers)], torch.nn.Linear(64, 3))


def batches(count, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(5, 64, generator=generator) for _ in range(count)]


def train(model, optimizer, steps=4):
    losses = []
    for batch in batches(steps):
        optimizer.zero_grad()
        loss = model(batch).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert [name for name, value in ours.items() if not torch.equal(value, theirs[name])] == []


# ---- Training and evaluation


@pytest.mark.parametrize("drive", [False, True])
def test_training_gives_the_same_bits_as_the_model_kept_whole(drive, tmp_path):
    plain = make_model()
    expected = train(plain, sluice.AdamW(plain.parameters(), lr=1e-2, pinned="8MiB", workers=1))
    model = make_model()
    tiers = TIERS | ({"pinned": "360KiB", "nvme_path": tmp_path} if drive else {})
    attached = sluice.attach(model, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2), **tiers)
    assert train(model, attached.optimizer) == expected
    report = attached.report()
    assert (report["nvme"]["states_bytes"] > 0) == drive and report["counters"]["fetches"] > 0
    assert_equal(model.state_dict(), plain.state_dict())
    model.eval(), plain.eval()
    with torch.no_grad():
        assert torch.equal(model(batches(1)[0]), plain(batches(1)[0]))
    attached.close()


class Repeated(torch.nn.Module):
    """A weight that is used twice; backward comes to each use on a stream of its own."""

    def __init__(self, streams):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(64, 64) / 8)
        self.streams = streams

    def forward(self, x):
        for use in (1, 2):
            x = torch.tanh(x @ self.weight)
            x.register_hook(lambda gradient, use=use: self.streams.append(use))
        return x


def test_a_unit_is_acquired_on_every_stream_that_uses_it_and_released_as_often():
    """The streams are made up: the host orders nothing by them."""

    def run(stream):
        streams = [0]
        torch.manual_seed(1)
        model = torch.nn.Sequential(*[Repeated(streams) for _ in range(3)], torch.nn.Linear(64, 3))
        attached = sluice.attach(model, **TRAINED)
        attached.runtime.device.stream = lambda: stream(streams[-1])
        losses = train(model, attached.optimizer)  # a step is refused while a unit is acquired
        acquires = attached.report()["counters"]["acquires"]
        attached.close()
        return losses, acquires

    losses, acquires = run(lambda now: None)
    # Once more in each backward; but the gradient of the first input of all is not wanted.
    assert run(lambda now: now) == (losses, acquires + 4 * 2)


def test_a_class_of_pytorchs_is_an_optimizer_with_its_settings():
    model, plain = make_model(), make_model()
    attached = sluice.attach(model, **TRAINED)
    assert train(model, attached.optimizer) == train(plain, sluice.AdamW(plain.parameters(), pinned="8MiB"))
    torch.optim.lr_scheduler.StepLR(attached.optimizer, 1, 0.5).step()
    assert attached.get_lr() == [5e-4]
    attached.close()


def test_gradients_accumulate_until_the_step():
    def run(attach):
        model = make_model()
        optimizer = (
            sluice.attach(model, **TRAINED).optimizer if attach else sluice.AdamW(model.parameters(), pinned="8MiB")
        )
        for _ in range(2):
            optimizer.zero_grad()
            for batch in batches(3):
                (model(batch).square().mean() / 3).backward()
            optimizer.step()
        return model.state_dict()

    assert_equal(run(True), run(False))


def test_clip_norm_clips():
    def run(clip):
        model = make_model()
        attached = sluice.attach(model, clip_norm=clip, **TRAINED)
        train(model, attached.optimizer, 2)
        values = model.state_dict()
        norm = attached.get_global_grad_norm()
        attached.close()
        return values, norm

    model = make_model()
    optimizer = sluice.AdamW(model.parameters(), pinned="8MiB")
    for batch in batches(2):
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()
    clipped, norm = run(1e-3)
    assert norm > 1e-3
    for name, value in model.state_dict().items():
        torch.testing.assert_close(clipped[name], value, rtol=1e-5, atol=1e-5)


def test_inference_needs_neither_states_nor_gradients():
    model, plain = make_model().requires_grad_(False), make_model()
    attached = sluice.attach(model, **(TIERS | {"pinned": "200KiB"}))
    with torch.no_grad():
        for batch in batches(3):
            assert torch.equal(model(batch), plain(batch))
    report = attached.report()
    assert report["parameters_updated"] == 0 and report["params_home_bytes"]["pinned"] > 0
    assert (
        report["pinned"]["states_bytes"]
        == report["pinned"]["gradients_bytes"]
        == report["pinned"]["state_buffers"]
        == 0
    )
    assert attached.fp32_state_dict().keys() == plain.state_dict().keys() and attached.optimizer_state_dict() == {}
    attached.close()


# ---- A frozen base with trainable adapters


@pytest.mark.parametrize("drive", [False, True])
def test_adapters_train_over_a_frozen_base_that_is_never_written_back(drive, tmp_path):
    plain = make_model(adapters=True)
    trained = [p for p in plain.parameters() if p.requires_grad]
    expected = train(plain, sluice.AdamW(trained, pinned="8MiB", workers=1))
    model = make_model(adapters=True)
    tiers = TRAINED | ({"pinned": "100KiB", "nvme_path": tmp_path} if drive else {})
    attached = sluice.attach(model, **tiers)
    before = {name: p for name, p in model.state_dict().items() if "base" in name}
    attached.runtime.reset_counters()
    assert train(model, attached.optimizer) == expected
    attached.synchronize()
    report = attached.report()
    assert report["parameters_updated"] == sum(p.numel() for p in trained)
    if drive:
        written = report["step_traffic"]["nvme_write_bytes"]  # states and parameters of adapters
        assert written < report["nvme"]["states_bytes"] + report["nvme"]["params_bytes"]
        assert report["counters"]["nvme_write_bytes"] == 4 * written
    state = model.state_dict()
    assert_equal(state, plain.state_dict())
    assert_equal({name: state[name] for name in before}, before)
    assert set(attached.optimizer_state_dict()) == {n for n, p in plain.named_parameters() if p.requires_grad}
    attached.close()


def test_a_frozen_parameter_can_not_be_optimized_later():
    model = make_model(adapters=True)
    attached = sluice.attach(model, **TRAINED)
    base = model[0].base.weight
    with pytest.raises(ValueError, match="did not require a gradient when the module was attached"):
        attached.optimizer.add_param_group({"params": [base]})
    assert len(attached.optimizer.param_groups) == 1
    assert sluice.utils.safe_get_full_optimizer_state(base, "exp_avg") is None
    sluice.utils.safe_set_full_fp32_param(base, torch.full_like(base, 0.5))
    assert model.state_dict()["0.base.weight"].unique() == 0.5
    attached.close()
    model = make_model(adapters=True)
    for extra, words in (
        (model[0].base.weight, "did not require a gradient"),
        (torch.nn.Parameter(torch.ones(3)), "not the"),
    ):
        with pytest.raises(ValueError, match=f"optimizer: 1 of .* parameters .*{words}"):
            sluice.attach(model, optimizer=lambda p, e=extra: torch.optim.AdamW([*p, e]), **TIERS)
        model = make_model(adapters=True)


# ---- Weights from files


def save_shards(model, directory, index):
    from safetensors.torch import save_file

    state = model.state_dict()
    names = sorted(state)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, mine in parts.items():
        save_file({name: state[name] for name in mine}, directory / file)
    if index:
        weight_map = {name: file for file, mine in parts.items() for name in mine}
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        (directory / "other.safetensors").write_bytes(b"not to be read")


@pytest.mark.parametrize("index", [False, True])
def test_a_model_on_the_meta_device_gets_its_weights_from_shards(index, tmp_path):
    plain = make_model(seed=5, adapters=True)
    save_shards(plain, tmp_path, index)
    with torch.device("meta"):
        model = make_model(adapters=True)
    attached = sluice.attach(model, weights=tmp_path, **TRAINED)
    assert_equal(model.state_dict(), plain.state_dict())
    trained = [p for p in plain.parameters() if p.requires_grad]
    assert train(model, attached.optimizer) == train(plain, sluice.AdamW(trained, pinned="8MiB"))
    attached.close()


def test_files_go_before_the_modules_own_values_and_other_types_are_converted(tmp_path):
    from safetensors.torch import save_file

    model = make_model()
    file = tmp_path / "part.safetensors"
    save_file({"0.0.weight": torch.full((64, 64), 0.25, dtype=torch.float16), "extra": torch.zeros(1)}, file)
    with pytest.warns(UserWarning, match="the module has no use for extra"):
        attached = sluice.attach(model, weights=[file], dtype=torch.bfloat16, **TIERS)
    state = model.state_dict()
    assert state["0.0.weight"].unique() == 0.25 and state["0.0.weight"].dtype == torch.bfloat16
    assert torch.equal(state["1.0.weight"], make_model()[1][0].weight.bfloat16())
    attached.close()


def test_buffers_and_tied_weights_come_from_files_too(tmp_path):
    from safetensors.torch import save_file

    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(8, 8, bias=False)
            self.outer = torch.nn.Linear(8, 8, bias=False)
            self.outer.weight = self.inner.weight
            self.norm = torch.nn.BatchNorm1d(8)

        def forward(self, x):
            return self.outer(self.norm(self.inner(x)))

    plain = Tied().eval()
    plain.norm.running_mean.fill_(0.5)
    state = plain.state_dict()
    del state["inner.weight"]
    save_file(state, tmp_path / "a.safetensors")
    with torch.device("meta"):
        model = Tied().eval()
    attached = sluice.attach(model, weights=tmp_path / "a.safetensors", hbm="1MiB", pinned="8MiB")
    assert model.inner.weight is model.outer.weight
    with torch.no_grad():
        assert torch.equal(model(torch.ones(2, 8)), plain(torch.ones(2, 8)))
    attached.close()


def test_what_is_missing_or_does_not_fit_is_named(tmp_path):
    from safetensors.torch import save_file

    def attach(state, meta=True):
        save_file(state, tmp_path / "a.safetensors")
        with torch.device("meta" if meta else "cpu"):
            model = make_model()
        return sluice.attach(model, weights=tmp_path, **TIERS)

    state = make_model().state_dict()
    without = {name: value for name, value in state.items() if name != "1.0.bias"}
    with pytest.raises(ValueError, match="the files lack 1.0.bias, which the module has on the meta device only"):
        attach(without)
    attach(without, meta=False).close()
    with pytest.raises(ValueError, match=r"1.0.bias has shape \(3,\) in the files, \(64,\) in the module"):
        attach(state | {"1.0.bias": torch.zeros(3)})
    save_file({"1.0.bias": torch.zeros(64)}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="1.0.bias is in a.safetensors and in b.safetensors"):
        attach(state)
    with pytest.raises(FileNotFoundError):
        sluice.attach(make_model(), weights=tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no .*safetensors in"):
        sluice.attach(make_model(), weights=tmp_path / "empty")


def test_weights_are_never_whole_in_ram(tmp_path):
    """A model of 192 MiB in shards, on a drive, with 24 MiB of pinned memory and 12 MiB of HBM."""
    from safetensors.torch import save_file

    def anonymous():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon"))

    shapes = [(1024, 1024)] * 48
    for shard in range(4):
        save_file(
            {f"{i}.weight": torch.full(shapes[i], 1.0 + i) for i in range(shard, 48, 4)},
            tmp_path / f"{shard}.safetensors",
        )
    with torch.device("meta"):
        model = torch.nn.Sequential(*[torch.nn.Linear(*shape, bias=False) for shape in shapes]).requires_grad_(False)
    before = anonymous()
    tiers = {"hbm": "12MiB", "pinned": "24MiB", "nvme_path": tmp_path, "workers": 1, "chunk_elements": 1 << 18}
    attached = sluice.attach(model, weights=tmp_path, unit_elements=1 << 20, **tiers)
    grown = anonymous() - before
    assert attached.report()["nvme"]["params_bytes"] > 128 << 20
    assert grown < 120 << 20, f"{grown >> 20} MiB"
    with sluice.zero.GatheredParameters([model[47].weight]):
        assert model[47].weight.unique() == 48.0
    with torch.no_grad():
        assert torch.equal(model[0](torch.ones(1, 1024)), torch.full((1, 1024), 1024.0))
    attached.close()


# ---- Edges


def test_a_forward_that_fails_or_calls_itself_leaves_the_module_usable():
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(64, 64)
            self.fail = None

        def forward(self, x, again=True):
            x = self.layer(x)
            if self.fail is not None:
                raise self.fail
            return self(x, again=False) if again else x

    model, plain = Twice(), Twice()
    plain.load_state_dict(model.state_dict())
    attached = sluice.attach(model, **TIERS)
    for error in (KeyError("one"), KeyboardInterrupt()):
        model.fail = error
        with pytest.raises(type(error)):
            model(batches(1)[0])
        model.fail = None
        try:
            raise LookupError
        except LookupError:  # that an error is being handled is no failure of the forward
            loss = model(batches(1)[0]).square().mean()
        loss.backward()
        assert torch.equal(loss, plain(batches(1)[0]).square().mean())
        attached.zero_grad()
    attached.close()


def test_copies_of_an_attached_module_are_plain_modules():
    model, plain = make_model(), make_model()
    attached = sluice.attach(model, **TRAINED)
    train(model, attached.optimizer, 2)
    copied = copy.deepcopy(model)
    assert_equal(copied.state_dict(), model.state_dict())
    expected = copied(batches(1)[0])
    attached.close()
    assert torch.equal(copied(batches(1)[0]), expected)
    assert plain(batches(1)[0]).shape == expected.shape


def test_after_close_the_module_says_so_and_can_be_attached_again_with_new_values():
    model = make_model()
    attached = sluice.attach(model, **TIERS)
    state = model.state_dict()
    with pytest.raises(sluice.FailedPrecondition, match="attached already"):
        sluice.attach(model, **TIERS)
    attached.close()
    with pytest.raises(sluice.FailedPrecondition, match="closed"):
        model(batches(1)[0])
    model.load_state_dict(state, assign=True)
    again = sluice.attach(model, **TIERS)
    assert_equal(model.state_dict(), state)
    again.close()


def test_types_are_kept_or_converted():
    model = make_model()
    model.register_buffer("scale", torch.ones(1, dtype=torch.float64))
    attached = sluice.attach(model, **TIERS)
    assert model.scale.dtype == torch.float64
    attached.close()
    mixed = make_model()
    mixed[0].bfloat16()
    types = {name: value.dtype for name, value in mixed.state_dict().items()}
    attached = sluice.attach(mixed, **TIERS)
    assert {name: value.dtype for name, value in mixed.state_dict().items()} == types
    attached.close()
    mixed = make_model()
    mixed[0].bfloat16()
    with pytest.raises(ValueError, match="dtype: must be torch.float32, torch.bfloat16 or torch.float16"):
        sluice.attach(mixed, dtype=torch.float64, **TIERS)
    attached = sluice.attach(mixed, dtype=torch.bfloat16, **TIERS)
    assert {value.dtype for value in mixed.state_dict().values()} == {torch.bfloat16}
    attached.close()
