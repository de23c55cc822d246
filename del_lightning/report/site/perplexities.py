"""Perplexities of two runs set against each other: in nats a token, over prompts and over trainings.

"Nearly as good" is a claim that a row of no text may pass as well, behind a soft prompt that knows the domain and the
text's length. So every such comparison is made again with the mean embedding in the first row's place.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from del_lightning.metrics import bootstrap_ratio, over_seeds
from del_lightning.report import anew, arrange
from del_lightning.report.schema import Estimate, Leaderboard, LeaderboardRow
from del_lightning.report.site.claims import Comparison, both, logarithm, minus, over_trainings
from del_lightning.report.site.runs import Run, generation


@dataclass(frozen=True)
class Side:
    """What one side of a comparison is: the same method under one or several trainings.

    Attributes:
        name: As pages name it.
        places: (run, its leaderboard, the method's row there), a training each.
    """

    name: str
    places: Sequence[tuple[Run, Leaderboard, LeaderboardRow]]

    @property
    def perplexity(self) -> Estimate | None:
        """The row's own, or that of the NLL averaged over trainings."""
        if len(self.places) == 1:
            return self.places[0][2].perplexity
        nll, tokens = self.by_prompt, self.tokens
        return None if nll is None else bootstrap_ratio(tokens * nll.mean(axis=0), tokens, transform=np.exp)

    @property
    def nats(self) -> Estimate | None:
        """Logarithm of the perplexity; None where there is none that can be compared."""
        found = self.perplexity
        return logarithm(found) if found is not None and 0 < found.value < np.inf else None

    @property
    def by_prompt(self) -> np.ndarray | None:
        """(trainings, prompts) nats a token; None where a leaderboard does not hold them, or of other prompts."""
        rows = [row.nll_by_prompt for _, _, row in self.places]
        tokens = [board.reference_tokens for _, board, _ in self.places]
        alike = all(one == tokens[0] and len(one) == len(row) > 0 for one, row in zip(tokens, rows, strict=True))
        return np.array(rows) if alike else None

    @property
    def tokens(self) -> np.ndarray:
        """(prompts,) how many tokens of each prompt's continuation are scored."""
        return np.array(self.places[0][1].reference_tokens, dtype=np.float64)

    def with_nothing_sent(self) -> "Side | None":
        """The mean embedding in its place; None where a leaderboard has no such row."""
        rows = [mean_embedding(board, prompted=row.soft_prompt) for _, board, row in self.places]
        found = [(run, board, row) for (run, board, _), row in zip(self.places, rows, strict=True) if row is not None]
        return Side("Mean embedding", found) if len(found) == len(self.places) else None


def mean_embedding(board: Leaderboard, *, prompted: bool) -> LeaderboardRow | None:
    """The row that sends the length alone; None where a leaderboard has none."""
    found = (entry for entry in arrange.controls(board) if entry.row.method == "mean")
    rows = (entry.prompted if prompted else entry.plain for entry in found)
    return next((row for row in rows if row is not None), None)


def trainings(runs: Sequence[Run]) -> list[list[tuple[Run, Leaderboard]]]:
    """The runs that continue text, those that differ in their seed alone together."""
    boards = {id(board): (run, board) for run, board in generation(runs)}
    groups = [[boards.pop(id(board)) for board in group] for group in anew.groups([b for _, b in boards.values()])]
    return [*groups, *([alone] for alone in boards.values())]


def compared(
    first: Side, second: Side, what: str, margin: float, stored: Estimate | None = None
) -> Iterator[Comparison]:
    """The first has the lower perplexity, or one at most so much higher; nothing where there are no numbers.

    Args:
        first: What the claim favours.
        second: What it is compared with.
        what: Which figure, matched how.
        margin: Nats a token that the first may be behind. Where it may, sending nothing must be shown to fail.
        stored: The difference that a leaderboard without numbers of each prompt holds itself.
    """
    ours, theirs = first.perplexity, second.perplexity
    paired = _paired(first, second) or stored
    difference = paired or _apart(first, second)
    if ours is None or theirs is None or difference is None:
        return
    if paired is not None:
        what = f"{what}; difference in nats a token, paired"
    what = over_trainings(what, len(first.places))
    yield Comparison(
        runs=tuple({run.slug: run for run, _, _ in (*first.places, *second.places)}.values()),
        what=what,
        first=(first.name, ours),
        second=(second.name, theirs),
        difference=difference,
        margin=margin,
        control_fails=margin == 0 or _fails(first.with_nothing_sent(), second, margin),
    )


def _fails(nothing: Side | None, second: Side, margin: float) -> bool:
    """Whether sending nothing is shown to be further behind than the margin; not where there is no such row."""
    found = (_paired(nothing, second) or _apart(nothing, second)) if nothing is not None else None
    return found is not None and found.high is not None and found.high < -margin


def _paired(first: Side, second: Side) -> Estimate | None:
    """Nats a token of the second minus those of the first, prompt by prompt and training by training."""
    ours, theirs = first.by_prompt, second.by_prompt
    if ours is None or theirs is None or not np.array_equal(first.tokens, second.tokens):
        return None
    weight = first.tokens
    over_prompts = bootstrap_ratio(weight * (theirs - ours).mean(axis=0), weight)
    if len(ours) == 1:
        return over_prompts
    return both(over_prompts, over_seeds(list((theirs - ours) @ weight / weight.sum())))


def _apart(first: Side, second: Side) -> Estimate | None:
    """The same from two perplexities, as if they were independent."""
    ours, theirs = first.nats, second.nats
    return None if ours is None or theirs is None else minus(theirs, ours)
