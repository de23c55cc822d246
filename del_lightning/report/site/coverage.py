"""What of a table of the paper the runs behind a verdict cover, what of it is missing, and whose code made them.

What the paper has is known from its text and written down (:class:`Scope`); what is covered is found in the runs.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from del_lightning.report import words
from del_lightning.report.schema import NluLeaderboard, TransferBoard
from del_lightning.report.site.claims import Comparison, Finding, listed
from del_lightning.report.site.runs import Run

_UNKNOWN = "The paper's list is not known here."


@dataclass(frozen=True)
class Part:
    """One of the things that a table of the paper covers.

    Attributes:
        name: As the page names it.
        pattern: Regular expression that finds it in the name of a model, or in what a comparison says; letters of
            either case.
    """

    name: str
    pattern: str

    def within(self, text: str) -> bool:
        """Whether the text names it."""
        return re.search(self.pattern, text, re.IGNORECASE) is not None


@dataclass(frozen=True)
class Scope:
    """What a table or figure of the paper covers; an empty list: not known.

    Attributes:
        data: Data sets, by the names of :attr:`~del_lightning.report.site.runs.Run.data`.
        models: Language models, found in the names of ours.
        methods: What DEL is compared with, found in the comparisons.
        settings: Privacy levels, widths and so on, found in the comparisons.
    """

    data: tuple[str, ...] = ()
    models: tuple[Part, ...] = ()
    methods: tuple[Part, ...] = ()
    settings: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Line:
    """One line of the coverage of a table: of what, what our runs have, and what the paper has besides."""

    name: str
    ours: str
    missing: str


def lines(scope: Scope, finding: Finding) -> list[Line]:
    """Data sets, models, methods, settings and trainings of a verdict, and what of the paper's is missing.

    Where data sets, methods and settings are all known, a line more says which of them never met in one comparison.
    """
    runs, said = finding.runs, [_said(one) for one in finding.comparisons]
    data, models = [run.data for run in runs], [run.board.model for run in runs]
    found = [
        Line("Data sets", _named(data), _named([name for name in scope.data if name not in data], scope.data)),
        Line("Models", _named(models), _lacking(scope.models, models)),
    ]
    for name, parts in (("Compared with", scope.methods), ("Settings", scope.settings)):
        if parts:
            ours = _named(part.name for part in parts if any(map(part.within, said)))
            found.append(Line(name, ours, _lacking(parts, said)))
    found += _together(scope, finding.comparisons)
    return [*found, Line("Trainings", _trainings(finding.comparisons), "How many the paper made is not known here.")]


def _said(one: Comparison) -> str:
    return " | ".join((one.what, one.first[0], one.second[0]))


def _named(names: Iterable[str], paper: Sequence[object] = (True,)) -> str:
    """Names in a row; what is said without any depends on whether the paper's list is known."""
    return (listed(list(names)) or "None.") if paper else _UNKNOWN


def _lacking(paper: Sequence[Part], texts: Sequence[str]) -> str:
    return _named((part.name for part in paper if not any(map(part.within, texts))), paper)


def _together(scope: Scope, comparisons: Sequence[Comparison]) -> list[Line]:
    """How many combinations of data set, method and setting were compared, and which of a data set we have were not."""
    if not (scope.data and scope.methods and scope.settings):
        return []
    said = {(run.data, _said(one)) for one in comparisons for run in one.runs}
    total, lacking, ours = 0, [], {data for data, _ in said}
    for data in scope.data:
        open_at: dict[tuple[str, ...], list[str]] = {}
        texts = [text for name, text in said if name == data]
        for method in scope.methods:
            met = [text for text in texts if method.within(text)]
            without = tuple(part.name for part in scope.settings if not any(map(part.within, met)))
            total += len(scope.settings) - len(without)
            if without:
                open_at.setdefault(without, []).append(method.name)
        if data in ours:
            lacking += [f"{data}: {_where(methods, settings, scope)}" for settings, methods in open_at.items()]
    every = len(scope.data) * len(scope.methods) * len(scope.settings)
    return [Line("Together", f"{total} of {every} combinations of the above.", "; ".join(lacking) or "None.")]


def _where(methods: Sequence[str], settings: Sequence[str], scope: Scope) -> str:
    """``RANTEXT and InferDPT, ASR 0.02``; no setting is named where all are meant."""
    named = listed(list(methods))
    return named if len(settings) == len(scope.settings) else f"{named}, {listed(list(settings))}"


def _trainings(comparisons: Sequence[Comparison]) -> str:
    """Over how many trainings, by their seeds, the comparisons on each data set and model are."""
    if comparisons and all(one.difference.interval == "exact" for one in comparisons):
        return "None is needed: computed, not measured."
    counts: dict[str, Counter[tuple[int, ...]]] = {}
    several = len({run.board.model for one in comparisons for run in one.runs}) > 1
    for one in comparisons:
        place = listed([f"{run.data}{f', {run.board.model}' if several else ''}" for run in one.runs])
        seeds = sorted({seed for run in one.runs for seed in _seeds(run)})
        counts.setdefault(place, Counter())[tuple(seeds)] += 1
    parts = (f"{place}: {', '.join(_counted(*item) for item in found.items())}" for place, found in counts.items())
    return "; ".join(parts) or "None."


def _counted(seeds: tuple[int, ...], comparisons: int) -> str:
    """``2 comparisons over 3 trainings (seeds 0, 1 and 2)``."""
    several, trained = "s" * (comparisons > 1), "one training" if len(seeds) == 1 else f"{len(seeds)} trainings"
    named = f"seed{'s' * (len(seeds) > 1)} {listed([str(seed) for seed in seeds])}"
    return f"{comparisons} comparison{several} over {trained} ({named})"


def _seeds(run: Run) -> list[int]:
    """Seeds under which the parts of a run were trained."""
    board = run.board
    if isinstance(board, NluLeaderboard):
        return board.seeds
    return [board.seed if isinstance(board, TransferBoard) else int(board.config.get("seed", 0))]


@dataclass(frozen=True)
class Provenance:
    """Whose code made some runs: a sentence, and the runs whose code was not committed."""

    sentence: str
    uncommitted: list[Run]


def provenance(runs: Sequence[Run]) -> Provenance:
    """Which of these runs come from code that no commit holds, as the page of each says under its environment."""
    found = [run for run in runs if run.board.environment.dirty or run.board.environment.revision is None]
    kind = "made by code with changes that were not committed"
    if any(run.board.environment.revision is None for run in found):
        kind += ", or by code from no checkout"
    if not runs:
        return Provenance("No run is used.", [])
    total = f"{words.count(len(runs))} run{'s' * (len(runs) > 1)}"
    if not found:
        return Provenance(f"{total}, made by code that was committed.", [])
    verb = "was" if len(found) == 1 else "were"
    return Provenance(f"{total}; {words.count(len(found))} of them {verb} {kind}:", found)
