"""One self-contained HTML page, and the folder that holds it with its Markdown and JSON twins.

The page loads nothing: styles, script and figures are inline (:mod:`del_lightning.report.rendering`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from omegaconf import OmegaConf

from del_lightning.artifacts import write_text
from del_lightning.report import arrange, attack_plots, cautions, drawing, gallery, plots, prose, tables, words
from del_lightning.report.markdown import render_markdown
from del_lightning.report.rendering import ALONE, Place, command, encodable, render
from del_lightning.report.schema import GalleryPrompt, Leaderboard, Sample, Texts
from del_lightning.report.stored import write_board

OPEN_ENTRIES = 24
"""Lines of a leaderboard that is shown in full; of a larger one some groups start closed."""
OPEN_STATEMENTS = 8
"""Guarantees in words that are shown in full."""


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
    alt = "{} against the worst-case attack success rate, a curve a method; the leaderboard holds the numbers."
    figures = [
        _figure(plots.utility_curves(board, name), alt.format(metric.title)) for name, metric in plots.METRICS.items()
    ]
    target = arrange.headline_target(board)
    caption = "" if target is None else f"At ASR target {target:g}. Methods with equal payloads stand side by side."
    figures.append(_figure(plots.utility_bits(board), "Utility against bits a token.", caption))
    return [figure for figure in figures if figure is not None]


def _communication_figure(board: Leaderboard) -> _Figure | None:
    sizes = plots.payloads(board)
    alt = "; ".join(f"{name} {words.count(bits)}" for name, bits, _ in sizes)
    caption = "Payload of one private token before entropy coding and framing; savings against an fp32 embedding."
    text = [bits for name, bits, _ in sizes if name == plots.TEXT]
    codes = [bits for _, bits, is_tested in sizes if is_tested and bits not in text]
    if text and codes and text[0] < min(codes):
        caption += " The text itself is smaller than any code here: what is saved is saved against sending embeddings."
    return _figure(plots.communication(board), f"Bits a token: {alt}.", caption)


def _calibration_figures(board: Leaderboard) -> list[_Figure]:
    alt = "Measured attack success rate of {} against the parameter tried."
    figures = (_figure(svg, alt.format(name), name) for name, svg in attack_plots.calibrations(board))
    return [figure for figure in figures if figure is not None]


def _attack_figures(board: Leaderboard) -> list[_Figure]:
    alt = "Success of every attack on {} against the privacy parameter, with the certified bound."
    figures = (_figure(svg, alt.format(name), name) for name, svg in attack_plots.attack_curves(board))
    return [figure for figure in figures if figure is not None]


def _curve_figures(board: Leaderboard) -> list[_Figure]:
    figures = (_figure(svg, f"Validation perplexity of {name}.", name) for name, svg in plots.training_curves(board))
    return [figure for figure in figures if figure is not None]


def _ordered_samples(board: Leaderboard, samples: list[Sample]) -> list[dict[str, Any]]:
    """Samples with their continuations in the leaderboard's order; names that it does not know come last.

    Those of settings that the summary does not quote stand apart: a large leaderboard has a hundred of them.
    """
    order: dict[str, tuple[bool, bool]] = {}
    for group in arrange.groups(board):
        for row in (row for entry in group.entries for row in entry.rows):
            order.setdefault(words.row_name(row), (row.soft_prompt, group.headline))
    return [_ordered_sample(sample, order) for sample in samples]


def _ordered_sample(sample: Sample, order: Mapping[str, tuple[bool, bool]]) -> dict[str, Any]:
    names = [name for name in order if name in sample.continuations]
    names += [name for name in sample.continuations if name not in order]
    texts: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for name in names:
        soft_prompt, quoted = order.get(name, (name.endswith("+ soft prompt"), True))
        texts[quoted].append({"name": name, "text": sample.continuations[name], "soft_prompt": soft_prompt})
    return {"prompt": sample.prompt, "reference": sample.reference, "texts": texts[True], "more": texts[False]}


def _table(board: Leaderboard) -> list[dict[str, Any]]:
    """Groups of the leaderboard with their cells; in a large one only what the summary quotes starts open."""
    found = arrange.groups(board)
    small = sum(len(group.entries) for group in found) <= OPEN_ENTRIES
    shown = []
    for group in found:
        columns = tables.columns(board, group.entries)
        rows = [
            (entry, tables.method_cell(board, group, entry), [column.cell(entry) for column in columns])
            for entry in group.entries
        ]
        shown.append({"group": group, "open": small or group.headline, "columns": columns, "rows": rows})
    return shown


def _statements(board: Leaderboard) -> tuple[list[tuple[str, list[str]]], list[tuple[str, list[str]]]]:
    """(label, sentences) of the settings that the summary quotes, and of all others."""
    first = [entry for entry in arrange.representatives(board) if not entry.row.is_control]
    rest = [entry for entry in arrange.tested(board) if entry not in first]
    if len(first) + len(rest) <= OPEN_STATEMENTS:
        first, rest = arrange.tested(board), []

    def told(entries: list[arrange.Entry]) -> list[tuple[str, list[str]]]:
        return [(entry.row.label, prose.privacy_statement(entry.row)) for entry in entries]

    return told(first), told(rest)


def _contents(context: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(anchor, name) of the sections that the page has."""
    sections = (
        ("leaderboard", "Leaderboard", True),
        ("privacy-utility", "Privacy against utility", context["utility"]),
        ("communication", "Communication", context["communication"]),
        ("attack-curves", "Attacks over privacy", context["attack_curves"]),
        ("attacked", "Attacks compared", context["attacked"]),
        ("recovery", "Attacks", context["recovered"]),
        ("gallery", "What is read", context["gallery"]),
        ("device", "On the device", context["devices"]),
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


def _context(board: Leaderboard, samples: list[Sample], prompts: Sequence[GalleryPrompt]) -> dict[str, Any]:
    statements, other_statements = _statements(board)
    return {
        "board": board,
        "generated": words.moment(board.generated),
        "wall": words.duration(board.wall_seconds),
        "setup": prose.setup(board),
        "outcome": prose.outcome(board),
        "winners": list(prose.winners(board)),
        "warnings": cautions.warnings(board),
        "groups": _table(board),
        "absent": tables.out_of_reach_rows(board),
        "reading_note": tables.reading_note(board),
        "caveats": cautions.caveats(board),
        "shapes": drawing.shapes(),
        "styles": drawing.styles(board),
        "methods": arrange.method_names(board),
        "utility": _utility_figures(board),
        "many": len(arrange.method_names(board)) > plots.MANY,
        "communication": _communication_figure(board),
        "attack_curves": _attack_figures(board),
        "attacked": tables.attacked_rows(board),
        "attacked_note": tables.ATTACKED_NOTE,
        "recovered": tables.recovery_rows(board),
        "gallery": gallery.shown(prompts),
        "devices": tables.device_rows(board),
        "curves": _curve_figures(board),
        "calibrations": tables.calibration_rows(board),
        "evidence": _calibration_figures(board),
        "samples": _ordered_samples(board, samples),
        "statements": statements,
        "other_statements": other_statements,
        "configuration": OmegaConf.to_yaml(OmegaConf.create(board.config)),
        "environment": tables.environment_rows(board.environment),
        "command": command(board),
        "glossary": words.GLOSSARY,
    }


def render_html(
    board: Leaderboard, samples: list[Sample], prompts: Sequence[GalleryPrompt] = (), place: Place = ALONE
) -> str:
    """The whole report as one HTML page that needs no other file and no network.

    Args:
        board: What was measured.
        samples: Continuations to show side by side; may be empty.
        prompts: What attacks read of some prompts; may be empty.
        place: Where the page will lie.
    """
    context = _context(board, samples, prompts)
    return render("template.html.j2", {**context, "contents": _contents(context), "place": place})


def write_report(
    folder: Path, board: Leaderboard, samples: list[Sample], prompts: Sequence[GalleryPrompt] = ()
) -> Path:
    """Write ``index.html``, ``report.md``, ``leaderboard.json`` and ``texts.json`` into ``folder``, which is created.

    Only the page and ``texts.json``, from which a site of many runs takes them, hold text of the data set, and only
    that of ``samples`` and ``prompts``.

    Returns:
        Path of ``index.html``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_board(folder / "leaderboard.json", board)
    texts = Texts(title=board.title, generated=board.generated, samples=samples, gallery=list(prompts))
    write_text(folder / "texts.json", encodable(json.dumps(texts.model_dump(mode="json"), ensure_ascii=False)) + "\n")
    write_text(folder / "report.md", render_markdown(board))
    write_text(folder / "index.html", render_html(board, samples, prompts))
    return folder / "index.html"
