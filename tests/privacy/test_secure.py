import subprocess
import sys
import time
from fractions import Fraction
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, chisquare

from del_lightning.errors import ConfigError
from del_lightning.privacy import BinomialAccountant, SecureSampler, secure

ROOT = Path(__file__).parents[2]


def every_outcome(trials: int, word_bits: int) -> tuple[int, Any]:
    """A source that deals every sequence of trials * word_bits bits to one coordinate each, and their number."""
    outcomes = np.arange(1 << (trials * word_bits), dtype=np.uint64)
    rounds = iter(range(word_bits))

    def source(shape: tuple[int, int], dtype: Any) -> Any:
        assert shape == (1, outcomes.size)
        digit = outcomes >> np.uint64(trials * next(rounds)) & np.uint64((1 << trials) - 1)
        # Bits beyond those dealt must not matter.
        return (digit | ~np.uint64((1 << trials) - 1)).astype(dtype)[None]

    return outcomes.size, source


@pytest.mark.parametrize(("trials", "word_bits"), [(1, 1), (1, 6), (2, 5), (3, 4), (7, 2), (15, 1)])
def test_law_is_binomial_by_enumeration_of_all_random_bits(trials: int, word_bits: int) -> None:
    for threshold in range(1 << word_bits):
        total, source = every_outcome(trials, word_bits)
        counts = secure.count_below(np.full(total, threshold), trials, word_bits=word_bits, source=source)
        failures = (1 << word_bits) - threshold
        expected = [comb(trials, k) * threshold**k * failures ** (trials - k) for k in range(trials + 1)]
        assert np.bincount(counts, minlength=trials + 1).tolist() == expected


@pytest.mark.parametrize("most", [0, 1, 8, 9, 16, 17, 33, 64, 65, 127, 128, 255])
def test_fair_counts_look_at_exactly_as_many_bits_as_trials(most: int) -> None:
    trials = np.arange(most + 1)
    ones = secure.fair_counts(trials, lambda shape, dtype: ~np.zeros(shape, dtype))
    assert ones.tolist() == trials.tolist()
    assert not secure.fair_counts(trials, np.zeros).any()


def test_system_words_are_fresh_and_fill_their_type() -> None:
    first, second = (secure.system_words((2, 1000), np.dtype("u8")) for _ in range(2))
    assert first.shape == (2, 1000)
    assert (first != second).all()
    ones = np.bitwise_count(first).sum()
    assert abs(float(ones) - 64_000) < 6 * np.sqrt(32_000)


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_follow_the_binomial_law(bits: int) -> None:
    sampler = SecureSampler(bits, bound=0.5, mu=40.0, dim=20)
    n = 20_000
    for value in (-0.5, 0.1, 0.5, 9.0):
        codes = sampler.encode(np.full((n // 20, 20), value)).ravel()
        chance = 0.5 + min(value, 0.5) / (2 * sampler.amplitude)
        law = binom.pmf(np.arange(sampler.levels + 1), sampler.levels, chance) * n
        observed = np.bincount(codes, minlength=sampler.levels + 1)
        rare = law < 5
        pools = [np.append(x[~rare], x[rare].sum()) for x in (observed, law)]
        pools = [x[pools[1] > 0] for x in pools]
        # Real randomness: one false alarm in a million runs, for each of the 32 cases.
        assert chisquare(*pools).pvalue > 1e-6
        mean = (codes.mean() - sampler.levels * chance) / np.sqrt(sampler.levels * chance * (1 - chance) / n)
        assert abs(mean) < 6


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.floats(1e-4, 1e5), st.integers(1, 512), st.integers(1, 8))
def test_threshold_rounds_towards_less_leakage(mu: float, dim: int, bits: int) -> None:
    sampler = SecureSampler(bits, 0.05, mu, dim)
    square = Fraction(mu) ** 2
    exact = square / (4 * dim * sampler.levels + square)
    used = Fraction(sampler.threshold - 2**31, 2**31)
    assert used**2 <= exact < (used + Fraction(1, 2**31)) ** 2
    assert sampler.threshold < 2**32
    accountant = sampler.accountant(3)
    assert accountant.ratio == float(used)
    assert (accountant.dim, accountant.bits, accountant.tokens) == (dim, bits, 3)
    assert sampler.amplitude == pytest.approx(0.05 / accountant.ratio, rel=1e-15)
    assert accountant.mu_token <= mu * (1 + 1e-9)


def test_the_accountant_is_the_papers_up_to_the_rounding() -> None:
    found = SecureSampler(4, 0.05, 10.0, 18).accountant()
    nominal = BinomialAccountant.from_mu(10.0, 18, 4)
    assert found.epsilon(1e-5) <= nominal.epsilon(1e-5)
    assert found.epsilon(1e-5) == pytest.approx(nominal.epsilon(1e-5), rel=1e-8)


def test_thresholds_stay_inside_whatever_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def record(thresholds: Any, trials: int) -> Any:
        seen.append(thresholds)
        return np.zeros(thresholds.shape, np.int64)

    monkeypatch.setattr(secure, "count_below", record)
    sampler = SecureSampler(2, 0.05, 100.0, 4)
    sampler.encode(np.asarray([[-1e300, -0.05, 0.05, 1e300], [0.0, 1e-320, -0.0, 0.025]], dtype=np.float64))
    low, high = 2**32 - sampler.threshold, sampler.threshold
    assert seen[0].tolist()[:4] == [low, low, high, high]
    assert seen[0].tolist()[4:7] == [2**31] * 3
    assert seen[0][7] == 2**31 + round((high - 2**31) / 2)


def test_float32_and_half_precision_are_taken_as_they_are() -> None:
    sampler = SecureSampler(8, 1.0, 1e5, 2)
    for dtype in (np.float16, np.float32, np.float64):
        codes = sampler.encode(np.asarray([[1.0, -1.0]] * 50, dtype=dtype))
        assert codes.dtype == np.uint8
        assert codes.mean(0) == pytest.approx([255, 0], abs=1)


def test_many_coordinates_are_drawn_in_pieces() -> None:
    sampler = SecureSampler(1, 1.0, 3.0, 3)
    codes = sampler.encode(np.zeros((30_000, 3)))
    assert codes.shape == (30_000, 3)
    assert codes.mean() == pytest.approx(0.5, abs=0.02)
    assert sampler.encode(np.zeros((0, 3))).shape == (0, 3)


@pytest.mark.parametrize(("bits", "seconds"), [(4, 0.5), (8, 1.0)])
def test_a_thousand_tokens_fit_a_small_device(bits: int, seconds: float) -> None:
    sampler = SecureSampler(bits, 0.05, 10.0, 18)
    values = np.linspace(-0.05, 0.05, 18_000).reshape(1000, 18)
    before = time.process_time()
    sampler.encode(values)
    assert time.process_time() - before < seconds


def test_client_path_reaches_neither_torch_nor_the_float_sampler() -> None:
    code = """
import sys
from del_lightning.privacy import SecureSampler
SecureSampler(4, 0.05, 10.0, 2).encode([[0.0, 0.1]])
print(sorted({name.split(".")[0] for name in sys.modules} & {"torch", "scipy", "pydantic", "matplotlib"}))
from del_lightning.privacy import PrivacyStatement
accountant = SecureSampler(4, 0.05, 10.0, 2).accountant()
PrivacyStatement.for_accountant(accountant, sequence_tokens=3).summary()
print("torch" in sys.modules, "del_lightning.privacy.quantizer" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.stdout, done.stderr) == ("[]\nFalse False\n", "")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SecureSampler(9, 1.0, 1.0, 18), "`bits` must be an integer between 1 and 8, got 9"),
        (lambda: SecureSampler(4, 0.0, 1.0, 18), "`bound` must be a positive finite number, got 0.0"),
        (lambda: SecureSampler(4, 1.0, -1.0, 18), "`mu` must be a positive finite number, got -1.0"),
        (lambda: SecureSampler(4, 1.0, 1e-12, 18), "`mu` must be large enough for 32-bit thresholds, got 1e-12"),
        (lambda: SecureSampler(4, 1.0, 1.0, 0), "`dim` must be an integer of at least 1, got 0"),
        (
            lambda: SecureSampler(4, 1.0, 1.0, 3).encode([0.0, np.nan, np.inf]),
            "`v` must be finite, got '2 of 3 elements NaN or infinite'",
        ),
        (
            lambda: SecureSampler(4, 1.0, 1.0, 3).encode([0.0]),
            "`v` must be an array whose last axis has the code's width 3, got 1",
        ),
    ],
)
def test_bad_arguments_name_themselves(call, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError) as error:
        call()
    assert str(error.value) == message
