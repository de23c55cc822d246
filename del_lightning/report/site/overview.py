"""The tables across runs: one line a method and setting, with what it keeps, gives away and sends.

Perplexities of two runs can be compared only where both continue the same prompts, so a Pareto front belongs to a
bench: the runs of one model on the same test prompts. Within it a lower perplexity and a higher R say the same. A
soft prompt adapts the LLM to the domain whatever it is told, so rows with and without one have a front each.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from del_lightning.report import anew, arrange, cautions, nlu, words
from del_lightning.report.arrange import Entry
from del_lightning.report.schema import (
    Estimate,
    Leaderboard,
    LeaderboardRow,
    Matching,
    NluLeaderboard,
    NluRow,
    TransferBoard,
)
from del_lightning.report.site.claims import listed
from del_lightning.report.site.pareto import front
from del_lightning.report.site.runs import Run, generation
from del_lightning.report.tables import (
    Cell,
    bits_cell,
    estimate_cell,
    missing,
    parameter_cell,
    rate_cell,
    worst_cell,
)

ON_FRONT = "◆"
"""Marks a value on its Pareto front."""
CONTROL = "control"
FEWEST = "the fewest with every method"
"""What the table of many runs shows first: trainings and settings of one method would bury the others."""
WITH_PROMPT, WITHOUT_PROMPT = "with", "without"
"""Rows with a soft prompt are shown first: only they have an R, and the paper's results are of them."""
MATCHED: dict[Matching | None, str] = {
    "nearest": "nearest-neighbour ASR",
    "worst": "worst-case ASR",
    "guarantee": "DEL's guarantee",
    None: "given value",
}
"""What a setting was matched by, as the filter names it."""
WORDING = ("prefix", "min_words", "prompt_words", "max_prompts", "max_prompt_tokens", "reference_tokens")
"""Settings of the data that decide which prompts are continued, and how far."""

_COLUMNS = (
    ("Method", ()),
    ("Data set", ("run",)),
    ("PPL", ("+ soft prompt",)),
    ("R", ("information retained",)),
    ("ASR", ("worst of all",)),
    ("ASR", ("nearest neighbour",)),
    ("Parameter", ("with exact ε",)),
    ("Bits a token", ()),
    ("COH", ("best row",)),
    ("PPL", ("no soft prompt",)),
)
_NLU_COLUMNS = (
    ("Front-end", ()),
    ("Task", ("run",)),
    ("Way to classify", ()),
    ("AUC", ("over seeds",)),
    ("Accuracy", ("over seeds",)),
    ("ASR", ("worst of all",)),
    ("ASR", ("nearest neighbour",)),
    ("ε of a text", ()),
    ("Bits a token", ()),
)
_OWN_TERMS = (
    (
        "Method",
        "What turns the embedding of a private token into what is sent, and how strict: “ASR 0.1” was calibrated so "
        "that the nearest neighbour reads a tenth of the tokens, “worst ASR 0.1” so that the strongest calibrated "
        "attack does.",
    ),
    (
        "Clean prompt, Mean embedding",
        "Controls. Clean: the server reads the prompt. Mean embedding: every token is the same vector, so nothing but "
        "the prompt's length is sent; what it reaches needs no prompt.",
    ),
    (
        "Certified bound",
        "The most that any attacker who knows only how frequent tokens are can read, whatever it computes. It is on "
        "the pages of runs. Attackers who read the context know more.",
    ),
    (
        ON_FRONT,
        "On the Pareto front: no other setting on the same prompts is better in perplexity, strongest attack and bits "
        "at once.",
    ),
)
_SHARED_TERMS = (
    *("Soft prompt", "PPL", "R", "COH", "ASR", "Strongest attack"),
    *("μ", "μ eff", "ε, δ", "η", "Bits a token", "n"),
)
_NLU_TERMS = ("AUC", "End to end", "SnD framework", "ε of a text")


def glossary() -> list[tuple[str, str]]:
    """(term, meaning) of everything that the tables of the first page name."""
    shared, classified = dict(words.GLOSSARY), dict(nlu.GLOSSARY)
    found = [*_OWN_TERMS[:2], *((term, shared[term]) for term in _SHARED_TERMS)]
    return [*found, *_OWN_TERMS[2:], *((term, classified[term]) for term in _NLU_TERMS)]


@dataclass(frozen=True)
class Heading:
    """A column's name, lines of small type under it, and what the pointer reveals."""

    name: str
    small: tuple[str, ...]
    title: str


def _headings(columns: Iterable[tuple[str, tuple[str, ...]]]) -> tuple[Heading, ...]:
    own = dict(_OWN_TERMS) | {term: dict(nlu.GLOSSARY)[term] for term in _NLU_TERMS}
    own |= {"Front-end": own["Method"], "Data set": "Data set, and the run that the line is from."}
    own |= {"Task": "GLUE task, and the run that the line is from.", "Accuracy": "Share of texts classified rightly."}
    own["Way to classify"] = f"{own['End to end']} SnD: {own['SnD framework']}"
    return tuple(Heading(name, small, own.get(name) or words.meaning(name, small)) for name, small in columns)


HEADINGS = _headings(_COLUMNS)
NLU_HEADINGS = _headings(_NLU_COLUMNS)


@dataclass(frozen=True)
class Line:
    """One line of a table across runs.

    Attributes:
        run: Where it comes from; its page is linked.
        name: First cell.
        method: Whose mark stands in front of it.
        cells: The others; the first names data set and run, whose page it links.
        keys: What the filters select by.
        on_front: Whether it is on a Pareto front.
    """

    run: Run
    name: str
    method: str
    cells: list[Cell]
    keys: dict[str, str]
    on_front: bool = False


@dataclass
class Fronts:
    """Which (run, label) are on the front of their bench, without and with a soft prompt."""

    plain: set[tuple[str, str]] = field(default_factory=set)
    prompted: set[tuple[str, str]] = field(default_factory=set)

    def labels(self, run: Run) -> tuple[set[str], set[str]]:
        """Labels of a run's settings on either front."""
        plain, prompted = (
            {label for slug, label in found if slug == run.slug} for found in (self.plain, self.prompted)
        )
        return plain, prompted


def bench(run: Run) -> str:
    """What two runs must share to be compared: model, data, the very prompts, and who attacked how many of them."""
    board = run.board
    assert isinstance(board, Leaderboard)
    data = board.config.get("data") or {}
    attack = board.config.get("attack") or {}
    attacked = [sorted(attack.get("suite") or []), attack.get("prompts")]
    same = [board.dataset, board.model, board.prompts, board.private_tokens, *(data.get(name) for name in WORDING)]
    return json.dumps([*same, data.get("first_prompt", 0), *attacked])


def fronts(runs: Iterable[Run]) -> Fronts:
    """The Pareto fronts of utility, worst-case ASR and bits, of the methods under test on every bench."""
    benches: dict[str, list[tuple[Run, Entry]]] = {}
    for run in runs:
        if isinstance(run.board, Leaderboard):
            benches.setdefault(bench(run), []).extend((run, entry) for entry in arrange.tested(run.board))
    found = Fronts()
    for entries in benches.values():
        found.plain |= _front(entries, lambda entry: entry.plain)
        found.prompted |= _front(entries, lambda entry: entry.prompted)
    return found


def _front(
    entries: Iterable[tuple[Run, Entry]], pick: Callable[[Entry], LeaderboardRow | None]
) -> set[tuple[str, str]]:
    points = []
    for run, entry in entries:
        row = pick(entry)
        worst = None if row is None else words.worst_attack(row)
        if row is None or row.perplexity is None or worst is None or math.isnan(row.perplexity.value):
            continue
        place = (row.perplexity.value, worst.value, row.communication.bits_per_token)
        points.append(((run.slug, row.label), place))
    kept = front([place for _, place in points])
    return {name for (name, _), on_front in zip(points, kept, strict=True) if on_front}


def covering(runs: Iterable[Run]) -> set[str]:
    """Pages of the runs that show every method once on each data set and model: always the one that adds most.

    Of those that add as many methods, the one with most settings; then what has most trainings; then the first. Where
    no run has all methods of another one and more, as in a sweep, every run has its own to say.
    """
    benches: dict[tuple[str, str], dict[str, Leaderboard]] = {}
    for run, board in generation(runs):
        benches.setdefault((run.data, board.model), {})[run.slug] = board
    return {slug for boards in benches.values() for slug in _covering(boards)}


def _covering(boards: dict[str, Leaderboard]) -> Iterator[str]:
    methods = {slug: [entry.row.method for entry in arrange.tested(board)] for slug, board in boards.items()}
    if not any({*one} < {*other} for one in methods.values() for other in methods.values()):
        yield from methods
        return
    trainings = {id(board): len(group) for group in anew.groups(list(boards.values())) for board in group}
    sizes = {slug: (len(methods[slug]), trainings.get(id(board), 1)) for slug, board in boards.items()}
    left = {method for found in methods.values() for method in found}
    while left:
        best = max(boards, key=lambda slug: (len(left & {*methods[slug]}), *sizes[slug]))
        yield best
        left -= {*methods[best]}


def lines(runs: Iterable[Run], found: Fronts, few: set[str]) -> list[Line]:
    """Controls and methods of all runs that continue text, one line a setting; ``few``: see :func:`covering`."""
    made = []
    for run in runs:
        if isinstance(run.board, Leaderboard):
            plain, prompted = found.labels(run)
            for entry in [*arrange.controls(run.board), *arrange.tested(run.board)]:
                marks = entry.row.label in plain, entry.row.label in prompted
                made.append(_line(run, entry, marks, FEWEST if run.slug in few else ""))
            made += [_absent(run, one, FEWEST if run.slug in few else "") for one in cautions.out_of_reach(run.board)]
    return made


def _line(run: Run, entry: Entry, marks: tuple[bool, bool], among: str) -> Line:
    row, board = entry.row, run.board
    assert isinstance(board, Leaderboard)
    no_r = "needs a soft prompt on this row and on the clean and mean controls"
    cells = [
        Cell(run.data, (board.title,), title=board.model),
        _marked(estimate_cell(_perplexity(entry.prompted), "no soft prompt was trained", -1), marks[1]),
        _marked(estimate_cell(entry.retained, no_r, -1), marks[1] and entry.retained is not None),
        worst_cell(row, -1),
        rate_cell(words.attack_result(row, words.is_nearest), "this attack was not run", -1),
        parameter_cell(row),
        bits_cell(row.communication),
        estimate_cell(entry.best.coherence, "not measured", -1),
        _marked(estimate_cell(_perplexity(entry.plain), "not measured", -1), marks[0]),
    ]
    keys = {
        "runs": among,
        "prompt": WITHOUT_PROMPT if entry.prompted is None else WITH_PROMPT,
        "data": run.data,
        "model": board.model,
        "method": entry.name,
        "matching": CONTROL if row.is_control else MATCHED[row.matching],
    }
    return Line(run, row.label, row.method, cells, keys, any(marks))


def _absent(run: Run, setting: cautions.OutOfReach, among: str) -> Line:
    """A setting that was asked for and that no value of the parameter meets, with the success that came closest."""
    board, name = run.board, setting.label.rpartition(", ")[0]
    assert isinstance(board, Leaderboard)
    why = missing("no value of its parameter meets the target")
    closest = rate_cell(setting.closest, "", -1)
    reached = Cell("not reached", (f"closest {closest.text}", *closest.small), title=why.title)
    rates = [why, reached] if setting.matching == "nearest" else [reached, why]
    data = Cell(run.data, (board.title,), title=board.model)
    keys = {
        "runs": among,
        "prompt": WITH_PROMPT if any(row.soft_prompt for row in board.rows) else WITHOUT_PROMPT,
        "data": run.data,
        "model": board.model,
        "method": name,
        "matching": MATCHED[setting.matching],
    }
    return Line(run, setting.label, setting.method, [data, why, why, *rates, *[why] * 4], keys)


def _perplexity(row: LeaderboardRow | None) -> Estimate | None:
    return None if row is None else row.perplexity


def _marked(cell: Cell, on_front: bool) -> Cell:
    """The cell with the front's mark, which readers that see no mark get in words."""
    return Cell(cell.text, cell.small, cell.sort, f"{cell.title}; on the Pareto front", ON_FRONT) if on_front else cell


def nlu_lines(runs: Iterable[Run]) -> list[Line]:
    """Every way to classify behind every front-end, of all runs that classify."""
    return [
        _nlu_line(run, row)
        for run in runs
        if isinstance(run.board, NluLeaderboard)
        for row in run.board.rows
        if row.variant in nlu.VARIANTS
    ]


def _nlu_line(run: Run, row: NluRow) -> Line:
    nearest = next((rate for name, rate in row.asr.items() if words.is_nearest(name)), None)
    worst = max(row.asr.values(), key=lambda rate: rate.value, default=None)
    cells = [
        Cell(run.data, (run.board.title,), title=run.board.model),
        Cell(f"{nlu.framework(row.variant)}: {nlu.VARIANTS[row.variant]}"),
        estimate_cell(row.over_seeds.get("auc"), "not measured", -1),
        estimate_cell(row.over_seeds.get("accuracy"), "not measured", -1),
        rate_cell(worst, "nothing is sent", -1),
        rate_cell(nearest, "nothing is sent", -1),
        nlu.epsilon_cell(row) if row.privacy is not None else missing("nothing is sent"),
        nlu.bits_cell(row),
    ]
    keys = {
        "data": run.data,
        "model": run.board.model,
        "method": nlu.mechanism(row),
        "matching": CONTROL if row.is_control else MATCHED[row.matching],
    }
    return Line(run, row.label, nlu.mechanism(row), cells, keys)


@dataclass(frozen=True)
class Filter:
    """A choice above a table.

    Attributes:
        key: Which of a line's keys it selects by.
        name: Its label.
        values: What can be chosen besides all lines.
        chosen: What is chosen at first; empty: all lines.
    """

    key: str
    name: str
    values: list[str]
    chosen: str = ""


def filters(found: Sequence[Line]) -> list[Filter]:
    """Every filter that leaves a choice."""
    names = {
        "runs": "Runs",
        "prompt": "Soft prompt",
        "data": "Data set",
        "model": "Model",
        "method": "Method",
        "matching": "Matched by",
    }
    made = []
    for key, name in names.items():
        values = list(dict.fromkeys(line.keys[key] for line in found if key in line.keys))
        if len(values) > 1:
            first = next((value for value in (FEWEST, WITH_PROMPT) if value in values), "")
            made.append(Filter(key, name, [*filter(None, values)], first))
    return made


def run_rows(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """What was run: one line a run."""
    return [
        {
            "run": run,
            "cells": [
                run.data,
                run.board.model,
                words.schedule(run.board) or words.MISSING,
                _examples(run),
                words.repeats(run.board),
                _methods(run),
                words.moment(run.board.generated).split()[0],
            ],
        }
        for run in runs
    ]


def _examples(run: Run) -> str:
    board = run.board
    if isinstance(board, NluLeaderboard):
        return f"{words.count(board.eval_examples)} examples"
    return f"{words.count(board.prompts)} prompts"


def _methods(run: Run) -> str:
    board = run.board
    if isinstance(board, TransferBoard):
        return f"DEL, soft prompts of {listed([one.trained_on for one in board.cells if one.trained_on])}"
    if isinstance(board, Leaderboard):
        names = list(arrange.method_names(board).values())
    else:
        names = list(dict.fromkeys(nlu.mechanism(row) for row in nlu.fronts(board) if not row.is_control))
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 4 else ", ".join(names) or "controls only"
