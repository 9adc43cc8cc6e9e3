"""`sluice report`: a run as a page that any reader of XML takes, with every figure of its input, whatever that holds."""

import copy
import json
import os
import random
import re
import shutil
import subprocess
import xml.etree.ElementTree
import zlib

import pytest
from conftest import ROOT
from test_waits import RATES, trained

PROGRAM = ROOT / "build/release/tools/sluice"
HOSTILE = "</title><script>alert('1')</script>\"&amp;<b onload=x>]]>\x01\x7f\ufffe\uffff\u202e\U0001f600"
CHROMIUM = shutil.which("chromium")


def sluice(*arguments):
    return subprocess.run([PROGRAM, "report", *map(str, arguments)], capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(report, trace file) of a real run."""
    if not PROGRAM.exists():
        pytest.skip("there is no sluice command: build the target sluice_cli")
    path = tmp_path_factory.mktemp("run")
    engine = trained(path, **RATES, trace=True)
    report = engine.report()
    engine.write_trace(path / "trace.json")
    engine.close()
    return report, path / "trace.json"


@pytest.fixture
def page(tmp_path):
    """page(report, trace=None) -> the page of it, as text."""

    def make(report, trace=None):
        (tmp_path / "run.json").write_text(json.dumps(report))
        made = sluice(tmp_path / "run.json", "-o", tmp_path / "run.html", *(["--trace", trace] if trace else []))
        assert made.returncode == 0, made.stderr
        return (tmp_path / "run.html").read_text()

    return make


def parsed(text):
    return xml.etree.ElementTree.fromstring(text)


def words(element):
    return " ".join(" ".join(element.itertext()).split())


def leaves(value, key=""):
    """(key, text) of every value, as the page lists them: what a list of plain values holds is one."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from leaves(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list) and any(isinstance(inner, (dict, list)) for inner in value):
        for number, inner in enumerate(value):
            yield from leaves(inner, f"{key}[{number}]")
    else:
        yield key, value


def told(text):
    """The value that a cell of the list of all figures shows."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def figures(root):
    (table,) = (t for t in root.iter("table") if t.get("class") == "all")
    return {"".join(key.itertext()): "".join(value.itertext()) for key, value in table.iter("tr")}


def same(shown, value):
    if isinstance(value, list):
        return shown == "[]" if not value else [told(part) for part in shown.split(", ")] == value
    return shown == value if isinstance(value, str) else told(shown) == value


def test_every_figure_of_the_report_is_on_the_page(run, page):
    report, trace = run
    for given in (report, {"losses": [1.5, 2.25], "report": report}):
        shown = figures(parsed(page(given, trace)))
        expected = dict(leaves(given))
        assert shown.keys() == expected.keys()
        for key, value in expected.items():
            assert same(shown[key], value), (key, shown[key], value)


def test_the_page_needs_nothing_but_itself(run, page):
    text = page(*run)
    root = parsed(text)
    assert not {"script", "link", "img", "iframe", "object", "embed", "a"} & {element.tag for element in root.iter()}
    assert not re.search(r"url\(|@import|\bsrc=|href=|https?:", text)
    drawn = [e for e in root.iter() if e.tag == "svg" or e.get("role") == "img"]
    assert len(drawn) > 8
    assert all(e.get("aria-label") for e in drawn), "what is drawn is said in words"
    tracks = {words(e).split(" ")[0] for e in root.iter("div") if e.get("class") == "label"}
    assert {"gradients", "AdamW"} <= tracks


def test_hostile_names_are_text(run, page, tmp_path):
    report = copy.deepcopy(run[0])
    hostile = {key: HOSTILE for key in ("device", "engine", "executor", "failure")}
    report.update(hostile)
    report["drives"][0]["path"] = HOSTILE
    report["drives"].append(report["drives"][0])
    report["waited_for"]["words"] = HOSTILE
    report[HOSTILE] = {HOSTILE: [HOSTILE]}
    events = [{"ph": "M", "tid": 1, "name": "thread_name", "args": {"name": HOSTILE}}]
    events += [{"ph": "X", "tid": 1, "name": HOSTILE, "ts": 0, "dur": 5}]
    events += [{"ph": "M", "tid": 2, "name": "thread_name", "args": {"name": "compute"}}]
    events += [{"ph": "X", "tid": 2, "name": HOSTILE, "ts": 0, "dur": 5}]
    (tmp_path / "trace.json").write_text(json.dumps({"traceEvents": events}))
    text = page(report, tmp_path / "trace.json")
    root = parsed(text)
    shown = HOSTILE.replace("\x01", "\\x01").replace("\x7f", "\\x7f").replace("\ufffe", "\\ufffe").replace("\uffff", "\\uffff")
    assert not {"script", "b"} & {element.tag for element in root.iter()}
    assert not {name for element in root.iter() for name in element.attrib if name.startswith("on")}
    assert figures(root)[f"{shown}.{shown}"] == shown
    assert text.count("&lt;script&gt;") > 10


@pytest.mark.parametrize("other", [None, "x", -1, 0, 1e300, 12345678901234567890, [], {}, [None, "x", 1e300, [1]]], ids=repr)
def test_a_figure_that_is_missing_or_no_number_harms_nothing(run, page, other):
    def changed(value, chance, choose):
        if isinstance(value, dict):
            return {k: changed(v, chance, choose) for k, v in value.items() if choose.random() >= chance / 8}
        if isinstance(value, list):
            return [changed(v, chance, choose) for v in value]
        return copy.deepcopy(other) if choose.random() < chance else value

    for seed, chance in enumerate((0.1, 0.5, 1)):
        report = changed(run[0], chance, random.Random(seed))
        for key in ("planned_bytes", "counters", "steps", "waited_for"):
            report.setdefault(key, {})
        parsed(page(report, run[1]))


WRONG_RUNS = {
    "nothing": (None, "No such file"),
    "no JSON": ("{", "is not JSON"),
    "a list": ("[1]", "must hold an object"),
    "something else": ('{"steps": 3}', "is no report of a run"),
    "another tool's": ('{"planned_bytes": {}, "counters": {}, "steps": 3, "waited_for": {}}', "has no 'steps'"),
    "deep": ('{"a":' * 2000 + "1" + "}" * 2000, "is nested too deeply"),
}
WRONG_TRACES = {
    "nothing": (None, "No such file"),
    "no JSON": ('{"traceEvents": [{', "is not JSON"),
    "no trace": ('{"events": []}', "has no list 'traceEvents'"),
    "a list": ("[]", "has no list 'traceEvents'"),
    "empty": ('{"traceEvents": []}', "has no spans"),
    "no spans": ('{"traceEvents": [{"ph": "X", "tid": 1, "name": "a", "ts": 1, "dur": -5}, 7, [[]]]}', "has no spans"),
    "many threads": (
        json.dumps({"traceEvents": [{"ph": "X", "tid": n, "name": "a", "ts": 1, "dur": 1} for n in range(10_001)]}),
        "has more than 10000 threads",
    ),
}


@pytest.mark.parametrize("wrong", WRONG_RUNS, ids=str)
def test_what_is_no_report_is_refused_by_name(run, tmp_path, wrong):
    text, why = WRONG_RUNS[wrong]
    path = tmp_path / "run.json"
    if text is not None:
        path.write_text(text)
    refused(tmp_path, why, path, path)


@pytest.mark.parametrize("wrong", WRONG_TRACES, ids=str)
def test_what_is_no_trace_is_refused_by_name(run, tmp_path, wrong):
    text, why = WRONG_TRACES[wrong]
    path = tmp_path / "trace.json"
    if text is not None:
        path.write_text(text)
    (tmp_path / "run.json").write_text(json.dumps(run[0]))
    refused(tmp_path, why, path, tmp_path / "run.json", "--trace", path)


def test_what_is_no_file_is_not_waited_for(run, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(run[0]))
    os.mkfifo(tmp_path / "fifo")
    for odd in (tmp_path / "fifo", tmp_path):
        refused(tmp_path, "is not a regular file", odd, odd)
        refused(tmp_path, "is not a regular file", odd, tmp_path / "run.json", "--trace", odd)


def refused(tmp_path, why, path, *arguments):
    made = sluice(*arguments, "-o", tmp_path / "run.html")
    assert made.returncode == 2, made.stderr
    assert made.stderr.startswith("sluice: ") and str(path) in made.stderr and why in made.stderr
    assert made.stdout == "" and not list(tmp_path.glob("run.html*"))


def test_a_page_that_cannot_be_written_leaves_nothing(run, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(run[0]))
    made = sluice(tmp_path / "run.json", "-o", tmp_path / "missing" / "run.html")
    assert made.returncode == 1 and made.stderr.startswith("sluice: making ")
    if os.path.exists("/dev/full"):
        with open("/dev/full", "w") as full:
            made = subprocess.run([PROGRAM, "report", tmp_path / "run.json", "-o", "-"], stdout=full, stderr=subprocess.PIPE)
        assert made.returncode == 1


def test_a_page_takes_the_place_of_nothing_else(run, tmp_path):
    given, link, fifo = tmp_path / "run.json", tmp_path / "link.html", tmp_path / "fifo"
    given.write_text(json.dumps(run[0]))
    os.mkfifo(fifo)
    for output in (given, fifo):
        assert sluice(given, "-o", output).returncode == 1
    assert json.loads(given.read_text()) == run[0] and fifo.is_fifo()
    (tmp_path / "page.html").write_text("old")
    link.symlink_to("page.html")
    assert sluice(given, "-o", link).returncode == 0
    assert link.is_symlink() and "<html" in (tmp_path / "page.html").read_text()


def test_the_picture_is_of_the_step_of_median_length(run, page, tmp_path):
    events = [{"ph": "M", "tid": 1, "name": "thread_name", "args": {"name": "compute"}}]
    events += [{"ph": "M", "tid": n, "name": "thread_name", "args": {"name": f"nvme read {n}"}} for n in (2, 3)]
    for at, name, length in [(0, "step", 1), (1, "forward", 3), (4, "step", 1), (5, "forward", 5), (10, "step", 1)]:
        events.append({"ph": "X", "tid": 1, "name": name, "ts": at * 1e6, "dur": length * 1e6})
    events += [{"ph": "X", "tid": 1, "name": "forward", "ts": 11e6, "dur": 9e6}]
    events += [{"ph": "X", "tid": 1, "name": "step", "ts": 20e6, "dur": 1e6}]
    events += [{"ph": "X", "tid": 2, "name": "read 7", "ts": 5e6, "dur": 3e6}]  # steps end at 1, 5, 11 and 21 s
    events += [{"ph": "X", "tid": 3, "name": "read 8", "ts": 6e6, "dur": 1e6}]
    (tmp_path / "trace.json").write_text(json.dumps({"traceEvents": events}))
    text = words(parsed(page(run[0], tmp_path / "trace.json")))
    assert "The step of 6 s, which is the median" in text
    assert "compute forward 5 s, step 1 s" in text
    assert "nvme read 50% of the time, at most 2 at once" in text


def test_each_step_is_drawn_with_its_efficiency(run, page):
    report = copy.deepcopy(run[0])
    report["steps"] |= {"latest_seconds": [0.5, 2, 1], "latest_efficiencies": [None, 0.25, 1]}
    root = parsed(page(report))
    assert "efficiencies, floor over step, are 0.25 to 1.00." in words(root)
    (steps,) = (e for e in root.iter("svg") if e.get("class") == "steps")
    drawn = [(words(e), e.get("height")) for e in steps if e.get("class") != "floor"]
    assert drawn == [("500 ms", "25.00"), ("2 s, efficiency 0.25", "100.00"), ("1 s, efficiency 1.00", "50.00")]
    assert [e.get("y") for e in steps if e.get("class") == "floor"] == ["75.00", "50.00"]


def test_drives_have_times_of_their_own(run, page):
    report = copy.deepcopy(run[0])
    kinds = {"queue_wait_ns": "queue", "read_ns": "read", "write_ns": "write"}
    report["drives"] = [
        report["drives"][0] | {"path": path} | {key: {"count": at, "p50": at * 1e3, "p99": at * 1e6, "max": at * 1e9} for key in kinds}
        for at, path in ((2, "/a"), (3, "/b"))
    ]
    text = words(parsed(page(report)))
    for at, path in ((2, "/a"), (3, "/b")):
        for kind in kinds.values():
            assert f"{path} : {kind} {at} {at} µs {at} ms {at} s" in text


def test_advice_on_pinned_memory_is_arithmetic(run, page):
    report = copy.deepcopy(run[0])
    mib = 1 << 20
    report["planned_bytes"]["pinned"] = 100 * mib
    report["nvme"] |= {"states_bytes": 400 * mib, "gradients_bytes": 0}
    report["step_traffic"] |= {"nvme_read_bytes": 400 * mib, "nvme_write_bytes": 400 * mib}
    report["steps"]["rates"] |= {"nvme_bytes": 200 * mib, "shared_cores": True}
    terms = {"backward": 1, "gradients": 0, "forward": 1, "update": 1, "checksum": 0.5, "copies": 0, "io": 4, "spill": 0, "total": 5}
    report["steps"]["floor_seconds"] |= terms
    text = words(parsed(page(report)))
    # Drives are the longest by 1.5 s, which is 300 MiB that need not be moved: read or written, so half of them.
    assert "Give pinned RAM 250 MiB instead of 100 MiB." in text
    assert "150 MiB more removes 300 MiB of that, 1.5 s of a step" in text
    report["steps"]["floor_seconds"]["io"] = 2
    report["waited_for"]["share"]["drive"] = 0
    assert "Give pinned RAM" not in words(parsed(page(report)))


# ---- In a browser


def chromium(*arguments):
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def first_pixel(path):
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG") and data[25] in (2, 6)
    at, chunks = 8, b""
    while at < len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        chunks += data[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        at += 12 + length
    return tuple(zlib.decompress(chunks)[1:4])  # whatever the filter


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
def test_a_browser_draws_it_light_and_dark_and_on_a_phone(run, page, tmp_path):
    text = page(*run)
    for scheme, back in ((1, (0xFF, 0xFF, 0xFF)), (0, (0x15, 0x18, 0x1C))):
        shot = tmp_path / "page.png"
        chromium(f"--blink-settings=preferredColorScheme={scheme}", "--window-size=800,600", f"--screenshot={shot}",
                 f"file://{tmp_path / 'run.html'}")
        assert first_pixel(shot) == back
    for width in (1280, 390, 320):  # nothing is wider than the screen
        frame = text.replace("&", "&amp;").replace('"', "&quot;")
        (tmp_path / "outer.html").write_text(
            f'<iframe id="f" style="width:{width}px;height:900px;border:0" srcdoc="{frame}"></iframe><script>'
            "onload = () => { const d = document.getElementById('f').contentDocument; document.title ="
            "'wide ' + d.documentElement.scrollWidth + ' tall ' + d.documentElement.scrollHeight; };</script>"
        )
        seen = chromium("--dump-dom", f"file://{tmp_path / 'outer.html'}").stdout
        wide, tall = map(int, re.search(r"<title>wide (\d+) tall (\d+)</title>", seen).groups())
        assert wide <= width and tall > 1000
