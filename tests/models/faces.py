"""The ways to put a model on the tiers, and the budgets it is given: with all of them the same loops run."""

import contextlib
import functools
import re

import sluice
import torch
import zoo

HYPER = {"lr": 2e-3, "betas": (0.9, 0.99), "eps": 1e-5, "weight_decay": 0.1}
TINY_UNITS = 4000  # elements of a unit at most: less than a model's layers all have together
FACES = ("initialize", "attach", "overlap")


class Plain:
    """PyTorch's own loop."""

    def __init__(self, model):
        self.model = model
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, **HYPER)

    def forward(self, inputs):
        return self.model(**inputs)

    def backward(self, loss):
        loss.backward()

    def step(self):
        self.optimizer.step()
        self.optimizer.zero_grad()

    def values(self):
        """fp32 where a master is, by name."""
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def close(self):
        pass


class Overlap(Plain):
    """sluice.AdamW, whose updates run under the next forward."""

    def __init__(self, model, budget, path):
        self.model = model
        trained = [p for p in model.parameters() if p.requires_grad]
        tiers = {"pinned": "1MiB", "nvme_path": path, "chunk_elements": 4096} if budget == "tiny" else {}
        self.optimizer = sluice.AdamW(trained, **HYPER, overlap=model, workers=1, **tiers)
        self.report = self.optimizer.report
        self.close = self.optimizer.close


class Attached(Plain):
    """sluice.attach: the model is called as ever."""

    def __init__(self, model, budget, path):
        self.model = model
        optimizer = functools.partial(torch.optim.AdamW, **HYPER)
        self.engine = sluice.attach(model, optimizer=optimizer, workers=1, chunk_elements=4096, **budget_of(budget, path))
        self.optimizer = self.engine.optimizer
        self.values = self.engine.fp32_state_dict
        self.report = self.engine.report
        self.close = self.engine.close


class Initialized(Plain):
    """sluice.initialize: DeepSpeed's calls."""

    def __init__(self, model, budget, path, **config):
        self.model = model
        own = budget_of(budget, path)
        tier = {"device": "nvme", "nvme_path": str(path)} if "nvme_path" in own else {"device": "cpu"}
        section = {"stage": 3, "offload_optimizer": tier, "offload_param": tier}
        if "persistence_threshold" in own:
            section["stage3_param_persistence_threshold"] = own["persistence_threshold"]
        given = {
            "train_batch_size": 2,
            "gradient_clipping": 0.0,
            "optimizer": {"type": "AdamW", "params": HYPER},
            "zero_optimization": section,
            "sluice": {"workers": 1, "chunk_elements": 4096} | {k: own[k] for k in ("hbm", "pinned", "unit_elements") if k in own},
        }
        self.engine = sluice.initialize(model=model, config=given | config)[0]
        self.values = self.engine.fp32_state_dict
        self.report = self.engine.report
        self.close = self.engine.close

    def forward(self, inputs):
        return self.engine(**inputs)

    def backward(self, loss):
        self.engine.backward(loss)

    def step(self):
        self.engine.step()


KINDS = {"initialize": Initialized, "attach": Attached, "overlap": Overlap}


def budget_of(budget, path):
    """Arguments of sluice.attach(). budget: plain, or some of them."""
    if budget == "plain":
        return {"hbm": "16MiB", "pinned": "64MiB"}
    return {"nvme_path": path, **budget}


@contextlib.contextmanager
def opened(face, make, budget, path, whole_layers=False, **config):
    """A model of make() on the tiers. budget: plain; tiny: half as much again as the smallest HBM and pinned RAM that work,
    and the drive, with units of parts of layers, unless whole_layers; or arguments of sluice.attach()."""
    kind = KINDS[face]
    if budget == "tiny" and face != "overlap":
        budget = {"persistence_threshold": 0} | {"unit_elements": 1 << 20 if whole_layers else TINY_UNITS}
        for tier in ("hbm", "pinned"):
            budget[tier] = int(1.5 * _smallest(kind, make, {**budget, tier: 1}, path, **config))
    trainer = kind(make(), budget, path, **config)
    try:
        yield trainer
    finally:
        trainer.close()


def _smallest(kind, make, budget, path, **config):
    try:
        kind(make(), budget, path, **config).close()
    except sluice.ResourceExhausted as error:
        return int(re.search(r"smallest that would is .*?\((\d+) bytes\)", str(error)).group(1))
    raise AssertionError(f"budgets of {budget} were accepted")


def one_step(trainer, case, step):
    """The loss. Whatever is drawn in forward is the same for all trainers."""
    trainer.model.train()
    torch.manual_seed(200 + step)
    loss = trainer.forward(case.batch(step)).loss
    trainer.backward(loss)
    trainer.step()
    return loss.detach().clone()


def assert_close(actual, expected, what, rtol=1e-4, atol=2e-5):
    """Of tensors, or of dicts of them with the same keys."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys(), (what, actual.keys() ^ expected.keys())
        for key, value in expected.items():
            assert_close(actual[key], value, f"{what}: {key}", rtol, atol)
        return
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol, msg=lambda words: f"{what}: {words}")


def assert_same(actual, expected, what):
    assert_close(actual, expected, what, rtol=0, atol=0)


def plain_copy(trainer, make):
    """A plain model with the trainer's values, which it loads strictly."""
    model = make()
    model.load_state_dict(trainer.values())
    model.train(trainer.model.training)
    return model
