"""Checkpoints of sluice.AdamW: states from the tiers, and the parameters themselves, so that one call saves a run."""

import os
import warnings

import torch

from ..checkpoints import generation, plain, randomness
from ..native import checkpoint_abi
from ..native.errors import SluiceError
from . import saved_groups
from .state_store import check_here

_PART_BYTES = 64 << 20  # of parameters in one file, at most, unless one has more
_CPU = torch.device("cpu")


class OptimizerCheckpoints:
    """Mixed into AdamW."""

    def save_checkpoint(self, save_dir, tag=None, client_state={}, save_latest=True, *, rng=False):
        """Saves parameters, states, groups and client_state (a dict of plain values and tensors: a model's buffers, a
        schedule's state_dict) as save_dir/tag (default `global_step{N}`, of its updates), which replaces one of that name; True
        when it is durable. A copy of the parameters is in RAM meanwhile. rng: also the states of random number generators.
        Gradients are not saved. Where several processes train, each has a directory of its own, or one of them saves. Errors:
        TypeError for what client_state can't hold, by its place; the library's: what was there before is there still."""
        self._check()
        store = self._started()
        self._settle()
        check_here(self._parameters(), self._name_of)
        if tag is None:
            tag = f"global_step{max(map(store.steps, store.parameters), default=0)}"
        generation.save(
            store.runtime, None, os.fspath(save_dir), str(tag), lambda: self._attachments(client_state, rng), latest=save_latest
        )
        return True

    def load_checkpoint(self, load_dir, tag=None):
        """Goes on as if the run that was saved had not stopped: the parameters have their values, and the groups their options.
        Returns (path, client_state); (None, None), with a warning, where load_dir has no checkpoint. tag: None: what
        load_dir/latest names, or the newest that is whole. The parameters' files are read twice, the first time to check them.
        Errors: NotFound for a tag that isn't there; ValueError where parameters or groups are others than the saved ones:
        nothing has changed then; DataLoss naming the file."""
        self._check_alive()
        self._settle()
        check_here(self._parameters(), self._name_of)
        store = self._started()
        found = generation.find(store.runtime.library, None, os.fspath(load_dir), None if tag is None else str(tag))
        if found is None:
            warnings.warn(f"load_checkpoint(): there is no checkpoint in {os.fspath(load_dir)}: nothing was loaded", stacklevel=2)
            return None, None
        saved = found.run(0)
        self._check_saved(saved, found)
        self._check_parts(saved, found)
        was_torn, self._torn = self._torn, True
        try:
            checkpoint_abi.load(store.runtime, os.fspath(load_dir), found.tag)
        except SluiceError:  # nothing has changed, or the runtime has failed
            self._torn = was_torn
            raise
        for part in _parts(saved, found):
            self._put_parameters(part)
        saved_groups.put(self, saved["groups"])
        if "rng" in saved:
            randomness.restore(saved["rng"], _CPU)
        self._torn = False
        return found.path, saved["client_state"]

    def _attachments(self, client_state, rng):
        names = self._places()
        parts, size = [{}], 0
        for parameter in self._parameters():
            if size and size + parameter.nbytes > _PART_BYTES:
                parts.append({})
                size = 0
            parts[-1][names[id(parameter)]] = parameter.detach()
            size += parameter.nbytes
        values = {
            "kind": "sluice.AdamW",
            "parameters": {names[id(p)]: [p.shape, p.dtype] for p in self._order()},
            "parts": len(parts),
            "groups": saved_groups.taken(self, lambda p: names[id(p)]),
            "client_state": client_state,
        }
        if rng:
            values["rng"] = randomness.states(_CPU)
        found = {generation.RUN: generation.as_bytes(plain.encode(values))}
        for number, part in enumerate(parts):
            found[_part_name(number)] = generation.as_bytes(plain.encode(part))
        return found

    def _places(self):
        """By id of Parameter: its name in checkpoints."""
        return {id(p): f"{n} of group {g}" for g, group in enumerate(self.param_groups) for n, p in enumerate(group["params"])}

    def _check_saved(self, saved, found):
        if saved.get("kind") != "sluice.AdamW":
            raise ValueError(f"{found.path} was not saved by sluice.AdamW: an engine loads it")
        names = self._places()
        saved_groups.check(self, lambda p: names[id(p)], saved["groups"])
        for parameter in self._order():
            shape, dtype = saved["parameters"][names[id(parameter)]]
            if (shape, dtype) != (parameter.shape, parameter.dtype):
                raise ValueError(
                    f"parameter {self._name_of(parameter)} is {_kind(parameter)}, and {dtype} of shape {tuple(shape)} was saved"
                )

    def _check_parts(self, saved, found):
        """Errors: ValueError unless they hold each parameter once, as it is here, and nothing else."""
        names = self._places()
        missing = {names[id(parameter)]: parameter for parameter in self._parameters()}
        for part in _parts(saved, found):
            for name, value in part.items():
                parameter = missing.pop(name, None)
                if parameter is None:
                    raise ValueError(f"{found.path} holds {name!r}, which is no parameter here, or was there before")
                if not isinstance(value, torch.Tensor) or (value.shape, value.dtype) != (parameter.shape, parameter.dtype):
                    raise ValueError(f"{found.path} holds other values of {name!r} than it says: not {_kind(parameter)}")
        if missing:
            raise ValueError(f"{found.path} lacks the values of {next(iter(missing))!r}")

    @torch.no_grad()
    def _put_parameters(self, part):
        names = self._places()
        for parameter in self._parameters():
            if names[id(parameter)] in part:
                parameter.detach().copy_(part[names[id(parameter)]])


def _kind(parameter):
    return f"{parameter.dtype} of shape {tuple(parameter.shape)}"


def _parts(saved, found):
    """One at a time is in RAM."""
    for number in range(saved["parts"]):
        yield found.values(0, _part_name(number))


def _part_name(number):
    return f"parameters-{number:05d}.safetensors"
