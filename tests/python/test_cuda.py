"""Training on a GPU: the same bits with HBM for some units and for all, as in the plain loop, on any stream."""

import copy
import gc
import os
import sys

import pytest
import torch

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to be deterministic

import sluice  # noqa: E402
from reference_loop import LossScale, ReferenceLoop  # noqa: E402
from training import ROOT, batch, config, loss_of, mlp, same, smallest, train  # noqa: E402

sys.path.insert(0, str(ROOT / "examples"))
import gpt  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU"),
]
STEPS = 6


@pytest.fixture(autouse=True)
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def gpu_batch(step, dtype=torch.float32):
    x, y = batch(step, dtype=dtype)
    return x.cuda(), y.cuda()


def text(step):
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, 256, (4, 33), generator=generator).cuda()
    return tokens[:, :-1], tokens[:, 1:]


def small_gpt():
    torch.manual_seed(5)
    return gpt.GPT(layers=4, hidden=128, length=32)


def train_gpt(engine, steps=STEPS):
    losses = []
    for step in range(steps):
        loss = engine(*text(step))
        losses.append(loss.item())
        engine.backward(loss)
        engine.step()
    return losses


class GpuReference(ReferenceLoop):
    """Computes on the GPU; norm and update are the plain loop's, on the CPU."""

    def __init__(self, model, **options):
        super().__init__(model, **options)
        self.gpu = copy.deepcopy(self.model).cuda()

    def __call__(self, *inputs):
        return self.gpu(*inputs)

    def step(self):
        pairs = list(zip(self.model.parameters(), self.gpu.parameters()))
        for here, there in pairs:
            here.grad, there.grad = there.grad.cpu(), None
        super().step()
        with torch.no_grad():
            for here, there in pairs:
                there.copy_(here)


def test_a_gpt_with_hbm_for_some_units_trains_the_bits_of_one_kept_whole(engines, tmp_path):
    def run(path=None, **budgets):
        given = config(path, bf16={"enabled": True}, sluice={"device": "cuda", "unit_elements": 60000, **budgets})
        engine = engines(small_gpt(), given)
        losses = train_gpt(engine)
        return losses, engine.fp32_state_dict(), engine.report()

    given = config(bf16={"enabled": True}, sluice={"device": "cuda", "unit_elements": 60000})
    hbm = 2 * smallest(small_gpt(), given, "hbm")
    whole_losses, whole, whole_report = run(hbm=64 << 20)
    assert whole_report["counters"]["evictions"] == 0
    for path, budgets in ((None, {"hbm": hbm}), (tmp_path, {"hbm": hbm}), (None, {"hbm": hbm, "overlap": False})):
        losses, masters, report = run(path, **budgets)
        assert report["device"].startswith("CUDA: ")
        assert report["pinned_memory"] == "registered with the device"
        assert report["counters"]["evictions"] > 20
        assert report["budgets_bytes"]["hbm"] == hbm < whole_report["planned_bytes"]["hbm"]
        assert losses == whole_losses
        assert same(masters, whole)


def of_dtype(dtype):
    """The section of the configuration, and what the reference loop is told."""
    if dtype == torch.float16:
        scale = {"initial_scale_power": 20, "loss_scale_window": 2}
        return {"fp16": {"enabled": True, **scale}}, {"loss_scale": LossScale(power=20, window=2)}
    return {"bf16": {"enabled": True}} if dtype == torch.bfloat16 else {}, {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def test_the_plain_loop_on_the_gpu_has_the_same_bits(engines, dtype):
    section, options = of_dtype(dtype)
    given = config(sluice={"device": "cuda"}, **section)
    engine = engines(mlp(), {**given, "sluice": {**given["sluice"], "hbm": 2 * smallest(mlp(), given, "hbm")}})
    losses = train(engine, STEPS, data=gpu_batch, dtype=dtype)
    reference = GpuReference(mlp(), dtype=dtype, lr=1e-2, weight_decay=0.05, **options)
    assert losses == train(reference, STEPS, data=gpu_batch, dtype=dtype)
    assert same(list(engine.fp32_state_dict().values()), reference.masters)
    assert engine.report()["counters"]["evictions"] > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def test_states_in_hbm_have_the_bits_of_the_plain_loop(engines, dtype):
    """Norm, overflow check, accumulation and update run on the GPU."""
    section, options = of_dtype(dtype)
    zero = {"offload_optimizer": {"device": "none"}, "offload_param": {"device": "none"}}
    engine = engines(mlp(), config(zero_optimization=zero, sluice={"device": "cuda"}, **section))
    losses = train(engine, STEPS, data=gpu_batch, dtype=dtype)
    reference = GpuReference(mlp(), dtype=dtype, lr=1e-2, weight_decay=0.05, **options)
    assert losses == train(reference, STEPS, data=gpu_batch, dtype=dtype)
    assert same(list(engine.fp32_state_dict().values()), reference.masters)
    report = engine.report()
    assert report["hbm"]["states_bytes"] > 0 and report["hbm"]["gradients_bytes"] > 0
    assert report["pinned"]["states_bytes"] == report["pinned"]["gradients_bytes"] == 0


def test_gradients_accumulate_in_hbm(engines):
    def run(device):
        zero = {"offload_optimizer": {"device": device}}
        given = config(
            gradient_accumulation_steps=3, train_batch_size=48, zero_optimization=zero, sluice={"device": "cuda"}
        )
        engine = engines(mlp(), given)
        return train(engine, 9, data=gpu_batch), engine.fp32_state_dict()

    assert same(run("none"), run("cpu"))


def test_states_that_do_not_fit_hbm_are_refused_by_name(engines):
    zero = {"offload_optimizer": {"device": "none"}}
    given = config(zero_optimization=zero, sluice={"device": "cuda", "hbm": 1 << 20})
    with pytest.raises(sluice.ResourceExhausted, match="states, gradients and parameters must all stay there"):
        engines(mlp(), given)


def test_any_stream_trains_the_same_bits(engines):
    given = config(sluice={"device": "cuda"})
    given["sluice"]["hbm"] = 2 * smallest(mlp(), given, "hbm")
    expected = train(engines(mlp(), given), STEPS, data=gpu_batch)
    engine = engines(mlp(), given)
    with torch.cuda.stream(torch.cuda.Stream()):
        assert train(engine, STEPS, data=gpu_batch) == expected


def test_slow_kernels_delay_reuse_not_bits(engines):
    """The stream is far behind its caller all the time: nothing may be overwritten that it has yet to read."""

    class Slow(torch.nn.Module):
        def forward(self, x):
            torch.cuda._sleep(3_000_000)
            return x

    def model(*extra):
        layers = list(mlp())
        return torch.nn.Sequential(*[module for layer in layers for module in (layer, *extra)])

    given = config(sluice={"device": "cuda"})
    given["sluice"]["hbm"] = 2 * smallest(mlp(), given, "hbm")
    expected = train(engines(model(torch.nn.Identity()), given), 3, data=gpu_batch)
    assert train(engines(model(Slow()), given), 3, data=gpu_batch) == expected


def test_gradients_accumulate_over_micro_steps(engines):
    def run(**budgets):
        given = config(gradient_accumulation_steps=3, train_batch_size=48, sluice={"device": "cuda", **budgets})
        engine = engines(mlp(), given)
        return train(engine, 9, data=gpu_batch), engine.fp32_state_dict()

    some = 2 * smallest(mlp(), config(sluice={"device": "cuda"}), "hbm")
    assert same(run(), run(hbm=some))


def test_auto_takes_the_gpu_and_inputs_belong_there(engines):
    engine = engines(mlp(), config())
    assert engine.device.type == "cuda"
    assert engine.report()["device_reason"].startswith("found ")
    assert engine(gpu_batch(0)[0]).device == engine.device


def test_the_host_can_be_asked_for(engines):
    engine = engines(mlp(), config(sluice={"device": "host"}))
    train(engine, 1)
    assert engine.device.type == "cpu"


def test_state_dicts_are_read_into_cpu_tensors(engines):
    engine = engines(mlp(), config(sluice={"device": "cuda"}))
    values = engine.state_dict()
    assert all(value.device.type == "cpu" for value in values.values())
    assert same(list(values.values()), [p.detach() for p in mlp().parameters()])


def test_a_model_that_is_on_the_gpu_already_is_taken_from_there(engines):
    engine = engines(mlp().cuda(), config(sluice={"device": "cuda"}))
    assert same(list(engine.state_dict().values()), [p.detach() for p in mlp().parameters()])


def test_hbm_is_one_allocation_of_pytorchs_and_is_given_back():
    def run():
        """Bytes allocated once the engine is made, as planned, and when it is gone."""
        gc.collect()
        before = torch.cuda.memory_allocated()
        engine = sluice.initialize(model=mlp(), config=config(sluice={"device": "cuda"}))[0]
        made, planned = torch.cuda.memory_allocated() - before, engine.report()["planned_bytes"]["hbm"]
        train(engine, 2, data=gpu_batch)
        engine.close()
        del engine
        gc.collect()
        return made, planned, torch.cuda.memory_allocated() - before

    run()  # PyTorch takes what it needs for itself
    made, planned, left = run()
    assert planned <= made < planned + (1 << 16)
    assert left < (1 << 16)


def test_a_view_outlives_its_engine():
    kept = []

    class Keeper(torch.nn.Linear):
        def forward(self, x):
            kept.append(self.weight.detach())
            return super().forward(x)

    torch.manual_seed(1)
    model = Keeper(37, 11)
    expected = model.weight.detach().clone()
    engine = sluice.initialize(model=model, config=config(sluice={"device": "cuda"}))[0]
    engine(gpu_batch(0)[0])
    engine.close()
    del engine
    gc.collect()
    assert same(kept[0].cpu(), expected)


def test_a_capturing_stream_is_refused_and_training_goes_on(engines):
    engine = engines(mlp(), config(sluice={"device": "cuda"}))
    x, y = gpu_batch(0)
    train(engine, 1, data=gpu_batch)
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(sluice.FailedPrecondition, match="captured into a CUDA graph"):
        with torch.cuda.graph(graph):
            engine(x)
    loss = loss_of(engine(x), y)
    engine.backward(loss)
    engine.step()
