"""initialize() and the engine it returns: DeepSpeed's calls over a Sluice runtime."""

import collections
import contextlib
import dataclasses
import itertools
import os
import time
import warnings
import weakref

import torch

from . import _abi, attached, away, devices, frozen, handing_back, hyperparameters, loading, places, readiness, registry
from . import schedulers, spooled, values
from .config import load_config
from .distributed import check_single_rank
from .engine_calls import EngineCalls
from .optimizer import NoOptimizer, make_optimizer
from .precision import NUMBERS, Precision
from .progress import StepPrinter
from .trimmer import Trimmer
from .units import partition

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_TIERS = {"none": _abi.HBM, "cpu": _abi.PINNED, "nvme": _abi.NVME}
_ENGINES = {"auto": 0, "io_uring": 1, "threads": 2, "libaio": 3}
_EXECUTORS = {"tbb": 0, "threads": 1}
_KEY_MICRO, _KEY_BOUNDARY, _KEY_EVAL = 0, 1, 2
_UNIT_ELEMENTS = 64 << 20  # at most
_RESIDENT_ELEMENTS = 16384  # units of at most so many stay in HBM, where the configuration doesn't say


class Engine(EngineCalls, torch.nn.Module):
    """A model whose parameters and states live on the tiers.

    loss = engine(batch); engine.backward(loss); engine.step(). step() acts at the accumulation boundary only. Updates run on
    after step() has returned; whatever reads values waits for them. Not thread-safe: one thread trains.
    """

    def __init__(self, model, config, optimizer=None, model_parameters=None):
        super().__init__()
        self.__dict__["module"] = model  # not a submodule: state_dict() is ours
        self.config = config
        self.global_steps = 0
        self.micro_steps = 0
        self.skipped_steps = 0
        self._closed = False
        self._in_pass = False
        self._handing_back = None  # since destroy() began
        self._iteration_open = False
        self._grad_norm = None
        self._applied = False
        self._pid = os.getpid()
        self._printer = StepPrinter(config.steps_per_print, config.wall_clock_breakdown)
        self.dtype = _DTYPES[config.dtype]

        readiness.check(model, self._values_come_from_elsewhere)
        self.optimizer, self.client_optimizer = make_optimizer(model, config.optimizer, optimizer, model_parameters)
        self._placed = frozenset(id(p) for p in model.parameters())
        self._frozen = self._find_frozen(model)
        optimized = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.check_optimized(optimized)
        self.config = dataclasses.replace(config, notes=(*config.notes, *self._frozen.states_note(model, optimized)))
        self.optimizer.engine = weakref.ref(self)

        places.check_ties(model)
        precision = self._precision(model)
        self.config = dataclasses.replace(self.config, notes=(*self.config.notes, *precision.notes(model)))
        units, doors = partition(model, *self._unit_sizes(), precision.of)
        if not units:
            raise ValueError("the model has no parameters")
        library = _abi.Library(config.own["library"]) if config.own.get("library") else _abi.Library.default()
        seed = config.own.get("simulated_seed")
        device = devices.choose("host" if seed is not None else config.own.get("device") or "auto", library)
        self.device = device.torch  # where inputs belong
        # Every tensor is a group of its own there, so that parameters may join the optimizer's groups at any time.
        number = itertools.count()
        self.runtime = _abi.Runtime(
            [(u.name, [(n, u.type.elements(p), next(number)) for n, p in u.parameters]) for u in units],
            self._options(),
            library=library,
            seed=seed,
            device=device,
            keep=self._frozen.keep(units),
            stay=[number for number, unit in enumerate(units) if unit.stays],
            types={number: unit.type.numbers for number, unit in enumerate(units)},
        )
        self._units = units
        try:
            self._attach(doors)
            self._place_buffers(precision)
            if not is_compiled(model):
                model._compiled_call_impl = self._call  # which keeps the engine as long as the model. Copies don't have it.
        except BaseException:
            self.close()
            raise

    # ---- Setting up

    def _attach(self, doors):
        self._attached = attached.Attached(self.runtime, self._units, doors, self.optimizer.groups_by_id)
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
        grad_dtype = self.config.grad_dtype and _DTYPES[self.config.grad_dtype]
        return Precision(model, self.dtype, grad_dtype=grad_dtype, cast_buffers=self.config.own.get("cast_buffers", False))

    def _place_buffers(self, precision):
        """And parameters without elements, which are on no tier."""
        for _, buffer, dtype in list(precision.buffers(self.module)):
            buffer.data = buffer.data.to(self.device, dtype)
        for name, parameter in self.module.named_parameters():
            if parameter.numel() == 0:
                parameter.data = parameter.data.to(self.device, precision.of(name, parameter).dtype)

    def _unit_sizes(self):
        """Elements of a unit at most, and of tiny ones that are merged: those that stay in HBM either way."""
        own, tiny = self.config.own, self.config.persistence_threshold
        if own.get("unit_elements"):
            return own["unit_elements"], 0
        tiny = _RESIDENT_ELEMENTS if tiny is None else tiny
        hbm = own.get("hbm")
        if self.config.offload_param == "none" or not hbm:
            return _UNIT_ELEMENTS, tiny
        return max(1, min(_UNIT_ELEMENTS, hbm // (4 * self.dtype.itemsize))), tiny

    def _options(self):
        c, own = self.config, self.config.own
        options = {
            "param_dtype": NUMBERS[self.dtype],
            "grad_dtype": NUMBERS[_DTYPES[c.grad_dtype or c.dtype]],
            "lowest_param_tier": _TIERS[c.offload_param],
            "lowest_state_tier": _TIERS[c.offload_optimizer],
            "nvme_paths": c.nvme_paths,
            "io_engine": _choice("sluice.io_engine", own.get("io_engine", "auto"), _ENGINES),
            "executor": _choice("sluice.executor", own.get("executor", "tbb"), _EXECUTORS),
            "io_depth": own.get("io_depth") or c.queue_depth or 0,
            "workers": own.get("workers") or 0,
            "chunk_elements": own.get("chunk_elements") or 0,
            "link_bytes_per_second": float(own.get("link_bytes_per_second") or 0),
            "overlap": int(own.get("overlap") is not False),
            "trace_spans_max": own.get("trace_spans") or 0,
        }
        for key, field in (("hbm", "hbm_bytes"), ("pinned", "pinned_bytes"), ("nvme", "nvme_bytes")):
            if own.get(key) is not None:
                options[field] = own[key]
        if c.persistence_threshold is not None:
            options["resident_elements_max"] = c.persistence_threshold
        if c.dtype == "fp16":
            scale = c.loss_scale
            options["static_loss_scale"] = float(scale.get("loss_scale", 0))
            options["initial_scale_power"] = int(scale.get("initial_scale_power", 16))
            options["loss_scale_window"] = int(scale.get("loss_scale_window", 1000))
            options["hysteresis"] = int(scale.get("hysteresis", 2))
            options["consecutive_hysteresis"] = int(scale.get("consecutive_hysteresis", False))
            options["min_loss_scale"] = float(scale.get("min_loss_scale", 1))
        return _abi.Options(**options)

    def _load(self, units):
        """Writes every master from the model's values, which vanish from RAM as it goes; if that fails, the model has them
        still."""
        trimmer = Trimmer()
        dtypes = {id(p): p.dtype for unit in units for _, p in unit.parameters}

        def items():
            for index, unit in enumerate(units):
                for name, parameter in unit.parameters:
                    initial = self._initial_values(parameter)
                    yield self._attached.tensors[id(parameter)], initial
                    trimmer.freed(initial.nbytes)
                self._attached.hide(index)

        try:
            with torch.no_grad():
                raw = {number for _, number, p in self._named() if self._attached.place_of[id(p)].raw}
                values.write_all(self.runtime, items(), _abi.MASTER, raw)
        except BaseException:
            with contextlib.suppress(_abi.SluiceError):  # what came first is what the caller is told
                self._hand_back(handing_back.of_masters(self.runtime, dtypes))
            raise
        trimmer.trim()

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
            yield
            return
        self._check_open()
        self._attached.settle_all()
        self._attached.settle_values()
        self._end_iteration()
        training = self.module.training and torch.is_grad_enabled()
        boundary = training and self.is_gradient_accumulation_boundary()
        self.runtime.iteration_begin(_KEY_BOUNDARY if boundary else _KEY_MICRO if training else _KEY_EVAL, boundary)
        self._iteration_open = True
        cache = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)  # it would serve stale weights
        self._in_pass = True
        try:
            with self._attached.saved_tensors_hooks():
                yield
        except BaseException:
            self._end_backward()
            raise
        finally:
            self._in_pass = False
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
        return loss.detach()

    def scale(self, loss):
        """For a loop that calls backward() itself: engine.scale(loss).backward() is engine.backward(loss)."""
        self._check_open()
        self._frozen.check_trains()
        # A tensor of its own, as the hook is for this backward only.
        scaled = self._times_scale(loss / self.config.accumulation)
        end = weakref.WeakMethod(self._end_backward)  # the graph must not keep the engine alive

        def on_begin(_):
            torch.autograd.Variable._execution_engine.queue_callback(lambda: (f := end()) and f())

        scaled.register_hook(on_begin)
        return scaled

    def _times_scale(self, loss):
        scale = self.runtime.loss_scale()
        return loss.float() * scale if scale != 1.0 else loss

    def step(self, lr_kwargs=None):
        """At the accumulation boundary: norm, overflow check and clipping, then the updates start. Elsewhere: counts.
        lr_kwargs: for the scheduler's step(). Errors: FailedPrecondition if a parameter without states was thawed; nothing
        has changed then."""
        self._check_open()
        self._frozen.check_still()
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
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad and id(parameter) not in self._placed and parameter.numel():
                raise _abi.FailedPrecondition(
                    f"parameter {name} was not the model's when the engine was made, and would not be trained: change the model "
                    "first, then call sluice.initialize() or sluice.attach()"
                )

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

    def _check_open(self):
        if self._closed:
            raise _abi.FailedPrecondition("this engine was closed")
        if self._handing_back is not None:
            raise _abi.FailedPrecondition("destroy() of this engine was interrupted: call it again")

    def zero_grad(self, set_to_none=True):
        self.runtime.lent.finish()
        self.runtime.zero_grad()
        self._attached.gradients_used(updated=False)
        self.module.zero_grad(set_to_none)

    def train(self, mode=True):
        self.training = mode
        self.module.train(mode)
        return self

    # ---- Values

    streams = True

    def tensor_of(self, parameter):
        return self._attached.tensors.get(id(parameter))

    def groups_changed(self):
        """The optimizer has other parameters than before."""
        if "_attached" in self.__dict__:
            self._attached.gradients.ask_again()

    def values_changed(self, parameter):
        """Not by a step: what was saved for backward is of the past."""
        self._attached.values_changed(parameter)

    def settle_values(self):
        """Everything that was written to parameters is on the tiers."""
        self._attached.settle_values()

    def renew_values(self):
        """Parameters that are on loan have what is on the tiers."""
        self._attached.renew_values()

    def finish_gradients(self):
        """What `.grad` is now is on the tiers. """
        self._attached.gradients.settle()
        self.runtime.lent.finish()

    def module_state_dict(self):
        """The model's state_dict: exact copies of the compute parameters, after all updates."""
        return self.module.state_dict()

    def state_dict(self, *args, **kwargs):
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict, strict=True, assign=False):
        """Into the fp32 masters and the model's buffers; what fp32 values have beyond the model's type is kept. The
        states of the optimizer stay. Errors: the module's."""
        if assign:
            raise ValueError("assign: the model's parameters are on the tiers, and can't be replaced")
        self._check_open()
        self._attached.settle_all()
        self._attached.settle_values()
        self._end_iteration()
        with loading.into_masters(self.module, self.runtime, self._attached):
            return self.module.load_state_dict(state_dict, strict)

    # What lists the model, here as there. children() stay empty: to(), half() and the like don't reach what is placed.

    def named_modules(self, *args, **kwargs):
        return self.module.named_modules(*args, **kwargs)

    def modules(self, *args, **kwargs):
        return self.module.modules(*args, **kwargs)

    def named_parameters(self, *args, **kwargs):
        return self.module.named_parameters(*args, **kwargs)

    def parameters(self, *args, **kwargs):
        return self.module.parameters(*args, **kwargs)

    def named_buffers(self, *args, **kwargs):
        return self.module.named_buffers(*args, **kwargs)

    def buffers(self, *args, **kwargs):
        return self.module.buffers(*args, **kwargs)

    def fp32_state_dict(self):
        """What a plain model loads strictly: the fp32 masters under all the names of each parameter (those without values of
        floating point as they are), and buffers as the model's state_dict has them."""
        self._attached.settle_values()
        found = values.read_all(self.runtime, self._master_requests(), _abi.MASTER)
        result = collections.OrderedDict()
        for name, parameter in self.module.named_parameters(remove_duplicate=False):
            result[name] = found[id(parameter)] if id(parameter) in found else parameter.detach()
        for prefix, module in self.module.named_modules(remove_duplicate=False):
            start = prefix + "." if prefix else ""
            buffers = ((n, b) for n, b in module._buffers.items() if n not in module._non_persistent_buffers_set)
            result.update((start + n, b.detach().clone()) for n, b in buffers if b is not None)
            if type(module).get_extra_state is not torch.nn.Module.get_extra_state:
                result[start + "_extra_state"] = module.get_extra_state()
        return result

    def _master_requests(self):
        for place in self._attached.place_of.values():
            yield id(place.parameter), place.tensor, place.shape, place.dtype if place.raw else torch.float32

    def optimizer_state_dict(self):
        """exp_avg and exp_avg_sq (fp32) and the number of updates, by parameter name."""
        kept = [(n, number, p.shape) for n, number, p in self._named() if not self.is_frozen(p)]
        averages = values.read_all(self.runtime, kept, _abi.EXP_AVG, torch.float32)
        squares = values.read_all(self.runtime, kept, _abi.EXP_AVG_SQ, torch.float32)
        return {
            name: {
                "exp_avg": averages[name],
                "exp_avg_sq": squares[name],
                "step": self.runtime.tensor_info(number).step,
            }
            for name, number, _ in kept
        }

    def _named(self):
        for unit in self._units:
            for name, parameter in unit.parameters:
                yield name, self._attached.tensors[id(parameter)], parameter

    def report(self):
        """Counters, budgets, placement and what was chosen (docs/api.md lists the keys)."""
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
        """Writes what was recorded (sluice.trace_spans) for Perfetto or chrome://tracing."""
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
            self.runtime.close()

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


def _choice(name, value, choices):
    if value not in choices:
        raise ValueError(f"{name}: must be one of {', '.join(choices)}, not {value!r}")
    return choices[value]


def initialize(
    args=None,
    model=None,
    optimizer=None,
    model_parameters=None,
    training_data=None,
    lr_scheduler=None,
    distributed_port=None,
    mpu=None,
    dist_init_required=None,
    collate_fn=None,
    config=None,
    mesh_param=None,
    config_params=None,
):
    """Moves `model` onto the tiers as `config` (DeepSpeed's JSON as a dict or a path) says.

    Returns (engine, optimizer or None, training data loader or None, lr_scheduler or None). Without an optimizer, here or in
    the configuration, no states are kept: the engine evaluates, and does not train. model_parameters: what is trained,
    parameters or groups of them; None: what requires a gradient now. Frozen parameters that are named there, or in a
    client's optimizer, can train later; of the others no states are kept, and they are never written again.
    optimizer: a torch Adam or AdamW, or a function from the parameters to one. lr_scheduler: a scheduler made for that
    optimizer, or a function from an optimizer to a scheduler; it goes before the configured one. Errors: ConfigError;
    ResourceExhausted if a budget can't work, naming the smallest that would; RuntimeError where there is more than one
    rank.
    """
    if model is None:
        raise ValueError("model: a torch.nn.Module is needed")
    if mpu is not None or mesh_param is not None:
        raise ValueError("mpu, mesh_param: model parallelism is not offered")
    check_single_rank()
    if config is None:
        config = config_params if config_params is not None else getattr(args, "deepspeed_config", None)
    if config is None:
        raise ValueError("config: a dict or the path of a JSON file is needed")
    engine = Engine(model, load_config(config), optimizer, model_parameters)
    try:
        engine.lr_scheduler = _make_scheduler(lr_scheduler, engine)
        if training_data is not None:
            engine.training_dataloader = _make_loader(training_data, engine.config, collate_fn)
    except BaseException:
        engine.close()
        raise
    optimizer = None if isinstance(engine.optimizer, NoOptimizer) else engine.optimizer
    return engine, optimizer, engine.training_dataloader, engine.lr_scheduler


def _make_scheduler(client, engine):
    if isinstance(engine.optimizer, NoOptimizer):  # a configured schedule has nothing to set then
        if client is not None:
            raise ValueError("lr_scheduler: there is no optimizer for it: name one in the configuration or as optimizer=")
        return None
    if client is not None:
        return client if hasattr(client, "step") else client(engine.optimizer)
    if engine.config.scheduler is None:
        return None
    name, params = engine.config.scheduler
    return schedulers.find(name)(engine.optimizer, **params)


def _make_loader(data, config, collate_fn):
    return torch.utils.data.DataLoader(
        data,
        batch_size=config.micro_batch,
        collate_fn=collate_fn,
        drop_last=config.drop_last,
        shuffle=not isinstance(data, torch.utils.data.IterableDataset),
    )
