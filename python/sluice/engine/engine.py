"""The engine: DeepSpeed's calls over a Sluice runtime. Who makes it: attachment.py and deepspeed/initializing.py."""

import contextlib
import dataclasses
import os
import threading
import time
import warnings
import weakref

import torch

from ..native import abi
from ..optimizers import hyperparameters
from ..residency import attached, places, readiness, registry
from ..residency.precision import Precision
from ..residency.units import partition
from ..spools import handing_back, spooled
from . import among_ranks, frozen
from .beginning import make_runtime, write_masters
from .calls import EngineCalls
from .checkpointing import EngineCheckpoints
from .library_options import DTYPES, unit_sizes
from .model_values import EngineValues
from .optimizer import make_optimizer
from .progress import StepPrinter

_KEY_MICRO, _KEY_BOUNDARY, _KEY_EVAL = 0, 1, 2


class Engine(EngineCalls, EngineValues, EngineCheckpoints, torch.nn.Module):
    """A model whose parameters and states live on the tiers.

    loss = engine(batch); engine.backward(loss); engine.step(). step() acts at the accumulation boundary only. Updates run on
    after step() has returned; whatever reads values waits for them. Not thread-safe: one thread trains.

    With several ranks all take the same steps, and read and write values together, in the same order: a state dict, states, and
    `.grad` of a parameter (any stage). One that does so alone waits for the others, and fails after 10 minutes.
    """

    def __init__(self, model, config, optimizer=None, model_parameters=None, prepare=None, world=None):
        """prepare(engine): makes what else goes with its optimizer, before anything is taken or moved. world: the ranks, if
        there are several; the engine closes it."""
        super().__init__()
        self._world = world
        if world is not None:
            self.global_rank, self.local_rank = world.rank, world.local_rank
            self.world_size = self.dp_world_size = world.size
        self.__dict__["module"] = model  # not a submodule: state_dict() is ours
        self.config = config
        self.global_steps = 0
        self.micro_steps = 0
        self.skipped_steps = 0
        self._closed = False
        self._in_pass = None
        self._handing_back = None  # since destroy() began
        self._iteration_open = False
        self._grad_norm = None
        self._applied = False
        self._pid = os.getpid()
        self._printer = StepPrinter(config.steps_per_print, config.wall_clock_breakdown)
        self.dtype = DTYPES[config.dtype]

        readiness.check(model, self._values_come_from_elsewhere)
        self.optimizer, self.client_optimizer = make_optimizer(model, config.optimizer, optimizer, model_parameters)
        self._placed = frozenset(id(p) for p in model.parameters())
        self._frozen = self._find_frozen(model)
        optimized = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.check_optimized(optimized)
        self.config = dataclasses.replace(config, notes=(*config.notes, *self._frozen.states_note(model, optimized)))
        self.optimizer.engine = weakref.ref(self)

        if prepare is not None:
            prepare(self)

        places.check_ties(model)
        precision = self._precision(model)
        self.config = dataclasses.replace(self.config, notes=(*self.config.notes, *precision.notes(model)))
        units, doors = partition(model, *unit_sizes(config, self.dtype.itemsize), precision.of)
        if not units:
            raise ValueError("the model has no parameters")
        if world is not None:
            among_ranks.check_same(world, model, self.config, units, optimized)
        keep = self._frozen.keep(units)
        problem = None
        try:
            self.runtime, self.device = make_runtime(self.config, units, keep, world)  # and where inputs belong
        except Exception as error:
            problem = error
            if world is not None:
                world.give_up(error)
            raise
        except BaseException as error:  # an interrupt: nobody is waited for
            if world is not None:
                world.give_up(error)
                world.fail(error)
            raise
        finally:
            if world is not None and not world.failed:
                self._check_all_have_one(problem)
        self._units = units
        self._dtypes_before = {id(p): p.dtype for unit in units for _, p in unit.parameters}
        try:
            self._attach(doors)
        except BaseException as error:
            self._tell(error)
            self.close()
            raise
        try:
            self._place_buffers(precision)
            if not is_compiled(model):
                model._compiled_call_impl = self._call  # which keeps the engine as long as the model. Copies don't have it.
        except BaseException as error:
            self._tell(error)
            self._undo()
            raise

    # ---- Setting up

    def _tell(self, error):
        """The other ranks, which wait for this one in what all do to begin, hear of it before its connections close."""
        if self._world is not None:
            self._world.fail(error)

    def _check_all_have_one(self, problem):
        try:
            self._world.check_worked(problem)
        except BaseException as error:
            self._tell(error)
            self.close()
            raise

    def _attach(self, doors):
        self._attached = attached.Attached(self.runtime, self._units, doors, self.optimizer.groups_by_id)
        self._attached.gradients.among_ranks = self._world is not None
        registry.add(self)
        self._load(self._units)

    def _find_frozen(self, model):
        advice = "name what is to train later in model_parameters (or the optimizer) of sluice.initialize()"
        return frozen.find(self.optimizer, model, self.optimizer.groups_by_id(), "the engine was made", advice)

    def _values_come_from_elsewhere(self, parameter):
        return False

    def _initial_values(self, parameter):
        spool = spooled.spool_of(parameter)
        return spool.read(parameter) if spool is not None else parameter.data

    @property
    def _directory(self):
        """For temporary files."""
        return self.config.nvme_paths[0] if self.config.nvme_paths else None

    def is_frozen(self, parameter):
        """Whether it can't be optimized, as no states are kept for it."""
        return parameter in self._frozen

    def check_optimized(self, parameters):
        """Errors: ValueError if the optimizer can't have them."""
        foreign = sum(id(p) not in self._placed for p in parameters)
        if foreign:
            raise ValueError(
                f"optimizer: {foreign} of {len(parameters)} parameters are not the model's, so nothing would train "
                "them: give it those the model had when the engine was made (sluice.attach() replaces those on the "
                "meta device)"
            )
        self._frozen.check_optimized(parameters)

    def _precision(self, model):
        grad_dtype = self.config.grad_dtype and DTYPES[self.config.grad_dtype]
        return Precision(model, self.dtype, grad_dtype=grad_dtype, cast_buffers=self.config.own.get("cast_buffers", False))

    def _place_buffers(self, precision):
        """And parameters without elements, which are on no tier."""
        if self._world is not None:
            among_ranks.spread_buffers(self._world, self.module)
        for _, buffer, dtype in list(precision.buffers(self.module)):
            buffer.data = buffer.data.to(self.device, dtype)
        for name, parameter in self.module.named_parameters():
            if parameter.numel() == 0:
                parameter.data = parameter.data.to(self.device, precision.of(name, parameter).dtype)

    def _load(self, units):
        """Writes every master from the model's values, which vanish from RAM as it goes; if that fails, the model has them
        still."""
        initial = self._initial_values
        if self._world is not None:
            initial = among_ranks.of_rank_0(self._world, initial)
        try:
            write_masters(self.runtime, self._attached, units, initial)
        except BaseException as error:
            self._tell(error)
            self._undo()
            raise

    def _undo(self):
        """For errors while it is made: ends it, and the model has its values again, in the types that it came with; frozen
        ones went through the type that they were kept in. Buffers stay as they are."""
        try:
            with contextlib.suppress(abi.SluiceError):  # what came first is what the caller is told
                self._hand_back(handing_back.of_masters(self.runtime, self._dtypes_before))
        finally:
            if not self._closed:  # some of the values can't be had
                self.close()

    def _hand_back(self, read):
        """Ends the engine; the model has its values."""
        if self._handing_back is None:
            self._handing_back = handing_back.HandingBack(self._attached, self._directory)
        self._handing_back.give(read)
        self._attached.remove()
        attached.forget(self.module)
        self.close()
        self._handing_back.finish()
        self._handing_back = None

    # ---- Training

    def forward(self, *args, **kwargs):
        with self._printer.timed("forward"), self._forward_pass():
            return self.module(*args, **kwargs)

    def _call(self, *args, **kwargs):
        """What the module does when it is called."""
        with self._forward_pass():
            return self.module._call_impl(*args, **kwargs)

    @contextlib.contextmanager
    def _forward_pass(self):
        """What surrounds a forward of the whole model, which may call itself."""
        if self._in_pass:
            if self._in_pass != threading.get_ident():
                raise abi.FailedPrecondition(
                    "another thread computes with this model: one thread at a time may, as its units come and go with it"
                )
            yield
            return
        self._check_open()
        self._attached.settle_all()
        self._attached.settle_values()
        self._end_iteration()
        training = self.module.training and torch.is_grad_enabled()
        if training:
            self._attached.gradients.give_back()
        boundary = training and self.is_gradient_accumulation_boundary() and not self._attached.gradients.is_apart
        self.runtime.iteration_begin(_KEY_BOUNDARY if boundary else _KEY_MICRO if training else _KEY_EVAL, boundary)
        self._iteration_open = True
        cache = torch.is_autocast_cache_enabled()
        try:
            torch.set_autocast_cache_enabled(False)  # it would serve stale weights
            self._in_pass = threading.get_ident()
            with self._attached.saved_tensors_hooks():
                yield
        except BaseException:
            self._end_backward()
            raise
        finally:
            self._in_pass = None
            torch.set_autocast_cache_enabled(cache)
        if not training:
            self._end_iteration()

    def backward(self, loss, retain_graph=False, scale_wrt_gas=True):
        """Backward of loss / gradient_accumulation_steps, times the loss scale. Returns the former, unscaled."""
        self._check_open()
        self._frozen.check_trains()
        if scale_wrt_gas and self.config.accumulation > 1:
            loss = loss / self.config.accumulation
        with self._printer.timed("backward"):
            try:
                self._times_scale(loss).backward(retain_graph=retain_graph)
            finally:
                self._end_backward()
            self._attached.gradients.renew()
        return loss.detach()

    def scale(self, loss):
        """For a loop that calls backward() itself: engine.scale(loss).backward() is engine.backward(loss)."""
        self._check_open()
        self._frozen.check_trains()
        # A tensor of its own, as the hook is for this backward only.
        scaled = self._times_scale(loss / self.config.accumulation)
        end = weakref.WeakMethod(self._end_own_backward)  # the graph must not keep the engine alive

        def on_begin(_):
            torch.autograd.Variable._execution_engine.queue_callback(lambda: (f := end()) and f())

        scaled.register_hook(on_begin)
        return scaled

    def _end_own_backward(self):
        self._end_backward()
        self._attached.gradients.renew()

    def _times_scale(self, loss):
        scale = self.runtime.loss_scale()
        return loss.float() * scale if scale != 1.0 else loss

    def step(self, lr_kwargs=None):
        """At the accumulation boundary: norm, overflow check and clipping, then the updates start. Elsewhere: counts.
        lr_kwargs: for the scheduler's step(). Errors: FailedPrecondition if a parameter without states was thawed; nothing
        has changed then."""
        self._check_open()
        self._frozen.check_still()
        if self._attached.gradients.is_apart:
            raise abi.FailedPrecondition("engine.step() inside engine.no_sync(): call it after the block")
        boundary = self.is_gradient_accumulation_boundary()
        if boundary:
            self._check_parameters()
        self.micro_steps += 1
        self._applied = False
        if not boundary:
            return
        with self._printer.timed("step"):
            self._attached.settle_all()
            self._end_iteration()
            self._attached.settle_values()
            self._attached.gradients.settle()
            self.runtime.lent.finish()
            result = self.runtime.step(self._hyperparameters(), self.config.clip_norm)
        self._grad_norm = result.grad_norm
        self._applied = bool(result.applied)
        self._attached.gradients_used(updated=self._applied)
        self.global_steps += 1
        if not self._applied:
            self.skipped_steps += 1
            if not self.dynamic_loss_scale():  # such steps are how that is found
                words = f"step {self.global_steps} was left out: the norm of its gradients is {result.grad_norm}"
                warnings.warn(words, RuntimeWarning, stacklevel=2)
        for optimizer in filter(None, (self.optimizer, self.client_optimizer)):
            optimizer._opt_called = True  # what LR schedulers look at to see that the optimizer stepped
        if self.lr_scheduler is not None and self._applied:
            self.lr_scheduler.step(**(lr_kwargs or {}))
        self._printer.stepped(self.global_steps, self.skipped_steps, self.optimizer)

    def _check_parameters(self):
        """Errors: FailedPrecondition if the model has parameters to train that came after the engine: it does not know them."""
        if not self._has_others():
            return
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad and id(parameter) not in self._placed and parameter.numel():
                raise abi.FailedPrecondition(
                    f"parameter {name} was not the model's when the engine was made, and would not be trained: change the model "
                    "first, then call sluice.initialize() or sluice.attach()"
                )

    def _has_others(self):
        """Whether the model has any parameter that it did not have then. Cheap: every step asks, and nothing tells when a
        module changes."""
        seen, modules = set(), [self.module]
        for module in modules:
            for parameter in module._parameters.values():
                if id(parameter) not in self._placed and parameter is not None:
                    return True
            for child in module._modules.values():
                if child is not None and id(child) not in seen:
                    seen.add(id(child))
                    modules.append(child)
        return False

    lr_scheduler = None
    training_dataloader = None

    def _end_backward(self):
        """Lets go of what forward and backward hold. Does nothing where it was done before."""
        self._attached.settle()
        self._end_iteration()

    def _hyperparameters(self):
        """By tensor."""
        groups = {id(group): hyperparameters.checked(group) for group in self.optimizer.param_groups}
        any_group = next(iter(groups.values()))  # of tensors that have none: they have no gradient either
        of_tensor = self.optimizer.groups_by_id()
        return [groups.get(id(of_tensor.get(id(p))), any_group) for unit in self._units for _, p in unit.parameters]

    def _end_iteration(self):
        if self._iteration_open:
            self._iteration_open = False
            self.runtime.iteration_end()

    def _check_open(self, half_loaded=False):
        """half_loaded: it may be, as it is about to be loaded."""
        if self._closed:
            raise abi.FailedPrecondition(
                "this engine was closed (after destroy() its model can be given to initialize() again, which makes another one)"
            )
        if self._handing_back is not None:
            raise abi.FailedPrecondition("destroy() of this engine was interrupted: call it again")
        if self._half_loaded and not half_loaded:
            raise abi.FailedPrecondition("load_checkpoint() of this engine was interrupted, so that it is loaded in part: call it again")

    def zero_grad(self, set_to_none=True):
        self._check_open()
        self._drop_gradients(set_to_none)

    def _drop_gradients(self, set_to_none=True):
        self.runtime.lent.finish()
        self.runtime.zero_grad()
        self._attached.gradients_used(updated=False)
        self.module.zero_grad(set_to_none)

    def train(self, mode=True):
        self.training = mode
        self.module.train(mode)
        return self

    def report(self):
        """Counters, times, what was waited for, budgets, placement and what was chosen (docs/api.md lists the keys).
        `report()["waited_for"]["words"]` says in a sentence or two how fast steps were and what they waited for; the end of the
        engine logs it at INFO, as "sluice"."""
        return self.runtime.report()

    @contextlib.contextmanager
    def span(self, name):
        """Shows what runs inside as `name` on the track "compute" of write_trace()."""
        began = time.monotonic_ns()
        yield
        self.runtime.trace_span(name, began, time.monotonic_ns())

    def synchronize(self):
        """Waits until every update and write under way has ended."""
        self._attached.settle_values()
        self.runtime.lent.finish()
        self.runtime.drain()

    def write_trace(self, path):
        """Writes what was recorded (sluice.trace_spans) for Perfetto or chrome://tracing, and for `sluice trace`."""
        self.runtime.drain()
        self.runtime.trace_write(path)

    def destroy(self):
        """Ends the engine and gives the model its values back: then it is as it was before, in the type that it computed in,
        without hooks and gradients, and can be trained, saved, or given to initialize() or attach() again. Parameters are in
        RAM; of a large model, only as much as the engine had of that (its `pinned` budget): the values of others are in an
        unnamed file, in the first nvme_path or else the system's directory for such, until they are used. Buffers stay
        where they are. What the fp32 masters have beyond the type of compute, the optimizer's states, and gradients that no
        step() has used, are gone: fp32_state_dict() and optimizer.state_dict() have the former before. Does nothing the
        second time. Errors: those of updates under way; the engine is open still then, and close() ends it."""
        if os.getpid() != self._pid or (self._closed and self._handing_back is None):
            return
        if self._handing_back is None:
            self._end_backward()
            self.synchronize()
        self._hand_back(handing_back.of_compute(self._attached))

    def close(self):
        """Ends the runtime. The model's values are gone, and whoever uses them is told: read them before, or use destroy()."""
        if os.getpid() != self._pid:
            return
        self._closed = True  # the rest does nothing the second time, unless the first was interrupted
        registry.discard(self)
        if getattr(self.module._compiled_call_impl, "__self__", None) is self:
            self.module._compiled_call_impl = None
        if "_attached" in self.__dict__:  # not after a failed __init__
            self._attached.disown()
        if "runtime" in self.__dict__:
            if self._world is not None and self.runtime.open:
                among_ranks.part(self._world, self.runtime)
            self.runtime.close()
        if self._world is not None:
            self._world.close()

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            module = self.__dict__.get("module")
            if module is None or name.startswith("_"):
                raise
            return getattr(module, name)

    def __deepcopy__(self, memo):
        raise TypeError("an engine can't be copied: take module_state_dict() and load it into a new model")



def engine_of(module):
    """The open engine or attachment whose model `module` is; None if there is none."""
    engine = getattr(module._compiled_call_impl, "__self__", None)
    return engine if isinstance(engine, Engine) else None


def is_compiled(module):
    """Whether torch.compile was asked for all of it."""
    call = module._compiled_call_impl
    return call is not None and not isinstance(getattr(call, "__self__", None), Engine)
