"""The optional lane (scripts/test-models): needs the packages of requirements.txt, and never the network."""

import os
import pathlib
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "python"))

import pytest  # noqa: E402
import torch  # noqa: E402
from zoo import CASES  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture(params=("initialize", "attach", "overlap"))
def face(request):
    return request.param


@pytest.fixture(params=("plain", "tiny"))
def budget(request):
    return request.param
