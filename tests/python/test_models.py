"""Three models that are not the demo, each with HBM for a fraction of its units and its states on NVMe, with the bits of
the same model in plain PyTorch."""

import torch
from torch import nn
from torch.nn import functional
from training import config, loss_of, paired


class Convolutional(nn.Module):
    """A residual classifier: grouped and strided convolutions, batch norm, pooling."""

    class Residual(nn.Module):
        def __init__(self, channels, out, stride):
            super().__init__()
            self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
            self.norm1 = nn.BatchNorm2d(out)
            self.conv2 = nn.Conv2d(out, out, 3, 1, 1, groups=3, bias=False)
            self.norm2 = nn.BatchNorm2d(out)
            self.skip = nn.Conv2d(channels, out, 1, stride) if stride > 1 or out != channels else nn.Identity()

        def forward(self, x):
            y = functional.relu(self.norm1(self.conv1(x)))
            return functional.relu(self.norm2(self.conv2(y)) + self.skip(x))

    def __init__(self):
        super().__init__()
        torch.manual_seed(11)
        self.stem = nn.Conv2d(3, 21, 3, padding=1)
        self.stages = nn.Sequential(*[self.Residual(21 if i == 0 else 33, 33, 2 if i == 1 else 1) for i in range(4)])
        self.head = nn.Linear(33, 7)

    def forward(self, x):
        return self.head(functional.adaptive_avg_pool2d(self.stages(self.stem(x)), 1).flatten(1))

    @staticmethod
    def inputs(generator):
        return (torch.randn(4, 3, 12, 12, generator=generator),), torch.randint(0, 7, (4,), generator=generator)


class EncoderDecoder(nn.Module):
    """Source, target and output share one embedding; decoders attend to the encoder; dropout everywhere."""

    WORDS, WIDTH = 103, 48

    def __init__(self):
        super().__init__()
        torch.manual_seed(12)
        self.embedding = nn.Embedding(self.WORDS, self.WIDTH)
        layer = {"nhead": 4, "dim_feedforward": 97, "dropout": 0.1, "batch_first": True}
        self.encoder = nn.ModuleList(nn.TransformerEncoderLayer(self.WIDTH, **layer) for _ in range(3))
        self.decoder = nn.ModuleList(nn.TransformerDecoderLayer(self.WIDTH, **layer) for _ in range(3))
        self.head = nn.Linear(self.WIDTH, self.WORDS, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, source, target):
        memory = self.embedding(source)
        for layer in self.encoder:
            memory = layer(memory)
        x = self.embedding(target)
        for layer in self.decoder:
            x = layer(x, memory)
        return self.head(x).flatten(0, 1)

    @classmethod
    def inputs(cls, generator):
        source, target = torch.randint(0, cls.WORDS, (2, 3, 6), generator=generator).unbind(0)
        return (source, target), target.flatten()


class MixtureOfExperts(nn.Module):
    """Top-1 routing: most experts see no token in most steps, and then have no gradient."""

    class Layer(nn.Module):
        def __init__(self, width, experts):
            super().__init__()
            self.router = nn.Linear(width, experts)
            self.experts = nn.ModuleList(
                nn.Sequential(nn.Linear(width, 97), nn.GELU(), nn.Linear(97, width)) for _ in range(experts)
            )

        def forward(self, x):
            weights, chosen = self.router(x).softmax(-1).max(-1)
            out = torch.zeros_like(x)
            for index in chosen.unique().tolist():
                rows = (chosen == index).nonzero().squeeze(1)
                out = out.index_add(0, rows, self.experts[index](x[rows]) * weights[rows, None])
            return x + out

    def __init__(self):
        super().__init__()
        torch.manual_seed(13)
        self.first = nn.Linear(19, 45)
        self.layers = nn.ModuleList(self.Layer(45, 6) for _ in range(3))
        self.last = nn.Linear(45, 5)

    def forward(self, x):
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        return self.last(x)

    @staticmethod
    def inputs(generator):
        return (torch.randn(5, 19, generator=generator),), torch.randint(0, 5, (5,), generator=generator)


def train(engines, tmp_path, make, hbm, unit_elements, steps=4):
    def body(trainer, step):
        inputs, labels = make.inputs(torch.Generator().manual_seed(step))
        loss = loss_of(trainer(*inputs), labels)
        trainer.backward(loss)
        trainer.step()
        return loss.detach()

    given = config(
        tmp_path, gradient_clipping=0.0, sluice={"chunk_elements": 4096, "workers": 1, "unit_elements": unit_elements}
    )
    engine = paired(engines, make, given, body, steps, hbm, pinned=1.1)
    report = engine.report()
    assert report["budgets_bytes"]["hbm"] < 0.6 * report["parameters"] * 4
    assert report["counters"]["evictions"] > steps and report["counters"]["nvme_reads"] > steps
    return engine


def test_a_convolutional_classifier(engines, tmp_path):
    engine = train(engines, tmp_path, Convolutional, hbm=1.5, unit_elements=20_000)
    assert engine.report()["units"] == 6


def test_an_encoder_decoder_with_tied_embeddings_and_dropout(engines, tmp_path):
    engine = train(engines, tmp_path, EncoderDecoder, hbm=2.5, unit_elements=50_000)
    assert engine.report()["units"] == 7


def test_a_mixture_of_experts(engines, tmp_path):
    """Experts are units of their own; those of a step are known only in its forward."""
    engine = train(engines, tmp_path, MixtureOfExperts, hbm=2.5, unit_elements=10_000)
    steps = [state["step"] for name, state in engine.optimizer_state_dict().items() if "experts" in name]
    assert 0 < min(s for s in steps if s) and min(steps) < max(steps)
    assert engine.report()["counters"]["trace_departures"] > 0
