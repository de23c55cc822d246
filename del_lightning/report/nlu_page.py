"""The files of stage ``nlu``'s report: Markdown, one page, and the numbers."""

from pathlib import Path
from typing import Any

from markupsafe import Markup
from omegaconf import OmegaConf

from del_lightning.artifacts import write_text
from del_lightning.report import drawing, nlu, nlu_plots, nlu_prose, words
from del_lightning.report.markdown import escape, markdown_rows, markdown_table
from del_lightning.report.paired import READING, difference_rows
from del_lightning.report.rendering import ALONE, Place, command, render
from del_lightning.report.schema import NluLeaderboard
from del_lightning.report.stored import write_board
from del_lightning.report.tables import environment_rows


def render_markdown(board: NluLeaderboard) -> str:
    """The report as Markdown. No data-set text."""
    shown = nlu.columns(board)
    lines = [
        [nlu.front_name(board, front), *(column.cell(front).line for column in shown)] for front in nlu.fronts(board)
    ]
    never = ", ".join(
        f"{nlu.FIGURES[name]} {words.number(nlu.majority(board).over_seeds[name].value)}" for name in nlu.figures(board)
    )
    parts = [f"# {escape(board.title)}", escape(" ".join([nlu_prose.setup(board), *nlu_prose.outcome(board)]))]
    parts += [
        "## Leaderboard",
        f"{nlu_prose.averaged(board)}. Majority class: {never}.",
    ]
    parts += [markdown_table(["Front-end", *(escape(column.line) for column in shown)], lines)]
    parts += ["## Cost", markdown_rows(nlu.cost_rows(board))]
    if validation := nlu.validation_rows(board):
        parts += ["## What trainings reached on held-out examples", markdown_rows(validation)]
    if differences := difference_rows(board):
        parts += ["## Compared in pairs", READING, markdown_rows(differences)]
    if attributes := nlu.attribute_rows(board):
        parts += ["## What can be inferred of a whole text", markdown_rows(attributes)]
    parts += ["## Notes", "\n".join(f"- {escape(note)}" for note in nlu_prose.notes(board)) or "None."]
    parts += ["## Environment", markdown_table(["", ""], [list(line) for line in environment_rows(board.environment)])]
    took = f"Generated {words.moment(board.generated)}; the runs behind it took {words.duration(board.wall_seconds)}."
    parts += [took, "More: [figures](index.html), [all numbers](leaderboard.json)."]
    return "\n\n".join(parts) + "\n"


def _context(board: NluLeaderboard) -> dict[str, Any]:
    shown = nlu.columns(board)
    pictures = [
        (f"{nlu.FIGURES[figure]} against attack success, {nlu.VARIANTS[variant]}.", Markup(svg), names)
        for figure in ("auc", "accuracy")
        for variant in nlu.variants(board)
        if (names := nlu_plots.drawn(board, variant)) and (svg := nlu_plots.utility(board, variant, figure))
    ]
    return {
        "board": board,
        "generated": words.moment(board.generated),
        "wall": words.duration(board.wall_seconds),
        "setup": nlu_prose.setup(board),
        "outcome": nlu_prose.outcome(board),
        "averaged": nlu_prose.averaged(board),
        "columns": shown,
        "rows": [(front, [column.cell(front) for column in shown]) for front in nlu.fronts(board)],
        "majority": [
            (nlu.FIGURES[name], words.number(nlu.majority(board).over_seeds[name].value)) for name in nlu.figures(board)
        ],
        "pictures": pictures,
        "styles": nlu_plots.styles(board),
        "shapes": drawing.shapes(),
        "mechanism": nlu.mechanism,
        "front_name": nlu.front_name,
        "costs": nlu.cost_rows(board),
        "validation": nlu.validation_rows(board),
        "notes": nlu_prose.notes(board),
        "attributes": nlu.attribute_rows(board),
        "differences": difference_rows(board),
        "reading": READING,
        "configuration": OmegaConf.to_yaml(OmegaConf.create(board.config)),
        "environment": environment_rows(board.environment),
        "command": command(board),
        "glossary": nlu.GLOSSARY,
    }


def render_html(board: NluLeaderboard, place: Place = ALONE) -> str:
    """The whole report as one HTML page that needs no other file and no network; ``place``: where it will lie."""
    return render("nlu.html.j2", {**_context(board), "place": place})


def write_nlu_report(folder: Path, board: NluLeaderboard) -> Path:
    """Write ``index.html``, ``report.md`` and ``leaderboard.json`` into ``folder``, which is created.

    None of them holds text of the data set.

    Returns:
        Path of ``index.html``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_board(folder / "leaderboard.json", board)
    write_text(folder / "report.md", render_markdown(board))
    write_text(folder / "index.html", render_html(board))
    return folder / "index.html"
