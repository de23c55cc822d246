"""Soft prompts away from where they were trained: the table, for Markdown and the terminal."""

from rich.box import SIMPLE_HEAD
from rich.table import Table

from del_lightning.report import words
from del_lightning.report.schema import PairedDifference, TransferBoard, TransferCell

HEADINGS = ("used at mu", "trained on", "trained at mu", "PPL", "COH", "NLL − matched", "NLL − none")


def origin(cell: TransferCell) -> tuple[str, str]:
    """Where the soft prompt of a cell comes from: data set and mu."""
    if cell.trained_on is None or cell.trained_at is None:
        return ("no soft prompt", words.MISSING)
    return (cell.trained_on, words.number(cell.trained_at))


def render_markdown(board: TransferBoard) -> str:
    """The whole table with intervals."""
    lines = [
        f"# {board.title}",
        "",
        f"{board.model}, {board.dataset}, {board.prompts} prompts, {words.count(board.private_tokens)} private tokens; "
        f"DEL with d = {board.dim}, n = {board.bits}; {board.virtual_tokens} virtual tokens. "
        f"{words.schedule(board)}".rstrip(),
        "",
        "Differences are in nats a token, paired over prompts, with 95% intervals; above 0: worse.",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "| " + " | ".join("---" for _ in HEADINGS) + " |",
    ]
    lines += ["| " + " | ".join(cells(cell)) + " |" for cell in board.cells]
    return "\n".join([*lines, ""])


def cells(cell: TransferCell) -> list[str]:
    """A line of the table, in the order of :data:`HEADINGS`."""
    return [
        words.number(cell.used_at),
        *origin(cell),
        words.with_interval(cell.perplexity),
        words.with_interval(cell.coherence),
        _nll(cell.over_matched),
        _nll(cell.over_none),
    ]


def _nll(difference: PairedDifference | None) -> str:
    if difference is None or difference.nll is None:
        return words.MISSING
    return words.with_interval(difference.nll)


def console_table(board: TransferBoard) -> Table:
    """Values only; the report has the intervals."""
    table = Table(title=board.title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "trained on" else "right")
    for cell in board.cells:
        pairs = (cell.over_matched, cell.over_none)
        differences = [words.MISSING if p is None or p.nll is None else f"{p.nll.value:+.3f}" for p in pairs]
        figures = (f"{cell.perplexity.value:.1f}", f"{cell.coherence.value:.3f}", *differences)
        table.add_row(words.number(cell.used_at), *origin(cell), *figures)
    table.caption = f"{board.prompts} prompts; differences in nats a token, above 0: worse. The report has intervals."
    table.caption_justify = "left"
    return table
