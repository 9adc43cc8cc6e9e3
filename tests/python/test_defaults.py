"""PyTorch's defaults of the process (its type, its device) change nothing inside: every face gives the same bits under them."""

import ast
import contextlib

import pytest
import torch
from adamw_loop import batches, make_model
from training import ROOT

import sluice
import sluice.probe

TIERS = {"pinned": "8MiB", "workers": 1}
CONFIG = {
    "gradient_clipping": 0.5,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "weight_decay": 0.1}},
    "zero_optimization": {"stage": 3},
    "sluice": {"hbm": "1MiB", "pinned": "8MiB", "device": "host", "chunk_elements": 4096},
}


@contextlib.contextmanager
def dtype(value):
    before = torch.get_default_dtype()
    torch.set_default_dtype(value)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def device(value):
    torch.set_default_device(value)
    try:
        yield
    finally:
        torch.set_default_device(None)


DEFAULTS = {
    **{f"set_default_dtype({value})": lambda v=value: dtype(v) for value in (torch.float16, torch.bfloat16, torch.float64)},
    "set_default_device(meta)": lambda: device("meta"),
    "with torch.device(meta)": lambda: torch.device("meta"),
}


def flat(packed):
    """Tensors of anything nested, by path."""
    if isinstance(packed, torch.Tensor):
        return {"": packed.detach().clone()}
    items = packed.items() if isinstance(packed, dict) else enumerate(packed) if isinstance(packed, (list, tuple)) else ()
    return {f"{key}.{path}": value for key, inner in items for path, value in flat(inner).items()}


def of_parameter(model):
    """What the functions on single parameters say."""
    weight, utils = model[2].weight, sluice.utils
    before = utils.safe_get_full_fp32_param(weight)
    utils.safe_set_full_fp32_param(weight, before * 2)
    with sluice.zero.GatheredParameters([weight], modifier_rank=0), torch.no_grad():
        weight.mul_(0.5)
        gathered = weight.detach().clone()
    moments = [utils.safe_get_full_optimizer_state(weight, key) for key in ("exp_avg", "exp_avg_sq")]
    utils.safe_set_full_optimizer_state(weight, moments[0] * 2, "exp_avg")
    return [before, gathered, *moments]


def adamw(prepared, overlap, directory, model_dtype):
    model, data = prepared
    optimizer = sluice.AdamW(
        list(model[0].parameters()) + list(model[2].parameters()),
        lr=1e-2,
        overlap=model if overlap else None,
        nvme_path=directory,
        **TIERS,
    )
    result = []

    def train(steps):
        for batch in data[:steps]:
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()

    train(2)
    optimizer.add_param_group({"params": list(model[4].parameters())})
    train(2)
    result.append(of_parameter(model))
    saved = optimizer.state_dict()
    result.append(saved["state"])
    saved["state"].pop(3)  # begins anew
    optimizer.load_state_dict(saved)
    train(2)
    result += [optimizer.state_dict()["state"], model.state_dict()]
    optimizer.close()
    return result


def loop(model, engine, optimizer, data):
    result = []
    for batch in data:
        loss = engine(batch).square().mean()
        result.append(loss.detach())
        engine.backward(loss)
        engine.step()
    result.append(of_parameter(model))
    saved = optimizer.state_dict()
    result.append(saved["state"])
    saved["state"].pop(3)
    optimizer.load_state_dict(saved)
    state = engine.state_dict()
    engine.load_state_dict(state)
    loss = engine(data[0]).square().mean()
    engine.backward(loss)
    engine.step()
    return [*result, state, engine.fp32_state_dict(), engine.optimizer_state_dict(), dict(engine.module_state_dict())]


def initialize(prepared, directory, model_dtype):
    model, data = prepared
    given = {**CONFIG, "bf16": {"enabled": model_dtype == torch.bfloat16}}
    engine, optimizer, *_ = sluice.initialize(model=model, config=given)
    result = loop(model, engine, optimizer, data)
    engine.close()
    return result


def attach(prepared, directory, model_dtype):
    model, data = prepared
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    attached = sluice.attach(model, optimizer=optimizer, hbm="1MiB", pinned="8MiB", device="host")
    result = []
    for batch in data:
        loss = model(batch).square().mean()
        result.append(loss.detach())
        loss.backward()
        attached.step()
        attached.zero_grad()
    result += [of_parameter(model), attached.optimizer.state_dict()["state"], model.state_dict()]
    attached.close()
    return result


def checkpoint(prepared, directory, model_dtype):
    """A run that is saved, changed, and loaded again."""
    model, data = prepared
    engine = sluice.initialize(model=model, config={**CONFIG, "bf16": {"enabled": model_dtype == torch.bfloat16}})[0]
    results = []
    for batch in data:
        engine.backward(engine(batch).square().mean())
        engine.step()
        engine.save_checkpoint(directory / "checkpoint", client_state={"at": batch[0]}, rng=True)
    engine.backward(engine(data[0]).square().mean())
    engine.step()
    results += [engine.load_checkpoint(directory / "checkpoint")[1], engine.fp32_state_dict(), engine.optimizer.state_dict()["state"]]
    engine.close()
    return results


def build(prepared, directory, model_dtype):
    """Values are given explicitly: what PyTorch's initialisers do depends on defaults."""
    _, data = prepared
    source = torch.randn(64, 64, dtype=torch.float32, device="cpu", generator=torch.Generator("cpu").manual_seed(1))
    with sluice.init(directory=directory, limit_bytes=1000):
        layers = [torch.nn.Linear(64, 64, dtype=torch.float32, device="cpu") for _ in range(3)]
        model = torch.nn.Sequential(*layers)
        with torch.no_grad():
            for number, layer in enumerate(layers):
                layer.weight.copy_(source + number)
                layer.bias.copy_(source[number])
    engine = sluice.initialize(model=model, config=CONFIG)[0]
    result = [engine.fp32_state_dict(), dict(engine.module_state_dict())]
    engine.close()
    return result


FACES = {
    "AdamW": lambda *a: adamw(a[0], False, None, a[2]),
    "AdamW(overlap)": lambda *a: adamw(a[0], True, None, a[2]),
    "AdamW on a drive": lambda *a: adamw(a[0], False, a[1], a[2]),
    "initialize": initialize,
    "attach": attach,
    "init": build,
    "a checkpoint": checkpoint,
}


@pytest.mark.parametrize("model_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("face", FACES)
def test_defaults_of_the_process_change_nothing(face, model_dtype, tmp_path):
    def run(context):
        prepared = make_model(dtype=model_dtype), batches(4, dtype=model_dtype)
        torch.manual_seed(5)
        with context:
            return flat(FACES[face](prepared, tmp_path, model_dtype))

    expected = run(contextlib.nullcontext())
    assert len(expected) > 4
    for name, context in DEFAULTS.items():
        found = run(context())
        assert found.keys() == expected.keys(), name
        wrong = [
            key
            for key, value in expected.items()
            if found[key].dtype != value.dtype or found[key].device != value.device or not torch.equal(found[key], value)
        ]
        assert wrong == [], name


@pytest.mark.parametrize("name", DEFAULTS)
def test_probes_measure_memory_whatever_the_defaults_are(name):
    with DEFAULTS[name]():
        rates = sluice.probe.memory()
    assert all(1e6 < rate < 1e13 for rate in rates.values()), rates


# What makes a tensor of nothing: its type and device are the process's unless they are said.
MAKERS = {"arange", "empty", "eye", "full", "linspace", "logspace", "ones", "rand", "randint", "randn", "randperm", "tensor", "zeros"}


def test_no_tensor_is_made_without_saying_its_type_and_device():
    wrong = []
    for path in sorted((ROOT / "python" / "sluice").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) not in {f"torch.{name}" for name in MAKERS}:
                continue
            if not {"dtype", "device"} <= {keyword.arg for keyword in node.keywords}:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    assert wrong == []
