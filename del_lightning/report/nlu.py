"""The report of stage ``nlu``: every way to classify side by side behind every front-end, what it gives away and costs.

A line is a front-end at one privacy level, and its columns are the ways to classify: end to end first, then the SnD
framework. What was sent and attacked is the same in all of them, except where nothing is sent at all. Sentences are in
:mod:`~del_lightning.report.nlu_prose`, figures in :mod:`~del_lightning.report.nlu_plots`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from del_lightning.config import END_TO_END
from del_lightning.metrics import binary_figures, differences, over_seeds
from del_lightning.report import words
from del_lightning.report.arrange import HEADLINE_TARGET, REFERENCE
from del_lightning.report.schema import Estimate, NluLeaderboard, NluRow
from del_lightning.report.tables import Cell, estimate_cell, missing, rate_cell

HEADLINE_BITS = 4
"""The summary quotes DEL at the bits nearest to this."""
STRONGEST = "worst"
"""Name under which a row's attack success rates hold that of the strongest attack run."""

VARIANTS = {
    "linear": "linear head alone",
    "prompt": "soft prompt",
    "lora": "low-rank adapter",
    "snd": "denoiser at the server",
    "snd-prompt": "denoiser at the server + soft prompt",
    "snd-user": "denoiser at the user",
    "local": "the user alone",
}
"""Way to classify -> its name in tables."""

FIGURES = {"accuracy": "Accuracy", "f1": "F1", "matthews": "Matthews", "auc": "AUC"}

GLOSSARY = (
    (
        "End to end",
        "The task's own loss trains what is named, through the noise, and a head on the frozen model's last position; "
        "no denoiser.",
    ),
    (
        "SnD framework",
        "A denoiser of six transformer layers learns the pooled output (the state at the last position) that clean "
        "text would have; a fully connected classifier reads it. At the server it sees only what was sent; at the "
        "user, as its authors propose, it also sees the clean text.",
    ),
    (
        "The user alone",
        "The user's denoiser with the server's answer blanked out: what the server contributes is the difference.",
    ),
    ("Clean prompt, Mean embedding", "Upper and lower control: all of the text, and its length only."),
    ("Majority class", "The answer of somebody who never sees the text."),
    ("AUC", "Area under the ROC curve: 0.5 without any information, whatever the classes' shares."),
    (
        "ASR",
        "Attack success rate: share of private tokens that an attacker names correctly at the first guess. Levels are "
        "matched by the nearest neighbour's, as in the paper; what they give away is the strongest attack's.",
    ),
    (
        "ε of a text",
        "Exact differential privacy of a whole text of mean length, both sentences of a pair together, at the stated "
        "δ; a longer text has a larger one.",
    ),
)


def framework(variant: str) -> str:
    """Which of the two settings a way to classify belongs to."""
    return "End to end" if variant in END_TO_END else "SnD framework"


def variants(board: NluLeaderboard) -> list[str]:
    """The ways to classify that were run, end to end first."""
    run = {row.variant for row in board.rows}
    return [variant for variant in VARIANTS if variant in run]


def fronts(board: NluLeaderboard) -> list[NluRow]:
    """One row a front-end and level, controls first; which way it was classified is no matter here."""
    found: dict[str, NluRow] = {}
    for row in board.rows:
        if row.variant != "majority" and (row.label not in found or not found[row.label].asr):
            found[row.label] = row
    return sorted(found.values(), key=lambda row: not row.is_control)


def row_of(board: NluLeaderboard, variant: str, label: str) -> NluRow | None:
    """The row of a way to classify behind a front-end, if it was run."""
    return next((row for row in board.rows if (row.variant, row.label) == (variant, label)), None)


def majority(board: NluLeaderboard) -> NluRow:
    """The control that never sees the text."""
    return next(row for row in board.rows if row.variant == "majority")


def mechanism(row: NluRow) -> str:
    """A front-end's name without its level."""
    return row.label if row.value is None else row.label.rpartition(", ")[0] or row.label


def misses_target(board: NluLeaderboard, row: NluRow) -> bool:
    """Whether a row stands beside its target because no setting of its front-end is read that often, or that seldom."""
    calibrations = [one for one in board.calibrations if one.label == mechanism(row)]
    results = [result for one in calibrations for result in one.found.get(row.matching or "", [])]
    return any(result.target == row.target and not result.reached for result in results)


def front_name(board: NluLeaderboard, front: NluRow) -> str:
    """The front-end's label, and whether its level is one that it does not reach."""
    return f"{front.label} (not reached)" if misses_target(board, front) else front.label


def private(board: NluLeaderboard, variant: str | None = None) -> list[NluRow]:
    """Rows behind a mechanism, of one way to classify or all.

    Levels that a mechanism does not reach share the end of its range and are one row; so they count once.
    """
    rows = (row for row in board.rows if not row.is_control and row.method != "clean")
    found: dict[tuple[str, str, float | None], NluRow] = {}
    for row in (row for row in rows if variant in (None, row.variant)):
        found.setdefault((row.variant, mechanism(row), row.value), row)
    return list(found.values())


@dataclass(frozen=True)
class Column:
    """One column: heading, small type under it, and how a front-end's label fills it."""

    name: str
    small: tuple[str, ...]
    cell: Callable[[NluRow], Cell]

    @property
    def line(self) -> str:
        """The heading on one line."""
        return f"{self.name} ({', '.join(self.small)})" if self.small else self.name

    @property
    def title(self) -> str:
        """What it means, for the pointer."""
        return dict(GLOSSARY).get(self.name) or words.meaning(self.name, self.small)


def figures(board: NluLeaderboard) -> list[str]:
    """The figures that the table shows: accuracy, GLUE's own for the task, AUC."""
    return list(dict.fromkeys(("accuracy", board.metric, "auc")))


def columns(board: NluLeaderboard) -> list[Column]:
    """What was measured, a way to classify after the other, then what was sent, attacked and guaranteed."""
    found = [_figure_column(board, variant, name) for variant in variants(board) for name in figures(board)]
    found += [_attack_column(name) for name in attacks(board)]
    return [*found, Column("ε of a text", _delta(board), epsilon_cell), Column("Bits a token", (), bits_cell)]


def attacks(board: NluLeaderboard) -> list[str]:
    """The attacks that were run, the strongest of them last."""
    names = dict.fromkeys(name for row in board.rows for name in row.asr)
    return sorted(names, key=lambda name: name == STRONGEST)


def _figure_column(board: NluLeaderboard, variant: str, figure: str) -> Column:
    def cell(front: NluRow) -> Cell:
        row = row_of(board, variant, front.label)
        return missing("not run") if row is None else estimate_cell(row.over_seeds[figure], "not run", row.seeds)

    return Column(FIGURES[figure], (framework(variant), VARIANTS[variant]), cell)


def _attack_column(attack: str) -> Column:
    def cell(front: NluRow) -> Cell:
        found = front.asr.get(attack)
        return rate_cell(found, "nothing is sent", -1)

    return Column("ASR", ("strongest that was run" if attack == STRONGEST else words.attack_name(attack),), cell)


def epsilon_cell(front: NluRow) -> Cell:
    """Exact epsilon of a text of mean length, or why there is none."""
    privacy = front.privacy
    if privacy is None or privacy.epsilon_sequence is None:
        return missing("nothing is sent" if privacy is None else privacy.caveat or "no exact ε")
    small = (f"{words.count(privacy.sequence_tokens or 0)} tokens", f"ε {words.at_most(privacy.epsilon_token)} a token")
    return Cell(words.at_most(privacy.epsilon_sequence), small, privacy.epsilon_sequence, privacy.caveat)


def bits_cell(front: NluRow) -> Cell:
    """Payload of a token, and of a text."""
    cost = front.cost
    return Cell(words.count(cost.bits_per_token), (f"{words.number(cost.bits_per_text)} a text",), cost.bits_per_token)


def _delta(board: NluLeaderboard) -> tuple[str, ...]:
    deltas = {row.privacy.delta for row in board.rows if row.privacy is not None and row.privacy.delta}
    return (f"δ = {words.setting(deltas.pop())}",) if len(deltas) == 1 else ()


def cost_rows(board: NluLeaderboard) -> list[dict[str, str]]:
    """What each way to classify asks of server and user; ranges over the front-ends."""
    found = []
    for variant in variants(board):
        rows = [row for row in board.rows if row.variant == variant]
        steps = {row.steps for row in rows}
        found.append(
            {
                "Way to classify": f"{framework(variant)}: {VARIANTS[variant]}",
                "Trained at the server": extent([row.cost.server_parameters for row in rows]),
                "Held by the user": extent([row.cost.user_parameters for row in rows]),
                "… bytes": extent([row.cost.user_bytes for row in rows], words.memory),
                "Bits sent a text": extent([row.cost.bits_per_text for row in rows], words.number),
                "Bits back": extent([row.cost.bits_back for row in rows]),
                "Steps through the model": ", ".join("none" if step is None else words.count(step) for step in steps),
            }
        )
    return found


def extent(values: list[float] | list[int], show: Callable[[float], str] = words.count) -> str:
    """The smallest to the largest, or the one that all are."""
    low, high = show(min(values)), show(max(values))
    return low if low == high else f"{low} to {high}"


def attribute_rows(board: NluLeaderboard) -> list[dict[str, str]]:
    """What an attacker infers of whole texts, a line a front-end and attribute."""
    return [
        {
            "Front-end": _named(board, one.label),
            "Attribute": one.attribute,
            "Always the commoner": words.percent(one.majority),
            "Accuracy": words.with_interval(one.accuracy),
            "AUC": words.with_interval(one.auc),
        }
        for one in board.attributes
    ]


def _named(board: NluLeaderboard, label: str) -> str:
    """A front-end by its label as :func:`front_name` has it; an attacker may have met one that no row has."""
    return next((front_name(board, front) for front in fronts(board) if front.label == label), label)


def console_table(board: NluLeaderboard) -> Table:
    """AUC of every way to classify, for a terminal of 80 columns: values only; the report has the rest."""
    table = Table(title=board.title, title_justify="left", box=SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("AUC behind", no_wrap=True)
    for variant in variants(board):
        table.add_column(variant.replace("-", "-\n"), justify="right", no_wrap=True)
    table.add_column("ASR\nworst", justify="right", no_wrap=True)
    for front in fronts(board):
        rows = [row_of(board, variant, front.label) for variant in variants(board)]
        cells = [_plain(None if row is None else row.over_seeds["auc"], ".2f") for row in rows]
        mark = "*" if misses_target(board, front) else ""
        table.add_row(Text(front.label + mark), *cells, _plain(front.asr.get(STRONGEST), ".0%"))
    never = majority(board).over_seeds
    table.caption = (
        f"{board.eval_examples} examples, {words.repeats(board)}; majority class: accuracy "
        f"{never['accuracy'].value:.3f}. Accuracy and intervals are in the report."
    )
    if any(misses_target(board, front) for front in fronts(board)):
        table.caption += " * This level is not reached."
    table.caption_justify = "left"
    return table


def _plain(estimate: Estimate | None, style: str) -> str:
    return words.MISSING if estimate is None else format(estimate.value, style)


def mean_best(row: NluRow) -> float:
    """Held-out error of what was kept, mean over seeds; of a row that has one."""
    return sum(one.best for one in row.validation) / len(row.validation)


def validation_rows(board: NluLeaderboard) -> list[dict[str, str]]:
    """What trainings reached on held-out examples, a line a row; none in boards that do not hold it."""
    return [
        {
            "Way to classify": f"{framework(row.variant)}: {VARIANTS[row.variant]}",
            "Front-end": front_name(board, row),
            "Error": "cross-entropy, nats" if row.variant in END_TO_END else "mean squared error",
            "Before training": _starts(row),
            "Kept": words.number(mean_best(row)),
            "Left as it started": _unmoved(row),
        }
        for row in board.rows
        if row.validation
    ]


def _starts(row: NluRow) -> str:
    starts = [one.start for one in row.validation if one.start is not None]
    return words.number(sum(starts) / len(starts)) if starts else words.MISSING


def _unmoved(row: NluRow) -> str:
    """Trainings that found nothing better than their start, where it could be kept."""
    starts = [one for one in row.validation if one.start is not None]
    return f"{sum(one.best == one.start for one in starts)} of {len(starts)}" if starts else words.MISSING


def headline(board: NluLeaderboard) -> str | None:
    """Label of the front-end that the summary quotes, whatever came out; None if DEL was not run.

    DEL at the bits nearest :data:`HEADLINE_BITS` and the target nearest ``arrange.HEADLINE_TARGET``, matched by the
    nearest neighbour's success as the paper does where there is such a row.
    """

    def distance(row: NluRow) -> tuple[bool, float, float]:
        target, bits = (math.inf if number is None else number for number in (row.target, row.bits))
        return row.matching != "nearest", abs(target - HEADLINE_TARGET), abs(bits - HEADLINE_BITS)

    quoted = min((row for row in board.rows if row.method == REFERENCE), key=distance, default=None)
    return None if quoted is None else quoted.label


def without_text(board: NluLeaderboard, variant: str) -> NluRow | None:
    """The control of a way to classify in which the server learns the length of a text and nothing else."""
    return next((row for row in board.rows if (row.variant, row.method) == (variant, "mean")), None)


def beats_length(board: NluLeaderboard, row: NluRow) -> bool:
    """Whether the AUC is above that of the length alone, in pairs, over other seeds and other examples alike.

    Without that control, or without scores, above .5 by both of the row's intervals.
    """
    control = without_text(board, row.variant)
    if control is None or not board.labels or not row.scores or len(row.scores) != len(control.scores):
        return beats_chance(row)
    gains = [
        binary_figures(ours, board.labels)["auc"] - binary_figures(theirs, board.labels)["auc"]
        for ours, theirs in zip(row.scores, control.scores, strict=True)
    ]
    if not _above(over_seeds(gains).low, 0.0):  # resampling examples takes a thousand times as long
        return False
    return _above(differences(row.scores, control.scores, board.labels)["auc"].low, 0.0)


def _above(low: float | None, least: float) -> bool:
    return low is not None and low > least


def beats_chance(row: NluRow) -> bool:
    """Whether the AUC is above .5 beyond what other seeds and other examples would change: both intervals say so."""
    return _above(row.over_seeds["auc"].low, 0.5) and _above(row.over_examples["auc"].low, 0.5)
