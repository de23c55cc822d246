"""A setting that was asked for and cannot be had stays in sight wherever a leaderboard is shown."""

import io
import re

import pytest
from rich.console import Console

from del_lightning.report import cautions
from del_lightning.report.console import console_table
from del_lightning.report.markdown import render_markdown
from del_lightning.report.page import render_html
from del_lightning.report.schema import Leaderboard
from del_lightning.report.site import overview
from del_lightning.report.site.runs import Run
from del_lightning.stages import tracking
from tests.report.factory import make_board

LABEL = "DEL, ASR 0.02"


@pytest.fixture
def board() -> Leaderboard:
    """DEL is read by 37% at its smallest mu, so it has no row at its first target."""
    made = make_board()
    made.config["matching"] = ["nearest"]
    found = made.calibrations[0].found["nearest"][0]
    found.reached, found.asr = False, found.asr.model_copy(update={"value": 0.37})
    assert found.target == 0.02
    return made.model_copy(update={"rows": [row for row in made.rows if row.label != LABEL]})


def test_what_has_no_row_is_known(board: Leaderboard) -> None:
    (absent,) = cautions.out_of_reach(board)
    assert (absent.method, absent.label, absent.matching, absent.target) == ("del", LABEL, "nearest", 0.02)
    assert absent.closest.value == 0.37


def test_what_has_a_row_says_it_there(board: Leaderboard) -> None:
    row = next(row for row in make_board().rows if row.label == LABEL)
    assert cautions.out_of_reach(board.model_copy(update={"rows": [*board.rows, row]})) == []


def test_a_matching_that_was_not_asked_for_lacks_nothing(board: Leaderboard) -> None:
    board.config["matching"] = ["guarantee"]
    assert cautions.out_of_reach(board) == []


def test_the_terminal_and_the_report_have_a_line(board: Leaderboard) -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(console_table(board))
    assert re.search(f"{LABEL} +not reached, closest 37%", console.export_text())
    assert "### Not reached" in render_markdown(board)
    assert re.search(rf"\| {LABEL} \| not reached \| (0\.37|37%)", render_markdown(board))
    page = render_html(board, [])
    assert page.index("<h3>Not reached</h3>") < page.index(f"<td>{LABEL}</td><td>not reached</td>")


def test_the_site_has_a_line_in_the_column_of_its_attack(board: Leaderboard) -> None:
    lines = overview.lines([Run("one", "one.json", board)], overview.Fronts(), set())
    (absent,) = [line for line in lines if line.name == LABEL]
    assert len(absent.cells) == len(overview.HEADINGS) - 1
    headings = [(heading.name, heading.small) for heading in overview.HEADINGS[1:]]
    (heading,) = [heading for heading, cell in zip(headings, absent.cells, strict=True) if cell.text == "not reached"]
    assert heading == ("ASR", ("nearest neighbour",))
    assert absent.keys.keys() == lines[0].keys.keys()


def test_a_tracker_gets_the_closest_success(board: Leaderboard) -> None:
    assert tracking.leaderboard_metrics(board)["not_reached/del/nearest_asr2"] == 0.37
    assert not any(name.startswith("not_reached") for name in tracking.leaderboard_metrics(make_board()))
