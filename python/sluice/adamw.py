"""sluice.AdamW: a torch optimizer whose states live on the tiers, for any training loop.

    optimizer = sluice.AdamW(model.parameters(), lr=1e-4, pinned="32GiB", nvme_path="/mnt/nvme")

Parameters and `.grad` stay PyTorch's; step() reads the one and writes the other. So clip_grad_norm_, GradScaler, LR
schedulers and closures work as ever. The runtime, and with it all memory and disk space, is taken at the first step.
"""

import sys
import warnings
import weakref

import torch

from .native import abi, values
from .optimizers import hyperparameters, state_dicts
from .optimizers.checkpointing import OptimizerCheckpoints
from .optimizers.state_store import StateStore, check_apart, check_here, check_parameter, in_place, units_of
from .optimizers.underway import UnderWay
from .residency import away, copies, registry, units
from .settings.checking import checked, paths_of
from .settings.keys import OWN

_WHOLE = 1 << 60  # elements; no module is cut
_HALVES = {torch.bfloat16, torch.float16}


class AdamW(OptimizerCheckpoints, torch.optim.Optimizer):
    """PyTorch's AdamW, with states in fp32 on pinned RAM and NVMe, and an fp32 master of bf16 and fp16 parameters.

    An fp32 parameter is its own master: 8 bytes of states an element; of 16-bit ones 12. One that becomes 16-bit between steps
    has a master from then on, which begins as what it is then, and one that becomes fp32 is its own; states move as for
    add_param_group().

    pinned, nvme: budgets in bytes, or like "8GiB"; None: chosen from the machine, as needed. nvme_path: a directory, or
    several on different drives; None: nothing goes to a drive. tuned: a file that `sluice tune` wrote. workers: threads that update; None: chosen.
    adamw_mode=False: weight decay is added to the gradient (Adam).

    step() returns with the parameters written, and reads dense gradients in RAM where they lie. With overlap=module it returns
    earlier, with a copy of them: the update runs on, `.grad` may be changed at once, and whatever uses a parameter, by whatever
    door, waits for its layer's part; synchronize() waits for all. (Where parameters are of a class of their own, step()
    waits.)

    A parameter without gradient, and one without elements, is left alone. A parameter that was changed from outside is
    taken as it is: the master follows. If a gradient is not finite, nothing is changed, a warning says so, and
    was_step_applied() is false. Subnormals are flushed to zero. Not thread-safe: one thread trains.

    An update that fails (a drive does) leaves some parameters updated and others not: every call but report(), and every
    use of a parameter of that step, raises that error, which says what is where, until close(). Ctrl-C in any call leaves a
    step taken as a whole or not at all.
    """

    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=1e-2,
        amsgrad=False,
        *,
        maximize=False,
        foreach=None,
        capturable=False,
        differentiable=False,
        fused=None,
        bias_correction=True,
        adamw_mode=True,
        pinned=None,
        nvme=None,
        nvme_path=None,
        workers=None,
        overlap=None,
        chunk_elements=None,
        tuned=None,
        library=None,
        simulated_seed=None,
    ):
        if amsgrad or maximize or differentiable or capturable:
            raise ValueError("amsgrad, maximize, differentiable and capturable are not offered")
        given = {"pinned": pinned, "nvme": nvme, "workers": workers, "chunk_elements": chunk_elements}
        given |= {"tuned": tuned, "library": library, "simulated_seed": simulated_seed}
        own = {key: checked(OWN[key], value, key) for key, value in given.items()}
        paths = () if nvme_path is None else paths_of(nvme_path, "nvme_path")
        self._options = {
            "pinned_bytes": -1 if own["pinned"] is None else own["pinned"],
            "nvme_bytes": -1 if own["nvme"] is None else own["nvme"],
            "nvme_paths": paths,
            "lowest_state_tier": abi.NVME if paths else abi.PINNED,
            "workers": own["workers"] or 0,
            "chunk_elements": own["chunk_elements"] or 0,
            "tuned": own["tuned"],
        }
        self._library = abi.Library(own["library"]) if own["library"] else None
        self._seed = own["simulated_seed"]
        self._module = overlap
        self._store = None
        self._grown = False  # parameters were added since the store was made
        self._spooled = None  # states on their way into a new store
        self._closed = False
        self._applied = False
        self._failure = None  # words of the error that ended an update
        self._torn = False  # load_state_dict() did not get to its end
        self._checked = None  # where parameters were when they were found fit
        self._under_way = UnderWay(self._ready)
        self._handles = []
        self._traceable = []  # hooks that torch.compile would trace into
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "bias_correction": bias_correction,
            "l2_decay": not adamw_mode,
        }
        super().__init__(params, defaults)
        registry.add(self)

    # ---- Groups

    def add_param_group(self, param_group):
        """Also after steps: states move through a temporary file (in nvme_path, if there is one) at the next step.
        Errors: TypeError, ValueError, naming the parameter; nothing has changed then."""
        self._settle()
        super().add_param_group(param_group)
        try:
            for parameter in self.param_groups[-1]["params"]:
                check_parameter(parameter, self._name_of)
            check_apart(self._order(), self._name_of)
            hyperparameters.checked(self.param_groups[-1])
        except BaseException:
            self.param_groups.pop()
            raise
        self._grown = self._store is not None

    def _order(self):
        return [p for group in self.param_groups for p in group["params"]]

    def _names(self):
        """By id of Parameter: as the groups or the module name it, else by its place."""
        names = {}
        for number, group in enumerate(self.param_groups):
            given = group.get("param_names") or [f"{index} of group {number}" for index in range(len(group["params"]))]
            names.update((id(p), name) for p, name in zip(group["params"], given))
        if self._module is not None:
            names.update((id(p), name) for name, p in self._module.named_parameters() if id(p) in names)
        return names

    def _name_of(self, parameter):
        return self._names()[id(parameter)]

    # ---- Steps

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every parameter that has a gradient. Returns what the closure returns."""
        self._check()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._settle()
        chosen = [p for p in self._order() if p.grad is not None and p.numel() > 0]
        if not chosen:
            return loss
        self._check_parameters(chosen)
        self._step(chosen)
        if not self._applied:
            warnings.warn("sluice.AdamW: a gradient is not finite: this step changed nothing", stacklevel=2)
        return loss

    def _check_parameters(self, chosen):
        """Those of this step may have got other memory since they were looked at."""
        mine = self._parameters()
        check_here((p for p in mine if away.is_owned(p)), self._name_of)
        now = [(p.data_ptr(), p.dtype, p.shape, p.stride(), p.grad is None) for p in mine]
        if now == self._checked:
            return
        check_here(mine, self._name_of)
        for parameter in chosen:
            check_parameter(parameter, self._name_of)
        check_apart(mine, self._name_of)
        self._checked = now

    def _step(self, chosen):
        store = self._started()
        groups = self._hyperparameters(store, chosen)
        waits = self._module is None or not all(map(UnderWay.guards_one, chosen))
        self._applied = False
        try:
            store.hand_over(groups, lend=waits)
            self._hide([p for p in chosen if UnderWay.guards_one(p)], lent=waits)
            self._applied = store.update(groups)
            if self._applied:
                torch.autograd.graph.increment_version(chosen)
                self._under_way.watch()
            if waits or not self._applied:
                self._settle()
        except BaseException:
            self._applied = self._settle()
            if self._applied:
                torch.autograd.graph.increment_version(chosen)
            raise

    def _hyperparameters(self, store, chosen):
        """By number."""
        wanted = {id(parameter) for parameter in chosen}
        result = {}
        for group in self.param_groups:
            mine = [store.number[id(p)] for p in group["params"] if id(p) in wanted]
            if mine:
                result.update(dict.fromkeys(mine, hyperparameters.checked(group)))
        return result

    def was_step_applied(self):
        """Whether the last step() updated: false if a gradient was not finite."""
        return self._applied

    def synchronize(self):
        """Waits until every parameter is written. Does nothing if all are."""
        self._check_alive()
        self._settle()

    def _settle(self):
        """Nothing is under way afterwards, whatever an interrupt left. Returns whether there was an update."""
        if self._store is None:
            return False
        try:
            taken = self._store.settle()
        except abi.SluiceError as error:
            self._fail(error)
        self._check_unwritten(self._under_way.give_all_back())
        return taken

    def _check_unwritten(self, parameter):
        if parameter is not None:
            raise abi.FailedPrecondition(
                f"parameter {self._name_of(parameter)} was written to through a view while its update was under way: what was "
                "written may be lost in part; write through the parameter itself, or call synchronize() before"
            )

    def _ready(self, parameter):
        """Called before a parameter is used whose update is under way."""
        self._check_alive()
        if parameter not in self._under_way:  # another part of an interrupted call gave it back
            return
        try:
            self._store.wait_for_unit(self._store.unit_of[id(parameter)])
        except abi.SluiceError as error:
            self._fail(error)
        self._check_unwritten(self._under_way.give_back([parameter]))

    def _started(self):
        self._check_alive()
        if self._store is not None and not self._grown and self._fits():
            return self._store
        self._settle()
        self._check_overlap()
        if self._store is not None:
            self._spool()
        names, places = self._names(), self._places()
        store = StateStore(
            self._units(), self._options, self._grad_dtype(), lambda p: names[id(p)], self._library, self._seed, places
        )
        if self._spooled is not None:
            try:
                store.restore(self._spooled)
            except BaseException:
                store.close()
                raise
        self._store = store  # first: an interrupt may come between any two lines
        self._grown = False
        self._spooled = None
        self._place_hooks()
        return store

    def _fits(self):
        return self._store.grad_dtype in (torch.float32, self._grad_dtype()) and self._store.fits()

    def _check(self):
        self._check_alive()
        if self._torn:
            raise abi.FailedPrecondition(
                "load_state_dict() or load_checkpoint() of this optimizer was interrupted, so that some states are loaded and others are not: call it "
                "again"
            )

    def _check_alive(self):
        if self._failure is not None:
            raise self._failure[0](self._failure[1])
        if self._closed:
            raise abi.FailedPrecondition("the optimizer is closed: its states are gone")

    def _grad_dtype(self):
        """The narrowest that holds all gradients there are."""
        parameters = self._parameters()
        dtypes = {p.dtype for p in parameters}
        dtypes |= {gradient.dtype for gradient in map(away.raw_grad, parameters) if gradient is not None}
        return dtypes.pop() if len(dtypes) == 1 and dtypes <= _HALVES else torch.float32

    def _spool(self):
        """Ends the store. Its states stay in the file until a new store has all of them."""
        paths = self._options["nvme_paths"]
        self._spooled = self._store.spool(paths[0] if paths else None)
        old, self._store = self._store, None
        old.close()

    def _parameters(self):
        """Those that there is something to keep of."""
        return [p for p in self._order() if p.numel() > 0]

    def _units(self):
        mine = {id(p): p for p in self._parameters()}
        result = []
        if self._module is not None:
            for unit in units.partition(self._module, _WHOLE)[0]:
                parameters = [mine.pop(id(p)) for _, p in unit.parameters if id(p) in mine]
                if parameters:
                    result.append((unit.name, parameters))
        return result + units_of(mine.values())

    # ---- Overlap with the next forward

    def _check_overlap(self):
        if self._module is not None and not all(map(in_place, self._parameters())):
            raise ValueError("overlap: every parameter must be contiguous, aligned to its type, and in RAM")

    def _place_hooks(self):
        """Modules wait for what they are about to use before they look at any of it: torch.compile traces what comes after, and
        some choose another algorithm for parameters that aren't plain ones."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._module is None:
            return
        cut, doors = units.partition(self._module, _WHOLE)
        for door in doors:
            used = [p for unit in door.units for _, p in cut[unit].parameters]
            hook = copies.Hook(self._make_before_forward(used))
            self._handles.append(door.module.register_forward_pre_hook(hook, prepend=True))
            self._traceable.append(hook)

    def _make_before_forward(self, parameters):
        mine = weakref.ref(self)  # the module's hooks must not keep the optimizer alive

        def before_forward(module, args):
            optimizer = mine()
            if optimizer is not None and optimizer._under_way:
                for parameter in parameters:
                    if parameter in optimizer._under_way:
                        optimizer._ready(parameter)

        return before_forward

    def _hide(self, parameters, lent):
        if "torch._dynamo" in sys.modules:  # loading it takes seconds, so not before somebody compiles
            while self._traceable:
                self._traceable.pop().hide_from_compiler()
        self._under_way.keep(parameters, lent)

    # ---- Failures

    def _fail(self, error):
        """Raises the error, or, if it ended the runtime, what has become of every parameter; as does every later call."""
        first = self._store.failure()
        if first is None:
            raise error
        if self._failure is None:
            progress = self._store.progress()
            self._failure = type(first), f"{first}; {self._words(progress)}"
            self._under_way.keep(p.parameter for p in progress if UnderWay.guards_one(p.parameter))
        raise self._failure[0](self._failure[1]) from error

    def _words(self, progress):
        names = self._names()
        written, half, old = [], [], []
        for parameter, step, unwritten in progress:
            name, elements = names[id(parameter)], parameter.numel()
            if unwritten == 0:
                written.append(f"{name} (step {step})")
            elif unwritten < elements:
                half.append(f"{name} ({elements - unwritten} of {elements} elements at step {step})")
            else:
                old.append(f"{name} (step {step - 1})")
        parts = (("updated", written), ("half written", half), ("not updated", old))
        return (
            "; ".join(f"{what}: {', '.join(which) or 'none'}" for what, which in parts)
            + ". Load the model and a new optimizer from what was saved before"
        )

    # ---- States

    def state_dict(self):
        """As torch.optim.AdamW's, with moments in fp32, and `master` for parameters that aren't fp32. All of it is in
        RAM then."""
        self._check()
        self._settle()
        states = {}
        store = self._started() if self._store is not None or self._spooled is not None else None
        for parameter in self._parameters() if store is not None else ():
            steps = store.steps(parameter)
            if steps == 0:
                continue
            states[parameter] = {
                "step": state_dicts.step_tensor(steps),
                "exp_avg": store.read(parameter, abi.EXP_AVG),
                "exp_avg_sq": store.read(parameter, abi.EXP_AVG_SQ),
            }
            if parameter.dtype != torch.float32:
                states[parameter]["master"] = store.read(parameter, abi.MASTER)
        with state_dicts.shown_to_pytorch(self, states):
            return super().state_dict()

    def load_state_dict(self, state_dict):
        """From another sluice.AdamW, or from torch.optim.AdamW or Adam. Errors: ValueError, naming the parameter, if any of
        it can't be taken; nothing has changed then."""
        self._check_alive()
        self._settle()
        loading = state_dicts.Loading(self, state_dict, self._name_of)
        store = self._started()
        self._torn = True
        loading.apply_groups()
        for parameter, entry in loading.entries:
            if parameter.numel() > 0:
                self._load(store, parameter, entry)
        self._torn = False
        loading.finish()

    @staticmethod
    def _load(store, parameter, entry):
        if entry is None:
            zeros = values.zeros(parameter.shape, torch.float32)
            entry = {"step": 0, "exp_avg": zeros, "exp_avg_sq": zeros}
        store.set_steps(parameter, entry["step"])
        for key, field in state_dicts.STATES.items():
            if field in store.fields_of(parameter):
                store.write(parameter, field, entry[key] if key in entry else parameter)

    def report(self):
        """Counters, times, what was waited for, budgets and placement, and, after an update has failed, `failure`; None before
        the first step. close() logs `waited_for.words` at INFO, as "sluice"."""
        if self._store is None:
            return None
        failure = {} if self._failure is None else {"failure": self._failure[1]}
        return {**self._store.runtime.report(), **failure}

    # ---- As a holder of parameters (registry.py)

    streams = False

    @property
    def runtime(self):
        self._check()
        return self._started().runtime

    def tensor_of(self, parameter):
        if self._store is not None:
            known = self._store.number
        else:
            known = self._spooled.steps if self._spooled is not None else {}
        if id(parameter) not in known:
            return None
        self._check()
        return self._started().number[id(parameter)]

    def is_master(self, parameter):
        """Whether it is its own."""
        self._check()
        return abi.MASTER not in self._started().fields_of(parameter)

    def finish_gradients(self):
        """Nothing is kept of a gradient between steps."""

    # ---- The end

    def close(self):
        """Gives memory and disk space back. The parameters have their last values; the states are gone, and nothing
        can be stepped, saved or loaded any more. Raises what an update failed with, when all is given back: the
        parameters are as that says, and guarded no more."""
        if self._closed:
            return
        error = None
        try:
            self._settle()
        except abi.SluiceError as failed:
            error = failed
        self._release()
        self._closed = True
        if error is not None:
            raise error

    def _release(self):
        registry.discard(self)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._store is not None:
            self._store.close()
        self._under_way.give_all_back()
        self._store = self._spooled = None

    def __del__(self):
        if self.__dict__.get("_store") is not None:
            self._release()  # what an update writes into lives until here

    def __deepcopy__(self, memo):
        raise TypeError("an optimizer with states on the tiers can't be copied: make a new one and load_state_dict()")

    def __reduce__(self):
        raise TypeError("an optimizer with states on the tiers can't be pickled: save its state_dict()")
