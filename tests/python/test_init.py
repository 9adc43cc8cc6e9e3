"""sluice.init(): the same weights as without it, and never the whole model in RAM."""

import os
import subprocess
import sys

import sluice
import torch
from sluice.residency import away
from training import ROOT, batch, config, loss_of, mlp, one_step, same


class Custom(torch.nn.Module):
    """Initialises in every way people do: in place, by nn.init, by apply, by looking at other parameters, tied."""

    def __init__(self):
        super().__init__()
        self.a = torch.nn.Linear(37, 211)
        self.b = torch.nn.Linear(211, 211)
        self.c = torch.nn.Linear(211, 11)
        self.free = torch.nn.Parameter(torch.randn(211))
        self.apply(self.initialise)
        with torch.no_grad():
            self.b.weight.copy_(self.a.weight @ self.a.weight.T)
            self.b.weight.data.mul_(0.1)
        torch.nn.init.orthogonal_(self.c.weight)
        self.c.bias = torch.nn.Parameter(self.c.bias.detach() + 1)
        self.tied = torch.nn.Linear(211, 211, bias=False)
        self.tied.weight = self.b.weight

    @staticmethod
    def initialise(module):
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_normal_(module.weight)
            module.bias.data.uniform_(-1, 1)

    def forward(self, x):
        return self.c(torch.tanh(self.tied(torch.tanh(self.b(torch.tanh(self.a(x)))) * self.free)))


def built(make, **options):
    torch.manual_seed(9)
    with sluice.init(**options):
        return make()


def test_same_seed_same_weights(engines, tmp_path):
    torch.manual_seed(9)
    plain = Custom()
    after = torch.rand(3)
    model = built(Custom, directory=tmp_path, limit_bytes=1000)
    assert same(torch.rand(3), after)
    assert away.is_owned(model.a.weight), "nothing was spooled, so this proves nothing"
    engine, other = engines(model, config(tmp_path)), engines(plain, config(tmp_path))
    assert same(dict(engine.module_state_dict()), dict(other.module_state_dict()))
    for step in range(2):
        assert same(one_step(engine, step), one_step(other, step))
    assert os.listdir(tmp_path) == []


def test_two_models_before_either_is_used(engines, tmp_path):
    one = built(Custom, limit_bytes=1000)
    other = built(lambda: mlp(5), limit_bytes=1000)
    torch.manual_seed(9)
    expected = Custom().state_dict()
    assert same(dict(engines(one, config()).module_state_dict()), dict(expected))
    assert same(dict(engines(other, config()).module_state_dict()), dict(mlp(5).state_dict()))


SCRIPT = """
import sys, torch, sluice
torch.set_num_threads(1)
def resident(): return int(open("/proc/self/statm").read().split()[1]) * 4096
def peak(): return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
def make(): return torch.nn.Sequential(*[torch.nn.Linear(1024, 1024) for _ in range(64)])
make()[:1]
torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1)  # loads what every optimizer loads
open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
before = resident()
with sluice.init(directory=sys.argv[1], limit_bytes=8 << 20): model = make()
print(peak() - before)
nvme = {"device": "nvme", "nvme_path": sys.argv[1]}
engine = sluice.initialize(model=model, config={
    "bf16": {"enabled": True}, "zero_optimization": {"stage": 3, "offload_optimizer": nvme, "offload_param": nvme},
    "sluice": {"hbm": 8 << 20, "pinned": 200 << 20}})[0]
print(peak() - before)
print(sum(engine.report()["bytes_now"][t] for t in ("hbm", "pinned")))
"""


def test_the_whole_is_never_in_ram(tmp_path):
    """A model of 268 MB in fp32: 8 MiB of it at a time while it is built, a window of it while it is loaded."""
    size = 64 * (1024 * 1024 + 1024) * 4
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "python")}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    build, load, arenas = map(int, result.stdout.split())
    assert build < 0.45 * size
    assert load - arenas < 0.75 * size
