"""The text of a configuration: whatever it is, it is read, or refused by a ConfigError that names the file and the place."""

import base64
import json
import os
import pathlib
import random

import pytest
import sluice
from sluice.deepspeed import config_file
from sluice.config import load_config
from sluice.deepspeed.config_keys import KEYS

EMPTY = {
    "nothing": b"",
    "whitespace": b" \n\t\r\n",
    "a byte order mark": b"\xef\xbb\xbf",
    "a comment of HJSON": b"# nothing here\n",
    "comments": b"// nothing {}\n/* nor here: {} */\n",
}
NO_OBJECT = {"null": b"null", "list": b"[]", "text": b'""', "word": b'"train"', "number": b"5", "true": b"true", "nan": b"NaN"}
DEEP = 200_000
BROKEN = {
    "half": b'{"train_batch_size": 1',
    "twice": b'{"aio": {}, "aio": {}}',
    "twice inside": b'{"aio": {"block_size": 1, "block_size": 2}}',
    "deep lists": b'{"x": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "deep and open": b"[" * DEEP,
    "latin-1": '{"sluice": {"nvme_path": "/é"}}'.encode("latin-1"),
    "utf-16": '{"train_batch_size": 1}'.encode("utf-16"),
    "utf-32": '{"train_batch_size": 1}'.encode("utf-32"),
    "binary": bytes(range(256)),
    "zeros": bytes(4096),
    "many digits": b'{"train_batch_size": ' + b"9" * 5000 + b"}",
    "large": b'{"train_batch_size": 1e999}',
    "infinite": b'{"gradient_clipping": Infinity}',
    "not a number": b'{"gradient_clipping": NaN}',
    "400 digits": b'{"gradient_clipping": ' + b"9" * 400 + b"}",
    "400 digits of a schedule": b'{"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": ' + b"9" * 400 + b"}}}",
}


def given(tmp_path, text):
    path = tmp_path / "ds.json"
    path.write_bytes(text)
    return path


def refused(config):
    with pytest.raises(sluice.ConfigError) as error:
        load_config(config)
    assert len(str(error.value)) < 1000
    return str(error.value)


@pytest.mark.parametrize("what", EMPTY)
@pytest.mark.parametrize("hjson", [True, False])
def test_a_file_that_says_nothing_is_an_error_that_names_it(tmp_path, monkeypatch, what, hjson):
    """Else a run that wrote its configuration to a full disk would train on defaults."""
    if not hjson:
        monkeypatch.setitem(__import__("sys").modules, "hjson", None)
    words = refused(given(tmp_path, EMPTY[what]))
    assert words.startswith(f"config file {tmp_path}/ds.json ")
    if hjson:
        assert "empty" in words or "nothing but comments" in words


def test_an_empty_object_is_all_defaults(tmp_path):
    for text in (b"{}", b" {\n}\n", b"{ # none\n}", b"\xef\xbb\xbf{}"):
        assert load_config(given(tmp_path, text)) == load_config({})


@pytest.mark.parametrize("what", NO_OBJECT)
def test_what_is_no_object_is_refused_by_name(tmp_path, what):
    assert f"config file {tmp_path}/ds.json: the config: must be an object, not" in refused(given(tmp_path, NO_OBJECT[what]))


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_text_is_refused_by_the_name_of_its_file(tmp_path, what):
    assert refused(given(tmp_path, BROKEN[what])).startswith(f"config file {tmp_path}/ds.json")


def test_the_place_is_named(tmp_path):
    for text, words in [
        (b'{\n"train_batch_size": }', "line 2"),
        ('{\n"x": "é"}'.encode("latin-1"), "is not UTF-8: byte 0xe9 in line 2"),
        (b'{"aio": {}, "aio": {}}', "key 'aio' is given twice"),
        (b'{"zero_optimization": {"stage": 7}}', "zero_optimization.stage: must be one of"),
        (b'{"sluice": {"workers": 1e999}}', "sluice.workers: must be a whole number, not inf"),
    ]:
        assert words in refused(given(tmp_path, text))


def test_a_byte_order_mark_is_left_out(tmp_path):
    assert load_config(given(tmp_path, b'\xef\xbb\xbf{"train_batch_size": 6}')).micro_batch == 6


# ---- What is no file to read


def test_nothing_is_read_without_end(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    large = tmp_path / "large"
    with open(large, "wb") as file:
        file.truncate(1 << 40)
    secret = given(tmp_path, b"{}")
    secret.chmod(0)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, words in [
        (tmp_path / "fifo", "not a regular file"),
        ("/dev/zero", "not a regular file"),
        ("/dev/null", "not a regular file"),
        (large, "has more than 16 MiB"),
        (tmp_path, "can't be read: .*directory"),
        (tmp_path / "loop", "can't be read|does not exist"),
        (tmp_path / "none", "does not exist"),
        (tmp_path / "ds.json" / "x", "can't be read"),
        *([(secret, "can't be read")] if os.geteuid() else []),
    ]:
        with pytest.raises(sluice.ConfigError, match=f"config file {path} .*({words})"):
            load_config(path)


@pytest.mark.parametrize("name", ["", "\0", "a\0b", b"a\0b", "\ud800", "é", "e" * 300, "e" * 5000, b"\xff\xfe", "ds", "abcd", "e30"])
def test_a_name_of_no_file_is_refused(name):
    assert "config" in refused(name)


def test_a_path_may_be_bytes_and_need_not_be_utf_8(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff\xe9.json"
    pathlib.Path(os.fsdecode(path)).write_text('{"train_batch_size": 6}')
    for form in (path, os.fsdecode(path), pathlib.Path(os.fsdecode(path))):
        assert load_config(form).micro_batch == 6


@pytest.mark.parametrize("text", ['{"train_batch_size": }', '{"aio": {}, "aio": {}}', '{"stage": 1}', "{" * 50_000])
def test_a_base64_text_is_refused_as_such(text):
    assert refused(base64.urlsafe_b64encode(text.encode()).decode()).startswith("the base64 config")


def test_other_things_are_refused():
    for config in (5, None, [], ("a",), 1.5, True, object()):
        if config is not None:
            refused(config)


# ---- Texts by the thousand

ATOMS = [None, True, False, 0, 1, -1, 5e8, 2**31, 2**63, 2**64, 10**40, 1e308, 0.1, "", "auto", "cpu", "nvme", "AdamW", "\0", "é",
         "1GiB", "9" * 40, [], {}, [1, 2], [0.9, 0.999], {"enabled": True}, {"device": "nvme", "nvme_path": "/tmp"}]  # fmt: skip
RAW = ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 400, "0x10", "'x'", "", "{", "]", "\\", "\x00", "#", "//", "/*", "\ufeff",
       "\ud7ff", "{}{}", '"\\ud800"', '"\\u0000"']  # fmt: skip
SCHEDULES = ["WarmupLR", "WarmupDecayLR", "WarmupCosineLR", "OneCycle", "LRRangeTest", "StepLR"]


def some_config(draw, keys=KEYS):
    """A configuration of known keys, with values that often don't fit."""
    result = {}
    for name in draw.sample(sorted(keys), draw.randint(0, min(4, len(keys)))):
        below = keys[name]
        if isinstance(below, dict) and draw.random() < 0.8:
            result[name] = some_config(draw, below)
        elif name == "type" and draw.random() < 0.5:
            result[name] = draw.choice(SCHEDULES)
        else:
            result[name] = draw.choice(ATOMS)
    return result


def some_text(draw):
    text = json.dumps(some_config(draw))
    for _ in range(draw.choice([0, 0, 1, 1, 2, 5])):
        at = draw.randrange(len(text) + 1)
        cut = draw.choice([0, 0, 1, 4])
        text = text[:at] + draw.choice([*RAW, *'{}[]:,"019eE.-+ \n']) + text[at + cut :]
    data = text.encode("utf-8", "surrogatepass")
    if draw.random() < 0.1:
        at = draw.randrange(len(data) + 1)
        data = data[:at] + bytes([draw.randrange(256)]) + data[at:]
    return data


@pytest.mark.parametrize("seed", range(8))
def test_whatever_the_text_only_a_config_error_escapes(tmp_path, seed):
    draw = random.Random(seed)
    path = tmp_path / "ds.json"
    read = 0
    for _ in range(400):
        text = some_text(draw)
        path.write_bytes(text)
        try:
            load_config(path)
            read += 1
        except sluice.ConfigError as error:
            assert str(error).startswith(f"config file {path}"), text
        except Exception as error:
            raise AssertionError(f"{text!r} gave {error!r}") from error
    assert 0 < read < 400  # else the texts are all good, or all bad


def test_the_file_is_closed_whatever_is_in_it(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for text in (*EMPTY.values(), *BROKEN.values()):
        refused(given(tmp_path, text))
    refused(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before
    assert config_file.load_file(given(tmp_path, b'{"a": 1}')) == {"a": 1}
