"""A figure of the report as a file of its own, for pages that cannot show inline SVG: with its key and its colours.

The colours are the page's, read from its style sheet, so that a picture follows the reader's light or dark scheme too.
"""

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from del_lightning.report import arrange, drawing, plots
from del_lightning.report.schema import Estimate, Leaderboard

STYLE = Path(__file__).parent / "page.css"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
LINE = 17.0
"""Height of a line of the key, in the figure's points."""
COLUMNS = 2


def utility(board: Leaderboard, name: str = "retained") -> str:
    """Utility against the worst attack as a standalone SVG file; empty where the board has no such points.

    Args:
        board: The leaderboard.
        name: Of the figure, a key of :data:`~del_lightning.report.plots.METRICS`.
    """
    figure = plots.utility_curves(board, name)
    if not figure:
        return ""
    metric = plots.METRICS[name]
    drawn = {entry.row.method for entry in arrange.tested(board) if metric.of(entry) is not None}
    titles = {method: title for method, title in arrange.method_names(board).items() if method in drawn}
    return _standalone(
        figure, _key(titles, drawing.styles(board)), _lines(titles) * LINE, f"{metric.title}, {board.dataset}"
    )


def frontier(dataset: str, series: Mapping[str, Sequence[tuple[Estimate, Estimate]]]) -> str:
    """R against the worst attack over several boards of one data set as a standalone SVG file.

    Args:
        dataset: Its name.
        series: What was run, DEL as ``del``'s title first -> (success, R) of each of its settings.

    Returns:
        The file's text; empty without points.
    """
    series = {title: points for title, points in series.items() if points}
    if not series:
        return ""
    looks = drawing.series_styles(series)
    titles = {title: title for title in series}
    figure = plots.frontier("frontier", series, looks)
    return _standalone(
        figure, _key(titles, looks), _lines(titles) * LINE, f"{plots.RETAINED.title}, {dataset}, over mechanisms"
    )


def _lines(titles: dict[str, str]) -> int:
    return -(-len(titles) // COLUMNS)


def _key(titles: dict[str, str], styles: dict[str, drawing.Style]) -> list[tuple[float, float, str]]:
    """(share of the width, line, marker and name) of every method."""
    shapes = drawing.shapes()
    found: list[tuple[float, float, str]] = []
    for number, (method, title) in enumerate(titles.items()):
        style = styles[method]
        mark = f'<path transform="scale(3.8)" fill="var(--{style.variable})" d="{shapes[style.shape]}"/>'
        text = f'<text x="10" y="3.6" font-size="{drawing.FONT}" fill="var(--ink)">{html.escape(title)}</text>'
        found.append((number % COLUMNS / COLUMNS, number // COLUMNS, mark + text))
    return found


def _standalone(figure: str, key: list[tuple[float, float, str]], key_height: float, title: str) -> str:
    """Give an inline figure its namespace, size, colours and key."""
    found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', figure)
    assert found is not None
    width, height = float(found[1]), float(found[2])
    body = figure[figure.index(">") + 1 : figure.rindex("</svg>")]
    marks = "".join(
        f'<g transform="translate({12 + share * width:.1f} {height + 8 + line * LINE:.1f})">{mark}</g>\n'
        for share, line, mark in key
    )
    whole = height + key_height + 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {whole:g}" width="{1.6 * width:g}" '
        f'height="{1.6 * whole:g}" role="img" font-family="{FONT}">\n<title>{html.escape(title)}</title>\n'
        f'<style>{_colours()}</style>\n<rect width="100%" height="100%" fill="var(--paper)"/>\n'
        f"{body.strip()}\n{marks}</svg>\n"
    )


def _colours() -> str:
    """Both schemes of the page: names and values of its variables that are colours."""
    light, dark = (
        "; ".join(re.findall(r"--[\w-]+: #[0-9a-f]{3,6}", block)) for block in _schemes(STYLE.read_text("utf-8"))
    )
    return f":root {{ {light} }} @media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"


def _schemes(style: str) -> tuple[str, str]:
    """The light and the dark block of the style sheet."""
    light, dark = re.findall(r":root[^{]*\{([^}]*)\}", style)[:2]
    return light, dark
