"""Checkpoints by the C ABI (offload/sluice_checkpoint.h): its structs and functions, and what calls them. With several ranks all
save and load, in the same order as they step."""

import ctypes

from .checked import Structure, path_bytes

WITHOUT_STATES, SOME = 1, 2


class Attachment(Structure):
    _fields_ = [("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("bytes", ctypes.c_uint64)]


class SaveArgs(Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("directory", ctypes.c_char_p),
        ("tag", ctypes.c_char_p),
        ("id", ctypes.c_uint64),
        ("attachments", ctypes.POINTER(Attachment)),
        ("attachment_count", ctypes.c_uint64),
        ("latest", ctypes.c_int32),
        ("without_frozen", ctypes.c_int32),
    ]


class LoadArgs(Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("directory", ctypes.c_char_p),
        ("tag", ctypes.c_char_p),
        ("flags", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    ]


_at, _text, _u64, _size = ctypes.POINTER, ctypes.c_char_p, ctypes.c_uint64, ctypes.c_size_t
_NEEDED = {"needed": _at(_size)}
FUNCTIONS = {
    "sluice_save": {"runtime": _u64, "args": _at(SaveArgs), "ticket": _at(_u64)},
    "sluice_load": {"runtime": _u64, "args": _at(LoadArgs), "ticket": _at(_u64)},
    "sluice_checkpoint_describe": {"directory": _text, "tag": _text, "json": _text, "capacity": _size, **_NEEDED},
    "sluice_checkpoint_attachment": {
        "directory": _text, "tag": _text, "rank": ctypes.c_uint32, "name": _text, "data": ctypes.c_void_p, "capacity": _size, **_NEEDED
    },
    "sluice_checkpoint_prune": {"directory": _text, "keep": ctypes.c_uint32, "every": _u64},
}  # fmt: skip


class _Held:
    """What a save reads while it runs."""

    def __init__(self, attachments):
        self.tensors = list(attachments.values())
        self.nbytes = sum(tensor.nbytes for tensor in self.tensors)
        items = [(name.encode(), t.data_ptr() if t.nbytes else None, t.nbytes) for name, t in attachments.items()]
        self.array = (Attachment * max(1, len(items)))(*items)
        self.count = len(items)


def save(runtime, directory, tag, number, attachments, latest=True, without_frozen=False):
    """Returns when directory/tag is durable on all ranks. number: of this save, from 1 to 2^64-1, the same on all ranks, and
    another each time. attachments: this rank's, by the name of a file, tensors of bytes in RAM."""
    held = _Held(attachments)
    args = SaveArgs(
        struct_size=ctypes.sizeof(SaveArgs), directory=path_bytes("directory", directory), tag=path_bytes("tag", tag), id=number,
        attachments=held.array, attachment_count=held.count, latest=int(latest), without_frozen=int(without_frozen),
    )  # fmt: skip
    _run(runtime, held, "sluice_save", args)


def load(runtime, directory, tag, without_states=False, some=False):
    """without_states: moments and numbers of updates are 0 then. some: tensors that the checkpoint lacks stay as they are."""
    flags = (WITHOUT_STATES if without_states else 0) | (SOME if some else 0)
    names = path_bytes("directory", directory), path_bytes("tag", tag)
    _run(runtime, _Held({}), "sluice_load", LoadArgs(ctypes.sizeof(LoadArgs), *names, flags, 0))


def _run(runtime, held, name, args):
    """Waits for it; what it uses stays if an interrupt ends the wait."""
    runtime.lent.finish()
    runtime.lent.lend_all((held,), lambda ticket: runtime.start(name, ctypes.byref(args), ticket))
    runtime.lent.finish()


def describe(library, directory, tag=None):
    """What there is in a directory, or in one of its checkpoints; "": in the one that would be loaded without a tag."""
    return library.json("sluice_checkpoint_describe", *_names(directory, tag))


def attachment(library, directory, tag, rank, name):
    """What that rank attached, as a bytearray."""
    result = bytearray()
    needed = _read_attachment(library, directory, tag, rank, name, None, 0)
    while needed != len(result):
        result = bytearray(needed)
        memory = (ctypes.c_char * needed).from_buffer(result)
        needed = _read_attachment(library, directory, tag, rank, name, ctypes.addressof(memory), len(result))
    return result


def _read_attachment(library, directory, tag, rank, name, address, capacity):
    needed = ctypes.c_size_t()
    arguments = rank, path_bytes("name", name), address if capacity else None, capacity, ctypes.byref(needed)
    library.call("sluice_checkpoint_attachment", *_names(directory, tag), *arguments)
    return needed.value


def prune(library, directory, keep, every):
    """Removes checkpoints but the last `keep`, and those whose number of steps `every` (0: none) divides."""
    library.call("sluice_checkpoint_prune", path_bytes("directory", directory), keep, every)


def _names(directory, tag):
    return path_bytes("directory", directory), None if tag is None else path_bytes("tag", tag)
