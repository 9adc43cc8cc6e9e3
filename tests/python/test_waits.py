"""What an engine knows of its own speed: steps, their floor, what was waited for, and that it says so at its end."""

import logging

import pytest
from adamw_loop import TIERS, make_model, train
from test_endings import make, x
from training import config

import sluice

STEPS = 5
RATES = {"forward_seconds": 0.25, "backward_seconds": 0.5}
ENDS = ["close", "destroy"]


def trained(tmp_path, steps=STEPS, trace=False, **rates):
    given = config(tmp_path) | {"train_batch_size": 6}
    if trace:
        given["sluice"] = {**given["sluice"], "trace_spans": 10_000}
    engine, *_ = sluice.initialize(model=make(), config=given)
    if rates:
        engine.runtime.set_rates(**rates)
    for _ in range(steps):
        engine.backward(engine(x()).square().mean())
        engine.step()
    return engine


def said(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "sluice"]


def test_steps_are_timed_and_held_against_the_floor_of_the_rates_given(tmp_path):
    engine = trained(tmp_path, **RATES)
    report = engine.report()
    steps = report["steps"]
    assert steps["count"] == STEPS - 1 == len(steps["latest_seconds"])
    assert steps["floor_seconds"] == {**dict.fromkeys(steps["floor_seconds"], 0), **engine.runtime.floor(**RATES)}
    total = steps["floor_seconds"]["total"]
    assert steps["latest_efficiencies"] == [pytest.approx(total / seconds) for seconds in steps["latest_seconds"]]
    assert steps["rates"]["backward_seconds"] == RATES["backward_seconds"]
    waited = report["waited_for"]
    assert 0 <= sum(waited["seconds"].values()) <= waited["of_seconds"]
    assert f"{STEPS - 1} steps timed" in waited["words"]
    engine.runtime.reset_counters()
    assert engine.report()["steps"]["count"] == 0
    assert engine.report()["steps"]["rates"] == steps["rates"]
    engine.close()


@pytest.mark.parametrize("rates", [{}, RATES], ids=["without rates", "with rates"])
def test_without_rates_there_is_no_floor(tmp_path, rates):
    engine = trained(tmp_path, **rates)
    steps = engine.report()["steps"]
    known = [*steps["floor_seconds"].values(), *steps["rates"].values(), steps["efficiency"], *steps["latest_efficiencies"]]
    assert all((value is not None) == bool(rates) for value in known)
    engine.close()


@pytest.mark.parametrize("end", ENDS)
def test_the_end_says_what_was_waited_for_to_whoever_listens(tmp_path, caplog, end):
    engine = trained(tmp_path)
    with caplog.at_level(logging.INFO, logger="sluice"):
        getattr(engine, end)()
        getattr(engine, end)()
    (words,) = said(caplog)
    assert words.startswith(f"{STEPS - 1} steps timed, the median ") and "waited" in words


def test_the_optimizer_alone_says_it_too(caplog):
    model = make_model()
    optimizer = sluice.AdamW(model.parameters(), **TIERS)
    train(model, optimizer)
    with caplog.at_level(logging.INFO, logger="sluice"):
        optimizer.close()
    (words,) = said(caplog)
    assert "steps timed" in words


def test_nothing_is_said_where_nothing_happened_or_nobody_listens(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="sluice"):
        sluice.initialize(model=make(), config=config(tmp_path) | {"train_batch_size": 6})[0].close()
    with caplog.at_level(logging.WARNING, logger="sluice"):
        trained(tmp_path).close()
    assert said(caplog) == []


def test_rates_that_are_none_are_refused_by_name(tmp_path):
    engine = trained(tmp_path, steps=1)
    for name in ("forward_seconds", "nvme_bytes"):
        with pytest.raises(sluice.SluiceError, match=name):
            engine.runtime.set_rates(**{name: -1.0})
    assert engine.report()["steps"]["efficiency"] is None
    engine.close()
