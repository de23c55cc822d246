"""How a claim is held against measured numbers: comparisons with an interval each, and the verdict that they add up to.

A comparison is a difference that is positive where the claim holds. It counts only as far as its 95% interval allows:
inside the noise it takes no side, and where sending nothing might confirm as well it decides nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from del_lightning.metrics import over_seeds
from del_lightning.report.schema import Estimate
from del_lightning.report.site.runs import Run

Outcome = Literal["confirms", "contradicts", "inside the noise", "decides nothing", "has no interval"]
Verdict = Literal["agrees", "disagrees", "partly", "mixed", "undecided", "not run"]

_UNDECIDED = "Nothing is decided where a row that sends no text is not shown to fail the same comparison."


@dataclass(frozen=True)
class Comparison:
    """Two measured numbers of which a claim says how they differ.

    Attributes:
        runs: Where they come from.
        what: Which figure, matched how.
        first: (row, number) of what the claim favours.
        second: (row, number) of what it is compared with.
        difference: Positive where the claim holds; paired where the results allow it.
        margin: How far below zero the difference may lie before the claim fails.
        control_fails: Whether a row that sends nothing, in the first one's place, is shown to fail; a comparison that
            it might pass can contradict but not confirm.
        is_share: Whether the numbers are shares, which pages show in per cent.
    """

    runs: tuple[Run, ...]
    what: str
    first: tuple[str, Estimate]
    second: tuple[str, Estimate]
    difference: Estimate
    margin: float = 0.0
    control_fails: bool = True
    is_share: bool = False

    @property
    def outcome(self) -> Outcome:
        """What the interval allows to say."""
        low, high = self.difference.low, self.difference.high
        if low is None and high is None:
            return "has no interval"
        if low is not None and low > -self.margin:
            return "confirms" if self.control_fails else "decides nothing"
        if high is not None and high < -self.margin:
            return "contradicts"
        return "inside the noise"


@dataclass(frozen=True)
class Finding:
    """A verdict, why, and the comparisons that it was computed from."""

    verdict: Verdict
    reason: str
    comparisons: tuple[Comparison, ...] = ()

    @property
    def runs(self) -> list[Run]:
        """The runs behind it, each once."""
        return list({run.slug: run for one in self.comparisons for run in one.runs}.values())


def not_run(reason: str) -> Finding:
    """Nothing to compare, and why."""
    return Finding("not run", reason)


def weigh(comparisons: Sequence[Comparison], missing: str, *remarks: str) -> Finding:
    """The verdict on a claim.

    Agrees: every comparison confirms. Partly: some confirm, the others do neither. Mixed: some confirm,
    some contradict. Disagrees: some contradict and none confirms. Undecided: none does either. Not run:
    there is none.

    Args:
        comparisons: All that bear on the claim; what several runs share to the last digit counts once.
        missing: Why there are none, should there be none.
        remarks: Sentences behind the count; empty ones are left out.
    """
    comparisons = distinct(comparisons)
    if not comparisons:
        return not_run(missing)
    found = [one.outcome for one in comparisons]
    confirmed, contradicted = found.count("confirms"), found.count("contradicts")
    verdict: Verdict = "undecided"
    if confirmed:
        verdict = "mixed" if contradicted else "agrees" if confirmed == len(found) else "partly"
    elif contradicted:
        verdict = "disagrees"
    sentences = [tally(comparisons), *([_UNDECIDED] if "decides nothing" in found else []), *filter(None, remarks)]
    return Finding(verdict, " ".join(sentences), tuple(comparisons))


def distinct(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons, one training's numbers once: several runs may hold the same rows."""
    return list({_numbers(one): one for one in reversed(comparisons)}.values())[::-1]


def _numbers(one: Comparison) -> tuple[str, ...]:
    """What two comparisons have in common only if they are the same measurement."""
    places = sorted({f"{run.board.model}, {run.data}" for run in one.runs})
    estimates = (one.first[1], one.second[1], one.difference)
    return *places, one.what, one.first[0], one.second[0], *(number.model_dump_json() for number in estimates)


def tally(comparisons: Sequence[Comparison]) -> str:
    """How many comparisons confirm, contradict, lie inside the noise and so on, as a sentence."""
    found = [one.outcome for one in distinct(comparisons)]
    counts = {
        ("confirms", "confirm"): found.count("confirms"),
        ("contradicts", "contradict"): found.count("contradicts"),
        ("lies inside the noise", "lie inside the noise"): found.count("inside the noise"),
        ("decides nothing", "decide nothing"): found.count("decides nothing"),
        ("has no interval", "have no interval"): found.count("has no interval"),
    }
    parts = [(count, one if count == 1 else many) for (one, many), count in counts.items() if count]
    if len(found) == 1:
        return f"The only comparison {parts[0][1]}."
    if len(parts) == 1:
        return f"All {len(found)} comparisons {parts[0][1]}."
    return f"Of {len(found)} comparisons {', '.join(f'{count} {verb}' for count, verb in parts)}."


def minus(first: Estimate, second: Estimate) -> Estimate:
    """Difference of two estimates, with an interval from theirs (Zou and Donner 2008), as if they were independent.

    Numbers measured on the same prompts move together, so the interval is too wide rather than too narrow.
    """
    value, n = first.value - second.value, min(first.n, second.n)
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return Estimate(value=value, n=n)
    low = value - math.hypot(first.value - first.low, second.high - second.value)
    high = value + math.hypot(first.high - first.value, second.value - second.low)
    return Estimate(value=value, n=n, low=low, high=high, interval=first.interval)


def negative(estimate: Estimate) -> Estimate:
    """The estimate with its sign turned."""
    low, high = (None if end is None else -end for end in (estimate.high, estimate.low))
    return estimate.model_copy(update={"value": -estimate.value, "low": low, "high": high})


def logarithm(estimate: Estimate) -> Estimate:
    """Natural logarithm of a positive estimate; of a perplexity it is in nats a token."""
    low, high = (None if end is None or end <= 0 else math.log(end) for end in (estimate.low, estimate.high))
    return estimate.model_copy(update={"value": math.log(estimate.value), "low": low, "high": high})


def exponential(estimate: Estimate) -> Estimate:
    """Inverse of :func:`logarithm`."""
    low, high = (None if end is None else math.exp(end) for end in (estimate.low, estimate.high))
    return estimate.model_copy(update={"value": math.exp(estimate.value), "low": low, "high": high})


def average(estimates: Sequence[Estimate]) -> Estimate:
    """Mean of one figure over several trainings, measured on the same prompts.

    Its interval is the mean of theirs. That is what it would be if another choice of prompts moved all of them alike;
    the deviation of a mean is never above the mean of the deviations, so it is too wide rather than too narrow.
    """
    value, n = math.fsum(one.value for one in estimates) / len(estimates), min(one.n for one in estimates)
    low = [one.low for one in estimates if one.low is not None]
    high = [one.high for one in estimates if one.high is not None]
    if min(len(low), len(high)) < len(estimates):
        return Estimate(value=value, n=n)
    ends = {"low": math.fsum(low) / len(low), "high": math.fsum(high) / len(high)}
    return estimates[0].model_copy(update={"value": value, "n": n, **ends})


def both(first: Estimate, second: Estimate) -> Estimate:
    """One estimate of the same difference whose interval covers those of both ways to measure it."""
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return Estimate(value=first.value, n=first.n)
    low, high = min(first.low, second.low), max(first.high, second.high)
    return first.model_copy(update={"low": low, "high": high})


def pooled(estimates: Sequence[Estimate]) -> Estimate:
    """One figure over its trainings: other prompts and other trainings would both leave it inside the interval."""
    mean = average(estimates)
    return both(mean, over_seeds([one.value for one in estimates])) if len(estimates) > 1 else mean


def over_trainings(what: str, trainings: int) -> str:
    """The name of a figure, and over how many trainings it is a mean."""
    several = f"{what}, mean of {trainings} trainings; interval over prompts and over trainings"
    return several if trainings > 1 else what


def exact(value: float) -> Estimate:
    """A number that is computed, not measured."""
    return Estimate(value=value, n=1, low=value, high=value, interval="exact")


def listed(names: Sequence[str]) -> str:
    """``a, b and c``, each once."""
    once = list(dict.fromkeys(names))
    return " and ".join([", ".join(once[:-1]), once[-1]]) if len(once) > 1 else "".join(once)
