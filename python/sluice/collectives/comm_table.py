"""sluice_comm.h in ctypes: the table of functions that the library calls, and what it calls them with.

A table's context is a number, and the functions are the same for all tables: they find the object that serves it. So none of
them is ever freed, whatever is under way.
"""

import array
import ctypes
import itertools

ALL_GATHER, REDUCE_SCATTER, ALL_REDUCE, BROADCAST, ALL_TO_ALL, SEND, RECEIVE, BARRIER = range(8)
NAMES = ("all-gather", "reduce-scatter", "all-reduce", "broadcast", "all-to-all", "send", "receive", "barrier")
ENDED, PENDING, FAILED, UNSUPPORTED = range(4)
_BUFFER_WORDS = 2  # of a sluice_comm_buffer: address, bytes


class Segments(ctypes.Structure):
    _fields_ = [("buffers", ctypes.c_void_p), ("count", ctypes.c_size_t), ("ends", ctypes.POINTER(ctypes.c_uint32))]

    def by_rank(self, ranks):
        """[[(address, bytes)]] of what isn't empty: by rank, or, where there is one for all, its only element."""
        if not self.count:
            return [[] for _ in range(ranks if self.ends else 1)]
        words = array.array("Q", ctypes.string_at(self.buffers, 8 * _BUFFER_WORDS * self.count))
        pairs = list(zip(words[::_BUFFER_WORDS], words[1::_BUFFER_WORDS]))
        ends = self.ends[:ranks] if self.ends else [self.count]
        return [[pair for pair in pairs[begin:end] if pair[1]] for begin, end in zip([0, *ends], ends)]


class Call(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("tag", ctypes.c_uint64),
        ("kind", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("peer", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("send", Segments),
        ("receive", Segments),
    ]


_address, _size = ctypes.c_void_p, ctypes.c_size_t
_START = ctypes.CFUNCTYPE(ctypes.c_int32, _address, ctypes.POINTER(Call), ctypes.c_uint64, _address, _size)
_WAIT = ctypes.CFUNCTYPE(ctypes.c_int32, _address, ctypes.c_uint64, ctypes.c_int32, _address, _size)
_ABORT = ctypes.CFUNCTYPE(None, _address, ctypes.c_char_p)
_END = ctypes.CFUNCTYPE(None, _address)


class CommTable(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("context", ctypes.c_void_p),
        ("rank", ctypes.c_uint32),
        ("ranks", ctypes.c_uint32),
        ("start", _START),
        ("wait", _WAIT),
        ("abort", _ABORT),
        ("close", _END),
        ("description", ctypes.c_char_p),
    ]


_servers = {}  # context -> who serves it, until it was closed
_contexts = itertools.count(1)
_descriptions = {}  # kept for ever: the library is given their addresses


def _say(words, error, room, result=FAILED):
    text = words.encode("utf-8", "replace")[: room - 1]
    ctypes.memmove(error, text + b"\0", len(text) + 1)
    return result


@_START
def _start(context, call, operation, error, room):
    try:
        _servers[context].start(call.contents, operation)
    except NotImplementedError as problem:
        return _say(str(problem), error, room, UNSUPPORTED)
    except BaseException as problem:  # none may leave
        return _say(f"{type(problem).__name__}: {problem}", error, room)
    return ENDED


@_WAIT
def _wait(context, operation, timeout_ms, error, room):
    try:
        result, words = _servers[context].wait(operation, timeout_ms / 1e3)
    except BaseException as problem:
        return _say(f"{type(problem).__name__}: {problem}", error, room)
    return result if result == ENDED else _say(words, error, room, result)


@_ABORT
def _abort(context, why):
    _servers[context].abort(why.decode("utf-8", "replace"))


@_END
def _close(context):
    _servers.pop(context).close()


def serve(server, rank, ranks, description):
    """A CommTable whose calls `server` serves: start(Call, number), which is valid until it returns, and raises
    NotImplementedError for what it never does; wait(number, seconds), which returns (ENDED, PENDING or FAILED, words of what it
    waits for or what made it fail); abort(why) and close()."""
    context = next(_contexts)
    _servers[context] = server
    text = _descriptions.setdefault(description, ctypes.create_string_buffer(description.encode()))
    return CommTable(
        ctypes.sizeof(CommTable), context, rank, ranks, _start, _wait, _abort, _close,
        ctypes.cast(text, ctypes.c_char_p),
    )  # fmt: skip
