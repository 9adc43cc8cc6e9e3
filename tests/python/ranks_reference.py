"""What several ranks come to, as a plain loop in one process: each rank's gradients from PyTorch, added up in the order of ranks."""

import torch
from reference_loop import ReferenceLoop, rounded


def mean_over_ranks(gradients):
    """By rank, a gradient or None: the binary tree over ranks in fp32, times fp32's 1/ranks, rounded once. None if no rank has any."""
    there = [g for g in gradients if g is not None]
    if not there:
        return None
    sums = [torch.zeros_like(there[0], dtype=torch.float32) if g is None else g.float() for g in gradients]
    while len(sums) > 1:
        sums = [sums[i] + sums[i + 1] if i + 1 < len(sums) else sums[i] for i in range(0, len(sums), 2)]
    return (sums[0] * rounded(1 / len(gradients))).to(there[0].dtype)


class RanksReference(ReferenceLoop):
    """micro_step(loss_of) takes loss_of(model, rank) of each rank; step() is that of a ReferenceLoop, of the mean."""

    def __init__(self, model, ranks, **options):
        super().__init__(model, **options)
        self.ranks = ranks
        self._means = [None] * len(self.masters)
        self._own = [[None] * len(self.masters) for _ in range(ranks)]

    def micro_step(self, loss_of, apart=False):
        """apart: each rank keeps its own, until a micro-step that isn't. Returns the ranks' losses."""
        losses = []
        for rank, own in enumerate(self._own):
            loss = loss_of(self.model, rank)
            self.backward(loss)
            losses.append(loss.item())
            for index, parameter in enumerate(self.model.parameters()):
                own[index] = _sum(own[index], parameter.grad)
                parameter.grad = None
        if not apart:
            self._average()
        return losses

    def _average(self):
        for index, gradients in enumerate(zip(*self._own)):
            self._means[index] = _sum(self._means[index], mean_over_ranks(gradients))
        self._own = [[None] * len(self.masters) for _ in self._own]

    def step(self):
        self._average()
        for parameter, mean in zip(self.model.parameters(), self._means):
            parameter.grad = mean
        self._means = [None] * len(self.masters)
        super().step()

    def values(self):
        """The masters by name."""
        return {name: master for (name, _), master in zip(self.model.named_parameters(), self.masters)}


def _sum(before, more):
    return more if before is None else before if more is None else before + more
