"""Optimizer states of parameters that stay where they are: a runtime that keeps masters and moments on the tiers, takes
gradients, and writes the new parameters into the parameters' own memory. An fp32 parameter is its own master: there is no
other.

Parameters whose memory the library can't write (not contiguous, not aligned, or not in RAM) are updated in a copy that is kept in
RAM. One thread. An interrupt may come between any two lines: settle() puts right whatever it left.
"""

import bisect
import collections

import torch

from ..native import abi, values
from ..residency import away, storages
from ..spools.spool import SpoolFile

_DTYPE_NUMBERS = {torch.float32: abi.F32, torch.bfloat16: abi.BF16, torch.float16: abi.F16}
_MOMENTS = (abi.EXP_AVG, abi.EXP_AVG_SQ)
_UNIT_ELEMENTS = 4 << 20  # parameters that no module groups are grouped up to so many
_COPIES_BYTES = 8 << 20  # of gradients that are not as the library takes them: handed over at a time


def units_of(parameters):
    """[(name, parameters)]: neighbours together, up to a size."""
    units, size = [], _UNIT_ELEMENTS
    for parameter in parameters:
        if size >= _UNIT_ELEMENTS:
            units.append((f"parameters {len(units)}", []))
            size = 0
        units[-1][1].append(parameter)
        size += parameter.numel()
    return units


def is_elsewhere(parameter):
    """Whether its values are not in its memory: an engine has them, or the file of a spool."""
    return away.is_owned(parameter)


def check_here(parameters, name_of):
    """Errors: FailedPrecondition if one of them is elsewhere. name_of(parameter): for messages."""
    for parameter in parameters:
        if is_elsewhere(parameter):
            raise abi.FailedPrecondition(
                f"parameter {name_of(parameter)} has its values elsewhere: if an engine has them, its step() updates them; those of a "
                "model that was built in sluice.init() must be given to sluice.initialize() or sluice.attach()"
            )


def check_parameter(parameter, name_of):
    """Errors: TypeError, ValueError if states can't be kept for it."""
    if parameter.dtype not in _DTYPE_NUMBERS:
        raise TypeError(
            f"parameter {name_of(parameter)} is {parameter.dtype}: only fp32, bf16 and fp16 ones are optimized; leave it to "
            "another optimizer"
        )
    if parameter.is_meta or parameter.layout != torch.strided:
        kind = "on the meta device" if parameter.is_meta else parameter.layout
        raise ValueError(f"parameter {name_of(parameter)} is {kind}: only dense ones that have values are optimized")
    if not is_elsewhere(parameter) and storages.overlaps_itself(parameter):
        raise ValueError(
            f"parameter {name_of(parameter)} has several elements in one place, as expand() makes them: it needs memory of its "
            "own for each"
        )


def check_apart(parameters, name_of):
    """Errors: ValueError if two of them share memory: each would undo, or half undo, the other's update."""
    parameters = [parameter for parameter in parameters if not is_elsewhere(parameter)]
    shared = storages.overlapping(parameters)
    if shared is not None:
        one, other = (name_of(parameters[number]) for number in shared)
        raise ValueError(
            f"parameters {one} and {other} share memory, but are two Parameters: let the modules share one (module.weight = "
            "other.weight), which counts once, or give one of them a copy"
        )


def in_place(parameter):
    """Whether the library writes the parameter's own memory."""
    return parameter.device.type == "cpu" and parameter.is_contiguous() and _aligned(parameter)


def _aligned(tensor):
    return tensor.data_ptr() % tensor.element_size() == 0


def own_master(parameter):
    """Whether it needs no other master."""
    return parameter.dtype == torch.float32


class _Spans:
    """The memory of parameters that are contiguous, and apart."""

    def __init__(self, parameters):
        spans = sorted((p.data_ptr(), p.data_ptr() + p.nbytes) for p in parameters)
        self._begins = [begin for begin, _ in spans]
        self._ends = [end for _, end in spans]

    def reach(self, tensor):
        """Whether one of them has a byte of a contiguous tensor."""
        begin = tensor.data_ptr()
        before = bisect.bisect_left(self._begins, begin + tensor.nbytes)
        return before > 0 and self._ends[before - 1] > begin


Spooled = collections.namedtuple("Spooled", "file parameters steps records")  # by id of Parameter: steps, {field: record}


class Progress(collections.namedtuple("Progress", "parameter step unwritten")):
    """Of a parameter in an update: the step it is to be at, and how many of its elements are not there yet."""


class StateStore:
    """units: [(name, parameters)]; options: keyword arguments of abi.Options; name_of(parameter): for messages. The masters
    begin as the parameters, moments as zeros. grad_dtype: what gradients are kept in meanwhile. names: in checkpoints, by id of
    Parameter; None: name_of's."""

    def __init__(self, units, options, grad_dtype, name_of, library=None, seed=None, names=None):
        self.parameters = [p for _, parameters in units for p in parameters]
        self.number = {id(p): n for n, p in enumerate(self.parameters)}
        self.unit_of = {id(p): u for u, (_, parameters) in enumerate(units) for p in parameters}
        self.units = [parameters for _, parameters in units]
        self.grad_dtype = grad_dtype
        self._name_of = name_of
        self._own = {n for n, p in enumerate(self.parameters) if own_master(p)}  # that are their own masters
        self._begun = {}  # number -> updates it had had, of those in a step that may not have ended
        self._places = {}  # number -> abi.Place, in that step
        self._staged = {}  # number -> copy in RAM that is its place
        self._waits = {}  # unit -> ticket of an acquisition that may not have been released
        tensors = iter(range(len(self.parameters)))
        known = (lambda p: names[id(p)]) if names else name_of
        described = [(name, [(known(p), p.numel(), next(tensors)) for p in ps]) for name, ps in units]
        self.runtime = abi.Runtime(
            described,
            abi.Options(param_dtype=abi.F32, grad_dtype=_DTYPE_NUMBERS[grad_dtype], hbm_bytes=0, **options),
            library=library,
            seed=seed,
            keep={n: abi.KEEP_MOMENTS if n in self._own else abi.KEEP_STATES for n in range(len(self.parameters))},
        )
        others = ((n, p) for n, p in enumerate(self.parameters) if n not in self._own)
        values.write_all(self.runtime, ((n, p.detach().to("cpu", torch.float32)) for n, p in others), abi.MASTER)
        zeros = ((n, values.zeros(self.parameters[n].shape, torch.float32)) for n in sorted(self._own))
        values.write_all(self.runtime, zeros, abi.EXP_AVG)

    def fits(self):
        """Whether parameters are of the types still that it was made for."""
        return all(own_master(parameter) == (number in self._own) for number, parameter in enumerate(self.parameters))

    def fields_of(self, parameter):
        """What is kept of it."""
        return _MOMENTS if self.number[id(parameter)] in self._own else (abi.MASTER, *_MOMENTS)

    # ---- Steps

    def hand_over(self, numbers, lend):
        """Gradients of these tensors, for update(), which is told where the parameters lie now. lend: the caller leaves
        gradients as they are until settle(), so those that can be used where they lie are not copied."""
        self._begun = {number: self._updates(number) for number in numbers}
        self._places = {number: self._place(number) for number in numbers}
        self.runtime.iteration_begin(0, True)
        written = _Spans(self.parameters[number] for number in numbers if number not in self._staged)
        given, copies = [], 0
        for number in numbers:
            gradient, copied = self._gradient(self.parameters[number])
            lent = lend and not copied and _aligned(gradient) and not written.reach(gradient)
            given.append((number, gradient, lent))
            copies += gradient.nbytes if copied else 0
            if copies > _COPIES_BYTES:
                self._give(given)
                given, copies = [], 0
        self._give(given)
        self.runtime.lent.finish()
        self.runtime.iteration_end()

    def _give(self, given):
        if not given:
            return
        lent = self.runtime.lent
        for _, gradient, is_lent in given:
            if is_lent:
                lent.keep(gradient)
        items = [(gradient.data_ptr(), gradient.numel(), number, int(is_lent)) for number, gradient, is_lent in given]
        lent.lend_all([gradient for _, gradient, _ in given], self.runtime.start_grads, items, None)

    def update(self, hyperparameters):
        """Starts the update of those whose gradients were handed over. hyperparameters: by their numbers. Returns whether
        there is one: not if a gradient is not finite; nothing has changed then. settle() waits for it."""
        any_group = next(iter(hyperparameters.values()))  # of those without gradient: it is not looked at
        groups = [hyperparameters.get(n, any_group) for n in range(len(self.parameters))]
        places = [self._places.get(n) or abi.Place() for n in range(len(self.parameters))]
        return bool(self.runtime.step(groups, 0.0, places).applied)

    def settle(self):
        """Nothing is under way afterwards, and parameters have their values: waits for an update, and forgets what was
        handed over for one that was not begun. Returns whether there was an update."""
        if not self._begun and not self._waits:
            return False
        self.runtime.lent.finish()
        self.runtime.drain()
        for unit in list(self._waits):
            self._finish_waiting(unit)
        begun = any(self._updates(number) != before for number, before in self._begun.items())
        if begun:
            for number, data in self._staged.items():
                away.memory(self.parameters[number]).copy_(data)
        else:
            self.runtime.iteration_end()
            self.runtime.zero_grad()
        self._staged.clear()
        self.runtime.lent.let_go()
        self._begun = {}
        return begun

    def wait_for_unit(self, unit):
        """Waits until the unit's parameters are written, and for nothing else."""
        if unit in self._waits:
            self._finish_waiting(unit)
        self._waits[unit] = abi.Ticket()
        self.runtime.start_acquire(unit, self._waits[unit])
        self._finish_waiting(unit)

    def _finish_waiting(self, unit):
        self.runtime.wait(self._waits[unit])
        try:
            self.runtime.release(unit)
        except abi.FailedPrecondition:
            pass  # an interrupt came before the acquisition, or after the release
        del self._waits[unit]

    def failure(self):
        """The error that ended the runtime, or None. Nothing writes parameters afterwards."""
        try:
            self.runtime.drain()
        except abi.SluiceError as error:
            return error
        return None

    def progress(self):
        """[Progress] of the parameters of the step under way, or of the one that failed."""
        result = []
        for number, before in self._begun.items():
            info = self.runtime.tensor_info(number)
            written_here = info.step > before and number not in self._staged
            left = info.unwritten if written_here else info.elements
            result.append(Progress(self.parameters[number], before + 1, left))
        return result

    def _updates(self, number):
        return self.runtime.tensor_info(number).step

    def _gradient(self, parameter):
        """As the library takes it, and whether that is a copy."""
        given = parameter.grad.detach()
        gradient = given if given.layout == torch.strided else given.to_dense()
        gradient = gradient.to("cpu", self.grad_dtype).resolve_neg().contiguous()
        return gradient, gradient is not given

    def _place(self, number):
        parameter = self.parameters[number]
        data = parameter.detach()
        if not in_place(data):
            data = self._staged[number] = data.to("cpu", copy=True, memory_format=torch.contiguous_format)
        self.runtime.lent.keep(data)
        return abi.Place(data=data.data_ptr(), dtype=_DTYPE_NUMBERS[data.dtype])

    # ---- Values

    def steps(self, parameter):
        """Updates it has had."""
        return self._updates(self.number[id(parameter)])

    def read(self, parameter, field):
        request = (0, self.number[id(parameter)], parameter.shape)
        return values.read_all(self.runtime, [request], field, torch.float32)[0]

    def write(self, parameter, field, value):
        values.write_all(self.runtime, [(self.number[id(parameter)], value.to("cpu", torch.float32))], field)

    def set_steps(self, parameter, steps):
        self.runtime.set_step(self.number[id(parameter)], steps)

    def spool(self, directory=None):
        """Everything, as Spooled: in an unnamed file that restore() of another store takes. Whole tensors pass through
        RAM, one at a time."""
        file = SpoolFile(
            directory, "sluice.AdamW", "the first nvme_path, or else TMPDIR, says which directory is used while groups are added"
        )
        steps, records = {}, {}
        for parameter in self.parameters:
            steps[id(parameter)] = self.steps(parameter)
            label = f"the optimizer's states of parameter {self._name_of(parameter)}"
            fields = self.fields_of(parameter)
            records[id(parameter)] = {field: file.write(self.read(parameter, field), label) for field in fields}
        return Spooled(file, self.parameters, steps, records)

    def restore(self, spooled):
        """Leaves the file as it is: it has everything still. Of a parameter whose type has changed the master is what the
        parameter is now."""
        for parameter in spooled.parameters:
            for field, record in spooled.records[id(parameter)].items():
                if field not in self.fields_of(parameter):
                    continue
                value = values.empty(parameter.shape, torch.float32)
                spooled.file.read(record, value)
                self.write(parameter, field, value)
            self.set_steps(parameter, spooled.steps[id(parameter)])

    def close(self):
        """Ends the runtime; nothing is written afterwards."""
        self.runtime.close()
