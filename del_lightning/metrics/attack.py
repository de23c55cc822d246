"""Attack success rate: the share of private tokens that an attacker reads."""

import torch
from torch import Tensor
from torchmetrics import Metric

from del_lightning.metrics.intervals import clopper_pearson
from del_lightning.report.schema import Estimate


def recovered(guess: Tensor, truth: Tensor) -> Tensor:
    """(N,) booleans: the true id (N,) is among the guesses (N, k)."""
    return (guess == truth[:, None]).any(-1)


class AttackSuccessRate(Metric):
    """Share of tokens whose id is among the k guesses.

    Example:
        >>> metric = AttackSuccessRate()
        >>> metric.update(torch.tensor([[1], [2], [3], [4]]), torch.tensor([1, 2, 3, 0]))
        >>> metric.compute().item(), metric.estimate().n
        (0.75, 4)
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = None
    hits: Tensor
    n: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("hits", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("n", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, guess: Tensor, truth: Tensor) -> None:
        """Add tokens: guesses (N, k) and true ids (N,)."""
        self.hits = self.hits + recovered(guess, truth).sum()
        self.n = self.n + truth.numel()

    def compute(self) -> Tensor:
        """Rate in [0, 1]; NaN before the first update."""
        return self.hits / self.n

    def estimate(self) -> Estimate:
        """Rate with its 95% Clopper-Pearson interval, over all processes (call it on each of them)."""
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=self.sync_on_compute and not self._is_synced
        ):
            return clopper_pearson(int(self.hits), int(self.n))
