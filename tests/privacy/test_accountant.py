from fractions import Fraction
from math import comb, exp, inf, log, sqrt

import numpy as np
import pytest
from scipy.stats import binom, norm

from del_lightning.errors import ConfigError
from del_lightning.privacy import BinomialAccountant
from del_lightning.privacy.accountant import binomial_log_pmf

TINY = [(1, 1, Fraction(1, 3), 1), (2, 1, Fraction(3, 5), 3), (1, 2, Fraction(1, 10), 2), (3, 2, Fraction(9, 10), 1)]


def tiny(
    dim: int, bits: int, ratio: Fraction, tokens: int
) -> tuple[BinomialAccountant, list[Fraction], list[Fraction]]:
    """An accountant and the two binomials it is about, as exact fractions."""
    accountant = BinomialAccountant(dim, bits, float(ratio), tokens)
    n, high, low = accountant.trials, (1 + ratio) / 2, (1 - ratio) / 2
    p = [comb(n, k) * high**k * low ** (n - k) for k in range(n + 1)]
    return accountant, p, p[::-1]


@pytest.mark.parametrize(
    ("mu", "dim", "bits", "epsilon", "effective"),
    [
        (2, 18, 1, 8.34, 2.0002),
        (2, 128, 4, 9.98, 2.0000),
        (10, 18, 1, 36.1, 8.03),
        (10, 18, 4, 85.1, 9.79),
        (10, 128, 4, 90.9, 9.97),
        (40, 18, 1, 81.2, 15.3),
        (40, 128, 8, 961.6, 39.9),
    ],
)
def test_reference_table(mu: float, dim: int, bits: int, epsilon: float, effective: float) -> None:
    accountant = BinomialAccountant.from_mu(mu, dim, bits)
    assert accountant.epsilon(1e-5) == pytest.approx(epsilon, abs=0.051 if epsilon > 30 else 0.0051)
    assert accountant.effective_mu == pytest.approx(effective, abs=0.051 if effective > 10 else 0.0051)
    assert accountant.paper_mu == pytest.approx(mu, rel=1e-12)


@pytest.mark.parametrize("case", TINY)
def test_delta_equals_exact_enumeration(case: tuple[int, int, Fraction, int]) -> None:
    accountant, p, q = tiny(*case)
    for epsilon in (0.0, 0.1, 0.7, 2.0, 5.0):
        growth = Fraction(exp(epsilon))
        exact = sum(max(Fraction(0), a - growth * b) for a, b in zip(p, q, strict=True))
        assert accountant.delta(epsilon) == pytest.approx(float(exact), rel=1e-11, abs=1e-300)


@pytest.mark.parametrize("case", TINY)
def test_epsilon_is_bracketed_by_exact_enumeration(case: tuple[int, int, Fraction, int]) -> None:
    accountant, p, q = tiny(*case)

    def hockey_stick(epsilon: float) -> Fraction:
        return sum((max(Fraction(0), a - Fraction(exp(epsilon)) * b) for a, b in zip(p, q, strict=True)), Fraction(0))

    for delta in (0.3, 0.01, 1e-5):
        epsilon = accountant.epsilon(delta)
        if epsilon == 0:
            assert hockey_stick(0.0) <= delta
        else:
            assert hockey_stick(epsilon * (1 + 1e-9)) <= delta <= hockey_stick(epsilon * (1 - 1e-9))


@pytest.mark.parametrize("case", TINY)
def test_tradeoff_is_the_neyman_pearson_curve(case: tuple[int, int, Fraction, int]) -> None:
    accountant, p, q = tiny(*case)
    n = len(p) - 1
    # Every line through randomising at one count lies below f, and f is their maximum.
    for alpha in (0.0, 1e-6, 0.02, 0.3, 0.5, 0.9, 1.0):
        level = Fraction(alpha)
        lines = [sum(p[:k]) + p[k] / q[k] * (sum(q[k:]) - level) for k in range(n + 1)]
        assert accountant.tradeoff(alpha) == pytest.approx(float(max(lines)), rel=1e-11, abs=1e-15)


def test_tradeoff_is_convex_symmetric_and_consistent_with_delta() -> None:
    accountant = BinomialAccountant.from_mu(1.5, 18, 2)
    alpha = np.linspace(0, 1, 401)
    beta = accountant.tradeoff(alpha)
    assert np.all(np.diff(beta) < 0)
    assert np.all(np.diff(beta, 2) > -1e-13)
    np.testing.assert_allclose(accountant.tradeoff(beta), alpha, atol=1e-12)
    # delta(eps) = sup over alpha of 1 - f(alpha) - e^eps alpha; a finite grid reaches it from below.
    fine = np.linspace(0, 1, 20001)
    for epsilon in (0.0, 0.5, 2.0):
        reached = np.max(1 - accountant.tradeoff(fine) - np.exp(epsilon) * fine)
        assert reached <= accountant.delta(epsilon) + 1e-13
        assert reached == pytest.approx(accountant.delta(epsilon), abs=1e-4)


@pytest.mark.parametrize("case", TINY)
def test_extremes(case: tuple[int, int, Fraction, int]) -> None:
    accountant, p, q = tiny(*case)
    assert accountant.max_epsilon == pytest.approx(log(p[-1] / q[-1]), rel=1e-12)
    assert accountant.epsilon(0.0) == accountant.max_epsilon
    assert accountant.delta(accountant.max_epsilon) == 0
    assert accountant.delta(accountant.max_epsilon * 0.999) > 0
    distance = sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2
    assert accountant.total_variation == pytest.approx(float(distance), rel=1e-12)
    assert accountant.epsilon(min(0.999999, accountant.total_variation * 1.0000001)) == 0


@pytest.mark.parametrize("case", TINY)
def test_effective_mu_is_the_smallest_gaussian_below_every_knot(case: tuple[int, int, Fraction, int]) -> None:
    accountant, p, q = tiny(*case)
    n = len(p) - 1
    needed = [norm.isf(float(sum(q[k:]))) - norm.ppf(float(sum(p[:k]))) for k in range(1, n + 1)]
    assert accountant.effective_mu == pytest.approx(max(needed), rel=1e-10)


def test_composition_is_exact_and_grows_with_root_tokens() -> None:
    token = BinomialAccountant.from_mu(2.0, 18, 4)
    sequence = token.compose(16)
    assert sequence == BinomialAccountant.from_mu(2.0, 18, 4, tokens=16)
    assert sequence.paper_mu == pytest.approx(8.0)
    assert sequence.compose(2).trials == 32 * 18 * 15
    assert token.epsilon(1e-5) < sequence.epsilon(1e-5) < 16 * token.epsilon(1e-5)
    assert sequence.max_epsilon == pytest.approx(16 * token.max_epsilon)


def test_millions_of_trials_stay_accurate() -> None:
    accountant = BinomialAccountant.from_mu(0.25, 128, 8, tokens=64)
    assert accountant.trials > 2_000_000
    # In this limit the curve is Gaussian: mu = 0.25 sqrt(64) = 2.
    gaussian = brentq_gdp_epsilon(2.0, 1e-5)
    assert accountant.epsilon(1e-5) == pytest.approx(gaussian, rel=1e-4)
    assert accountant.delta(accountant.epsilon(1e-5)) == pytest.approx(1e-5, rel=1e-6)
    assert accountant.delta(accountant.epsilon(1e-200)) == pytest.approx(1e-200, rel=1e-6)


def brentq_gdp_epsilon(mu: float, delta: float) -> float:
    from scipy.optimize import brentq

    def gap(epsilon: float) -> float:
        tail = norm.cdf(-epsilon / mu + mu / 2) - np.exp(epsilon) * norm.cdf(-epsilon / mu - mu / 2)
        return float(tail - delta)

    return float(brentq(gap, 0, 50))


def test_log_pmf_matches_exact_values_in_centre_and_tails() -> None:
    n, p = 60, Fraction(7, 10)
    exact = [log(comb(n, k)) + k * log(p) + (n - k) * log(1 - p) for k in range(n + 1)]
    np.testing.assert_allclose(binomial_log_pmf(np.arange(n + 1), n, 0.7, 0.3), exact, rtol=1e-13, atol=1e-13)
    k = np.arange(499_000, 501_000)
    np.testing.assert_allclose(np.exp(binomial_log_pmf(k, 10**6, 0.5, 0.5)), binom.pmf(k, 10**6, 0.5), rtol=1e-10)
    assert np.isfinite(binomial_log_pmf([0, 1, 10**6 - 1, 10**6], 10**6, 0.5, 0.5)).all()
    np.testing.assert_allclose(binomial_log_pmf([0, 1], 1, 0.7, 0.3), [log(0.3), log(0.7)])


def test_attack_bound_is_sharper_than_the_curve_and_holds_for_the_best_attacker() -> None:
    accountant, p, q = tiny(2, 1, Fraction(3, 5), 3)
    for prior in (0.01, 0.2, 0.5, 0.8):
        bound = accountant.attack_bound(prior)
        assert prior <= bound <= 1 - accountant.tradeoff(prior) + 1e-12
    # Two equally likely worst-case secrets: the best attacker succeeds with (1 + TV)/2, and the bound is attained.
    best = sum(max(a, b) for a, b in zip(p, q, strict=True)) / 2
    assert accountant.attack_bound(0.5) == pytest.approx(float(best), rel=1e-12)
    assert accountant.attack_bound(1.0) == 1.0


def test_paper_slack_and_its_vacuous_flag() -> None:
    accountant = BinomialAccountant.from_mu(10, 18, 4)
    a, c, m, d = 1 / accountant.ratio, 1.0, 15, 18
    cubes = (a - c) / (2 * a) * (1 + c / a) ** 3 + (a + c) / (2 * a) * (1 - c / a) ** 3
    theorem = 0.56 * cubes / ((1 - c**2 / a**2) ** 1.5 * sqrt(m * d))
    assert accountant.paper_gamma == pytest.approx(theorem, rel=1e-12)
    assert accountant.paper_bound_vacuous
    assert not BinomialAccountant.from_mu(2, 18, 4).paper_bound_vacuous


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BinomialAccountant(0, 4, 0.5), "`dim` must be an integer of at least 1, got 0"),
        (lambda: BinomialAccountant(18, 9, 0.5), "`bits` must be an integer between 1 and 8, got 9"),
        (lambda: BinomialAccountant(18, 4, 1.0), "`ratio` must be strictly between 0 and 1, got 1.0"),
        (lambda: BinomialAccountant(18, 4, 0.5, 0), "`tokens` must be an integer of at least 1, got 0"),
        (lambda: BinomialAccountant.from_mu(-1.0, 18, 4), "`mu` must be a positive finite number, got -1.0"),
        (lambda: BinomialAccountant.from_mu(inf, 18, 4), "`mu` must be a positive finite number, got inf"),
        (lambda: BinomialAccountant(18, 4, 0.5).epsilon(1.0), "`delta` must be in [0, 1), got 1.0"),
        (lambda: BinomialAccountant(18, 4, 0.5).delta(-1.0), "`epsilon` must be at least 0, got -1.0"),
        (lambda: BinomialAccountant(18, 4, 0.5).tradeoff(1.5), "`alpha` must be in [0, 1], got 1.5"),
        (lambda: BinomialAccountant(18, 4, 0.5).attack_bound(0.0), "`prior` must be in (0, 1], got 0.0"),
    ],
)
def test_bad_arguments_name_themselves(call, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError) as error:
        call()
    assert str(error.value) == message
