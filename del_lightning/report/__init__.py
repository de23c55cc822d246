"""Results as typed records, and the pages made of them.

    schema   what a run stores: StageResult, Leaderboard, Sample
    words    numbers and phrases: three significant digits, intervals, a guarantee in one phrase
    arrange  which rows are one setting, and which settings stand side by side
    prose    the summary, the warnings, the guarantees in words
    tables   the leaderboard's columns
    markdown, console   the same as Markdown and for the terminal
    drawing  how figures become inline SVG, and each method's colour and marker
    plots    the figures
    page     one self-contained HTML page, and ``write_report``

The public functions are imported on first use: a stage that only stores a result must not wait for matplotlib, and
the artefact store, which the page is written with, needs the records itself.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from del_lightning.report.console import console_table
    from del_lightning.report.markdown import render_markdown
    from del_lightning.report.page import render_html, write_report

__all__ = ["console_table", "render_html", "render_markdown", "write_report"]

_HOMES = {
    "console_table": "console",
    "render_html": "page",
    "render_markdown": "markdown",
    "write_report": "page",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
