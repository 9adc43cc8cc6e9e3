"""Import paths that programs and pickles name: each works first thing in a fresh interpreter and in any order, and is one module
whatever it was imported as. What each must have is what DeepSpeed's scripts, the examples and saved models ask of it."""

import os
import pickle
import pydoc
import subprocess
import sys
import traceback

import pytest

PATHS = {  # and names of it
    "sluice": ("attach", "initialize", "init", "AdamW", "Attachment", "Engine", "DeepSpeedEngine", "ConfigError", "engine_of"),
    "sluice.adamw": ("AdamW",),
    "sluice.checkpointing": ("checkpoint", "configure", "is_configured"),
    "sluice.config": ("ConfigError", "load_config", "load_file", "parse_bytes"),
    "sluice.copies": ("nothing",),
    "sluice.devices": ("choose",),
    "sluice.ops": ("adam",),
    "sluice.ops.adam": ("DeepSpeedCPUAdam",),
    "sluice.probe": ("memory",),
    "sluice.schedulers": ("LRRangeTest", "OneCycle", "WarmupLR", "WarmupDecayLR", "WarmupCosineLR"),
    "sluice.utils": ("safe_get_full_fp32_param", "safe_set_full_fp32_param", "safe_get_full_grad"),
    "sluice.zero": ("Init", "GatheredParameters"),
}
# What pickles name, by the path they name it with.
PICKLED = [
    ("sluice", "ConfigError"),
    ("sluice.adamw", "AdamW"),
    ("sluice.config", "load_config"),
    ("sluice.copies", "nothing"),
    ("sluice.ops.adam", "DeepSpeedCPUAdam"),
    *(("sluice.schedulers", name) for name in PATHS["sluice.schedulers"]),
    ("sluice.zero", "GatheredParameters"),
    ("sluice.zero", "Init"),
]
ALONE = """
import torch  # before the fork: it takes seconds

import test_public_paths

test_public_paths.{}()
"""


def fresh(check):
    """Runs it in an interpreter that has not imported sluice, and can fork."""
    folder = os.path.dirname(__file__)
    paths = os.pathsep.join([folder, os.path.join(folder, "..", "..", "python")])
    code = ALONE.format(check.__name__)
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def in_child(call, *arguments):
    """In a fork of this process, which keeps nothing of it."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            call(*arguments)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0, arguments


def imported(*order):
    assert not any(name.split(".")[0] == "sluice" for name in sys.modules)
    for path in order:
        exec(f"import {path}")
        module = sys.modules[path]
        parent, _, name = path.rpartition(".")
        assert not parent or getattr(sys.modules[parent], name) is module
        for name in PATHS[path]:
            scope = {}
            exec(f"from {path} import {name}", scope)
            assert scope[name] is getattr(module, name)
    files = {}
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "sluice":
            assert files.setdefault(module.__file__, module) is module, name


def every_order():
    """Each path first, and the others after it, forwards and backwards."""
    paths = list(PATHS)
    for number, path in enumerate(paths):
        others = paths[number + 1 :] + paths[:number]
        in_child(imported, path, *others)
        in_child(imported, path, *reversed(others))


def unpickled(path, name):
    found = pickle.loads(f"c{path}\n{name}\n.".encode())  # as any version has written it
    assert found is getattr(sys.modules[path], name)
    assert f"{path}\n{name}\n".encode() in pickle.dumps(found, 0)


def every_pickle():
    for path, name in PICKLED:
        in_child(unpickled, path, name)


def test_every_path_is_one_module_in_any_order():
    fresh(every_order)


def test_pickles_name_public_paths():
    fresh(every_pickle)


@pytest.mark.parametrize("path", [path for path in PATHS if path not in ("sluice", "sluice.ops", "sluice.config")])
def test_help_shows_what_a_path_has(path):
    words = pydoc.render_doc(path, renderer=pydoc.plaintext)
    for name in PATHS[path]:
        assert f"{name}(" in words
    for name in PATHS[path]:
        item = pydoc.render_doc(f"{path}.{name}", renderer=pydoc.plaintext)
        assert f"{name} in {path}" in item.splitlines()[0]


def test_the_tables_of_keys_are_made_by_a_module_that_runs(tmp_path):
    page = tmp_path / "config.md"
    page.write_text("<!-- made by sluice.deepspeed.config_table --><!-- end -->")
    command = [sys.executable, "-P", "-W", "error::RuntimeWarning", "-m", "sluice.deepspeed.config_table", str(page)]
    package = os.path.join(os.path.dirname(__file__), "..", "..", "python")
    subprocess.run(command, env={**os.environ, "PYTHONPATH": package}, check=True)
    assert "`train_batch_size`" in page.read_text()
