"""Two ranks, each a process that carries out what tests tell it, over gloo on this machine."""

import os
import socket
import traceback

import torch
import torch.multiprocessing

RANKS = 2
TIMEOUT_S = 60


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def _serve(rank, port, pipe):
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(RANKS), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(RANKS),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1",
    )  # fmt: skip
    torch.set_num_threads(1)
    while (job := pipe.recv()) is not None:
        function, arguments = job
        try:
            pipe.send((True, function(rank, *arguments)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))


class Pair:
    """run(function, *arguments): calls function(rank, *arguments), which must be importable, in both, and returns what they
    returned, by rank. A rank that ends, or says nothing for a minute, fails the test."""

    def __init__(self):
        context = torch.multiprocessing.get_context("spawn")
        self._pipes, self._processes, port = [], [], free_port()
        for rank in range(RANKS):
            mine, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, port, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(mine)
            self._processes.append(process)

    def begin(self, function, *arguments):
        for pipe in self._pipes:
            pipe.send((function, arguments))

    def result(self, rank):
        if not self._pipes[rank].poll(TIMEOUT_S):
            self.end()
            raise AssertionError(f"rank {rank} said nothing for {TIMEOUT_S} s")
        worked, value = self._pipes[rank].recv()
        if not worked:
            others = [pipe.recv()[1] for pipe in self._pipes if pipe is not self._pipes[rank] and pipe.poll(5)]
            self.end()  # it may wait for this one for ever
            raise AssertionError(f"rank {rank}: {value}\nthe other: {others}")
        return value

    def run(self, function, *arguments):
        self.begin(function, *arguments)
        return [self.result(rank) for rank in range(RANKS)]

    @property
    def alive(self):
        return all(process.is_alive() for process in self._processes)

    def end(self):
        for process in self._processes:
            process.kill()
            process.join()

    def close(self):
        for pipe, process in zip(self._pipes, self._processes):
            if process.is_alive():
                pipe.send(None)
        for process in self._processes:
            process.join(TIMEOUT_S)
            process.kill()
