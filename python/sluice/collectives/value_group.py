"""Tensors and texts among ranks, for whoever waits for them: before there is a runtime, and beside it. Over a process group of
gloo's, by sends and receives, so that an error names the rank.

Threads: one at a time.
"""

import collections
import contextlib
import queue
import threading

import torch

from ..native.errors import Unavailable
from .group_server import of_rank
from .last_words import LastWords

_TAG_OF_MEETING = 1 << 30  # no other message's: it is never taken for one that a rank waits for


class ValueGroup:
    """group: of torch.distributed, of all ranks, used by nobody else. All ranks call the same, in the same order. Errors:
    Unavailable, naming the rank that is gone, or that has kept this one waiting for timeout_s. After any error, an interrupt
    too, the group is of no use: the other ranks hear why, and whatever is called raises that at once."""

    def __init__(self, group, rank, ranks, timeout_s):
        self._group = group
        self._rank, self._ranks = rank, ranks
        self._timeout_s = timeout_s
        self._last_words = LastWords(group, rank, ranks)
        self._sent, self._received = collections.Counter(), collections.Counter()
        self._spoiled = None  # why it is of no use

    def broadcast(self, raw, root):
        """raw: bytes in RAM, contiguous. Along a binomial tree."""
        with self._all_of_it():
            self._broadcast(raw, root)

    def _broadcast(self, raw, root):
        number, step = (self._rank - root) % self._ranks, 1
        while step < self._ranks and not number & step:
            step *= 2
        if number:
            self._wait(self._receive(raw, (self._rank - step) % self._ranks))
        below = []
        while step > 1:
            step //= 2
            if number + step < self._ranks:
                below.append(self._send(raw, (self._rank + step) % self._ranks))
        for send in below:
            self._wait(send)

    def texts(self, text):
        """What each rank passes, by rank."""
        mine = torch.frombuffer(bytearray(text.encode() + b" "), dtype=torch.uint8)
        with self._all_of_it():
            sizes = self._from_all(torch.tensor([mine.numel()], dtype=torch.int64, device="cpu"), [8] * self._ranks)
            counts = [int(size.view(torch.int64)) for size in sizes]
            return [bytes(t[:-1].tolist()).decode() for t in self._from_all(mine, counts)]

    def meet(self, seconds):
        """Returns when all ranks have come here, or after so long, or if one is gone; afterwards the group is of no use."""
        self._timeout_s = seconds
        with contextlib.suppress(Unavailable), self._all_of_it():
            self._from_all(torch.zeros(1, dtype=torch.float32, device="cpu"), [4] * self._ranks, _TAG_OF_MEETING)

    def give_up(self, words):
        """Ranks that wait for this one, now or later, hear `words`; afterwards the group is of no use. Nothing happens if it was
        before."""
        if self._spoiled is not None:
            return
        self._spoiled = words
        try:
            self._last_words.tell(words)
        finally:
            self._last_words.break_group()

    @contextlib.contextmanager
    def _all_of_it(self):
        """Around what all ranks do: a rank that leaves it half done would have its next message taken for one of it."""
        if self._spoiled is not None:
            raise Unavailable(self._spoiled)
        try:
            yield
        except BaseException as error:
            self.give_up(f"rank {self._rank} left what all ranks do: {type(error).__name__}: {error}")
            raise

    def _from_all(self, tensor, counts, tag=None):
        """What each rank passes, so many bytes of it, by rank. tag: of its messages, unless they are the next ones."""
        raw = tensor.view(torch.uint8)
        parts = [raw if r == self._rank else torch.empty(counts[r], dtype=torch.uint8, device="cpu") for r in range(self._ranks)]
        others = [r for r in range(self._ranks) if r != self._rank]
        under_way = [self._receive(parts[r], r, tag) for r in others] + [self._send(raw, r, tag) for r in others]
        for one in under_way:
            self._wait(one)
        return parts

    def _receive(self, raw, peer, tag=None):
        return self._begin(self._group.recv, self._received, raw, peer, tag)

    def _send(self, raw, peer, tag=None):
        return self._begin(self._group.send, self._sent, raw, peer, tag)

    def _begin(self, function, counter, raw, peer, tag):
        if tag is None:
            tag = counter[peer]
            counter[peer] += 1
        try:
            return function([raw], peer, tag), peer, raw
        except RuntimeError as error:
            raise self._lost(peer, error) from error

    def _wait(self, one):
        """A wait of gloo's that has a timeout breaks the group before anything can be said. And Ctrl-C does not end it."""
        work, peer, _ = one
        ended = queue.SimpleQueue()

        def wait():
            try:
                work.wait()
            except RuntimeError as error:
                ended.put(error)
            else:
                ended.put(None)

        threading.Thread(target=wait, name="sluice-values", daemon=True).start()
        try:
            error = ended.get(timeout=self._timeout_s)
        except queue.Empty:
            error = RuntimeError(f"has kept rank {self._rank} waiting for {self._timeout_s:g} s")
            self._last_words.tell(str(of_rank(peer, error)))  # others may wait for this one, and ask it now
        if error is not None:
            raise self._lost(peer, error) from error

    def _lost(self, peer, error):
        words = str(of_rank(peer, error))
        said = self._last_words.of(peer)
        self._last_words.tell(said or words)
        self._last_words.break_group()
        self._spoiled = words if said is None else f"{said} (says rank {peer})"
        return Unavailable(self._spoiled)
