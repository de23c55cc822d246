"""Perplexity of the reference continuation given the privatised prompt."""

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from del_lightning.metrics.per_example import PerExampleMetric
from del_lightning.report.schema import Estimate


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """-ln softmax(logits)[target] in nats, (N,) float32, of logits (N, V) and token ids (N,)."""
    return F.cross_entropy(logits.float(), targets, reduction="none")


class ConditionalPerplexity(PerExampleMetric):
    """exp of the mean NLL over all scored tokens of all examples (token-weighted).

    Args:
        examples: Number of examples.

    Example:
        >>> import torch
        >>> metric = ConditionalPerplexity(examples=2)
        >>> metric.update(torch.zeros(3, 10), torch.tensor([1, 2, 3]), torch.tensor([0, 0, 1]))
        >>> round(metric.compute().item(), 4), metric.per_example()[1].tolist()
        (10.0, [2, 1])
    """

    higher_is_better = False

    def update(self, logits: Tensor, targets: Tensor, example: Tensor) -> None:
        """Add scored positions.

        Args:
            logits: (N, V) predictions of the targets.
            targets: (N,) token ids.
            example: (N,) number of the example that each row belongs to, below ``examples``.
        """
        self._add(example, token_nll(logits, targets))

    def compute(self) -> Tensor:
        """Perplexity, a float64 scalar; NaN before the first update."""
        return self._ratio().exp()

    def estimate(self) -> Estimate:
        """Perplexity with a 95% bootstrap interval over examples."""
        return self._estimate(np.exp)
