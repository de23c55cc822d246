"""The figures are torchmetrics'; resampled ones equal the figures of the resampled examples themselves."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import ttest_1samp
from torchmetrics.functional.classification import binary_matthews_corrcoef

from del_lightning.errors import ConfigError
from del_lightning.metrics import binary_figures, over_examples, over_seeds
from del_lightning.metrics.classification import FIGURES, RANGES, weighted

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 2, 60)
SCORES = np.clip(0.25 * LABELS + RANDOM.normal(0.4, 0.25, 60), 0, 1).round(1)  # rounded, so that many tie


def test_a_hand_made_table() -> None:
    # 3 true positives, 1 false positive, 2 false negatives, 4 true negatives
    scores = [0.9] * 3 + [0.8] + [0.1] * 2 + [0.2] * 4
    labels = [1] * 3 + [0] + [1] * 2 + [0] * 4
    found = binary_figures(scores, labels)
    assert found["accuracy"] == pytest.approx(0.7)
    assert found["f1"] == pytest.approx(6 / 9)
    assert found["matthews"] == pytest.approx((12 - 2) / math.sqrt(4 * 5 * 5 * 6))
    assert found["auc"] == pytest.approx((3 * 5 + 0 + 0) / 25)


def test_weighted_figures_are_those_of_repeated_examples() -> None:
    weights = np.stack([np.ones(60), np.bincount(RANDOM.integers(0, 60, 60), minlength=60)]).astype(float)
    found = weighted(SCORES, LABELS, weights)
    for row, repeated in enumerate((np.arange(60), np.repeat(np.arange(60), weights[1].astype(int)))):
        expected = binary_figures(SCORES[repeated], LABELS[repeated])
        assert {name: pytest.approx(found[name][row]) for name in FIGURES} == expected


def test_undefined_figures_follow_torchmetrics() -> None:
    weights = np.ones((1, 4))
    for labels, scores in (([0, 0, 0, 0], [0.1] * 4), ([1, 1, 1, 1], [0.1] * 4), ([0, 1, 0, 1], [0.2] * 4)):
        found = weighted(np.array(scores), np.array(labels), weights)
        assert found["f1"][0] == found["matthews"][0] == 0
        assert found["auc"][0] == 0.5


@pytest.mark.parametrize("score", [0.1, 0.9])
def test_a_constant_answer_correlates_with_nothing(score: float) -> None:
    labels = [1] * 30 + [0] * 7  # torchmetrics' formula gives about .03
    assert binary_figures([score] * 37, labels)["matthews"] == 0
    mixed = np.where(np.arange(37) % 3 == 0, score, 1 - score)
    expected = float(binary_matthews_corrcoef(torch.tensor(mixed), torch.tensor(labels)))
    assert binary_figures(mixed, labels)["matthews"] == pytest.approx(expected)


def test_interval_over_examples_is_the_bootstraps(monkeypatch: pytest.MonkeyPatch) -> None:
    both = np.stack([SCORES, 1 - SCORES[::-1]])
    found = over_examples(both, LABELS, resamples=1000, seed=3)
    drawn = np.random.default_rng(3).multinomial(60, np.full(60, 1 / 60), size=1000)
    accuracy = np.mean([[(w * ((row > 0.5) == LABELS)).sum() / 60 for w in drawn] for row in both], axis=0)
    low, high = np.quantile(accuracy, [0.025, 0.975])
    assert (found["accuracy"].low, found["accuracy"].high) == (pytest.approx(low), pytest.approx(high))
    assert found["accuracy"].value == pytest.approx(np.mean([((row > 0.5) == LABELS).mean() for row in both]))
    for name in FIGURES:
        assert found[name].low <= found[name].value <= found[name].high
        assert (found[name].n, found[name].interval) == (60, "bootstrap")
    monkeypatch.setattr("del_lightning.metrics.classification.CHUNK", 7 * 60)
    assert over_examples(both, LABELS, resamples=1000, seed=3) == found


def test_interval_over_seeds_is_students() -> None:
    values = [0.61, 0.7, 0.66, 0.59]
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    found = over_seeds(values)
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert (found.value, found.n, found.interval) == (pytest.approx(0.64), 4, "t")
    assert over_seeds([0.5]).low is None
    cut = over_seeds([0.7, 0.99], within=RANGES["auc"])
    assert (cut.low, cut.high) == (0.0, 1.0)


def test_bad_arguments_name_themselves() -> None:
    with pytest.raises(ConfigError, match=r"`scores` and `labels` must be non-empty vectors .* got \(2,\) and \(1,\)"):
        binary_figures([0.1, 0.2], [1])
    with pytest.raises(ConfigError, match="`values` must be a non-empty vector"):
        over_seeds([])
    with pytest.raises(ConfigError, match="`resamples` must be at least 1000, got 10"):
        over_examples(SCORES, LABELS, resamples=10)
    with pytest.raises(ConfigError, match="confidence"):
        over_seeds([0.1, 0.2], confidence=1.0)
