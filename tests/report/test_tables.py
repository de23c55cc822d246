import math
import re
from collections.abc import Callable

import pytest
from rich.console import Console

from del_lightning.report import arrange, tables, words
from del_lightning.report.console import console_table
from del_lightning.report.markdown import render_markdown
from del_lightning.report.schema import Estimate, Leaderboard, LeaderboardRow
from tests.report.factory import NEAREST, OPTIMAL, attacked, make_board, make_large_board, other_row, rate, row

BARE_MU = re.compile(r"μ\s*=?\s*\d")


def only(item: LeaderboardRow) -> arrange.Entry:
    (entry,) = arrange.entries([item])
    return entry


def shown(board: Leaderboard) -> dict[str, tables.Cell]:
    """Cells of the board's first entry by heading."""
    entry = arrange.entries(board.rows)[0]
    return {column.line.partition(", n")[0]: column.cell(entry) for column in tables.columns(board, [entry])}


def test_markdown_holds_every_row_with_its_interval() -> None:
    board = make_board()
    text = render_markdown(board)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    for item in board.rows:
        line = next(line for line in lines if line.startswith(f"| {item.label} |"))
        assert words.with_interval(item.perplexity) in line
        assert words.per_cent_interval(item.asr["Bayes-optimal"]) in line
    assert "n = 96" in text
    assert "## Calibration" in text
    assert "## On the user's device" in text
    assert "(leaderboard.json)" in text


def test_markdown_of_many_methods_has_a_table_a_group() -> None:
    board = make_large_board()
    text = render_markdown(board)
    for group in arrange.groups(board):
        assert f"### {group.title}\n" in text
    assert text.count("| DEL |") >= 9
    assert "inside the noise" in text
    assert "- (a) DEL: Made-up caveat." in text


def test_markdown_never_shows_a_bare_mu() -> None:
    for line in render_markdown(make_board()).splitlines():
        for part in re.split(r"\|", line):
            if BARE_MU.search(part):
                assert "ε" in part, part


def test_mu_without_epsilon_is_withheld() -> None:
    item = row(0.1, False)
    item.privacy = item.privacy.model_copy(update={"epsilon_sequence": None, "caveat": ""})
    board = make_board(rows=[item])
    cell = tables.parameter_cell(item)
    assert cell.text == words.MISSING
    assert "not shown" in cell.title
    assert "21.4" not in render_markdown(board)


def test_missing_values_say_why() -> None:
    board = make_board(rows=[row(0.1, True, retained=None)])
    cell = next(cell for name, cell in shown(board).items() if name.startswith("R"))
    assert cell.text == words.MISSING
    assert "controls" in cell.title


def test_sample_size_moves_into_the_cells_where_it_differs() -> None:
    board = make_board(rows=[row("clean", False), row("mean", False)])
    entries = arrange.entries(board.rows)
    assert "n = 96" in tables.columns(board, entries)[0].small
    board.rows[0].perplexity.n = 95
    column = tables.columns(board, entries)[0]
    assert column.small == ("no soft prompt",)
    assert "n = 95" in column.cell(entries[0]).small


def test_one_line_keeps_number_and_small_type_apart() -> None:
    assert tables.Cell("25.4", ("[23.1, 27.4]", "n = 95")).line == "25.4 [23.1, 27.4]; n = 95"
    assert tables.Cell("16", ("1150× vs fp32",), mark="a").line == "16, 1150× vs fp32 (a)"
    assert tables.Cell("16").line == "16"


def test_nothing_sent_is_infinitely_smaller() -> None:
    cell = tables.bits_cell(row("mean", False).communication)
    assert cell.text == "0"
    assert cell.small == ("∞× vs fp32",)


def test_markdown_cannot_be_broken_by_text() -> None:
    board = make_board(notes=["a | b\n<img src=x> [link](http://x)"], title="T\n# U")
    text = render_markdown(board)
    assert r"a \| b &lt;img src=x&gt; [link]\(http://x)" in text
    assert text.startswith("# T # U\n")


@pytest.mark.parametrize("make", [make_board, make_large_board])
def test_console_table_shows_every_entry_in_100_columns(make: Callable[[], Leaderboard]) -> None:
    board = make()
    console = Console(width=100)
    with console.capture() as capture:
        console.print(console_table(board))
    printed = capture.get()
    assert "…" not in printed
    for group in arrange.groups(board):
        assert group.title in printed
        for entry in group.entries:
            assert (entry.name if group.together else entry.row.label) in printed
            if entry.plain.perplexity is not None:
                assert f"{entry.plain.perplexity.value:,.1f}" in printed
    assert BARE_MU.search(printed) is None


def test_console_table_keeps_its_columns_in_80_columns() -> None:
    board = make_large_board()
    console = Console(width=80)
    with console.capture() as capture:
        console.print(console_table(board))
    printed = capture.get()
    assert "…" not in printed
    lines = [line.split() for line in printed.splitlines() if line.startswith("DEL ")]
    assert len(lines) == sum(entry.is_reference for group in arrange.groups(board) for entry in group.entries)
    assert {line[-1] for line in lines} == {"72"}  # bits, the last column


def test_console_table_does_not_read_markup() -> None:
    board = make_board(rows=[row("clean", False, label="[red]x[/nope]")])
    console = Console(width=200)
    with console.capture() as capture:
        console.print(console_table(board))
    assert "[red]x[/nope]" in capture.get()


def test_calibration_without_its_row_shows_no_mu() -> None:
    lines = tables.calibration_rows(make_board(rows=[row(0.1, False)]))
    assert [line["Matched by"] for line in lines] == ["nearest-neighbour ASR 0.02", "nearest-neighbour ASR 0.1"]
    assert lines[0]["Parameter, exact ε"] == words.MISSING
    assert BARE_MU.search(lines[1]["Parameter, exact ε"])
    assert "exact ε" in lines[1]["Parameter, exact ε"]


def test_calibration_lists_what_was_asked_for() -> None:
    lines = tables.calibration_rows(make_large_board())
    assert len(lines) == 15 * 2 * 2
    assert any(line["Parameter, exact ε"].startswith("η = ") for line in lines)


def test_parameters_come_with_what_they_guarantee() -> None:
    cell = tables.parameter_cell(row(0.1, False), "a")
    assert cell.text == "μ 21.4"
    assert cell.small[:2] == ("μ eff 19.1", "ε 231 a token")
    assert cell.line.endswith("(a)")
    metric = tables.parameter_cell(other_row("metric", "nearest", 0.1, False), "b")
    assert metric.text.startswith("η ")
    assert metric.small == ("no ε follows",)
    tokens = tables.parameter_cell(other_row("santext", "nearest", 0.1, False))
    assert tokens.text.startswith("ε ")
    assert tokens.small[0] == "a token"
    assert "61 tokens" in tokens.small[1]
    assert tables.parameter_cell(row("clean", False)).text == words.MISSING


def test_difference_inside_the_noise_is_called_so() -> None:
    def pick(item: LeaderboardRow) -> Estimate | None:
        return None if item.difference is None else item.difference.nll

    unsure = other_row("gaussian-code", "nearest", 0.1, True)
    assert tables.difference_cell(unsure, pick).text == "inside the noise"
    clear = other_row("metric-snd", "nearest", 0.1, True)
    assert tables.difference_cell(clear, pick).text.startswith("+")
    assert tables.difference_cell(row(0.1, True), pick).text == "reference"
    assert tables.difference_cell(row("clean", True), pick).text == words.MISSING


def test_row_without_perplexity_has_its_other_columns() -> None:
    item = other_row("inferdpt", "nearest", 0.1, False)
    cells = shown(make_board(rows=[row(0.1, False), item]) if item.soft_prompt else make_board(rows=[item]))
    assert cells["PPL (no soft prompt)"].text == words.MISSING
    assert cells["COH[all-minilm-l6-v2] (no soft prompt"].text != words.MISSING


def test_certified_bound_below_the_measured_rate_stands_out() -> None:
    assert tables.certified_cell(row(0.1, False)).text == "≤ 100.0%"  # .9991, rounded up
    assert tables.certified_cell(row(0.1, False, certified=0.2)).small == ("below the measured rate",)
    assert tables.certified_cell(row("clean", False)).text == words.MISSING


def test_worst_attack_is_named() -> None:
    cell = tables.worst_cell(other_row("metric", "nearest", 0.1, False), 1220)
    assert cell.small[-1] == "LM prior, marginals"


def test_device_table_has_one_line_a_method() -> None:
    lines = tables.device_rows(make_large_board())
    assert len(lines) == len({line["Method"] for line in lines}) == 18
    assert next(line for line in lines if line["Method"] == "DEL")["Bytes"] == "3.38\u00a0MiB"
    assert tables.device_rows(make_board(rows=[row("clean", False, device=None)])) == []


def test_soft_prompts_that_differ_from_the_rest_say_so() -> None:
    board = make_board()
    assert tables.shared_prompt_size(board) == "20 virtual tokens, 150 steps"
    group = arrange.groups(board)[1]
    longer = only(row(0.1, True, prompt_steps=200))
    assert tables.method_cell(board, group, longer).small == ("20 virtual tokens, 200 steps",)
    assert tables.method_cell(board, group, only(row(0.1, True))).small == ()


def test_targets_out_of_reach_are_marked() -> None:
    board = make_board()
    board.calibrations[0].found["nearest"][0].reached = False
    group = arrange.groups(board)[1]
    marked = [tables.method_cell(board, group, entry).small for entry in group.entries]
    assert marked == [("target out of reach",), ()]


def test_further_measures_of_the_attacks_have_a_line_each() -> None:
    recovery = {OPTIMAL: {"top-1": rate(0.26), "top-5": rate(0.41)}, NEAREST: {"top-1": rate(0.1)}}
    first, second = tables.recovery_rows(make_board(rows=[row(0.1, False, recovery=recovery)]))
    size = words.count(4812)
    equal = f"{words.NO_BREAK}={words.NO_BREAK}"
    five = f"All tokens, five guesses (n{equal}{size})"
    assert list(first) == [
        *("Method", "Attack", "Certified bound, first guess"),
        *(f"All tokens, first guess (n{equal}{size})", five),
    ]
    assert (first["Attack"], second["Attack"]) == ("Bayes-optimal", "nearest neighbour")
    assert first[five].startswith("41.0% [39.6,")
    assert second[five] == words.MISSING
    assert tables.recovery_rows(make_board()) == []


def test_every_measure_of_an_attack_has_a_heading_in_words_and_shares_are_in_per_cent() -> None:
    shares = [f"{kind}top-{k}" for kind in ("", "content ", "last ") for k in (1, 5, 10)] + ["unknown top-1", "exact"]
    few = {name: rate(0.5, 40) for name in shares} | {"rouge-l": rate(0.5, 40)}
    more = {name: rate(0.25) for name in few}
    recovery = {"nearest neighbour (l2)": few, "nearest neighbour (code)": more}
    first, second = tables.recovery_rows(make_board(rows=[row(0.1, False, recovery=recovery)]))
    names = list(first)[3:]
    assert len(names) == len(few)
    assert not any(re.search(r"top-|exact|rouge|unknown", name) for name in names)
    assert (first["Attack"], second["Attack"]) == ("nearest neighbour, L2", "nearest neighbour on the code")
    assert all(first[name].startswith("50.0% [") and first[name].endswith(", n = 40") for name in names[:-1])
    assert first["ROUGE-L of the text"].startswith("0.500 [")


@pytest.mark.parametrize("value", [0.0, 0.0004, 0.098])
def test_attack_success_is_in_per_cent_in_every_table(value: float) -> None:
    board = make_board(rows=[row(0.1, False, asr={NEAREST: rate(value), OPTIMAL: rate(value)}, certified=0.5)])
    cells = shown(board)
    assert cells["ASR (nearest neighbour"].text == cells["ASR (worst of all"].text == f"{value:.1%}"
    assert cells["ASR (nearest neighbour"].sort == value
    assert cells["Certified (bound on ASR)"].text == "≤ 50.0%"


def test_attacks_are_compared_a_setting_a_line() -> None:
    board = make_board(attacked=[attacked("DEL, ASR 0.1", 0.1, 0.19, 0.26), attacked("DEL", 0.2, 0.3, None)])
    first, second = tables.attacked_rows(board)
    assert first["Method"] == "DEL, ASR 0.1"
    assert first["Parameter, exact ε"].startswith("μ")
    assert "ε" in first["Parameter, exact ε"]
    assert first[OPTIMAL].startswith("19.0% [")
    assert first["Certified, one token"] == "≤ 41.0%"
    assert first["Bayes-optimal − nearest neighbour"] == "+9.0 [+8.0,\u00a0+10.0]"
    assert second["LM prior, marginals"] == second["LM prior, marginals − Bayes-optimal"] == words.MISSING
    assert "## Every attack at every setting" in render_markdown(board)
    assert tables.attacked_rows(make_board()) == []


def test_sort_key_of_infinite_values_is_a_number() -> None:
    cell = tables.estimate_cell(row("clean", False, perplexity={"value": math.inf, "n": 3}).perplexity, "", 3)
    assert cell.text == "∞"
    assert cell.sort == math.inf
