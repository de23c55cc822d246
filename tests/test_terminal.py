"""Lines for the terminal."""

from io import StringIO

import pytest
import rich
from rich.console import Console
from rich.progress import Progress

from del_lightning.terminal import bar, say, track


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


@pytest.mark.parametrize(("terminal", "drawn"), [(True, True), (False, False)])
def test_a_log_has_no_bars_and_no_blank_lines_for_them(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, drawn: bool
) -> None:
    screen = StringIO()
    monkeypatch.setattr(rich, "_console", Console(file=screen, force_terminal=terminal, width=60))
    assert list(track(range(3), "three")) == [0, 1, 2]
    with bar() as progress:
        progress.advance(progress.add_task("four", total=4))
    assert ("three" in screen.getvalue(), "four" in screen.getvalue()) == (drawn, drawn)
    assert bool(screen.getvalue()) == drawn
