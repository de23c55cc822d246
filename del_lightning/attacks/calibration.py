"""Calibration of mu to a target attack success rate (ASR).

Methods are compared at equal ASR, so mu is searched, by bisection on its logarithm, for the largest value whose
measured success stays at the target. The measurement is random: every mu is tried on the same tokens with the same
noise (common random numbers), and a mu counts as accepted only if the rate *and* its upper confidence limit comply.
The evidence of every mu tried is kept.
"""

import math
from collections.abc import Callable

from torch import Tensor

from del_lightning.errors import ConfigError
from del_lightning.metrics.intervals import clopper_pearson
from del_lightning.report.schema import Calibration, Estimate


class SuccessCurve:
    """Remembers the success at every mu tried, so that several targets share their evaluations.

    Args:
        success: mu -> (n,) booleans, one a token: did the attack read it? Must reseed its generator itself.
        confidence: Of the Clopper-Pearson interval.
    """

    def __init__(self, success: Callable[[float], Tensor], confidence: float = 0.95) -> None:
        self._success, self._confidence = success, confidence
        self._measured: dict[float, tuple[int, Estimate]] = {}

    def __call__(self, mu: float) -> Estimate:
        """Success rate at mu with its interval; measured at most once."""
        if mu not in self._measured:
            hits = self._success(mu)
            count = int(hits.sum())
            self._measured[mu] = count, clopper_pearson(count, hits.numel(), self._confidence)
        return self._measured[mu][1]

    @property
    def tried(self) -> dict[float, Estimate]:
        """mu -> success rate, ascending in mu."""
        return {mu: estimate for mu, (_, estimate) in sorted(self._measured.items())}

    def evidence(self) -> list[dict[str, float]]:
        """Every mu tried with hits, n and interval, ascending in mu."""
        rows = sorted(self._measured.items())
        return [
            {
                "mu": mu,
                "hits": hits,
                "n": rate.n,
                "low": rate.low or 0.0,
                "high": 1.0 if rate.high is None else rate.high,
            }
            for mu, (hits, rate) in rows
        ]


def calibrate(
    success: SuccessCurve | Callable[[float], Tensor],
    target: float,
    *,
    tolerance: float = 0.01,
    mu_range: tuple[float, float] = (0.1, 1000.0),
    iterations: int = 16,
    confidence: float = 0.95,
) -> Calibration:
    """Largest mu whose attack success complies with the target; errs on the private side.

    A mu is accepted if the rate is at most ``target`` and its upper confidence limit at most ``target + tolerance``.
    The result lies below every rejected mu that was tried. If even ``mu_range[0]`` is rejected, or even
    ``mu_range[1]`` accepted, that end is returned with ``reached=False`` and a note.

    Args:
        success: mu -> (n,) booleans, the same tokens and random numbers at every call; pass one
            :class:`SuccessCurve` (which then brings its own confidence) to share evaluations between targets.
        target: ASR in (0, 1).
        tolerance: In (0, 1).
        mu_range: Interval that is searched, 0 < low < high.
        iterations: Halvings of the range in ln mu: the resolution of the answer.
        confidence: Of the interval.

    Raises:
        ConfigError: An argument is out of range.

    Example:
        >>> import torch
        >>> difficulty = torch.linspace(0, 100, 5000)  # a token is read as soon as mu exceeds its difficulty
        >>> result = calibrate(lambda mu: difficulty < mu, target=0.1, tolerance=0.02)
        >>> result.reached, round(result.mu, 1)
        (True, 10.0)
    """
    _check(target, tolerance, mu_range, iterations)
    curve = success if isinstance(success, SuccessCurve) else SuccessCurve(success, confidence)
    search = _Search(curve, target, tolerance, mu_range)
    search.run(math.log(mu_range[1] / mu_range[0]) / 2**iterations)
    return Calibration(
        target=target,
        mu=search.mu,
        reached=search.reached,
        note=search.note(),
        asr=curve(search.mu),
        evidence=curve.evidence(),
    )


def _check(target: float, tolerance: float, mu_range: tuple[float, float], iterations: int) -> None:
    for name, share in (("target", target), ("tolerance", tolerance)):
        if not 0 < share < 1:
            raise ConfigError(f"`{name}` must be strictly between 0 and 1, got {share!r}")
    if not 0 < mu_range[0] < mu_range[1] < math.inf:
        raise ConfigError(f"`mu_range` must be two increasing positive numbers, got {mu_range!r}")
    if iterations < 1:
        raise ConfigError(f"`iterations` must be at least 1, got {iterations!r}")


class _Search:
    """One target's bisection over a curve that may already know some points."""

    def __init__(self, curve: SuccessCurve, target: float, tolerance: float, mu_range: tuple[float, float]) -> None:
        self.curve, self.target, self.limit = curve, target, target + tolerance
        self.floor, self.ceiling = mu_range

    def accepts(self, rate: Estimate) -> bool:
        return rate.value <= self.target and rate.high is not None and rate.high <= self.limit

    def bracket(self) -> tuple[float | None, float | None]:
        """Largest accepted mu below every rejected one, and the smallest rejected mu, of those tried."""
        known = {mu: rate for mu, rate in self.curve.tried.items() if self.floor <= mu <= self.ceiling}
        high = min((mu for mu, rate in known.items() if not self.accepts(rate)), default=None)
        low = max((mu for mu in known if high is None or mu < high), default=None)
        return low, high

    def run(self, resolution: float) -> None:
        if self.bracket()[0] is None:
            self.curve(self.floor)
        if self.bracket()[1] is None:
            self.curve(self.ceiling)
        low, high = self.bracket()
        while low is not None and high is not None and math.log(high / low) > resolution * (1 + 1e-9):
            self.curve(math.sqrt(low * high))
            low, high = self.bracket()

    @property
    def reached(self) -> bool:
        return None not in self.bracket()

    @property
    def mu(self) -> float:
        low, _ = self.bracket()
        return self.floor if low is None else low

    def note(self) -> str:
        low, high = self.bracket()
        if low is None:
            rate = self.curve(self.floor)
            return (
                f"ASR target {self.target:g} is out of reach: at the smallest mu {self.floor:g} it is {rate.value:.4g} "
                f"with upper limit {rate.high:.4g} over {rate.n} tokens; that mu is returned and violates the target"
            )
        if high is None:
            return (
                f"ASR target {self.target:g} is not reached: it is {self.curve(low).value:.4g} at the largest mu "
                f"{low:g}, which is returned"
            )
        return "the loosest setting tried that meets the target"
