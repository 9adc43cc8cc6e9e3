"""sluice.AdamW(overlap=module): between a step and the end of its update, everybody who touches a parameter, by any door and
from anywhere, has the new value; and what is written then is taken. All as without overlap, bit for bit."""

import copy
import gc
import io
import pickle
import tempfile
import weakref

import pytest
import torch
from adamw_loop import TIERS, assert_equal, values
from training import SIMULATION

import sluice
from sluice.residency.away import Away

SIMULATED = {
    "pinned": "300KiB",
    "nvme_path": tempfile.gettempdir(),  # where states are while a type changes
    "chunk_elements": 4096,
    "workers": 1,
    "library": SIMULATION,
    "simulated_seed": 3,
}


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(32, 32), torch.nn.Linear(32, 32)
        self.scale = torch.nn.Parameter(torch.ones(32))

    def forward(self, x):
        return x + self.b(torch.tanh(self.a(x))) * self.scale

    def scaled(self, x):
        return self.a(x) * self.scale

    def own(self):
        return self.scale


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(50, 32)
        self.blocks = torch.nn.ModuleList(Block() for _ in range(3))
        self.encoder = torch.nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True)
        self.lstm = torch.nn.LSTM(32, 32, batch_first=True)
        self.head = torch.nn.Linear(32, 50, bias=False)
        self.head.weight = self.embed.weight
        self.free = torch.nn.Parameter(torch.ones(32))

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.lstm(self.encoder(x))[0] * self.free)


IDS = torch.arange(12).view(2, 6)


def make():
    torch.manual_seed(1)
    return Net()


def norms(net):
    return torch.nn.utils.parameters_to_vector(net.parameters())


def parametrized(net):
    class Doubled(torch.nn.Module):
        def forward(self, weight):
            return 2 * weight

    torch.nn.utils.parametrize.register_parametrization(net.blocks[1].a, "weight", Doubled())
    result = net.blocks[1].a(torch.ones(1, 32))
    torch.nn.utils.parametrize.remove_parametrizations(net.blocks[1].a, "weight", leave_parametrized=False)
    return result


def averaged(net):
    average = torch.optim.swa_utils.AveragedModel(net)
    average.update_parameters(net)
    return [p.detach() for p in average.module.parameters()]


def saved(net):
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    return torch.load(file)


def functional(net):
    return torch.func.functional_call(net, {k: v * 2 for k, v in net.named_parameters()}, (IDS,))


def in_eval(net):
    net.eval()
    try:
        with torch.no_grad():
            return net.encoder(torch.ones(1, 4, 32)), net(IDS)
    finally:
        net.train()


def from_another_thread(net):
    import concurrent.futures

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: net.blocks[2](torch.ones(1, 32))).result()


def checkpointed(net):
    x = torch.ones(2, 32, requires_grad=True)
    y = torch.utils.checkpoint.checkpoint(net.blocks[0], x, use_reentrant=False).sum()
    return torch.autograd.grad(y, x)


def gathered(net):
    with sluice.zero.GatheredParameters(list(net.parameters())):
        return [p.detach().clone() for p in net.parameters()]


READS = {
    "the whole": lambda net: net(IDS),
    "a block": lambda net: net.blocks[1](torch.ones(1, 32)),
    "a layer of a block": lambda net: net.blocks[1].b(torch.ones(1, 32)),
    "another method": lambda net: net.blocks[1].scaled(torch.ones(1, 32)),
    "a parameter that a method gives": lambda net: net.blocks[1].own() * 2,
    "an embedding by itself": lambda net: net.embed(IDS),
    "a tied head by itself": lambda net: net.head(torch.ones(1, 32)),
    "functional": lambda net: torch.nn.functional.linear(torch.ones(1, 32), net.blocks[0].a.weight),
    "functional_call": functional,
    "an LSTM": lambda net: net.lstm(torch.ones(1, 3, 32))[0],
    "attention": lambda net: net.encoder.self_attn(*[torch.ones(1, 4, 32)] * 3)[0],
    "in eval": in_eval,
    "a sum": lambda net: net.blocks[2].a.weight.sum(),
    "an operator": lambda net: net.free + 1,
    "an index": lambda net: net.blocks[2].a.weight[3, 4],
    "item": lambda net: torch.tensor(net.blocks[2].a.weight[0, 0].item()),
    "tolist": lambda net: torch.tensor(net.blocks[2].a.bias.tolist()),
    "numpy": lambda net: torch.from_numpy(net.blocks[2].a.weight.detach().numpy().copy()),
    "data": lambda net: net.blocks[2].a.weight.data.clone(),
    "detach": lambda net: net.blocks[2].a.weight.detach().clone(),
    "a list of them": lambda net: torch.stack([net.blocks[i].scale for i in range(3)]),
    "foreach": lambda net: torch._foreach_norm(list(net.parameters())),
    "a vector of all": norms,
    "parametrization": parametrized,
    "AveragedModel": averaged,
    "state_dict": lambda net: dict(net.state_dict()),
    "state_dict of a part": lambda net: dict(net.blocks.state_dict()),
    "named_parameters": lambda net: {k: v.detach().clone() for k, v in net.named_parameters()},
    "deepcopy": lambda net: [p.detach() for p in copy.deepcopy(net).parameters()],
    "pickle": lambda net: [p.detach() for p in pickle.loads(pickle.dumps(net.blocks)).parameters()],
    "torch.save": saved,
    "clone": lambda net: net.free.clone(),
    "to another type": lambda net: net.free.to(torch.float64),
    "a print": lambda net: torch.tensor([ord(c) for c in repr(net.free)]),
    "another thread": from_another_thread,
    "recomputation": checkpointed,
    "GatheredParameters": gathered,
    "safe_get": lambda net: sluice.utils.safe_get_full_fp32_param(net.blocks[1].a.weight),
    "weight norm of them": lambda net: torch.linalg.vector_norm(net.blocks[0].b.weight),
    "autograd.grad": lambda net: torch.autograd.grad(net(IDS).sum(), list(net.parameters())),
}


def fill(net):
    torch.nn.init.constant_(net.blocks[1].a.weight, 0.25)


def set_data(net):
    net.blocks[1].a.weight.data = torch.full((32, 32), 0.125)


def set_(net):
    with torch.no_grad():
        net.blocks[1].a.weight.set_(torch.full((32, 32), 0.125))
        net.free.set_(torch.full((40,), 0.5).untyped_storage(), 2, (32,), (1,))


def in_place_of_data(net):
    net.blocks[1].a.weight.data[3] = 0.5
    net.blocks[0].scale.data.mul_(0.5)


def copy_into(net):
    with torch.no_grad():
        net.blocks[1].a.weight.copy_(torch.ones(32, 32))
        net.free[2:5] = 7


def load(net):
    net.load_state_dict({k: v * 0.5 for k, v in net.state_dict().items()})


def load_part(net):
    net.blocks[1].load_state_dict({k: v * 0.5 for k, v in net.blocks[1].state_dict().items()})


def assign(net):
    net.blocks[1].load_state_dict({k: v * 0.5 for k, v in net.blocks[1].state_dict().items()}, assign=True)


def to_double_and_back(net):
    net.double().float()


def to_bf16(net):
    net.to(torch.bfloat16)


def vector_to_parameters(net):
    torch.nn.utils.vector_to_parameters(norms(net) * 0.5, net.parameters())


def apply(net):
    net.apply(lambda module: torch.nn.init.ones_(module.weight) if isinstance(module, torch.nn.Linear) else None)


def foreach(net):
    with torch.no_grad():
        torch._foreach_mul_(list(net.parameters()), 0.5)


def clamp(net):
    for parameter in net.parameters():
        parameter.data.clamp_(-0.1, 0.1)


def gathered_write(net):
    with sluice.zero.GatheredParameters([net.free], modifier_rank=0), torch.no_grad():
        net.free.fill_(3)


def safe_set(net):
    sluice.utils.safe_set_full_fp32_param(net.free, torch.full((32,), 2.0))


WRITES = [
    *(fill, set_data, set_, in_place_of_data, copy_into, load, load_part, to_double_and_back, to_bf16, vector_to_parameters),
    *(apply, foreach, clamp, gathered_write, safe_set),
]


def flat(result):
    if isinstance(result, torch.Tensor):
        return [result.detach().clone()]
    items = result.values() if isinstance(result, dict) else result
    return [tensor for item in items for tensor in flat(item)]


class Run:
    def __init__(self, overlap, tiers):
        self.net = make()
        self.optimizer = sluice.AdamW(self.net.parameters(), lr=1e-2, overlap=self.net if overlap else None, **tiers)

    @torch.enable_grad()
    def step(self):
        self.optimizer.zero_grad()
        self.net(IDS).float().square().mean().backward()
        self.optimizer.step()

    def under_way(self):
        return [p for p in self.net.parameters() if type(p) is Away]


def compare(action, tiers):
    """What the action gives in each of three steps, and the parameters at the end."""
    results = []
    for overlap in (False, True):
        run = Run(overlap, tiers)
        run.step()
        run.optimizer.synchronize()
        found = []
        for _ in range(3):
            run.step()
            assert bool(run.under_way()) == overlap
            taken = action(run.net)
            found += flat(taken) if taken is not None else []
        run.optimizer.synchronize()
        states = run.optimizer.state_dict()["state"]
        results.append((found, values(run.net), {f"{i} {k}": v for i, e in states.items() for k, v in e.items()}))
        run.optimizer.close()
    (expected, parameters, states), (found, mine, mine_states) = results
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
    assert_equal(mine, parameters)
    assert_equal(mine_states, states)


@pytest.mark.parametrize("tiers", [TIERS, SIMULATED], ids=["real", "simulated"])
@pytest.mark.parametrize("read", READS)
def test_reads_have_the_new_values(read, tiers):
    compare(READS[read], tiers)


@pytest.mark.parametrize("tiers", [TIERS, SIMULATED], ids=["real", "simulated"])
@pytest.mark.parametrize("write", WRITES, ids=lambda f: f.__name__)
def test_writes_are_taken(write, tiers):
    compare(write, tiers)


VIEWS = {
    "a slice": lambda p: p[3],
    "detached": lambda p: p.detach(),
    "reshaped": lambda p: p.view(-1),
    "transposed": lambda p: p.detach().t(),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("next_call", ["forward", "synchronize", "step", "state_dict", "close", "read"])
def test_a_write_through_a_view_of_before_is_refused(view, next_call):
    """It can't be kept from the update: whoever comes next is told."""
    run = Run(True, TIERS)
    run.step()
    run.optimizer.synchronize()
    weight = run.net.blocks[1].a.weight
    calls = {
        "forward": lambda: run.net(IDS),
        "synchronize": run.optimizer.synchronize,
        "step": run.optimizer.step,
        "state_dict": run.optimizer.state_dict,
        "close": run.optimizer.close,
        "read": lambda: weight.sum(),
    }
    with torch.no_grad():
        part = VIEWS[view](weight)
        part.mul_(1)
        run.step()
        assert type(weight) is Away
        part.mul_(0.5)
        with pytest.raises(sluice.FailedPrecondition, match=r"blocks.1.a.weight was written to through a view"):
            calls[next_call]()
    if next_call != "close":
        run.step()
    run.optimizer.close()


def test_an_assigned_parameter_is_another():
    """As without overlap: the optimizer goes on with the old ones, which the module no longer has."""
    compare(assign, TIERS)


class Past(Net):
    """As OPT and others: what is called are modules below the layers, methods of layers, and functions over their weights."""

    def forward(self, ids):
        x = torch.nn.functional.embedding(ids, self.embed.weight)
        for block in self.blocks:
            x = x + block.b(torch.tanh(block.scaled(x))) * block.own()
        x = x + self.encoder.self_attn(x, x, x, need_weights=False)[0]
        x = self.encoder.linear2(torch.relu(self.encoder.linear1(x)))
        return torch.nn.functional.linear(self.lstm(x)[0] * self.free, self.embed.weight)


@pytest.mark.parametrize("tiers", [TIERS, SIMULATED], ids=["real", "simulated"])
@pytest.mark.parametrize("kind", [Net, Past])
def test_every_step_counts_whatever_the_forward_calls(kind, tiers):
    def run(overlap):
        torch.manual_seed(1)
        net = kind()
        optimizer = sluice.AdamW(net.parameters(), lr=1e-2, overlap=net if overlap else None, **tiers)
        losses = []
        for _ in range(6):
            optimizer.zero_grad()
            loss = net(IDS).square().mean()
            loss.backward()
            optimizer.step()
            assert optimizer.was_step_applied()
            losses.append(loss.item())
        optimizer.synchronize()
        result = values(net)
        optimizer.close()
        return losses, result

    (losses, ours), (expected, theirs) = run(True), run(False)
    assert losses == expected and len(set(losses)) == 6
    assert_equal(ours, theirs)


def test_what_only_asks_for_shape_or_gradient_does_not_wait():
    run = Run(True, SIMULATED)
    run.step()
    count = len(run.under_way())
    assert count > 10
    for parameter in run.net.parameters():
        assert parameter.shape and parameter.dtype == torch.float32 and parameter.requires_grad and parameter.is_leaf
        assert parameter.grad is not None and parameter.numel() > 0 and isinstance(parameter, torch.nn.Parameter)
        assert parameter.device.type == "cpu"
    torch.nn.utils.clip_grad_norm_(run.net.parameters(), 1.0)
    run.optimizer.zero_grad()
    sum(p.numel() for p in run.net.parameters())
    assert len(run.under_way()) == count
    run.net.blocks[0](torch.ones(1, 32))
    assert 0 < len(run.under_way()) < count, "one layer waits for itself, not for the others"
    run.optimizer.close()


def test_a_parameter_s_memory_and_object_stay_its_own():
    run = Run(True, TIERS)
    before = {name: (id(p), p.data_ptr()) for name, p in run.net.named_parameters()}
    for _ in range(2):
        run.step()
    run.optimizer.synchronize()
    assert {name: (id(p), p.data_ptr()) for name, p in run.net.named_parameters()} == before
    assert all(type(p) is torch.nn.Parameter and not vars(p) for p in run.net.parameters())
    run.optimizer.close()


def test_parameters_of_a_class_of_their_own_keep_it():
    class Mine(torch.nn.Parameter):
        pass

    def run(overlap):
        net = make()
        net.free = Mine(net.free.data)
        optimizer = sluice.AdamW(net.parameters(), lr=1e-2, overlap=net if overlap else None, **TIERS)
        for _ in range(3):
            optimizer.zero_grad()
            net(IDS).square().mean().backward()
            optimizer.step()
            assert type(net.free) is Mine
        result = values(net)
        optimizer.close()
        return result

    assert_equal(run(True), run(False))


@pytest.mark.parametrize("drop", ["the optimizer", "both"])
def test_an_optimizer_that_is_dropped_under_way_leaves_the_new_values(drop):
    run, plain = Run(True, TIERS), Run(False, TIERS)
    for one in (run, plain):
        one.step()
    assert run.under_way()
    gone = weakref.ref(run.optimizer)
    run.optimizer = None
    if drop == "both":
        module = weakref.ref(run.net)
        run.net = None
        gc.collect()
        assert gone() is None and module() is None
    else:
        gc.collect()
        assert gone() is None
        assert_equal(values(run.net), values(plain.net))
        run.net(IDS)
    plain.optimizer.close()


def test_a_graph_of_before_the_step_knows_that_its_weights_have_changed():
    run = Run(True, TIERS)
    run.step()
    run.optimizer.synchronize()
    loss = (run.net.blocks[0](torch.ones(2, 32, requires_grad=True)) ** 2).sum()
    run.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    run.optimizer.close()
