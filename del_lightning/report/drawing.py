"""How figures are drawn: inline SVG whose text stays text and whose colours follow the page's light or dark scheme.

Matplotlib draws with stand-in colours that :func:`_inline` replaces by the page's CSS variables. Identifiers get
the figure's name in front, so that several figures can live in one document, and no clock or random number enters:
equal data give equal bytes. Figures are narrow on purpose: the page lays several out side by side, and on a phone
each still shows its text at a readable size.
"""

import io
import itertools
import re
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from del_lightning.report import arrange, words
from del_lightning.report.schema import Estimate, Leaderboard

INK, MUTED, RULE, PAPER = "#010101", "#020202", "#030303", "#040404"
WITH, WITHOUT = "#050505", "#060606"
HUES = ("#070707", "#080808", "#090909", "#0a0a0a", "#0b0b0b")
_VARIABLES = {INK: "ink", MUTED: "muted", RULE: "rule", PAPER: "paper", WITH: "with", WITHOUT: "without"} | {
    hue: f"hue-{number}" for number, hue in enumerate(HUES, 1)
}
"""Placeholder colour -> the page's CSS variable."""

MARKERS = ("o", "^", "s", "D", "v", "P", "X", "<", "*", ">", "p", "h")
"""DEL's first; shape tells methods apart where colour does not."""

_LOOKS = {
    "del": (WITH, "o"),
    "del-plus": (HUES[0], "^"),
    "del-posterior": (HUES[4], "h"),
    "gaussian-code": (HUES[1], "s"),
    "gaussian-code-nbit": (HUES[1], "D"),
    "gaussian-embedding": (HUES[2], "X"),
    "gaussian-embedding-nbit": (HUES[2], "P"),
    "metric-dp": (HUES[3], "v"),
    "metric-dp-snd": (HUES[3], "*"),
    "dp-forward": (HUES[4], "<"),
    "dp-forward-released": (HUES[4], ">"),
    "santext": (HUES[0], "p"),
    "santext-plus": (HUES[0], "*"),
    "custext": (HUES[1], "p"),
    "custext-plus": (HUES[1], "*"),
    "rantext": (HUES[2], "h"),
    "inferdpt": (HUES[2], "p"),
    "local-only": (HUES[3], "h"),
}
"""Method -> its colour and marker in every figure of every page; variants of a method share its colour."""
_BITS = {1: ("v", (0, (1, 1.6))), 2: ("s", (0, (4, 2))), 4: ("o", "-"), 8: ("D", (0, (6, 1.5, 1, 1.5)))}
"""Bits a coordinate -> marker and line of DEL where one figure has it at several."""

FONT = 10.5
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


def draw(name: str, size: tuple[float, float], paint: Callable[[Figure], None]) -> str:
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
    for stand_in, variable in _VARIABLES.items():
        svg = svg.replace(stand_in, f"var(--{variable})")
    return svg


def errors(estimate: Estimate) -> list[list[float]]:
    """Distances to the interval's ends as matplotlib wants them, zero without an interval."""
    low = estimate.value if estimate.low is None else estimate.low
    high = estimate.value if estimate.high is None else estimate.high
    return [[max(0.0, estimate.value - low)], [max(0.0, high - estimate.value)]]


def plain(value: float, _: object = None) -> str:
    """Tick label."""
    return words.setting(value)


def log_ticks(axes: Axes, axis: str, values: Iterable[float]) -> None:
    """Logarithmic axis around ``values`` with about four labelled ticks."""
    low, high = min(values), max(values)
    low, high = low / 1.15, high * 1.15
    steps: tuple[float, ...] = (1.0, 2.0, 5.0) if high / low < 60 else (1.0, 3.0) if high / low < 2000 else (1.0,)
    if high / low < 2:
        steps = tuple(number / 2 for number in range(2, 20))
    elif high / low < 6:
        steps = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    target: Axis = axes.xaxis if axis == "x" else axes.yaxis
    (axes.set_xscale if axis == "x" else axes.set_yscale)("log")
    (axes.set_xlim if axis == "x" else axes.set_ylim)(low, high)
    target.set_major_locator(LogLocator(subs=steps, numticks=12))
    target.set_minor_locator(NullLocator())
    target.set_minor_formatter(NullFormatter())
    target.set_major_formatter(FuncFormatter(plain))


def success_axis(axes: Axes, axis: str, highest: float) -> None:
    """Axis of success rates on a square-root scale, which spreads the small rates that targets ask for."""
    scale = {"functions": (lambda x: np.sign(x) * np.sqrt(np.abs(x)), lambda x: np.sign(x) * np.square(x))}
    ticks = [tick for tick in (0, 0.02, 0.1, 0.2, 0.4, 0.6, 0.8, 1) if tick <= max(highest, 0.1) * 1.1]
    top = 1.04 if highest > 0.7 else max(highest, 0.1) * 1.15
    target: Axis = axes.xaxis if axis == "x" else axes.yaxis
    (axes.set_xscale if axis == "x" else axes.set_yscale)("function", **scale)
    (axes.set_xlim if axis == "x" else axes.set_ylim)(-0.0005, top)
    target.set_major_locator(FixedLocator(ticks))
    target.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))


@dataclass(frozen=True)
class Style:
    """How a method is drawn everywhere: stand-in colour, marker, the tag that its curves carry, and its line."""

    colour: str
    marker: str
    tag: str
    line: Any = "-"

    @property
    def variable(self) -> str:
        """The page's CSS variable of the colour."""
        return _VARIABLES[self.colour]

    @property
    def shape(self) -> str:
        """Name of the marker in the page."""
        return f"shape-{MARKERS.index(self.marker)}"


@dataclass(frozen=True)
class Shared:
    """What a figure shares with a page of many boards.

    Attributes:
        prefix: In front of every identifier of the figure.
        styles: Method -> its style on the whole page.
        ringed: Labels of the settings that get a ring.
    """

    prefix: str
    styles: Mapping[str, Style]
    ringed: Container[str] = ()


def styles(board: Leaderboard) -> dict[str, Style]:
    """Method under test -> its style."""
    return styles_of(arrange.method_names(board))


def styles_of(methods: Iterable[str]) -> dict[str, Style]:
    """Style of each method, and of DEL: the same on every page; unknown methods take looks that no known one has."""
    names = list(dict.fromkeys([arrange.REFERENCE, *methods]))
    unused = (look for look in itertools.product(HUES, MARKERS[1:]) if look not in _LOOKS.values())
    looks = {name: _LOOKS.get(name) or next(unused) for name in names}
    return {name: Style(*look, f"m{number}") for number, (name, look) in enumerate(looks.items())}


def series_styles(names: Iterable[str]) -> dict[str, Style]:
    """Style of series that are no methods of their own; the first has DEL's."""
    others = zip(itertools.cycle(HUES), itertools.cycle(MARKERS[1:]), strict=False)
    looks = itertools.chain([(WITH, MARKERS[0])], others)
    return {name: Style(*look, f"m{number}") for number, (name, look) in enumerate(zip(names, looks, strict=False))}


def at_bits(style: Style, bits: int | None, tag: str) -> Style:
    """The style of a method at so many bits a coordinate: its colour, with a marker and a line that tell bits apart."""
    marker, line = _BITS.get(bits or 0, (style.marker, style.line))
    return Style(style.colour, marker, tag, line)


def shapes() -> dict[str, str]:
    """Name of each marker -> its outline as SVG path data in a box from -1 to 1, as the figures draw it."""
    return {f"shape-{number}": _path_data(marker) for number, marker in enumerate(MARKERS)}


_CODES = (Path.MOVETO, Path.LINETO, Path.CURVE3, Path.CURVE4, Path.CLOSEPOLY)


def _path_data(marker: str) -> str:
    style = MarkerStyle(marker)
    letters = dict(zip(map(int, _CODES), "MLQCZ", strict=True))
    outline = style.get_path().transformed(style.get_transform())
    parts = []
    for points, code in outline.iter_segments(simplify=False):
        # Matplotlib's y axis points up, SVG's down; a marker fills a box from -0.5 to 0.5.
        numbers = (np.reshape(points, (-1, 2)) * (2, -2)).flatten()
        parts.append(
            letters[int(code)] + ("" if code == Path.CLOSEPOLY else " ".join(f"{round(x, 2) + 0.0:g}" for x in numbers))
        )
    return "".join(parts)


def spread(heights: list[float], gap: float, top: float) -> list[float]:
    """Ascending heights, moved as little as it takes for neighbours to be ``gap`` apart and none above ``top``."""
    placed = list(heights)
    for place in range(1, len(placed)):
        placed[place] = max(placed[place], placed[place - 1] + gap)
    if placed:
        placed[-1] = min(placed[-1], top)
    for place in range(len(placed) - 2, -1, -1):
        placed[place] = min(placed[place], placed[place + 1] - gap)
    return placed
