"""What a reader must know before quoting the table: the board's notes, then what its numbers imply.

All are computed from the leaderboard and from nothing else.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

from del_lightning.report import arrange
from del_lightning.report.anew import LAST
from del_lightning.report.arrange import Entry
from del_lightning.report.schema import (
    Calibration,
    Estimate,
    Leaderboard,
    LeaderboardRow,
    Matching,
    MethodCalibration,
    PrivacyColumns,
)
from del_lightning.report.words import (
    MATCHED,
    at_most,
    most_recovered,
    number,
    percent,
    reads_one_token,
    worst_attack,
)

VACUOUS_MU = 10.0
"""From this mu a token on, total variation exceeds .9999: the worst case excludes almost nothing."""
BELOW = "stays below the target"
"""Said of a calibration whose largest value still meets its target."""
NOT_MET = "target out of reach"
"""Said of a calibration whose smallest value does not meet its target."""
VACUOUS_EPSILON = math.log(1000)
"""A prompt's epsilon above this lets an observation multiply odds more than a thousandfold."""


_LEVELS: dict[Matching, str] = {"nearest": "ASR", "worst": "worst ASR"}
"""What labels say of a matching that is calibrated."""


def warnings(board: Leaderboard) -> list[str]:
    """What a reader must know before quoting the table: the board's notes, then what its numbers imply."""
    implied = (
        _broken_bound_warning,
        _worst_case_warning,
        _caveat_warning,
        _vacuous_bound_warning,
        _missed_target_warning,
        last_token_warning,
        _adaptation_warning,
        _untrained_warning,
    )
    return [*board.notes, *(text for warn in implied for text in warn(board))]


def is_weak(privacy: PrivacyColumns) -> bool:
    """Whether the worst-case guarantee says almost nothing."""
    mu, epsilon = privacy.mu_token, privacy.epsilon_sequence
    return (mu is not None and mu >= VACUOUS_MU) or (epsilon is not None and epsilon > VACUOUS_EPSILON)


def _settings(board: Leaderboard, chosen: list[Entry]) -> str:
    """Settings in few words: methods that are meant as a whole by their names, others by the labels of their rows."""
    whole, parts = [], []
    everything = arrange.tested(board)
    for method, name in arrange.method_names(board).items():
        mine = [entry for entry in chosen if entry.row.method == method]
        total = sum(entry.row.method == method for entry in everything)
        if mine and len(mine) == total > 1:
            whole.append(name)
        else:
            parts += [entry.row.label for entry in mine]
    return "; ".join([*(["; ".join(whole) + " (at all settings)"] if whole else []), *parts])


def breaks_bound(row: LeaderboardRow) -> bool:
    """Whether an attack's lower confidence limit exceeds the certified bound: one of the two is wrong.

    The bound is for one token on its own, so attacks that read the context may well exceed it.
    """
    limits = [rate.low for name, rate in row.asr.items() if rate.low is not None and reads_one_token(name)]
    return row.certified is not None and max(limits, default=0.0) > row.certified


def _broken_bound_warning(board: Leaderboard) -> Iterator[str]:
    broken = [entry for entry in arrange.tested(board) if breaks_bound(entry.row)]
    if broken:
        yield (
            f"An attack succeeds more often than the certified bound allows: {_settings(board, broken)}. "
            "One of the two is wrong; do not use these rows."
        )


def _worst_case_warning(board: Leaderboard) -> Iterator[str]:
    weak = [entry for entry in arrange.tested(board) if is_weak(entry.row.privacy)]
    if not weak:
        return
    largest = max((entry.row.privacy.epsilon_sequence or 0.0 for entry in weak), default=0.0)
    size = f" (ε up to {at_most(largest)} for a prompt)" if largest else ""
    yield (
        f"In the worst case these guarantees say almost nothing{size}: {_settings(board, weak)}. "
        "Their privacy rests on the attacks that were measured, and a stronger attack may exist."
    )


@dataclass(frozen=True)
class Caveat:
    """What a guarantee leaves out, said once for all rows that it applies to."""

    mark: str
    text: str
    methods: tuple[str, ...]
    key: str
    """The text without its numbers."""

    @property
    def line(self) -> str:
        """The note on one line."""
        return f"({self.mark}) {', '.join(self.methods)}: {self.text}"


_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def caveats(board: Leaderboard) -> list[Caveat]:
    """The caveats of the methods under test; those that differ in their numbers only are one."""
    texts: dict[str, list[Entry]] = {}
    for entry in arrange.tested(board):
        if entry.row.privacy.caveat:
            texts.setdefault(_without_numbers(entry.row.privacy.caveat), []).append(entry)
    return [
        Caveat(_letter(place), sentence(_merged([e.row.privacy.caveat for e in found])), _names(found), key)
        for place, (key, found) in enumerate(texts.items())
    ]


def caveat_marks(board: Leaderboard) -> Callable[[PrivacyColumns], str]:
    """Function from a row's privacy to the letter of its caveat; the letter is empty without one."""
    marks = {caveat.key: caveat.mark for caveat in caveats(board)}
    return lambda privacy: marks.get(_without_numbers(privacy.caveat), "")


def _without_numbers(text: str) -> str:
    return _NUMBER.sub("#", text)


def _letter(place: int) -> str:
    return chr(ord("a") + place % 26) * (1 + place // 26)


def _names(entries: list[Entry]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(entry.name for entry in entries))


def _merged(texts: list[str]) -> str:
    """Texts that differ in their numbers only as one, with ``low to high`` in the place of a number that differs."""
    columns = zip(*(_NUMBER.findall(text) for text in texts), strict=True)
    shown = []
    for column in columns:
        low, high = min(column, key=float), max(column, key=float)
        shown.append(low if low == high else f"{low} to {high}")
    between = _NUMBER.split(texts[0])
    return "".join(part + value for part, value in zip(between, [*shown, ""], strict=True))


def _caveat_warning(board: Leaderboard) -> Iterator[str]:
    """Only those whose guarantee is of another kind than DEL's: the strength of DEL's own is said elsewhere."""
    others = [e for e in arrange.tested(board) if e.row.parameter not in (None, "mu") and e.row.privacy.caveat]
    if others:
        yield (
            f"Guarantees of different kinds cannot be compared by their numbers. These hold with a caveat, which the "
            f"notes under the leaderboard give: {'; '.join(_names(others))}."
        )


def _vacuous_bound_warning(board: Leaderboard) -> Iterator[str]:
    vacuous = [entry for entry in arrange.tested(board) if entry.row.privacy.paper_bound_vacuous]
    if vacuous:
        yield (
            f"The lower bound of the paper's Theorem 4.2 is vacuous for {_settings(board, vacuous)}; "
            "the exact ε in the table needs no such bound."
        )


def reported(board: Leaderboard) -> Iterator[tuple[MethodCalibration, str, Calibration]]:
    """(method, matching, calibration) of the matchings that the leaderboard is about."""
    asked = {*board.config.get("matching", ()), *(row.matching for row in board.rows)}
    if "guarantee" in asked:
        asked.add("nearest")  # DEL's guarantee is that of its nearest-neighbour target
    for method in board.calibrations:
        for matching, found in method.found.items():
            if matching in asked:
                yield from ((method, matching, item) for item in found)


def verdict(calibration: Calibration) -> str:
    """Whether a calibration met its target: at its edge, with room, or not at all."""
    if calibration.reached:
        return "target met"
    return BELOW if calibration.asr.value <= calibration.target else NOT_MET


def missed(board: Leaderboard) -> list[tuple[MethodCalibration, str, Calibration]]:
    """Those of the reported calibrations that found no value at the edge of their target."""
    return [found for found in reported(board) if not found[2].reached]


@dataclass(frozen=True)
class OutOfReach:
    """A setting that has no row: at the strictest value of its parameter attackers still read more than the target.

    Attributes:
        method: Name in the configuration.
        label: What its row would be called.
        matching: ``nearest`` or ``worst``.
        target: ASR that it should have met.
        closest: The success at the strictest value.
    """

    method: str
    label: str
    matching: Matching
    target: float
    closest: Estimate


def out_of_reach(board: Leaderboard) -> list[OutOfReach]:
    """The settings that were asked for and have no row, in the order of the calibrations."""
    rows = {(row.method, row.matching, row.target) for row in board.rows}
    return [
        OutOfReach(
            method.method, f"{method.label}, {_LEVELS[matching]} {item.target:g}", matching, item.target, item.asr
        )
        for method in board.calibrations
        for matching in (name for name in _LEVELS if name in board.config.get("matching", ()))
        for item in method.found.get(matching, [])
        if verdict(item) == NOT_MET and (method.method, matching, item.target) not in rows
    ]


def not_reached(setting: OutOfReach) -> str:
    """The words that stand where its figures would."""
    return f"not reached, closest {percent(setting.closest.value)}"


def _missed_target_warning(board: Leaderboard) -> Iterator[str]:
    """Methods that miss the same targets in one sentence: the section on calibration has the evidence of each."""
    untold = [(m.label, matching, c) for m, matching, c in missed(board) if c.note not in board.notes]
    same: dict[tuple[str, str], dict[str, list[float]]] = {}
    for (label, kind), items in groupby(untold, lambda item: (item[0], verdict(item[2]))):
        calibrations = [(matching, c) for _, matching, c in items]
        rates = same.setdefault((kind, _targets(calibrations)), {})
        rates[label] = [c.asr.value for _, c in calibrations]
    for (kind, targets), methods in same.items():
        read = sorted(rate for rates in methods.values() for rate in rates)
        span = (
            percent(read[0]) if percent(read[0]) == percent(read[-1]) else f"{percent(read[0])} to {percent(read[-1])}"
        )
        end = "largest" if kind == BELOW else "smallest"
        yield f"Calibration, {kind}: {targets} for {', '.join(methods)} ({span} at the {end} value tried)."


def _targets(calibrations: list[tuple[str, Calibration]]) -> str:
    """Matchings, each with its targets."""
    by_matching = groupby(calibrations, lambda item: item[0])
    return "; ".join(
        f"{MATCHED.get(matching, matching)} {', '.join(f'{c.target:g}' for _, c in items)}"
        for matching, items in by_matching
    )


def last_token_warning(board: Leaderboard) -> Iterator[str]:
    """Success is a mean over tokens, and hides methods that give some places away."""
    for entry in arrange.tested(board):
        worst, last = worst_attack(entry.row), most_recovered(entry.row, LAST)
        if worst and last and last.low is not None and worst.high is not None and last.low > worst.high:
            yield (
                f"Success is a mean over tokens, which hides the places that {entry.row.label} gives away: of the last "
                f"tokens of prompts, attackers read {percent(last.value)}."
            )


def _adaptation_warning(board: Leaderboard) -> Iterator[str]:
    if not any(row.soft_prompt for row in board.rows):
        return
    text = "A soft prompt alone adapts the LLM to the domain, so a lower PPL is not recovered content: look at R."
    for entry in arrange.controls(board):
        plain, prompted = entry.plain, entry.prompted
        if entry.row.method == "mean" and plain and prompted and plain.perplexity and prompted.perplexity:
            text += (
                f" The mean embedding, which carries none of the prompt, already goes from PPL "
                f"{number(plain.perplexity.value)} to {number(prompted.perplexity.value)}."
            )
    yield text


def _untrained_warning(board: Leaderboard) -> Iterator[str]:
    """Soft prompts that are behind the one of no text at all: more of the prompt cannot be worth less than none."""
    behind = [entry for entry in arrange.tested(board) if entry.retained and (entry.retained.high or 0.0) < 0]
    if behind:
        yield (
            f"With a soft prompt of its own the LLM does worse than behind no text at all (R is below 0 beyond the "
            f"noise): {_settings(board, behind)}. Those soft prompts were not trained to their end, and these rows say "
            "nothing about how good a mechanism is."
        )


def sentence(text: str) -> str:
    """The text with a capital at its start and a full stop."""
    return text[0].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
