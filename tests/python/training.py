"""Models, data, configurations and loops that the tests share."""

import pathlib
import re

import sluice
import torch
from reference_loop import ReferenceLoop

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIMULATION = str(ROOT / "build" / "release" / "offload" / "libsluice_sim.so")
FEATURES, CLASSES = 37, 11


def mlp(seed=0, hidden=211, layers=4):
    """Several units, each of several chunks of 4096, no size a multiple of anything."""
    torch.manual_seed(seed)
    modules = [torch.nn.Linear(FEATURES, hidden), torch.nn.Tanh()]
    for _ in range(layers - 2):
        modules += [torch.nn.Linear(hidden, hidden), torch.nn.Tanh()]
    return torch.nn.Sequential(*modules, torch.nn.Linear(hidden, CLASSES))


def batch(step, size=16, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(size, FEATURES, generator=generator)
    return x.to(dtype), x[:, :CLASSES].argmax(1)


def loss_of(output, labels):
    return torch.nn.functional.cross_entropy(output.float(), labels)


def config(path=None, **changes):
    """In RAM, or with states and parameters on NVMe at `path`. Keyword arguments named like sections are merged into them."""
    nvme = {"device": "nvme", "nvme_path": str(path)}
    ram = {"device": "cpu"}
    result = {
        "train_batch_size": 16,
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "weight_decay": 0.05}},
        "zero_optimization": {
            "stage": 3,
            "offload_optimizer": dict(nvme if path else ram),
            "offload_param": dict(nvme if path else ram),
            "stage3_param_persistence_threshold": 0,
        },
        "sluice": {"chunk_elements": 4096, "workers": 1},
    }
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = {**result[key], **value}
        else:
            result[key] = value
    return result


def smallest(model, given, tier):
    """The smallest budget of `tier` that works for model and config, as the refusal names it."""
    given = {**given, "sluice": {**given["sluice"], tier: 1}}
    try:
        sluice.initialize(model=model, config=given)
    except sluice.ResourceExhausted as error:
        return int(re.search(r"smallest that would is .*?\((\d+) bytes\)", str(error)).group(1))
    raise AssertionError(f"a {tier} budget of 1 byte was accepted")


def train(engine, steps, data=batch, dtype=torch.float32):
    """Losses of `steps` steps, as floats."""
    losses = []
    for step in range(steps):
        x, y = data(step, dtype=dtype)
        loss = loss_of(engine(x), y)
        losses.append(loss.item())
        engine.backward(loss)
        engine.step()
    return losses


def same(a, b):
    """Whether two tensors, or containers of tensors, have the same bits."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bits(a).equal(bits(b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def bits(tensor):
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}.get(tensor.element_size())
    return tensor.contiguous().view(width) if tensor.is_floating_point() else tensor


def paired(engines, make, given, body, steps=3, hbm=None, pinned=None):
    """Runs body(trainer, step) with an engine and with plain PyTorch (ReferenceLoop), asserts that results and masters have
    the same bits, and returns the engine. hbm, pinned: in multiples of the smallest budget that works."""
    own = dict(given["sluice"])
    for tier, factor in (("hbm", hbm), ("pinned", pinned)):
        if factor is not None:
            own[tier] = int(factor * smallest(make(), given, tier))
    model = make()
    engine = engines(model, {**given, "sluice": own}, model_parameters=model.parameters())
    loop = ReferenceLoop(
        make(), clip=given["gradient_clipping"], accumulation=given.get("gradient_accumulation_steps", 1),
        **given["optimizer"]["params"],
    )  # fmt: skip
    results = []
    for trainer in (engine, loop):
        torch.manual_seed(7)
        results.append([body(trainer, step) for step in range(steps)])
    assert same(results[0], results[1])
    names = [name for name, _ in loop.model.named_parameters()]
    masters = engine.fp32_state_dict()
    assert same({name: masters[name] for name in names}, dict(zip(names, loop.masters)))
    states = engine.optimizer_state_dict()
    assert [states[name]["step"] for name in names] == loop.steps
    return engine


def one_step(trainer, step):
    x, y = batch(step)
    loss = loss_of(trainer(x), y)
    trainer.backward(loss)
    trainer.step()
    return loss.detach()
