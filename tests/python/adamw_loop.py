"""What the tests of sluice.AdamW share: a small model, its data, a loop of PyTorch's."""

import torch

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
