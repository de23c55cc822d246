"""Leaderboards of one setting that were run a level of attack success at a time become one.

A level takes hours on a CPU and is complete in itself: its methods are calibrated to it, trained and attacked there.
Its controls are those of every other level, so they are taken from one part and held against the others.
"""

import json
import math
import re
from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

from del_lightning.config import with_defaults
from del_lightning.errors import ArtifactError
from del_lightning.report.merge import any_dirty, revisions
from del_lightning.report.schema import (
    CurvePoint,
    GalleryPrompt,
    Leaderboard,
    LeaderboardRow,
    MethodCalibration,
    Sample,
    Texts,
)

Item = TypeVar("Item")

SHARED = (
    *("model", "data", "codec", "codebook", "mechanism", "baseline", "prompt", "adapter", "attack", "inverter"),
    *("evaluate", "methods", "soft_prompts", "unprompted", "matching", "seed"),
)
"""Parts of a configuration that levels of one board must share."""

SAME_CONTROL = 0.01
"""Largest relative difference between two perplexities of one control: machines round differently."""

MATCHINGS = (None, "nearest", "worst", "guarantee")
"""Order of the rows: controls and given settings, then a matching after the other."""

_LEVEL = re.compile(r"[\s,:(]*\bASR\W*[\d.]+\)?$", re.IGNORECASE)
"""The level at the end of a title."""


def groups(boards: Sequence[Leaderboard]) -> list[list[Leaderboard]]:
    """Boards that differ in their targets only, side by side, lowest target first; any other board alone."""
    found: dict[str, list[Leaderboard]] = {}
    for board in boards:
        found.setdefault(_setting(board), []).append(board)
    parts = [sorted(group, key=lambda board: min(_targets(board), default=0.0)) for group in found.values()]
    return [part for group in parts for part in ([group] if _can_join(group) else [[one] for one in group])]


def merged(boards: Sequence[Leaderboard]) -> list[Leaderboard]:
    """The boards with each of :func:`groups` as one.

    Raises:
        ArtifactError: Levels of one board that have other prompts or other controls.
    """
    return [joined(group) for group in groups(boards)]


def joined(group: Sequence[Leaderboard]) -> Leaderboard:
    """One board of a group's levels. Its wall time is the sum of theirs, parts they share counted in each.

    Raises:
        ArtifactError: As in :func:`merged`.
    """
    first, *others = group
    if not others:
        return first
    for other in others:
        _check(first, other)
    targets = [target for board in group for target in _targets(board)]
    return first.model_copy(
        update={
            "title": _title(group),
            "rows": _rows(group),
            "calibrations": [_calibration(one, others) for one in first.calibrations],
            "curves": _once((curve.name, curve) for board in group for curve in board.curves),
            "attacked": _once((one.label, one) for board in group for one in board.attacked),
            "notes": [*_once((note, note) for board in group for note in board.notes), *_revisions(group)],
            "config": {**first.config, "title": _title(group), "targets": targets},
            "overrides": [one for one in first.overrides if not one.startswith(("targets=", "title="))],
            "environment": first.environment.model_copy(update={"dirty": any_dirty(group)}),
            "wall_seconds": sum(board.wall_seconds for board in group),
            "generated": max(board.generated for board in group),
        }
    )


def joined_texts(board: Leaderboard, parts: Sequence[Texts | None]) -> Texts | None:
    """The texts of a joined board: every continuation and reading of its parts; None where a part has none."""
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    samples = zip(*(part.samples for part in known), strict=False)
    gallery = zip(*(part.gallery for part in known), strict=False)
    return Texts(
        title=board.title,
        generated=board.generated,
        samples=[_sample(same) for same in samples],
        gallery=[_prompt(same) for same in gallery],
    )


def _targets(board: Leaderboard) -> list[float]:
    return [float(target) for target in board.config["targets"]]


def _setting(board: Leaderboard) -> str:
    config = with_defaults(board.config)
    alike = (board.dataset, board.model, board.encoder, board.schedule, board.prompts, board.seeds)
    return json.dumps([*alike, *(config[name] for name in SHARED)], sort_keys=True)


def _can_join(group: Sequence[Leaderboard]) -> bool:
    """Whether there are several, each with levels that no other has."""
    targets = [target for board in group for target in _targets(board)]
    return len(group) > 1 and all(map(_targets, group)) and len(set(targets)) == len(targets)


def _title(group: Sequence[Leaderboard]) -> str:
    """What the titles share where they name a level at the end, otherwise the first one."""
    names = {_LEVEL.sub("", board.title) for board in group}
    return names.pop() or group[0].title if len(names) == 1 else group[0].title


def _revisions(group: Sequence[Leaderboard]) -> list[str]:
    """A note where levels come from different versions of the code."""
    return revisions("Levels", ((board, [f"{target:g}" for target in _targets(board)]) for board in group))


def _check(first: Leaderboard, other: Leaderboard) -> None:
    """Refuse levels that were measured on other prompts, or whose controls came out otherwise."""
    name = f"{other.title!r} and {first.title!r}, levels of one leaderboard,"
    if (first.private_tokens, first.reference_tokens) != (other.private_tokens, other.reference_tokens):
        raise ArtifactError(f"{name} must have the same prompts, got others")
    ours, theirs = _controls(first), _controls(other)
    if ours.keys() != theirs.keys():
        raise ArtifactError(f"{name} must have the same controls, got {_names(ours)} and {_names(theirs)}")
    for which, row in ours.items():
        found = [one.perplexity.value for one in (row, theirs[which]) if one.perplexity is not None]
        if len(found) == 2 and not math.isclose(*found, rel_tol=SAME_CONTROL):
            raise ArtifactError(f"{name} must have about the same perplexity of {row.label!r}, got {found}")


def _controls(board: Leaderboard) -> dict[tuple[str, bool], LeaderboardRow]:
    return {(row.label, row.soft_prompt): row for row in board.rows if row.target is None}


def _names(rows: dict[tuple[str, bool], LeaderboardRow]) -> list[str]:
    return sorted({label for label, _ in rows})


def _rows(group: Sequence[Leaderboard]) -> list[LeaderboardRow]:
    """Controls once, then a matching after the other, each with its levels in order."""
    rows = _once(((row.label, row.soft_prompt, row.target), row) for board in group for row in board.rows)
    return sorted(rows, key=lambda row: (MATCHINGS.index(row.matching), row.target or 0.0))


def _calibration(first: MethodCalibration, others: Sequence[Leaderboard]) -> MethodCalibration:
    parts = [first, *(one for board in others for one in board.calibrations if one.method == first.method)]
    return first.model_copy(
        update={
            "found": {name: [one for part in parts for one in part.found.get(name, [])] for name in first.found},
            "outline": _points(point for part in parts for point in part.outline),
            "points": _points(point for part in parts for point in part.points),
        }
    )


def _points(points: Iterable[CurvePoint]) -> list[CurvePoint]:
    return sorted(_once((point.value, point) for point in points), key=lambda point: point.value)


def _sample(same: Sequence[Sample]) -> Sample:
    continuations = {name: text for one in same for name, text in one.continuations.items()}
    return same[0].model_copy(update={"continuations": continuations})


def _prompt(same: Sequence[GalleryPrompt]) -> GalleryPrompt:
    return same[0].model_copy(update={"levels": _once((level.label, level) for one in same for level in one.levels)})


def _once(found: Iterable[tuple[Hashable, Item]]) -> list[Item]:
    """The first item of every key, in order."""
    first: dict[Hashable, Item] = {}
    for key, item in found:
        first.setdefault(key, item)
    return list(first.values())
