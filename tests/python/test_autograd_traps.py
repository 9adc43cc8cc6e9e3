"""What PyTorch programs do to weights and graphs, each compared bit for bit with the same model in plain PyTorch."""

import pytest
import sluice
import torch
from nets import HIDDEN, Block, Net, Scaled, given, straight
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from training import CLASSES, FEATURES, SIMULATION, batch, loss_of, mlp, one_step, paired, same, smallest


def test_views_that_outlive_their_unit(engines, tmp_path):
    """A view taken during forward keeps its slot: its bits stay, whatever is moved meanwhile."""
    views = []

    def keep(blocks, x):
        for index, block in enumerate(blocks):
            x = block(x)
            if index == 1 and not views:
                block.register_forward_hook(lambda module, args, out: views.append(module.up.weight.detach()))
        return x

    engine = engines(Net(keep), given(tmp_path, hbm=int(5 * smallest(Net(keep), given(tmp_path), "hbm"))))
    before = engine.module_state_dict()["blocks.1.up.weight"]
    one_step(engine, 0)  # registers the hook
    after = engine.module_state_dict()["blocks.1.up.weight"]
    for step in range(1, 4):
        one_step(engine, step)
        assert same(views[0].clone(), after) and not same(before, after)
        del views[1:]
    assert engine.report()["counters"]["evictions"] > 0
    views.clear()


def test_two_graphs_alive_at_once(engines, tmp_path):
    def body(trainer, step):
        losses = [loss_of(trainer(batch(2 * step + i)[0]), batch(2 * step + i)[1]) for i in range(2)]
        trainer.backward(losses[0] + 0.5 * losses[1])
        trainer.step()
        return losses[1].detach()

    engine = paired(engines, lambda: Net(straight), given(tmp_path), body, hbm=2)
    assert engine.report()["counters"]["evictions"] > 0


def test_backward_through_weights_updated_since_raises(engines, tmp_path):
    """As in PyTorch, where the optimizer's in-place update is what autograd notices."""
    engine = engines(Net(straight), given(tmp_path))
    x, y = batch(0)
    loss = loss_of(engine(x), y)
    engine.backward(loss, retain_graph=True)
    engine.step()
    with pytest.raises(RuntimeError, match=r"unit 'last'.*has been updated since"):
        engine.backward(loss)
    engine.zero_grad()
    one_step(engine, 1)


def test_the_same_graph_twice_before_a_step(engines, tmp_path):
    def body(trainer, step):
        x, y = batch(step)
        loss = loss_of(trainer(x), y)
        if hasattr(trainer, "module"):
            trainer.backward(loss, retain_graph=True)
        else:
            loss.backward(retain_graph=True)
        trainer.backward(loss)
        trainer.step()

    paired(engines, lambda: Net(straight), given(tmp_path), body, hbm=1)


def test_two_backwards_before_a_step(engines, tmp_path):
    def body(trainer, step):
        for i in range(2):
            x, y = batch(2 * step + i)
            trainer.backward(loss_of(trainer(x), y))
        trainer.step()

    paired(engines, lambda: Net(straight), given(tmp_path), body, hbm=1, pinned=1)


@pytest.mark.parametrize("hooks", [lambda: saved_tensors_hooks(lambda t: t, lambda t: t), save_on_cpu])
@pytest.mark.parametrize("frozen", [False, True])
def test_hooks_of_others_for_saved_tensors(engines, tmp_path, hooks, frozen):
    def run(blocks, x):
        with hooks():
            return straight(blocks, x)

    def make():
        net = Net(run)
        net.blocks = torch.nn.ModuleList(Scaled() for _ in range(2))
        net.blocks.requires_grad_(not frozen)
        return net

    paired(engines, make, given(tmp_path, hbm="64MiB"), one_step)


@pytest.mark.parametrize("where", ["embedding", "clamp"])
@pytest.mark.parametrize("hbm", [1.5, None])
def test_a_write_in_forward_is_taken(engines, tmp_path, where, hbm):
    """Whatever the budget."""

    class Writes(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.words = torch.nn.Embedding(5, HIDDEN, max_norm=0.1 if where == "embedding" else None)
            self.scale = torch.nn.Parameter(torch.ones(HIDDEN))

        def forward(self, x):
            if where == "clamp":
                with torch.no_grad():
                    self.scale.clamp_(0, 0.5)
            return (x + self.words(torch.arange(len(x)) % 5)) * self.scale

    def make():
        net = Net(straight, blocks=3)
        net.blocks[1] = Writes()
        return net

    own = given(tmp_path, hbm="64MiB")
    if hbm:
        own["sluice"]["hbm"] = int(hbm * smallest(make(), own, "hbm"))
    engine, plain = engines(make(), own), make()
    optimizer = torch.optim.AdamW(plain.parameters(), foreach=False, **own["optimizer"]["params"])
    for step in range(3):
        one_step(engine, step)
        optimizer.zero_grad()
        x, y = batch(step)
        loss_of(plain(x), y).backward()
        optimizer.step()
        for name, value in engine.module_state_dict().items():
            torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-4, atol=1e-5)


class Tied(torch.nn.Module):
    """An embedding whose weight is also the output projection, by sharing or by use inside forward."""

    def __init__(self, functional_use):
        super().__init__()
        torch.manual_seed(4)
        self.embedding = torch.nn.Embedding(101, HIDDEN)
        self.blocks = torch.nn.ModuleList(Block() for _ in range(4))
        self.functional_use = functional_use
        if not functional_use:
            self.head = torch.nn.Linear(HIDDEN, 101, bias=False)
            self.head.weight = self.embedding.weight

    def forward(self, tokens):
        x = straight(self.blocks, self.embedding(tokens).mean(1))
        return functional.linear(x, self.embedding.weight) if self.functional_use else self.head(x)


@pytest.mark.parametrize("functional_use", [False, True])
def test_tied_embeddings(engines, tmp_path, functional_use):
    def body(trainer, step):
        tokens = torch.randint(0, 101, (8, 5), generator=torch.Generator().manual_seed(step))
        loss = loss_of(trainer(tokens), tokens[:, 0])
        trainer.backward(loss)
        trainer.step()
        return loss.detach()

    engine = paired(engines, lambda: Tied(functional_use), given(tmp_path), body, hbm=2)
    state = engine.module_state_dict()
    if not functional_use:
        assert same(state["head.weight"], state["embedding.weight"])
    assert engine.report()["counters"]["evictions"] > 0


def test_parameters_without_gradient(engines, tmp_path):
    """One block is skipped in some steps, and its states and step counts are left alone in those."""

    class Sometimes(Net):
        def __init__(self):
            super().__init__(straight)
            self.unused = torch.nn.Parameter(torch.ones(5))
            self.turn = 0

        def forward(self, x):
            self.turn += 1
            used = [b for i, b in enumerate(self.blocks) if self.turn % 2 or i % 3]
            return self.last(straight(used, self.first(x)))

    engine = paired(engines, Sometimes, given(tmp_path), one_step, steps=4, hbm=1.2)
    assert engine.optimizer_state_dict()["blocks.0.up.weight"]["step"] == 2
    assert engine.optimizer_state_dict()["unused"]["step"] == 0


def test_units_with_some_parameters_unused_do_not_pile_up(engines, tmp_path):
    """A unit whose last gradient never comes must make room all the same."""

    class Half(Block):
        def forward(self, x):
            return x + torch.tanh(self.up(x))[:, :HIDDEN]

    def make():
        net = Net(straight)
        torch.manual_seed(5)
        net.blocks = torch.nn.ModuleList(Half() for _ in range(6))
        return net

    engine = paired(engines, make, given(tmp_path), one_step, hbm=1)
    assert engine.report()["counters"]["evictions"] > 0


def test_a_module_called_twice_in_one_forward(engines, tmp_path):
    def twice(blocks, x):
        return straight(blocks, straight(blocks, x))

    engine = paired(engines, lambda: Net(twice, blocks=3), given(tmp_path), one_step, hbm=1)
    assert engine.report()["counters"]["evictions"] > 0


def test_a_module_that_calls_itself(engines, tmp_path):
    class Recursive(Block):
        def forward(self, x, depth=2):
            x = super().forward(x)
            return self(x, depth - 1) if depth else x

    def make():
        net = Net(straight)
        torch.manual_seed(5)
        net.blocks = torch.nn.ModuleList(Recursive() for _ in range(3))
        return net

    paired(engines, make, given(tmp_path), one_step, hbm=1)


def test_parameters_read_by_another_module(engines, tmp_path):
    """Attention reads its projection's weight without calling the projection; small units make that two units."""

    class Attending(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(6)
            self.first = torch.nn.Linear(FEATURES, 64)
            self.layers = torch.nn.ModuleList(
                torch.nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True) for _ in range(3)
            )
            self.last = torch.nn.Linear(64, CLASSES)

        def forward(self, x):
            x = self.first(x).unflatten(0, (4, -1))
            for layer in self.layers:
                x = layer(x)
            return self.last(x.flatten(0, 1))

    engine = paired(engines, Attending, given(tmp_path, unit_elements=1), one_step, hbm=2)
    assert engine.report()["units"] > 3 * 4 and engine.report()["counters"]["evictions"] > 0


class Stumble(Exception):
    pass


@pytest.mark.parametrize("where", ["forward", "backward", "hook before ours"])
def test_exceptions(engines, tmp_path, where):
    """A micro-batch that fails halfway leaves everything as it was, once its gradients are dropped."""
    armed = []

    def stumble(*args):
        if armed:
            raise Stumble

    def make():
        net = Net(straight)
        if where == "forward":
            net.blocks[3].down.register_forward_hook(stumble)
        elif where == "backward":
            net.blocks[3].register_forward_hook(lambda m, a, out: out.register_hook(stumble) and None)
        return net

    def body(trainer, step):
        if where == "hook before ours" and step == 0:
            module = trainer.module if hasattr(trainer, "module") else trainer.model
            module.blocks[3].register_forward_pre_hook(stumble, prepend=True)
        armed.append(1)
        x, y = batch(10 + step)
        with pytest.raises(Stumble):
            trainer.backward(loss_of(trainer(x), y))
        trainer.zero_grad()
        armed.clear()
        return one_step(trainer, step)

    engine = paired(engines, make, given(tmp_path), body, hbm=1)
    assert engine.report()["counters"].get("misused_releases", 0) == 0


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_an_interrupt_leaves_no_hooks_behind(engines, tmp_path, reentrant):
    """A KeyboardInterrupt passes by the hooks that follow a module's forward: in forward (None), or in recomputation."""

    class Interrupted(Block):
        def forward(self, x):
            if self.passes == (0 if reentrant is None else 1):
                raise KeyboardInterrupt
            return super().forward(x)

    def run(blocks, x):
        for block in blocks:
            x = block(x) if reentrant is None else checkpoint(block, x, use_reentrant=reentrant)
        return x

    net = Net(run)
    net.blocks[3] = Interrupted()
    engine = engines(net, given(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        one_step(engine, 0)
    net.blocks[3].passes = 2
    assert torch._C._autograd._top_saved_tensors_default_hooks(True) is None
    engine.zero_grad()
    other = Net(run)
    other.load_state_dict(engine.module_state_dict())
    assert same(one_step(engine, 1), one_step(engines(other, given(tmp_path)), 1))


def test_zero_grad_between_backward_and_step(engines, tmp_path):
    def body(trainer, step):
        x, y = batch(20 + step)
        trainer.backward(loss_of(trainer(x), y))
        trainer.zero_grad()
        return one_step(trainer, step)

    paired(engines, lambda: Net(straight), given(tmp_path), body, steps=6, hbm=1)


def test_autocast(engines, tmp_path):
    """Its cache of cast weights would serve stale ones."""

    def body(trainer, step):
        x, y = batch(step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(trainer(x), y)
        trainer.backward(loss)
        trainer.step()
        return loss.detach()

    engine = paired(engines, lambda: Net(straight), given(tmp_path), body, steps=4, hbm=1)
    assert engine.report()["counters"]["evictions"] > 0


def test_threads_other_than_the_main_one(engines, tmp_path):
    import threading

    def body(trainer, step):
        results = []
        thread = threading.Thread(target=lambda: results.append(one_step(trainer, step)))
        torch.set_num_threads(1)
        thread.start()
        thread.join()
        return results[0]

    paired(engines, lambda: Net(straight), given(tmp_path), body, hbm=1)


def test_a_forward_between_forward_and_backward(engines, tmp_path):
    """Validation while a training graph waits for its backward."""

    def body(trainer, step):
        x, y = batch(step)
        loss = loss_of(trainer(x), y)
        with torch.no_grad():
            other = trainer(batch(50 + step)[0])
        trainer.backward(loss)
        trainer.step()
        return other

    paired(engines, lambda: Net(straight), given(tmp_path), body, hbm=1)


def penalised_step(trainer, step):
    x, y = batch(step)
    x.requires_grad_(True)
    loss = loss_of(trainer(x), y)
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    trainer.backward(loss + slope.square().sum())
    trainer.step()
    return loss.detach()


def test_double_backward(engines, tmp_path):
    """A gradient penalty: the graph of the gradient, which is differentiated again, has views of all weights."""
    paired(engines, lambda: Net(straight), given(tmp_path), penalised_step, pinned=1)


def test_double_backward_without_room_is_an_error(engines, tmp_path):
    own = given(tmp_path, library=SIMULATION, simulated_seed=2)
    own["sluice"]["hbm"] = int(3 * smallest(Net(straight), own, "hbm"))
    engine = engines(Net(straight), own)
    with pytest.raises(sluice.ResourceExhausted, match="no room in HBM for unit 'blocks"):
        penalised_step(engine, 0)


def test_plain_backward_of_the_loss(engines, tmp_path):
    """loss.backward() instead of engine.backward(loss), where no loss scale has to be applied."""

    def body(trainer, step):
        x, y = batch(step)
        loss_of(trainer(x), y).backward()
        trainer.step()

    paired(engines, mlp, given(tmp_path), body, hbm=1)


def test_autograd_grad_of_parameters_whose_use_is_recomputed():
    """What is recomputed inside torch.autograd.grad() finds parameters, also those that it was asked for."""

    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.randn(8))

        def compute(self, x):
            return torch.tanh(x * self.scale)

        def forward(self, x):
            return checkpoint(self.compute, x, use_reentrant=False)

    def gradients(attach):
        torch.manual_seed(1)
        model = torch.nn.Sequential(*[Scaled() for _ in range(3)])
        if attach:
            sluice.attach(model, hbm="1MiB", pinned="8MiB", device="host", workers=1, persistence_threshold=0)
        loss = model(torch.ones(2, 8)).square().sum()
        return torch.autograd.grad(loss, list(model.parameters()))

    assert same(gradients(True), gradients(False))
