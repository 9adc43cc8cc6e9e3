"""`deepspeed` as Sluice's own modules: names, laziness, refusal, what came before, and what child processes inherit. Each process here
is a fresh one; no framework is installed, so modules of their names are made."""

import importlib
import os
import pathlib
import subprocess
import sys

import pytest

import sluice

HERE = pathlib.Path(__file__).resolve().parent
PACKAGE = HERE.parents[1] / "python"
INSTALL = "import sluice.deepspeed; sluice.deepspeed.install()\n"


def run(code, *arguments, folder, how=(), path=()):
    """What `code` prints, run as a script in `folder`."""
    script = folder / "script.py"
    script.write_text(code)
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment["PYTHONPATH"] = os.pathsep.join([*map(str, path), str(PACKAGE)])
    done = subprocess.run(
        [sys.executable, *how, str(script), *arguments], env=environment, cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


SWEEP = """
import importlib, pathlib, sys

def lines(path):
    for line in pathlib.Path(path).read_text().splitlines():
        if line and not line.startswith("#"):
            yield line.split()

import deepspeed.zero  # a submodule first
import deepspeed
import sluice
from sluice.deepspeed import names
from sluice.deepspeed.refusal import NotOffered

assert deepspeed is sluice.deepspeed and deepspeed.zero is sluice.zero and deepspeed.ops.adam is sluice.ops.adam
for below, place in names.MODULES.items():
    name = f"deepspeed.{below}".rstrip(".")
    module = importlib.import_module(name)
    assert module is sys.modules[f"sluice.{place}"], name
    parent, _, leaf = name.rpartition(".")
    assert not parent or getattr(sys.modules[parent], leaf) is module, name
    assert module.__spec__.name == f"sluice.{place}", name
count = 0
for module, name, kind in lines(sys.argv[1]):
    scope = {}
    exec(f"from {module} import {name}", scope)  # also of what is refused
    found = scope[name]
    refused = repr(found).endswith("not offered>") or (getattr(found, "__doc__", None) or "").startswith("Not offered: ")
    assert refused == (kind == "refused"), (module, name, kind)
    if refused and isinstance(found, type):
        for use in (lambda: found(), lambda: found.attribute, lambda: type("Below", (found,), {})()):
            try:
                use()
            except NotOffered as error:
                assert name in str(error) and "is not offered: " in str(error), error
            else:
                raise AssertionError((module, name))
        assert not isinstance(5, found)
    count += 1
for below in names.REFUSED:
    module = importlib.import_module(f"deepspeed.{below}")
    importlib.import_module(f"deepspeed.{below}.further")
    try:
        module.anything()
    except NotOffered as error:
        assert f"deepspeed.{below}.anything is not offered: " in str(error), error
    else:
        raise AssertionError(below)
for module in list(sys.modules):  # no module twice
    if module.startswith("deepspeed") and hasattr(sys.modules[module], "__file__"):
        own = sys.modules[module].__spec__.name
        assert sys.modules[own] is sys.modules[module], module
print(count, len(names.REFUSED))
"""


@pytest.mark.parametrize("how", ["installed", "-m"])
def test_every_name_is_there_and_what_is_lacking_is_refused_when_used(tmp_path, how):
    code, words = (INSTALL + SWEEP, ()) if how == "installed" else (SWEEP, ("-m", "sluice.deepspeed"))
    count, refused = run(code, str(HERE / "deepspeed_names.txt"), folder=tmp_path, how=words).split()
    assert int(count) > 100 and int(refused) > 30


METADATA = """
import importlib.metadata as metadata, importlib.util
assert importlib.util.find_spec("deepspeed") is not None
print(metadata.version("deepspeed"), metadata.metadata("DeepSpeed")["Name"], metadata.distribution("deepspeed").version)
import deepspeed
print(deepspeed.__version__, deepspeed.__version_major__, deepspeed.__version_minor__)
print([d.version for d in metadata.distributions() if d.metadata["Name"] == "deepspeed"])
for line in ("import deepspeed.nonsense", "from deepspeed.utils import nonsense", "from deepspeed import nonsense"):
    try:
        exec(line)
    except ImportError as error:
        print(type(error).__name__, error)
"""


def test_its_metadata_are_those_of_the_version_whose_names_it_has_and_no_unknown_name_passes(tmp_path):
    one, two, three, *unknown = run(INSTALL + METADATA, folder=tmp_path).splitlines()
    assert one == "0.19.8 deepspeed 0.19.8" and two == "0.19.8 0 19" and three == "['0.19.8']"
    assert unknown[0].startswith("ModuleNotFoundError No module named 'deepspeed.nonsense': Sluice stands in for DeepSpeed here")
    assert [line.startswith("ImportError cannot import name 'nonsense'") for line in unknown[1:]] == [True, True]


BEFORE = """
import importlib.metadata, importlib.util, os, sys
before = list(sys.meta_path), os.environ.get("PYTHONPATH")
import sluice, sluice.deepspeed, torch

assert importlib.util.find_spec("deepspeed").origin.startswith(os.getcwd())  # the real one, which is installed
try:
    importlib.metadata.version("deepspeed")
except importlib.metadata.PackageNotFoundError:
    print("none")
early = "transformers", "accelerate", "peft", "trl", "lightning", "lightning_fabric", "pytorch_lightning", "deepspeed"
for name in early:
    __import__(name)
    try:
        sluice.deepspeed.install()
    except RuntimeError as error:
        print(error)
    del sys.modules[name]
# Nothing has happened.
assert (list(sys.meta_path), os.environ.get("PYTHONPATH")) == before
assert not sluice.deepspeed.dropin.is_active() and not hasattr(torch.zeros(1), "ds_status")
# One that is installed and was not imported stays unseen.
sluice.deepspeed.install()
sluice.deepspeed.install()
import deepspeed
print(deepspeed is sluice.deepspeed, os.environ["PYTHONPATH"].count("children"))
"""


def test_nothing_is_active_unless_asked_for_and_what_came_first_is_named(tmp_path):
    early = ("transformers", "accelerate", "peft", "trl", "lightning", "lightning_fabric", "pytorch_lightning")
    for name in (*early, "deepspeed"):
        (tmp_path / f"{name}.py").write_text("")
    none, *said, real, last = run(BEFORE, folder=tmp_path).splitlines()
    assert none == "none" and last == "True 1"
    for name, words in zip(early, said, strict=True):
        assert words.startswith(f"sluice.deepspeed.install(): {name} came first") and "first line" in words
    assert real.startswith("sluice.deepspeed.install(): another deepspeed was imported already, from ") and str(tmp_path) in real


CHILDREN = """
import multiprocessing, os, subprocess, sys

def ask(queue):
    import deepspeed
    queue.put(deepspeed.__version__ + " " + deepspeed.__spec__.name)

if __name__ == "__main__":
    lines = [
        "import deepspeed; import sluice; print(deepspeed is sluice.deepspeed)",
        "import sys, importlib.util as u; assert u.find_spec('deepspeed'); import deepspeed.runtime.zero.partition_parameters as p; "
        "import sluice; print(p is sluice.deepspeed.parameters and sys.modules['deepspeed'] is sluice.deepspeed)",
        "import importlib.metadata as m; print(m.version('deepspeed') == '0.19.8')",
        "import sys, importlib.metadata as m; list(m.distributions()); print('sluice' not in sys.modules and 'torch' not in sys.modules)",
    ]
    for line in lines:
        print(subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True).stdout.strip())
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=ask, args=(queue,))
    child.start()
    print(queue.get())
    child.join()
    bare = [sys.executable, "-E", "-c", "import importlib.util as u; print(u.find_spec('deepspeed'))"]
    print(subprocess.run(bare, capture_output=True, text=True, check=True).stdout.strip())
"""


def test_processes_that_are_started_inherit_it(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "sitecustomize.py").write_text("import os\nos.environ['OTHER'] = os.environ.get('OTHER', '') + 'x'\n")
    ask = [sys.executable, "-c", "import os; print(os.environ['OTHER'])"]
    code = CHILDREN + f"    print(os.environ['OTHER'], subprocess.check_output({ask}, text=True).strip())"
    said = run(code, folder=tmp_path, how=("-m", "sluice.deepspeed"), path=[other]).splitlines()
    assert said[:4] == ["True"] * 4 and said[4:6] == ["0.19.8 sluice.deepspeed", "None"]
    assert said[6] == "x xx"  # the sitecustomize.py that was there runs, once in each process


def test_dash_m_is_as_running_the_script(tmp_path):
    code = """
import os, pickle, sys
class Thing: pass
assert isinstance(pickle.loads(pickle.dumps(Thing())), Thing) and __name__ == "__main__"
print(sys.argv[1:], os.path.basename(sys.argv[0]), os.path.samefile(sys.path[0], os.path.dirname(__file__)))
"""
    said = run(code, "-x", "--deepspeed", "a.json", folder=tmp_path, how=("-m", "sluice.deepspeed"))
    assert said == "['-x', '--deepspeed', 'a.json'] script.py True\n"


def test_dash_m_takes_a_module_and_says_what_it_can_not_run(tmp_path, monkeypatch, capsys):
    (tmp_path / "amodule.py").write_text("import deepspeed, sys\nprint(deepspeed.__version__, sys.argv[1:])\nsys.exit(7)")
    done = subprocess.run(
        [sys.executable, "-m", "sluice.deepspeed", "-m", "amodule", "word"],
        env={**os.environ, "PYTHONPATH": str(PACKAGE)}, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "0.19.8 ['word']\n" and done.returncode == 7, done.stderr
    command = importlib.import_module("sluice.deepspeed.__main__")
    for words, said in (([], "runs a script"), (["--nope"], "--nope"), (["missing.py"], "no script missing.py")):
        monkeypatch.setattr(sys, "argv", ["sluice.deepspeed", *words])
        assert command.main() == 2
        found = capsys.readouterr()
        assert said in found.out + found.err
    assert not sluice.deepspeed.dropin.is_active()


TRAINS = """
import torch, deepspeed
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
torch.manual_seed(0)
config = {"train_batch_size": 4, "optimizer": {"type": "AdamW", "params": {"lr": 0.01}}, "steps_per_print": float("inf"),
          "zero_optimization.reduce_bucket_size": 5, "sluice": {"workers": 1},
          "zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}, "param_persistence_threshold": 0}}
with deepspeed.zero.Init(config_dict_or_path=config):
    model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Linear(64, 4))
assert torch.distributed.is_initialized() and deepspeed.comm.get_world_size() == 1
assert all(p.ds_status == ZeroParamStatus.AVAILABLE and p.ds_numel == p.numel() for p in model.parameters())
engine, *_ = deepspeed.initialize(model=model, config=config)
assert type(engine) is deepspeed.DeepSpeedEngine and engine.config.get("zero_optimization")["stage"] == 3
shapes = {name: tuple(p.shape) for name, p in engine.named_parameters()}
ids = [p.ds_id for p in engine.parameters()]
assert len(set(ids)) == 4
for name, p in engine.named_parameters():
    assert tuple(p.ds_shape) == shapes[name] and p.ds_numel == p.numel() == p.partition_numel()
    assert p.ds_status == ZeroParamStatus.NOT_AVAILABLE
    with deepspeed.zero.GatheredParameters([p]):
        assert torch.isfinite(p).all()
engine.backward(engine(torch.ones(4, 8)).square().mean())
engine.step()
assert engine.was_step_applied()
assert [n for n in engine.config_notes if n.startswith("zero_optimization.reduce_bucket_size: no effect")]
state = engine._zero3_consolidated_16bit_state_dict()
assert engine.zero_gather_16bit_weights_on_model_save() and {n: tuple(v.shape) for n, v in state.items()} == shapes
again, *_ = deepspeed.initialize(model=model, config=config)  # the first engine ends
assert all(torch.equal(v, state[n]) for n, v in again.module_state_dict().items())
try:
    engine.zero_grad()
except RuntimeError as error:
    print(error)
"""


def test_a_program_that_says_deepspeed_trains(tmp_path):
    said = run(TRAINS, folder=tmp_path, how=("-m", "sluice.deepspeed"))
    assert said.startswith("this engine was closed")
