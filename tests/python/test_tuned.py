"""A file of `sluice tune`, by every face that takes one: it fills in what was not given, and the report says so."""

import json
import pathlib

import pytest
import torch

import sluice

SETTINGS = {
    "request_bytes": 100 << 10,  # two cells of states, and some
    "depth": 7,
    "batch": 3,
    "engine": "threads",
    "read_bytes_per_second": 3e9,
    "write_bytes_per_second": 1e9,
    "mixed_bytes_per_second": 2e9,
}


@pytest.fixture
def tuned(tmp_path):
    """A file for the drive at tmp_path, of another machine."""
    drive = {"path": str(tmp_path.resolve()), "file_system": "another", "device": None, "model": None, "serial": None}
    machine = {"host": "another", "cpu": "c", "kernel": "k"}
    path = {**drive, "size_bytes": None, "settings": SETTINGS}
    file = tmp_path / "tuned.json"
    file.write_text(json.dumps({"sluice_tuned": 1, "machine": machine, "paths": [path], "set": SETTINGS}))
    return file


def config_of(tmp_path, own=None, **more):
    return {
        "train_micro_batch_size_per_gpu": 1,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
        "zero_optimization": {"offload_optimizer": {"device": "nvme", "nvme_path": str(tmp_path)}},
        "sluice": {"pinned": "8MiB", "workers": 1, "device": "host", **(own or {})},
        **more,
    }


def report_of(config):
    engine, *_ = sluice.initialize(model=torch.nn.Linear(64, 300), config=config)
    try:
        return engine.report()
    finally:
        engine.destroy()


def froms(report):
    return {key: value for key, value in report["io_settings"]["from"].items() if value != "default"}


EVERYTHING = dict.fromkeys(("chunk_elements", "depth", "batch", "engine", "drive_rates"), "tuned")


def test_a_configuration_names_the_file(tmp_path, tuned):
    report = report_of(config_of(tmp_path, {"tuned": str(tuned)}))
    io = report["io_settings"]
    assert io["tuned_file"] == str(tuned)
    assert froms(report) == EVERYTHING
    assert (io["depth"], io["batch"], report["chunk_elements"]) == (7, 3, 8192)
    assert "threads" in report["engine"]
    assert [drive["read_rate"] for drive in report["drives"]] == [3e9]
    assert "another machine" in io["warnings"][0]


@pytest.mark.parametrize(
    "own, more, given",
    [
        ({"io_depth": 5}, {}, "depth"),
        ({}, {"aio": {"queue_depth": 5}}, "depth"),
        ({"io_engine": "libaio"}, {}, "engine"),
        ({"chunk_elements": 4096}, {}, "chunk_elements"),
    ],
)
def test_what_is_given_goes_before_the_file(tmp_path, tuned, own, more, given):
    report = report_of(config_of(tmp_path, {"tuned": str(tuned), **own}, **more))
    assert froms(report) == {**EVERYTHING, given: "given"}
    if given == "depth":
        assert report["io_settings"]["depth"] == 5


def test_an_optimizer_takes_it(tmp_path, tuned):
    parameters = [torch.nn.Parameter(torch.randn(300, 64))]
    optimizer = sluice.AdamW(parameters, lr=1e-3, pinned="8MiB", nvme_path=tmp_path, workers=1, tuned=tuned)
    parameters[0].grad = torch.ones_like(parameters[0])
    optimizer.step()
    assert froms(optimizer.report()) == EVERYTHING
    optimizer.close()


def test_an_attached_module_takes_it(tmp_path, tuned):
    options = {"nvme_path": tmp_path, "pinned": "8MiB", "workers": 1, "device": "host"}
    attachment = sluice.attach(torch.nn.Linear(64, 300), tuned=tuned, **options)
    report = attachment.report()
    attachment.destroy()
    assert froms(report) == EVERYTHING


def test_without_a_file_nothing_is_tuned(tmp_path):
    assert froms(report_of(config_of(tmp_path))) == {}


def test_a_file_that_is_none_is_refused_by_name(tmp_path, tuned):
    with pytest.raises(sluice.NotFound, match="no-such-file"):
        report_of(config_of(tmp_path, {"tuned": str(tmp_path / "no-such-file")}))
    text = tuned.read_text()
    for wrong, words in ((text.replace('"depth": 7', '"depth": 0'), "settings: depth"), ("{", "is not JSON")):
        pathlib.Path(tuned).write_text(wrong)
        with pytest.raises(sluice.InvalidArgument, match=words) as error:
            report_of(config_of(tmp_path, {"tuned": str(tuned)}))
        assert str(tuned) in str(error.value)
    with pytest.raises(sluice.ConfigError, match="sluice.tuned"):
        report_of(config_of(tmp_path, {"tuned": 7}))


def test_what_it_trains_is_the_same(tmp_path, tuned):
    """Only how bytes move is tuned."""

    def trained(own):
        torch.manual_seed(1)
        model = torch.nn.Linear(64, 300)
        engine, *_ = sluice.initialize(model=model, config=config_of(tmp_path, own))
        x = torch.randn(4, 64)
        for _ in range(3):
            engine.backward(engine(x).square().mean())
            engine.step()
        engine.destroy()
        return model.weight.detach().clone()

    assert torch.equal(trained({"tuned": str(tuned)}), trained({}))
