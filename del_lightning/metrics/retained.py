"""Information retained: how much of what the clean prompt tells the model still reaches it.

A soft prompt alone adapts the model to the domain, so perplexity after prompt tuning overstates what a front-end
lets through. R compares with both ends, each with its own soft prompt of the same budget::

    R = (NLL(mean embedding) - NLL(method)) / (NLL(mean embedding) - NLL(clean))

R = 0: the private prompt told the model nothing; R = 1: as good as the clean prompt.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from del_lightning.errors import ConfigError
from del_lightning.metrics.intervals import bootstrap_ratio
from del_lightning.report.schema import Estimate


def information_retained(
    nll_mean: ArrayLike, nll_method: ArrayLike, nll_clean: ArrayLike, tokens: ArrayLike, *, seed: int = 0
) -> Estimate:
    """R with a 95% bootstrap interval, paired over prompts and weighted by tokens.

    Args:
        nll_mean: (n,) mean NLL a token of each prompt's reference, in nats, behind the mean embedding.
        nll_method: (n,) the same behind the method.
        nll_clean: (n,) the same behind the clean prompt.
        tokens: (n,) scored tokens of each prompt.
        seed: Of the resampling.

    Returns:
        Estimate over n prompts. NaN without an interval where the clean prompt is no better than none, because R
        is undefined there; unbounded limits where the data cannot tell the two controls apart.

    Raises:
        ConfigError: Arrays of different or no length.

    Example:
        >>> information_retained([4.0, 4.0], [3.5, 3.5], [3.0, 3.0], tokens=[48, 48]).value
        0.5
    """
    arrays = [np.asarray(values, dtype=np.float64) for values in (nll_mean, nll_method, nll_clean, tokens)]
    shapes = [values.shape for values in arrays]
    if len(set(shapes)) != 1 or arrays[0].ndim != 1 or len(arrays[0]) == 0:
        raise ConfigError(f"`nll_mean`, `nll_method`, `nll_clean` and `tokens` must have one length, got {shapes}")
    mean, method, clean, weight = arrays
    available = weight * (mean - clean)
    if not available.sum() > 0:
        return Estimate(value=math.nan, n=len(mean))
    return bootstrap_ratio(weight * (mean - method), available, seed=seed)
