"""Calibration of a method's privacy parameter to a target attack success rate (ASR).

Methods are compared at equal ASR, so each one's own parameter (mu, eta or epsilon; larger is less private) is searched
for the largest value whose measured success stays at the target. One outline of the whole curve ASR(parameter), over
a share of the tokens, serves every target: it says where to look, and a few measurements over all tokens decide.
Every value is tried on the same tokens with the same noise (common random numbers), and a value counts as accepted
only if the rate *and* its upper confidence limit comply, for every attack that the target is meant for. All that was
measured is kept.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import Tensor

from del_lightning.errors import ConfigError
from del_lightning.metrics.intervals import clopper_pearson
from del_lightning.report.schema import Calibration, CurvePoint, Estimate

Measure = Callable[[float], Mapping[str, Tensor]]
"""Parameter value -> attack -> (n,) booleans, one a token: did the attack read it? Must reseed its generator itself."""

FIRST_STEP = 1.05
"""Distance from the outline's guess at which an answer is looked for on its other side, as a ratio, if its slope is of
no help."""
PATIENCE = 3
"""Interpolations after which a bracket is halved instead: a curve may have steps."""


class SuccessCurve:
    """Success of every attack at each parameter value tried; a value is measured at most once.

    Args:
        measure: See :data:`Measure`.
        confidence: Of the Clopper-Pearson intervals.
    """

    def __init__(self, measure: Measure, confidence: float = 0.95) -> None:
        self._measure, self._confidence = measure, confidence
        self._measured: dict[float, dict[str, Estimate]] = {}

    def __call__(self, value: float) -> dict[str, Estimate]:
        """Success rate of every attack with its interval."""
        if value not in self._measured:
            hits = self._measure(value)
            self._measured[value] = {
                name: clopper_pearson(int(found.sum()), found.numel(), self._confidence) for name, found in hits.items()
            }
        return self._measured[value]

    def worst(self, value: float, attacks: Sequence[str]) -> Estimate:
        """The highest success rate among these attacks."""
        rates = self(value)
        return max((rates[name] for name in attacks), key=lambda rate: rate.value)

    @property
    def tried(self) -> list[float]:
        """Values measured, ascending."""
        return sorted(self._measured)

    def points(self) -> list[CurvePoint]:
        """Everything measured, ascending in the value."""
        return [CurvePoint(value=value, asr=self._measured[value]) for value in self.tried]


def outline(curve: SuccessCurve, value_range: tuple[float, float], points: int) -> None:
    """Measure a curve at ``points`` values (at least 2), evenly apart on a logarithmic scale over the range."""
    _check_range(value_range)
    if points < 2:
        raise ConfigError(f"`points` must be at least 2, got {points!r}")
    for value in np.geomspace(*value_range, points):
        curve(float(value))


def calibrate(
    curve: SuccessCurve,
    target: float,
    *,
    attacks: Sequence[str],
    value_range: tuple[float, float],
    tolerance: float = 0.01,
    resolution: float = 0.02,
    guide: SuccessCurve | None = None,
) -> Calibration:
    """Largest parameter value whose attack success complies with the target; errs on the private side.

    A value is accepted if under each of the attacks the rate is at most ``target`` and its upper confidence limit at
    most ``target + tolerance``. The result lies below every rejected value that was tried. If even the lower end of
    the range is rejected, or even the upper end accepted, that end is returned with ``reached=False`` and a note.

    Args:
        curve: Success over all tokens; shared between targets, it shares their measurements.
        target: ASR in (0, 1).
        attacks: Names of the attacks that must all comply, at least one.
        value_range: Interval that is searched, 0 < low < high.
        tolerance: In (0, 1).
        resolution: The search ends when the next rejected value is at most this share above the accepted one; > 0.
        guide: An outlined curve that says where to start; None starts at both ends of the range.

    Raises:
        ConfigError: An argument is out of range.

    Example:
        >>> import torch
        >>> difficulty = torch.linspace(0, 100, 5000)  # a token is read as soon as mu exceeds its difficulty
        >>> curve = SuccessCurve(lambda mu: {"reader": difficulty < mu})
        >>> result = calibrate(curve, 0.1, attacks=["reader"], value_range=(0.1, 1000.0), tolerance=0.02)
        >>> result.reached, round(result.value)
        (True, 10)
    """
    _check(target, tolerance, resolution, attacks)
    _check_range(value_range)
    search = _Search(curve, target, tolerance, attacks, value_range)
    start = None if guide is None else crossing(guide, target, attacks)
    search.run(resolution, start, None if guide is None or start is None else slope(guide, start, attacks))
    return Calibration(
        target=target,
        attacks=list(attacks),
        value=search.value,
        reached=search.reached,
        note=search.note(),
        asr=curve.worst(search.value, attacks),
    )


def crossing(guide: SuccessCurve, target: float, attacks: Sequence[str]) -> float | None:
    """Value at which an outlined curve, made monotone, passes the target; None where it never does."""
    values = guide.tried
    rates = np.maximum.accumulate([guide.worst(value, attacks).value for value in values])
    if not rates[0] <= target < rates[-1]:
        return None
    above = int(np.searchsorted(rates, target, side="right"))
    (low, high), (start, end) = np.log(values[above - 1 : above + 1]), rates[above - 1 : above + 1]
    return float(math.exp(low + (high - low) * (target - start) / (end - start)))


def slope(guide: SuccessCurve, value: float, attacks: Sequence[str]) -> float:
    """Rise of an outlined curve a unit of ln value at a value inside its range; may be 0 or negative."""
    values = guide.tried
    above = min(max(int(np.searchsorted(values, value)), 1), len(values) - 1)
    low, high = values[above - 1 : above + 1]
    return (guide.worst(high, attacks).value - guide.worst(low, attacks).value) / math.log(high / low)


def _check(target: float, tolerance: float, resolution: float, attacks: Sequence[str]) -> None:
    for name, share in (("target", target), ("tolerance", tolerance)):
        if not 0 < share < 1:
            raise ConfigError(f"`{name}` must be strictly between 0 and 1, got {share!r}")
    if not resolution > 0:
        raise ConfigError(f"`resolution` must be positive, got {resolution!r}")
    if not attacks:
        raise ConfigError(f"`attacks` must name at least one attack, got {list(attacks)!r}")


def _check_range(value_range: tuple[float, float]) -> None:
    if not 0 < value_range[0] < value_range[1] < math.inf:
        raise ConfigError(f"`value_range` must be two increasing positive numbers, got {value_range!r}")


class _Search:
    """One target's search over a curve that may already know some points."""

    def __init__(
        self,
        curve: SuccessCurve,
        target: float,
        tolerance: float,
        attacks: Sequence[str],
        value_range: tuple[float, float],
    ) -> None:
        self.curve, self.target, self.limit, self.attacks = curve, target, target + tolerance, attacks
        self.floor, self.ceiling = value_range

    def excess(self, value: float) -> float:
        """By how much the rate or its upper limit passes what is allowed; at most 0 where the value is accepted."""
        rates = [self.curve(value)[attack] for attack in self.attacks]
        return max(max(rate.value - self.target, (rate.high or 0) - self.limit) for rate in rates)

    def accepts(self, value: float) -> bool:
        return self.excess(value) <= 0

    def bracket(self) -> tuple[float | None, float | None]:
        """Largest accepted value below every rejected one, and the smallest rejected value, of those tried."""
        known = [value for value in self.curve.tried if self.floor <= value <= self.ceiling]
        high = min((value for value in known if not self.accepts(value)), default=None)
        low = max((value for value in known if high is None or value < high), default=None)
        return low, high

    def run(self, resolution: float, guess: float | None, rise: float | None = None) -> None:
        if guess is None:
            if self.accepts(self.floor):  # the ceiling would say nothing more, and is the costliest value for some
                self.curve(self.ceiling)
        else:
            self._surround(guess, rise, resolution)
        low, high = self.bracket()
        tries = 0
        while low is not None and high is not None and high > low * (1 + resolution):
            self.curve(self._between(low, high, resolution) if tries < PATIENCE else math.sqrt(low * high))
            low, high = self.bracket()
            tries += 1

    def _between(self, low: float, high: float, resolution: float) -> float:
        """Where the excess, linear in ln value, would be 0; near an end, a value that may end the search at once."""
        below, above = self.excess(low), self.excess(high)
        meeting = low * (high / low) ** (below / (below - above))
        near = 1 + 0.99 * resolution
        return high / near if meeting > high / near else max(meeting, low * near)

    def _surround(self, guess: float, rise: float | None, resolution: float) -> None:
        """Widen around the guess until a value is accepted and one is rejected, or the range ends."""
        step = FIRST_STEP
        excess = self.excess(guess)
        if rise is not None and rise > 0 and None in self.bracket():
            # The outline is over few tokens: off by a little, but its slope says how far the answer is, about.
            beyond = math.exp(-excess / rise) * (1 + resolution / 2) ** (-1 if excess > 0 else 1)
            self.curve(min(max(guess * beyond, guess / 2, self.floor), guess * 2, self.ceiling))
        while None in self.bracket():
            low, high = self.bracket()
            nearest = min(self.ceiling, (low or guess) * step) if high is None else max(self.floor, high / step)
            if nearest in self.curve.tried:
                return
            self.curve(nearest)
            step = step**2

    @property
    def reached(self) -> bool:
        return None not in self.bracket()

    @property
    def value(self) -> float:
        low, _ = self.bracket()
        return self.floor if low is None else low

    def note(self) -> str:
        low, high = self.bracket()
        if low is None:
            rate = self.curve.worst(self.floor, self.attacks)
            return (
                f"ASR target {self.target:g} is out of reach: at the smallest value {self.floor:g} it is "
                f"{rate.value:.4g} with upper limit {rate.high:.4g} over {rate.n} tokens"
            )
        if high is None:
            rate = self.curve.worst(low, self.attacks)
            return f"ASR target {self.target:g} is not reached: it is {rate.value:.4g} at the largest value {low:g}"
        return "the loosest setting tried that meets the target"
