"""The report of stage ``nlu``: every way to classify side by side behind every front-end, what it gives away and costs.

A line is a front-end at one privacy level, and its columns are the ways to classify: end to end first, then the SnD
framework. What was sent and attacked is the same in all of them, except where nothing is sent at all.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from del_lightning.config import END_TO_END
from del_lightning.metrics import binary_figures, differences, over_seeds
from del_lightning.report import drawing, words
from del_lightning.report.arrange import HEADLINE_TARGET, REFERENCE
from del_lightning.report.drawing import HUES, INK, MARKERS, MUTED, PAPER, WITH, Shared, Style
from del_lightning.report.schema import Estimate, NluLeaderboard, NluRow
from del_lightning.report.tables import Cell, estimate_cell, missing

HEADLINE_BITS = 4
"""The summary quotes DEL at the bits nearest to this."""
LABEL_HEIGHT = 0.06
"""Height of a figure's label, as a share of its axis."""
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


# --- table -----------------------------------------------------------------------------------------------------------


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
        return missing("nothing is sent") if found is None else estimate_cell(found, "", found.n)

    return Column("ASR", ("strongest that was run" if attack == STRONGEST else attack,), cell)


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
                "Trained at the server": _range([row.cost.server_parameters for row in rows]),
                "Held by the user": _range([row.cost.user_parameters for row in rows]),
                "… bytes": _range([row.cost.user_bytes for row in rows], words.memory),
                "Bits sent a text": _range([row.cost.bits_per_text for row in rows], words.number),
                "Bits back": _range([row.cost.bits_back for row in rows]),
                "Steps through the model": ", ".join("none" if step is None else words.count(step) for step in steps),
            }
        )
    return found


def _range(values: list[float] | list[int], show: Callable[[float], str] = words.count) -> str:
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


# --- words -----------------------------------------------------------------------------------------------------------


def setup(board: NluLeaderboard) -> str:
    """What was measured."""
    schedule = f" Schedule: {words.schedule(board)}." if board.schedule else ""
    return (
        f"{board.model} answers GLUE's {board.task} about private text that it receives only through each front-end: "
        f"{words.count(board.eval_examples)} examples, {words.count(board.private_tokens)} private tokens, "
        f"{words.repeats(board)} with {words.count(board.train_examples)} examples.{_head(board)}{schedule}"
    )


def _head(board: NluLeaderboard) -> str:
    """What reads the answer of a tuned model."""
    if not {row.variant for row in board.rows} & {"prompt", "lora"}:
        return ""
    reads = "a linear head" if board.head == "linear" else "label words (a verbaliser)"
    return f" Behind a soft prompt or adapter the answer is read by {reads}."


def averaged(board: NluLeaderboard) -> str:
    """What a figure in the table is."""
    number = len(board.seeds)
    return "One training" if number == 1 else f"Mean over {number} trainings with Student's 95% interval over seeds"


def outcome(board: NluLeaderboard) -> list[str]:
    """What came out, in sentences: what clean text allows, DEL at the setting that is quoted everywhere, all rows."""
    never = majority(board).over_seeds["accuracy"].value
    return [*_clean_text(board, never), *_headline(board), *_counted(board), *_denoisers(board)]


def _counted(board: NluLeaderboard) -> Iterator[str]:
    """How many private rows are above the length of the text; one training has no interval over seeds to say so."""
    rows = [row for row in private(board) if row.variant != "snd-user"]
    if rows and len(board.seeds) > 1:
        above = sum(beats_length(board, row) for row in rows)
        yield (
            f"Of {len(rows)} private rows, at every level and number of bits, {above or 'none'} "
            f"{'is' if above < 2 else 'are'} above what the length of the text alone gives, in pairs, over seeds and "
            "over examples."
        )


def _clean_text(board: NluLeaderboard, never: float) -> Iterator[str]:
    for variant in variants(board):
        row = next((row for row in board.rows if (row.variant, row.method) == (variant, "clean")), None)
        if row is not None:
            accuracy = row.over_seeds["accuracy"]
            points = words.number(100 * (accuracy.value - never))
            yield (
                f"{framework(variant)}, {VARIANTS[variant]}: clean text {words.with_interval(accuracy)} accuracy, "
                f"{points} points from the majority class ({words.number(never)}){_against_length(board, row)}."
            )


def _against_length(board: NluLeaderboard, row: NluRow) -> str:
    """Whether clean text passes what private rows are held to."""
    if without_text(board, row.variant) is None or len(board.seeds) < 2:
        return ""
    surely = "surely" if beats_length(board, row) else "not surely"
    return f"; its area under the curve is {surely} above that of the length alone"


def _denoisers(board: NluLeaderboard) -> Iterator[str]:
    """How far denoisers got, against the best constant in their place."""
    constant = board.best_constant
    if constant is None:
        return
    for variant in (one for one in variants(board) if one not in END_TO_END):
        errors = [mean_best(row) for row in private(board, variant) if row.validation]
        if not errors:
            continue
        no_nearer = sum(error >= constant for error in errors)
        meaning = (
            ": there it measures how short its training was, not what a front-end lets through" if no_nearer else ""
        )
        yield (
            f"{framework(variant)}, {VARIANTS[variant]}: behind {no_nearer} of {len(errors)} private front-ends the "
            "denoiser comes no nearer to the clean output than the best constant would on held-out examples (mean "
            f"squared error {_range(errors, words.number)} against {words.number(constant)}"
            f"{_behind_no_text(board, variant)}){meaning}."
        )


def _behind_no_text(board: NluLeaderboard, variant: str) -> str:
    row = without_text(board, variant)
    return f"; {words.number(mean_best(row))} behind the mean embedding" if row is not None and row.validation else ""


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


def notes(board: NluLeaderboard) -> list[str]:
    """What to know before quoting: the board's own notes, and what has come out about its code since."""
    found = list(board.notes)
    if board.tuned_start_counts is None and {row.variant for row in board.rows} & {"prompt", "lora"}:
        found.append(
            "Soft prompts and adapters were made by code that kept the best of a training even where the fitted head "
            "that it started from was better: their rows may be below what no training at all gives."
        )
    return found


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


def _headline(board: NluLeaderboard) -> Iterator[str]:
    """Every way to classify behind the front-end that is quoted, both settings side by side."""
    label = headline(board)
    if label is None:
        return
    found = []
    for name in dict.fromkeys(framework(variant) for variant in variants(board)):
        ways = [_way(board, variant, label) for variant in variants(board) if framework(variant) == name]
        found.append(f"{name}: {'; '.join(filter(None, ways)) or 'not run'}")
    usual = any(row.label == label and row.bits == HEADLINE_BITS for row in board.rows)
    fixed = " (what every report quotes, whatever came out)" if usual else ""
    yield f"{label}{fixed}, area under the curve. {'. '.join(found)}."


def _way(board: NluLeaderboard, variant: str, label: str) -> str:
    row = row_of(board, variant, label)
    if row is None:
        return ""
    mean = without_text(board, variant)
    seeds = f"{words.with_interval(row.over_seeds['auc'])} over seeds, " if row.seeds > 1 else ""
    parts = [f"{VARIANTS[variant]} {seeds}{words.with_interval(row.over_examples['auc'])} over examples"]
    surely = "" if beats_length(board, row) else "not surely "
    if mean is not None:
        sent = "with the mean embedding sent instead" if variant == "snd-user" else "with the length of the text alone"
        parts.append(f"{surely}above {words.with_interval(mean.over_seeds['auc'])} {sent}")
    elif surely:
        parts.append("not surely above chance")
    return ", ".join(parts)


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


# --- figures ---------------------------------------------------------------------------------------------------------


def styles(*boards: NluLeaderboard) -> dict[str, Style]:
    """Mechanism under test in any of the boards -> its colour and marker."""
    names = list(dict.fromkeys(mechanism(row) for board in boards for row in fronts(board) if not row.is_control))
    colours = (WITH, *HUES)
    return {
        name: Style(colours[number % len(colours)], MARKERS[number % len(MARKERS)], f"m{number}")
        for number, name in enumerate(names)
    }


def utility(board: NluLeaderboard, variant: str, figure: str, shared: Shared | None = None) -> str:
    """A figure against the strongest attack's success, one line a mechanism; empty if nothing under test was run.

    Hollow markers stand at the nearest neighbour's success, the paper's ASR. ``shared`` is given on a page of many
    boards.
    """
    shared = shared or Shared("", styles(board))
    rows = [row for row in board.rows if row.variant == variant and not row.is_control and row.asr]
    if not rows:
        return ""

    def paint(canvas: Figure) -> None:
        axes = canvas.add_axes((0.13, 0.15, 0.82, 0.74))
        drawing.success_axis(axes, "x", max(_rate(row) for row in rows))
        for name, style in shared.styles.items():
            _line(axes, sorted((row for row in rows if mechanism(row) == name), key=_rate), figure, style)
        axes.grid(axis="y")
        axes.margins(y=0.12)
        _reference_lines(axes, sorted(_references(board, variant, figure), key=lambda found: found[1]))
        axes.set_xlabel("ASR: strongest attack (hollow: nearest neighbour)")
        axes.set_title(f"{FIGURES[figure]}: {framework(variant)}, {VARIANTS[variant]}", loc="left", x=-0.14)

    return drawing.draw(f"{shared.prefix}{variant}-{figure}", (5.4, 3.6), paint)


def _line(axes: Axes, rows: list[NluRow], figure: str, style: Style) -> None:
    if not rows:
        return
    values = [row.over_seeds[figure] for row in rows]
    axes.plot([_rate(row) for row in rows], [value.value for value in values], color=style.colour, linewidth=0.9)
    hollow: Any = {"markerfacecolor": PAPER, "markersize": 4.5, "linestyle": "none", "zorder": 2}
    for row, value in zip(rows, values, strict=True):
        nearest = [rate.value for name, rate in row.asr.items() if words.is_nearest(name)][:1]
        axes.plot(nearest, [value.value] * len(nearest), marker=style.marker, color=style.colour, **hollow)
        bars: Any = {"yerr": drawing.errors(value), "elinewidth": 0.8}
        axes.errorbar(_rate(row), value.value, fmt=style.marker, color=style.colour, zorder=3, **bars)


def _reference_lines(axes: Axes, references: list[tuple[str, float]]) -> None:
    """Dashed lines, lowest first; those too near each other for a label of their own share one, above the upper."""
    for _, value in references:
        axes.axhline(value, color=MUTED, linewidth=0.9, dashes=(5, 3), zorder=1)
    low, high = axes.get_ylim()
    labels: list[tuple[list[str], float]] = []
    for name, value in references:
        if labels and value - labels[-1][1] < LABEL_HEIGHT * (high - low):
            labels[-1] = ([*labels[-1][0], name], value)
        else:
            labels.append(([name], value))
    for names, value in labels:
        place: Any = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "ha": "right"}
        paper: Any = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.6}
        axes.annotate(", ".join(names), (0.99, value), (0, 3), color=INK, bbox=paper, zorder=1.5, **place)


def _references(board: NluLeaderboard, variant: str, figure: str) -> Iterator[tuple[str, float]]:
    for row in board.rows:
        if row.variant == variant and row.method in ("clean", "mean"):
            yield {"clean": "clean text", "mean": "length only"}[row.method], row.over_seeds[figure].value
    if figure == "accuracy":
        yield "majority class", majority(board).over_seeds[figure].value


def _rate(row: NluRow) -> float:
    """Success of the strongest attack that was run."""
    return max((rate.value for rate in row.asr.values()), default=0.0)
