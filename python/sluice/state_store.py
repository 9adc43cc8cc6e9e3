"""Optimizer states of parameters that stay where they are: a runtime that keeps masters and moments on the tiers, takes
gradients, and writes the new parameters into the parameters' own memory.

Parameters whose memory the library can't write (not contiguous, or not in RAM) are updated in a copy that is kept in
RAM. One thread.
"""

import collections
import tempfile

import torch

from . import _abi, values

_DTYPE_NUMBERS = {torch.float32: _abi.F32, torch.bfloat16: _abi.BF16, torch.float16: _abi.F16}
_STATES = (_abi.MASTER, _abi.EXP_AVG, _abi.EXP_AVG_SQ)
_UNIT_ELEMENTS = 4 << 20  # parameters that no module groups are grouped up to so many


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


def check_parameter(parameter):
    """Errors: TypeError, ValueError if states can't be kept for it."""
    if parameter.dtype not in _DTYPE_NUMBERS:
        raise TypeError(f"a parameter is {parameter.dtype}: only fp32, bf16 and fp16 ones are optimized")
    if parameter.numel() == 0:
        raise ValueError("a parameter has no elements: leave it out")


def in_place(parameter):
    """Whether the library writes the parameter's own memory."""
    return parameter.device.type == "cpu" and parameter.is_contiguous()


Spooled = collections.namedtuple("Spooled", "file parameters steps")  # steps: by id of Parameter


class StateStore:
    """units: [(name, parameters)]; options: keyword arguments of _abi.Options. The masters begin as the parameters."""

    def __init__(self, units, options, library=None, seed=None):
        self.parameters = [p for _, parameters in units for p in parameters]
        self.number = {id(p): n for n, p in enumerate(self.parameters)}
        self.unit_of = {id(p): u for u, (_, parameters) in enumerate(units) for p in parameters}
        self.grad_dtype = self._common_dtype()
        self._staged = {}  # number -> copy in RAM
        tensors = iter(range(len(self.parameters)))
        described = [
            (name, [(f"{name}.{i}", p.numel(), next(tensors)) for i, p in enumerate(ps)]) for name, ps in units
        ]
        self.runtime = _abi.Runtime(
            described,
            _abi.Options(param_dtype=_abi.F32, grad_dtype=_DTYPE_NUMBERS[self.grad_dtype], hbm_bytes=0, **options),
            library=library,
            seed=seed,
            keep=dict.fromkeys(range(len(self.parameters)), _abi.KEEP_STATES),
        )
        masters = ((n, p.detach().to("cpu", torch.float32)) for n, p in enumerate(self.parameters))
        values.write_all(self.runtime, masters, _abi.MASTER)

    def _common_dtype(self):
        dtypes = {p.dtype for p in self.parameters}
        return dtypes.pop() if len(dtypes) == 1 else torch.float32

    def step(self, hyperparameters):
        """hyperparameters: by tensor number, for parameters that have a gradient. Starts their update; finish() waits
        for it. Returns the library's StepResult, whose `applied` is 0 if a gradient is not finite: nothing has changed
        then.
        """
        self.runtime.iteration_begin(0, True)
        for number in hyperparameters:
            gradient = self._gradient(self.parameters[number])
            arguments = (number, gradient.data_ptr(), gradient.numel())
            self.runtime.lent.lend(gradient, lambda ticket, a=arguments: self.runtime.start_grad(*a, ticket))
        self.runtime.lent.finish()
        self.runtime.iteration_end()
        any_group = next(iter(hyperparameters.values()))  # of those without gradient: it is not looked at
        groups = [hyperparameters.get(n, any_group) for n in range(len(self.parameters))]
        places = [self._place(n) if n in hyperparameters else _abi.Place() for n in range(len(self.parameters))]
        return self.runtime.step(groups, 0.0, places)

    def _gradient(self, parameter):
        gradient = parameter.grad.detach()
        if gradient.is_sparse:
            gradient = gradient.to_dense()
        return gradient.to("cpu", self.grad_dtype).contiguous()

    def _place(self, number):
        parameter = self.parameters[number]
        check_parameter(parameter)
        data = parameter.detach()
        if not in_place(parameter):
            data = self._staged[number] = data.to("cpu").contiguous()
        return _abi.Place(data=data.data_ptr(), dtype=_DTYPE_NUMBERS[data.dtype])

    def finish(self):
        """Waits until every parameter is written."""
        self.runtime.drain()
        for number, data in self._staged.items():
            self.parameters[number].detach().copy_(data)
        self._staged.clear()

    def wait_for_unit(self, unit):
        """Waits until the unit's parameters are written, and for nothing else."""
        ticket = _abi.Ticket()
        self.runtime.start_acquire(unit, ticket)
        self.runtime.wait(ticket)
        self.runtime.release(unit)

    # ---- Values

    def steps(self, parameter):
        """Updates it has had."""
        return self.runtime.tensor_info(self.number[id(parameter)]).step

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
        file = tempfile.TemporaryFile(dir=directory)
        steps = {}
        for parameter in self.parameters:
            steps[id(parameter)] = self.steps(parameter)
            for field in _STATES:
                file.write(self.read(parameter, field).view(-1).numpy().data)
        file.flush()
        return Spooled(file, self.parameters, steps)

    def restore(self, spooled):
        """Leaves the file open: it has everything still."""
        spooled.file.seek(0)
        for parameter in spooled.parameters:
            for field in _STATES:
                value = torch.empty(parameter.shape)
                if value.numel() * 4 != spooled.file.readinto(value.view(-1).numpy().data):
                    raise OSError("the temporary file of the optimizer's states ended early")
                self.write(parameter, field, value)
            self.set_steps(parameter, spooled.steps[id(parameter)])

    def close(self):
        """Ends the runtime; nothing is written afterwards."""
        self.runtime.close()
