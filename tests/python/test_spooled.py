"""Whatever can be done to a parameter, done to one whose values are in the file of a spool: as to PyTorch's own, to the bit."""

import copy
import io
import pickle

import pytest
import torch
from torch.nn import functional
from training import same

import sluice
from sluice.residency import away
from sluice.spools import handing_back


def build():
    return torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4)
    )


def make_plain(directory=None):
    torch.manual_seed(1)
    return build()


# ---- Where a model's parameters can be


def by_init(directory):
    torch.manual_seed(1)
    with sluice.init(directory=directory, limit_bytes=1):
        return build()


def by_zero_init(directory):
    torch.manual_seed(1)
    context = sluice.zero.Init()
    context._directory, context._limit = directory, 1
    with context:
        return build()


def after_destroy(directory):
    model = make_plain()
    tiers = {"hbm": "1MiB", "pinned": "8MiB", "device": "host", "workers": 1}
    engine = sluice.initialize(model=model, config={"sluice": tiers})[0]
    engine.destroy()
    return model


def after_destroy_of_attach(directory):
    model = make_plain()
    sluice.attach(model, hbm="1MiB", pinned="8MiB", device="host", workers=1).destroy()
    return model


MAKERS = {f.__name__: f for f in (by_init, by_zero_init, after_destroy, after_destroy_of_attach)}


# ---- What can be done to it


def values_like(tensor, seed=3, dtype=None):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tensor.shape, generator=generator).to(dtype or tensor.dtype)


def x():
    return torch.randn(5, 8, generator=torch.Generator().manual_seed(2))


def through(function):
    """An operation on the weight in the middle, under no_grad."""

    def call(model):
        with torch.no_grad():
            return function(model[2].weight)

    return call


def kept(take, write=lambda view: view.fill_(3)):
    """What is kept of its memory is its memory, whatever is used meanwhile."""

    def call(model):
        with torch.no_grad():
            view = take(model[2].weight)
            for parameter in model.parameters():
                parameter.sum()
            write(view)
        return model[2].weight.sum()

    return call


def saved(what):
    """By torch.save."""
    file = io.BytesIO()
    torch.save(what, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


def gathered(function=None, which=lambda model: model[2].weight, **options):
    def call(model):
        with sluice.zero.GatheredParameters(which(model), **options):
            return function(model[2].weight) if function else model[2].weight.tolist()

    return call


def gathered_twice(model):
    with sluice.zero.GatheredParameters(model[2].weight), sluice.zero.GatheredParameters(list(model.parameters())):
        model[2].weight.data.fill_(3)
    return model[2].weight.sum()


def backward(run):
    def call(model):
        run(model).square().sum().backward()
        return [p.grad for p in model.parameters()]

    return call


def checkpointed(model, **options):
    h = model[:2](x())
    return model[3:](torch.utils.checkpoint.checkpoint(model[2], h, **options))


def held_graph(model):
    """A graph that waits for its backward while everything else is used."""
    out = model(x()).square().sum()
    for _ in range(2):
        for parameter in model.parameters():
            parameter.detach().sum()
    out.backward()
    return [p.grad for p in model.parameters()]


def frozen_graph(model):
    given = x().requires_grad_()
    model.requires_grad_(False)
    out = model(given).square().sum()
    for parameter in model.parameters():
        parameter.detach().sum()
    out.backward()
    return given.grad


def autograd_refused(model):
    with pytest.raises(RuntimeError) as caught:
        torch.autograd.grad(model(x()).sum(), [model[0].weight, model[2].weight.requires_grad_(False)])
    return str(caught.value)


def held_product(frozen):
    """Autograd saves the Parameter itself here, not a view of its memory."""

    def call(model):
        given = torch.ones(16, 16, requires_grad=True)
        out = (given * model[2].weight.requires_grad_(not frozen)).square().sum()
        for parameter in model.parameters():
            parameter.detach().sum()
        out.backward()
        return given.grad, model[2].weight.grad

    return call


def several(model):
    """Functions that are given many parameters need all of them at a time."""
    parameters = list(model.parameters())
    with torch.no_grad():
        torch._foreach_mul_(parameters, 0.5)
        torch._foreach_add_(parameters, parameters)
    return torch.cat([p.flatten() for p in parameters]), torch.stack(torch._foreach_norm(parameters))


def trained(make_optimizer):
    def call(model):
        optimizer = make_optimizer(model.parameters())
        losses = []
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(x()).square().mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            losses.append(loss.item())
        return losses

    return call


def replaced(replace):
    def call(model):
        replace(model[2], torch.nn.Parameter(values_like(model[2].weight)))
        return model(x())

    return call


def loaded(**options):
    def call(model):
        result = model.load_state_dict({k: values_like(v) for k, v in model.state_dict().items()}, **options)
        return str(result)

    return call


def refused_load(model):
    with pytest.raises(RuntimeError) as caught:
        model.load_state_dict({"2.weight": torch.zeros(3), "more": torch.zeros(1)})
    return str(caught.value)


def tied(model):
    model.add_module("5", torch.nn.Tanh())
    model[3] = torch.nn.Linear(16, 16)
    torch.manual_seed(4)
    torch.nn.init.normal_(model[3].bias)
    model[3].weight = model[2].weight
    with torch.no_grad():
        model[3].weight.mul_(2)
    assert model[3].weight is model[2].weight
    return model(x())


def attributes(model):
    weight = model[2].weight
    weight.tag = "own"
    return [getattr(again, "tag", None) for again in (weight, saved(weight), copy.deepcopy(weight))]


def moved_average(model):
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    with torch.no_grad():
        model[2].weight.add_(1)
    average.update_parameters(model)
    average.update_parameters(model)
    return average.module.state_dict()


def larger(model):
    """As resize_token_embeddings() does."""
    new = torch.nn.Linear(16, 20)
    torch.nn.init.zeros_(new.weight)
    new.weight.data[:16] = model[2].weight.data[:16]
    new.bias.data.fill_(1)
    model[2], model[4] = new, torch.nn.Linear(20, 4)
    return new.weight


def by_numpy(weight):
    weight.detach().numpy()[1:3] = 7
    return weight.sum()


def parametrized(model):
    class Double(torch.nn.Module):
        def forward(self, w):
            return 2 * w

    torch.nn.utils.parametrize.register_parametrization(model[2], "weight", Double())
    out = model(x())
    torch.nn.utils.parametrize.remove_parametrizations(model[2], "weight")
    return out


def assigned(model):
    model[2].weight.data = values_like(model[2].weight, dtype=torch.bfloat16)
    model[2].bias.data = torch.arange(16.0)[::1]
    return model[2].weight


def functional_calls(model):
    values = {name: p.detach() * 2 for name, p in model.named_parameters()}
    twice = torch.func.functional_call(model, values, (x(),))
    own = torch.func.functional_call(model, dict(model.named_parameters()), (x(),))
    grads = torch.func.grad(lambda v: torch.func.functional_call(model, v, (x(),)).sum())(values)
    return twice, own, grads


OPERATIONS = {
    # reads
    "detach": lambda m: m[2].weight.detach(),
    "data": lambda m: m[2].weight.data,
    "arithmetic": lambda m: (m[2].weight * 2, m[2].weight @ m[2].weight.T, m[2].weight.sum(), abs(m[2].weight)),
    "index": lambda m: (m[2].weight[1, 2], m[2].weight[:, ::3], list(m[2].weight)[3], m[4].bias[0].item()),
    "compare": lambda m: (m[2].weight == m[2].weight, torch.equal(m[2].weight, m[2].weight), m[2].weight > 0),
    "tolist": lambda m: m[2].weight.tolist(),
    "repr": lambda m: repr(m[2].weight),
    "numpy": lambda m: m[2].weight.detach().numpy().tolist(),
    "clone": lambda m: m[2].weight.clone(),
    "to": lambda m: (m[2].weight.to(torch.float64), m[2].weight.half(), m[2].weight.int(), m[2].weight.cpu()),
    "views": lambda m: (m[2].weight.view(-1), m[2].weight.T, m[2].weight.reshape(4, -1), m[2].weight.split(5)),
    "meta": lambda m: (m[2].weight.to("meta").shape, m[2].weight.is_meta, m[2].weight.device.type, m[2].weight.nbytes),
    "layout": lambda m: (m[2].weight.stride(), m[2].weight.is_contiguous(), m[2].weight.storage_offset(), len(m[2].weight)),
    "storage": lambda m: (m[2].weight.untyped_storage().nbytes(), m[2].weight.data_ptr() != 0, m[2].weight.is_shared()),
    "autograd": lambda m: (m[2].weight.requires_grad, m[2].weight.is_leaf, m[2].weight.grad_fn, m[2].weight.grad),
    "like": lambda m: (torch.zeros_like(m[2].weight), torch.ones_like(m[2].weight).dtype, m[2].weight.new_zeros(3)),
    "isinstance": lambda m: isinstance(m[2].weight, torch.nn.Parameter),
    "vector": lambda m: torch.nn.utils.parameters_to_vector(m.parameters()),
    "copy": lambda m: copy.copy(m[2].weight),
    "deepcopy": lambda m: copy.deepcopy(m[2].weight),
    "pickle": lambda m: pickle.loads(pickle.dumps(m[2].weight)),
    "save": lambda m: saved(m[2].weight),
    "attributes": attributes,
    # writes
    "zero_": through(lambda w: w.zero_()),
    "fill_": through(lambda w: w.fill_(2)),
    "copy_": through(lambda w: w.copy_(values_like(w))),
    "mul_": through(lambda w: w.mul_(3).add_(w)),
    "setitem": through(lambda w: (w.__setitem__(0, 5), w.__setitem__((slice(None), 1), values_like(w)[1]))),
    "detached": through(lambda w: w.detach().fill_(4)),
    "view written": through(lambda w: w.view(-1)[3:9].fill_(6)),
    "numpy written": through(by_numpy),
    "data zero_": lambda m: m[2].weight.data.zero_(),
    "data copy_": lambda m: m[2].weight.data.copy_(values_like(m[2].weight)),
    "data setitem": lambda m: m[2].weight.data.__setitem__(slice(2, 4), 9),
    "data normal_": lambda m: m[2].weight.data.normal_(1, 2),
    "data =": assigned,
    "set_": through(lambda w: w.set_(values_like(w))),
    "vector written": lambda m: torch.nn.utils.vector_to_parameters(torch.arange(484.0), m.parameters()),
    "several": several,
    "nn.init": lambda m: [
        torch.nn.init.normal_(m[2].weight), torch.nn.init.uniform_(m[2].bias), torch.nn.init.zeros_(m[0].bias),
        torch.nn.init.orthogonal_(m[4].weight), torch.nn.init.trunc_normal_(m[0].weight),
    ],
    "kept data": kept(lambda w: w.data),
    "kept detach": kept(lambda w: w.detach()),
    "kept view": kept(lambda w: w.view(-1)[3:7]),
    "kept transpose": kept(lambda w: w.T),
    "kept numpy": kept(lambda w: w.detach().numpy(), lambda view: view.fill(3)),
    "kept alias": kept(lambda w: w.requires_grad_(False)),
    # gradients
    "requires_grad_": lambda m: m[2].weight.requires_grad_(False).requires_grad,
    "requires_grad =": lambda m: setattr(m[2].weight, "requires_grad", False),
    "grad =": lambda m: setattr(m[2].weight, "grad", values_like(m[2].weight)),
    "backward": backward(lambda m: m(x())),
    "backward twice": lambda m: (backward(lambda m: m(x()))(m), backward(lambda m: m(x()))(m)),
    "checkpoint": backward(lambda m: checkpointed(m, use_reentrant=False)),
    "reentrant checkpoint": backward(lambda m: checkpointed(m, use_reentrant=True)),
    "held graph": held_graph,
    "frozen graph": frozen_graph,
    "held product": held_product(frozen=False),
    "held frozen product": held_product(frozen=True),
    "autograd.grad": lambda m: torch.autograd.grad(m(x()).sum(), list(m.parameters())),
    "autograd.grad of one": lambda m: torch.autograd.grad(m(x()).sum(), m[2].weight),
    "autograd.grad unused": lambda m: torch.autograd.grad(
        m[:2](x()).sum(), [m[0].weight, m[2].weight], allow_unused=True
    ),
    "autograd.grad materialized": lambda m: torch.autograd.grad(
        outputs=m[:2](x()).sum(), inputs=[m[0].weight, m[2].weight], materialize_grads=True
    ),
    "autograd.grad refused": autograd_refused,
    "autograd.grad of itself": lambda m: torch.autograd.grad(m[2].weight, m[2].weight, torch.ones(16, 16)),
    "backward(inputs)": lambda m: m(x()).sum().backward(inputs=[m[2].weight, m[4].bias]),
    "double backward": lambda m: torch.autograd.grad(
        torch.autograd.grad(m(x()).square().sum(), m[2].weight, create_graph=True)[0].sum(), m[0].weight
    ),
    "hook": lambda m: (m[2].weight.register_hook(lambda g: g * 2), backward(lambda m: m(x()))(m))[1],
    "SGD": trained(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    "AdamW": trained(lambda p: torch.optim.AdamW(p, lr=0.1)),
    "AdamW foreach": trained(lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True)),
    # the module
    "forward": lambda m: m(x()),
    "no_grad": lambda m: torch.no_grad()(lambda: m(x()))(),
    "inference_mode": lambda m: torch.inference_mode()(lambda: m(x()) * 1)().clone(),
    "autocast": lambda m: torch.autocast("cpu", torch.bfloat16)(lambda: m(x()))(),
    "functional_call": functional_calls,
    "parametrized": parametrized,
    "half": lambda m: m.half()[2].weight,
    "bfloat16": lambda m: m.bfloat16()[2].weight,
    "double": lambda m: m.double()[2].weight,
    "half and back": lambda m: m.half().float().bfloat16()[2].weight,
    "module to": lambda m: m.to(torch.bfloat16)[2].weight,
    "module to the same": lambda m: m.to("cpu", torch.float32)[2].weight,
    "to_empty": lambda m: [p.zero_().shape for p in m.to_empty(device="cpu").requires_grad_(False).parameters()],
    "to meta": lambda m: [(p.is_meta, p.shape) for p in copy.deepcopy(m).to("meta").parameters()],
    "apply": lambda m: m.apply(lambda c: isinstance(c, torch.nn.Linear) and torch.nn.init.kaiming_normal_(c.weight))[2].weight,
    "state_dict": lambda m: dict(m.state_dict()),
    "state_dict(keep_vars)": lambda m: {k: v.detach().clone() for k, v in m.state_dict(keep_vars=True).items()},
    "load_state_dict": loaded(),
    "load_state_dict(assign)": loaded(assign=True),
    "load_state_dict refused": refused_load,
    "module deepcopy": lambda m: dict(copy.deepcopy(m).state_dict()),
    "module pickle": lambda m: dict(pickle.loads(pickle.dumps(m)).state_dict()),
    "module save": lambda m: dict(saved(m).state_dict()),
    "share_memory": lambda m: m.share_memory()[2].weight.is_shared(),
    "tied": tied,
    "setattr": replaced(lambda module, new: setattr(module, "weight", new)),
    "_parameters": replaced(lambda module, new: module._parameters.update(weight=new)),
    "register_parameter": replaced(lambda module, new: module.register_parameter("weight", new)),
    "delattr": lambda m: (delattr(m[2], "bias"), m[2].register_parameter("bias", None), m(x()))[2],
    "AveragedModel": moved_average,
    "larger": larger,
    "spectral_norm": lambda m: torch.nn.utils.parametrizations.spectral_norm(m[2])(torch.ones(1, 16)),
    "weight_norm": lambda m: torch.nn.utils.parametrizations.weight_norm(m[2])(torch.ones(1, 16)),
    "fx": lambda m: torch.fx.symbolic_trace(m)(x()),
    "summary": lambda m: (repr(m), sum(p.numel() for p in m.parameters()), [n for n, _ in m.named_parameters()]),
    # gathered
    "gathered read": gathered(),
    "gathered, data": gathered(lambda w: w.data.zero_(), modifier_rank=0),
    "gathered, normal_": gathered(lambda w: torch.nn.init.normal_(w, 0, 0.02), modifier_rank=0),
    "gathered, without a rank": gathered(lambda w: w.data.fill_(3)),
    "gathered, all": gathered(lambda w: w.data.fill_(3), lambda m: list(m.parameters()), modifier_rank=0),
    "gathered, a generator": gathered(lambda w: w.data.fill_(3), lambda m: m.parameters(), modifier_rank=None),
    "gathered, nested": gathered_twice,
    "gathered, forward": lambda m: gathered(lambda w: m(x()))(m),
    "gathered, data =": gathered(lambda w: setattr(w, "data", values_like(w))),
}  # fmt: skip


def snapshot(model):
    result = {}
    for name, p in model.state_dict(keep_vars=True).items():
        grad = p.grad.clone() if p.grad is not None else None
        result[name] = p.dtype, tuple(p.shape), p.stride(), p.requires_grad, p.is_leaf, grad, p.detach().clone()
    return result


def same_results(a, b):
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.requires_grad == b.requires_grad and a.stride() == b.stride() and same(a.detach(), b.detach())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_results(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same_results, a, b))
    return type(a) is type(b) and a == b


def done_to(model, name):
    torch.manual_seed(7)
    result = OPERATIONS[name](model)
    after = torch.rand(2)  # what was drawn meanwhile
    return result if not isinstance(result, torch.nn.Module) else None, after, snapshot(model)


@pytest.mark.parametrize("maker, resident", [*((maker, False) for maker in MAKERS), ("by_init", True)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_whatever_is_done_to_a_parameter_is_what_pytorch_does(name, maker, resident, tmp_path, monkeypatch):
    monkeypatch.setattr(handing_back, "LIMIT_BYTES", 1)
    expected = done_to(make_plain(), name)
    model = MAKERS[maker](tmp_path)
    if resident:
        model[2].weight.sum()
    assert away.is_owned(model[2].weight) != resident and away.is_owned(model[0].weight)
    assert same_results(done_to(model, name), expected)
