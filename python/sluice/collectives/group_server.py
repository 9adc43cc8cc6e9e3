"""Serves one table of communication over a process group of gloo's.

A thread of its own runs the operations, in order: sends and receives over the very memory that the library names, and waits
for them. gloo ends a wait that has a timeout by breaking the group, so no wait here has one; whoever wants to know whether
an operation has ended looks at what the thread says. Breaking the group is also how abort() ends what is under way, on this
rank and on the others, who are told why before (last_words.py).

Threads: the library's own call start(), wait(), abort() and close(). Nothing of it waits while it holds the interpreter.
"""

import collections
import ctypes
import queue
import re
import threading

import torch

from . import comm_table
from .last_words import LastWords

_TAG_MAX = 1 << 30  # tags begin again
_WORDS_MAX = 200
_END_S = 5
_WRITABLE = 0x200  # PyBUF_WRITE
_memory = ctypes.pythonapi.PyMemoryView_FromMemory
_memory.restype = ctypes.py_object
_memory.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int]


def _tensor(address, count):
    return torch.frombuffer(_memory(address, count, _WRITABLE), dtype=torch.uint8)


def _joined(segments):
    """Their bytes as one tensor: the memory itself where there is one segment, else a copy."""
    tensors = [_tensor(*segment) for segment in segments]
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _spread(whole, segments):
    at = 0
    for address, count in segments:
        _tensor(address, count).copy_(whole[at : at + count])
        at += count


class _Operation:
    """One that was started. works: (work, the peer's rank, what its memory is) of sends and receives under way."""

    def __init__(self):
        self.works = []
        self.waited = 0  # of these
        self.reply = None  # the rank that is told that what it sent has come
        self.spread = []  # (tensor received, segments that it goes to)


class GroupServer:
    """group: of torch.distributed, of all ranks, used by nobody else. rank, ranks: in it."""

    def __init__(self, group, rank, ranks, name):
        self._group = group
        self._rank = rank
        self._ranks = ranks
        self._asked = queue.SimpleQueue()  # (kind, peer, what is sent, what is received); None: it is closed
        self._changed = threading.Condition()
        self._ended = 0  # operations
        self._problem = None  # what made the first of the others fail
        self._why = None  # abort() was called for
        self._awaited = None  # the rank that the thread waits for
        self._last_words = LastWords(group, rank, ranks)
        self._heard = None  # when abort() was called, of the rank that was waited for
        self._ending = threading.Event()  # set when it is known whether something was
        self._sent = collections.Counter()  # messages, by peer
        self._received = collections.Counter()
        self.thread = threading.Thread(target=self._run, name=f"sluice-{name}", daemon=True)
        self.thread.start()

    # ---- The library's calls

    def start(self, call, number):
        if call.kind in (comm_table.REDUCE_SCATTER, comm_table.ALL_REDUCE):
            raise NotImplementedError(f"{comm_table.NAMES[call.kind]} over gloo: Sluice exchanges there, and adds up by itself")
        self._asked.put((call.kind, call.peer, call.send.by_rank(self._ranks), call.receive.by_rank(self._ranks)))

    def wait(self, number, seconds):
        with self._changed:
            self._changed.wait_for(lambda: self._ended > number or self._problem is not None, seconds)
            if self._ended > number:
                return comm_table.ENDED, ""
            if self._problem is not None:
                return comm_table.FAILED, self._problem
            return comm_table.PENDING, "" if self._awaited is None else f"rank {self._awaited}"

    def abort(self, why):
        if self._why is not None:
            return
        self._why = why
        # Not here: it takes milliseconds for each rank.
        threading.Thread(target=self._end, args=(self._awaited,), name="sluice-abort", daemon=True).start()
        self._asked.put((comm_table.BARRIER, 0, [[]], [[]]))  # wakes the thread, which finds that it was aborted

    def close(self):
        self._asked.put(None)

    # ---- The thread

    def _run(self):
        under_way = collections.deque()
        try:
            while True:
                while not under_way or not self._asked.empty():
                    asked = self._asked.get()
                    if asked is None:  # who waits for this rank is told
                        self._last_words.tell(f"rank {self._rank}: it has ended its training", stay=False)
                        return self._last_words.break_group()
                    operation = _Operation()
                    under_way.append(operation)
                    self._begin(operation, *asked)
                self._finish(under_way[0])
                under_way.popleft()
                with self._changed:
                    self._ended += 1
                    self._changed.notify_all()
        except Exception as error:  # of gloo's, whose only kind is RuntimeError, or of what a call asked for
            self._fail(error, under_way)

    def _begin(self, operation, kind, peer, send, receive):
        others = [r for r in range(self._ranks) if r != self._rank]
        if self._why is not None:
            raise RuntimeError("")  # the library knows why
        if kind == comm_table.ALL_GATHER:
            send = send * self._ranks
        elif kind == comm_table.BROADCAST:
            send = send * self._ranks if peer == self._rank else [[]] * self._ranks
            receive = [receive[0] if r == peer and r != self._rank else [] for r in range(self._ranks)]
            send[self._rank] = []
        elif kind == comm_table.SEND:
            send, receive = [send[0] if r == peer else [] for r in range(self._ranks)], [[]] * self._ranks
        elif kind == comm_table.RECEIVE:
            send, receive = [[]] * self._ranks, [receive[0] if r == peer else [] for r in range(self._ranks)]
        elif kind == comm_table.BARRIER:
            return self._say_hello(operation, others, others)
        # Receives first: what is sent finds its place then.
        for other in others:
            self._receive(operation, other, receive[other])
        for other in others:
            if send[other]:
                self._send(operation, other, _joined(send[other]))
        own = send[self._rank]
        if own and own != receive[self._rank]:
            _spread(_joined(own), receive[self._rank])
        if kind == comm_table.SEND:  # it ends when it was received
            self._say_hello(operation, (), (peer,))
        elif kind == comm_table.RECEIVE:
            operation.reply = peer

    def _say_hello(self, operation, to, of):
        for other in of:
            self._post(operation, other, self._group.recv, self._received, torch.empty(1, dtype=torch.uint8, device="cpu"))
        for other in to:
            self._send(operation, other, torch.zeros(1, dtype=torch.uint8, device="cpu"))

    def _receive(self, operation, peer, segments):
        if not segments:
            return
        if len(segments) == 1:
            whole = _tensor(*segments[0])
        else:
            whole = torch.empty(sum(count for _, count in segments), dtype=torch.uint8, device="cpu")
            operation.spread.append((whole, segments))
        self._post(operation, peer, self._group.recv, self._received, whole)

    def _send(self, operation, peer, whole):
        self._post(operation, peer, self._group.send, self._sent, whole)

    def _post(self, operation, peer, function, counter, whole):
        tag = counter[peer] % _TAG_MAX
        counter[peer] += 1
        try:
            operation.works.append((function([whole], peer, tag), peer, whole))
        except RuntimeError as error:
            raise of_rank(peer, error) from error

    def _finish(self, operation):
        for work, self._awaited, _ in operation.works:
            operation.waited += 1
            try:
                work.wait()
            except RuntimeError as error:
                raise of_rank(self._awaited, error) from error
        self._awaited = None
        for whole, segments in operation.spread:
            _spread(whole, segments)
        if operation.reply is not None:
            self._send(operation, operation.reply, torch.zeros(1, dtype=torch.uint8, device="cpu"))
            operation.works[-1][0].wait()

    def _fail(self, error, under_way):
        """What is under way fails when nobody touches its memory any more."""
        words = str(error)
        if self._why is None:
            words = self._cause(error)
            self._last_words.tell(words)
        else:
            self._ending.wait(_END_S)
            words = self._heard or ""
        self._last_words.break_group()
        for operation in under_way:
            for work, _, _ in operation.works[operation.waited :]:  # one that has ended may be waited for only once
                try:
                    work.wait()
                except RuntimeError:
                    pass
        with self._changed:
            self._problem = words
            self._changed.notify_all()

    def _cause(self, error):
        peer = getattr(error, "rank", None)
        said = None if peer is None else self._last_words.of(peer)
        return str(error) if said is None else f"{said} (says rank {peer})"

    def _end(self, awaited):
        """What abort() is for. If it waited for a rank too long, that one may have waited for another, and say so by now."""
        try:
            self._last_words.tell(self._why)
            self._heard = None if awaited is None else self._last_words.of(awaited)
        finally:
            self._ending.set()
        self._last_words.break_group()


def of_rank(peer, error):
    """The RuntimeError of gloo's, with the rank that it concerns."""
    words = re.sub(r"^\[[^\]]*:\d+\] ", "", str(error)).partition(" This is typically")[0][:_WORDS_MAX]
    named = RuntimeError(f"rank {peer}: {words}")
    named.rank = peer
    return named
