"""Which device is chosen, and what is said when it can't be had."""

import pytest
import torch

import sluice
from sluice import devices
from sluice.native import abi
from training import config, mlp


def test_the_host_is_chosen_by_name(engines):
    engine = engines(mlp(), config(sluice={"device": "host"}))
    report = engine.report()
    assert report["device"].startswith("host")
    assert report["device_reason"] == "asked for"
    assert engine.device == torch.device("cpu")


@pytest.mark.parametrize("wanted", ["gpu", "cuda:", "cuda:x", "host:0", "cpu", 3])
def test_other_names_are_refused(wanted):
    with pytest.raises(ValueError, match="sluice.device: must be auto, host, cuda"):
        devices.choose(wanted, abi.Library.default())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_auto_says_why_and_cuda_is_refused():
    chosen = devices.choose("auto", abi.Library.default())
    assert chosen.kind == "host"
    assert "PyTorch" in chosen.reason
    with pytest.raises(sluice.Unavailable, match="device 'cuda' was asked for: "):
        devices.choose("cuda", abi.Library.default())


def test_the_library_says_which_device_it_would_choose():
    library = abi.Library.default()
    spec = abi.ModelSpec(library, [("unit", [("tensor", 10, 0)])])
    try:
        chosen = spec.plan(abi.Options())["device"]
        assert chosen["kind"] in ("host", "cuda")
        assert chosen["reason"]
        assert library.doctor()["device"] == f"{chosen['kind']}: {chosen['reason']}"
        with pytest.raises(sluice.InvalidArgument, match="device is 7"):
            spec.plan(abi.Options(device=7))
        if chosen["kind"] == "host":
            assert chosen["reason"].startswith("no GPU can be used: ")
            with pytest.raises(sluice.Unavailable, match="device 'cuda' was asked for"):
                spec.plan(abi.Options(device=abi.DEVICE_CUDA))
    finally:
        spec.close()
