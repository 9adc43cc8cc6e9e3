"""Types of units, bytes, and gradients by hand, through abi; PyTorch is the oracle."""

import ctypes

import pytest
import sluice
import torch
from sluice.native import abi

DTYPES = {abi.F32: torch.float32, abi.BF16: torch.bfloat16, abi.F16: torch.float16, abi.BYTES: torch.uint8}
FLOATS = [dtype for dtype in DTYPES if dtype != abi.BYTES]
N = 5003


def make(types, keep=None):
    """A runtime with one unit of one tensor for each pair of types."""
    units = [(f"unit{u}", [(f"tensor{u}", N, 0)]) for u in range(len(types))]
    options = abi.Options(lowest_param_tier=abi.PINNED, lowest_state_tier=abi.PINNED)
    return abi.Runtime(units, options, keep=keep, types=dict(enumerate(types)))


def call(runtime, start, tensor, *field, value, dtype):
    ticket = abi.Ticket()
    start(tensor, *field, value.data_ptr(), dtype, value.numel(), ticket)
    runtime.wait(ticket)


def write(runtime, tensor, field, value, dtype):
    call(runtime, runtime.start_write, tensor, field, value=value, dtype=dtype)


def read(runtime, tensor, field, dtype):
    value = torch.empty(N, dtype=DTYPES[dtype])
    call(runtime, runtime.start_read, tensor, field, value=value, dtype=dtype)
    return value


def push(runtime, tensor, value):
    ticket = abi.Ticket()
    runtime.start_grads([(value.data_ptr(), value.numel(), tensor, 0)], None, ticket)
    runtime.wait(ticket)


def test_every_unit_has_the_copies_and_gradients_of_its_own_types():
    types = [(param, grad) for param in FLOATS for grad in FLOATS]
    runtime = make(types)
    masters, grads = [], []
    for t, (_, grad) in enumerate(types):
        torch.manual_seed(t)
        masters.append(torch.randn(N))
        grads.append(torch.randn(N).to(DTYPES[grad]))
        write(runtime, t, abi.MASTER, masters[t], abi.F32)
        push(runtime, t, grads[t])
        push(runtime, t, grads[t])
    for t, (param, grad) in enumerate(types):
        assert torch.equal(read(runtime, t, abi.PARAM, param), masters[t].to(DTYPES[param]))
        assert torch.equal(read(runtime, t, abi.PARAM, abi.F32), masters[t].to(DTYPES[param]).float())
        assert torch.equal(read(runtime, t, abi.GRAD, grad), grads[t] + grads[t])
    norm = torch.cat([(g + g).double() for g in grads]).norm()
    result = runtime.step([abi.Group(lr=0.0, beta1=0.9, beta2=0.999, eps=1e-8)], 0.0)
    assert result.grad_norm == pytest.approx(norm.item(), rel=1e-12)
    said = {(entry["param_dtype"], entry["grad_dtype"]): entry["units"] for entry in runtime.report()["types"]}
    names = ["fp32", "bf16", "fp16"]
    assert said == {(names[param], names[grad]): 1 for param, grad in types}
    runtime.close()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_of_a_frozen_tensor_survives(dtype):
    runtime = make([(dtype, abi.F32)], keep={0: abi.KEEP_PARAM})
    torch.manual_seed(0)
    value = torch.randint(256, (N * DTYPES[dtype].itemsize,), dtype=torch.uint8).view(DTYPES[dtype])
    write(runtime, 0, abi.MASTER, value, dtype)
    for field in (abi.PARAM, abi.MASTER):
        assert torch.equal(read(runtime, 0, field, dtype).view(torch.uint8), value.view(torch.uint8))
    runtime.close()


def test_gradients_are_set_added_to_and_cleared():
    runtime = make([(abi.BF16, abi.BF16), (abi.F32, abi.F32)])
    for t in range(2):
        write(runtime, t, abi.MASTER, torch.zeros(N), abi.F32)
    torch.manual_seed(0)
    value, more = torch.randn(N), torch.randn(N).to(torch.bfloat16)
    write(runtime, 0, abi.GRAD, value, abi.F32)
    push(runtime, 0, more)
    assert torch.equal(read(runtime, 0, abi.GRAD, abi.BF16), value.to(torch.bfloat16) + more)
    write(runtime, 1, abi.GRAD, more, abi.BF16)
    assert torch.equal(read(runtime, 1, abi.GRAD, abi.F32), more.float())
    runtime.clear_grad(0)
    with pytest.raises(sluice.NotFound, match="tensor 'tensor0' has no gradient"):
        read(runtime, 0, abi.GRAD, abi.BF16)
    result = runtime.step([abi.Group(lr=0.0, beta1=0.9, beta2=0.999, eps=1e-8)], 0.0)
    assert result.grad_norm == pytest.approx(more.double().norm().item(), rel=1e-12)
    runtime.close()


def test_what_makes_no_sense_is_refused_by_name():
    with pytest.raises(sluice.InvalidArgument, match="unit 'unit0' is of bytes, but tensor 'tensor0' is updated"):
        make([(abi.BYTES, abi.F32)])
    with pytest.raises(sluice.InvalidArgument, match="grad_dtype of unit 'unit0' is 3"):
        make([(abi.F32, abi.BYTES)])
    runtime = make([(abi.BYTES, abi.F32), (abi.F32, abi.F32)], keep={0: abi.KEEP_PARAM})
    with pytest.raises(sluice.InvalidArgument, match="unit 'unit0' of tensor 'tensor0' is of bytes"):
        write(runtime, 0, abi.MASTER, torch.zeros(N), abi.F32)
    with pytest.raises(sluice.InvalidArgument, match="dtype is 3 .SLUICE_BYTES., but unit 'unit1'"):
        write(runtime, 1, abi.MASTER, torch.zeros(N, dtype=torch.uint8), abi.BYTES)
    for refused in (lambda: runtime.clear_grad(0), lambda: push(runtime, 0, torch.zeros(N))):
        with pytest.raises(sluice.FailedPrecondition, match="tensor 'tensor0' is frozen: it takes no gradient"):
            refused()
    runtime.close()


def test_a_view_of_bytes_is_a_tensor_of_uint8():
    runtime = make([(abi.BYTES, abi.F32)], keep={0: abi.KEEP_PARAM})
    value = (torch.arange(N) % 256).to(torch.uint8)
    write(runtime, 0, abi.MASTER, value, abi.BYTES)
    ticket = abi.Ticket()
    runtime.start_acquire(0, ticket)
    runtime.wait(ticket)
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    pointer = ctypes.c_void_p()
    runtime.unit_view(0, pointer)
    view = torch.from_dlpack(capsule(pointer, b"dltensor", None))
    assert view.dtype == torch.uint8
    assert torch.equal(view[:N], value)
    assert torch.equal(view[:5000].view(torch.int32), value[:5000].view(torch.int32))  # packed, as some quantizers do
    del view
    runtime.release(0)
    runtime.close()
