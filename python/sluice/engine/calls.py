"""DeepSpeed's engine calls that only tell or set something, and those that Sluice refuses, by name."""

import contextlib
import dataclasses

from ..native import abi


def _refused(name, advice):
    def call(self, *args, **kwargs):
        raise NotImplementedError(f"engine.{name}() is not offered: {advice}")

    call.__name__ = name
    call.__doc__ = f"Refused: {advice}."
    return call


_STATES = "states always live on the tiers, and move by themselves"


class EngineCalls:
    """Mixed into Engine. Expects config, optimizer, micro_steps and what Engine.step() leaves."""

    _forced_boundary = None

    # ---- Batches and accumulation

    def gradient_accumulation_steps(self):
        """Micro-steps per update."""
        return self.config.accumulation

    def train_micro_batch_size_per_gpu(self):
        """Of the data loader that initialize() makes."""
        return self.config.micro_batch

    def train_batch_size(self):
        """Micro batch x accumulation steps x ranks."""
        return self.config.micro_batch * self.config.accumulation * self.world_size

    def get_batch_info(self):
        """(train batch, micro batch, accumulation steps)"""
        return self.train_batch_size(), self.config.micro_batch, self.config.accumulation

    def set_train_batch_size(self, train_batch_size):
        """Changes the accumulation steps; to be called between steps."""
        of_all = self.config.micro_batch * self.world_size
        if train_batch_size < 1 or train_batch_size % of_all:
            ranks = f" of {self.world_size} ranks, {of_all} together" if self.world_size > 1 else ""
            raise ValueError(
                f"train_batch_size {train_batch_size} is not a multiple of the micro batch {self.config.micro_batch}{ranks}"
            )
        self._set_batches(self.config.micro_batch, train_batch_size // of_all)

    def set_train_micro_batch_size(self, micro_batch_size):
        """Changes the micro batch; the accumulation steps stay."""
        if micro_batch_size < 1:
            raise ValueError(f"micro batch: must be at least 1, not {micro_batch_size}")
        self._set_batches(micro_batch_size, self.config.accumulation)

    def _set_batches(self, micro, steps):
        if not self._window_empty():
            raise ValueError("the batch can't change in the midst of an accumulation: call it after a step")
        self.config = dataclasses.replace(self.config, micro_batch=micro, accumulation=steps)
        self.micro_steps = 0

    def _window_empty(self):
        return self.micro_steps % self.config.accumulation == 0

    def is_gradient_accumulation_boundary(self):
        """Whether the step() that follows updates."""
        if self._forced_boundary is not None:
            return self._forced_boundary
        return not self.config.managed_accumulation or (self.micro_steps + 1) % self.config.accumulation == 0

    def set_gradient_accumulation_boundary(self, is_boundary):
        """Says from now on whether step() updates, instead of counting. None: count again."""
        self._forced_boundary = is_boundary

    @contextlib.contextmanager
    def no_sync(self):
        """Gradients that are made inside are added up on each rank by itself, whole, in memory of PyTorch's; with those of the
        first backward outside they are averaged over ranks, all at once. Forward belongs inside too, step() outside. p.grad is
        the rank's own meanwhile. With one rank it has no effect. Refused at stages 2 and 3, as DeepSpeed does."""
        if self.world_size == 1:
            yield
            return
        if self.config.zero_stage >= 2:
            raise NotImplementedError(
                f"engine.no_sync() is not offered at stage {self.config.zero_stage}: no rank keeps whole gradients there, so each "
                "backward averages them. Leave it out, which comes to the same, or set zero_optimization.stage to 0 or 1"
            )
        if self._attached.gradients.is_apart:
            raise abi.FailedPrecondition("engine.no_sync() inside engine.no_sync(): leave the inner one out")
        with self._attached.gradients.apart():
            yield

    @contextlib.contextmanager
    def coalesce_grad_reduction(self):
        """Nothing is put off: gradients are averaged over ranks while backward runs, at every stage. No effect."""
        yield

    # ---- The last step, and what is configured

    def was_step_applied(self):
        """Whether the last step() updated: false off the boundary, and after an overflow."""
        return self._applied

    def get_global_grad_norm(self):
        """Of the last step at a boundary, before clipping; None before the first."""
        return self._grad_norm

    def get_lr(self):
        """The rate of each group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def get_mom(self):
        """The betas of each group."""
        return [group["betas"] for group in self.optimizer.param_groups]

    def get_type(self):
        """Of each group: adamw, or adam where the decay is added to the gradient."""
        return ["adam" if group["l2_decay"] else "adamw" for group in self.optimizer.param_groups]

    def loss_scale(self):
        """The scale in use, also where it is dynamic; optimizer.loss_scale is the same."""
        return self.runtime.loss_scale()

    def dynamic_loss_scale(self):
        """Whether the scale is fp16's that adapts itself."""
        return self.config.dtype == "fp16" and not self.config.loss_scale.get("loss_scale", 0)

    @property
    def config_notes(self):
        """What was taken as default, the keys that have no effect, with the reason, and what frozen parameters cost."""
        return self.config.notes

    def zero_optimization(self):
        """Whether a stage above 0 is configured."""
        return self.config.zero_stage > 0

    def zero_optimization_stage(self):
        """As configured: with one rank the stages do the same, with several they share more and more (0 nothing, 1 and 2
        states)."""
        return self.config.zero_stage

    def fp16_enabled(self):
        """Whether parameters compute in fp16."""
        return self.config.dtype == "fp16"

    def bfloat16_enabled(self):
        """Whether parameters compute in bf16."""
        return self.config.dtype == "bf16"

    def gradient_clipping(self):
        """The global norm that gradients are clipped to; 0: off."""
        return self.config.clip_norm

    def steps_per_print(self):
        """Steps from one printed line to the next; None: nothing is printed."""
        return self.config.steps_per_print

    def wall_clock_breakdown(self):
        """Whether the times of every step are printed."""
        return self.config.wall_clock_breakdown

    global_rank = local_rank = 0
    world_size = dp_world_size = mp_world_size = 1

    def empty_partition_cache(self):
        """Nothing is kept in the device's memory beyond what the schedule wants: nothing to do."""

    # ---- Refused

    offload_states = _refused("offload_states", _STATES)
    reload_states = _refused("reload_states", _STATES)
    compile = _refused("compile", "use torch.compile on what the layers call; it can't see across units")
