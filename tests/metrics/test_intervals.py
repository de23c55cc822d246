import math

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap

from del_lightning.errors import ConfigError
from del_lightning.metrics import bootstrap_mean, bootstrap_ratio, clopper_pearson


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (1, 10), (10, 10), (160, 2000), (1999, 2000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_clopper_pearson_is_scipys_exact_interval(hits: int, n: int, confidence: float) -> None:
    found = clopper_pearson(hits, n, confidence)
    expected = binomtest(hits, n).proportion_ci(confidence, method="exact")
    assert (found.value, found.n, found.interval) == (hits / n, n, "clopper-pearson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-9)


@pytest.mark.parametrize(("hits", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(hits: int, n: int) -> None:
    with pytest.raises(ConfigError):
        clopper_pearson(hits, n)


def test_ratio_agrees_with_scipys_paired_bootstrap() -> None:
    rng = np.random.default_rng(1)
    tokens = rng.integers(10, 60, 80)
    nll = tokens * rng.normal(3.0, 0.4, 80)

    def perplexity(a, b, axis):  # type: ignore[no-untyped-def]
        return np.exp(a.sum(axis) / b.sum(axis))

    found = bootstrap_ratio(nll, tokens, transform=np.exp, resamples=5000)
    expected = bootstrap(
        (nll, tokens), perplexity, paired=True, vectorized=True, method="percentile", n_resamples=5000, rng=rng
    ).confidence_interval
    assert found.value == pytest.approx(math.exp(nll.sum() / tokens.sum()))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=0.01)
    assert (found.n, found.interval) == (80, "bootstrap")


def test_mean_is_a_ratio_with_equal_weights_and_seeds_repeat() -> None:
    values = np.random.default_rng(0).normal(size=30)
    assert bootstrap_mean(values) == bootstrap_ratio(values, np.ones(30))
    assert bootstrap_mean(values).low != bootstrap_mean(values, seed=1).low


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    hits = 0
    for seed in range(200):
        found = bootstrap_mean(rng.exponential(size=100), resamples=1000, seed=seed)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 1.0 <= found.high
    assert 175 <= hits <= 199


def test_one_prompt_has_no_interval() -> None:
    found = bootstrap_mean([0.3])
    assert (found.value, found.n, found.low, found.high, found.interval) == (0.3, 1, None, None, "none")


def test_denominators_that_may_vanish_leave_the_ratio_unbounded() -> None:
    found = bootstrap_ratio([1.0, 1.0, 1.0], [1.0, -0.9, 1.0])
    assert (found.low, found.high) == (-math.inf, math.inf)


@pytest.mark.parametrize(
    "call",
    [
        lambda: bootstrap_mean([]),
        lambda: bootstrap_ratio([1.0], [1.0, 2.0]),
        lambda: bootstrap_ratio([1.0], [0.0]),
        lambda: bootstrap_mean([1.0, 2.0], resamples=10),
        lambda: bootstrap_mean([1.0, 2.0], confidence=1.0),
    ],
)
def test_bad_arguments_are_refused(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError):
        call()
