"""DEL+ beside DEL, from the committed leaderboards: docs/del_plus.md, its pictures, and its part of the README."""

import re
from collections.abc import Iterator
from typing import Any

from _cells import NAMES, NONE, RESULTS, front_end, guarantee, once, plus_name, show, trainings_table, where

from del_lightning.report import anew, pictures, words
from del_lightning.report.schema import Estimate, Leaderboard, LeaderboardRow

ALIKE, FINER = "DEL+, groups alike", "DEL+, finer groups at the end"
"""Series of the pictures beside DEL."""

MAIN, COMPARED, SEARCHES = r"\w+-asr[\d.]+-seed\d", r"\w+-asr[\d.]+(-alike)?-seed\d", r"\w+-mu.*"
"""Folders of the boards that the README shows, of those with groups alike too, and of the earlier searches."""
ANY = ".*"

STEPS = (
    ("ptb-asr0.2-seed0", "del", "DEL"),
    ("ptb-asr0.2-posterior-seed0", "del-posterior", "DEL's codes, decoded to the posterior mean"),
    ("ptb-asr0.2-alike-seed0", "del-plus", "the same behind a semantic codebook, groups alike"),
    ("ptb-asr0.2-seed0", "del-plus", "**DEL+**: finer groups for the last two tokens"),
    ("ptb-asr0.2-end-alone-seed0", "del-plus", "the last two tokens alone, all others in one group"),
    ("ptb-asr0.2-bounded-seed0", "del-plus", "finer groups for the last four, none of a single token"),
    ("ptb-asr0.2-one-by-one-seed0", "del-plus", "DEL+, every position decoded by itself"),
    ("ptb-asr0.2-one-bit-seed0", "del", "DEL, one bit a number: 18 bits a token, the same mu"),
    ("ptb-asr0.2-one-bit-seed0", "del-plus", "DEL+, one bit a number: 18 bits a token, the same mu"),
    ("ptb-asr0.2-no-adapter-seed0", "del", "DEL, soft prompts without an adapter"),
    ("ptb-asr0.2-no-adapter-seed0", "del-plus", "DEL+, soft prompts without an adapter"),
)
"""What each part gives: run, method, words."""


def del_plus() -> str:
    """DEL+ beside DEL: over the trainings of each setting, its parts, every attacker, then a line a method and run."""
    compared = plus_boards(COMPARED)
    lines = [
        *(
            f"![R against the strongest attack, {NAMES.get(name, name)}](pictures/del_plus_{name}.svg)\n"
            for name in _datasets(compared)
        ),
        *trainings_table(anew.groups(compared)),
        "",
        *_parts(),
        *_unseen(),
        *_every_attacker(),
        "Every run:",
        "",
        *_runs(compared),
        "",
        "Earlier searches, fewer prompts:",
        "",
        *_runs(plus_boards(SEARCHES)),
    ]
    return "\n".join(lines)


def _runs(boards: list[Leaderboard]) -> list[str]:
    """A line a method and board."""
    return [
        "| data, mu, seed | front-end | R | COH | PPL | ASR, strongest attack | of content tokens | those, ten guesses | of last tokens | exact ε of a prompt |",  # noqa: E501
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *once(
            f"| {where(board)}, {board.config['seed']} | {' | '.join(_plus_cells(row, board.config))} |"
            for board in boards
            for row in board.rows
            if row.soft_prompt
        ),
    ]


def plus_boards(names: str, within: str = "") -> list[Leaderboard]:
    """The committed boards of DEL+ beside DEL whose folder matches ``names``, by data and mu."""
    paths = sorted(
        path for path in RESULTS.glob(f"del_plus/{within}*/leaderboard.json") if re.fullmatch(names, path.parent.name)
    )
    found = [Leaderboard.model_validate_json(path.read_text()) for path in paths]
    return sorted(found, key=lambda board: (board.dataset, board.config["mechanism"]["mu"]))


def _parts() -> list[str]:
    """What each part of DEL+ gives, on PTB where DEL is read at .2, one training."""
    lines = []
    for name, method, text in STEPS:
        path = RESULTS / "del_plus" / name / "leaderboard.json"
        if path.exists():
            board = Leaderboard.model_validate_json(path.read_text())
            row = next(row for row in board.rows if row.soft_prompt and row.method == method)
            share = f"{board.config['codebook']['largest_share']:g}" if method == "del-plus" else NONE
            lines.append(f"| {text} | {share} | {' | '.join(_figures(row))} |")
    return [
        "What each part gives, PTB at mu 14, one training. Rows without an adapter are compared with controls that "
        "have none either:",
        "",
        "| front-end | share | R | COH | PPL | ASR, strongest attack | of content tokens | those, ten guesses | of last tokens |",  # noqa: E501
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *lines,
        "",
    ]


def _unseen() -> list[str]:
    """Trained parts of seed 0 on other prompts and other noise."""
    lines = once(
        f"| {where(board)} | {plus_name(row, board.config)} | {' | '.join(_figures(row))} |"
        for board in plus_boards(ANY, "anew/")
        for row in board.rows
        if row.soft_prompt and row.method in ("del", "del-plus")
    )
    if not lines:
        return []
    return [
        "Prompts and noise that nothing was chosen on (`data.first_prompt=2`, the trained parts of seed 0):",
        "",
        "| data, mu | front-end | R | COH | PPL | ASR, strongest attack | of content tokens | those, ten guesses | of last tokens |",  # noqa: E501
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *lines,
        "",
    ]


def _unseen_summary() -> str:
    """What other prompts and noise say, in a sentence; empty before there are any."""
    told = []
    for board in plus_boards(ANY, "anew/"):
        named = {one.row.method: one for one in anew.over_trainings([board])}
        ours, plus = named["del"], named["del-plus"]
        asr = f"{_mean(ours.asr)} → {_mean(plus.asr)}"
        told.append(f"{where(board)}: R {ours.retained.value:.3f} → {plus.retained.value:.3f}, strongest attack {asr}")
    if not told:
        return ""
    return f" On other prompts and other noise, on which no setting was chosen: {'; '.join(told)}."


def _every_attacker() -> list[str]:
    """What each attacker of the whole suite reads of DEL and of DEL+, one training."""
    rows = [(board, row) for board in plus_boards(ANY, "attacks/") for row in board.rows]
    if not rows:
        return []
    names = list(dict.fromkeys(name for _, row in rows for name in row.asr if name != "worst"))
    return [
        "What every attacker reads, one training:",
        "",
        f"| attacker | {' | '.join(f'{where(board)}: {front_end(row)}' for board, row in rows)} |",
        f"| --- |{' ---: |' * len(rows)}",
        *(f"| {name} | {' | '.join(show(row.asr.get(name), '.1%') for _, row in rows)} |" for name in names),
        f"| **the strongest** | {' | '.join(show(words.worst_attack(row), '.1%') for _, row in rows)} |",
        "",
    ]


def shown_settings() -> list[tuple[list[Leaderboard], anew.Anew, anew.Anew]]:
    """The README's settings: the boards of the trainings of each, DEL and DEL+ over them."""
    return [(group, ours, plus) for group in anew.groups(plus_boards(MAIN)) for ours, plus in _pairs(group)]


def plus_summary() -> list[str]:
    """DEL+ in the README: what it lets through at each setting, and what is read of it."""
    shown = shown_settings()
    if not shown:
        return []
    lines = [
        "| data, mu | trainings | R, DEL | R, DEL+ | DEL+ minus DEL | ASR, strongest attack | content tokens | those, ten guesses | last token of a prompt |",  # noqa: E501
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for group, ours, plus in shown:
        pairs = [(ours.asr, plus.asr), *((ours.read[name], plus.read[name]) for name in anew.MEASURES)]
        cells = [
            where(group[0]),
            str(len(group)),
            *(show(one, ".3f") for one in (ours.retained, plus.retained, plus.gain)),
        ]
        lines.append(f"| {' | '.join([*cells, *(f'{_mean(one)} → {_mean(other)}' for one, other in pairs)])} |")
    ahead = sum(plus.gain is not None and (plus.gain.low or 0.0) > 0.0 for *_, plus in shown)
    last = [value for *_, plus in shown for value in plus.read[anew.LAST]]
    read = (
        f"the last token of a prompt is read in {min(last):.0%} to {max(last):.0%} of all prompts, and " if last else ""
    )
    outcome = (
        "**DEL+** sends codes of DEL's own mechanism, with its worst-case guarantee and its bits, and lets more of "
        f"the prompt through: in {ahead} of {len(shown)} settings its R is above DEL's, the interval of the difference "
        f"above 0. That has a price which the success over all tokens hides: {read}tokens that carry content are read "
        "more often than behind DEL (DEL → DEL+ in the table, each under its strongest attack). Both have a low-rank "
        f"adapter; {shown[0][0][0].prompts} prompts, brackets over prompts: [docs/del_plus.md](docs/del_plus.md)."
        f"{_unseen_summary()}"
    )
    return [outcome, "\n".join(lines)]


def _pairs(group: list[Leaderboard]) -> Iterator[tuple[anew.Anew, anew.Anew]]:
    """DEL and DEL+ of a group whose last tokens have groups of their own."""
    named = {one.row.method: one for one in anew.over_trainings(group)}
    if group[0].config["codebook"].get("last") and {"del", "del-plus"} <= set(named):
        yield named["del"], named["del-plus"]


def _mean(values: list[float]) -> str:
    return f"{sum(values) / len(values):.1%}" if values else NONE


def _plus_cells(row: LeaderboardRow, config: dict[str, Any]) -> list[str]:
    return [plus_name(row, config), *_figures(row), guarantee(row)]


def _figures(row: LeaderboardRow) -> list[str]:
    """Utility and what attackers read."""
    name = words.attack_name(words.worst_name(row))
    return [
        show(row.retained, ".3f"),
        show(row.coherence, ".3f"),
        show(row.perplexity, ".1f"),
        f"{show(words.worst_attack(row), '.1%')} {name}",
        *(show(words.most_recovered(row, measure), ".1%") for measure in anew.MEASURES),
    ]


def frontiers() -> Iterator[tuple[str, str]]:
    """R against the worst attack of DEL and DEL+, a picture a data set."""
    found = plus_boards(COMPARED)
    for dataset in _datasets(found):
        series: dict[str, dict[Any, tuple[Estimate, Estimate]]] = {"DEL": {}, ALIKE: {}, FINER: {}}
        # DEL of the same mu stands in several groups: that of most trainings is drawn.
        for group in sorted(anew.groups([board for board in found if board.dataset == dataset]), key=len):
            kind = FINER if group[0].config["codebook"].get("last") else ALIKE
            for one in anew.over_trainings(group):
                title = {"del": "DEL", "del-plus": kind}[one.row.method]
                series[title][group[0].config["mechanism"]["mu"]] = (_over(one), one.retained)
        name = NAMES.get(dataset, dataset)
        yield dataset, pictures.frontier(name, {title: list(points.values()) for title, points in series.items()})


def _datasets(boards: list[Leaderboard]) -> list[str]:
    return sorted({board.dataset for board in boards})


def _over(one: anew.Anew) -> Estimate:
    """Success of the strongest attack: mean over trainings, and their range; of a single one its interval."""
    if len(one.asr) == 1 and (worst := words.worst_attack(one.row)) is not None:
        return worst
    return Estimate(value=sum(one.asr) / len(one.asr), n=len(one.asr), low=min(one.asr), high=max(one.asr))
