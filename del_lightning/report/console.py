"""The leaderboard in a terminal of 100 columns."""

from collections.abc import Callable

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from del_lightning.report import arrange, cautions, words
from del_lightning.report.arrange import Entry
from del_lightning.report.schema import Estimate, Leaderboard


def console_table(board: Leaderboard) -> Group:
    """The leaderboard for a terminal of 100 columns: values only, one block a group; the report has the intervals.

    Of the privacy figures it shows epsilon of a whole prompt, the one that needs no company.
    """
    groups = arrange.groups(board)
    width = max((len(_console_name(e, group)) for group in groups for e in group.entries), default=0)
    blocks = [_console_block(board, group, max(width, 12)) for group in groups]
    caption = f"{board.prompts} prompts; 95% intervals are in the report. ε: of a prompt{_length(board)}"
    caption += f", δ = {_delta(board)}."
    if absent := cautions.out_of_reach(board):
        blocks.append(_absent(absent))
    hidden = [Text(warning) for warning in cautions.last_token_warning(board)]
    return Group(Text(board.title, style="italic"), *blocks, *hidden, Text(caption, style="dim italic"))


_CONSOLE: tuple[tuple[str, str, Callable[[Entry], Estimate | None]], ...] = (
    ("R", ".3f", lambda entry: entry.retained),
    ("worst\nASR", ".1%", lambda entry: words.worst_attack(entry.row)),
    ("nearest\nASR", ".1%", lambda entry: words.attack_result(entry.row, words.is_nearest)),
    ("PPL", ",.1f", lambda entry: None if entry.plain is None else entry.plain.perplexity),
    ("PPL +\nprompt", ",.1f", lambda entry: None if entry.prompted is None else entry.prompted.perplexity),
)
"""Heading, format and content of the terminal's columns of estimates."""


def _console_name(entry: Entry, group: arrange.Group) -> str:
    return entry.name if group.together else entry.row.label


def _console_block(board: Leaderboard, group: arrange.Group, width: int) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False, show_edge=False)
    table.title, table.title_justify = Text(group.title, style="bold"), "left"
    table.add_column("Method", min_width=12)  # the only one that a narrow terminal may wrap
    for heading in (*(heading for heading, *_ in _CONSOLE), "certi-\nfied", "ε of a\nprompt", "bits a\ntoken"):
        table.add_column(heading, justify="right", no_wrap=True, min_width=max(map(len, heading.split("\n"))))
    for entry in group.entries:
        cells = [_plain(pick(entry), style) for _, style, pick in _CONSOLE]
        row = entry.row
        cells.append(words.MISSING if row.certified is None else words.at_most_percent(row.certified))
        epsilon = row.privacy.epsilon_sequence
        cells += [
            "none" if epsilon is None else words.at_most_whole(epsilon),
            f"{row.communication.bits_per_token:,.0f}",
        ]
        table.add_row(Text(_console_name(entry, group).ljust(width)), *cells)
    return table


def _absent(settings: list[cautions.OutOfReach]) -> Table:
    """Settings without a row: they stay in sight with the success that came closest to their target."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False, show_edge=False)
    table.title, table.title_justify = Text("Target not reached by any setting", style="bold"), "left"
    table.add_column("Method")
    table.add_column("ASR", justify="right", no_wrap=True)
    for one in settings:
        table.add_row(Text(one.label), cautions.not_reached(one))
    return table


def _plain(estimate: Estimate | None, style: str) -> str:
    return words.MISSING if estimate is None else format(estimate.value, style)


def _length(board: Leaderboard) -> str:
    """How long the prompt is that epsilon is told for; twice as long is nearly twice the epsilon and more."""
    lengths = {row.privacy.sequence_tokens for row in board.rows if row.privacy.sequence_tokens}
    return f" of {' or '.join(f'{length:,}' for length in sorted(lengths))} tokens" if lengths else ""


def _delta(board: Leaderboard) -> str:
    deltas = {row.privacy.delta for row in board.rows if row.privacy.delta}
    return ", ".join(words.setting(delta) for delta in sorted(deltas)) or words.MISSING
