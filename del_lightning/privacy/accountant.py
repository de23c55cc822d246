"""Exact differential privacy of the stochastic n-bit quantizer.

Each coordinate of a code is a sum of m = 2^n - 1 Bernoulli bits with probabilities in [p-, p+], p+- = (1 +- r)/2,
r = c/A. Any pair of such bits is a randomised function of the extreme pair (p+, p-), so opposite corners of
[-c, c]^d are the worst inputs, and at the corners the sum S of all bits is a sufficient statistic. Hence the
trade-off function of T released tokens is *exactly* that of two binomials::

    P = Bin(N, p+)   against   Q = Bin(N, p-),   N = T d m,   ln P(k)/Q(k) = (2k - N) L,   L = 2 atanh r

Everything below is a sum over k of positive terms in the log domain, so nothing cancels. Natural logarithms.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln, log_ndtr, logsumexp, ndtri_exp

from del_lightning.errors import ConfigError

Array = NDArray[np.float64]


def require(condition: bool, argument: str, expectation: str, value: object) -> None:
    """Raise :class:`ConfigError` in one line unless the condition holds."""
    if not condition:
        raise ConfigError(f"`{argument}` must be {expectation}, got {value!r}")


def require_count(argument: str, value: object, low: int = 1, high: int | None = None) -> None:
    """Demand an integer of at least ``low`` and, if given, at most ``high``."""
    expectation = f"an integer of at least {low}" if high is None else f"an integer between {low} and {high}"
    is_count = isinstance(value, int) and not isinstance(value, bool) and low <= value <= (high or value)
    require(is_count, argument, expectation, value)


def require_positive(argument: str, value: float) -> None:
    """Demand a positive finite number."""
    require(math.isfinite(value) and value > 0, argument, "a positive finite number", value)


def _stirling_error(n: Array) -> Array:
    """ln n! minus Stirling's approximation (n + 1/2) ln n - n + ln(2 pi)/2, for n >= 1."""
    small = np.minimum(n, 16.0)
    direct = gammaln(small + 1) - (small + 0.5) * np.log(small) + small - 0.5 * math.log(2 * math.pi)
    s = 1 / (n * n)
    series = (1 / 12 - s * (1 / 360 - s * (1 / 1260 - s * (1 / 1680 - s * (1 / 1188 - s * 691 / 360360))))) / n
    return np.where(n < 16, direct, series)


def _deviance(x: Array, mean: float) -> Array:
    """x ln(x/mean) + mean - x without cancellation near x = mean, for x >= 1 (Loader's bd0)."""
    v = (x - mean) / (x + mean)
    tail = sum(v ** (2 * j) / (2 * j + 1) for j in range(1, 11))
    near = (x - mean) * v + 2 * x * v * tail
    return np.where(np.abs(v) < 0.1, near, x * np.log(x / mean) + mean - x)


def binomial_log_pmf(k: ArrayLike, n: int, p: float, q: float) -> Array:
    """ln Pr(Bin(n, p) = k) by Loader's saddle-point expansion.

    Accurate in the far tails and for n of millions, where differences of log-gamma functions lose digits.

    Args:
        k: counts in 0..n.
        n: number of trials, at least 1.
        p: success probability, in (0, 1).
        q: 1 - p, given apart because the subtraction would lose digits when p is close to 1.
    """
    k = np.asarray(k, dtype=np.float64)
    inner = np.clip(k, 1, max(n - 1, 1))
    rest = np.maximum(n - inner, 1)
    total = np.asarray([float(n)])
    saddle = _stirling_error(total) - _stirling_error(inner) - _stirling_error(rest)
    saddle = saddle - _deviance(inner, n * p) - _deviance(rest, n * q)
    saddle = saddle + 0.5 * (np.log(n / (2 * math.pi * inner)) - np.log(rest))
    # The end points have closed forms, and the saddle point does not exist there.
    return np.where(k == 0, n * _log(q, p), np.where(k == n, n * _log(p, q), saddle))


def _log(p: float, q: float) -> float:
    """ln p for p + q = 1, accurate for p close to 0 and close to 1."""
    return math.log(p) if p < 0.5 else math.log1p(-q)


class _Terms(NamedTuple):
    """Log probabilities over a window of counts k, ascending; all arrays have the window's length."""

    k: Array
    log_p: Array
    log_q: Array
    p_below: Array
    """ln P(S < k)."""
    p_from: Array
    """ln P(S >= k)."""
    q_below: Array
    """ln Q(S < k)."""
    q_from: Array
    """ln Q(S >= k)."""


def _below(log_pmf: Array) -> Array:
    return np.concatenate(([-np.inf], np.logaddexp.accumulate(log_pmf)[:-1]))


def _from(log_pmf: Array) -> Array:
    return np.logaddexp.accumulate(log_pmf[::-1])[::-1]


def _normal_quantile(log_lower: Array, log_upper: Array) -> Array:
    """Phi^-1 of a probability given by its logarithm and that of its complement: the smaller one is exact."""
    lower: Array = ndtri_exp(np.minimum(log_lower, 0))
    upper: Array = -ndtri_exp(np.minimum(log_upper, 0))
    return np.where(log_lower < log_upper, lower, upper)


@dataclass(frozen=True)
class BinomialAccountant:
    """Exact privacy of ``tokens`` releases of a ``dim``-dimensional code at ``bits`` bits a coordinate.

    One token is the unit "token"; a prompt of T tokens is the unit "sequence" with ``tokens=T`` (worst case over
    all T tokens changing at once). The length of the sequence is not protected. Repeated releases of one token
    count like further tokens.

    Args:
        dim: code width d, at least 1.
        bits: n, 1 to 8.
        ratio: r = c/A, strictly between 0 and 1.
        tokens: number T of releases, at least 1.

    Raises:
        ConfigError: an argument is out of range.

    Example:
        >>> accountant = BinomialAccountant.from_mu(10.0, dim=18, bits=4)
        >>> round(accountant.epsilon(1e-5), 1), round(accountant.effective_mu, 2)
        (85.1, 9.79)
    """

    dim: int
    bits: int
    ratio: float
    tokens: int = 1

    def __post_init__(self) -> None:
        require_count("dim", self.dim)
        require_count("bits", self.bits, 1, 8)
        require_count("tokens", self.tokens)
        require(0 < self.ratio < 1, "ratio", "strictly between 0 and 1", self.ratio)

    @classmethod
    def from_mu(cls, mu: float, dim: int, bits: int, tokens: int = 1) -> Self:
        """The accountant of the paper's calibration A = c sqrt(4 d m / mu^2 + 1) (Theorem 4.2), mu a token."""
        require_positive("mu", mu)
        require_count("dim", dim)
        require_count("bits", bits, 1, 8)
        return cls(dim, bits, mu / math.hypot(2 * math.sqrt(dim * ((1 << bits) - 1)), mu), tokens)

    @property
    def trials(self) -> int:
        """N = T d m, the number of Bernoulli bits released."""
        return self.tokens * self.dim * ((1 << self.bits) - 1)

    @property
    def step(self) -> float:
        """L = ln(p+/p-): one more success changes the privacy loss by 2L."""
        return 2 * math.atanh(self.ratio)

    @property
    def max_epsilon(self) -> float:
        """Pure differential privacy: the largest privacy loss N L, finite and attained."""
        return self.trials * self.step

    @cached_property
    def total_variation(self) -> float:
        """Total variation distance of the worst pair, delta at epsilon 0; 1 means that inputs can be told apart."""
        return self.delta(0.0)

    def compose(self, tokens: int) -> Self:
        """The accountant of ``tokens`` independent releases of what this one describes (exact, same family)."""
        require_count("tokens", tokens)
        return type(self)(self.dim, self.bits, self.ratio, self.tokens * tokens)

    def delta(self, epsilon: float) -> float:
        """Smallest delta such that the release is (epsilon, delta)-differentially private.

        Args:
            epsilon: at least 0.
        """
        require(epsilon >= 0, "epsilon", "at least 0", epsilon)
        if epsilon >= self.max_epsilon:
            return 0.0
        terms = self._window
        loss = (2 * terms.k - self.trials) * self.step
        keep = loss > epsilon
        gain = np.log(-np.expm1(epsilon - loss[keep]))
        return min(1.0, float(np.exp(logsumexp(terms.log_p[keep] + gain)))) if keep.any() else 0.0

    def epsilon(self, delta: float) -> float:
        """Smallest epsilon such that the release is (epsilon, delta)-differentially private.

        Args:
            delta: in [0, 1).
        """
        require(0 <= delta < 1, "delta", "in [0, 1)", delta)
        if delta == 0:
            return self.max_epsilon
        if delta >= self.total_variation:
            return 0.0
        at = self._segment(delta)
        p_from, q_from = self._window.p_from[at], self._window.q_from[at]
        # ln(P(S >= k) - delta) - ln Q(S >= k): on this segment delta(eps) is linear in e^eps.
        return max(0.0, float(p_from + math.log1p(-delta * math.exp(-p_from)) - q_from))

    def _segment(self, delta: float) -> int:
        """Index of the smallest count k with delta((2k - N) L) <= delta, by bisection."""
        k = self._window.k
        low, high = int(np.searchsorted(k, self.trials // 2 + 1)), len(k) - 1
        while low < high:
            middle = (low + high) // 2
            if self.delta((2 * k[middle] - self.trials) * self.step) <= delta:
                high = middle
            else:
                low = middle + 1
        return low

    @overload
    def tradeoff(self, alpha: float) -> float: ...
    @overload
    def tradeoff(self, alpha: Array) -> Array: ...
    def tradeoff(self, alpha: float | Array) -> float | Array:
        """Exact trade-off function f: the least type II error of any test with type I error alpha.

        Args:
            alpha: number or array in [0, 1].
        """
        levels = np.asarray(alpha, dtype=np.float64)
        require(bool(np.all((levels >= 0) & (levels <= 1))), "alpha", "in [0, 1]", alpha)
        terms = self._window
        knots = np.exp(terms.q_from)
        # The test rejects S > k and randomises at S = k; k is the largest count with Q(S >= k) >= alpha.
        at = np.clip(np.searchsorted(-knots, -levels, side="right") - 1, 0, len(knots) - 1)
        weight = np.exp(terms.log_q[at])
        share = (knots[at] - levels) / np.where(weight > 0, weight, 1.0)
        beta = np.exp(terms.p_below[at]) + np.clip(share, 0, 1) * np.exp(terms.log_p[at])
        beta = np.where(levels == 0, 1.0, np.where(levels == 1, 0.0, np.minimum(beta, 1.0)))
        return float(beta) if np.isscalar(alpha) else beta

    @cached_property
    def effective_mu(self) -> float:
        """Smallest mu' for which the exact trade-off function is mu'-GDP; costs O(N) time and memory."""
        terms = self._terms(0, self.trials)
        # Knots (Q(S >= k), P(S < k)) of f for k = 1..N; G_mu' lies below f iff it lies below every knot.
        type_one = _normal_quantile(terms.q_from, terms.q_below)[1:]
        type_two = _normal_quantile(terms.p_below, terms.p_from)[1:]
        return float(np.max(-type_one - type_two))

    @property
    def paper_mu(self) -> float:
        """mu of Theorem 4.2, 2 c sqrt(N) / sqrt(A^2 - c^2); no guarantee without :attr:`paper_gamma`."""
        return 2 * self.ratio * math.sqrt(self.trials) / math.sqrt((1 - self.ratio) * (1 + self.ratio))

    @property
    def paper_gamma(self) -> float:
        """Slack gamma of Theorem 4.2, simplified to 0.56 (1 + r^2) / sqrt((1 - r^2) N)."""
        return 0.56 * (1 + self.ratio**2) / math.sqrt((1 - self.ratio) * (1 + self.ratio) * self.trials)

    @property
    def paper_bound_vacuous(self) -> bool:
        """True when gamma >= Phi(-mu/2): the lower bound of Theorem 4.2 is then nowhere positive."""
        return math.log(self.paper_gamma) >= float(log_ndtr(-self.paper_mu / 2))

    def attack_bound(self, prior: float) -> float:
        """Upper bound on the probability that any attacker names the released secret, whatever else is known.

        From e >= f(e kappa / (1 - kappa)) for the attacker's error e; at least as sharp as 1 - f(kappa).

        Args:
            prior: largest prior probability kappa of one secret (of a list of guesses: their mass), in (0, 1].
        """
        require(0 < prior <= 1, "prior", "in (0, 1]", prior)
        if prior == 1:
            return 1.0
        terms = self._window
        slope = (2 * terms.k - self.trials) * self.step
        odds = math.log(prior) - math.log1p(-prior)
        error = np.logaddexp(terms.p_below, slope + terms.q_from) - np.logaddexp(0, odds + slope)
        return float(np.clip(-np.expm1(np.max(error)), prior, 1.0))

    @cached_property
    def _window(self) -> _Terms:
        """The counts that matter: both means and 45 standard deviations around; beyond lies less than e^-1000."""
        n, r = self.trials, self.ratio
        reach = 45 * math.sqrt(n * (1 - r) * (1 + r)) / 2 + 500
        low = math.floor(n * (1 - r) / 2 - reach)
        return self._terms(max(0, low), min(n, n - low))

    def _terms(self, low: int, high: int) -> _Terms:
        k = np.arange(low, high + 1, dtype=np.float64)
        log_p = binomial_log_pmf(k, self.trials, (1 + self.ratio) / 2, (1 - self.ratio) / 2)
        log_q = log_p - (2 * k - self.trials) * self.step
        return _Terms(k, log_p, log_q, _below(log_p), _from(log_p), _below(log_q), _from(log_q))
