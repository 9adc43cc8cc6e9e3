"""Checkpoints of an engine, by DeepSpeed's calls: what the library has, and what else a run is."""

import os
import warnings

import torch

from ..checkpoints import generation, plain, randomness, tensor_files
from ..native import abi, checkpoint_abi
from . import run_values


class EngineCheckpoints:
    """Mixed into Engine. Expects config, module, optimizer, runtime and what Engine._attach() makes."""

    _half_loaded = False  # load_checkpoint() did not get to its end

    def save_checkpoint(
        self, save_dir, tag=None, client_state={}, save_latest=True, exclude_frozen_parameters=False, *, rng=None
    ):  # fmt: skip
        """Saves the run as save_dir/tag (default `global_step{N}`), which replaces one of that name; True when it is durable on
        all ranks. All of them call it, and see one directory. If it fails, what was there before is there still.

        In it: masters, states and numbers of updates of all parameters, frozen ones (unless exclude_frozen_parameters), the
        loss scale, the optimizer's groups, the schedule, persistent buffers and extra states of modules, counters, and
        client_state, a dict of plain values and tensors. rng: also the states of random number generators; None: as
        sluice.checkpoint.rng says. Not in it: gradients (save between a step and the next backward), other buffers, and what
        the data loader is at. save_latest: save_dir/latest names it then. Errors: TypeError for what client_state can't
        hold, by its place; the library's."""
        self._check_between_passes("save_checkpoint")
        self.optimizer._check_whole()
        tag = self._agreed_tag(f"global_step{self.global_steps}" if tag is None else _tag(tag))
        self._warn_of_lost_gradients()
        own = self.config.own.get("checkpoint", {})
        rng = own.get("rng", False) if rng is None else rng
        self._attached.settle_values()
        self.runtime.lent.finish()
        generation.save(
            self.runtime, self._world, os.fspath(save_dir), tag, lambda: self._attachments(client_state, rng),
            latest=save_latest, without_frozen=exclude_frozen_parameters,
            keep=(own["keep_last"], own.get("keep_every", 0)) if "keep_last" in own else None,
        )  # fmt: skip
        return True

    def load_checkpoint(
        self, load_dir, tag=None, load_module_strict=True, load_optimizer_states=True, load_lr_scheduler_states=True,
        load_module_only=False, custom_load_fn=None,
    ):  # fmt: skip
        """Goes on as if the run that was saved had not stopped: on any number of ranks, with any budgets, tiers and stage.
        Returns (path, client_state); (None, None), with a warning, where load_dir has no checkpoint. tag: None: what
        load_dir/latest names, or the newest that is whole. Gradients that no step has used are dropped.

        load_module_strict: parameters and buffers are the same as the saved ones; else those that are there are loaded.
        Without load_optimizer_states, parameters begin anew in the optimizer, at no updates, with its groups as they are.
        load_module_only: parameters and buffers only, also no counters; the optimizer's states begin anew too. Random number generators are set where they were
        saved, by as many ranks. Errors: NotFound for a tag that isn't there; ValueError where the checkpoint is of another
        model, optimizer or schedule: nothing has changed then; DataLoss naming the file: the engine has failed then."""
        if custom_load_fn is not None:
            raise NotImplementedError("custom_load_fn is not offered: load what differs by engine.load_state_dict()")
        self._check_between_passes("load_checkpoint", half_loaded=True)
        found = generation.find(self.runtime.library, self._world, os.fspath(load_dir), None if tag is None else _tag(tag))
        if found is None:
            warnings.warn(f"load_checkpoint(): there is no checkpoint in {os.fspath(load_dir)}: nothing was loaded", stacklevel=2)
            return None, None
        states = load_optimizer_states and not load_module_only
        schedule = load_lr_scheduler_states and not load_module_only
        saved = self._checked(found, load_module_strict, states, schedule)
        self._attached.settle_all()
        self._attached.settle_values()
        self._end_iteration()
        was_half_loaded, self._half_loaded = self._half_loaded, True
        try:
            checkpoint_abi.load(self.runtime, os.fspath(load_dir), found.tag, without_states=not states, some=not load_module_strict)
        except abi.SluiceError:  # nothing has changed, or the runtime has failed
            self._half_loaded = was_half_loaded
            raise
        problem = None
        try:
            self._drop_gradients()
            self._values_were_loaded()
            self._put(saved, found, states, schedule, counters=not load_module_only)
        except Exception as error:
            problem = error
        generation.agree(self._world, problem)
        self._half_loaded = False
        return found.path, saved["client_state"]

    def _put(self, saved, found, states, schedule, counters):
        """What the library does not have."""
        run_values.put_buffers(self.module, saved)
        if states:
            run_values.put_groups(self.optimizer, saved)
            self.optimizer._torn = False
        if schedule and self.lr_scheduler is not None:
            self.lr_scheduler.load_state_dict(saved["lr_scheduler"]["state"])
        elif schedule and saved["lr_scheduler"] is not None:
            words = f"load_checkpoint(): {saved['lr_scheduler']['class']} was saved, and this engine has no schedule: rates stay as saved"
            warnings.warn(words, RuntimeWarning, stacklevel=4)
        if counters:
            self._put_counters(saved["counters"])
            self._put_random_states(saved, found)

    # ---- What is saved

    def _attachments(self, client_state, rng):
        values = {
            "buffers": run_values.buffers(self.module),
            "extra_state": run_values.extra_states(self.module),
            "optimizer": run_values.groups(self.optimizer, self.module),
            "lr_scheduler": run_values.schedule(self.lr_scheduler),
            "counters": self._counters(),
            "client_state": client_state,
        }
        if rng:
            values["rng"] = randomness.states(self.device)
        found = {generation.RUN: generation.as_bytes(plain.encode(values))}
        if self.global_rank == 0:
            found[generation.MODEL] = generation.as_text(run_values.model(self.module, self.is_frozen))
        return found

    def _counters(self):
        steps = self.config.accumulation if self.config.managed_accumulation else 1
        return {
            "global_steps": self.global_steps,
            "skipped_steps": self.skipped_steps,
            "windows": self.micro_steps // steps,  # accumulations that have ended
            "world_size": self.world_size,
        }

    def _put_counters(self, saved):
        self.global_steps, self.skipped_steps = saved["global_steps"], saved["skipped_steps"]
        self.micro_steps = saved["windows"] * (self.config.accumulation if self.config.managed_accumulation else 1)

    def _put_random_states(self, saved, found):
        if "rng" not in saved:
            return
        if found.ranks == self.world_size:
            randomness.restore(saved["rng"], self.device)
            return
        words = f"states of random number generators stay as they are: {found.ranks} ranks saved theirs, and there are {self.world_size}"
        warnings.warn(f"load_checkpoint(): {words}", RuntimeWarning, stacklevel=3)

    def _checked(self, found, strict, states, schedule):
        """The values that this rank goes on with. Errors: ValueError, on all ranks, if they are not for this engine."""
        problem, saved = None, None
        try:
            saved = found.run(self.global_rank if found.ranks == self.world_size else 0)
            run_values.check_model(self.module, found, strict)
            run_values.check_buffers(self.module, saved, strict)
            if states:
                run_values.check_groups(self.optimizer, self.module, saved)
            if schedule and self.lr_scheduler is not None:
                run_values.check_schedule(self.lr_scheduler, saved)
        except Exception as error:
            problem = error
        generation.agree(self._world, problem)
        return saved

    # ---- Around it

    def _check_between_passes(self, name, half_loaded=False):
        self._check_open(half_loaded)
        if self._in_pass:
            raise abi.FailedPrecondition(f"engine.{name}() inside the model's forward: call it between steps")

    def _values_were_loaded(self):
        for place in self._attached.place_of.values():
            self._attached.values_changed(place.parameter)
        self._attached.renew_values()

    def _warn_of_lost_gradients(self):
        done = self.micro_steps % self.config.accumulation if self.config.managed_accumulation else 0
        if done or self._attached.gradients.unused:
            what = f"{done} of {self.config.accumulation} micro-batches of a step are done" if done else "a step is due"
            words = f"save_checkpoint(): {what}, and gradients are not saved: a run that resumes from here lacks them"
            warnings.warn(words, RuntimeWarning, stacklevel=3)

    def _agreed_tag(self, tag):
        """Rank 0's."""
        if self._world is None:
            return tag
        tags = self._world.texts(tag)
        mode = self.config.tag_validation
        if mode != "ignore" and len(set(tags)) > 1:
            words = f"save_checkpoint(): ranks have different tags: {', '.join(map(repr, tags))}"
            if mode == "fail":
                raise ValueError(words)
            warnings.warn(f"{words}; {tags[0]!r} is used", RuntimeWarning, stacklevel=3)
        return tags[0]

    # ---- The model alone

    def save_16bit_model(self, save_dir, save_filename="pytorch_model.bin", exclude_frozen_parameters=False):
        """The model's state_dict in one file, as it computes, written by rank 0: by torch.save(), as the default name promises,
        or, where the name ends with .safetensors, as that. All of it is in RAM of that rank then. True."""
        state = self._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters)
        problem = None
        if self.global_rank == 0:
            try:
                os.makedirs(save_dir, exist_ok=True)
                _write_model(state, os.path.join(save_dir, save_filename))
            except Exception as error:
                problem = error
        generation.agree(self._world, problem)
        return True

    save_fp16_model = save_16bit_model


def _tag(tag):
    """As it is on disk: 0 is one, too."""
    if not str(tag):
        raise ValueError("tag: it is empty; None takes the default")
    return str(tag)


def _write_model(state, path):
    if path.endswith(".safetensors"):
        tensor_files.write(path, {name: value for name, value in state.items() if isinstance(value, torch.Tensor)})
    else:
        torch.save(state, path)
