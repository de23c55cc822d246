"""Metrics that are a ratio of sums and keep each example's share, so that intervals can resample examples."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from del_lightning.errors import ConfigError
from del_lightning.metrics.intervals import bootstrap_ratio
from del_lightning.report.schema import Estimate


class PerExampleMetric(Metric):
    """Base of metrics sum(total)/sum(count) over examples numbered 0 to E - 1.

    Updates of one example (batches, seeds) add up, on whichever process they happen.

    Args:
        examples: E, at least 1.
        kwargs: Those of every torchmetrics metric.

    Raises:
        ConfigError: ``examples`` is below 1.
    """

    full_state_update = False
    is_differentiable = False
    total: Tensor
    count: Tensor

    def __init__(self, examples: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if examples < 1:
            raise ConfigError(f"`examples` must be at least 1, got {examples!r}")
        # float64: sums over millions of tokens.
        self.add_state("total", default=torch.zeros(examples, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", default=torch.zeros(examples, dtype=torch.long), dist_reduce_fx="sum")

    def _add(self, example: Tensor, values: Tensor) -> None:
        # Not in place: a state made under inference mode could not be updated outside it.
        self.total = self.total.index_add(0, example, values.to(self.total))
        self.count = self.count.index_add(0, example, torch.ones_like(example))

    def _ratio(self) -> Tensor:
        return self.total.sum() / self.count.sum()

    def per_example(self) -> tuple[Tensor, Tensor]:
        """Sums of values (E,) float64 and numbers of rows (E,) long, over all processes (call it on each)."""
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=self.sync_on_compute and not self._is_synced
        ):
            return self.total.clone(), self.count.clone()

    def _estimate(self, transform: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None) -> Estimate:
        total, count = self.per_example()
        seen = count > 0
        return bootstrap_ratio(total[seen].cpu().numpy(), count[seen].cpu().numpy(), transform=transform)

    def estimate(self) -> Estimate:
        """The value with a 95% bootstrap interval over the examples seen."""
        return self._estimate()
