"""Lines for the terminal, and for the logs that it is sent to."""

from collections.abc import Iterable
from typing import TypeVar

from rich import get_console
from rich.progress import Progress
from rich.progress import track as rich_track

Item = TypeVar("Item")


def say(line: str) -> None:
    """Print a line as it is, above any progress bar that is up.

    It is not broken at a width, nor are brackets taken for markup: in a log, a path stays one word.
    """
    get_console().print(line, soft_wrap=True, markup=False)


def track(items: Iterable[Item], description: str) -> Iterable[Item]:
    """The items under a progress bar that goes away at the end; without one in a log, where it would be blank lines."""
    return rich_track(items, description=description, transient=True, disable=not _can_draw())


def bar() -> Progress:
    """A progress bar that goes away at the end, to be entered; nothing in a log, as in :func:`track`."""
    return Progress(transient=True, disable=not _can_draw())


def _can_draw() -> bool:
    console = get_console()
    return console.is_terminal or console.is_jupyter
