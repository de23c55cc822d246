"""Text-generation leaderboards of one configuration whose every part was trained anew under each of several seeds.

An interval over prompts says how far another choice of prompts would move a number, not how far another training
would. So what a method retains is shown twice: of the mean over the trainings with its interval over prompts, and of
every training by itself, with Student's interval over them.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from del_lightning.config import with_defaults
from del_lightning.metrics import bootstrap_ratio, information_retained
from del_lightning.report import words
from del_lightning.report.schema import Estimate, Leaderboard, LeaderboardRow

SETTINGS = (
    *("model", "data", "codec", "codebook", "mechanism", "prompt", "adapter", "attack", "evaluate"),
    *("methods", "targets"),
)
"""Parts of a configuration that boards share which differ in their seed alone."""

LAST = "last top-1"
"""The measure of attacks that looks at the last private token of every prompt alone."""

MEASURES = ("content top-1", "content top-10", LAST)
"""What a success over all tokens hides."""


@dataclass(frozen=True)
class Anew:
    """One method over several trainings.

    Attributes:
        row: Its row under the lowest seed.
        seeds: Seeds of the trainings, ascending.
        retained: R of the NLL averaged over trainings, interval over prompts.
        each: R of every training.
        gain: R minus that of DEL in the same boards, paired over prompts; None for DEL itself and the controls.
        gain_each: The same of every training; empty where ``gain`` is None.
        coherence: COH of every training.
        asr: Largest success of any attack, a training.
        read: The same for each of :data:`MEASURES`, of the trainings where it was measured.
    """

    row: LeaderboardRow
    seeds: list[int]
    retained: Estimate
    each: list[float]
    gain: Estimate | None
    gain_each: list[float]
    coherence: list[float]
    asr: list[float]
    read: dict[str, list[float]]


def groups(boards: Sequence[Leaderboard]) -> list[list[Leaderboard]]:
    """Boards that differ in their seed alone, lowest seed first; those without numbers of each prompt are left out."""
    found: dict[str, dict[int, Leaderboard]] = {}
    for board in sorted(boards, key=lambda board: int(board.config["seed"])):
        if any(row.nll_by_prompt for row in board.rows):
            settings = with_defaults(board.config)
            key = json.dumps([board.dataset, *(settings[name] for name in SETTINGS)], sort_keys=True)
            found.setdefault(key, {}).setdefault(int(board.config["seed"]), board)
    return [list(group.values()) for group in found.values()]


def over_trainings(group: Sequence[Leaderboard]) -> list[Anew]:
    """The prompted methods of one of :func:`groups`, in the order of the first board; controls are left out.

    A method that not every board has, or boards without prompted controls, give nothing.
    """
    rows = [{_which(row): row for row in board.rows if row.soft_prompt and row.nll_by_prompt} for board in group]
    shared = [which for which in rows[0] if all(which in board for board in rows)]
    if not {_CLEAN, _MEAN} <= set(shared):
        return []
    alone = [{which: np.array(board[which].nll_by_prompt) for which in shared} for board in rows]
    nll = {which: np.mean([one[which] for one in alone], axis=0) for which in shared}
    tokens = np.array(group[0].reference_tokens, dtype=np.float64)
    return [
        Anew(
            row=rows[0][which],
            seeds=[int(board.config["seed"]) for board in group],
            retained=information_retained(nll[_MEAN], nll[which], nll[_CLEAN], tokens),
            each=[found.value for board in rows if (found := board[which].retained) is not None],
            gain=_gain(nll, which, tokens),
            gain_each=[found.value for one in alone if (found := _gain(one, which, tokens)) is not None],
            coherence=[board[which].coherence.value for board in rows],
            asr=_values([board[which] for board in rows], words.worst_attack),
            read={
                measure: _values([board[which] for board in rows], partial(words.most_recovered, measure=measure))
                for measure in MEASURES
            },
        )
        for which in shared
        if not rows[0][which].is_control
    ]


def _values(rows: Sequence[LeaderboardRow], of: Callable[[LeaderboardRow], Estimate | None]) -> list[float]:
    """Of the rows that have one."""
    return [found.value for row in rows if (found := of(row)) is not None]


_Which = tuple[str, str | None, float | None]
_CLEAN: _Which = ("clean", None, None)
_MEAN: _Which = ("mean", None, None)


def _which(row: LeaderboardRow) -> _Which:
    """What a row has in common with that of another training, whose calibrated value is another."""
    return row.method, row.matching, row.target


def _gain(nll: dict[_Which, np.ndarray], which: _Which, tokens: np.ndarray) -> Estimate | None:
    """R of a method minus R of DEL: both have one denominator, so the difference is a ratio too."""
    theirs = ("del", *which[1:])
    if which == theirs or theirs not in nll:
        return None
    return bootstrap_ratio(tokens * (nll[theirs] - nll[which]), tokens * (nll[_MEAN] - nll[_CLEAN]))
