"""`sluice trace`: the step of a real run, replayed, and what of other files it says."""

import json
import re
import subprocess

import pytest
from conftest import ROOT
from test_waits import RATES, trained

PROGRAM = ROOT / "build/release/tools/sluice"
MACHINE = {"nvme_bytes": 2e9, "update_elements": 1e9, "checksum_bytes": 1e10, "copy_bytes": 1e10}
WAITS = {"fetch", "update", "gradients", "ranks", "drive"}


def sluice(*arguments):
    return subprocess.run([PROGRAM, "trace", *map(str, arguments)], capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    """(report, trace file) of a real run."""
    if not PROGRAM.exists():
        pytest.skip("there is no sluice command: build the target sluice_cli")
    path = tmp_path_factory.mktemp("run")
    engine = trained(path, **RATES, **MACHINE, trace=True)
    report = engine.report()
    engine.write_trace(path / "trace.json")
    engine.close()
    return report, path / "trace.json"


def replayed(*arguments):
    made = sluice(*arguments, "--json")
    assert made.returncode == 0, made.stderr
    return json.loads(made.stdout)


def keys_listed():
    header = (ROOT / "tools/replay_report.h").read_text()
    return set(re.findall(r"^//   (\S+)", header.split("Keys of a replay:")[1].split("#ifndef")[0], re.M))


def keys_of(value, key=""):
    if isinstance(value, dict):
        ends = {frozenset(WAITS): "WAIT", frozenset({"hbm", "pinned", "nvme"}): "TIER"}
        if frozenset(value) in ends:
            return {f"{key}.{ends[frozenset(value)]}"}
        return set().union(*(keys_of(inner, f"{key}.{name}" if key else name) for name, inner in value.items()))
    if isinstance(value, list):
        return set().union(*(keys_of(inner, f"{key}[]") for inner in value))
    return {key}


def test_a_real_step_is_replayed_as_recorded_and_as_given(trace):
    report, file = trace
    told = replayed(file, "--pinned", "1GiB", "--nvme-rate", "7GB/s", "--link-rate", "3GB/s")
    assert keys_of(told) == keys_listed()
    assert told["parameters"] == report["parameters"] and told["units"] == report["units"]
    assert told["measured_step_seconds"] == report["steps"]["seconds"]["p50"]
    recorded, given = told["replays"]
    assert recorded["name"] == "as recorded" and given["name"] == "as given"
    assert recorded["planned_bytes"] == report["planned_bytes"]
    assert recorded["budgets_bytes"] == report["budgets_bytes"]
    assert recorded["nvme_read_bytes"] == report["step_traffic"]["nvme_read_bytes"]
    assert recorded["nvme_bytes_per_second"] == MACHINE["nvme_bytes"]
    assert given["budgets_bytes"]["pinned"] == 1 << 30 and given["planned_bytes"]["nvme"] == 0
    assert given["nvme_bytes_per_second"] == 7e9 and given["link_bytes_per_second"] == 3e9
    for one in told["replays"]:
        assert one["scale"] == 1
        assert one["step_seconds"] >= 0.99 * one["floor_seconds"] > 0
        spent = one["own_seconds"] + sum(one["waited_seconds"].values())
        assert one["step_seconds"] == pytest.approx(spent, rel=0.1)
    assert [r["name"] for r in replayed(file)["replays"]] == ["as recorded"]


def test_slower_drives_are_waited_for(trace):
    report, file = trace
    budget = ("--pinned", report["pinned"]["least_bytes"])
    steps = [replayed(file, *budget, "--nvme-rate", rate)["replays"][1] for rate in ("1MB/s", "4MB/s", "1TB/s")]
    assert [s["step_seconds"] for s in steps] == sorted((s["step_seconds"] for s in steps), reverse=True)
    moved = steps[0]["nvme_read_bytes"] + steps[0]["nvme_write_bytes"]
    assert moved > 0
    for step, rate in zip(steps, (1e6, 4e6)):
        assert step["own_seconds"] + moved / rate > step["step_seconds"] > 0.9 * (moved / rate - step["own_seconds"])
    assert steps[0]["waited_seconds"]["drive"] > 0.5 * steps[0]["step_seconds"]


def test_the_page_says_the_same(trace):
    made = sluice(trace[1], "--pinned", "1GiB")
    assert made.returncode == 0
    for word in ("as recorded", "as given", "floor", "pinned", "was measured, the median"):
        assert word in made.stdout


def test_what_cannot_be_is_refused_by_name(trace, tmp_path):
    _, file = trace
    whole = json.loads(file.read_text())

    def refused(why, code, change=None, *options):
        path = tmp_path / "trace.json"
        path.write_text(json.dumps(whole) if change is None else change if isinstance(change, str) else json.dumps(whole | change))
        made = sluice(path, *options)
        assert made.returncode == code and made.stdout == "", made.stdout
        assert made.stderr.startswith("sluice: ") and why in made.stderr, made.stderr

    def with_sluice(**change):
        return {"sluice": whole["sluice"] | change}

    report = whole["sluice"]["report"]
    no_rates = {"steps": report["steps"] | {"rates": dict.fromkeys(report["steps"]["rates"])}}
    refused("is not JSON", 2, "{")
    refused("holds no recording", 2, json.dumps({"traceEvents": []}))
    refused("is nested too deeply", 2, '{"sluice": ' + "[" * 100 + "]" * 100 + "}")
    refused("no step was recorded", 2, with_sluice(calls={"kinds": "", "index": [], "own_ns": []}))
    refused("'version' is missing", 2, with_sluice(version=2))
    refused("of several ranks", 2, with_sluice(report=report | {"ranks": report["ranks"] | {"ranks": 2}}))
    refused("give --nvme-rate", 2, with_sluice(report=report | no_rates))
    refused("pinned budget of 4 KiB", 1, None, "--pinned", "4KiB")
    made = sluice(file, "--nvme-rate", "fast")
    assert made.returncode == 2 and "is not a rate; write it like 3GB/s" in made.stderr
    made = sluice(tmp_path / "none.json")
    assert made.returncode == 2 and "No such file" in made.stderr


def test_without_rates_of_the_run_the_ones_given_do(trace, tmp_path):
    whole = json.loads(trace[1].read_text())
    steps = whole["sluice"]["report"]["steps"]
    steps["rates"] = dict.fromkeys(steps["rates"])
    (tmp_path / "trace.json").write_text(json.dumps(whole))
    (only,) = replayed(tmp_path / "trace.json", "--nvme-rate", "1GB/s")["replays"]
    assert only["name"] == "as given" and only["link_bytes_per_second"] is None
