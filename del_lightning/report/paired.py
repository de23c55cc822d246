"""Ways to classify and front-ends compared in pairs: the same reported examples under the same seeds.

Two rows whose own intervals overlap may still differ, and mostly do not. What is resampled here is the difference.
"""

from collections.abc import Iterator

from del_lightning.metrics import differences
from del_lightning.report import nlu, words
from del_lightning.report.schema import Estimate, NluLeaderboard, NluRow

WAYS = (("prompt", "linear"), ("lora", "prompt"), ("snd-prompt", "snd"), ("prompt", "snd"), ("snd-user", "local"))
"""Pairs of ways to classify behind one front-end: what the first has more than the second."""

READING = (
    "At the level that the summary quotes. The same examples under the same seeds; intervals are over examples, so "
    "other seeds may say otherwise, and one in "
    "twenty leaves out 0 where there is no difference."
)
"""How to read the table of differences."""


def auc_difference(board: NluLeaderboard, first: NluRow, second: NluRow) -> Estimate | None:
    """AUC of the first row minus the second's, with an interval over examples; None where a board has no scores."""
    if not board.labels or not first.scores or len(first.scores) != len(second.scores):
        return None
    return differences(first.scores, second.scores, board.labels)["auc"]


def difference_rows(board: NluLeaderboard) -> list[dict[str, str]]:
    """Table of differences of AUC at the front-end that the summary quotes, a line a pair."""
    return [
        {
            "First": first,
            "Second": second,
            "AUC, first minus second": words.with_interval(found),
            "Verdict": "inside the noise"
            if words.holds_zero(found)
            else f"{'first' if found.value > 0 else 'second'} higher",
        }
        for first, second, found in _differences(board)
    ]


def _differences(board: NluLeaderboard) -> Iterator[tuple[str, str, Estimate]]:
    for one, other in (*_methods(board), *_without_text(board), *_ways(board)):
        found = auc_difference(board, one, other)
        if found is not None:
            yield _name(board, one), _name(board, other), found


def _name(board: NluLeaderboard, row: NluRow) -> str:
    return f"{nlu.front_name(board, row)}, {nlu.VARIANTS[row.variant]}"


def _methods(board: NluLeaderboard) -> Iterator[tuple[NluRow, NluRow]]:
    """DEL as quoted against every other method at its level, a way to classify after the other."""
    label = nlu.headline(board)
    for ours in (row for row in board.rows if row.label == label):
        for theirs in board.rows:
            level = (theirs.variant, theirs.matching, theirs.target) == (ours.variant, ours.matching, ours.target)
            if level and theirs.method != ours.method and not nlu.misses_target(board, theirs):
                yield ours, theirs


def _without_text(board: NluLeaderboard) -> Iterator[tuple[NluRow, NluRow]]:
    """Every front-end at the quoted level against the one that shows the length of a text alone, way by way."""
    label = nlu.headline(board)
    for ours in (row for row in board.rows if row.label == label):
        for row in board.rows:
            level = (row.variant, row.matching, row.target) == (ours.variant, ours.matching, ours.target)
            control = nlu.without_text(board, row.variant)
            if level and control is not None:
                yield row, control


def _ways(board: NluLeaderboard) -> Iterator[tuple[NluRow, NluRow]]:
    """Ways to classify behind the quoted front-end; what the user does alone sees clean text."""
    label = nlu.headline(board)
    for first, second in WAYS:
        ours = None if label is None else nlu.row_of(board, first, label)
        theirs = next((row for row in board.rows if row.variant == second and second == "local"), None)
        theirs = theirs or (None if label is None else nlu.row_of(board, second, label))
        if ours is not None and theirs is not None:
            yield ours, theirs
