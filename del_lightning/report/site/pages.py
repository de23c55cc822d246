"""The pages of a site: all runs side by side, the replication of the paper, and a page for every run."""

import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from del_lightning.artifacts import write_text
from del_lightning.errors import ArtifactError
from del_lightning.report import drawing, nlu_page, page, tables, transfer, words
from del_lightning.report.rendering import Place, render
from del_lightning.report.schema import Leaderboard, TransferBoard
from del_lightning.report.site import coverage, figures, overview, replication
from del_lightning.report.site.runs import Run

HOME = "index.html"
REPLICATION = "replication.html"
_OWN = re.compile(rf"{re.escape(HOME)}|{re.escape(REPLICATION)}|runs(/[a-z0-9.-]+\.html)?")
"""Paths of a site's own files and folders: those of :attr:`Run.page` and the two above."""
_STYLES = ("page.css", "site/site.css")
_SCRIPTS = ("page.js", "site/site.js")
_WORDS = {
    "agrees": "agrees",
    "disagrees": "disagrees",
    "partly": "agrees in part",
    "mixed": "agrees and disagrees",
    "undecided": "undecided",
    "not run": "not run",
}
"""Verdict -> what the page says; its colour is that of the verdict's class."""


def write_site(folder: Path, runs: Sequence[Run]) -> Path:
    """Write the site of these runs; an earlier one in the folder is replaced once this one is complete.

    Equal runs give equal bytes: no clock enters, and every order is that of the runs.

    Returns:
        Path of the page of all runs.

    Raises:
        ArtifactError: The folder holds something else.
    """
    check_free(folder)
    made, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    for left in (made, old):
        shutil.rmtree(left, ignore_errors=True)
    (made / "runs").mkdir(parents=True)
    findings = [(item, item.rule(runs)) for item in replication.ITEMS]
    write_text(made / HOME, _home(runs, findings))
    write_text(made / REPLICATION, _replication(runs, findings))
    for run in runs:
        write_text(made / run.page, _run_page(run))
    if folder.exists():
        folder.rename(old)
    made.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder / HOME


def check_free(folder: Path) -> None:
    """Find out whether a site may be written there: nothing of somebody else's may be lost with an earlier site.

    Raises:
        ArtifactError: The folder holds a file that no site has, or is none.
    """
    found = _foreign(folder)
    if found is not None:
        raise ArtifactError(f"`out`: {folder} must be free for the site or hold an earlier one, got {found}: move it")


def _foreign(folder: Path) -> Path | None:
    """What lies in the way of a site; None where the folder is free or holds a site and nothing else."""
    if not folder.is_dir():
        return folder if folder.exists() else None
    paths = sorted(folder.rglob("*"))
    foreign = [path for path in paths if not _OWN.fullmatch(path.relative_to(folder).as_posix())]
    # An index.html alone may be anybody's; every site has the other page too.
    return next(iter(foreign if foreign or (folder / REPLICATION).exists() else paths), None)


def _run_page(run: Run) -> str:
    """The report of one run, as it stands beside its results, with the way back."""
    place = Place(twins=(), home=f"../{HOME}")
    if isinstance(run.board, TransferBoard):
        return _transfer_page(run.board)
    if not isinstance(run.board, Leaderboard):
        return nlu_page.render_html(run.board, place)
    if run.texts is None:
        return page.render_html(run.board, [], place=place)
    return page.render_html(run.board, run.texts.samples, run.texts.gallery, place)


def _transfer_page(board: TransferBoard) -> str:
    context = {
        "title": board.title,
        "board": board,
        "home": f"../{HOME}",
        "headings": transfer.HEADINGS,
        "lines": [transfer.cells(cell) for cell in board.cells],
        "private": words.count(board.private_tokens),
        "generated": words.moment(board.generated),
        "wall": words.duration(board.wall_seconds),
        "guarantees": [(words.number(float(mu)), words.guarantee(one)) for mu, one in board.privacy.items()],
        "configuration": OmegaConf.to_yaml(OmegaConf.create(board.config)),
        "environment": tables.environment_rows(board.environment),
    }
    return render("site/transfer.html.j2", context, styles=_STYLES, scripts=_SCRIPTS)


def _home(runs: Sequence[Run], findings: Sequence[tuple[replication.Item, Any]]) -> str:
    fronts, few = overview.fronts(runs), overview.covering(runs)
    generated, classified = overview.lines(runs, fronts, few), overview.nlu_lines(runs)
    some = any(line.run.slug not in few for line in generated)
    prompted = any(line.keys["prompt"] == overview.WITH_PROMPT for line in generated)
    styles = figures.method_styles(runs)
    nlu_styles, nlu_figures = figures.classification(runs)
    context = {
        "title": "Leaderboards",
        "runs": overview.run_rows(runs),
        "run_headings": ("Run", "Data", "Model", "Schedule", "Examples", "Repeats", "Methods", "Made"),
        "tables": [
            {
                "anchor": "generation",
                "title": "Text generation with soft prompts" if prompted else "Text generation",
                "caption": "a line a method and setting of each run; with filters above it",
                "headings": overview.HEADINGS,
                "lines": generated,
                "filters": overview.filters(generated),
            },
            {
                "anchor": "classification",
                "title": "Text classification",
                "caption": "a line a way to classify behind a front-end of each run; with filters above it",
                "headings": overview.NLU_HEADINGS,
                "lines": classified,
                "filters": overview.filters(classified),
            },
        ],
        "figure_groups": figures.groups(
            list(figures.generation([run for run in runs if run.slug in few], styles, fronts)), nlu_figures, some
        ),
        "marks": figures.marks(styles) | figures.marks(nlu_styles),
        "shapes": drawing.shapes(),
        "verdicts": _counted(findings),
        "replication": REPLICATION,
        "front": overview.ON_FRONT,
        "glossary": overview.glossary(),
    }
    return render("site/index.html.j2", context, styles=_STYLES, scripts=_SCRIPTS)


def _counted(findings: Sequence[tuple[replication.Item, Any]]) -> list[tuple[str, str, int]]:
    """(class, words, number) of every verdict that was reached."""
    found = Counter(finding.verdict for _, finding in findings)
    return [(verdict.replace(" ", "-"), text, found[verdict]) for verdict, text in _WORDS.items() if found[verdict]]


def _replication(runs: Sequence[Run], findings: Sequence[tuple[replication.Item, Any]]) -> str:
    items = [
        {
            "item": item,
            "class": finding.verdict.replace(" ", "-"),
            "verdict": _WORDS[finding.verdict],
            "finding": finding,
            "ours": replication.circumstances(finding),
            "coverage": coverage.lines(item.scope, finding),
            "code": coverage.provenance(finding.runs),
            "comparisons": [_comparison(one) for one in finding.comparisons],
        }
        for item, finding in findings
    ]
    used = {run.slug for _, finding in findings for run in finding.runs}
    context = {
        "title": "Replication of the paper",
        "items": items,
        "home": HOME,
        "verdicts": _counted(findings),
        "code": coverage.provenance([run for run in runs if run.slug in used]),
        "unused": len(runs) - len(used),
    }
    return render("site/replication.html.j2", context, styles=_STYLES, scripts=_SCRIPTS)


def _comparison(one: Any) -> dict[str, Any]:
    """A line of the table under a verdict."""
    measured = one.difference.interval != "exact"
    show = words.share if one.is_share else words.with_interval
    margin = f"{100 * -one.margin:g}".replace("-", "−") + " points" if one.is_share else words.number(-one.margin)
    return {
        "runs": one.runs,
        "what": one.what,
        "numbers": [(name, show(estimate)) for name, estimate in (one.first, one.second)],
        "difference": show(one.difference),
        "outcome": one.outcome,
        "margin": f"may be down to {margin}" if measured and one.margin else "",
        "class": one.outcome.replace(" ", "-"),
    }
