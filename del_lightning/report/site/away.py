"""The rules about soft prompts away from where they were trained: on other data, or behind another mu.

As in :mod:`~del_lightning.report.site.rules`: pure functions from the loaded runs to a verdict, by direction alone.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from del_lightning.report import words
from del_lightning.report.schema import Estimate, TransferBoard, TransferCell
from del_lightning.report.site.claims import (
    Comparison,
    Finding,
    average,
    exponential,
    logarithm,
    negative,
    over_trainings,
    pooled,
    tally,
    weigh,
)
from del_lightning.report.site.own_settings import determining
from del_lightning.report.site.runs import Run


@dataclass(frozen=True)
class _Away:
    """One use of a soft prompt away from home, a training each.

    Attributes:
        runs: Where it was measured.
        away: The transferred soft prompt in use.
        matched: The one that was trained in place, in the same use.
        none: The same use without a soft prompt.
    """

    runs: list[Run]
    away: list[TransferCell]
    matched: list[TransferCell]
    none: list[TransferCell]

    @property
    def on_other_data(self) -> bool:
        """Whether the soft prompt comes from another data set; else it comes from another mu."""
        return self.away[0].trained_on != self.matched[0].trained_on


def _away(runs: Iterable[Run]) -> list[_Away]:
    """Every transferred use; runs that differ in their seed alone give one."""
    groups: dict[str, dict[int, dict[str, _Place]]] = {}
    for run in runs:
        if isinstance(run.board, TransferBoard):
            setting = json.dumps([run.board.dataset, determining(run.board.config)], sort_keys=True)
            groups.setdefault(setting, {}).setdefault(run.board.seed, _places(run, run.board))
    return [use for trainings in groups.values() for use in _shared([trainings[seed] for seed in sorted(trainings)])]


_Place = tuple[Run, TransferCell, TransferCell, TransferCell]


def _places(run: Run, board: TransferBoard) -> dict[str, _Place]:
    """Use -> (run, the transferred soft prompt, the matched one, none) under one training."""
    found: dict[str, _Place] = {}
    for cell in board.cells:
        home = [one for one in board.cells if one.used_at == cell.used_at]
        none = next((one for one in home if one.trained_on is None), None)
        matched = next((one for one in home if one.over_matched is None), None)
        if none is not None and matched is not None and cell not in (none, matched):
            found[json.dumps([cell.trained_on, cell.trained_at, cell.used_at])] = (run, cell, matched, none)
    return found


def _shared(trainings: Sequence[dict[str, _Place]]) -> Iterator[_Away]:
    """The uses that all trainings have."""
    for use in trainings[0]:
        if all(use in training for training in trainings):
            runs, away, matched, none = zip(*(training[use] for training in trainings), strict=True)
            yield _Away(list(runs), list(away), list(matched), list(none))


def data_transfer(runs: Sequence[Run]) -> Finding:
    """Rule: a soft prompt trained on other data has a lower perplexity than none, at the same mu."""
    away = [use for use in _away(runs) if use.on_other_data]
    helps, costs = ([one for use in away for one in rule(use)] for rule in (_helps, _costs))
    remark = f"The matched soft prompt is better still: {tally(costs)}" if costs else ""
    return weigh(helps, "No loaded run uses a soft prompt on other data than it was trained on.", remark)


def mu_transfer(runs: Sequence[Run]) -> Finding:
    """Rule: a soft prompt trained at another mu has a lower perplexity than none and a higher one than the matched."""
    away = [use for use in _away(runs) if not use.on_other_data]
    helps, costs = ([one for use in away for one in rule(use)] for rule in (_helps, _costs))
    parts = (f"Better than none: {tally(helps)}", f"Worse than the matched one: {tally(costs)}") if away else ()
    return weigh([*helps, *costs], "No loaded run uses a soft prompt at another mu than it was trained at.", *parts)


def _helps(use: _Away) -> Iterator[Comparison]:
    found = [cell.over_none.nll for cell in use.away if cell.over_none is not None and cell.over_none.nll is not None]
    if len(found) == len(use.runs):
        yield _compared(use, use.away, use.none, "no soft prompt", [negative(one) for one in found])


def _costs(use: _Away) -> Iterator[Comparison]:
    found = [
        cell.over_matched.nll
        for cell in use.away
        if cell.over_matched is not None and cell.over_matched.nll is not None
    ]
    if len(found) == len(use.runs):
        yield _compared(use, use.matched, use.away, "the matched soft prompt", found)


def _compared(
    use: _Away,
    first: Sequence[TransferCell],
    second: Sequence[TransferCell],
    against: str,
    differences: Sequence[Estimate],
) -> Comparison:
    what = f"PPL at mu {words.number(use.away[0].used_at)} against {against}; difference in nats a token, paired"
    what = over_trainings(what, len(differences))
    return Comparison(tuple(use.runs), what, _side(first), _side(second), pooled(differences))


def _side(cells: Sequence[TransferCell]) -> tuple[str, Estimate]:
    """Where the soft prompt is from, and the perplexity of the NLL averaged over trainings."""
    return _origin(cells[0]), exponential(average([logarithm(cell.perplexity) for cell in cells]))


def _origin(cell: TransferCell) -> str:
    if cell.trained_on is None or cell.trained_at is None:
        return "no soft prompt"
    return f"trained on {cell.trained_on} at mu {words.number(cell.trained_at)}"
