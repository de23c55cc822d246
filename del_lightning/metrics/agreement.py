"""How often the model behind the front-end predicts the same next token as the clean model."""

from torch import Tensor

from del_lightning.metrics.per_example import PerExampleMetric


def agrees(logits: Tensor, reference_top1: Tensor) -> Tensor:
    """(N,) booleans: the top-1 token of logits (N, V) equals ``reference_top1`` (N,)."""
    return logits.argmax(-1) == reference_top1


class NextTokenAgreement(PerExampleMetric):
    """Share of positions whose top-1 token equals the clean model's.

    Args:
        examples: Number of examples.

    Example:
        >>> import torch
        >>> metric = NextTokenAgreement(examples=2)
        >>> metric.update(torch.eye(4), torch.tensor([0, 1, 2, 0]), torch.tensor([0, 0, 1, 1]))
        >>> metric.compute().item(), metric.per_example()[0].tolist()
        (0.75, [2.0, 1.0])
    """

    higher_is_better = True

    def update(self, logits: Tensor, reference_top1: Tensor, example: Tensor) -> None:
        """Add positions: logits (N, V), the clean model's top-1 ids (N,), number of the example (N,)."""
        self._add(example, agrees(logits, reference_top1).double())

    def compute(self) -> Tensor:
        """Share in [0, 1], a float64 scalar; NaN before the first update."""
        return self._ratio()
