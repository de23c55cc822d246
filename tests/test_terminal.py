"""Lines for the terminal."""

import pytest
from rich.progress import Progress

from del_lightning.terminal import say


def test_a_long_path_stays_one_word_where_nothing_has_a_width(capsys: pytest.CaptureFixture[str]) -> None:
    path = "/a" * 300
    say(f"[bold]report[/]: {path}")
    assert capsys.readouterr().out == f"report: {path}\n"


def test_a_line_stands_above_a_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(transient=True) as progress:
        progress.add_task("working", total=None)
        say("one line")
    assert "one line" in capsys.readouterr().out.splitlines()
