"""Each tensor of a model is handled in its own type, whatever else is in the model: a table of types that parameters and buffers
have, in layers of a model of another type, through each face. The oracle is the same model in plain PyTorch."""

import copy

import pytest
import sluice
import torch

WIDTH = 24


class Router(torch.nn.Module):
    """fp32 on purpose, in a model of any type."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(WIDTH, WIDTH))

    def forward(self, x):
        return torch.softmax(torch.nn.functional.linear(x.float(), self.weight), -1).to(x.dtype)


class Quantized(torch.nn.Module):
    """A frozen weight in another type, with an fp32 scale."""

    def __init__(self, dtype):
        super().__init__()
        values = torch.randint(0, 2, (WIDTH, WIDTH)) if dtype == torch.bool else 5 * torch.randn(WIDTH, WIDTH).abs()
        self.weight = torch.nn.Parameter(values.to(dtype), requires_grad=False)
        self.scale = torch.nn.Parameter(torch.tensor(0.125), requires_grad=False)

    def forward(self, x):
        weight = self.weight.real if self.weight.is_complex() else self.weight
        return torch.nn.functional.linear(x, (weight.float() * self.scale).to(x.dtype))


class Rotary(torch.nn.Module):
    def __init__(self, persistent):
        super().__init__()
        self.register_buffer("frequency", 1 / 10000 ** (torch.arange(0, WIDTH, 2) / WIDTH), persistent=persistent)

    def forward(self, x):
        angle = 4000.0 * self.frequency.float()
        return x * torch.cat([angle.cos(), angle.sin()]).to(x.dtype)


class Empty(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(0, WIDTH))

    def forward(self, x):
        return torch.cat([x, self.nothing.to(x.dtype)])


class Adapter(torch.nn.Module):
    """As PEFT's: a frozen base of the model's type, and fp32 beside it."""

    def __init__(self, dtype):
        super().__init__()
        self.base = torch.nn.Linear(WIDTH, WIDTH, dtype=dtype).requires_grad_(False)
        self.down, self.up = (torch.nn.Parameter(torch.randn(n, WIDTH) / 8) for n in (4, 4))

    def forward(self, x):
        return self.base(x) + (x.float() @ self.down.t() @ self.up).to(x.dtype)


EXACT = [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool, torch.float8_e4m3fn, torch.complex64]
PARTS = {
    "router": lambda dtype: Router(),
    "rotary": lambda dtype: Rotary(False),
    "rotary that is saved": lambda dtype: Rotary(True),
    "empty": lambda dtype: Empty(),
    "adapter": Adapter,
    "fp64 that is frozen": lambda dtype: Quantized(torch.float64),
    **{f"frozen {str(kind)[6:]}": lambda dtype, kind=kind: Quantized(kind) for kind in EXACT},
}
MODELS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def make(part, dtype):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(WIDTH, WIDTH, dtype=dtype), PARTS[part](dtype), torch.nn.Linear(WIDTH, 3, dtype=dtype)]
    return torch.nn.Sequential(*layers)


def batch(dtype, number=0):
    return torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(number)).to(dtype)


def start(face, model, kind):
    if face == "attach":
        make = lambda p: torch.optim.AdamW([q for q in p if q.numel()], lr=1e-2, eps=1e-3)
        return sluice.attach(model, optimizer=make, hbm="1MiB", pinned="16MiB")
    config = {"optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "weight_decay": 0.01, "eps": 1e-3}}, "gradient_clipping": 0}
    config["sluice"] = {"hbm": "1MiB", "pinned": "16MiB"}
    if kind != "fp32":
        config[kind] = {"enabled": True, **({"loss_scale": 1} if kind == "fp16" else {})}
    return sluice.initialize(model=model, config=config)[0]


def bits(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("face", ["initialize", "attach"])
@pytest.mark.parametrize("part", PARTS)
def test_each_tensor_has_its_own_type(part, face, kind):
    dtype = MODELS[kind]
    model = make(part, dtype)
    if part == "fp64 that is frozen" and face == "initialize":
        pytest.skip("a configuration says the type of all that is of floating point, but for what is fp32 on purpose")
    plain = copy.deepcopy(model)
    engine = start(face, model, kind)
    wanted = {name: value.dtype for name, value in plain.state_dict().items()}
    assert {name: value.dtype for name, value in model.state_dict().items()} == wanted
    assert {name: value.dtype for name, value in model.named_buffers()} == {n: b.dtype for n, b in plain.named_buffers()}
    assert all(torch.equal(bits(v), bits(plain.state_dict()[n])) for n, v in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(batch(dtype)), plain(batch(dtype)))
    theirs = torch.optim.AdamW([p for p in plain.parameters() if p.requires_grad], lr=1e-2, eps=1e-3, foreach=False)
    before = {name: bits(p).clone() for name, p in plain.named_parameters() if not p.requires_grad}
    for number in range(2):
        losses = []
        for module in (model, plain):
            loss = module(batch(dtype, number)).float().square().mean()
            loss.backward()
            losses.append(loss.detach())
        if number == 0 or kind == "fp32":  # PyTorch has no fp32 masters of others
            torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-4)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and parameter.numel():
                assert parameter.grad.dtype == parameter.dtype
        if face == "attach":
            engine.optimizer.step()
            engine.optimizer.zero_grad()
        else:
            engine.step()
        theirs.step()
        theirs.zero_grad()
    state = model.state_dict()
    for name, value in plain.state_dict().items():
        assert state[name].dtype == value.dtype
        if name in before:
            assert torch.equal(bits(state[name]), before[name])
        elif value.dtype == torch.float32 and "1." in name and kind == "fp32":
            torch.testing.assert_close(state[name], value, rtol=1e-3, atol=1e-3)
    engine.close()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64, torch.float64])
def test_a_type_that_can_not_be_trained_is_refused_by_name(dtype):
    model = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH))
    model[0].weight = torch.nn.Parameter(torch.ones(WIDTH, WIDTH).to(dtype))
    with pytest.raises(TypeError, match="parameter 0.weight is"):
        sluice.attach(model, optimizer=torch.optim.AdamW, hbm="1MiB", pinned="8MiB")
    assert type(model[0].weight) is torch.nn.Parameter


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_a_model_that_is_converted_keeps_what_must_stay_and_says_so(kind):
    """An fp32 model under a bf16 key: as model.bfloat16(), but for tables that its state_dict lacks."""
    model = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), Rotary(False), torch.nn.BatchNorm1d(WIDTH), Rotary(True))
    engine = start("initialize", model, kind)
    dtype = MODELS[kind]
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model[1].frequency.dtype == torch.float32
    assert model[2].running_mean.dtype == model[3].frequency.dtype == dtype
    assert any("1.frequency" in note and "cast_buffers" in note for note in engine.config_notes)
    assert model(batch(dtype)).dtype == dtype
    engine.close()


def test_a_type_that_no_key_names_is_changed_with_a_note():
    model = torch.nn.Linear(WIDTH, WIDTH, dtype=torch.bfloat16)
    engine = start("initialize", model, "fp32")
    assert model.weight.dtype == torch.float32
    assert any("bfloat16" in note and "compute in float32" in note for note in engine.config_notes)
    engine.close()
