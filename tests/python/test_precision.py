"""Which type each value of a model has on the tiers."""

import pytest
import torch
from training import config

import sluice

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


class Scaled(torch.nn.Linear):
    def __init__(self):
        super().__init__(8, 8)
        self.register_buffer("scale", torch.ones(8))

    def forward(self, x):
        return super().forward(x) * self.scale.to(x.dtype)


class Mixture(torch.nn.Module):
    """As Transformers' models say which of their values are to stay fp32."""

    _keep_in_fp32_modules = ["wo"]
    _keep_in_fp32_modules_strict = ["correction", "gate.weight"]

    def __init__(self):
        super().__init__()
        self.up, self.wo, self.gate, self.propagate = Scaled(), Scaled(), torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
        self.register_buffer("correction", torch.linspace(0, 1, 8))
        self.register_buffer("frequencies", torch.linspace(0, 1, 8), persistent=False)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        scores = self.gate(x).float() + self.correction + self.frequencies
        return self.wo(self.up(x).to(self.wo.weight.dtype)).sum() + self.propagate(x).sum() + scores.sum()


class Of5(Mixture):
    """Transformers' models from version 5 on: a name is any part of a value's."""

    _keep_in_fp32_modules_strict = ["correction", "*gate.weight"]

    def _get_dtype_plan(self, dtype):
        raise AssertionError("is not for us to call")


class Around(torch.nn.Module):
    """Says nothing itself."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


# name -> types where bf16 is wanted, and fp16.
TYPES = {
    "up.weight": (BF16, FP16),
    "up.scale": (BF16, FP16),
    "wo.weight": (BF16, FP32),
    "wo.scale": (BF16, FP32),
    "gate.weight": (FP32, FP32),
    "gate.bias": (BF16, FP16),
    "propagate.weight": (BF16, FP16),
    "correction": (FP32, FP32),
    "frequencies": (FP32, FP32),
    "count": (torch.int64, torch.int64),
}


def types_of(model, prefix=""):
    found = {name: value.dtype for name, value in [*model.named_parameters(), *model.named_buffers()]}
    return {name: found[prefix + name] for name in TYPES}


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("half", ["bf16", "fp16"])
@pytest.mark.parametrize("kind", [Mixture, Of5])
def test_what_a_model_keeps_in_fp32_stays_fp32(engines, kind, half, wrapped):
    model = Around(kind()) if wrapped else kind()
    engines(model, config(**{half: {"enabled": True}}))
    expected = {name: types[half == "fp16"] for name, types in TYPES.items()}
    if kind is Of5:
        expected["propagate.weight"] = FP32
    assert types_of(model, "inner." if wrapped else "") == expected


@pytest.mark.parametrize("half", ["bf16", "fp16"])
def test_a_wish_for_buffers_is_for_all_of_them(engines, half):
    model = Mixture()
    engines(model, config(**{half: {"enabled": True}}, sluice={"cast_buffers": True}))
    wanted = BF16 if half == "bf16" else FP16
    assert {model.up.scale.dtype, model.correction.dtype, model.frequencies.dtype} == {wanted}


@pytest.mark.parametrize("half", [BF16, FP16])
def test_an_attached_model_keeps_the_types_that_it_has(half):
    model = Mixture().to(half)
    model.gate.float()
    before = types_of(model)
    with_it = sluice.attach(model, workers=1)
    assert types_of(model) == before
    with_it.close()
