"""bf16 and fp16: each value has the type that Transformers gives it when it loads the model in that type, so that rotary
frequencies and what a model keeps in fp32 on purpose stay; and forward gives the same."""

import copy
import functools

import pytest
import torch
from faces import HYPER, Plain, assert_close, assert_same, one_step, opened

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture(params=HALVES)
def half(request):
    return request.param


def loaded(case, half, path):
    """As Transformers loads it."""
    model = case.make()
    model.save_pretrained(path / "saved")
    return type(model).from_pretrained(path / "saved", dtype=HALVES[half])


def types_of(model):
    return {name: tensor.dtype for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


class Mixed(Plain):
    """PyTorch's loop with fp32 masters."""

    def __init__(self, model):
        self.model = model
        self.masters = [p.detach().clone().float() for p in model.parameters()]
        self.optimizer = torch.optim.AdamW(self.masters, **HYPER)

    def step(self):
        parameters = list(self.model.parameters())
        for master, parameter in zip(self.masters, parameters):
            master.grad = None if parameter.grad is None else parameter.grad.float()
        self.optimizer.step()
        with torch.no_grad():
            for master, parameter in zip(self.masters, parameters):
                parameter.copy_(master)
                parameter.grad = None


class Halves:
    """A case whose inputs of floating point are of the model's type."""

    def __init__(self, case, half):
        self._case, self._type = case, HALVES[half]

    def batch(self, step=0):
        inputs = self._case.batch(step)
        return {
            name: value.to(self._type) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
            for name, value in inputs.items()
        }


def test_a_model_in_fp32_becomes_what_transformers_loads(case, half, budget, tmp_path):
    plain, inputs = loaded(case, half, tmp_path), Halves(case, half).batch()
    with opened("initialize", case.make, budget, tmp_path, **{half: {"enabled": True}}) as trainer, torch.no_grad():
        expected, tables = types_of(plain), set(dict(plain.named_buffers())) - set(plain.state_dict())
        for name, found in types_of(trainer.model).items():  # tables stay what the model made of them in fp32
            assert found in (expected[name], torch.float32 if name in tables else None), name
        assert_same(trainer.model.eval()(**inputs).loss, plain.eval()(**inputs).loss, "loss")


def test_a_model_that_was_loaded_so_keeps_its_types(case, half, face, budget, tmp_path):
    plain = loaded(case, half, tmp_path)
    make = functools.partial(copy.deepcopy, plain)
    more = {half: {"enabled": True, **({"loss_scale": 1.0} if half == "fp16" else {})}} if face == "initialize" else {}
    case = Halves(case, half)
    plain = make()
    expected = types_of(plain)
    with opened(face, make, budget, tmp_path, **more) as trainer:
        assert types_of(trainer.model) == expected
        with torch.no_grad():
            assert_same(trainer.model.eval()(**case.batch()).loss, plain.eval()(**case.batch()).loss, "loss")
        reference = Mixed(plain.train())
        for step in range(3):
            assert_close(one_step(trainer, case, step), one_step(reference, case, step), f"loss {step}", rtol=2e-3, atol=2e-3)
        assert types_of(trainer.model) == expected
