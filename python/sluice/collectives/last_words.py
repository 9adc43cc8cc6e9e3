"""Why a rank ended, told to the others before its connections to them close.

A rank that sees a connection close sees which rank has closed it, not why: perhaps since it had lost another one. So each says,
while its connections are still there, which rank is the cause, and a rank that loses one looks first whether that one has said
something. What was heard is passed on as it is.

Threads: any. What is told first counts.
"""

import datetime
import time

import torch

_TAG = (1 << 30) + 2  # of a message of these, one for each pair
_TAG_OF_BREAK = _TAG - 1
_BYTES = 400
_HEAR_S = 0.5  # so long one that is alive may take to say it
_TELL_S = 0.2
_STAY_S = 0.05  # connections that close at once may take along what was sent on them
_kept = []  # receives and their buffers, also of groups that are gone: never freed


class LastWords:
    """group: of torch.distributed, of all ranks. Whoever makes one ends the group after it has told or heard anything."""

    def __init__(self, group, rank, ranks):
        self._group = group
        self._rank = rank
        self._others = [r for r in range(ranks) if r != rank]
        self._heard = {}
        for peer in self._others:
            buffer = torch.zeros(_BYTES, dtype=torch.uint8, device="cpu")
            self._heard[peer] = buffer, group.recv([buffer], peer, _TAG)
        _kept.append(self._heard)

    def of(self, peer):
        """What `peer` has said, or says within a moment: words that name the rank that is the cause. None: it says nothing.
        Afterwards the group is of no use, unless it has."""
        buffer, work = self._heard[peer]
        try:
            work.wait(datetime.timedelta(seconds=_HEAR_S))
        except RuntimeError:
            pass  # it may have come all the same, before the connection closed
        text = bytes(buffer.tolist()).partition(b"\0")[0].decode("utf-8", "replace")
        if not text:
            return None
        return text if text.startswith("rank ") else f"rank {peer}: {text}"

    def tell(self, words, stay=True):
        """stay: waits a moment, so that it is read before the connections close."""
        text = torch.zeros(_BYTES, dtype=torch.uint8, device="cpu")
        raw = words.encode("utf-8", "replace")[: _BYTES - 1]
        text[: len(raw)] = torch.tensor(list(raw), dtype=torch.uint8, device="cpu")
        _kept.append(text)
        sent = []
        for peer in self._others:
            try:
                sent.append(self._group.send([text], peer, _TAG))
            except RuntimeError:
                pass  # it is gone
        deadline = time.monotonic() + _TELL_S
        for work in sent:
            try:
                work.wait(datetime.timedelta(seconds=max(0.001, deadline - time.monotonic())))
            except RuntimeError:
                pass
        if stay:
            time.sleep(_STAY_S)

    def break_group(self):
        """A receive of what nobody sends, whose timeout ends every operation of the group, on all ranks."""
        for peer in self._others:
            nothing = torch.empty(1, dtype=torch.uint8, device="cpu")
            _kept.append(nothing)
            try:
                self._group.recv([nothing], peer, _TAG_OF_BREAK).wait(datetime.timedelta(milliseconds=1))
            except RuntimeError:
                pass  # that is what it is for; or it was broken before
