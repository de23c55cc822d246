"""The rules about DEL's own settings: width of the code, bits, payload.

As in :mod:`~del_lightning.report.site.rules`: pure functions from the loaded runs to a verdict, by direction alone.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from del_lightning.config import with_defaults
from del_lightning.report import arrange, words
from del_lightning.report.schema import Leaderboard, LeaderboardRow
from del_lightning.report.site.claims import Comparison, Finding, exact, listed, weigh
from del_lightning.report.site.perplexities import Side, compared
from del_lightning.report.site.rules import TEN_PERCENT, loaded
from del_lightning.report.site.runs import Run, generation

BETWEEN_MU = math.sqrt(20 * 60)
"""Below it a mu counts as strict, above it as loose: the geometric mean of the two of the paper's Table 8."""
SAVING = 32
"""Factor that one bit a coordinate saves, and again b / d of the paper's code width."""
DETERMINING = ("model", "data", "codec", "mechanism", "prompt", "evaluate")
"""Parts of the configuration that utility depends on, besides the seed."""

Trainings = dict[int, tuple[Run, Leaderboard]]
"""Seed -> the run of one setting that was trained under it."""


def quantizer(board: Leaderboard) -> dict[str, float]:
    """Bits, code width and embedding width of DEL on this board; empty without DEL."""
    for entry in arrange.tested(board):
        sent, parameters = entry.row.communication, entry.row.privacy.parameters
        if entry.is_reference and {"bits", "dim"} <= parameters.keys() and math.isfinite(sent.ratio_fp32):
            width = round(sent.ratio_fp32 * sent.bits_per_token / 32)
            return {"bits": parameters["bits"], "dim": parameters["dim"], "width": width}
    return {}


def peers(runs: Sequence[Run], section: str, key: str) -> list[list[Trainings]]:
    """Settings of DEL that differ in one thing and in nothing else that utility depends on, and their trainings."""
    groups: dict[str, dict[str, Trainings]] = {}
    for run, board in generation(runs):
        if quantizer(board):
            value = json.dumps((board.config.get(section) or {}).get(key))
            settings = groups.setdefault(_without(board.config, section, key), {})
            settings.setdefault(value, {}).setdefault(int(board.config.get("seed", 0)), (run, board))
    return [list(settings.values()) for settings in groups.values() if len(settings) > 1]


def determining(config: dict[str, Any]) -> dict[str, Any]:
    """What determines a run, its seed apart; a setting that is younger than the run had its default there."""
    settings = with_defaults(config)
    adapter, grouped = settings["adapter"], "del-plus" in settings["methods"]
    return {name: settings[name] for name in DETERMINING} | {
        "adapter": adapter if adapter["rank"] else None,
        "codebook": settings["codebook"] if grouped else None,
    }


def _without(config: dict[str, Any], section: str, key: str) -> str:
    """What determines a run, one setting and its seed apart."""
    parts = determining(config)
    parts[section] = {name: value for name, value in parts[section].items() if name != key}
    return json.dumps(parts, sort_keys=True)


def _sides(trainings: tuple[Trainings, Trainings], names: tuple[str, str]) -> Iterator[tuple[Side, Side]]:
    """DEL under two settings, at each target or given mu that all trainings of both have."""
    first, second = trainings
    seeds = sorted(first.keys() & second.keys())
    found: dict[tuple[Any, ...], list[tuple[LeaderboardRow, LeaderboardRow]]] = {}
    for seed in seeds:
        for rows in _same_setting(first[seed][1], second[seed][1]):
            found.setdefault((rows[0].matching, rows[0].target, rows[0].soft_prompt), []).append(rows)
    for pairs in found.values():
        if len(pairs) == len(seeds):
            one, other = (
                Side(name, [(*runs[seed], rows[place]) for seed, rows in zip(seeds, pairs, strict=True)])
                for place, (name, runs) in enumerate(zip(names, trainings, strict=True))
            )
            yield one, other


def _same_setting(first: Leaderboard, second: Leaderboard) -> Iterator[tuple[LeaderboardRow, LeaderboardRow]]:
    """DEL's rows of two boards at the same target or the same given mu, with a soft prompt where both have one."""
    for one in (entry for entry in arrange.tested(first) if entry.is_reference):
        for other in (entry for entry in arrange.tested(second) if entry.is_reference):
            if not _alike(one.row, other.row):
                continue
            if one.prompted and other.prompted:
                yield one.prompted, other.prompted
            elif one.plain and other.plain:
                yield one.plain, other.plain


def _alike(one: LeaderboardRow, other: LeaderboardRow) -> bool:
    if (one.matching, one.target) != (other.matching, other.target):
        return False
    return one.target is not None or _same_mu(one, other)


def _same_mu(one: LeaderboardRow, other: LeaderboardRow) -> bool:
    return one.value is not None and other.value is not None and math.isclose(one.value, other.value, rel_tol=0.01)


def width(runs: Sequence[Run]) -> Finding:
    """Rule: a code of b / 32 numbers has the lower perplexity at a strict mu, a wider one at a loose mu."""
    found = [
        one
        for group in peers(runs, "codec", "dim")
        for first, second in combinations(group, 2)
        for one in _widths(first, second)
    ]
    widths = sorted({f"{size['dim']:g}" for _, board in generation(runs) if (size := quantizer(board))}, key=float)
    missing = (
        "It takes two runs that differ in codec.dim alone, one of them at b / 32, with DEL at the same given mu. "
        f"Widths loaded: {listed(widths) or 'none'}."
    )
    return weigh(found, missing)


def _widths(first: Trainings, second: Trainings) -> Iterator[Comparison]:
    narrow, wide = sorted((first, second), key=lambda one: _size(one)["dim"])
    sizes = _size(narrow), _size(wide)
    if sizes[0]["dim"] != sizes[0]["width"] // SAVING or sizes[0]["dim"] == sizes[1]["dim"]:
        return
    for pair in _sides((narrow, wide), (f"d = {sizes[0]['dim']:g}", f"d = {sizes[1]['dim']:g}")):
        one, other = (side.places[0][2] for side in pair)
        if one.value is None or not _same_mu(one, other):
            continue
        strict = one.value < BETWEEN_MU
        ours, theirs = (_with_price(side) for side in (pair if strict else pair[::-1]))
        yield from compared(ours, theirs, f"PPL at a {'strict' if strict else 'loose'} mu", 0.0)


def _with_price(side: Side) -> Side:
    """Named with its guarantee and what is read of it: at one mu another width is another privacy."""
    rows = [row for _, _, row in side.places]
    read = [found.value for row in rows if (found := words.worst_attack(row)) is not None]
    strongest = f"; the strongest attack reads {words.percent(math.fsum(read) / len(read))}" if read else ""
    return replace(side, name=f"{side.name}: {words.guarantee(rows[0].privacy)}{strongest}")


def _size(trainings: Trainings) -> dict[str, float]:
    """:func:`quantizer` of a setting: the same in all of its trainings."""
    return quantizer(next(board for _, board in trainings.values()))


def bits(runs: Sequence[Run]) -> Finding:
    """Rule: fewer bits a coordinate cost at most a tenth of perplexity against the most bits that were run."""
    found: list[Comparison] = []
    for group in peers(runs, "mechanism", "bits"):
        most, *fewer = sorted(group, key=lambda one: -_size(one)["bits"])
        for few in fewer:
            names = (f"n = {_size(few)['bits']:g}", f"n = {_size(most)['bits']:g}")
            for ours, theirs in _sides((few, most), names):
                row, short = ours.places[0][2], [name for side in (ours, theirs) if (name := _short(side))]
                matched = f"{words.MATCHED[row.matching]} {row.target:g}" if row.matching else "equal mu"
                if short:
                    matched += f", which {listed(short)} cannot reach at any mu"
                found += compared(ours, theirs, f"PPL at {matched}", TEN_PERCENT)
    known = sorted({f"{size['bits']:g}" for _, board in generation(runs) if (size := quantizer(board))}, key=float)
    missing = (
        "It takes two runs that differ in mechanism.bits alone, with DEL at the same target or mu. "
        f"Bits loaded: {listed(known) or 'none'}."
    )
    return weigh(found, missing)


def _short(side: Side) -> str:
    """Name of a method that stays below its target: no setting of it is read that often. Else the empty text."""
    short = sum(
        any(
            result.target == row.target and not result.reached
            for one in board.calibrations
            if one.method == row.method
            for result in one.found.get(row.matching or "", [])
        )
        for _, board, row in side.places
    )
    if short in (0, len(side.places)):
        return side.name if short else ""
    return f"{side.name} (in {short} of {len(side.places)} trainings)"


def payload(runs: Sequence[Run]) -> Finding:
    """Rule: at d = b / 32 a token takes 32 x 32 / n times fewer bits than its fp32 embedding; the headline is n = 1."""
    found: dict[tuple[float, ...], Comparison] = {}
    text: list[str] = []
    for run, board in generation(runs):
        size = quantizer(board)
        if not size or size["dim"] != size["width"] // SAVING:
            continue
        row = next(entry.row for entry in arrange.tested(board) if entry.is_reference)
        text += _smaller_text(board, row)
        promised, ratio = SAVING * SAVING / size["bits"], row.communication.ratio_fp32
        # What is computed from n, d and b alone says the same in every run of them.
        found.setdefault(
            (size["bits"], size["dim"], size["width"], ratio),
            Comparison(
                runs=(run,),
                what=f"times smaller than an fp32 embedding, d = {size['dim']:g} of b = {size['width']:g}",
                first=(f"sent at n = {size['bits']:g}", exact(ratio)),
                second=("claimed: 32 × 32 / n", exact(promised)),
                difference=exact(ratio - promised),
                margin=promised / 100,
            ),
        )
    compared = list(found.values())
    finding = weigh(compared, f"No loaded run holds DEL at a code width of b / 32. {loaded(runs)}", *text[:1])
    if finding.verdict == "agrees" and not any(one.first[0].endswith("n = 1") for one in compared):
        reason = f"{finding.reason} The headline's n = 1 was not run."
        return Finding("partly", reason, finding.comparisons)
    return finding


def _smaller_text(board: Leaderboard, row: LeaderboardRow) -> list[str]:
    """What an embedding is a generous yardstick for: the text itself as token ids."""
    clean = [entry.row.communication.bits_per_token for entry in arrange.controls(board) if entry.row.method == "clean"]
    if not clean or not 0 < clean[0] < row.communication.bits_per_token:
        return []
    sizes = words.count(clean[0]), words.count(row.communication.bits_per_token)
    return [f"The text itself, as token ids, takes {sizes[0]} bits a token and so less than DEL's {sizes[1]}."]
