"""Binary classification: the figures of GLUE, over seeds and over examples.

The figures themselves are torchmetrics' functions, all but one. For intervals over examples the same ones are needed
thousands of times on resampled examples, and are computed here from weighted counts, all resamples at once.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student
from torchmetrics.functional.classification import (
    binary_accuracy,
    binary_auroc,
    binary_f1_score,
)

from del_lightning.errors import ConfigError
from del_lightning.metrics.intervals import tail
from del_lightning.report.schema import Estimate

Array = NDArray[np.float64]

CHUNK = 1 << 22
"""Weights held at a time."""

FIGURES = ("accuracy", "f1", "matthews", "auc")
"""Share of right answers; harmonic mean of precision and recall of class 1; Matthews correlation; area under ROC."""

RANGES = {name: (-1.0 if name == "matthews" else 0.0, 1.0) for name in FIGURES}
"""What each figure can be; an interval ends there."""


def binary_figures(scores: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """The figures of one run.

    Args:
        scores: (n,) probability of class 1; above .5 the answer is class 1.
        labels: (n,) 0 or 1.

    Example:
        >>> figures = binary_figures([0.9, 0.4, 0.6, 0.2], [1, 1, 0, 0])
        >>> {name: round(value, 2) for name, value in figures.items()}
        {'accuracy': 0.5, 'f1': 0.5, 'matthews': 0.0, 'auc': 0.75}
    """
    probability, label = torch.as_tensor(np.asarray(scores)).double(), torch.as_tensor(np.asarray(labels)).long()
    if probability.ndim != 1 or probability.shape != label.shape or len(label) == 0:
        shapes = f"{tuple(probability.shape)} and {tuple(label.shape)}"
        raise ConfigError(f"`scores` and `labels` must be non-empty vectors of one length, got {shapes}")
    return {
        "accuracy": float(binary_accuracy(probability, label)),
        "f1": float(binary_f1_score(probability, label)),
        "matthews": _matthews(probability.numpy(), label.numpy()),
        "auc": float(binary_auroc(probability, label)),
    }


def _matthews(scores: Array, labels: NDArray[np.int_]) -> float:
    """Matthews correlation; 0 for a constant answer, where torchmetrics' small-sample formula leaves a remainder."""
    return float(weighted(scores, labels, np.ones((1, len(labels))))["matthews"][0])


def over_seeds(
    values: Sequence[float], confidence: float = 0.95, within: tuple[float, float] = (-np.inf, np.inf)
) -> Estimate:
    """Mean over seeds with Student's t interval, cut to what is possible; without an interval for a single seed.

    Args:
        values: One a seed.
        confidence: In (0, 1).
        within: Smallest and largest possible mean, see :data:`RANGES`.

    Example:
        >>> estimate = over_seeds([0.6, 0.7, 0.8])
        >>> round(estimate.value, 2), round(estimate.low, 3), round(estimate.high, 3), estimate.n
        (0.7, 0.452, 0.948, 3)
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0:
        raise ConfigError(f"`values` must be a non-empty vector, got shape {array.shape}")
    mean, count = float(array.mean()), len(array)
    if count == 1:
        return Estimate(value=mean, n=1)
    half = float(student.ppf(1 - tail(confidence), count - 1) * array.std(ddof=1) / np.sqrt(count))
    low, high = max(mean - half, within[0]), min(mean + half, within[1])
    return Estimate(value=mean, n=count, low=low, high=high, interval="t")


def over_examples(
    scores: ArrayLike, labels: ArrayLike, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> dict[str, Estimate]:
    """Every figure, averaged over seeds, with a percentile interval over resampled examples.

    Seeds that answered the same examples are resampled together, so the interval is about the examples and treats
    the seeds as given.

    Args:
        scores: (S, n) probability of class 1 under each seed.
        labels: (n,) 0 or 1, the same for all seeds.
        confidence: In (0, 1).
        resamples: At least 1000.
        seed: Of the resampling; equal seeds resample the same examples.
    """
    low = tail(confidence)
    if resamples < 1000:
        raise ConfigError(f"`resamples` must be at least 1000, got {resamples!r}")
    rows, label = np.atleast_2d(np.asarray(scores, dtype=np.float64)), np.asarray(labels)
    points = [binary_figures(row, label) for row in rows]
    drawn = _resampled(rows, label, resamples, seed)
    found = {}
    for name in FIGURES:
        ends = np.quantile(drawn[name], [low, 1 - low])
        value = float(np.mean([one[name] for one in points]))
        found[name] = Estimate(value=value, n=len(label), low=float(ends[0]), high=float(ends[1]), interval="bootstrap")
    return found


def differences(
    ours: ArrayLike,
    theirs: ArrayLike,
    labels: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Every figure of one row minus another's on the same examples, averaged over seeds.

    Args:
        ours: (S, n) probability of class 1 under each seed.
        theirs: The same of the row that is taken off.
        labels: (n,) 0 or 1.
        confidence: In (0, 1); the interval is over examples, which both rows are resampled on together.
        resamples: At least 1.
        seed: Of the resampling.
    """
    low, label = tail(confidence), np.asarray(labels)
    pair = [np.atleast_2d(np.asarray(scores, dtype=np.float64)) for scores in (ours, theirs)]
    points = [[binary_figures(row, label) for row in rows] for rows in pair]
    drawn = [_resampled(rows, label, resamples, seed) for rows in pair]
    found = {}
    for name in FIGURES:
        first, second = (float(np.mean([one[name] for one in rows])) for rows in points)
        ends = np.quantile(drawn[0][name] - drawn[1][name], [low, 1 - low])
        found[name] = Estimate(
            value=first - second, n=len(label), low=float(ends[0]), high=float(ends[1]), interval="bootstrap"
        )
    return found


def _resampled(rows: Array, labels: NDArray[np.int_], resamples: int, seed: int) -> dict[str, Array]:
    """Every figure under every resampling of the examples, averaged over seeds: (resamples,)."""
    parts: dict[str, list[Array]] = {name: [] for name in FIGURES}
    for weights in _weights(len(labels), resamples, seed):
        drawn = [weighted(row, labels, weights) for row in rows]
        for name in FIGURES:
            parts[name].append(np.mean([one[name] for one in drawn], axis=0))
    return {name: np.concatenate(values) for name, values in parts.items()}


@lru_cache(maxsize=2)
def _weights(n: int, resamples: int, seed: int) -> list[Array]:
    """How often each of n examples is drawn, in chunks (R, n): the same for all rows of a board, so drawn once."""
    generator, size = np.random.default_rng(seed), max(1, CHUNK // n)
    counts = [min(size, resamples - start) for start in range(0, resamples, size)]
    return [generator.multinomial(n, np.full(n, 1 / n), size=count).astype(np.float64) for count in counts]


def weighted(scores: Array, labels: NDArray[np.int_], weights: Array) -> dict[str, Array]:
    """The figures under many weightings of the examples: scores (n,), labels (n,), weights (R, n) -> (R,) each.

    A figure that is undefined (no positive, or one class only) is 0, the area .5, as torchmetrics has it for 0.
    """
    positive, guess = labels == 1, scores > 0.5
    pairs = ((positive, guess), (~positive, guess), (positive, ~guess), (~positive, ~guess))
    tp, fp, fn, tn = (weights @ (truth & answer) for truth, answer in pairs)
    root = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return {
        "accuracy": (tp + tn) / weights.sum(axis=1),
        "f1": _ratio(2 * tp, 2 * tp + fp + fn, 0.0),
        "matthews": _ratio(tp * tn - fp * fn, root, 0.0),
        "auc": _ratio(_concordant(scores, positive, weights), (tp + fn) * (fp + tn), 0.5),
    }


def _ratio(top: Array, bottom: Array, otherwise: float) -> Array:
    return np.where(bottom > 0, top / np.where(bottom > 0, bottom, 1.0), otherwise)


def _concordant(scores: Array, positive: NDArray[np.bool_], weights: Array) -> Array:
    """Weighted pairs (positive, negative) in the right order, ties half: (R,)."""
    above, below = np.flatnonzero(positive), np.flatnonzero(~positive)
    below = below[np.argsort(scores[below])]
    # Column k: the weight of the k negatives of the lowest scores.
    first = np.zeros((len(weights), len(below) + 1))
    np.cumsum(weights[:, below], axis=1, out=first[:, 1:])
    lower, not_higher = (np.searchsorted(scores[below], scores[above], side) for side in ("left", "right"))
    return np.asarray((weights[:, above] * (first[:, lower] + first[:, not_higher])).sum(axis=1) / 2)
