"""A parameter is used by whatever call, and the result is plain PyTorch's, whatever the budget: every door to a model on the
tiers, with and without gradients, through each face."""

import copy

import pytest
import sluice
import torch
from torch.nn.utils import parametrize

WIDTH = 24


class Skip(torch.nn.Linear):
    """Hands its own bias to whoever called it, to be added there."""

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight), self.bias


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.LayerNorm(WIDTH)
        self.up = torch.nn.Linear(WIDTH, 2 * WIDTH)
        self.down = Skip(2 * WIDTH, WIDTH)
        self.scale = torch.nn.Parameter(torch.tensor([1.5]))

    def forward(self, x):
        y, bias = self.down(torch.tanh(self.up(self.norm(x))))
        return x + (y + bias) * self.scale

    def half_of_it(self, x):
        return torch.tanh(self.up(self.norm(x))).mean() * self.scale


class Decoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(11, WIDTH)
        self.place = torch.nn.Parameter(torch.randn(1, WIDTH))
        self.layers = torch.nn.ModuleList(Layer() for _ in range(3))
        self.norm = torch.nn.LayerNorm(WIDTH)

    def forward(self, tokens):
        x = self.words(tokens) + self.place
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class Model(torch.nn.Module):
    """As Transformers' decoders: a model in a model, a head tied to the embedding."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = torch.nn.Module()
        self.model.decoder = Decoder()
        self.head = torch.nn.Linear(WIDTH, 11, bias=False)
        self.head.weight = self.model.decoder.words.weight
        self.project = torch.nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.temperature = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, tokens, also=lambda model: 0):
        """also: what the forward does beside, with the model."""
        more = also(self)
        return self.head(self.model.decoder(tokens) @ self.project) * self.temperature.exp() + more

    def encode(self, tokens):
        return self.model.decoder.words(tokens).mean(1) @ self.project * self.temperature

    @property
    def embedding(self):
        return self.model.decoder.words


def penalty(parameters):
    return sum(p.square().sum() for p in parameters)


def with_lora(model, tokens):
    class Add(torch.nn.Module):
        def forward(self, weight):
            return weight + 0.5

    layer = model.model.decoder.layers[1]
    parametrize.register_parametrization(layer.up, "weight", Add())
    try:
        return model(tokens).sum()
    finally:
        parametrize.remove_parametrizations(layer.up, "weight", leave_parametrized=False)


def stacked(model):
    layers = model.model.decoder.layers
    return torch.stack([layer.up.weight for layer in layers]).prod(0).sum()


# name -> what is computed of (model, tokens): a number, through which gradients go.
DOORS = {
    "the model": lambda m, t: m(t).sum(),
    "a model in it": lambda m, t: m.model.decoder(t).sum(),
    "a layer": lambda m, t: m.model.decoder.layers[1](torch.ones(2, WIDTH)).sum(),
    "a leaf of a layer": lambda m, t: m.model.decoder.layers[2].up(torch.ones(2, WIDTH)).sum(),
    "a norm": lambda m, t: m.model.decoder.norm(torch.arange(2.0 * WIDTH).view(2, WIDTH)).square().sum(),
    "a module that returns its parameter": lambda m, t: sum(
        x.sum() for x in m.model.decoder.layers[0].down(torch.ones(2, 2 * WIDTH))
    ),
    "the embedding": lambda m, t: m.embedding(t).square().sum(),
    "the tied head": lambda m, t: m.head(torch.ones(2, WIDTH)).sum(),
    "a method": lambda m, t: m.encode(t).sum(),
    "a method of a layer": lambda m, t: m.model.decoder.layers[1].half_of_it(torch.ones(2, WIDTH)),
    "twice, by two doors": lambda m, t: m(t).sum() + m.encode(t).sum() + m.model.decoder(t).sum(),
    "a parameter itself": lambda m, t: m.project.square().sum(),
    "a one-element parameter": lambda m, t: (m.model.decoder.layers[0].scale * 3).sum() + m.temperature,
    "all parameters": lambda m, t: penalty(m.parameters()) + m(t).sum(),
    "all parameters, in forward": lambda m, t: m(t, lambda model: penalty(model.parameters())).sum(),
    "data of all parameters, in forward": lambda m, t: m(t, lambda model: sum(p.data.sum() for p in model.parameters())).sum(),
    "a list of parameters": lambda m, t: stacked(m),
    "an operator": lambda m, t: (torch.ones(2, WIDTH) @ m.project).sum() - (1 - m.project).prod(1).sum(),
    "an index": lambda m, t: m.project[1:3, 2].sum() + m.project[0][0],
    "functional": lambda m, t: torch.nn.functional.embedding(t, m.embedding.weight).square().sum(),
    "functional_call": lambda m, t: torch.func.functional_call(m, {"project": torch.eye(WIDTH)}, (t,)).sum(),
    "a parametrization in forward": with_lora,
    "parameters_to_vector": lambda m, t: torch.nn.utils.parameters_to_vector(m.parameters()).square().sum(),
    "einsum": lambda m, t: torch.einsum("ij,jk->ik", m.project, m.project).sum(),
    "checkpoint": lambda m, t: torch.utils.checkpoint.checkpoint(m.encode, t, use_reentrant=False).sum(),
    "autograd.grad": lambda m, t: sum(g.sum() for g in torch.autograd.grad(m(t).square().sum(), [m.project, m.temperature])),
}
BUDGETS = {"large": {"hbm": "64MiB"}, "tiny": {}, "small units": {"unit_elements": 1}}
WITHOUT_GRAD = set(DOORS) - {"autograd.grad", "checkpoint"}


def config(own, **hyper):
    ram = {"device": "cpu"}
    return {
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "weight_decay": 0.1, **hyper}},
        "gradient_clipping": 0,
        "zero_optimization": {
            "stage": 3,
            "offload_param": ram,
            "offload_optimizer": ram,
            "stage3_param_persistence_threshold": 0,
        },
        "sluice": {"chunk_elements": 4096, "workers": 1, "pinned": "64MiB", **own},
    }


def smallest_hbm(own):
    try:
        sluice.initialize(model=Model(), config=config({**own, "hbm": 1}))
    except sluice.ResourceExhausted as error:
        return int(str(error).rsplit("(", 1)[1].split(" bytes")[0])
    raise AssertionError("1 byte was accepted")


def placed(face, own, **hyper):
    """A model on the tiers, what computes with it, and its optimizer."""
    model = Model()
    if "hbm" not in own:
        own = {**own, "hbm": int(1.5 * smallest_hbm(own))}
    if face == "initialize":
        engine, optimizer, *_ = sluice.initialize(model=model, config=config(own, **hyper))
        return engine, model, optimizer
    make = lambda p: torch.optim.AdamW(p, **{"lr": 1e-2, "weight_decay": 0.1, **hyper})
    attached = sluice.attach(
        model, optimizer=make, pinned="64MiB", workers=1, chunk_elements=4096, persistence_threshold=0, **own
    )
    return attached, model, attached.optimizer


def tokens(step=0):
    return torch.randint(0, 11, (2, 5), generator=torch.Generator().manual_seed(step))


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("face", ["initialize", "attach"])
def test_every_door_gives_pytorchs_values(face, budget):
    engine, model, _ = placed(face, BUDGETS[budget])
    plain = Model()
    with torch.no_grad():
        for name in sorted(WITHOUT_GRAD):
            ours, theirs = (DOORS[name](m, tokens()) for m in (model, plain))
            assert torch.equal(ours, theirs), name
    assert all(torch.equal(v, plain.state_dict()[k]) for k, v in model.state_dict().items())
    engine.close()


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("face", ["initialize", "attach"])
@pytest.mark.parametrize("name", DOORS)
def test_every_door_trains(face, name, budget):
    """Three steps of a loss computed through the door, and a reading by it after each, while the update runs."""
    engine, model, optimizer = placed(face, BUDGETS[budget])
    plain = Model()
    theirs = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.1, foreach=False)
    for step in range(3):
        losses = []
        for module, step_with in ((model, optimizer), (plain, theirs)):
            loss = DOORS[name](module, tokens(step))
            if loss.requires_grad:
                loss.backward()
            step_with.step()
            step_with.zero_grad()
            losses.append(loss.detach())
        torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
        if name in WITHOUT_GRAD:
            with torch.no_grad():
                after = [DOORS[name](module, tokens(step)) for module in (model, plain)]
            torch.testing.assert_close(*after, rtol=1e-4, atol=1e-4)
    assert engine.report()["counters"].get("misused_releases", 0) == 0
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[key], rtol=1e-4, atol=1e-5)
    engine.close()


# ---- What others make of a model between steps

TAKERS = {
    "AveragedModel": lambda m: averaged(m).state_dict(),
    "deepcopy of a part": lambda m: copy.deepcopy(m.model.decoder.layers[1]).state_dict(),
    "parameters copied": lambda m: {n: p.clone() for n, p in m.named_parameters()},
    "detached": lambda m: {n: p.detach().clone() for n, p in m.named_parameters()},
    "data": lambda m: {n: p.data.clone() for n, p in m.named_parameters()},
    "numpy": lambda m: {n: torch.from_numpy(p.detach().numpy().copy()) for n, p in m.named_parameters()},
    "lists": lambda m: {n: torch.tensor(p.tolist()) for n, p in m.named_parameters()},
    "cast": lambda m: {n: p.to(torch.float64) for n, p in m.named_parameters()},
    "norms": lambda m: {n: p.norm() for n, p in m.named_parameters()},
    "items": lambda m: {"": torch.tensor([m.temperature.item(), float(m.temperature), m.project[0, 0].item()])},
    "a new module of a part": lambda m: grown(m.embedding).state_dict(),
    "a pruned copy": lambda m: {"": m.model.decoder.layers[0].up.weight[torch.tensor([0, 2])]},
    "a comparison": lambda m: {"": torch.tensor([bool((m.project == m.project).all()), torch.equal(m.project, m.project)])},
    "a filled like": lambda m: {"": torch.zeros_like(m.project) + torch.ones_like(m.temperature)},
    "foreach": lambda m: dict(enumerate(torch._foreach_norm(list(m.parameters())))),
    "printed": lambda m: {"": torch.tensor(list(repr(m.project).encode()))},
}


def averaged(model):
    result = torch.optim.swa_utils.AveragedModel(model)
    result.update_parameters(model)
    result.update_parameters(model)
    return result


def grown(embedding):
    """As resize_token_embeddings does it."""
    result = torch.nn.Embedding(13, WIDTH)
    result.weight.data[:11] = embedding.weight.data
    result.weight.data[11:] = 0
    return result


@pytest.mark.parametrize("name", TAKERS)
@pytest.mark.parametrize("face", ["initialize", "attach"])
def test_what_is_taken_between_steps_has_pytorchs_values(face, name):
    engine, model, optimizer = placed(face, {})
    model(tokens()).square().sum().backward()
    optimizer.step()
    plain = copy.deepcopy(model)  # is checked by test_copies.py
    assert all(type(p) is torch.nn.Parameter for p in plain.parameters())
    ours, theirs = TAKERS[name](model), TAKERS[name](plain)
    assert list(ours) == list(theirs)
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    engine.close()


def test_a_model_that_was_changed_since_is_refused_at_step():
    """Its new parameters would not be trained."""
    engine, model, optimizer = placed("initialize", {})
    model.model.decoder.words = grown(model.model.decoder.words)
    engine.backward(engine(tokens()).sum())
    with pytest.raises(sluice.FailedPrecondition, match="parameter model.decoder.words.weight was not the model's when"):
        engine.step()
    engine.close()
