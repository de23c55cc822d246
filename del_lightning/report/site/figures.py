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
from del_lightning.report.site.runs import generation as continuing

SHOWN = ("retained", "ppl-prompted", "ppl-plain")
"""The first of these that a run has is drawn: R says most, and perplexity without a soft prompt least."""


@dataclass(frozen=True)
class Drawn:
    """A figure of one run: its words for those who cannot see it, the SVG, and (mark, name) of each line's key."""

    run: Run
    alt: str
    svg: Markup
    key: list[tuple[str, str]]


def method_styles(runs: Sequence[Run]) -> dict[str, Style]:
    """Style of every method under test in the runs that continue text."""
    return drawing.styles_of(name for _, board in continuing(runs) for name in arrange.method_names(board))


def generation(runs: Sequence[Run], styles: dict[str, Style], fronts: Fronts) -> Iterator[Drawn]:
    """One figure a run that continues text; settings on a Pareto front are ringed."""
    for run in runs:
        if not isinstance(run.board, Leaderboard):
            continue
        for name in SHOWN:
            ringed = fronts.labels(run)[0 if name == "ppl-plain" else 1]
            svg = plots.utility_curves(run.board, name, Shared(f"{run.slug}-", styles, ringed))
            if svg:
                alt = f"{plots.METRICS[name].title} against the worst-case attack success rate"
                names = arrange.method_names(run.board)
                yield Drawn(run, alt, Markup(svg), [(method, names[method]) for method in plots.drawn(run.board, name)])
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
                    names = nlu_plots.drawn(run.board, variant)
                    drawn.append(Drawn(run, alt, Markup(svg), [(name, name) for name in names]))
    return styles, drawn


@dataclass(frozen=True)
class Group:
    """Figures that are shown or folded together."""

    title: str
    note: str
    figures: list[Drawn]


def groups(generated: Sequence[Drawn], classified: Sequence[Drawn], some: bool) -> list[Group]:
    """Figures of text generation, then those of each task; ``some``: whether runs that continue text have none."""
    note = "Bars are 95% intervals; a ring marks a setting on the Pareto front; dashed lines are controls."
    if some:
        note += " Drawn are the fewest runs with every method of a data set and model; the others have their own pages."
    found = [Group("Text generation", note, list(generated))]
    note = (
        "A figure a run and way to classify. Bars are 95% intervals over seeds; hollow markers: the nearest neighbour "
        "alone; dashed lines: clean text, and a server that learns the length only. At n bits DEL has its own marker."
    )
    for task in dict.fromkeys(one.run.data for one in classified):
        found.append(Group(task, note, [one for one in classified if one.run.data == task]))
    return [group for group in found if group.figures]


def marks(styles: dict[str, Style]) -> dict[str, Any]:
    """Method -> (colour class, name of its marker's outline), as templates draw it."""
    return {name: (style.variable, style.shape) for name, style in styles.items()}
