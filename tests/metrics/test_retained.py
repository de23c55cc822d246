import math

import numpy as np
import pytest

from del_lightning.errors import ConfigError
from del_lightning.metrics import information_retained


def controls(n: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    clean = rng.normal(3.0, 0.5, n)
    return clean + rng.normal(0.8, 0.1, n), clean, rng.integers(8, 48, n)


def test_ends_of_the_scale_are_the_controls() -> None:
    mean, clean, tokens = controls()
    for method, expected in ((mean, 0.0), (clean, 1.0)):
        found = information_retained(mean, method, clean, tokens)
        assert found.value == expected
        assert (found.low, found.high) == pytest.approx((expected, expected))


def test_tokens_are_the_weights() -> None:
    found = information_retained([4.0, 6.0], [3.0, 6.0], [2.0, 5.0], [30, 10])
    assert found.value == pytest.approx((30 * 1 + 0) / (30 * 2 + 10 * 1))


def test_pairing_removes_the_spread_between_prompts() -> None:
    mean, clean, tokens = controls()
    found = information_retained(mean, 0.7 * mean + 0.3 * clean, clean, tokens)
    assert found.value == pytest.approx(0.3)
    # The prompts' own NLL varies by .5, which an unpaired interval would show.
    assert found.low == pytest.approx(0.3)
    assert found.high == pytest.approx(0.3)
    assert found.n == 60


def test_interval_holds_the_value() -> None:
    mean, clean, tokens = controls()
    method = mean - np.random.default_rng(1).normal(0.1, 0.2, 60)
    found = information_retained(mean, method, clean, tokens)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high


def test_undefined_where_the_clean_prompt_does_not_help() -> None:
    found = information_retained([3.0, 3.0], [3.0, 3.0], [3.0, 3.1], [5, 5])
    assert math.isnan(found.value)
    assert found.interval == "none"


@pytest.mark.parametrize("arrays", [([], [], [], []), ([1.0], [1.0, 2.0], [1.0], [1])])
def test_mismatched_arrays_are_refused(arrays: tuple[list[float], ...]) -> None:
    with pytest.raises(ConfigError, match="must have one length"):
        information_retained(*arrays)
