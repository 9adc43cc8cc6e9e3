"""attach(): a module that goes on being called as ever, with its parameters on the tiers.

    attached = sluice.attach(model, hbm="4GiB", pinned="32GiB", nvme_path="/mnt/nvme", weights="checkpoint/")
    with torch.no_grad():
        model(inputs)

To train, name an optimizer (optimizer=torch.optim.AdamW); then loss.backward(), attached.optimizer.step() and
attached.optimizer.zero_grad(), or attached.step().
"""

import warnings

import torch

from .collectives import world_size
from .engine import frozen
from .engine.engine import Engine, is_compiled
from .residency.away import placeholder
from .residency.precision import Precision
from .residency.shards import Shards
from .settings.checking import checked, paths_of
from .settings.config import Config
from .settings.keys import CLIP_NORM, OWN, PERSISTENCE_THRESHOLD

_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


class Attachment(Engine):
    """What attach() returns: the engine of a module that is called directly. See attach()."""

    def __init__(self, module, config, optimizer, weights, cast):
        self.__dict__["_weights"] = weights
        self.__dict__["_cast"] = cast
        if is_compiled(module):
            raise ValueError(
                "a module that was compiled as a whole can't be attached: compile what layers call instead"
            )
        super().__init__(module, config, optimizer)

    def _find_frozen(self, model):
        advice = "let what is to train require one before sluice.attach()"
        return frozen.find(self.optimizer, model, (), "the module was attached", advice)

    def _initial_values(self, parameter):
        return self._weights.read_for(parameter) if parameter in self._weights else super()._initial_values(parameter)

    def _values_come_from_elsewhere(self, parameter):
        return parameter in self._weights

    def _precision(self, model):
        return Precision(model, self.dtype if self._cast else None, own_types=False, cast_buffers=self._cast)

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


class _Weights:
    """Which values of a module come from files. The module's own parameters on the meta device are replaced by real
    ones, with nothing in them yet."""

    def __init__(self, module, source):
        self._shards = Shards(source) if source is not None else None
        self._names = {}  # id of Parameter -> its name in the files
        if self._shards is not None:
            _replace_meta(module)
            self._match(module)

    def __contains__(self, parameter):
        return id(parameter) in self._names

    def read_for(self, parameter):
        return self._shards.read(self._names[id(parameter)])

    def _match(self, module):
        names, parameters = {}, {}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
            parameters[id(parameter)] = parameter
        used, missing = set(), []
        for key, parameter in parameters.items():
            found = self._shards.find(names[key])
            used.update(names[key])
            if found is not None:
                self._check(found, parameter)
                self._names[key] = found
            elif getattr(parameter, "_sluice_was_meta", False):
                missing.append(names[key][0])
        for name, buffer in module.named_buffers(remove_duplicate=False):
            used.add(name)
            if self._shards.find([name]) is not None:
                self._check(name, buffer)
                _set_buffer(module, name, self._shards.read(name).to(buffer.dtype))
            elif buffer.is_meta:
                missing.append(name)
        if missing:
            raise ValueError(
                f"weights: the files lack {_some(missing)}, which the module has on the meta device only: build it inside "
                "`with sluice.init():`, which gives it values, or give it these"
            )
        unused = sorted(self._shards.names - used)
        if unused:
            warnings.warn(f"weights: the module has no use for {_some(unused)}", stacklevel=5)

    def _check(self, name, tensor):
        self._shards.check_type(name, tensor)
        shape = self._shards.shape(name)
        if shape != tuple(tensor.shape):
            raise ValueError(f"weights: {name} has shape {shape} in the files, {tuple(tensor.shape)} in the module")


def _some(names):
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _replace_meta(module):
    replaced = {}
    for child in module.modules():
        for name, parameter in child._parameters.items():
            if parameter is None or not parameter.is_meta:
                continue
            if id(parameter) not in replaced:
                empty = placeholder(parameter.shape, parameter.dtype)
                fresh = torch.nn.Parameter(empty, requires_grad=parameter.requires_grad)
                fresh._sluice_was_meta = True
                replaced[id(parameter)] = (parameter, fresh)  # the old one, so that its id is not used again
            child._parameters[name] = replaced[id(parameter)][1]


def _set_buffer(module, name, value):
    path, _, leaf = name.rpartition(".")
    module.get_submodule(path)._buffers[leaf] = value


def _dtype_of(module, dtype):
    """What is asked for, or what most of the module's values have."""
    if dtype is not None:
        if dtype not in _NAMES:
            raise ValueError(f"dtype: must be torch.float32, torch.bfloat16 or torch.float16, not {dtype}")
        return _NAMES[dtype]
    elements = dict.fromkeys(_NAMES, 0)
    for parameter in module.parameters():
        if parameter.dtype in elements:
            elements[parameter.dtype] += parameter.numel()
    return _NAMES[max(elements, key=elements.get)]


def attach(
    module,
    *,
    optimizer=None,
    weights=None,
    dtype=None,
    clip_norm=0.0,
    hbm=None,
    pinned=None,
    nvme=None,
    nvme_path=None,
    device="auto",
    workers=None,
    unit_elements=None,
    persistence_threshold=None,
    chunk_elements=None,
    tuned=None,
    overlap=True,
    trace_spans=None,
    library=None,
    simulated_seed=None,
):
    """Moves the parameters of `module` onto the tiers; module(...) goes on working, in training and in evaluation.

    optimizer: to train: torch.optim.AdamW or Adam, a function from the parameters to one of them, or a fresh one over them.
    It is the returned attachment's optimizer then. None: no states are kept; the module evaluates, and step() raises.
    Parameters that don't require a gradient now are frozen: they have no optimizer states and are never written again.
    Whatever else is done to a parameter reads and writes its value. destroy() gives the module its values back.

    weights: safetensors files (a path, several, or a directory) that values are streamed from; the module may be on the
    meta device then. What is not in them must be in the module. dtype: of parameters and floating-point buffers; None: each
    keeps its own; frozen ones may be of any type. hbm, pinned, nvme: budgets in bytes, or like "8GiB"; None: chosen.
    nvme_path: a directory, or one per drive; None: nothing goes to a drive. tuned: a file that
    `sluice tune` wrote. persistence_threshold: units of at most so many elements stay in HBM.
    clip_norm: of all gradients; 0: off.

    One rank trains. With several (torch.distributed, or what the launcher's environment says) an optimizer is refused: use
    sluice.initialize(). Without one, each rank has a whole model of its own, and should be given budgets of its own.

    Errors: ResourceExhausted if a budget can't work, naming the smallest that would; ValueError.
    """
    if optimizer is not None and (ranks := world_size()) > 1:
        raise ValueError(
            f"sluice.attach() trains with one rank, and there are {ranks}, whose gradients nothing would average: use "
            "sluice.initialize(), with the same budgets under \"sluice\" of its configuration"
        )
    paths = () if nvme_path is None else paths_of(nvme_path, "nvme_path")
    lowest = "nvme" if paths else "cpu"
    own = {
        "hbm": hbm,
        "pinned": pinned,
        "nvme": nvme,
        "device": device,
        "workers": workers,
        "unit_elements": unit_elements,
        "chunk_elements": chunk_elements,
        "tuned": tuned,
        "overlap": overlap,
        "trace_spans": trace_spans,
        "library": library,
        "simulated_seed": simulated_seed,
    }
    config = Config(
        managed_accumulation=False,
        clip_norm=checked(CLIP_NORM, clip_norm, "clip_norm") or 0.0,
        dtype=_dtype_of(module, dtype),
        loss_scale={"loss_scale": 1.0},
        offload_param=lowest,
        offload_optimizer=lowest,
        nvme_paths=paths,
        persistence_threshold=checked(PERSISTENCE_THRESHOLD, persistence_threshold, "persistence_threshold"),
        own={key: checked(OWN[key], value, key) for key, value in own.items()},
    )
    return Attachment(module, config, optimizer, _Weights(module, weights), cast=dtype is not None)

