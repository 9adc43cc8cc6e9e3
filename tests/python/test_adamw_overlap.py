"""sluice.AdamW with updates that run on under the next forward: what reads a parameter waits for it."""

import copy
import io
import pickle

import pytest
import torch
from adamw_loop import TIERS, assert_equal, batches, make_model, train, values

import sluice
from sluice.residency.away import Away


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
                assert type(model[1].out.weight) is Away
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
        assert type(model[1].out.weight) is Away
        taken = READERS[name](model)
        assert_equal(taken, {key: value for key, value in values(plain).items() if key in taken})
        assert taken and type(model[1].out.weight) is torch.nn.Parameter
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
