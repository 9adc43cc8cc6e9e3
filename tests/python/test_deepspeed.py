"""DeepSpeed's engine, calls and names over Sluice."""

import argparse
import json

import pytest
import torch

import sluice
from sluice.engine.progress import StepPrinter


def make_model(seed=1, dropout=0.0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(8, 96),
        torch.nn.ReLU(),
        torch.nn.Dropout(dropout),
        torch.nn.Linear(96, 64),
        torch.nn.Linear(64, 4),
    )


def make_config(**changes):
    config = {
        "train_batch_size": 4,
        "gradient_clipping": 0,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "weight_decay": 0.1}},
        "zero_optimization": {
            "stage": 3,
            "offload_param": {"device": "cpu"},
            "offload_optimizer": {"device": "cpu"},
            "param_persistence_threshold": 0,
        },
        "sluice": {"hbm": "40KiB", "pinned": "8MiB", "workers": 1},
    }
    return config | changes


def batches(count, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 8, generator=generator) for _ in range(count)]


def start(model=None, config=None, **arguments):
    return sluice.initialize(model=model or make_model(), config=config or make_config(), **arguments)


def train(engine, steps=4, micro=1):
    for batch in batches(steps * micro):
        engine.backward(engine(batch).square().mean())
        engine.step()
    values = engine.fp32_state_dict()
    engine.close()
    return values


def train_torch(model, optimizer, steps=4, scheduler=None, clip=0.0):
    for batch in batches(steps):
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return model.state_dict()


def assert_close(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


# ---- The snippet, as DeepSpeed's users write it

SNIPPET = """
import sluice as deepspeed
model = MyLargeModel()
model_engine, optimizer, _, _ = deepspeed.initialize(model=model, config="ds_config.json")
for batch in dataloader:
    loss = model_engine(batch)
    model_engine.backward(loss)
    model_engine.step()
"""


def test_the_snippet_trains_as_written(tmp_path, monkeypatch):
    class MyLargeModel(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = make_model()

        def forward(self, batch):
            return self.layers(batch).square().mean()

    monkeypatch.chdir(tmp_path)
    config = make_config()
    config["zero_optimization"]["offload_optimizer"] = {"device": "nvme", "nvme_path": str(tmp_path)}
    (tmp_path / "ds_config.json").write_text(json.dumps(config))
    names = {"MyLargeModel": MyLargeModel, "dataloader": batches(4)}
    exec(SNIPPET, names)
    engine = names["model_engine"]
    ours = {name.removeprefix("layers."): value for name, value in engine.fp32_state_dict().items()}
    engine.close()
    model = make_model()
    assert_close(ours, train_torch(model, torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)))


# ---- Optimizers and schedulers of the client

LR = 1e-2


@pytest.mark.parametrize("kind", ["AdamW", "Adam"])
def test_a_client_optimizer_trains_with_its_own_arithmetic(kind):
    def make(parameters):
        return getattr(torch.optim, kind)(parameters, lr=LR, weight_decay=0.1, betas=(0.8, 0.9))

    model, other = make_model(), make_model()
    engine, optimizer, _, _ = start(model, optimizer=make(model.parameters()))
    assert engine.get_type() == [kind.lower()]
    by_instance = train(engine)
    assert_close(by_instance, train_torch(other, make(other.parameters())))
    assert_equal(by_instance, train(start(optimizer=make)[0]))


def test_a_client_optimizer_that_can_not_be_kept_is_refused():
    model = make_model()
    used = torch.optim.AdamW(model.parameters())
    train_torch(model, used, steps=1)
    with pytest.raises(ValueError, match="stepped already"):
        start(model, optimizer=used)
    model = make_model()
    with pytest.raises(TypeError, match="SGD is not offered"):
        start(model, optimizer=torch.optim.SGD(model.parameters(), lr=1))
    with pytest.raises(ValueError, match="amsgrad"):
        start(model, optimizer=torch.optim.Adam(model.parameters(), amsgrad=True))
    with pytest.raises(TypeError, match="or a function, not int"):
        start(model, optimizer=5)


def test_schedulers_by_configuration_instance_and_function_do_the_same():
    def schedule(optimizer):
        return sluice.schedulers.WarmupLR(optimizer, warmup_num_steps=3, warmup_max_lr=LR)

    config = make_config(scheduler={"type": "WarmupLR", "params": {"warmup_num_steps": 3, "warmup_max_lr": LR}})
    engine, _, _, scheduler = start(config=config)
    assert isinstance(scheduler, sluice.schedulers.WarmupLR) and engine.get_lr() == [0.0]
    configured = train(engine)
    engine, optimizer, _, scheduler = start(lr_scheduler=schedule)
    assert scheduler.optimizer is optimizer
    assert_equal(configured, train(engine))
    model = make_model()
    client = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.1)
    assert_equal(configured, train(start(model, optimizer=client, lr_scheduler=schedule(client))[0]))
    model = make_model()
    client = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.1)
    assert_close(configured, train_torch(model, client, scheduler=schedule(client)))


@pytest.mark.filterwarnings("error")
def test_a_scheduler_of_torch_goes_on_working_for_the_client_optimizer_it_was_made_for():
    model = make_model()
    client = torch.optim.AdamW(model.parameters(), lr=LR)
    scheduler = torch.optim.lr_scheduler.StepLR(client, step_size=2, gamma=0.5)
    engine, _, _, returned = start(model, optimizer=client, lr_scheduler=scheduler)
    assert returned is scheduler
    train(engine)
    assert engine.get_lr() == [LR / 4]


def test_step_passes_arguments_on_to_the_scheduler():
    plateau = {"type": "ReduceLROnPlateau", "params": {"patience": 0, "factor": 0.5}}
    engine, *_ = start(config=make_config(scheduler=plateau))
    for metric in (1.0, 1.0, 1.0):
        engine.backward(engine(batches(1)[0]).mean())
        engine.step(lr_kwargs={"metrics": metric})
    assert engine.get_lr() == [LR / 4]
    engine.close()


def test_the_rate_stays_when_a_step_is_skipped():
    config = make_config(scheduler={"type": "StepLR", "params": {"step_size": 1, "gamma": 0.5}})
    engine, *_ = start(config=config)
    engine.backward(engine(batches(1)[0]).mean() * float("inf"))
    with pytest.warns(RuntimeWarning, match=r"step 1 was left out: the norm of its gradients is (nan|inf)"):
        engine.step()
    assert not engine.was_step_applied() and engine.get_lr() == [LR] and engine.skipped_steps == 1
    engine.backward(engine(batches(1)[0]).mean())
    engine.step()
    assert engine.was_step_applied() and engine.get_lr() == [LR / 2] and engine.global_steps == 2
    engine.close()


@pytest.mark.parametrize("fp16", [{"loss_scale": 128}, {"initial_scale_power": 4}])
def test_a_step_left_out_is_told_unless_it_finds_the_scale(fp16, recwarn):
    engine, *_ = start(config=make_config(fp16={"enabled": True, **fp16}))
    engine.backward(engine(batches(1)[0].half()).float().mean() * float("inf"))
    engine.step()
    told = [str(w.message) for w in recwarn if "was left out" in str(w.message)]
    assert not engine.was_step_applied() and len(told) == int("loss_scale" in fp16)
    engine.close()


def test_default_clipping_is_1():
    config = make_config()
    del config["gradient_clipping"]
    model = make_model()
    expected = train_torch(model, torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1), clip=1.0)
    engine, *_ = start(config=config)
    assert engine.gradient_clipping() == 1.0
    assert_close(train(engine), expected)


# ---- Accumulation


def accumulate(config, drive):
    engine, *_ = start(config=config)
    for number, batch in enumerate(batches(6)):
        drive(engine, number, batch)
    values = engine.fp32_state_dict()
    steps = engine.global_steps
    engine.close()
    return values, steps


def plain(engine, number, batch):
    engine.backward(engine(batch).square().mean())
    engine.step()


def test_ways_to_accumulate_do_the_same():
    counted = make_config(train_batch_size=12, gradient_accumulation_steps=3)
    expected, steps = accumulate(counted, plain)
    assert steps == 2

    def forced(engine, number, batch):
        engine.set_gradient_accumulation_boundary(number % 3 == 2)
        assert engine.is_gradient_accumulation_boundary() == (number % 3 == 2)
        plain(engine, number, batch)

    def unmanaged(engine, number, batch):
        engine.backward(engine(batch).square().mean())
        if number % 3 == 2:
            engine.step()

    def scaled(engine, number, batch):
        with engine.no_sync():
            engine.scale(engine(batch).square().mean()).backward()
        engine.step()

    def resized(engine, number, batch):
        if number == 0:
            engine.set_train_batch_size(12)
            assert engine.get_batch_info() == (12, 4, 3)
        plain(engine, number, batch)

    for config, drive in [
        (counted, forced),
        (counted | {"managed_gradient_accumulation": False}, unmanaged),
        (counted, scaled),
        (make_config(), resized),
    ]:
        values, steps = accumulate(config, drive)
        assert steps == 2, drive.__name__
        assert_equal(values, expected)


def test_the_batch_changes_between_steps_only():
    engine, *_ = start(config=make_config(train_batch_size=8, gradient_accumulation_steps=2))
    plain(engine, 0, batches(1)[0])
    with pytest.raises(ValueError, match="midst"):
        engine.set_train_batch_size(4)
    plain(engine, 1, batches(1)[0])
    with pytest.raises(ValueError, match="not a multiple"):
        engine.set_train_batch_size(6)
    engine.set_train_micro_batch_size(2)
    assert engine.get_batch_info() == (4, 2, 2)
    engine.close()


def test_a_backward_of_a_scaled_loss_that_failed_holds_nothing():
    engine, *_ = start()

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise KeyError("on purpose")

    with pytest.raises(KeyError, match="on purpose"):
        engine.scale(engine(Fails.apply(batches(1)[0].requires_grad_())).mean()).backward()
    engine.zero_grad()
    expected = train(start()[0])
    assert_equal(train(engine), expected)


# ---- Printing


def test_steps_per_print_and_wall_clock_breakdown_print_to_stdout(capsys):
    engine, *_ = start(config=make_config(steps_per_print=2, wall_clock_breakdown=True))
    train(engine, steps=4)
    lines = capsys.readouterr().out.splitlines()
    progress = [line for line in lines if line.startswith("step=")]
    assert progress == [f"step={n}, skipped=0, lr=[0.01], mom=[(0.9, 0.999)]" for n in (2, 4)]
    assert sum(line.startswith("time (ms) | forward: ") for line in lines) == 4
    train(start()[0])
    assert capsys.readouterr().out == ""


def test_the_times_of_a_step_add_up_and_begin_anew(capsys):
    now = iter([0.0, 1.0, 1.0, 3.0, 3.0, 3.5, 4.0, 4.25])
    printer = StepPrinter(None, True, clock=lambda: next(now))
    for names in (("forward", "forward", "step"), ("forward",)):
        for name in names:
            with printer.timed(name):
                pass
        printer.stepped(1, 0, None)
    assert capsys.readouterr().out.splitlines() == [
        "time (ms) | forward: 3000.00 | backward: 0.00 | step: 500.00",
        "time (ms) | forward: 250.00 | backward: 0.00 | step: 0.00",
    ]


# ---- What else the engine tells, and what it refuses


def test_the_engine_tells_what_is_configured():
    engine, optimizer, loader, _ = start(config=make_config(steps_per_print=7), training_data=torch.zeros(10, 8))
    assert engine.training_dataloader is loader and [len(batch) for batch in loader] == [4, 4, 2]
    assert (engine.zero_optimization(), engine.zero_optimization_stage()) == (True, 3)
    assert not engine.fp16_enabled() and not engine.bfloat16_enabled() and not engine.dynamic_loss_scale()
    assert (engine.steps_per_print(), engine.wall_clock_breakdown()) == (7, False)
    assert (engine.world_size, engine.global_rank, engine.get_mom()) == (1, 0, [(0.9, 0.999)])
    assert engine.get_global_grad_norm() is None and optimizer.cur_scale == 1.0
    engine.empty_partition_cache()
    engine.destroy()


@pytest.mark.parametrize(
    "call, advice",
    [
        ("offload_states", "tiers"),
        ("reload_states", "tiers"),
        ("compile", "torch.compile"),
    ],
)
def test_calls_that_are_not_offered_are_refused_by_name(call, advice):
    engine, *_ = start()
    with pytest.raises(NotImplementedError, match=rf"engine.{call}\(\) is not offered: .*{advice}"):
        getattr(engine, call)("somewhere")
    engine.close()


@pytest.mark.parametrize(
    "name", ["PipelineModule", "PipelineEngine", "tp_model_init", "init_inference", "moe", "OnDevice"]
)
def test_names_that_are_not_offered_are_refused_by_name(name):
    stand_in = getattr(sluice, name)
    for use in (lambda: stand_in(object()), lambda: stand_in.anything):
        with pytest.raises(NotImplementedError, match=f"sluice.{name} is not offered: "):
            use()
    assert not isinstance(object(), stand_in) and not hasattr(stand_in, "anything")
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        sluice.nonsense
    with pytest.raises(NotImplementedError, match="sluice.zero.TiledLinear is not offered: "):
        sluice.zero.TiledLinear(3, 4)
    for name in ("safe_get_local_fp32_param", "safe_set_local_grad"):
        with pytest.raises(NotImplementedError, match=f"sluice.utils.{name} is not offered: "):
            getattr(sluice.utils, name)(torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        sluice.utils.nonsense


def test_what_is_public_says_what_it_is():
    """docs/api.md has what has a docstring of its own."""
    assert sluice.AdamW.was_step_applied.__doc__
    for owner in (sluice.utils, sluice.engine.calls.EngineCalls, sluice.ops.adam):
        for name, value in vars(owner).items():
            mine = getattr(value, "__module__", owner.__name__) in (owner.__name__, getattr(owner, "__module__", None))
            if not name.startswith("_") and mine and callable(value):
                assert value.__doc__, name


def test_arguments_of_a_command_line_lead_to_the_configuration(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(make_config(train_batch_size=6)))
    parser = sluice.add_config_arguments(argparse.ArgumentParser())
    args = parser.parse_args(["--deepspeed", "--deepspeed_config", str(path)])
    engine, *_ = sluice.initialize(args=args, model=make_model())
    assert args.deepspeed and engine.train_batch_size() == 6
    engine.close()


def test_one_rank_needs_nothing_set_up_and_half_of_several_is_refused(monkeypatch):
    sluice.init_distributed(dist_backend="nccl")
    monkeypatch.setenv("WORLD_SIZE", "1")
    sluice.init_distributed()
    assert not torch.distributed.is_initialized()
    distributed = sluice.comm
    distributed.barrier()
    assert (distributed.get_rank(), distributed.get_world_size(), distributed.get_local_rank()) == (0, 1, 0)
    monkeypatch.setenv("WORLD_SIZE", "4")
    for call in (sluice.init_distributed, start):
        with pytest.raises(RuntimeError, match="torchrun: WORLD_SIZE is set, and RANK, LOCAL_RANK"):
            call()


# ---- The zero namespace and single parameters


def test_zero_init_gives_the_weights_that_the_model_has_without_it():
    with sluice.zero.Init(config_dict_or_path=make_config(), remote_device="cpu"):
        model = make_model()
    with sluice.zero.Init(enabled=False):
        whole = make_model()
    assert_equal(dict(whole.named_parameters()), dict(make_model().named_parameters()))
    assert_equal(train(start(model)[0]), train(start(whole)[0]))
    with pytest.raises(ValueError, match="mpu"):
        sluice.zero.Init(mpu=object())


def test_gathered_parameters_have_their_values_after_all_updates():
    model = make_model()
    engine, *_ = start(model)
    for batch in batches(3):
        engine.backward(engine(batch).square().mean())
        engine.step()
    expected = engine.module_state_dict()
    with sluice.zero.GatheredParameters(model.parameters()):
        assert_equal({n: p.detach() for n, p in model.named_parameters()}, expected)
        with torch.no_grad():
            model[0].weight.zero_()  # taken, as by PyTorch, also without a modifier_rank
    expected["0.weight"].zero_()
    assert_equal(engine.module_state_dict(), expected)
    assert_equal({n: p.detach() for n, p in model.named_parameters()}, expected)
    engine.close()


@pytest.mark.parametrize("bf16", [False, True])
def test_a_write_through_gathered_parameters_reaches_the_master_and_nothing_else(bf16):
    model = make_model()
    engine, *_ = start(model, make_config(bf16={"enabled": bf16}))
    dtype = torch.bfloat16 if bf16 else torch.float32
    for batch in batches(2):
        engine.backward(engine(batch.to(dtype)).square().mean())
        engine.step()
    before = engine.fp32_state_dict()
    with sluice.zero.GatheredParameters([model[0].weight, model[0].weight, model[0].bias], modifier_rank=0):
        with torch.no_grad():
            model[0].weight[3, 5] = 0.5
    after = engine.fp32_state_dict()
    assert after["0.weight"][3, 5] == 0.5
    before["0.weight"][3, 5] = 0.5
    assert_equal(after, before)
    with pytest.raises(KeyError):
        with sluice.zero.GatheredParameters(model[0].weight, modifier_rank=0):
            model[0].weight.data.fill_(7)
            raise KeyError
    before["0.weight"].fill_(7)  # PyTorch would not undo it either
    assert_equal(engine.fp32_state_dict(), before)
    engine.close()


def test_gathering_leaves_other_parameters_alone_and_what_computes_where_it_is():
    other = torch.nn.Parameter(torch.ones(3))
    with sluice.zero.GatheredParameters([other], modifier_rank=0):
        assert other.sum() == 3
    seen = []

    class Peeks(torch.nn.Linear):
        def forward(self, x):
            with sluice.zero.GatheredParameters([self.weight]):
                seen.append(self.weight.isnan().any().item())
                with torch.no_grad():
                    self.weight.fill_(2)
            return super().forward(x)

    engine, *_ = start(torch.nn.Sequential(Peeks(8, 4)))
    engine(batches(1)[0])
    assert seen == [False] and engine.fp32_state_dict()["0.weight"].unique() == 2
    engine.close()


class Product(torch.autograd.Function):
    """Saves the Parameter itself, and not a view of it."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return gradient @ weight, gradient.t() @ x


@pytest.mark.parametrize("product", [Product.apply, torch.nn.functional.linear])
def test_gathering_in_forward_keeps_what_backward_needs(product):
    """The head's weight is used outside of its module, gathered in forward: as trainers with a fused loss do."""

    class Gathers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = torch.nn.Linear(8, 64), torch.nn.Linear(64, 96, bias=False)

        def forward(self, x):
            weight = self.head.weight
            with sluice.zero.GatheredParameters([weight]):
                return product(torch.tanh(self.body(x)), weight)

    def make():
        torch.manual_seed(3)
        return Gathers()

    model, other = make(), make()
    ours = train(start(model)[0])
    optimizer = torch.optim.AdamW(other.parameters(), lr=1e-2, weight_decay=0.1)
    assert_close(ours, train_torch(other, optimizer))


def test_tensors_lent_for_a_parameter_have_the_attributes_it_was_given():
    engine, *_ = start()
    weight = engine.module[0].weight
    weight.mark = "mine"
    seen = []

    def look(weight):
        with torch.enable_grad():
            seen.append(weight.mark)
            return weight.sum()

    torch.overrides.wrap_torch_function(lambda w: [w])(look)(weight)
    assert seen == ["mine"]
    engine.close()


def test_safe_get_and_safe_set():
    model = make_model()
    engine, *_ = start(model)
    weight = model[0].weight
    engine.backward(engine(batches(1)[0]).square().mean())
    gradient = sluice.utils.safe_get_full_grad(weight)
    other = make_model()
    other(batches(1)[0]).square().mean().backward()
    torch.testing.assert_close(gradient, other[0].weight.grad)
    engine.step()
    torch.testing.assert_close(sluice.utils.safe_get_full_optimizer_state(weight, "exp_avg"), gradient * 0.1)
    assert torch.equal(sluice.utils.safe_get_full_fp32_param(weight), engine.fp32_state_dict()["0.weight"])
    sluice.utils.safe_set_full_fp32_param(weight, torch.full_like(weight, 2.0))
    sluice.utils.safe_set_full_optimizer_state(weight, torch.full(weight.shape, 3.0), "exp_avg_sq")
    assert engine.module_state_dict()["0.weight"].unique() == 2.0
    assert engine.optimizer_state_dict()["0.weight"]["exp_avg_sq"].unique() == 3.0
    with pytest.raises(KeyError, match="there are exp_avg, exp_avg_sq"):
        sluice.utils.safe_get_full_optimizer_state(weight, "momentum")
    with pytest.raises(ValueError, match="shape"):
        sluice.utils.safe_set_full_fp32_param(weight, torch.zeros(1))
    assert sluice.utils.safe_get_full_fp32_param(torch.nn.Parameter(torch.ones(2))) is None
    engine.close()


def test_activation_checkpointing_under_its_name():
    class Recomputes(torch.nn.Sequential):
        def forward(self, x):
            return sluice.checkpointing.checkpoint(super().forward, x)

    sluice.checkpointing.configure(None, partition_activations=True)
    assert sluice.checkpointing.is_configured()
    sluice.checkpointing.reset()
    torch.manual_seed(1)
    model = torch.nn.Sequential(Recomputes(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4)))
    torch.manual_seed(1)
    plain_model = torch.nn.Sequential(
        torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    )
    assert_equal(train(start(model)[0]), train(start(plain_model)[0]))
    with pytest.raises(ValueError, match="mpu"):
        sluice.checkpointing.configure(object())
