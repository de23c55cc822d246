"""Numbers with their sample size and confidence interval."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta

from del_lightning.errors import ConfigError
from del_lightning.report.schema import Estimate

Array = NDArray[np.float64]


def clopper_pearson(hits: int, n: int, confidence: float = 0.95) -> Estimate:
    """Success rate with its exact (never too narrow) binomial interval.

    Args:
        hits: Successes, 0 to n.
        n: Trials, at least 1.
        confidence: In (0, 1).

    Raises:
        ConfigError: An argument is out of range.

    Example:
        >>> rate = clopper_pearson(8, 100)
        >>> rate.value, round(rate.low, 4), round(rate.high, 4)
        (0.08, 0.0352, 0.1516)
    """
    if n < 1:
        raise ConfigError(f"`n` must be at least 1, got {n!r}")
    if not 0 <= hits <= n:
        raise ConfigError(f"`hits` must be between 0 and n = {n}, got {hits!r}")
    outside = tail(confidence)
    low = 0.0 if hits == 0 else float(beta.ppf(outside, hits, n - hits + 1))
    high = 1.0 if hits == n else float(beta.ppf(1 - outside, hits + 1, n - hits))
    return Estimate(value=hits / n, n=n, low=low, high=high, interval="clopper-pearson")


def bootstrap_ratio(
    numerator: ArrayLike,
    denominator: ArrayLike,
    *,
    transform: Callable[[Array], Array] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """transform(sum numerator / sum denominator) with a percentile interval over resampled prompts.

    Whole prompts are resampled, because tokens of one prompt are not independent. Numerator and denominator of a
    prompt stay together, so a ratio of paired differences is a paired comparison.

    Args:
        numerator: (n,) one value a prompt.
        denominator: (n,) weights with a positive sum.
        transform: Monotone map of the ratio, for instance ``np.exp``.
        confidence: In (0, 1).
        resamples: At least 1000.
        seed: Of the resampling; equal seeds resample the same prompts.

    Returns:
        Estimate with n prompts. No interval for a single prompt; limits -inf and inf where a resample's denominator
        is not positive, for then the data do not bound the ratio.

    Raises:
        ConfigError: Empty or mismatched arrays, a denominator without positive sum, or too few resamples.

    Example:
        >>> perplexity = bootstrap_ratio([200.0, 330.0], [100, 110], transform=np.exp)
        >>> round(perplexity.value, 2), round(perplexity.low, 2), round(perplexity.high, 2)
        (12.48, 7.39, 20.09)
    """
    top = np.asarray(numerator, dtype=np.float64)
    bottom = np.asarray(denominator, dtype=np.float64)
    _check_arrays(top, bottom, resamples)
    outside, apply = tail(confidence), transform or (lambda ratio: ratio)
    value, n = float(apply(np.asarray(top.sum() / bottom.sum()))), len(top)
    if n == 1:
        return Estimate(value=value, n=n)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
    tops, bottoms = weights @ top, weights @ bottom
    if not np.all(bottoms > 0):
        return Estimate(value=value, n=n, low=-math.inf, high=math.inf, interval="bootstrap")
    low, high = np.quantile(apply(tops / bottoms), [outside, 1 - outside])
    return Estimate(value=value, n=n, low=float(low), high=float(high), interval="bootstrap")


def bootstrap_mean(values: ArrayLike, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> Estimate:
    """Mean of one value (n,) a prompt with a percentile interval; see :func:`bootstrap_ratio`."""
    top = np.asarray(values, dtype=np.float64)
    return bootstrap_ratio(top, np.ones_like(top), confidence=confidence, resamples=resamples, seed=seed)


def _check_arrays(top: Array, bottom: Array, resamples: int) -> None:
    if top.ndim != 1 or len(top) == 0 or top.shape != bottom.shape:
        shapes = f"{top.shape} and {bottom.shape}"
        raise ConfigError(f"`numerator` and `denominator` must be non-empty vectors of one length, got {shapes}")
    if not bottom.sum() > 0:
        raise ConfigError(f"`denominator` must have a positive sum, got {bottom.sum()!r}")
    if resamples < 1000:
        raise ConfigError(f"`resamples` must be at least 1000, got {resamples!r}")


def tail(confidence: float) -> float:
    """Probability outside a confidence interval, on each side.

    Raises:
        ConfigError: ``confidence`` is not in (0, 1).
    """
    if not 0 < confidence < 1:
        raise ConfigError(f"`confidence` must be strictly between 0 and 1, got {confidence!r}")
    return (1 - confidence) / 2
