"""Figures of a GLUE leaderboard: a figure of the classifiers over the success of attacks, a picture a way."""

from collections.abc import Iterator
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from del_lightning.report import drawing, words
from del_lightning.report.drawing import HUES, INK, MARKERS, MUTED, PAPER, WITH, Shared, Style
from del_lightning.report.nlu import (
    FIGURES,
    VARIANTS,
    framework,
    fronts,
    majority,
    mechanism,
)
from del_lightning.report.schema import NluLeaderboard, NluRow

LABEL_HEIGHT = 0.06
"""Height of a figure's label, as a share of its axis."""


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
