"""Figures of the report as inline SVG: text stays text, and colours follow the page's light or dark scheme.

Matplotlib draws with placeholder colours that :func:`_inline` replaces by the page's CSS variables. Identifiers get
the figure's name in front, so that several figures can live in one document, and no clock or random number enters:
equal data give equal bytes. Figures are narrow on purpose: the page lays several out side by side, and on a phone
each still shows its text at a readable size.
"""

import io
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from del_lightning.report import words
from del_lightning.report.schema import Estimate, Leaderboard, LeaderboardRow, TrainingCurve

INK, MUTED, RULE, PAPER = "#010101", "#020202", "#030303", "#040404"
WITH, WITHOUT = "#050505", "#060606"
_VARIABLES = {INK: "ink", MUTED: "muted", RULE: "rule", PAPER: "paper", WITH: "with", WITHOUT: "without"}
"""Placeholder colour -> the page's CSS variable."""

MARKERS = {True: "o", False: "^"}
"""With and without soft prompt: different in shape as well as in colour."""

TEXT = "text as token ids"
"""What the clean control sends."""

FONT = 10.5
LONGEST_TITLE = 36
"""Characters of a metric's name that leave room for a hint behind it."""
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # only measures; the page's own font is what is drawn
    "font.size": FONT,
    "axes.labelsize": FONT,
    "axes.titlesize": FONT,
    "xtick.labelsize": FONT - 1,
    "ytick.labelsize": FONT - 1,
    "text.color": INK,
    "text.parse_math": False,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 6.5,
}


def _draw(name: str, size: tuple[float, float], paint: Callable[[Figure], None]) -> str:
    """Paint a figure of ``size`` inches and return it as SVG for use inside an HTML page."""
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=size, dpi=72)  # SVG counts in points, and so do the labels
        paint(figure)
        buffer = io.StringIO()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    return _inline(buffer.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """Make matplotlib's SVG file an HTML fragment: no prologue, own ids, inherited font, the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (xmlns(:xlink)?|version)="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'\bid="', f'id="{name}-', svg).replace("url(#", f"url(#{name}-")
    svg = svg.replace('href="#', f'href="#{name}-')
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r" font-family: [^;\"]*;?", "", svg)
    svg = re.sub(r'(<svg) width="([\d.]+)pt" height="[\d.]+pt"', r'\1 aria-hidden="true" focusable="false"', svg)
    for placeholder, variable in _VARIABLES.items():
        svg = svg.replace(placeholder, f"var(--{variable})")
    return svg


def _errors(estimate: Estimate) -> list[list[float]]:
    """Distances to the interval's ends as matplotlib wants them, zero without an interval."""
    low = estimate.value if estimate.low is None else estimate.low
    high = estimate.value if estimate.high is None else estimate.high
    return [[max(0.0, estimate.value - low)], [max(0.0, high - estimate.value)]]


def _plain(value: float, _: object = None) -> str:
    """Tick label."""
    return words.setting(value)


def _log_ticks(axes: Axes, axis: str, values: Iterable[float]) -> None:
    """Logarithmic axis around ``values`` with about four labelled ticks."""
    low, high = min(values), max(values)
    low, high = low / 1.15, high * 1.15
    steps: tuple[float, ...] = (1.0, 2.0, 5.0) if high / low < 60 else (1.0, 3.0) if high / low < 2000 else (1.0,)
    if high / low < 6:
        steps = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    target: Axis = axes.xaxis if axis == "x" else axes.yaxis
    (axes.set_xscale if axis == "x" else axes.set_yscale)("log")
    (axes.set_xlim if axis == "x" else axes.set_ylim)(low, high)
    target.set_major_locator(LogLocator(subs=steps, numticks=12))
    target.set_minor_locator(NullLocator())
    target.set_minor_formatter(NullFormatter())
    target.set_major_formatter(FuncFormatter(_plain))


def _success_axis(axes: Axes, axis: str, highest: float) -> None:
    """Axis of success rates on a square-root scale, which spreads the small rates that targets ask for."""
    scale = {"functions": (lambda x: np.sign(x) * np.sqrt(np.abs(x)), lambda x: np.sign(x) * np.square(x))}
    ticks = [tick for tick in (0, 0.02, 0.1, 0.2, 0.4, 0.6, 0.8, 1) if tick <= max(highest, 0.1) * 1.1]
    top = 1.04 if highest > 0.7 else max(highest, 0.1) * 1.15
    target: Axis = axes.xaxis if axis == "x" else axes.yaxis
    (axes.set_xscale if axis == "x" else axes.set_yscale)("function", **scale)
    (axes.set_xlim if axis == "x" else axes.set_ylim)(-0.0005, top)
    target.set_major_locator(FixedLocator(ticks))
    target.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


@dataclass
class _Labels:
    """Places direct labels in display coordinates so that none covers another or a marker."""

    axes: Axes
    taken: list[tuple[float, ...]] = field(default_factory=list)

    def block(self, left: float, right: float, y: float) -> None:
        """Keep labels off the markers at data coordinates (left, y) and (right, y) and off the line between."""
        start, line = self.axes.transData.transform((left, y))
        end, _ = self.axes.transData.transform((right, y))
        self.taken.append((start - 5, line - 5, end + 5, line + 5))

    def put(self, text: str, left: float, right: float, y: float) -> None:
        """Write ``text`` near a marker pair that spans ``left`` to ``right`` at height ``y``."""
        start, line = self.axes.transData.transform((left, y))
        end, _ = self.axes.transData.transform((right, y))
        box = min(self._boxes(text, start, end, line), key=self._cost)
        self.taken.append(box[:4])
        x, height = self.axes.transData.inverted().transform(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2))
        self.axes.text(x, height, text, ha="center", va="center", fontsize=FONT - 1, color=INK)

    def _boxes(self, text: str, start: float, end: float, line: float) -> Iterator[tuple[float, ...]]:
        """Where the label may go, as (left, bottom, right, top, how far from the best place)."""
        width, height = len(text) * (FONT - 1) * 0.56 + 4, FONT * 1.15
        for shift in (0.0, 0.6, -0.6, 1.2, -1.2, 1.8, -1.8):
            middle = line + shift * height
            for x in (end + 6, start - 6 - width, (start + end - width) / 2):
                yield x, middle - height / 2, x + width, middle + height / 2, abs(shift)

    def _cost(self, box: tuple[float, ...]) -> tuple[float, float]:
        frame = self.axes.bbox
        outside = box[0] < frame.x0 or box[2] > frame.x1 + 14 or box[1] < frame.y0 or box[3] > frame.y1 + 8
        return sum(_overlap(box, other) for other in self.taken) + 2 * outside, box[4]


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@dataclass(frozen=True)
class _Point:
    """One row in the privacy-utility plot: measured success rates and a utility."""

    row: LeaderboardRow
    utility: Estimate
    nearest: Estimate | None
    optimal: Estimate | None

    @property
    def rates(self) -> list[Estimate]:
        return [rate for rate in (self.nearest, self.optimal) if rate is not None]


def _points(board: Leaderboard, metric: str) -> list[_Point]:
    points = [
        _Point(
            row,
            getattr(row, metric),
            words.attack_result(row, words.is_nearest),
            words.attack_result(row, words.is_optimal),
        )
        for row in board.rows
    ]
    positive = metric == "perplexity"
    return [p for p in points if p.rates and math.isfinite(p.utility.value) and (p.utility.value > 0 or not positive)]


def privacy_utility(board: Leaderboard, metric: str) -> str:
    """Utility against measured attack success, both with intervals; empty if no row has both.

    Args:
        board: The leaderboard.
        metric: ``perplexity`` (drawn on a logarithmic axis) or ``coherence``.
    """
    points = _points(board, metric)
    if not points:
        return ""

    def paint(figure: Figure) -> None:
        axes = figure.add_axes((0.125, 0.15, 0.825, 0.76))
        highest = max(rate.value for point in points for rate in point.rates)
        _success_axis(axes, "x", highest)
        _utility_axis(axes, metric, points)
        axes.grid(axis="y")
        axes.set_xlabel("measured attack success rate (square-root scale)")
        title = "PPL (lower is better)" if metric == "perplexity" else f"COH[{board.encoder}]"
        title += " (higher is better)" if metric != "perplexity" and len(title) < LONGEST_TITLE else ""
        axes.set_title(title, loc="left", x=-0.1515)
        for point in points:
            _pair(axes, point)
        _label_points(axes, points)

    return _draw(metric, (5.4, 3.9), paint)


def _utility_axis(axes: Axes, metric: str, points: list[_Point]) -> None:
    ends = [end for p in points for end in (p.utility.value, p.utility.low, p.utility.high) if end is not None]
    finite = [end for end in ends if math.isfinite(end) and (end > 0 or metric != "perplexity")]
    if metric == "perplexity":
        _log_ticks(axes, "y", finite)
        return
    margin = max(0.02, 0.08 * (max(finite) - min(finite)))
    axes.set_ylim(min(finite) - margin, max(finite) + margin)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter(FuncFormatter(_plain))


def _colour(soft_prompt: bool) -> str:
    return WITH if soft_prompt else WITHOUT


def _pair(axes: Axes, point: _Point) -> None:
    """Filled nearest-neighbour and hollow Bayes-optimal marker of one row, joined, with error bars both ways."""
    colour, marker = _colour(point.row.soft_prompt), MARKERS[point.row.soft_prompt]
    height = point.utility.value
    axes.plot([rate.value for rate in point.rates], [height] * len(point.rates), color=colour, linewidth=0.8, zorder=2)
    for rate, face in ((point.optimal, PAPER), (point.nearest, colour)):
        if rate is None:
            continue
        bars: dict[str, Any] = {"xerr": _errors(rate), "yerr": _errors(point.utility)}
        axes.errorbar(rate.value, height, **bars, fmt="none", ecolor=colour, elinewidth=0.8, alpha=0.55, zorder=2)
        style: dict[str, Any] = {"markerfacecolor": face, "markeredgecolor": colour, "markeredgewidth": 1.3}
        axes.plot(rate.value, height, marker, zorder=3, clip_on=False, **style)


def _label_points(axes: Axes, points: list[_Point]) -> None:
    labels = _Labels(axes)
    spans = [(min(rates), max(rates)) for rates in ([rate.value for rate in point.rates] for point in points)]
    for point, span in zip(points, spans, strict=True):
        labels.block(*span, point.utility.value)
    for point, span in zip(points, spans, strict=True):
        labels.put(_short(point.row), *span, point.utility.value)


def _short(row: LeaderboardRow) -> str:
    if row.is_control:
        return row.method
    return row.label if row.target is None else f"DEL {row.target:g}"


def payloads(board: Leaderboard) -> list[tuple[str, float, bool]]:
    """(what is sent, bits a token, whether it is under test), smallest first; rows that send nothing are left out."""
    known: dict[str, tuple[float, bool]] = {}
    controls = {"clean": TEXT, "projection": "projection, fp32"}
    for row in board.rows:
        sent = row.communication
        if sent.bits_per_token <= 0 or not math.isfinite(sent.ratio_fp32):
            continue
        name = (
            controls.get(row.method, row.label) if row.is_control else f"DEL, {words.count(sent.bits_per_token)} bits"
        )
        known.setdefault(name, (sent.bits_per_token, not row.is_control))
        known.setdefault("embedding, fp32", (sent.bits_per_token * sent.ratio_fp32, False))
        known.setdefault("embedding, fp16", (sent.bits_per_token * sent.ratio_fp16, False))
    tested = [name for name, (_, is_tested) in known.items() if is_tested]
    rename = {tested[0]: "DEL"} if len(tested) == 1 else {}
    return sorted(((rename.get(n, n), bits, t) for n, (bits, t) in known.items()), key=lambda item: item[1])


def communication(board: Leaderboard) -> str:
    """Bits of a token's payload as bars on a logarithmic axis; empty if no row sends anything."""
    sizes = payloads(board)
    if not sizes:
        return ""

    def paint(figure: Figure) -> None:
        height = 0.55 + 0.32 * len(sizes)
        axes = figure.add_axes((0.27, 0.5 / height, 0.44, 1 - 0.55 / height))
        largest = max(bits for _, bits, _ in sizes)
        lines = range(len(sizes))
        colours = [WITH if tested else MUTED for *_, tested in sizes]
        axes.barh(lines, [bits for _, bits, _ in sizes], height=0.5, color=colours)
        axes.set_xscale("log")
        axes.set_xlim(1, largest)
        axes.xaxis.set_major_locator(LogLocator(numticks=8))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(_plain))
        axes.set_yticks(lines, [name for name, *_ in sizes])
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("bits a token (logarithmic)")
        for line, (_, bits, _) in enumerate(sizes):
            axes.text(bits * 1.18, line, _size(bits, largest), va="center", fontsize=FONT - 1)

    return _draw("communication", (5.4, 0.55 + 0.32 * len(sizes)), paint)


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
        _log_ticks(axes, "y", scale)
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

    return _draw(name, (2.5, 1.9), paint)


def calibration(board: Leaderboard) -> str:
    """Measured success rate at every mu that calibration tried, and the targets; empty without evidence."""
    # Targets share their evaluations, so the same mu may stand in several records.
    tried = {entry["mu"]: _rate(entry) for item in board.calibrations for entry in item.evidence}
    if not tried:
        return ""

    def paint(figure: Figure) -> None:
        axes = figure.add_axes((0.125, 0.15, 0.825, 0.76))
        targets = [item.target for item in board.calibrations]
        _log_ticks(axes, "x", list(tried) + [item.mu for item in board.calibrations])
        _success_axis(axes, "y", max([rate.high or rate.value for rate in tried.values()] + targets))
        for target in sorted(set(targets)):
            axes.axhline(target, color=WITHOUT, linewidth=0.9, dashes=(5, 3), zorder=1)
            place = axes.get_yaxis_transform()
            axes.annotate(
                f"target {target:g}", (0.01, target), (0, 2), xycoords=place, textcoords="offset points",
                fontsize=FONT - 1,
            )  # fmt: skip
        for mu, rate in tried.items():
            axes.errorbar(mu, rate.value, yerr=_errors(rate), fmt="o", color=MUTED, markersize=3.5, elinewidth=0.8)
        for item in board.calibrations:
            axes.errorbar(item.mu, item.asr.value, yerr=_errors(item.asr), fmt="o", color=WITH, zorder=4)
        axes.set_xlabel("mechanism parameter μ tried (logarithmic)")
        axes.set_title("nearest-neighbour ASR (square-root scale)", loc="left", x=-0.1515)

    return _draw("calibration", (5.4, 3.9), paint)


def _rate(entry: dict[str, float]) -> Estimate:
    hits, n = entry["hits"], int(entry["n"])
    return Estimate(value=hits / n, n=n, low=entry["low"], high=entry["high"])
