"""DEL+ beside DEL, from the committed leaderboards: docs/del_plus.md, its pictures, and its part of the README."""

from collections.abc import Iterator
from typing import Any

from _cells import NAMES, NONE, RESULTS, guarantee, once, plus_name, show, trainings_table, where

from del_lightning.report import anew, pictures, words
from del_lightning.report.schema import Estimate, Leaderboard, LeaderboardRow

ALIKE, FINER = "DEL+, groups alike", "DEL+, finer groups at the end"
"""Series of the pictures beside DEL."""

STEPS = (
    ("ptb-asr0.2-seed0", "del", "DEL"),
    ("ptb-asr0.2-posterior-seed0", "del-posterior", "DEL's codes, decoded to the posterior mean"),
    ("ptb-asr0.2-alike-seed0", "del-plus", "the same behind a semantic codebook, groups alike"),
    ("ptb-asr0.2-seed0", "del-plus", "**DEL+**: finer groups for the last two tokens"),
    ("ptb-asr0.2-bounded-seed0", "del-plus", "finer groups for the last four, none of a single token"),
    ("ptb-asr0.2-one-by-one-seed0", "del-plus", "DEL+, every position decoded by itself"),
    ("ptb-asr0.2-no-adapter-seed0", "del", "DEL, soft prompts without an adapter"),
    ("ptb-asr0.2-no-adapter-seed0", "del-plus", "DEL+, soft prompts without an adapter"),
)
"""What each part gives: run, method, words."""


def del_plus() -> str:
    """DEL+ beside DEL: over the trainings of each setting, what every attacker reads, then a line a method and run."""
    found = plus_boards()
    lines = [
        *(
            f"![R against the strongest attack, {NAMES.get(name, name)}](pictures/del_plus_{name}.svg)\n"
            for name, _ in frontiers()
        ),
        *trainings_table(anew.groups([board for board in found if _is_whole(board)])),
        "",
        *_parts(),
        *_every_attacker(),
        "Every run:",
        "",
        "| data, mu, seed | front-end | R | COH | PPL | ASR, strongest attack | of content tokens | of last tokens | exact ε of a prompt |",  # noqa: E501
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *once(
            f"| {where(board)}, {board.config['seed']} | {' | '.join(_plus_cells(row, board.config))} |"
            for board in found
            for row in board.rows
            if row.soft_prompt
        ),
    ]
    return "\n".join(lines)


def plus_boards() -> list[Leaderboard]:
    """The committed boards of DEL+ beside DEL, by data and mu, those with most prompts first."""
    paths = sorted(RESULTS.glob("del_plus/*/leaderboard.json"))
    found = [Leaderboard.model_validate_json(path.read_text()) for path in paths]
    return sorted(found, key=lambda board: (board.dataset, board.config["mechanism"]["mu"], -board.prompts))


def _parts() -> list[str]:
    """What each part of DEL+ gives, on PTB where DEL is read at .2, one training."""
    lines = []
    for name, method, text in STEPS:
        path = RESULTS / "del_plus" / name / "leaderboard.json"
        if path.exists():
            board = Leaderboard.model_validate_json(path.read_text())
            row = next(row for row in board.rows if row.soft_prompt and row.method == method)
            lines.append(f"| {text} | {' | '.join(_figures(row))} |")
    return [
        "What each part gives, PTB at mu 14, one training; R without an adapter lies between controls without one:",
        "",
        "| front-end | R | COH | PPL | ASR, strongest attack | of content tokens | of last tokens |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *lines,
        "",
    ]


def _every_attacker() -> list[str]:
    """What each attacker of the whole suite reads of DEL and of DEL+, one training."""
    paths = sorted(RESULTS.glob("del_plus/attacks/*/leaderboard.json"))
    found = [Leaderboard.model_validate_json(path.read_text()) for path in paths]
    rows = [(board, row) for board in found for row in board.rows]
    if not rows:
        return []
    names = list(dict.fromkeys(name for _, row in rows for name in row.asr))
    return [
        "What every attacker reads, one training:",
        "",
        f"| attacker | {' | '.join(f'{where(board)}: {plus_name(row, board.config)}' for board, row in rows)} |",
        f"| --- |{' ---: |' * len(rows)}",
        *(f"| {name} | {' | '.join(show(row.asr.get(name), '.1%') for _, row in rows)} |" for name in names),
        "",
    ]


def plus_summary() -> list[str]:
    """DEL+ in the README: the settings that were trained most often."""
    found = anew.groups(plus_boards())
    most = max((len(group) for group in found), default=0)
    shown = [(group, ours, plus) for group in found if len(group) == most for ours, plus in _pairs(group)]
    if not shown:
        return []
    lines = [
        "| data, mu | R, DEL | R, DEL+ | DEL+ minus DEL | ASR, strongest attack, DEL | DEL+ | last token of a prompt read, DEL | DEL+ |",  # noqa: E501
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for group, ours, plus in shown:
        shares = [_range(values) for values in (ours.asr, plus.asr, ours.last, plus.last)]
        cells = [where(group[0]), *(show(one, ".3f") for one in (ours.retained, plus.retained, plus.gain)), *shares]
        lines.append(f"| {' | '.join(cells)} |")
    trained = "trained once" if most == 1 else f"{most} trainings of every part"
    ahead = sum(plus.gain is not None and (plus.gain.low or 0.0) > 0.0 for *_, plus in shown)
    outcome = (
        "**DEL+** sends codes of DEL's own mechanism, so guarantee and bits are DEL's, and lets more of the prompt "
        f"through: in {ahead} of {len(shown)} settings its R is above DEL's, the interval of the difference above 0. "
        "What pays for it: the last tokens of a prompt are read nearly in full. Both have a low-rank adapter; "
        f"{trained}, {shown[0][0][0].prompts} prompts, brackets over prompts, ranges over trainings: "
        "[docs/del_plus.md](docs/del_plus.md)."
    )
    return [outcome, "\n".join(lines)]


def _pairs(group: list[Leaderboard]) -> Iterator[tuple[anew.Anew, anew.Anew]]:
    """DEL and DEL+ of a group whose last tokens have groups of their own."""
    named = {one.row.method: one for one in anew.over_trainings(group)}
    if group[0].config["codebook"].get("last") and {"del", "del-plus"} <= set(named):
        yield named["del"], named["del-plus"]


def _range(values: list[float]) -> str:
    low, high = (f"{end(values):.1%}" if values else NONE for end in (min, max))
    return low if low == high else f"{low} to {high}"


def _plus_cells(row: LeaderboardRow, config: dict[str, Any]) -> list[str]:
    return [plus_name(row, config), *_figures(row), guarantee(row)]


def _figures(row: LeaderboardRow) -> list[str]:
    """Utility and what attackers read."""
    name = words.worst_name(row).partition(" (")[0]
    return [
        show(row.retained, ".3f"),
        show(row.coherence, ".3f"),
        show(row.perplexity, ".1f"),
        f"{show(words.worst_attack(row), '.1%')} {name}",
        show(words.most_recovered(row, "content top-1"), ".1%"),
        show(words.most_recovered(row, anew.LAST), ".1%"),
    ]


def frontiers() -> Iterator[tuple[str, str]]:
    """R against the worst attack, a picture a data set; boards of fewer prompts and of parts alone are left out."""
    found = plus_boards()
    most = max((board.prompts for board in found), default=0)
    whole = [board for board in found if board.prompts == most and _is_whole(board)]
    for dataset in sorted({board.dataset for board in whole}):
        series: dict[str, dict[Any, tuple[Estimate, Estimate]]] = {"DEL": {}, ALIKE: {}, FINER: {}}
        # DEL of the same mu stands in several groups: that of most trainings is drawn.
        for group in sorted(anew.groups([board for board in whole if board.dataset == dataset]), key=len):
            config = group[0].config
            for one in anew.over_trainings(group):
                title = {"del": "DEL", "del-plus": FINER if config["codebook"].get("last") else ALIKE}.get(
                    one.row.method
                )
                if title:
                    which = None if title == "DEL" else str(config["codebook"])
                    series[title][config["mechanism"]["mu"], which] = (_over(one.asr), one.retained)
        name = NAMES.get(dataset, dataset)
        yield dataset, pictures.frontier(name, {title: list(points.values()) for title, points in series.items()})


def _is_whole(board: Leaderboard) -> bool:
    return bool(board.config["adapter"]["rank"]) and bool(board.config["codebook"].get("neighbours", True))


def _over(values: list[float]) -> Estimate:
    """Mean over trainings, and their range."""
    return Estimate(value=sum(values) / len(values), n=len(values), low=min(values), high=max(values))
