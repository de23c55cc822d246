"""Figures of the report: utility against privacy and against bits, payloads and training.

Every method keeps its colour and marker through all figures and tables (:func:`del_lightning.report.drawing.styles`),
so one key serves the page.
"""

import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from del_lightning.report import arrange, words
from del_lightning.report.arrange import Entry
from del_lightning.report.drawing import (
    FONT,
    INK,
    MUTED,
    PAPER,
    WITH,
    Shared,
    Style,
    draw,
    errors,
    log_ticks,
    plain,
    styles,
    success_axis,
)
from del_lightning.report.schema import (
    Estimate,
    Leaderboard,
    LeaderboardRow,
    Matching,
    TrainingCurve,
)

TEXT = "text as token ids"
"""What the clean control sends."""
MANY = 6
"""From more methods on, only DEL's intervals are drawn: the table has the others."""
LONGEST_NAME = 24
"""Characters beyond which a bar's name is broken into lines."""
LEFT = -0.1515
"""Start of a title above the labels of the vertical axis, in widths of the axes."""


@dataclass(frozen=True)
class Metric:
    """A utility that figures show: the row's field, which of an entry's rows it is read from, and its title."""

    field: str
    title: str
    rows: Callable[[Entry], LeaderboardRow | None]

    @property
    def logarithmic(self) -> bool:
        """Whether it is drawn on a logarithmic axis."""
        return self.field == "perplexity"

    def of(self, entry: Entry) -> Estimate | None:
        """The entry's estimate if it can be drawn."""
        row = self.rows(entry)
        estimate: Estimate | None = None if row is None else getattr(row, self.field)
        if estimate is None or not math.isfinite(estimate.value) or (self.logarithmic and estimate.value <= 0):
            return None
        return estimate


PROMPTED = Metric("perplexity", "PPL with soft prompt (lower is better)", lambda entry: entry.prompted)
PLAIN = Metric("perplexity", "PPL without soft prompt (lower is better)", lambda entry: entry.plain)
RETAINED = Metric("retained", "R, information retained (higher is better)", lambda entry: entry.prompted)
COHERENCE = Metric("coherence", "COH (higher is better)", lambda entry: entry.best)

METRICS = {"ppl-prompted": PROMPTED, "retained": RETAINED, "ppl-plain": PLAIN, "coherence": COHERENCE}
"""Utilities drawn against the attacks, by the name of their figure."""


def _curve_of(entries: Iterable[Entry], metric: Metric) -> list[tuple[Entry, Estimate, Estimate]]:
    """(entry, worst-case success, utility) by privacy, one a value of the parameter: two matchings may share it."""
    points: dict[float, tuple[Entry, Estimate, Estimate]] = {}
    for place, entry in enumerate(entries):
        utility, worst = metric.of(entry), words.worst_attack(entry.row)
        if utility is not None and worst is not None:
            points.setdefault(-1.0 - place if entry.row.value is None else entry.row.value, (entry, worst, utility))
    return [point for _, point in sorted(points.items())]


def utility_curves(board: Leaderboard, name: str, shared: Shared | None = None) -> str:
    """Utility against the worst-case success rate, a curve a method through its settings; empty without points.

    Args:
        board: The leaderboard.
        name: Of the figure, a key of :data:`METRICS`.
        shared: Given on a page of many boards.
    """
    shared = shared or Shared("", styles(board))
    metric, methods = METRICS[name], list(arrange.method_names(board))
    found = {method: [e for e in arrange.tested(board) if e.row.method == method] for method in reversed(methods)}
    curves = {method: curve for method, entries in found.items() if (curve := _curve_of(entries, metric))}
    if not curves:
        return ""

    def paint(figure: Figure) -> None:
        axes = figure.add_axes((0.125, 0.15, 0.825, 0.76))
        points = [point for curve in curves.values() for point in curve]
        success_axis(axes, "x", max(worst.value for _, worst, _ in points))
        _utility_axis(axes, board, metric, [utility for *_, utility in points])
        axes.set_xlabel("worst-case attack success rate (square-root scale)")
        for method, curve in curves.items():  # DEL's comes last and lies on top
            bars = len(methods) <= MANY or method == arrange.REFERENCE
            _plot_curve(axes, curve, shared.styles[method], bars)
            _rings(axes, [point for point in curve if point[0].row.label in shared.ringed], shared.styles[method])

    return draw(shared.prefix + name, (5.4, 3.9), paint)


def drawn(board: Leaderboard, name: str) -> list[str]:
    """Methods that :func:`utility_curves` shows of a utility, DEL first."""
    found = [entry for entry in arrange.tested(board) if _curve_of([entry], METRICS[name])]
    return list(dict.fromkeys(entry.row.method for entry in found))


def frontier(name: str, series: Mapping[str, Sequence[tuple[Estimate, Estimate]]], looks: Mapping[str, Style]) -> str:
    """R against the worst-case success rate over several boards.

    Args:
        name: In front of every identifier of the figure.
        series: What was run -> (success, R) of each of its settings.
        looks: Style of each series.
    """

    def paint(figure: Figure) -> None:
        axes = figure.add_axes((0.125, 0.15, 0.825, 0.76))
        points = [point for found in series.values() for point in found]
        success_axis(axes, "x", max(worst.high or worst.value for worst, _ in points))
        axes.set_xlabel("worst-case attack success rate (square-root scale)")
        axes.set_title(RETAINED.title, loc="left", x=LEFT)
        axes.yaxis.set_major_formatter(FuncFormatter(plain))
        axes.grid(axis="y")
        _reference_line(axes, "mean embedding", 0.0)
        for title, found in series.items():
            style = looks[title]
            for place, (worst, retained) in enumerate(found):
                drawn = axes.errorbar(
                    worst.value, retained.value, xerr=errors(worst), yerr=errors(retained), fmt=style.marker,
                    color=style.colour, elinewidth=0.9, zorder=3,
                )  # fmt: skip
                _tag(drawn, style, place)

    return draw(name, (5.4, 3.9), paint)


def _utility_axis(axes: Axes, board: Leaderboard, metric: Metric, values: list[Estimate]) -> None:
    """Axis around the values with the clean prompt and the mean embedding, between which a utility lies, as lines."""
    ends = [end for value in values for end in (value.value, value.low, value.high) if end is not None]
    finite = [end for end in ends if math.isfinite(end) and (end > 0 or not metric.logarithmic)]
    lines = _reference_lines(board, metric)
    near = [value for _, value in lines if _is_near(value, finite, metric.logarithmic)]
    if metric.logarithmic:
        log_ticks(axes, "y", [*finite, *near])
    else:
        low, high = min([*finite, *near]), max([*finite, *near])
        margin = max(0.02, 0.08 * (high - low))
        axes.set_ylim(low - margin, high + margin)
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_formatter(FuncFormatter(plain))
    axes.grid(axis="y")
    axes.set_title(metric.title, loc="left", x=LEFT)
    outside = {True: 0, False: 0}
    for name, value in lines:
        drawn = _reference_line(axes, name, value, outside[value > finite[0]])
        outside[value > finite[0]] += not drawn


def _is_near(value: float, values: list[float], logarithmic: bool) -> bool:
    """Whether a line fits into the axis: one far from every method would press the methods into a line."""
    scale = math.log if logarithmic else float
    low, high = scale(min(values)), scale(max(values))
    return low == high or low - 1.5 * (high - low) <= scale(value) <= high + 1.5 * (high - low)


def _reference_lines(board: Leaderboard, metric: Metric) -> list[tuple[str, float]]:
    names = {"clean": "clean prompt", "mean": "mean embedding"}
    found = {entry.row.method: metric.of(entry) for entry in arrange.controls(board)}
    return [(text, value.value) for name, text in names.items() if (value := found.get(name)) is not None]


def _reference_line(axes: Axes, name: str, value: float, before: int = 0) -> bool:
    """A dashed line with its name at the left; name and number at the right edge where the line lies outside.

    Args:
        axes: With their limits set.
        name: Of the line.
        value: Its height.
        before: How many names stand at that edge already.

    Returns:
        Whether the line lies within the axes.
    """
    low, high = sorted(axes.get_ylim())
    style: dict[str, Any] = {"textcoords": "offset points", "fontsize": FONT - 1.5, "color": INK}
    if low <= value <= high:
        axes.axhline(value, color=MUTED, linewidth=0.9, dashes=(5, 3), zorder=1)
        axes.annotate(name, (0, value), (4, 3), xycoords=axes.get_yaxis_transform(), ha="left", **style)
        return True
    arrow, height, shift, align = ("↓", 0, 4, "bottom") if value < low else ("↑", 1, -4, "top")
    offset = shift + (FONT if value < low else -FONT) * before
    text = f"{arrow} {name} {words.number(value)}"
    axes.annotate(text, (1, height), (-4, offset), xycoords="axes fraction", ha="right", va=align, **style)
    return False


def _plot_curve(axes: Axes, curve: list[tuple[Entry, Estimate, Estimate]], style: Style, bars: bool) -> None:
    """Line and markers, hollow where an entry has no soft prompt, with error bars both ways."""
    is_reference = curve[0][0].is_reference
    x, y = [worst.value for _, worst, _ in curve], [utility.value for *_, utility in curve]
    order = 4 if is_reference else 3
    axes.plot(x, y, color=style.colour, linewidth=2.2 if is_reference else 1.1, zorder=order, gid=f"{style.tag}-line")
    for place, (entry, worst, utility) in enumerate(curve):
        both: dict[str, Any] = {"xerr": errors(worst), "yerr": errors(utility)} if bars else {}
        found = axes.errorbar(
            worst.value, utility.value, **both, **_marker(entry, style), elinewidth=0.8, zorder=order, clip_on=False,
        )  # fmt: skip
        _tag(found, style, place)


def _rings(axes: Axes, points: list[tuple[Entry, Estimate, Estimate]], style: Style) -> None:
    for place, (_, worst, utility) in enumerate(points):
        ring: dict[str, Any] = {"markersize": 13, "markerfacecolor": "none", "markeredgewidth": 1.1, "clip_on": False}
        axes.plot(worst.value, utility.value, "o", color=INK, **ring, gid=f"{style.tag}-ring-{place}")


def _tag(drawn: ErrorbarContainer, style: Style, place: int) -> None:
    """Name a point's marker and bars, so that the page can bring a method's points to the fore."""
    for part, artist in enumerate(drawn.get_children()):
        artist.set_gid(f"{style.tag}-{place}-{part}")


def _marker(entry: Entry, style: Style) -> dict[str, Any]:
    """Marker of an entry: hollow without a soft prompt; shapes with little area a little larger."""
    hollow = entry.prompted is None
    size = 6.0 + entry.is_reference + 2.0 * (style.marker in "PX*")
    face = {"markerfacecolor": PAPER, "markeredgewidth": 1.2} if hollow else {"markeredgewidth": 0.4}
    return {"fmt": style.marker, "color": style.colour, "markersize": size, **face}


def utility_bits(board: Leaderboard) -> str:
    """Utility against the payload at the headline's target; empty without two methods to compare."""
    target = arrange.headline_target(board)
    matchings: tuple[Matching, ...] = ("nearest", "worst")
    entries = next((found for matching in matchings if (found := arrange.matched(board, matching, target))), [])
    metric = RETAINED if sum(entry.retained is not None for entry in entries) > 1 else PLAIN
    points = [(e, e.row.communication.bits_per_token, value) for e in entries if (value := metric.of(e))]
    points = [point for point in points if point[1] > 0]
    if len(points) < 2:
        return ""
    drawn = styles(board)

    def paint(figure: Figure) -> None:
        axes = figure.add_axes((0.125, 0.15, 0.825, 0.76))
        log_ticks(axes, "x", [bits * shift for _, bits, _ in points for shift in (0.75, 1.35)])
        _utility_axis(axes, board, metric, [value for *_, value in points])
        axes.set_xlabel("bits a token (logarithmic)")
        for place, (entry, bits, value) in enumerate(_side_by_side(points)):
            style = drawn[entry.row.method]
            found = axes.errorbar(
                bits, value.value, yerr=errors(value), **_marker(entry, style), elinewidth=0.9, zorder=3,
            )  # fmt: skip
            _tag(found, style, place)

    return draw("bits", (5.4, 3.9), paint)


def _side_by_side(points: list[tuple[Entry, float, Estimate]]) -> list[tuple[Entry, float, Estimate]]:
    """Points with equal bits moved a little apart, so that their intervals can be told apart."""
    sizes = [bits for _, bits, _ in points]
    seen: dict[float, int] = {}
    moved = []
    for entry, bits, value in points:
        place = seen[bits] = seen.get(bits, -1) + 1
        moved.append((entry, bits * 1.07 ** (place - (sizes.count(bits) - 1) / 2), value))
    return moved


def payloads(board: Leaderboard) -> list[tuple[str, float, bool]]:
    """(what is sent, bits a token, whether it is under test), smallest first; rows that send nothing are left out.

    Methods under test with equal payloads share an entry.
    """
    known: dict[str, float] = {}
    tested: dict[float, list[str]] = {}
    controls = {"clean": TEXT, "projection": "projection, fp32"}
    for entry in arrange.representatives(board):
        row, sent = entry.row, entry.row.communication
        if sent.bits_per_token <= 0 or not math.isfinite(sent.ratio_fp32):
            continue
        if row.is_control:
            known.setdefault(controls.get(row.method, row.label), sent.bits_per_token)
        else:
            tested.setdefault(sent.bits_per_token, []).append(entry.name)
        known.setdefault("embedding, fp32", sent.bits_per_token * sent.ratio_fp32)
        known.setdefault("embedding, fp16", sent.bits_per_token * sent.ratio_fp16)
    sizes = [(name, bits, False) for name, bits in known.items()]
    sizes += [(_together(names), bits, True) for bits, names in tested.items()]
    return sorted(sizes, key=lambda item: item[1])


def _together(names: list[str]) -> str:
    others = len(names) - 1
    return names[0] + (f" and {others} other{'s' * (others > 1)}" if others else "")


def communication(board: Leaderboard) -> str:
    """Bits of a token's payload as bars on a logarithmic axis; empty if no row sends anything."""
    sizes = payloads(board)
    if not sizes:
        return ""

    def paint(figure: Figure) -> None:
        height = 0.55 + 0.32 * len(sizes)
        names = [textwrap.fill(name, LONGEST_NAME) for name, *_ in sizes]
        left = max(0.27, 0.0155 * max(len(line) for name in names for line in name.split("\n")))
        axes = figure.add_axes((left, 0.5 / height, 0.71 - left, 1 - 0.55 / height))
        largest = max(bits for _, bits, _ in sizes)
        lines = range(len(sizes))
        colours = [WITH if tested else MUTED for *_, tested in sizes]
        axes.barh(lines, [bits for _, bits, _ in sizes], height=0.5, color=colours)
        axes.set_xscale("log")
        axes.set_xlim(1, largest)
        axes.xaxis.set_major_locator(LogLocator(numticks=8 if left < 0.3 else 4))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(plain))
        axes.set_yticks(lines, names, linespacing=0.95)
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("bits a token (logarithmic)")
        for line, (_, bits, _) in enumerate(sizes):
            axes.text(bits * 1.18, line, _size(bits, largest), va="center", fontsize=FONT - 1)

    return draw("communication", (5.4, 0.55 + 0.32 * len(sizes)), paint)


def _size(bits: float, largest: float) -> str:
    return words.count(bits) if bits >= largest else f"{words.count(bits)} ({words.setting(largest / bits)}× smaller)"


def curve_points(curve: TrainingCurve) -> list[tuple[float, float]]:
    """(step, validation perplexity) of every logged validation."""
    points = []
    for entry in curve.history:
        values = [value for key, value in entry.items() if re.search(r"val.*(perplexity|ppl)", key)]
        if values and "step" in entry and math.isfinite(values[0]) and values[0] > 0:
            points.append((entry["step"], values[0]))
    return points


def training_curves(board: Leaderboard) -> list[tuple[str, str]]:
    """(name, figure) of every trained part with at least two validations, all on one perplexity scale."""
    drawn = [(curve.name, curve_points(curve)) for curve in board.curves]
    drawn = [(name, points) for name, points in drawn if len(points) > 1]
    values = [value for _, points in drawn for _, value in points]
    return [(name, _curve(f"curve{i}", points, values)) for i, (name, points) in enumerate(drawn)]


def _curve(name: str, points: list[tuple[float, float]], scale: list[float]) -> str:
    def paint(figure: Figure) -> None:
        axes = figure.add_axes((0.18, 0.18, 0.76, 0.75))
        log_ticks(axes, "y", scale)
        axes.grid(axis="y")
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=WITH, clip_on=False)
        best = min(points, key=lambda point: point[1])
        axes.plot(*best, "o", color=WITH, markersize=5, clip_on=False)
        above = best[1] < math.sqrt(min(scale) * max(scale))
        offset, align = ((0, 7), "bottom") if above else ((0, -7), "top")
        beside = "right" if best[0] > sum(steps[:: len(steps) - 1]) / 2 else "left"
        text = words.number(best[1])
        axes.annotate(text, best, offset, textcoords="offset points", ha=beside, va=align, fontsize=FONT - 1)
        axes.set_xlim(min(0, steps[0]), steps[-1])
        axes.set_xticks([min(0, steps[0]), steps[-1]])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: words.count(value)))
        axes.get_xticklabels()[-1].set_horizontalalignment("right")

    return draw(name, (2.5, 1.9), paint)
