"""Tables of the library's own for ranks that are processes of one host (sluice_comm.h): sockets and memory that is read directly,
without this interpreter."""

import ctypes
import os

from ..native.abi import Library
from . import comm_table

_ADDRESS_BYTES = 128
_NO = "no: "
_VARIABLE = "SLUICE_LOCAL_RANKS"  # 0: all goes over torch.distributed
_CONNECT_S = 10  # all come straight from a round of all


def local_tables(values, rank, ranks, groups, timeout_s):
    """(this rank's tables, so many, None), or (None, why) where the ranks are not of one host, or one of them can't. values: a
    ValueGroup of all ranks, which all call this. timeout_s: of its rounds. Errors: those of `values`."""
    address = ctypes.create_string_buffer(_ADDRESS_BYTES)
    listener = ctypes.c_uint64()
    why = _listen(rank, ranks, address, listener)
    words = values.texts(f"{_NO}{why}" if why else address.value.decode())
    why = _first_no(words)
    if why:
        if listener:
            _functions()["sluice_local_forget"](listener)
        return None, why
    tables = (comm_table.CommTable * groups)()
    tables[0].struct_size = ctypes.sizeof(comm_table.CommTable)
    joined = b"".join(text.encode().ljust(_ADDRESS_BYTES, b"\0") for text in words)
    connect_ms = round(1000 * min(_CONNECT_S, timeout_s / 2))
    mine = _functions()["sluice_local_connect"](listener, joined, groups, connect_ms, tables) and _last_error()
    why = "another rank could not be asked"
    try:
        why = _first_no(values.texts(f"{_NO}{mine}" if mine else ""))
    finally:
        if why and not mine:
            for table in tables:
                table.close(table.context)
    return (None, why) if why else (tables, None)


def _listen(rank, ranks, address, listener):
    """None, or why this rank can't."""
    if os.environ.get(_VARIABLE) == "0":
        return f"{_VARIABLE} is 0 on rank {rank}"
    try:
        functions = _functions()
    except (ImportError, OSError, AttributeError) as error:  # it is another library that is used
        return str(error)
    return functions["sluice_local_listen"](rank, ranks, address, ctypes.byref(listener)) and _last_error()


def _first_no(words):
    return next((text.removeprefix(_NO) for text in words if text.startswith(_NO)), None)


def _last_error():
    return Library.default().last_error()


def _functions():
    number, text, table = ctypes.c_uint32, ctypes.c_char_p, ctypes.POINTER(comm_table.CommTable)
    library = ctypes.CDLL(str(Library.default().path))
    arguments = {
        "sluice_local_listen": (number, number, text, ctypes.POINTER(ctypes.c_uint64)),
        "sluice_local_connect": (ctypes.c_uint64, text, number, ctypes.c_int32, table),
        "sluice_local_forget": (ctypes.c_uint64,),
    }
    functions = {}
    for name, types in arguments.items():
        functions[name] = getattr(library, name)
        functions[name].argtypes, functions[name].restype = types, ctypes.c_int32
    return functions
