"""Ranks of one machine, each a process that carries out what tests tell it, over gloo. A process is of one world after another,
so that many trainings cost the start of few processes."""

import ctypes
import gc
import importlib
import os
import signal
import socket
import sys
import traceback

import torch
import torch.multiprocessing

TIMEOUT_S = 60
_PR_SET_PDEATHSIG = 1
RANKS_MAX = 4


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def _join(rank, world, port):
    """From the world before to another."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1",
    )  # fmt: skip


def _serve(rank, pipe):
    torch.set_num_threads(1)
    joined = None
    while (job := pipe.recv()) is not None:
        function, arguments, world = job
        try:
            if world != joined:
                _join(rank, *world)
                joined = world
            pipe.send((True, function(rank, *arguments)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))


def _nursery(pipes, modules):
    """Loads everything once, and forks a process per rank."""
    for module in modules:
        importlib.import_module(module)
    gc.freeze()
    children = []
    for rank, (theirs, others) in enumerate(pipes):
        child = os.fork()
        if child == 0:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            for mine, other in pipes[rank + 1 :]:
                mine.close(), other.close()
            others.close()
            try:
                _serve(rank, theirs)
            except EOFError:
                pass
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(0)
        others.send(child)  # read by the test's process, from the other end
        theirs.close(), others.close()
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


class Group:
    """run(function, *arguments, world=n): calls function(rank, *arguments), which must be importable, in the first n, and returns
    what they returned, by rank. A rank that ends, or says nothing for a minute, fails the test. ranks: how many there are
    at most; world: where run() does not say."""

    def __init__(self, ranks=2, world=None, modules=("ranks_jobs",)):
        context = torch.multiprocessing.get_context("spawn")
        self._default = self._world = world or ranks
        self._port = free_port()
        self._pipes, theirs, told = [], [], []
        for _ in range(ranks):
            mine, other = context.Pipe()
            tell, told_by = context.Pipe(duplex=False)
            self._pipes.append(mine)
            theirs.append((other, told_by))
            told.append(tell)
        self._nursery = context.Process(target=_nursery, args=(theirs, modules), daemon=True)
        self._nursery.start()
        for pair in theirs:
            for end in pair:
                end.close()
        self._children = [pipe.recv() for pipe in told]
        self._ended = False

    def begin(self, function, *arguments, world=None):
        world = world or self._default
        if world != self._world:
            self._world, self._port = world, free_port()
        for pipe in self._pipes[:world]:
            pipe.send((function, arguments, (world, self._port)))

    def result(self, rank):
        if not self._pipes[rank].poll(TIMEOUT_S):
            self.end()
            raise AssertionError(f"rank {rank} said nothing for {TIMEOUT_S} s")
        try:
            worked, value = self._pipes[rank].recv()
        except EOFError:
            self.end()
            raise AssertionError(f"rank {rank} ended") from None
        if not worked:
            others = [self._words(pipe) for pipe in self._pipes[: self._world] if pipe is not self._pipes[rank] and pipe.poll(5)]
            self.end()  # they may wait for this one for ever
            raise AssertionError(f"rank {rank}: {value}\nthe others: {others}")
        return value

    @staticmethod
    def _words(pipe):
        try:
            return pipe.recv()[1]
        except EOFError:
            return "ended"

    def run(self, function, *arguments, world=None):
        self.begin(function, *arguments, world=world)
        return [self.result(rank) for rank in range(self._world)]

    @property
    def alive(self):
        return not self._ended and self._nursery.is_alive()

    def end(self):
        """At once."""
        self._ended = True
        for child in self._children:
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self._nursery.join(5)
        self._nursery.kill()

    def close(self):
        for pipe in self._pipes:
            try:
                pipe.send(None)
            except OSError:
                pass
        self._nursery.join(TIMEOUT_S)
        self.end()
