"""What the Python tests share. One thread of PyTorch's: bits are compared from run to run."""

import pathlib
import sys

import pytest
import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "python"))

import sluice  # noqa: E402  the path comes first


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs a GPU that PyTorch can use")
    config.addinivalue_line("markers", "xdist_group(name): never at the same time as others of the group")


# What wants most of the machine, or several processes: never two of them at a time (--dist loadgroup).
_LARGE = {"test_hosts", "test_launchers", "test_memory_cap", "test_processes", "test_cores", "test_ranks_interrupts"}


def pytest_collection_modifyitems(items):
    for item in items:
        if "ranks" in item.fixturenames or item.module.__name__ in _LARGE:
            item.add_marker(pytest.mark.xdist_group("large"))


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_hooks_left():
    """What a model left behind would be done to every graph that follows."""
    yield
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    while torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
        torch._C._autograd._pop_saved_tensors_default_hooks()
    assert hooks is None, f"left on the stack of autograd: {hooks}"


@pytest.fixture(scope="session")
def _rank_processes():
    made = []
    yield made
    for group in made:
        group.close()


@pytest.fixture
def ranks(_rank_processes):
    """A Group (ranks_group.py) of two ranks where its run() names no other number, up to four."""
    from ranks_group import RANKS_MAX, Group

    if not _rank_processes or not _rank_processes[-1].alive:  # an earlier test failed
        _rank_processes.append(Group(RANKS_MAX, world=2))
    return _rank_processes[-1]


@pytest.fixture
def engines(tmp_path):
    """engines(model, config, **more) -> an engine that is closed when the test ends. "NVMe" is the test's directory."""
    made = []

    def make(model, config, **more):
        made.append(sluice.initialize(model=model, config=config, **more)[0])
        return made[-1]

    yield make
    for engine in made:
        engine.close()
