"""Utility against the strongest attack, one figure a run, with the same colours and markers on the whole page."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from del_lightning.report import arrange, drawing, nlu, nlu_plots, plots
from del_lightning.report.drawing import Shared, Style
from del_lightning.report.schema import Leaderboard, NluLeaderboard
from del_lightning.report.site.overview import Fronts
from del_lightning.report.site.runs import Run

SHOWN = ("retained", "ppl-prompted", "ppl-plain")
"""The first of these that a run has is drawn: R says most, and perplexity without a soft prompt least."""


@dataclass(frozen=True)
class Drawn:
    """A figure of one run: its words for those who cannot see it, and the SVG."""

    run: Run
    alt: str
    svg: Markup


def method_styles(runs: Sequence[Run]) -> tuple[dict[str, Style], dict[str, str]]:
    """Style of every method under test in the runs that continue text, and its name."""
    names: dict[str, str] = {}
    for run in runs:
        if isinstance(run.board, Leaderboard):
            names = arrange.method_names(run.board) | names
    styles = drawing.styles_of(names) if names else {}
    return {method: style for method, style in styles.items() if method in names}, names


def generation(runs: Sequence[Run], styles: dict[str, Style], fronts: Fronts) -> Iterator[Drawn]:
    """One figure a run that continues text; settings on a Pareto front are ringed."""
    for run in runs:
        if not isinstance(run.board, Leaderboard):
            continue
        for name in SHOWN:
            ringed = fronts.labels(run)[0 if name == "ppl-plain" else 1]
            svg = plots.utility_curves(run.board, name, Shared(f"{run.slug}-", styles, ringed))
            if svg:
                yield Drawn(run, f"{plots.METRICS[name].title} against the worst-case attack success rate", Markup(svg))
                break


def classification(runs: Sequence[Run]) -> tuple[dict[str, Style], list[Drawn]]:
    """AUC of every way to classify, a figure a run and way, and the mechanisms' styles."""
    boards = [run.board for run in runs if isinstance(run.board, NluLeaderboard)]
    styles, drawn = nlu_plots.styles(*boards), []
    for run in runs:
        if isinstance(run.board, NluLeaderboard):
            for variant in nlu.variants(run.board):
                svg = nlu_plots.utility(run.board, variant, "auc", Shared(f"{run.slug}-", styles))
                if svg:
                    alt = f"AUC of {nlu.VARIANTS[variant]} against the strongest attack's success"
                    drawn.append(Drawn(run, alt, Markup(svg)))
    return styles, drawn


def marks(styles: dict[str, Style]) -> dict[str, Any]:
    """Method -> (colour class, name of its marker's outline), as templates draw it."""
    return {name: (style.variable, style.shape) for name, style in styles.items()}
