"""Tensors as safetensors files have them (github.com/huggingface/safetensors): types, bytes, header, a whole file."""

import ctypes
import json
import os
import struct

import torch

HEADER_MAX = 100 << 20  # bytes: the format's own limit
# By PyTorch's name; None: the format has none.
DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": None, "float8_e5m2fnuz": None, "float8_e8m0fnu": None, "float4_e2m1fn_x2": None, "int64": "I64",
    "int32": "I32", "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
    "complex128": None, "complex64": None, "complex32": None,
}  # fmt: skip


def name_of(dtype):
    return str(dtype).removeprefix("torch.")


def raw_bytes(tensor):
    """Its elements as a uint8 tensor of one dimension in RAM: its own memory where that can be."""
    value = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return value.reshape(-1).view(torch.uint8) if value.numel() else torch.empty(0, dtype=torch.uint8, device="cpu")


def header(entries, metadata):
    """The file up to its first value. entries: [(name, what it says of type and shape, bytes)] in the order of the values."""
    found, end = {"__metadata__": metadata}, 0
    for name, entry, count in entries:
        found[name] = {**entry, "data_offsets": [end, end + count]}
        end += count
    text = json.dumps(found, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > HEADER_MAX:
        raise ValueError(f"a safetensors header of {len(text) >> 20} MiB; at most {HEADER_MAX >> 20} can be read again")
    return struct.pack("<Q", len(text)) + text


def write(path, tensors):
    """A file of these, by name, in their own types; it has the name when it is whole. One at a time passes through RAM. Errors:
    TypeError for a type that the format doesn't have; OSError."""
    entries = []
    for name, tensor in tensors.items():
        dtype = DTYPES.get(name_of(tensor.dtype))
        if dtype is None:
            raise TypeError(f"{name} is {tensor.dtype}, which safetensors files can't hold")
        entries.append((name, {"dtype": dtype, "shape": list(tensor.shape)}, tensor.numel() * tensor.element_size()))
    unfinished = f"{path}.unfinished"
    try:
        with open(unfinished, "wb") as file:
            file.write(header(entries, {"format": "pt"}))
            for tensor in tensors.values():
                raw = raw_bytes(tensor)
                file.write((ctypes.c_char * raw.nbytes).from_address(raw.data_ptr()) if raw.nbytes else b"")
        os.replace(unfinished, path)
    except BaseException:
        if os.path.exists(unfinished):
            os.unlink(unfinished)
        raise
