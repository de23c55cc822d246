"""Cells and tables that the pages of results share; see `_readme.py` and `_del_plus.py`."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from del_lightning.config import with_defaults
from del_lightning.methods.factory import NEEDS_PRIOR
from del_lightning.metrics import over_seeds
from del_lightning.report import anew, words
from del_lightning.report.schema import Estimate, Leaderboard, LeaderboardRow, NluLeaderboard

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
NAMES = {"wikitext2": "WikiText-2", "ptb": "PTB"}
NONE = "–"
USUAL_BITS = 4


def once(lines: Iterable[str]) -> list[str]:
    """Equal lines once: boards share their controls, and DEL too."""
    return list(dict.fromkeys(lines))


def trainings_table(groups: list[list[Leaderboard]]) -> list[str]:
    """What methods retain over the trainings of each group, as a table."""
    return [
        "| data, mu, bits, width | front-end | seeds | R of the mean over trainings | R of each training: mean | minus DEL | minus DEL, each training: mean | COH, each | ASR, strongest attack, each |",  # noqa: E501
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *once(f"| {' | '.join(cells)} |" for group in groups for cells in _trainings(group)),
    ]


def _setting(board: Leaderboard) -> str:
    """:func:`where`, with bits and width where they are not the usual ones: boards differ in them alone."""
    bits, dim = code(board)
    return where(board) + (f", n = {bits}" if bits != USUAL_BITS else "") + (f", d = {dim}" if dim else "")


def code(board: Leaderboard) -> tuple[int, int | None]:
    """Bits of a coordinate, and how many coordinates where that was set."""
    settings = with_defaults(board.config)
    return settings["mechanism"]["bits"], settings["codec"]["dim"]


def where(board: Leaderboard) -> str:
    """Data set, and mu where it is given."""
    mu = board.config["mechanism"]["mu"]
    return NAMES.get(board.dataset, board.dataset) + (f", {mu:g}" if mu else "")


def _trainings(group: list[Leaderboard]) -> Iterator[list[str]]:
    """What each method retains over the trainings of one setting, a line a method."""
    for one in anew.over_trainings(group):
        yield [
            _setting(group[0]),
            plus_name(one.row, group[0].config),
            ", ".join(map(str, one.seeds)),
            show(one.retained, ".3f"),
            _each(one.each),
            show(one.gain, ".3f"),
            _each(one.gain_each),
            ", ".join(f"{value:.3f}" for value in one.coherence),
            ", ".join(f"{value:.1%}" for value in one.asr),
        ]


def _each(values: list[float]) -> str:
    """What every training gave, and their mean with Student's interval over trainings."""
    mean = f": {show(over_seeds(values), '.3f')}" if len(values) > 1 else ""
    return ", ".join(f"{value:.3f}" for value in values) + mean if values else NONE


def plus_name(row: LeaderboardRow, config: dict[str, Any]) -> str:
    """What was run, as far as it is not the usual one: groups, decoder, adapter."""
    parts, codebook = [front_end(row)], config["codebook"]
    if row.method == "del-plus":
        parts.append(f"{codebook['frequent']} frequent, share {codebook['largest_share']:g}")
        if last := codebook.get("last"):
            parts.append(f"last {last}: {codebook['last_alone']} alone, share {codebook['last_share']:g}")
    if row.method in NEEDS_PRIOR and not codebook.get("neighbours", True):
        parts.append("decoded one by one")
    if row.soft_prompt and not row.adapter_rank and "del-plus" in config["methods"]:
        parts.append("no adapter")
    return "; ".join(parts)


def front_end(row: LeaderboardRow) -> str:
    """Its label without the word that mu was given, which all rows of these tables share."""
    return row.label.removesuffix(", given value")


def guarantee(row: LeaderboardRow) -> str:
    """The exact epsilon of a prompt; methods with a guarantee of another kind show their own parameter."""
    if parameter := words.parameter(row):
        return f"{parameter}, see its caveat"
    epsilon = row.privacy.epsilon_sequence
    return "none" if epsilon is None else words.at_most_whole(epsilon)


def show(estimate: Estimate | None, style: str) -> str:
    """A number and its interval; a dash where nothing was measured."""
    if estimate is None:
        return NONE
    if estimate.low is None or estimate.high is None:
        return format(estimate.value, style)
    return f"{estimate.value:{style}} [{estimate.low:{style}}, {estimate.high:{style}}]"


def dirty(board: Leaderboard | NluLeaderboard) -> str:
    """A remark where the code of a board was no commit."""
    return "; made by code with changes that were not committed" if board.environment.dirty else ""
