"""Figures of a GLUE leaderboard: a figure of the classifiers over the success of attacks, a picture a way."""

from collections.abc import Iterator
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from del_lightning.report import drawing, words
from del_lightning.report.arrange import REFERENCE
from del_lightning.report.drawing import FONT, INK, MUTED, PAPER, Shared, Style, spread
from del_lightning.report.nlu import (
    FIGURES,
    VARIANTS,
    framework,
    fronts,
    majority,
    mechanism,
)
from del_lightning.report.schema import NluLeaderboard, NluRow


def styles(*boards: NluLeaderboard) -> dict[str, Style]:
    """Mechanism under test in any of the boards -> its look: its method's colour, and a marker for its bits."""
    tested = [row for board in boards for row in fronts(board) if not row.is_control]
    rows = {mechanism(row): row for row in reversed(tested)}
    names = sorted(rows, key=lambda name: (rows[name].method != REFERENCE, rows[name].bits or 0))
    methods = drawing.styles_of(row.method for row in tested)
    return {
        name: drawing.at_bits(methods[rows[name].method], _own_bits(rows[name]), f"m{number}")
        for number, name in enumerate(names)
    }


def _own_bits(row: NluRow) -> int | None:
    """Bits that the mechanism's name tells; others have no bits, or the one number of them that all have."""
    return row.bits if mechanism(row).endswith((" bit", " bits")) else None


def drawn(board: NluLeaderboard, variant: str) -> list[str]:
    """The mechanisms that the figures of a way to classify show."""
    return list(dict.fromkeys(mechanism(row) for row in _rows(board, variant)))


def _rows(board: NluLeaderboard, variant: str) -> list[NluRow]:
    return [row for row in board.rows if row.variant == variant and not row.is_control and row.asr]


def utility(board: NluLeaderboard, variant: str, figure: str, shared: Shared | None = None) -> str:
    """A figure against the strongest attack's success, one line a mechanism; empty if nothing under test was run.

    Hollow markers stand at the nearest neighbour's success, the paper's ASR. ``shared`` is given on a page of many
    boards. Names of mechanisms belong into a key beside the figure, those of controls stand at its right edge.
    """
    shared = shared or Shared("", styles(board))
    rows = _rows(board, variant)
    if not rows:
        return ""

    def paint(canvas: Figure) -> None:
        axes = canvas.add_axes((0.11, 0.15, 0.68, 0.74))
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
    x, y = [_rate(row) for row in rows], [value.value for value in values]
    axes.plot(x, y, color=style.colour, linestyle=style.line, linewidth=0.9)
    hollow: Any = {"markerfacecolor": PAPER, "markersize": 4.5, "linestyle": "none", "zorder": 2}
    for row, value in zip(rows, values, strict=True):
        nearest = [rate.value for name, rate in row.asr.items() if words.is_nearest(name)][:1]
        axes.plot(nearest, [value.value] * len(nearest), marker=style.marker, color=style.colour, **hollow)
        bars: Any = {"yerr": drawing.errors(value), "elinewidth": 0.8}
        axes.errorbar(_rate(row), value.value, fmt=style.marker, color=style.colour, zorder=3, **bars)


def _reference_lines(axes: Axes, references: list[tuple[str, float]]) -> None:
    """Dashed lines, lowest first, with their names at the right of the plot, moved apart where lines are near."""
    for _, value in references:
        axes.axhline(value, color=MUTED, linewidth=0.9, dashes=(5, 3), zorder=1)
    axes.get_ylim()  # brings the limits up to date that the heights below depend on
    heights = [float(axes.transData.transform((1, value))[1]) for _, value in references]
    for (name, value), height, placed in zip(
        references, heights, spread(heights, 1.25 * FONT, axes.bbox.y1), strict=True
    ):
        place: Any = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "va": "center"}
        axes.annotate(name, (1, value), (6, placed - height), color=INK, fontsize=FONT - 1, **place)


def _references(board: NluLeaderboard, variant: str, figure: str) -> Iterator[tuple[str, float]]:
    for row in board.rows:
        if row.variant == variant and row.method in ("clean", "mean"):
            yield {"clean": "clean text", "mean": "length only"}[row.method], row.over_seeds[figure].value
    if figure == "accuracy":
        yield "majority class", majority(board).over_seeds[figure].value


def _rate(row: NluRow) -> float:
    """Success of the strongest attack that was run."""
    return max((rate.value for rate in row.asr.values()), default=0.0)
