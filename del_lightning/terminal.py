"""Lines for the terminal, and for the logs that it is sent to."""

from rich import get_console


def say(line: str) -> None:
    """Print a line as it is, above any progress bar that is up.

    It is not broken at a width, nor are brackets taken for markup: in a log, a path stays one word.
    """
    get_console().print(line, soft_wrap=True, markup=False)
