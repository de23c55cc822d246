"""Leaderboards of one GLUE task that were run a seed at a time, on one machine or several, become one.

A seed takes long and is complete in itself; its scores stand in its leaderboard, so figures and intervals over seeds
are worked out anew. What only the first seed has (attacks, attributes, costs) is taken from the board that has the
lowest one.
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from del_lightning.config import with_defaults
from del_lightning.errors import ArtifactError
from del_lightning.metrics import binary_figures, over_examples, over_seeds
from del_lightning.metrics.classification import RANGES
from del_lightning.report.schema import Environment, Estimate, Leaderboard, NluLeaderboard, NluRow

SAME_VALUE = 0.05
"""Largest relative difference between two calibrated values of one level: machines round differently."""

SHARED = ("seed", "targets", "matching", "mechanism", "codec", "baseline", "prompt", "attack")
"""Sections of the configuration that parts of one board must share, all but the attacks that were run."""
SHARED_NAMES = (
    ("model", "dtype"),
    ("model", "revision"),
    ("trainer", "precision"),
    ("evaluate", "delta"),
    ("data", "train_tokens"),
)
"""Settings of other sections that they must share."""

_SEED = re.compile(r"[\s,:(]*\bseed\W*\d+\)?$", re.IGNORECASE)
"""The seed at the end of a title."""


def groups(boards: Sequence[NluLeaderboard]) -> list[list[NluLeaderboard]]:
    """Boards that differ in their seeds only, side by side, lowest seed first; any other board alone."""
    found: dict[str, list[NluLeaderboard]] = {}
    for board in boards:
        found.setdefault(_setting(board), []).append(board)
    parts = [sorted(group, key=lambda board: min(board.seeds)) for group in found.values()]
    return [part for group in parts for part in ([group] if _can_join(group) else [[one] for one in group])]


def merged(boards: Sequence[NluLeaderboard]) -> list[NluLeaderboard]:
    """The boards with each of :func:`groups` as one.

    Raises:
        ArtifactError: Boards of one schedule that have other rows, other reported examples, or values of a privacy
            parameter too far apart.
    """
    return [joined(group) for group in groups(boards)]


def _setting(board: NluLeaderboard) -> str:
    """What boards must share to be parts of one: all settings but seeds, title and what changes no number."""
    config = with_defaults(board.config)
    nlu = {name: value for name, value in config["nlu"].items() if name not in ("seeds", "part", "keep_denoisers")}
    more = {name: config[name] for name in SHARED}
    # Attacks that were not run on a later seed's releases are missed by nobody.
    more["attack"] = {name: value for name, value in more["attack"].items() if name != "suite"}
    few = {name: config[section][name] for section, name in SHARED_NAMES}
    alike = (board.task, board.model, board.schedule, board.denoised_prompt_rate, board.tuned_start_counts)
    return repr((*alike, sorted(nlu.items()), more, few))


def _can_join(group: Sequence[NluLeaderboard]) -> bool:
    """Whether there are several, with scores and without a common seed."""
    seeds = [seed for board in group for seed in board.seeds]
    return len(group) > 1 and all(board.labels for board in group) and len(set(seeds)) == len(seeds)


def joined(group: Sequence[NluLeaderboard]) -> NluLeaderboard:
    """One board of a group's seeds; no interval ends where its figure cannot be, as those of older boards do.

    Raises:
        ArtifactError: As in :func:`merged`.
    """
    first, *others = group
    if not others:
        return first.model_copy(update={"rows": [_cut(row) for row in first.rows]})
    seeds = [seed for board in group for seed in board.seeds]
    config: dict[str, Any] = {**first.config, "nlu": {**first.config["nlu"], "seeds": seeds}}
    return first.model_copy(
        update={
            "title": common_title([board.title for board in group], _SEED) or first.title,
            "seeds": seeds,
            "rows": [_row(row, others, first.labels) for row in first.rows],
            "config": config,
            "overrides": [one for one in first.overrides if not one.startswith(("nlu.seeds=", "title="))],
            "environment": first.environment.model_copy(update={"dirty": any_dirty(group)}),
            "notes": [*first.notes, *origins("Seeds", ((board, board.seeds) for board in group))],
            "wall_seconds": sum(board.wall_seconds for board in group),
            "generated": max(board.generated for board in group),
        }
    )


def common_title(titles: Sequence[str], end: re.Pattern[str]) -> str | None:
    """What titles share in front of an end that tells them apart; None where they share no such title."""
    [name, *others] = {end.sub("", title) for title in titles}
    return name or None if not others else None


def any_dirty(group: Sequence[Leaderboard | NluLeaderboard]) -> bool | None:
    """Whether any part came from code that was not committed; None where that is not known of all."""
    found = [board.environment.dirty for board in group]
    return True if True in found else None if None in found else False


def origins(kind: str, parts: Iterable[tuple[Leaderboard | NluLeaderboard, Sequence[object]]]) -> list[str]:
    """Notes where parts come from different versions of the code or from different machines.

    Args:
        kind: What the parts are, in the plural: begins the sentence.
        parts: Every board with the names of what it brings.
    """
    parts = list(parts)
    codes = [((board.environment.revision or "unknown")[:7], names) for board, names in parts]
    machines = [(_machine(board.environment), names) for board, names in parts]
    return [
        *_told(f"{kind} were run apart, by different versions of the code", "from revision", codes),
        *_told(f"{kind} were run on different machines or versions of torch", "on", machines),
    ]


def _machine(environment: Environment) -> str:
    return f"{environment.accelerator or environment.processor} (torch {environment.packages.get('torch', 'unknown')})"


def _told(sentence: str, preposition: str, origins: Iterable[tuple[str, Sequence[object]]]) -> list[str]:
    """The sentence and who comes from where; empty if all come from one place."""
    found: dict[str, list[object]] = {}
    for origin, names in origins:
        found.setdefault(origin, []).extend(names)
    named = [f"{', '.join(map(str, names))} {preposition} {origin}" for origin, names in found.items()]
    return [f"{sentence}: {'; '.join(named)}."] if len(named) > 1 else []


def _cut(row: NluRow) -> NluRow:
    cut = {name: _within(estimate, *RANGES[name]) for name, estimate in row.over_seeds.items()}
    return row.model_copy(update={"over_seeds": cut})


def _within(estimate: Estimate, least: float, most: float) -> Estimate:
    if estimate.low is None or estimate.high is None:
        return estimate
    return estimate.model_copy(update={"low": max(estimate.low, least), "high": min(estimate.high, most)})


def _row(row: NluRow, others: Sequence[NluLeaderboard], labels: list[int]) -> NluRow:
    if not row.scores:  # the majority class, which has no seed
        return row
    parts = [row, *(_same(row, board, labels) for board in others)]
    scores = [one for part in parts for one in part.scores]
    figures = [binary_figures(one, labels) for one in scores]
    return row.model_copy(
        update={
            "seeds": len(scores),
            "scores": scores,
            "validation": [one for part in parts for one in part.validation],
            "over_seeds": {
                name: over_seeds([figure[name] for figure in figures], within=RANGES[name]) for name in figures[0]
            },
            "over_examples": over_examples(scores, labels),
        }
    )


def _same(row: NluRow, board: NluLeaderboard, labels: list[int]) -> NluRow:
    """The row of another board that continues this one."""
    name = f"{board.title!r} and the board that it continues"
    if board.labels != labels:
        raise ArtifactError(f"{name} must report the same examples of GLUE {board.task}, got others")
    found = [other for other in board.rows if (other.variant, other.label) == (row.variant, row.label)]
    if len(found) != 1:
        raise ArtifactError(f"{name} must have one row {row.variant!r} behind {row.label!r} each, got {len(found)}")
    values = (row.value, found[0].value)
    if None not in values and not math.isclose(values[0] or 0, values[1] or 0, rel_tol=SAME_VALUE):
        raise ArtifactError(f"{name} must have about the same {row.parameter} for {row.label!r}, got {values}")
    return found[0]
