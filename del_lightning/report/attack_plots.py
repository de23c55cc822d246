"""Figures of what attacks read over a privacy parameter: searched for a target, or attacked with the whole suite."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from del_lightning.report import words
from del_lightning.report.drawing import (
    FONT,
    HUES,
    INK,
    MARKERS,
    MUTED,
    WITH,
    Style,
    draw,
    log_ticks,
    spread,
    styles,
    success_axis,
)
from del_lightning.report.schema import AttackCurve, CurvePoint, Leaderboard, MethodCalibration


def calibrations(board: Leaderboard) -> list[tuple[str, str]]:
    """(method, figure) of every calibrated method: the outlined curve, what decided, and the values that came out."""
    drawn = styles(board)
    measured = [method for method in board.calibrations if method.outline or method.points]
    rates = [rate for method in measured for point in [*method.outline, *method.points] for rate in point.asr.values()]
    highest = max((rate.value for rate in rates), default=0.0)
    return [
        (method.label, _calibration(f"calibration{i}", board, method, drawn.get(method.method), highest))
        for i, method in enumerate(measured)
    ]


def _calibration(name: str, board: Leaderboard, method: MethodCalibration, style: Style | None, highest: float) -> str:
    colour = style.colour if style else WITH
    asked = {row.matching for row in board.rows if not row.is_control}

    def paint(figure: Figure) -> None:
        axes = figure.add_axes((0.16, 0.24, 0.8, 0.72))
        points = [*method.outline, *method.points]
        log_ticks(axes, "x", [point.value for point in points])
        axes.xaxis.set_major_locator(LogLocator(numticks=4))
        success_axis(axes, "y", highest)
        axes.set_yticks([tick for tick in (0, 0.1, 0.5, 1) if tick <= max(highest, 0.1)])
        found = [(matching, item) for matching, items in method.found.items() for item in items]
        for target in sorted({item.target for _, item in found}):
            axes.axhline(target, color=MUTED, linewidth=0.7, dashes=(4, 3), zorder=1)
        for nearest, line in ((True, "-"), (False, (0, (4, 2)))):
            _outline(axes, method.outline, nearest, colour, line)
        for point in method.points:
            rate = max(point.asr.values(), key=lambda estimate: estimate.value)
            axes.plot(point.value, rate.value, ".", color=MUTED, markersize=3.5)
        for _, item in ((m, item) for m, item in found if m in asked and item.reached):
            axes.plot(item.value, item.asr.value, style.marker if style else "o", color=colour, markersize=6, zorder=4)
        axes.set_xlabel(f"{words.SYMBOLS.get(method.parameter, method.parameter)} tried")

    return draw(name, (2.7, 2.0), paint)


def _outline(axes: Axes, points: list[CurvePoint], nearest: bool, colour: str, line: Any) -> None:
    """Success along the outline: of the nearest neighbour, or of the strongest other attack."""
    x, y = [], []
    for point in points:
        rates = [rate.value for name, rate in point.asr.items() if words.is_nearest(name) == nearest]
        if rates:
            x.append(point.value)
            y.append(max(rates))
    axes.plot(x, y, color=colour, linewidth=1.3, linestyle=line, zorder=2)


def attack_curves(board: Leaderboard) -> list[tuple[str, str]]:
    """(method, figure) of every method whose attacks were run over a range of its parameter, on one pair of axes."""
    curves = [curve for curve in board.attack_curves if curve.points]
    names = list(dict.fromkeys(name for curve in curves for point in curve.points for name in point.asr))
    colours = (WITH, *HUES[:4], INK, MUTED)
    looks = {name: (colours[i % len(colours)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)}
    return [(curve.label, _attack_curve(f"attacks{i}", curve, looks)) for i, curve in enumerate(curves)]


def _attack_curve(name: str, curve: AttackCurve, looks: dict[str, tuple[str, str]]) -> str:
    points = sorted(zip(curve.points, curve.certified, strict=True), key=lambda point: point[0].value)

    def paint(figure: Figure) -> None:
        axes = figure.add_axes((0.09, 0.14, 0.55, 0.82))
        log_ticks(axes, "x", [point.value for point, _ in points])
        success_axis(axes, "y", 1.0)
        axes.grid(axis="y")
        axes.set_xlabel(f"{words.SYMBOLS.get(curve.parameter, curve.parameter)} (logarithmic)")
        ends = [_attack_line(axes, attack, points, look) for attack, look in looks.items()]
        bound = [(point.value, limit) for point, limit in points if limit is not None]
        if bound:
            axes.plot(*zip(*bound, strict=True), color=INK, linewidth=1.1, dashes=(5, 3), zorder=2)
            ends.append((bound[-1][1], "certified, one token", INK))
        _end_labels(axes, [end for end in ends if end is not None])

    return draw(name, (5.4, 3.9), paint)


def _attack_line(
    axes: Axes, attack: str, points: list[tuple[CurvePoint, float | None]], look: tuple[str, str]
) -> tuple[float, str, str] | None:
    """Draw one attack with its band; returns (last rate, name, colour), None if it was not run here."""
    found = [(point.value, point.asr[attack]) for point, _ in points if attack in point.asr]
    if not found:
        return None
    x, rates = zip(*found, strict=True)
    colour, marker = look
    low, high = ([r.value if (end := getattr(r, side)) is None else end for r in rates] for side in ("low", "high"))
    axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(x, [r.value for r in rates], color=colour, marker=marker, markersize=4.5, linewidth=1.4, clip_on=False)
    return rates[-1].value, words.attack_name(attack), colour


def _end_labels(axes: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Names at the right ends of the lines, moved apart and joined to their lines by thin ones."""
    gap = 1.25 * FONT
    scale = axes.transData.transform
    heights = [float(scale((axes.get_xlim()[1], value))[1]) for value, *_ in ends]
    order = sorted(range(len(ends)), key=lambda place: heights[place])
    placed = spread([heights[place] for place in order], gap, axes.bbox.y1)
    for place, height in zip(order, placed, strict=True):
        value, text, colour = ends[place]
        right = axes.get_xlim()[1]
        axes.annotate(
            text, (right, value), (20, height - heights[place]), textcoords="offset points", va="center",
            fontsize=FONT - 1.5, color=INK, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.9, "shrinkA": 1, "shrinkB": 3,
                        "relpos": (0, 0.5)},
        )  # fmt: skip
