"""One self-contained HTML page, and the folder that holds it with its Markdown and JSON twins.

The page loads nothing: styles, script and figures are inline, and its content security policy has the browser
refuse everything else. Texts of models and data sets are hostile until proven otherwise, so everything is escaped
except the figures, the style sheet and the script, which are ours.
"""

import base64
import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from omegaconf import OmegaConf

from del_lightning.artifacts import write_json, write_text
from del_lightning.report import plots, tables, words
from del_lightning.report.schema import Leaderboard, Sample

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class _Figure:
    """Inline SVG with its text alternative."""

    svg: Markup
    alt: str
    caption: str


def _figure(svg: str, alt: str, caption: str = "") -> _Figure | None:
    # The SVG is ours: matplotlib escapes the labels in it.
    return _Figure(Markup(svg), alt, caption) if svg else None


def _utility_figures(board: Leaderboard) -> list[_Figure]:
    alt = "{} against measured attack success rate, a point a row; the leaderboard holds the numbers."
    figures = (
        _figure(plots.privacy_utility(board, "perplexity"), alt.format("Perplexity")),
        _figure(plots.privacy_utility(board, "coherence"), alt.format("Coherence")),
    )
    return [figure for figure in figures if figure is not None]


def _communication_figure(board: Leaderboard) -> _Figure | None:
    sizes = plots.payloads(board)
    alt = "; ".join(f"{name} {words.count(bits)}" for name, bits, _ in sizes)
    caption = "Payload of one private token before entropy coding and framing; savings against an fp32 embedding."
    text = [bits for name, bits, _ in sizes if name == plots.TEXT]
    tested = [bits for _, bits, is_tested in sizes if is_tested]
    if text and tested and text[0] < min(tested):
        caption += " The text itself is smaller than any code here: what is saved is saved against sending embeddings."
    return _figure(plots.communication(board), f"Bits a token: {alt}.", caption)


def _calibration_figure(board: Leaderboard) -> _Figure | None:
    caption = (
        "Every setting tried, with its 95% interval; in colour the settings returned. Here μ is only the parameter "
        "that is searched: what it guarantees stands in the table."
    )
    return _figure(plots.calibration(board), "Measured attack success rate against the parameter tried.", caption)


def _curve_figures(board: Leaderboard) -> list[_Figure]:
    figures = (_figure(svg, f"Validation perplexity of {name}.", name) for name, svg in plots.training_curves(board))
    return [figure for figure in figures if figure is not None]


def _ordered_samples(board: Leaderboard, samples: list[Sample]) -> list[dict[str, Any]]:
    """Samples with their continuations in the leaderboard's order; names that it does not know come last."""
    order = {words.row_name(row): row.soft_prompt for _, rows in words.groups(board) for row in rows}
    shown = []
    for sample in samples:
        names = [name for name in order if name in sample.continuations]
        names += [name for name in sample.continuations if name not in order]
        texts = [
            {
                "name": name,
                "text": sample.continuations[name],
                "soft_prompt": order.get(name, name.endswith("+ soft prompt")),
            }
            for name in names
        ]
        shown.append({"prompt": sample.prompt, "reference": sample.reference, "texts": texts})
    return shown


def command(board: Leaderboard) -> str:
    """Command line that repeats the run, as it was typed; folders of the machine it ran on are left to the reader."""
    arguments = [*board.overrides] or ["stage=pipeline"]
    return " ".join(["python -m del_lightning", *(shlex.quote(argument) for argument in arguments)])


def _contents(context: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(anchor, name) of the sections that the page has."""
    sections = (
        ("leaderboard", "Leaderboard", True),
        ("privacy-utility", "Privacy against utility", context["utility"]),
        ("communication", "Communication", context["communication"]),
        ("training", "Training", context["curves"]),
        ("calibration", "Calibration", context["calibrations"]),
        ("samples", "Continuations", context["samples"]),
        ("guarantees", "Guarantees", context["statements"]),
        ("configuration", "Configuration", True),
        ("environment", "Environment", True),
        ("reproduce", "Reproduce", True),
        ("glossary", "Glossary", True),
    )
    return [(anchor, name) for anchor, name, present in sections if present]


def _context(board: Leaderboard, samples: list[Sample]) -> dict[str, Any]:
    columns = tables.columns(board)
    groups = [
        (name, [(row, [column.cell(row) for column in columns]) for row in rows]) for name, rows in words.groups(board)
    ]
    return {
        "board": board,
        "generated": words.moment(board.generated),
        "wall": words.duration(board.wall_seconds),
        "summary": words.summary(board),
        "warnings": words.warnings(board),
        "columns": columns,
        "groups": groups,
        "utility": _utility_figures(board),
        "communication": _communication_figure(board),
        "curves": _curve_figures(board),
        "calibrations": tables.calibration_rows(board),
        "evidence": _calibration_figure(board),
        "samples": _ordered_samples(board, samples),
        "statements": [(row.label, words.privacy_statement(row)) for row in words.tested_settings(board)],
        "configuration": OmegaConf.to_yaml(OmegaConf.create(board.config)),
        "environment": tables.environment_rows(board.environment),
        "command": command(board),
        "glossary": words.GLOSSARY,
    }


def render_html(board: Leaderboard, samples: list[Sample]) -> str:
    """The whole report as one HTML page that needs no other file and no network.

    Args:
        board: What was measured.
        samples: Continuations to show side by side; may be empty.
    """
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
    css = (_FOLDER / "page.css").read_text(encoding="utf-8")
    environment = Environment(loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined)
    context = _context(board, samples)
    page = environment.get_template("template.html.j2").render(
        context,
        contents=_contents(context),
        css=Markup(css),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    # A tokenizer may decode half a surrogate pair, which no file can hold.
    return page.encode(errors="replace").decode()


def write_report(folder: Path, board: Leaderboard, samples: list[Sample]) -> Path:
    """Write ``index.html``, ``report.md`` and ``leaderboard.json`` into ``folder``, which is created.

    Only the page holds text of the data set, and only that of ``samples``.

    Returns:
        Path of ``index.html``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "leaderboard.json", board)
    write_text(folder / "report.md", tables.render_markdown(board))
    write_text(folder / "index.html", render_html(board, samples))
    return folder / "index.html"
