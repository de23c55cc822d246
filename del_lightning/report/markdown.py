"""A report as Markdown: the same tables, without figures and samples."""

from del_lightning.report import arrange, cautions, prose, words
from del_lightning.report.schema import Leaderboard
from del_lightning.report.tables import (
    ATTACKED_NOTE,
    attacked_rows,
    calibration_rows,
    columns,
    device_rows,
    environment_rows,
    method_cell,
    out_of_reach_rows,
    reading_note,
    recovery_rows,
)


def escape(text: str) -> str:
    """Keep text from opening a cell, a tag, a link or a line of its own."""
    flat = " ".join(text.splitlines()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in ("\\", "|", "`", "*"):
        flat = flat.replace(mark, "\\" + mark)
    return flat.replace("](", "]\\(")


def markdown_table(heading: list[str], lines: list[list[str]]) -> str:
    """A table in Markdown; headings are taken as they are, cells are escaped."""
    rows = [heading, ["---"] * len(heading), *([escape(cell) for cell in line] for line in lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _markdown_group(board: Leaderboard, group: arrange.Group) -> str:
    shown = columns(board, group.entries)
    heading = ["Method", *(escape(column.line) for column in shown)]
    lines = [
        [method_cell(board, group, entry).line, *(column.cell(entry).line for column in shown)]
        for entry in group.entries
    ]
    return markdown_table(heading, lines)


def markdown_rows(rows: list[dict[str, str]]) -> str:
    """Rows with equal keys as a table in Markdown."""
    return markdown_table(list(rows[0]), [list(line.values()) for line in rows])


def render_markdown(board: Leaderboard) -> str:
    """The report as Markdown: summary, leaderboard, device, calibration, notes, environment. No data-set text."""
    parts = [f"# {escape(board.title)}", escape(" ".join(prose.summary(board)))]
    parts += ["## Leaderboard", escape(reading_note(board))]
    for group in arrange.groups(board):
        parts += [f"### {escape(group.title)}", _markdown_group(board, group)]
    if absent := out_of_reach_rows(board):
        parts += ["### Not reached", markdown_rows(absent)]
    if notes := cautions.caveats(board):
        parts += ["Caveats of the guarantees:", "\n".join(f"- {escape(note.line)}" for note in notes)]
    if devices := device_rows(board):
        parts += ["## On the user's device", markdown_rows(devices)]
    if recovered := recovery_rows(board):
        parts += ["## What each attack recovers", markdown_rows(recovered)]
    if attacked := attacked_rows(board):
        parts += ["## Every attack at every setting", markdown_rows(attacked), ATTACKED_NOTE]
    if calibrations := calibration_rows(board):
        parts += ["## Calibration", markdown_rows(calibrations)]
    parts += ["## Notes", "\n".join(f"- {escape(note)}" for note in cautions.warnings(board)) or "None."]
    environment = [[name, value] for name, value in environment_rows(board.environment)]
    parts += ["## Environment", markdown_table(["", ""], environment)]
    took = f"Generated {words.moment(board.generated)}; the runs behind it took {words.duration(board.wall_seconds)}."
    parts += [took, "More: [figures and samples](index.html), [all numbers](leaderboard.json)."]
    return "\n\n".join(parts) + "\n"
