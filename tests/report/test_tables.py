import math
import re

from rich.console import Console

from del_lightning.report import tables, words
from tests.report.factory import make_board, row

BARE_MU = re.compile(r"μ\s*=?\s*\d")


def test_markdown_holds_every_row_with_its_interval() -> None:
    board = make_board()
    text = tables.render_markdown(board)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    for item in board.rows:
        line = next(line for line in lines if line.startswith(f"| {words.row_name(item)} |"))
        assert words.with_interval(item.perplexity) in line
        assert words.with_interval(item.asr["Bayes-optimal"]) in line
    assert "n = 96" in text
    assert "## Calibration" in text
    assert "(leaderboard.json)" in text


def test_markdown_never_shows_a_bare_mu() -> None:
    for line in tables.render_markdown(make_board()).splitlines():
        for part in re.split(r"\|", line):
            if BARE_MU.search(part):
                assert "ε" in part, part


def test_mu_without_epsilon_is_withheld() -> None:
    item = row(0.1, False)
    item.privacy = item.privacy.model_copy(update={"epsilon_sequence": None, "caveat": ""})
    board = make_board(rows=[item])
    cell = tables.mu_cell(item)
    assert cell.text == words.MISSING
    assert "not shown" in cell.title
    assert "21.4" not in tables.render_markdown(board)


def test_missing_values_say_why() -> None:
    board = make_board(rows=[row(0.1, True, retained=None)])
    by_name = {column.name: column.cell(board.rows[0]) for column in tables.columns(board)}
    assert by_name["R"].text == words.MISSING
    assert "controls" in by_name["R"].title


def test_sample_size_moves_into_the_cells_where_it_differs() -> None:
    board = make_board(rows=[row("clean", False), row("mean", False)])
    assert "n = 96" in {c.name: c for c in tables.columns(board)}["PPL"].small
    board.rows[0].perplexity.n = 95
    column = {c.name: c for c in tables.columns(board)}["PPL"]
    assert column.small == ()
    assert "n = 95" in column.cell(board.rows[0]).small


def test_nothing_sent_is_infinitely_smaller() -> None:
    cell = tables.bits_cell(row("mean", False))
    assert cell.text == "0"
    assert cell.small == ("∞× vs fp32",)


def test_markdown_cannot_be_broken_by_text() -> None:
    board = make_board(notes=["a | b\n<img src=x> [link](http://x)"], title="T\n# U")
    text = tables.render_markdown(board)
    assert r"a \| b &lt;img src=x&gt; [link]\(http://x)" in text
    assert text.startswith("# T # U\n")


def test_console_table_shows_every_row_in_80_columns() -> None:
    board = make_board()
    console = Console(width=80)
    with console.capture() as capture:
        console.print(tables.console_table(board))
    table, printed = tables.console_table(board), capture.get()
    assert table.row_count == len(board.rows)
    assert "…" not in printed
    assert all(f"{item.perplexity.value:,.1f}" in printed for item in board.rows)
    assert BARE_MU.search(printed) is None


def test_console_table_does_not_read_markup() -> None:
    board = make_board(rows=[row("clean", False, label="[red]x[/nope]")])
    console = Console(width=200)
    with console.capture() as capture:
        console.print(tables.console_table(board))
    assert "[red]x[/nope]" in capture.get()


def test_calibration_without_its_row_shows_no_mu() -> None:
    lines = tables.calibration_rows(make_board(rows=[row("clean", False)]))
    assert all(line["μ a token, exact ε"] == words.MISSING for line in lines)


def test_sort_key_of_infinite_values_is_a_number() -> None:
    cell = tables.estimate_cell(row("clean", False, perplexity={"value": math.inf, "n": 3}).perplexity, "", 3)
    assert cell.text == "∞"
    assert cell.sort == math.inf
