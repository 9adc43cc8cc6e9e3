"""Parameters whose values are elsewhere: everything that touches one asks its owner first.

A Parameter says by its class whose it is at the moment. `nn.Parameter`: PyTorch's and the caller's, as ever. Away: its
owner's; every torch function that is given one (an operation, `.data`, nn.init, a copy, a print) runs on what the owner
lends for it. Here: its values are in place, under its owner's eyes: operations run on it as on any Parameter, at no
cost, and what it hands out by `.data` or `detach()` shares its version, so that a write is seen. Of all three isinstance(p, nn.Parameter)
holds, and the object stays the same.

An owner has
- use(parameter): a tensor that has the parameter's values and memory of its own, through which gradients go to the
  parameter; or the parameter itself, made Here or nn.Parameter;
- used(parameter, tensor, shared): called when the torch function has returned, with what use() gave. A write is in the
  version; `shared`: others have its memory now, and may write to it past the version;
- set_data(parameter, tensor): `parameter.data = tensor`;
- grad(parameter), set_grad(parameter, gradient or None): `parameter.grad`;
- data(parameter): `parameter.data`; of one that is Here, too;
- read(parameter): a copy of its values, for deep copies and pickles;
- taken(parameter): a copy of its values if a state_dict of its module is being made, else None.

What bypasses torch functions (an extension in C++ that is given a Parameter kept from elsewhere) finds a NaN expanded to the
parameter's shape.
"""

import collections
import sys
import weakref

import torch

_without_torch_function = torch._C.DisableTorchFunctionSubclass
_set_data = torch.Tensor.data.__set__


def placeholder(shape, dtype, device=None):
    """The memory behind a parameter that is away: one element, NaN where that is common."""
    if dtype.is_floating_point and dtype.itemsize > 1:
        return torch.full((), float("nan"), dtype=dtype, device=device or "cpu").expand(shape)
    zeros = torch.zeros(dtype.itemsize, dtype=torch.uint8, device=device or "cpu")
    return zeros.view(dtype).view(()).expand(shape)


def _attributes(*names):
    return {getattr(torch.Tensor, name) for name in names if hasattr(torch.Tensor, name)}


# These ask for, or change, what a parameter has while its values are elsewhere.
_PLAIN = (
    {
        attribute.__get__
        for attribute in _attributes(
            *("shape", "dtype", "device", "layout", "requires_grad", "is_leaf", "grad_fn", "ndim", "names", "grad"),
            *("is_cuda", "is_cpu", "is_meta", "is_sparse", "is_sparse_csr", "is_quantized", "is_xpu", "is_mps", "is_mkldnn"),
            *("is_ipu", "is_xla", "is_vulkan", "is_maia", "is_mtia", "is_nested", "itemsize", "nbytes", "output_nr", "name"),
            *("_backward_hooks", "_post_accumulate_grad_hooks", "retains_grad", "grad_dtype", "volatile", "_base", "_version"),
            *("_has_symbolic_sizes_strides", "_python_dispatch", "_cdata"),
        )
    }
    | {
        attribute.__set__
        for attribute in _attributes("requires_grad", "grad", "grad_dtype", "_backward_hooks", "_post_accumulate_grad_hooks")
    }
    | {torch.Tensor.grad.__delete__}
    | _attributes(
        *("size", "dim", "ndimension", "numel", "nelement", "element_size", "get_device", "is_floating_point", "is_complex"),
        *("is_signed", "is_inference", "is_conj", "is_neg", "is_same_size", "has_names", "is_shared", "is_pinned"),
        *("register_hook", "register_post_accumulate_grad_hook", "requires_grad_", "retain_grad", "backward"),
        *("__hash__", "__len__", "_is_view", "_is_zerotensor"),
    )
    | {torch.numel, torch.is_floating_point, torch.is_complex, torch.is_signed, torch.is_same_size, torch.result_type}
    | {torch.is_inference, torch.is_conj, torch.is_neg, torch.autograd.backward}
)
# These ask for strides, which are those of the values.
_STRIDES = _attributes("stride", "is_contiguous", "storage_offset", "dim_order")
# These ask the first argument for a shape and a type, and make another tensor.
_LIKE = {torch.empty_like, torch.zeros_like, torch.ones_like, torch.full_like, torch.rand_like, torch.randn_like}
_LIKE |= {torch.randint_like}
_NEW = _attributes("new_empty", "new_zeros", "new_ones", "new_full", "new_tensor")
# These give what can be written to past PyTorch's sight.
_BARE = _attributes("numpy", "__array__", "__dlpack__", "data_ptr", "untyped_storage", "storage", "_typed_storage")


class _Owned:
    """What Away and Here share."""

    @property
    def data(self):
        return owner_of(self).data(self)

    @data.setter
    def data(self, tensor):
        owner_of(self).set_data(self, tensor)

    @property
    def grad(self):
        return owner_of(self).grad(self)

    @grad.setter
    def grad(self, gradient):
        owner_of(self).set_grad(self, gradient)

    @grad.deleter
    def grad(self):
        owner_of(self).set_grad(self, None)

    def set_(self, source=None, *place, **named):
        """What PyTorch does without asking a class."""
        if source is not self:
            if place or named or not isinstance(source, torch.Tensor):
                empty = torch.empty(0, dtype=self.dtype, device=self.device)
                source = empty.set_(*(() if source is None else (source,)), *place, **named)
            owner_of(self).set_data(self, source)
        return self

    def as_subclass(self, cls):
        """The same."""
        return self.view_as(self).as_subclass(cls)

    def __copy__(self):
        return torch.nn.Parameter(self.data, self.requires_grad)

    def __deepcopy__(self, memo):
        if id(self) in memo:
            return memo[id(self)]
        memo[id(self)] = torch.nn.Parameter(owner_of(self).read(self), self.requires_grad)
        return memo[id(self)]

    def __reduce_ex__(self, protocol):
        rebuilt = owner_of(self).read(self), self.requires_grad, collections.OrderedDict()
        own = {key: value for key, value in self.__dict__.items() if key != "_sluice_owner"}
        if own:
            return torch._utils._rebuild_parameter_with_state, (*rebuilt, own)
        return torch._utils._rebuild_parameter, rebuilt


class Away(_Owned, torch.nn.Parameter):
    """A Parameter whose values are with its owner."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return _server()(func, args, kwargs or {})


class Here(_Owned, torch.nn.Parameter):
    """A Parameter whose values are in place for now."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    def detach(self):
        return owner_of(self).data(self)


_hidden_from_compiler = None


def _server():
    """_serve(), which torch.compile runs as it is: it breaks the graph there."""
    global _hidden_from_compiler
    if "torch._dynamo" not in sys.modules:  # loading it takes seconds, so not before somebody compiles
        return _serve
    if _hidden_from_compiler is None:
        _hidden_from_compiler = torch._dynamo.disable(_serve)
    return _hidden_from_compiler


class _Gone:
    """The owner of parameters whose owner has ended."""

    def _raise(self, *_):
        from ..native.abi import FailedPrecondition

        raise FailedPrecondition(
            "this parameter's engine was closed, and its values are gone: load_state_dict(..., assign=True) gives the model "
            "new ones"
        )

    use = used = data = set_data = set_grad = read = taken = gather = _raise

    def grad(self, parameter):
        return raw_grad(parameter)


_gone = _Gone()


def owner_of(parameter):
    owner = parameter.__dict__.get("_sluice_owner", lambda: None)()
    return owner if owner is not None else _gone


def is_gone(owner):
    """Whether it is what owner_of() gives where nobody has the values."""
    return owner is _gone


def put_away(parameter, owner):
    """The parameter's values are with `owner` from now on; None: with nobody. Its memory is set by set_memory()."""
    hand_over(parameter, weakref.ref(owner) if owner is not None else lambda: None)


def hand_over(parameter, reference):
    """put_away(), to the owner that reference() gives; the parameter keeps `reference`."""
    parameter._sluice_owner = reference
    parameter.__class__ = Away  # last: an interrupt may come between


def give_back(parameter):
    """The parameter is PyTorch's again, with what is in its memory."""
    parameter.__class__ = torch.nn.Parameter
    parameter.__dict__.pop("_sluice_owner", None)


def is_owned(parameter):
    return isinstance(parameter, _Owned)


def storage_uses(parameter):
    """How many hold the parameter's memory: 1 is the parameter alone."""
    with _without_torch_function():
        storage = parameter.untyped_storage()
    return torch._C._storage_Use_Count(storage._cdata) - 1


# ---- The parameter's own memory, version and gradient, past its owner


def memory(parameter):
    """What `.data` is of a plain Parameter."""
    with _without_torch_function():
        return torch.Tensor.data.__get__(parameter)


def set_memory(parameter, tensor):
    with _without_torch_function():
        _set_data(parameter, tensor)


def version(parameter):
    """How often it was written to: through itself, its views, and what `.data` gave."""
    if type(parameter) is Here:
        return parameter._version
    with _without_torch_function():
        return parameter._version


def versions(parameters):
    with _without_torch_function():
        return [parameter._version for parameter in parameters]


def require_grad(parameters):
    """Of each whether it does."""
    with _without_torch_function():
        return [parameter.requires_grad for parameter in parameters]


# Of many, each the step that put_away() or `Here` and set_memory() are of one.


def show(pairs):
    """pairs: of parameters and their values. They are Here now."""
    with _without_torch_function():
        for parameter, values in pairs:
            _set_data(parameter, values)
            parameter.__class__ = Here


def hide(pairs, owner):
    """pairs: of parameters and placeholders. They are Away now, and their values with `owner`."""
    reference = weakref.ref(owner)
    with _without_torch_function():
        for parameter, empty in pairs:
            hand_over(parameter, reference)
            _set_data(parameter, empty)


def raw_grad(parameter):
    """The gradient that autograd left there."""
    with _without_torch_function():
        return torch.Tensor.grad.__get__(parameter)


def take_raw_grad(parameter):
    """raw_grad(), and it has none from now on."""
    with _without_torch_function():
        gradient = torch.Tensor.grad.__get__(parameter)
        torch.Tensor.grad.__set__(parameter, None)
    return gradient


def set_raw_grad(parameter, gradient):
    with _without_torch_function():
        torch.Tensor.grad.__set__(parameter, gradient)


def alias(parameter):
    """A tensor over the parameter's present memory, through which gradients go to it, whose version is the parameter's, and which
    has the attributes that programs gave it."""
    with _without_torch_function():
        return with_attributes(torch.ops.aten.alias(parameter), parameter)


def with_attributes(tensor, parameter):
    """The tensor, with the attributes that programs gave the parameter."""
    if len(parameter.__dict__) > 1:
        tensor.__dict__.update((name, value) for name, value in parameter.__dict__.items() if name != "_sluice_owner")
    return tensor


def detached(parameter):
    """A tensor over the parameter's present memory, whose version is the parameter's."""
    with _without_torch_function():
        return torch.Tensor.detach(parameter)


# ---- Torch functions on parameters that are away


def _serve(func, args, kwargs):
    if func in _PLAIN or (func in _STRIDES and _is_compiling()):
        with _without_torch_function():
            return func(*args, **kwargs)
    if func is torch.autograd.grad:
        return _differentiated(args, kwargs)
    if func is torch.Tensor.detach:
        taken = owner_of(args[0]).taken(args[0])
        if taken is not None:
            return taken
    if func is torch.Tensor.__repr__:
        return _lent(_repr, (args[0], args[0].requires_grad), {})
    if func in _STRIDES or func in _LIKE or func in _NEW:
        return _of_shape(func, args, kwargs)
    return _lent(func, args, kwargs)


def _differentiated(args, kwargs):
    """torch.autograd.grad(). Parameters are named by their places in the graph: what is recomputed meanwhile may use them,
    and has to find their owner."""
    inputs = args[1] if len(args) > 1 else kwargs.get("inputs")
    fill = kwargs.get("materialize_grads", False)
    if _found(args[:1]) or _found(kwargs.get("outputs")) or not _all_require_grad(inputs):
        with _without_torch_function():
            return torch.autograd.grad(*args, **kwargs)
    edge = torch.autograd.graph.get_gradient_edge
    with _without_torch_function():
        args, kwargs = _replace(args, edge), _replace(kwargs, edge)
    if not fill:
        return torch.autograd.grad(*args, **kwargs)
    found = torch.autograd.grad(*args, **{**kwargs, "materialize_grads": False, "allow_unused": True})
    inputs = [inputs] if isinstance(inputs, torch.Tensor) else inputs
    return tuple(torch.zeros_like(i) if gradient is None else gradient for gradient, i in zip(found, inputs))


def _all_require_grad(inputs):
    found = []
    _replace(inputs, found.append)
    return all(parameter.requires_grad for parameter in found)


def _replace(value, replace):
    if isinstance(value, Away):
        return replace(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_replace(item, replace) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(_replace(item, replace) for item in value)
    if isinstance(value, dict):
        return {key: _replace(item, replace) for key, item in value.items()}
    return value


def _of_shape(func, args, kwargs):
    first, *others = args or (kwargs.get("input"),)
    if not isinstance(first, Away) or not args or _found(others) or _found(kwargs):
        return _lent(func, args, kwargs)
    with _without_torch_function():
        one = torch.empty((), dtype=first.dtype, device="meta" if func in _STRIDES else first.device)
        if func in _STRIDES:
            return func(torch.empty_like(one.expand(first.shape), memory_format=torch.contiguous_format), *others, **kwargs)
        if func in _LIKE:
            kwargs = {"memory_format": torch.contiguous_format, **kwargs}
        return func(one.expand(first.shape), *others, **kwargs)


def _repr(tensor, requires_grad):
    return repr(tensor.detach().requires_grad_(requires_grad))


def _is_compiling():
    """The compiler compares what is told with the memory that is there."""
    return "torch._dynamo" in sys.modules and torch._guards.TracingContext.try_get() is not None


def _found(value):
    found = []
    _replace(value, found.append)
    return bool(found)


def _lent(func, args, kwargs):
    lent = {}  # id -> (parameter, its owner, what is lent for it)

    def lend(parameter):
        if id(parameter) not in lent:
            owner = owner_of(parameter)
            lent[id(parameter)] = parameter, owner, owner.use(parameter)
        return lent[id(parameter)][2]

    result, shared = None, True
    try:
        args, kwargs = _replace(args, lend), _replace(kwargs, lend)
        with _without_torch_function():
            result = func(*args, **kwargs)
            shared = func in _BARE or _has_storage_of(result, [tensor for _, _, tensor in lent.values()])
    finally:
        for parameter, owner, tensor in lent.values():
            owner.used(parameter, tensor, shared)
    for parameter, _, tensor in lent.values():
        if result is tensor:
            return parameter
    return result


def _has_storage_of(result, tensors):
    if isinstance(result, (list, tuple)):
        return any(_has_storage_of(item, tensors) for item in result)
    if not isinstance(result, torch.Tensor) or result.layout != torch.strided:
        return False
    try:
        return any(result is not tensor and torch._C._is_alias_of(result, tensor) for tensor in tensors)
    except RuntimeError:  # one has no storage
        return False
