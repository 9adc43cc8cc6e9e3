"""Tables of the library's own for ranks that are processes of one host (sluice_comm.h): sockets and memory that is read directly,
without this interpreter."""

import ctypes
import os

from ..native.abi import Library
from . import comm_table

_ADDRESS_BYTES = 128
_VARIABLE = "SLUICE_LOCAL_RANKS"  # 0: all goes over torch.distributed
_CONNECT_S = 60


def local_tables(values, rank, ranks, groups):
    """This rank's tables, so many, or None where the ranks are not of one host, or one of them can't. values: a ValueGroup of
    all ranks, which all call this. Errors: those of `values`."""
    functions = _functions()
    address = ctypes.create_string_buffer(_ADDRESS_BYTES)
    listener = ctypes.c_uint64()
    can = os.environ.get(_VARIABLE) != "0"
    can = can and functions["sluice_local_listen"](rank, ranks, address, ctypes.byref(listener)) == 0
    addresses = values.texts(address.value.decode() if can else "")
    if not all(addresses):
        if can:
            functions["sluice_local_forget"](listener)
        return None
    tables = (comm_table.CommTable * groups)()
    joined = b"".join(text.encode().ljust(_ADDRESS_BYTES, b"\0") for text in addresses)
    connected = functions["sluice_local_connect"](listener, joined, groups, 1000 * _CONNECT_S, tables) == 0
    if all(values.texts("yes" if connected else "")):
        return tables
    if connected:
        for table in tables:
            table.close(table.context)
    return None


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
