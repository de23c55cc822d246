"""The accountant's quantities once more, in 200-bit arithmetic and by other means: the reference of the tests.

Tails are sums of ratios of neighbouring binomial probabilities in integer fixed point; differences are taken as they
stand, since 200 bits can afford to cancel. Nothing here is shared with the package.
"""

from fractions import Fraction
from functools import cache

from mpmath import mp, mpf

mp.prec = 200
UNIT = 1 << 200


class Oracle:
    """Bin(n, (1 + r)/2) against Bin(n, (1 - r)/2) for a float r, which is a fraction exactly."""

    def __init__(self, trials: int, ratio: float) -> None:
        self.n = trials
        self.r = Fraction(ratio)
        self.p, self.q = (1 + self.r) / 2, (1 - self.r) / 2
        self.step = mp.log(number(self.p)) - mp.log(number(self.q))
        self.tail = cache(self._tail)

    def max_epsilon(self) -> mpf:
        return self.n * self.step

    def log_pmf(self, k: int, p: Fraction) -> mpf:
        choose = mp.loggamma(self.n + 1) - mp.loggamma(k + 1) - mp.loggamma(self.n - k + 1)
        return choose + k * mp.log(number(p)) + (self.n - k) * mp.log(number(1 - p))

    def _tail(self, k: int, p: Fraction) -> tuple[mpf, mpf]:
        """ln Pr(S < k) and ln Pr(S >= k)."""
        if k <= 0:
            return mpf("-inf"), mpf(0)
        if k > self.n:
            return mpf(0), mpf("-inf")
        if k > self.n * p:
            upper = self.log_pmf(k, p) + mp.log(self._ratio_sum(k, p))
            return log1m(upper), upper
        # The lower tail of p is the upper tail of 1 - p.
        lower = self.log_pmf(k - 1, p) + mp.log(self._ratio_sum(self.n - k + 1, 1 - p))
        return lower, log1m(lower)

    def _ratio_sum(self, k: int, p: Fraction) -> mpf:
        """Sum over j >= k of pmf(j)/pmf(k), for k beyond the mean: terms fall."""
        odds = p / (1 - p)
        up, down = odds.numerator, odds.denominator
        shift = max(0, up.bit_length() - 200)
        up, down = up >> shift, down >> shift
        term, total = UNIT, 0
        for j in range(k, self.n + 1):
            total += term
            term = term * ((self.n - j) * up) // ((j + 1) * down)
            if term < total >> 70:
                break
        return mpf(total) / UNIT

    def above(self, k: int) -> tuple[mpf, mpf]:
        """P(S >= k) and Q(S >= k)."""
        return mp.exp(self.tail(k, self.p)[1]), mp.exp(self.tail(k, self.q)[1])

    def delta(self, epsilon: float | mpf) -> mpf:
        k = int(mp.floor((self.n + mpf(epsilon) / self.step) / 2)) + 1
        p, q = self.above(k)
        return p - mp.exp(epsilon) * q

    def epsilon_near(self, epsilon: float, delta: float | mpf) -> mpf:
        """The epsilon of this delta by one step of Newton's method from a close guess."""
        k = int(mp.floor((self.n + mpf(epsilon) / self.step) / 2)) + 1
        return epsilon + (self.delta(epsilon) - mpf(delta)) / (mp.exp(epsilon) * self.above(k)[1])

    def slope(self, k: int) -> mpf:
        return mp.exp((2 * k - self.n) * self.step)

    def line(self, k: int) -> tuple[mpf, mpf]:
        """f(alpha) = first - second * alpha on the segment of count k."""
        q = mp.exp(self.tail(k, self.q)[1])
        return mp.exp(self.tail(k, self.p)[0]) + self.slope(k) * q, self.slope(k)

    def power_line(self, k: int) -> mpf:
        """1 - f(0) of the same line, without losing small numbers: P(S >= k) - t Q(S >= k)."""
        p, q = self.above(k)
        return p - self.slope(k) * q

    def segment(self, k: int) -> tuple[mpf, mpf]:
        """The range of alpha on which the line of count k is f."""
        return mp.exp(self.tail(k + 1, self.q)[1]), mp.exp(self.tail(k, self.q)[1])

    def knot_mu(self, k: int) -> mpf:
        """The mu of the Gaussian curve through the knot of count k."""
        return -quantile(*self.tail(k, self.q)[::-1]) - quantile(*self.tail(k, self.p))


def number(value: Fraction) -> mpf:
    return mpf(value.numerator) / value.denominator


def log1m(log_p: mpf) -> mpf:
    return mp.log(-mp.expm1(log_p))


def quantile(log_lower: mpf, log_upper: mpf) -> mpf:
    """Phi^-1 by Newton's method on the logarithm of the smaller tail."""
    if log_lower > log_upper:
        return -quantile(log_upper, log_lower)
    z = -mp.sqrt(max(-2 * log_lower - mp.log(max(-2 * log_lower, 1)), 0))
    for _ in range(60):
        lower = mp.erfc(-z / mp.sqrt(2)) / 2
        change = (mp.log(lower) - log_lower) * lower / mp.npdf(z)
        z -= change
        if abs(change) < mpf(2) ** -120:
            break
    return z
