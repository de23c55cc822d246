"""Lines for the terminal."""

from io import StringIO

import pytest
import rich
from rich.console import Console
from rich.progress import Progress

from del_lightning.terminal import say


def test_a_path_stays_one_word_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    path = "/[exp1]/[/b]" + "/a" * 300
    say(f"report: {path}")
    assert capsys.readouterr().out == f"report: {path}\n"


def test_a_line_goes_through_the_console_that_draws_the_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = StringIO()
    monkeypatch.setattr(rich, "_console", Console(file=screen, force_terminal=True, width=60))
    with Progress(transient=True, auto_refresh=False) as progress:
        progress.add_task("working", total=None)
        progress.refresh()
        say("one line")
    drawn = screen.getvalue()
    assert drawn.index("working") < drawn.index("one line") < drawn.rindex("working")  # erased, and drawn again below
