"""What model.json and run.safetensors must be made of: what is saved is taken; whatever else stands in any place is refused by words
that name the place, and by no other error."""

import copy
import json

import checkpoint_jobs as jobs
import pytest
import torch
from training import config, mlp, same

import sluice
from sluice.checkpoints import generation, masters, structure
from sluice.engine import run_values
from sluice.utils import zero_to_fp32

# None of these is what is needed anywhere but where _FINE says so.
OTHERS = [None, True, -1, 1.5, "text", [], {}, [1e999], [-1], [[1]], {"a": 1}, 1 << 70, float("nan"), b"x", (1,), torch.ones(1)]
IN_JSON = [other for other in OTHERS if not isinstance(other, (bytes, tuple, torch.Tensor))]


def model():
    module = jobs.model("odd")
    found = run_values.model(module, lambda parameter: False)
    assert found["tensors"] and found["buffers"] and any(tensor["aliases"] for tensor in found["tensors"].values())
    return found


def _needed_of_model(found):
    """(holder's steps, key, what else may stand there) of all that is looked at."""
    yield (), "format", lambda other: False
    yield (), "version", lambda other: False
    yield (), "tensors", lambda other: other == {}
    yield (), "buffers", lambda other: other == {}
    is_list = lambda other: other == []
    for part in ("tensors", "buffers"):
        for name in found[part]:
            yield (part, name), "shape", is_list
            yield (part, name), "dtype", lambda other: False
            yield (part, name), "aliases", is_list
    for name in found["tensors"]:
        yield ("tensors", name), "frozen", lambda other: other is True
    for name in found["buffers"]:
        yield ("buffers", name), "at", lambda other: other == 1 << 70  # plain.py says that no tensor has that number


def _changed(values, steps, key, other=None, remove=False):
    found = holder = copy.deepcopy(values)
    for step in steps:
        holder = holder[step]
    if remove:
        del holder[key]
    else:
        holder[key] = other
    return found


def test_what_is_saved_is_taken_and_everything_else_refused():
    whole = model()
    assert (whole["format"], whole["version"]) == (structure.MODEL_FORMAT, structure.MODEL_VERSION)
    taken = structure.model(json.dumps({**whole, "more": 1}))
    assert taken["tensors"].keys() == whole["tensors"].keys() and all(type(t["shape"]) is tuple for t in taken["tensors"].values())
    for steps, key, is_fine in _needed_of_model(whole):
        with pytest.raises(ValueError, match=f"lacks '{key}'|its {key} is None"):
            structure.model(json.dumps(_changed(whole, steps, key, remove=True)))
        for other in IN_JSON:
            text = json.dumps(_changed(whole, steps, key, other))
            if is_fine(other):
                structure.model(text)
            else:
                with pytest.raises(ValueError, match=key):
                    structure.model(text)
    for part in ("tensors", "buffers"):
        for other in IN_JSON:
            with pytest.raises(ValueError, match=part):
                structure.model(json.dumps(_changed(whole, (part,), "a", other)))


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "no JSON"), ("{", "no JSON"), (b"\xff\xfe\xff", "no JSON"), ("[" * 100000, "no JSON"), ("9" * 10000, "no JSON"), ("[]", "no dict"),
        ("{}", "its format is None"), ('{"format":"else","version":99,"tensors":{}}', "its format is 'else', not 'sluice model'"),
        ('{"format":"sluice model","version":99,"tensors":{}}', "a newer Sluice wrote it: its version is 99, and this one reads 1"),
        ('{"format":"sluice model","version":true}', "its version is True"), ('{"format":"sluice model","version":0}', "its version is 0"),
        ('{"format":"sluice model","version":1.0}', "its version is 1.0"),
    ],
)  # fmt: skip
def test_what_is_no_model_is_refused_by_words(text, words):
    with pytest.raises(ValueError, match=words):
        structure.model(text)


def test_shapes_that_are_none():
    for shape in ([1e999], [float("nan")], [1.0], ["1"], [True], [-1], [1 << 40, 1 << 40], [1 << 200], [[1]], [None]):
        for part in ("tensors", "buffers"):
            whole = model()
            next(iter(whole[part].values()))["shape"] = shape
            with pytest.raises(ValueError, match=rf"^{part}\[.*\]\['shape'\] is "):
                structure.model(json.dumps(whole))


def test_a_name_of_two():
    whole = model()
    whole["buffers"]["same"], whole["tensors"]["same"] = next(iter(whole["buffers"].values())), next(iter(whole["tensors"].values()))
    with pytest.raises(ValueError, match="'same' is a buffer and a tensor"):
        structure.model(json.dumps(whole))


# ---- What a run is


def _run_of_engine(tmp_path):
    engine = sluice.initialize(model=jobs.model("odd"), config=config(scheduler={"type": "WarmupLR", "params": {"warmup_num_steps": 5}}))[0]
    engine.save_checkpoint(tmp_path, client_state={"a": 1}, rng=True)
    found = generation.find(engine.runtime.library, None, tmp_path).run(0)
    engine.close()
    return found


def _run_of_adamw(tmp_path):
    optimizer = sluice.AdamW(mlp().parameters(), lr=1e-2)
    optimizer.save_checkpoint(tmp_path, client_state={"a": 1}, rng=True)
    found = generation.find(sluice.native.abi.Library.default(), None, tmp_path).run(0)
    optimizer.close()
    return found


_never, _list, _dict = (lambda other: False), (lambda other: type(other) is list and other == []), (lambda other: type(other) is dict)
_whole_number = lambda other: type(other) is int and other >= 0
_RNG = [(("rng",), "torch", torch.is_tensor), (("rng",), "python", lambda other: type(other) is tuple), ((), "rng", _never)]
NEEDED = {
    _run_of_engine: [
        ((), "buffers", lambda other: other == {} and type(other) is dict), ((), "extra_state", _dict), ((), "optimizer", _list),
        (("optimizer", 0), "params", _list), (("optimizer", 0), "options", _dict), ((), "lr_scheduler", lambda other: other is None),
        (("lr_scheduler",), "class", lambda other: type(other) is str), (("lr_scheduler",), "state", lambda other: True),
        ((), "counters", _never), *[(("counters",), key, _whole_number) for key in ("global_steps", "skipped_steps", "windows")],
        ((), "client_state", lambda other: True), *_RNG,
    ],
    _run_of_adamw: [
        ((), "kind", _never), ((), "parameters", _never), ((), "parts", lambda other: type(other) is int), ((), "groups", _list),
        (("groups", 0), "params", _list), (("groups", 0), "options", _dict), (("parameters",), "0 of group 0", _never),
        ((), "client_state", lambda other: True), *_RNG,
    ],
}  # fmt: skip


@pytest.mark.parametrize("make", NEEDED, ids=["engine", "AdamW"])
def test_a_run_is_taken_and_everything_else_refused(tmp_path, make):
    whole = make(tmp_path)
    assert structure.run({**whole, "more": 1})["client_state"] == {"a": 1}
    for steps, key, is_fine in NEEDED[make]:
        if key not in ("kind", "rng"):
            with pytest.raises(ValueError, match=f"lacks '{key}'"):
                structure.run(_changed(whole, steps, key, remove=True))
        for other in OTHERS:
            changed = _changed(whole, steps, key, other)
            if is_fine(other):
                structure.run(changed)
            else:
                with pytest.raises(ValueError, match=key):
                    structure.run(changed)
    with pytest.raises(ValueError, match="lacks"):
        structure.run({})


# ---- In a checkpoint


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda found: {"format": "else", "version": 99, "tensors": {}}, "its format is 'else'"),
        (lambda found: {**found, "version": 2}, "a newer Sluice wrote it: its version is 2"),
        (lambda found: _changed(found, ("tensors", "0.weight"), "shape", [1e999]), "tensors.'0.weight'..'shape'. is .inf., no sizes"),
        (lambda found: {key: value for key, value in found.items() if key != "buffers"}, "it lacks 'buffers'"),
    ],
)  # fmt: skip
def test_the_file_is_named(tmp_path, monkeypatch, change, words):
    engine = sluice.initialize(model=mlp(), config=config())[0]
    whole = generation.as_text
    with monkeypatch.context() as patch:
        patch.setattr(generation, "as_text", lambda found: whole(change(found)))
        engine.save_checkpoint(tmp_path)
    for load in (engine.load_checkpoint, masters.SavedModel, zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint):
        with pytest.raises(ValueError, match=f"^model.json of rank 0 in {tmp_path}/global_step0: {words}"):
            load(tmp_path)
    engine.close()


def test_shapes_that_are_not_of_what_was_saved(tmp_path, monkeypatch):
    """Of numbers and of bytes; those of buffers are held against the file that has them."""
    module = mlp()
    module.register_parameter("whole", torch.nn.Parameter(torch.arange(6), requires_grad=False))
    module.register_buffer("running", torch.arange(4.0))
    engine = sluice.initialize(model=module, config=config())[0]
    whole = generation.as_text
    for part, name in (("tensors", "0.bias"), ("tensors", "whole"), ("buffers", "running"), (None, None)):

        def written(found):
            return whole(_changed(found, (part, name), "shape", [5]) if part else found)

        with monkeypatch.context() as patch:
            patch.setattr(generation, "as_text", written)
            engine.save_checkpoint(tmp_path)
        if part:
            with pytest.raises(ValueError, match=f"in {tmp_path}/global_step0: .*{'shape' if part == 'tensors' else 'tensor 0 is not'}"):
                zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(tmp_path)
    found, wanted = zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(tmp_path), engine.fp32_state_dict()
    assert found.keys() == wanted.keys() and all(same(found[name], wanted[name]) for name in wanted)
    engine.close()
