"""Leaderboards of one setting that were run a level of attack success at a time become one.

A level takes hours on a CPU and is complete in itself: its methods are calibrated to it, trained and attacked there.
Its controls are those of every other level: they are taken from one part, and where another's came out otherwise, the
two stay apart.
"""

import json
import math
import re
from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

from del_lightning.config import with_defaults
from del_lightning.report.merge import any_dirty, common_title, origins
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
TRAINER = ("precision", "compile", "accumulate_grad_batches", "devices", "num_nodes")
"""Settings of the trainer that change what comes out, which they must share too."""

SAME_CONTROL = 0.01
"""Largest relative difference between two perplexities of one control: machines round differently."""

MATCHINGS = (None, "nearest", "worst", "guarantee")
"""Order of the rows: controls and given settings, then a matching after the other."""

_LEVEL = re.compile(r"[\s,:(]*\b(ASR\W*[\d.]+|targets=\[[^\]]*\])\)?$", re.IGNORECASE)
"""The level at the end of a title."""


def groups(boards: Sequence[Leaderboard]) -> list[list[Leaderboard]]:
    """Boards that differ in their targets only, side by side, lowest target first; any other board alone."""
    found: dict[str, list[Leaderboard]] = {}
    for board in boards:
        found.setdefault(_setting(board), []).append(board)
    parts = [sorted(group, key=lambda board: min(_targets(board), default=0.0)) for group in found.values()]
    return [part for group in parts for part in ([group] if _can_join(group) else [[one] for one in group])]


def merged(boards: Sequence[Leaderboard]) -> list[Leaderboard]:
    """The boards with each of :func:`groups` as one."""
    return [joined(group) for group in groups(boards)]


def joined(group: Sequence[Leaderboard]) -> Leaderboard:
    """One board of one of :func:`groups`. Its wall time is the sum of theirs, parts they share counted in each."""
    first, *others = group
    if not others:
        return first
    targets = sorted(target for board in group for target in _targets(board))
    typed = [one for one in first.overrides if not one.startswith(("targets=", "title="))]
    return first.model_copy(
        update={
            "title": _title(group),
            "rows": _rows(group),
            "calibrations": [_calibration(one, others) for one in first.calibrations],
            "curves": _once((curve.name, curve) for board in group for curve in board.curves),
            "attacked": _once((one.label, one) for board in group for one in board.attacked),
            "notes": [*_notes(group), *origins("Levels", ((board, _named(board)) for board in group))],
            "config": {**first.config, "title": _title(group), "targets": targets},
            "overrides": [*typed, f"targets=[{','.join(f'{target:g}' for target in targets)}]"],
            "environment": first.environment.model_copy(update={"dirty": any_dirty(group)}),
            "wall_seconds": sum(board.wall_seconds for board in group),
            "generated": max(board.generated for board in group),
        }
    )


def joined_texts(board: Leaderboard, parts: Sequence[Texts | None]) -> Texts | None:
    """The texts of a joined board: every continuation and reading of those parts that have any."""
    known = [part for part in parts if part is not None]
    if not known:
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
    return [float(target) for target in with_defaults(board.config)["targets"]]


def _setting(board: Leaderboard) -> str:
    config = with_defaults(board.config)
    alike = (board.dataset, board.model, board.encoder, board.schedule, board.prompts, board.seeds)
    trainer = [config["trainer"][name] for name in TRAINER]
    return json.dumps([*alike, *(config[name] for name in SHARED), trainer], sort_keys=True)


def _can_join(group: Sequence[Leaderboard]) -> bool:
    """Whether there are several, each with levels that no other has, and with the controls of the first."""
    targets = [target for board in group for target in _targets(board)]
    apart = len(set(targets)) == len(targets) and all(map(_targets, group))
    return len(group) > 1 and apart and all(_fits(group[0], other) for other in group[1:])


def _title(group: Sequence[Leaderboard]) -> str:
    """What the titles share where they name a level at the end, otherwise the first one and how many follow."""
    more = f"{len(group) - 1} more level" + ("s" if len(group) > 2 else "")
    return common_title([board.title for board in group], _LEVEL) or f"{group[0].title} and {more}"


def _named(board: Leaderboard) -> list[str]:
    return [f"{target:g}" for target in _targets(board)]


def _notes(group: Sequence[Leaderboard]) -> list[str]:
    """The notes of all levels; in front of one that not all have, whose it is."""
    found: dict[str, list[Leaderboard]] = {}
    for board in group:
        for note in board.notes:
            found.setdefault(note, []).append(board)
    whose = {note: ", ".join(name for board in boards for name in _named(board)) for note, boards in found.items()}
    return [note if len(found[note]) == len(group) else f"ASR {whose[note]}: {note}" for note in found]


def _fits(first: Leaderboard, other: Leaderboard) -> bool:
    """Whether a level was measured on the same prompts, and its controls came out as the first one's."""
    lengths = [board.reference_tokens for board in (first, other) if board.reference_tokens]
    if first.private_tokens != other.private_tokens or lengths[1:] != lengths[:1] * len(lengths[1:]):
        return False
    ours, theirs = _controls(first), _controls(other)
    return ours.keys() == theirs.keys() and all(_is_close(row, theirs[which]) for which, row in ours.items())


def _is_close(ours: LeaderboardRow, theirs: LeaderboardRow) -> bool:
    if ours.perplexity is None or theirs.perplexity is None:
        return ours.perplexity is theirs.perplexity
    return math.isclose(ours.perplexity.value, theirs.perplexity.value, rel_tol=SAME_CONTROL)


def _controls(board: Leaderboard) -> dict[tuple[str, bool], LeaderboardRow]:
    return {(row.label, row.soft_prompt): row for row in board.rows if row.target is None}


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
    continuations = {name: text for one in reversed(same) for name, text in one.continuations.items()}
    return same[0].model_copy(update={"continuations": continuations})


def _prompt(same: Sequence[GalleryPrompt]) -> GalleryPrompt:
    return same[0].model_copy(update={"levels": _once((level.label, level) for one in same for level in one.levels)})


def _once(found: Iterable[tuple[Hashable, Item]]) -> list[Item]:
    """The first item of every key, in order."""
    first: dict[Hashable, Item] = {}
    for key, item in found:
        first.setdefault(key, item)
    return list(first.values())
