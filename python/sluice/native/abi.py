"""The C ABI (offload/sluice.h) through ctypes: a Library, and a Runtime object per sluice_runtime.

Every call may be made from any thread. Waiting is done in slices of at most 100 ms, so that signals (Ctrl-C) are
served. Errors are raised as SluiceError or one of its subclasses, with the library's own words. Every number and text that
comes from elsewhere goes through checked.py: what C's type doesn't hold is refused by name. The calls that every unit and
gradient needs go straight: they get tickets, numbers of units and tensors, and addresses and sizes of tensors, which fit.
"""

import contextlib
import ctypes
import json
import logging
import os
import pathlib
import struct
import sys
import threading
import time
import warnings

from . import checkpoint_abi
from .checked import Structure, converted, decoded, path_bytes
from .errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    NotOpen,
    PermissionDenied,
    ResourceExhausted,
    SluiceError,
    Unavailable,
)
from .lent import Lent

F32, BF16, F16, BYTES = range(4)
HBM, PINNED, NVME = 0, 1, 2
DEVICE_AUTO, DEVICE_HOST, DEVICE_CUDA = 0, 1, 2
PARAM, MASTER, EXP_AVG, EXP_AVG_SQ, GRAD = range(5)
KEEP_ALL, KEEP_PARAM, KEEP_STATES, KEEP_MOMENTS = range(4)
BOUNDARY = 1
ABI_VERSION = 2
_WAIT_MS = 100
_log = logging.getLogger("sluice")

_OK, _PENDING = 0, 1
_ERRORS = {
    2: InvalidArgument,
    3: FailedPrecondition,
    4: ResourceExhausted,
    5: NotFound,
    6: DataLoss,
    7: Unavailable,
    8: PermissionDenied,
    10: NotOpen,
}


class Options(Structure):
    """sluice_options; the defaults are those of SLUICE_OPTIONS_INIT."""

    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("param_dtype", ctypes.c_int32),
        ("grad_dtype", ctypes.c_int32),
        ("hbm_bytes", ctypes.c_int64),
        ("pinned_bytes", ctypes.c_int64),
        ("nvme_bytes", ctypes.c_int64),
        ("nvme_paths", ctypes.POINTER(ctypes.c_char_p)),
        ("nvme_path_count", ctypes.c_uint32),
        ("lowest_param_tier", ctypes.c_int32),
        ("lowest_state_tier", ctypes.c_int32),
        ("io_engine", ctypes.c_int32),
        ("io_depth", ctypes.c_uint32),
        ("io_batch", ctypes.c_uint32),
        ("workers", ctypes.c_int32),
        ("chunk_elements", ctypes.c_int64),
        ("resident_elements_max", ctypes.c_int64),
        ("static_loss_scale", ctypes.c_double),
        ("initial_scale_power", ctypes.c_int32),
        ("hysteresis", ctypes.c_int32),
        ("consecutive_hysteresis", ctypes.c_int32),
        ("loss_scale_window", ctypes.c_int64),
        ("min_loss_scale", ctypes.c_double),
        ("link_bytes_per_second", ctypes.c_double),
        ("overlap", ctypes.c_int32),
        ("trace_spans_max", ctypes.c_uint64),
        ("device", ctypes.c_int32),
        ("device_index", ctypes.c_int32),
        ("hbm_memory", ctypes.c_void_p),
        ("rank", ctypes.c_uint32),
        ("ranks", ctypes.c_uint32),
        ("zero_stage", ctypes.c_int32),
        ("rank_timeout_ms", ctypes.c_int32),
        ("comm", ctypes.c_void_p),
        ("comm_groups", ctypes.c_uint32),
        ("reduction", ctypes.c_int64),
        ("give_up", ctypes.c_void_p),
        ("tuned", ctypes.c_char_p),
    ]

    _when_given = staticmethod(lambda: None)  # called when the library is about to have what `comm` points at

    def __init__(self, **values):
        super().__init__(
            struct_size=ctypes.sizeof(Options),
            hbm_bytes=-1,
            pinned_bytes=-1,
            nvme_bytes=-1,
            lowest_param_tier=NVME,
            lowest_state_tier=NVME,
            resident_elements_max=-1,
            static_loss_scale=1.0,
            initial_scale_power=16,
            hysteresis=2,
            loss_scale_window=1000,
            min_loss_scale=1.0,
            overlap=1,
        )
        paths = [path_bytes("nvme_paths", p) for p in values.pop("nvme_paths", ())]
        self._paths = (ctypes.c_char_p * max(1, len(paths)))(*paths)  # keeps them alive
        self.nvme_paths = ctypes.cast(self._paths, ctypes.POINTER(ctypes.c_char_p))
        self.nvme_path_count = len(paths)
        if values.get("tuned") is not None:
            values["tuned"] = path_bytes("tuned", values["tuned"])
        for name, value in values.items():
            setattr(self, name, value)


class TensorInfo(Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("unit", ctypes.c_uint32),
        ("elements", ctypes.c_int64),
        ("offset", ctypes.c_int64),
        ("step", ctypes.c_int64),
        ("unwritten", ctypes.c_int64),
    ]


class Group(Structure):
    """Hyperparameters: lr, beta1, beta2, eps, weight_decay, l2_decay, bias_correction."""

    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("lr", ctypes.c_double),
        ("beta1", ctypes.c_double),
        ("beta2", ctypes.c_double),
        ("eps", ctypes.c_double),
        ("weight_decay", ctypes.c_double),
        ("l2_decay", ctypes.c_int32),
        ("bias_correction", ctypes.c_int32),
    ]

    def __init__(self, **values):
        super().__init__(struct_size=ctypes.sizeof(Group), **values)


class Place(Structure):
    """Where the caller keeps a tensor's parameter: address and dtype; address 0: not said."""

    _fields_ = [("data", ctypes.c_void_p), ("dtype", ctypes.c_int32), ("reserved", ctypes.c_int32)]


class Gradient(Structure):
    """Address, elements, tensor, whether it is lent (0 or 1)."""

    _fields_ = [("data", ctypes.c_void_p), ("elements", ctypes.c_int64), ("tensor", ctypes.c_uint32), ("lent", ctypes.c_uint32)]
    _packed = struct.Struct("=QqII")

    @classmethod
    def array(cls, gradients):
        """[what a Gradient is made of]. Every unit's backward needs one, so they are looked at as a whole: struct refuses what
        its types don't hold, without saying which it was."""
        try:
            packed = b"".join([cls._packed.pack(*gradient) for gradient in gradients])
        except (struct.error, TypeError):
            return (cls * len(gradients))(*[cls(*gradient) for gradient in gradients])
        return (cls * len(gradients)).from_buffer_copy(packed)


class StepArgs(Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("groups", ctypes.POINTER(Group)),
        ("group_count", ctypes.c_uint32),
        ("clip_norm", ctypes.c_double),
        ("places", ctypes.POINTER(Place)),
        ("place_count", ctypes.c_uint64),
    ]


class StepResult(Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("grad_norm", ctypes.c_double),
        ("applied", ctypes.c_int32),
        ("loss_scale", ctypes.c_double),
    ]


class Rates(Structure):
    """sluice_rates: what the hardware does, per second; 0 means infinitely fast."""

    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("forward_seconds", ctypes.c_double),
        ("backward_seconds", ctypes.c_double),
        ("nvme_bytes", ctypes.c_double),
        ("update_elements", ctypes.c_double),
        ("checksum_bytes", ctypes.c_double),
        ("copy_bytes", ctypes.c_double),
        ("shared_cores", ctypes.c_int32),
    ]


class FloorTerms(Structure):
    _fields_ = [("struct_size", ctypes.c_size_t)] + [
        (name, ctypes.c_double)
        for name in ("total", "forward", "backward", "io", "update", "checksum", "copies", "gradients", "spill")
    ]


_u32, _u64, _i64, _i32 = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int64, ctypes.c_int32
Ticket = _u64
_at, _text, _address = ctypes.POINTER, ctypes.c_char_p, ctypes.c_void_p
_JSON = {"json": _text, "capacity": ctypes.c_size_t, "needed": _at(ctypes.c_size_t)}
_RUNTIME = {"runtime": _u64}
_TICKET = {"ticket": _at(_u64)}
_ACCESS = {"tensor": _u32, "field": _i32, "data": _address, "dtype": _i32, "elements": _i64}
# The arguments of every function, by name.
_FUNCTIONS = {
    "sluice_model_create": {"model": _at(_u64)},
    "sluice_model_add_unit": {"model": _u64, "name": _text, "unit": _at(_u32)},
    "sluice_model_add_tensor": {
        "model": _u64, "unit": _u32, "name": _text, "elements": _i64, "group": _u32, "tensor": _at(_u32)
    },
    "sluice_model_keep_in_hbm": {"model": _u64, "unit": _u32},
    "sluice_model_set_keep": {"model": _u64, "tensor": _u32, "keep": _i32},
    "sluice_model_set_unit_types": {"model": _u64, "unit": _u32, "param_dtype": _i32, "grad_dtype": _i32},
    "sluice_model_destroy": {"model": _u64},
    "sluice_plan": {"model": _u64, "options": _at(Options), **_JSON},
    "sluice_runtime_create": {"model": _u64, "options": _at(Options), "runtime": _at(_u64)},
    "sluice_runtime_destroy": _RUNTIME,
    "sluice_wait": {**_RUNTIME, "ticket": _u64, "timeout_ms": _i32},
    "sluice_iteration_begin": {**_RUNTIME, "key": _u32, "flags": _u32},
    "sluice_iteration_end": _RUNTIME,
    "sluice_acquire": {**_RUNTIME, "unit": _u32, "stream": _address, **_TICKET},
    "sluice_release": {**_RUNTIME, "unit": _u32, "stream": _address},
    "sluice_unit_view": {**_RUNTIME, "unit": _u32, "dlpack": _at(_address)},
    "sluice_tensor_query": {**_RUNTIME, "tensor": _u32, "info": _at(TensorInfo)},
    "sluice_tensor_set_step": {**_RUNTIME, "tensor": _u32, "step": _i64},
    "sluice_grad": {
        **_RUNTIME, "tensor": _u32, "data": _address, "elements": _i64, "stream": _address, **_TICKET
    },
    "sluice_grads": {**_RUNTIME, "gradients": _at(Gradient), "count": _u64, "stream": _address, **_TICKET},
    "sluice_zero_grad": _RUNTIME,
    "sluice_grad_clear": {**_RUNTIME, "tensor": _u32},
    "sluice_step": {**_RUNTIME, "args": _at(StepArgs), **_TICKET},
    "sluice_last_step": {**_RUNTIME, "result": _at(StepResult)},
    "sluice_loss_scale": {**_RUNTIME, "scale": _at(ctypes.c_double)},
    "sluice_drain": {**_RUNTIME, **_TICKET},
    "sluice_read": {**_RUNTIME, **_ACCESS, **_TICKET},
    "sluice_write": {**_RUNTIME, **_ACCESS, **_TICKET},
    "sluice_report": {**_RUNTIME, **_JSON},
    "sluice_floor": {**_RUNTIME, "rates": _at(Rates), "floor": _at(FloorTerms)},
    "sluice_set_rates": {**_RUNTIME, "rates": _at(Rates)},
    "sluice_reset_counters": _RUNTIME,
    "sluice_trace_write": {**_RUNTIME, "path": _text},
    "sluice_trace_span": {**_RUNTIME, "name": _text, "begin_ns": _i64, "end_ns": _i64},
    "sluice_doctor": {"path": _text, **_JSON},
    "sluice_checksum": {"data": _address, "bytes": _u64, "block": _u32, "generation": _u64, "checksum": _at(_u64)},
    **checkpoint_abi.FUNCTIONS,
}
# And those that only libsluice_sim has.
_SIMULATED = {
    "sluice_runtime_create_simulated": {"model": _u64, "options": _at(Options), "seed": _u64, "runtime": _at(_u64)},
    "sluice_simulated_fault": {
        **_RUNTIME, "seam": _u32, "fault": _u32, "nth": _u64, "always": _u32, "happened": _at(_u64)
    },
}
_ARGUMENTS = {**_FUNCTIONS, **_SIMULATED}


def _find_library():
    package = pathlib.Path(__file__).resolve().parents[1]
    build = package.parents[1] / "build"
    candidates = [package / "libsluice.so", *(build / kind / "offload" / "libsluice.so" for kind in ("release", "offline"))]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise ImportError(
        "libsluice.so was not found; looked for "
        + " and ".join(map(str, candidates))
        + ". In a checkout, run scripts/setup."
    )


class Library:
    """One loaded libsluice. Library.default() is the one that belongs to this package."""

    _default = None

    def __init__(self, path=None):
        self.path = pathlib.Path(path) if path is not None else _find_library()
        self._lib = ctypes.CDLL(str(self.path))
        self._lib.sluice_version.restype = ctypes.c_char_p
        self._lib.sluice_last_error.restype = ctypes.c_char_p
        self._lib.sluice_abi_version.restype = _u32
        found = self._lib.sluice_abi_version()
        if found != ABI_VERSION:
            raise ImportError(
                f"{self.path} has ABI version {found}; this package needs {ABI_VERSION}. In a checkout, run scripts/setup."
            )
        self.simulated = hasattr(self._lib, "sluice_runtime_create_simulated")
        for name, arguments in (_ARGUMENTS if self.simulated else _FUNCTIONS).items():
            function = getattr(self._lib, name)
            function.argtypes = list(arguments.values())
            function.restype = ctypes.c_int

    @classmethod
    def default(cls):
        if cls._default is None:
            cls._default = cls()
        return cls._default

    def version(self):
        return self._lib.sluice_version().decode()

    def call(self, name, *arguments):
        """Errors: the library's; InvalidArgument for an argument that its C type doesn't hold."""
        types = _ARGUMENTS[name].items()
        status = getattr(self._lib, name)(*[converted(t, n, v) for (n, t), v in zip(types, arguments, strict=True)])
        if status != _OK:
            self.fail(status)

    def last_error(self):
        return self._lib.sluice_last_error().decode(errors="replace")

    def fail(self, status):
        raise _ERRORS.get(status, SluiceError)(self.last_error())

    def wait(self, runtime, ticket, timeout_ms):
        """Whether the ticket is done."""
        status = self._lib.sluice_wait(runtime, ticket, timeout_ms)
        if status == _PENDING:
            return False
        if status != _OK:
            self.fail(status)
        return True

    def json(self, name, *arguments):
        needed = ctypes.c_size_t(1 << 16)
        buffer = b""
        while len(buffer) < needed.value:  # what is told may grow in between
            buffer = ctypes.create_string_buffer(needed.value)
            self.call(name, *arguments, buffer, len(buffer), ctypes.byref(needed))
        return json.loads(decoded(buffer.value))

    def checksum(self, address, count, block, generation):
        """Of `count` bytes in host memory, as of a block in one of its versions."""
        result = _u64()
        self.call("sluice_checksum", address, count, block, generation, ctypes.byref(result))
        return result.value

    def doctor(self, path=None):
        return self.json("sluice_doctor", None if path is None else path_bytes("path", path))


def _name(text):
    """For messages only: what C or UTF-8 can't have in a text is escaped."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace")


class ModelSpec:
    """units: list of (name, [(tensor name, elements, group)]). keep: tensor number -> KEEP_..., where not KEEP_ALL.
    stay: numbers of the units that live in HBM for good. types: unit number -> (param dtype, grad dtype), where not the
    options'."""

    def __init__(self, library, units, keep=None, stay=(), types=None):
        self._library = library
        self.handle = _u64()
        library.call("sluice_model_create", ctypes.byref(self.handle))
        try:
            self._describe(units, keep or {}, stay, types or {})
        except BaseException:
            self.close()
            raise

    def _describe(self, units, keep, stay, types):
        library, number = self._library, _u32()
        for unit_name, tensors in units:
            library.call("sluice_model_add_unit", self.handle, _name(unit_name), ctypes.byref(number))
            unit = number.value
            for name, elements, group in tensors:
                library.call(
                    "sluice_model_add_tensor", self.handle, unit, _name(name), elements, group, ctypes.byref(number)
                )
        for tensor, kept in keep.items():
            library.call("sluice_model_set_keep", self.handle, tensor, kept)
        for unit in stay:
            library.call("sluice_model_keep_in_hbm", self.handle, unit)
        for unit, (param, grad) in types.items():
            library.call("sluice_model_set_unit_types", self.handle, unit, param, grad)

    def plan(self, options):
        return self._library.json("sluice_plan", self.handle, ctypes.byref(options))

    def close(self):
        if self.handle.value:
            self._library.call("sluice_model_destroy", self.handle)
            self.handle = _u64()


_ABANDONED = []  # the tensors of runtimes that hung at their end; never freed


def _await(event):
    """Whoever is interrupted, and again."""
    while not event.is_set():
        with contextlib.suppress(KeyboardInterrupt):
            event.wait(_WAIT_MS / 1e3)


class Runtime:
    """One sluice_runtime. Blocking methods wait in slices and can be interrupted.

    start_... methods take a Ticket to be filled: one that exists before the call can't be lost to an interrupt after it.
    What they are given addresses of belongs into `lent`. device: one of devices.py; none: as the options say, and no
    stream is passed.
    """

    def __init__(self, units, options, library=None, seed=None, device=None, keep=None, stay=(), types=None):
        self.library = library or Library.default()
        self.device = device
        self.lent = Lent(self)
        self._handle = _u64()
        self._pid = os.getpid()
        spec = ModelSpec(self.library, units, keep, stay, types)
        try:
            if seed is None:
                if device is not None:
                    device.prepare(spec, options)
                self._create(spec, options)
                if device is not None:
                    device.taken()
            else:
                self.library.call(
                    "sluice_runtime_create_simulated",
                    spec.handle,
                    ctypes.byref(options),
                    seed,
                    ctypes.byref(self._handle),
                )
        finally:
            spec.close()
        if options.tuned:
            for words in self.report()["io_settings"]["warnings"]:
                warnings.warn(words, RuntimeWarning, stacklevel=4)  # which name the file

    def _create(self, spec, options):
        """Among several ranks it waits for others, and signals wait for a C call: so that is in a thread. Ctrl-C ends it, here and
        there."""
        ended, done, begun, give_up = [], threading.Event(), threading.Lock(), ctypes.c_int32()

        def create():
            if begun.acquire(blocking=False):
                try:
                    options._when_given()
                    self.library.call("sluice_runtime_create", spec.handle, ctypes.byref(options), ctypes.byref(self._handle))
                except BaseException as error:
                    ended.append(error)
                done.set()

        if options.ranks <= 1:
            create()
        else:
            options.give_up = ctypes.addressof(give_up)
            try:
                threading.Thread(target=create, name="sluice-create", daemon=True).start()
                while not done.wait(_WAIT_MS / 1e3):
                    pass
            except BaseException:
                give_up.value = 1
                if not begun.acquire(blocking=False):
                    _await(done)
                if self._handle.value:
                    self.library.call("sluice_runtime_destroy", self._handle)
                    self._handle = _u64()
                raise
        if ended:
            raise ended[0]

    def _call(self, name, *arguments):
        self._check_open()
        self.library.call(name, self._handle, *arguments)

    def _straight(self, function, *arguments):
        """A call whose arguments the package has made itself, so that they fit. That the runtime is open is looked at by
        the library."""
        status = function(self._handle, *arguments)
        if status != _OK:
            self._check_open()
            self.library.fail(status)

    def _check_open(self):
        if not self.open:
            raise FailedPrecondition("this runtime was closed, and its values are gone")

    def _ticket(self, name, *arguments):
        ticket = Ticket()
        self._call(name, *arguments, ctypes.byref(ticket))
        return ticket

    def start(self, name, *arguments):
        """One of checkpoint_abi.py's, the ticket last."""
        *given, ticket = arguments
        self._call(name, *given, ctypes.byref(ticket))

    def done(self, ticket):
        """Whether the ticket is done; if so it is used up and 0, and an error it ended with is raised."""
        return self._wait(ticket, 0)

    def wait(self, ticket):
        while not self._wait(ticket, _WAIT_MS):
            pass

    def _wait(self, ticket, timeout_ms):
        if not ticket:
            return True
        try:
            if not self.library.wait(self._handle, ticket, timeout_ms):
                return False
        except NotOpen:
            pass  # it was waited for before: an interrupt came between its end and the 0
        except SluiceError:
            ticket.value = 0
            self._check_open()
            raise
        ticket.value = 0
        return True

    def iteration_begin(self, key, boundary):
        self._call("sluice_iteration_begin", key, BOUNDARY if boundary else 0)

    def iteration_end(self):
        self._call("sluice_iteration_end")

    def start_acquire(self, unit, ticket):
        self._straight(self.library._lib.sluice_acquire, unit, self.stream(), ctypes.byref(ticket))

    def release(self, unit):
        self._straight(self.library._lib.sluice_release, unit, self.stream())

    def unit_view(self, unit, pointer):
        """Puts the DLManagedTensor* of a new view into `pointer`, a ctypes.c_void_p."""
        self._straight(self.library._lib.sluice_unit_view, unit, ctypes.byref(pointer))

    def tensor_info(self, tensor):
        info = TensorInfo(struct_size=ctypes.sizeof(TensorInfo))
        self._call("sluice_tensor_query", tensor, ctypes.byref(info))
        return info

    def set_step(self, tensor, step):
        self._call("sluice_tensor_set_step", tensor, step)

    def stream(self):
        """The calling thread's, as the device names it."""
        return self.device.stream() if self.device is not None else None

    def start_grads(self, gradients, stream, ticket):
        """gradients: [what a Gradient is made of], there when the stream has run what it holds. Those that are lent belong
        into lent.keep()."""
        array = Gradient.array(gradients)
        self._straight(self.library._lib.sluice_grads, array, len(gradients), stream, ctypes.byref(ticket))

    def zero_grad(self):
        self._call("sluice_zero_grad")

    def clear_grad(self, tensor):
        self._call("sluice_grad_clear", tensor)

    def step(self, groups, clip_norm, places=()):
        """groups: list of Group. Returns StepResult."""
        array = (Group * len(groups))(*groups)
        args = StepArgs(
            struct_size=ctypes.sizeof(StepArgs), groups=array, group_count=len(groups), clip_norm=clip_norm
        )
        if places:  # one Place per tensor
            args.places = (Place * len(places))(*places)
            args.place_count = len(places)
        self.wait(self._ticket("sluice_step", ctypes.byref(args)))
        result = StepResult(struct_size=ctypes.sizeof(StepResult))
        self._call("sluice_last_step", ctypes.byref(result))
        return result

    def loss_scale(self):
        scale = ctypes.c_double()
        self._call("sluice_loss_scale", ctypes.byref(scale))
        return scale.value

    def drain(self):
        self.wait(self._ticket("sluice_drain"))

    def drain_within(self, seconds):
        """The same, for so long at most; returns whether it is so."""
        ticket, until = self._ticket("sluice_drain"), time.monotonic() + seconds
        while not self._wait(ticket, _WAIT_MS):
            if time.monotonic() > until:
                return False
        return True

    def start_read(self, tensor, field, pointer, dtype, elements, ticket):
        self._call("sluice_read", tensor, field, pointer, dtype, elements, ctypes.byref(ticket))

    def start_write(self, tensor, field, pointer, dtype, elements, ticket):
        self._call("sluice_write", tensor, field, pointer, dtype, elements, ctypes.byref(ticket))

    def report(self):
        self._check_open()
        report = self.library.json("sluice_report", self._handle)
        if self.device is not None:
            report["device_reason"] = self.device.reason
        return report

    def floor(self, **rates):
        """The floor of a step in seconds, term by term (offload/plan/floor.h)."""
        given = Rates(struct_size=ctypes.sizeof(Rates), **rates)
        terms = FloorTerms(struct_size=ctypes.sizeof(FloorTerms))
        self._call("sluice_floor", ctypes.byref(given), ctypes.byref(terms))
        return {name: getattr(terms, name) for name, _ in FloorTerms._fields_ if name != "struct_size"}

    def set_rates(self, **rates):
        """For the efficiency of steps in report(): each is measured against the lesser of the floors by the rates that were set
        before and after it; the one that is under way is left out. sluice.probe measures rates."""
        self._call("sluice_set_rates", ctypes.byref(Rates(struct_size=ctypes.sizeof(Rates), **rates)))

    def script_fault(self, seam, fault, nth, always=False):
        """Of a simulated runtime: what its `nth` call of a seam from now on ends as (core/sim_faults.h), and, if `always`,
        all that follow. Returns how many faults there were; nth 0: does nothing else."""
        happened = _u64()
        self._call("sluice_simulated_fault", seam, fault, nth, int(always), ctypes.byref(happened))
        return happened.value

    def reset_counters(self):
        self._call("sluice_reset_counters")

    def trace_write(self, path):
        self._call("sluice_trace_write", path_bytes("path", path))

    def trace_span(self, name, begin_ns, end_ns):
        self._call("sluice_trace_span", _name(name), begin_ns, end_ns)

    @property
    def open(self):
        return bool(self._handle.value)

    def close(self):
        """Waits a few seconds for updates under way, then gives everything back; logs how fast steps were and what was waited
        for, at INFO, as "sluice". In a forked child: nothing."""
        if self._handle.value and os.getpid() == self._pid:
            self._say_what_was_waited_for()
            try:
                self.library.call("sluice_runtime_destroy", self._handle)
            except InvalidArgument:
                pass  # it is gone: an interrupt came between its end and the next line
            except Unavailable:
                self._handle = _u64()  # it is gone too
                _ABANDONED.append(self.lent)  # what hangs may still use them
                raise
            self._handle = _u64()
            self.lent.drop()

    def _say_what_was_waited_for(self):
        if sys.is_finalizing() or not _log.isEnabledFor(logging.INFO):
            return
        try:
            report = self.report()
        except SluiceError:
            return
        if report["waited_for"]["of_seconds"] > 0:
            ranks = report["ranks"]
            of = f"rank {ranks['rank']} of {ranks['ranks']}: " if ranks["ranks"] > 1 else ""
            _log.info("%s%s", of, report["waited_for"]["words"])

    def __del__(self):
        if "_pid" in self.__dict__:
            self.close()
