"""Sentences of the report: what came out, what to know before quoting it, and what each method guarantees.

All are computed from the leaderboard and from nothing else, whoever wins.
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
    MethodCalibration,
    PrivacyColumns,
)
from del_lightning.report.words import (
    MATCHED,
    MISSING,
    at_most,
    at_most_percent,
    attack_result,
    change,
    count,
    guarantee,
    holds_zero,
    interval,
    is_nearest,
    most_recovered,
    number,
    overlapping,
    parameter,
    percent,
    power_of_ten,
    reads_one_token,
    repeats,
    schedule,
    setting,
    steps,
    with_interval,
    worst_attack,
    worst_name,
)

VACUOUS_MU = 10.0
"""From this mu a token on, total variation exceeds .9999: the worst case excludes almost nothing."""
NO_BOUND = 0.9995
"""A certified success rate from here on excludes nothing worth a sentence."""
BELOW = "stays below the target"
"""Said of a calibration whose largest value still meets its target."""
VACUOUS_EPSILON = math.log(1000)
"""A prompt's epsilon above this lets an observation multiply odds more than a thousandfold."""


def summary(board: Leaderboard) -> list[str]:
    """What was measured and what came out, in sentences."""
    return [setup(board), *outcome(board), *winners(board)]


def setup(board: Leaderboard) -> str:
    """What was run, on what and on how much."""
    label = f" Schedule: {'; '.join(filter(None, [schedule(board), steps(board)]))}." if board.schedule else ""
    return (
        f"{board.model} continues private prompts from {board.dataset} that it receives only through each method's "
        f"front-end: {count(board.prompts)} test prompts, {count(board.private_tokens)} private tokens; "
        f"{repeats(board)}.{label}"
    )


def outcome(board: Leaderboard) -> list[str]:
    """What came out for DEL, in sentences."""
    entry = arrange.headline(board)
    if entry is None:
        what = "DEL was not run" if arrange.tested(board) else "Only controls were run"
        return [f"{what}, so there is no result on DEL itself."]
    return [*_headline(entry), *_beside(board, entry)]


def _headline(entry: Entry) -> Iterator[str]:
    row = entry.best
    level = f"a {MATCHED[row.matching or 'nearest']} target of {row.target:g}" if row.target is not None else ""
    level = level or guarantee(row.privacy) or parameter(row)
    where = f"At {level}, {entry.name}" if level else row.label
    prompt = " with its soft prompt" if row.soft_prompt else " without a soft prompt"
    if row.perplexity is not None:
        yield f"{where}{prompt} reaches PPL {with_interval(row.perplexity)}{_against_plain(entry)}."
    if entry.retained is not None:
        yield f"Information retained R = {with_interval(entry.retained)}{_about_zero(entry.retained)}."
    yield from _attack_sentence(row)


def _beside(board: Leaderboard, ours: Entry) -> Iterator[str]:
    """Methods at the very guarantee of DEL's: what comes through, and what is read, which a mean over tokens hides."""
    if ours.row.target is not None or ours.row.privacy.epsilon_token is None:
        return
    for entry in arrange.tested(board):
        same = entry.row.privacy.epsilon_token == ours.row.privacy.epsilon_token
        if same and entry.row.target is None and not entry.is_reference:
            parts = [
                part for text, style, pick in _COMPARED if (part := _against(text, style, pick(entry), pick(ours)))
            ]
            yield f"{entry.name} at the same guarantee (in brackets {ours.name}): {', '.join(parts)}."


_COMPARED: tuple[tuple[str, Callable[[Estimate], str], Callable[[Entry], Estimate | None]], ...] = (
    ("R = {}", lambda found: f"{found.value:.3f}", lambda entry: entry.retained),
    (
        "the strongest attack reads {} of all private tokens",
        lambda found: percent(found.value),
        lambda entry: worst_attack(entry.row),
    ),
    (
        "{} of those that carry content",
        lambda found: percent(found.value),
        lambda entry: most_recovered(entry.best, "content top-1"),
    ),
    (
        "{} of the last tokens of prompts",
        lambda found: percent(found.value),
        lambda entry: most_recovered(entry.best, LAST),
    ),
)
"""What methods at one guarantee differ in: sentence, way to print, and where it stands."""


def _against(text: str, style: Callable[[Estimate], str], one: Estimate | None, other: Estimate | None) -> str:
    """One of :data:`_COMPARED` with both numbers; empty where either was not measured."""
    return "" if one is None or other is None else text.format(f"{style(one)} ({style(other)})")


def _against_plain(entry: Entry) -> str:
    with_prompt = entry.prompted.perplexity if entry.prompted else None
    without = entry.plain.perplexity if entry.plain else None
    if with_prompt is None or without is None:
        return ""
    change = with_prompt.value / without.value - 1
    sign = "+" if change > 0 else ""
    overlap = "; the intervals overlap" if overlapping(with_prompt, without) else ""
    return f", against {with_interval(without)} without ({sign}{percent(change)}{overlap})"


def _about_zero(retained: Estimate) -> str:
    if not holds_zero(retained):
        return ""
    return ", which cannot be told from 0: nothing shows that the prompt's content reached the server's output"


def _attack_sentence(row: LeaderboardRow) -> Iterator[str]:
    nearest, strongest = attack_result(row, is_nearest), worst_attack(row)
    if strongest is None:
        return
    beside, bound, name = "", "", worst_name(row)
    if nearest is not None and nearest != strongest:
        beside = f"; the nearest-neighbour attack {percent(nearest.value)}"
    if row.certified is not None and row.certified < NO_BOUND:
        bound = f"; none that knows only the tokens' frequencies can read more than {_bound(row.certified)}"
    elif row.certified is not None:
        bound = "; the guarantee itself bounds no attack"
    who = f"attack that was run ({name})" if name else "attack that was run"
    yield f"The strongest {who} reads {percent(strongest.value)} of the private tokens{beside}{bound}."


def _bound(certified: float) -> str:
    """A bound as per cent; one that rounds to 100% keeps its digits."""
    return at_most_percent(certified) if certified < 0.995 else f"{min(certified, 1) * 100:.4g}%"


def winners(board: Leaderboard) -> Iterator[str]:
    """Who comes first at the headline's target, whoever that is, under each matching by attack success."""
    target = arrange.headline_target(board)
    for matching in ("nearest", "worst"):
        entries = arrange.matched(board, matching, target)
        where = f"Matched by {MATCHED[matching]} {target:g}" if target is not None else ""
        yield from _winner(where, entries)


def _winner(where: str, entries: list[Entry]) -> Iterator[str]:
    ranked = sorted((e for e in entries if e.retained is not None), key=lambda e: -_value(e.retained))
    figure, what = _retained_figure, _most_retained(ranked)
    if len(ranked) < 2:
        ranked = sorted((e for e in entries if e.row.perplexity is not None), key=lambda e: _value(e.row.perplexity))
        figure, what = _perplexity_figure, "has the lowest PPL without a soft prompt"
    if len(ranked) < 2:
        return
    first, second = ranked[0], ranked[1]
    sentence = f"{where}, of {len(ranked)} methods {first.name} {what} ({figure(first)})"
    others = [entry for entry in ranked if not entry.is_reference]
    if first.is_reference:
        sentence += f"; the next is {second.name} ({figure(second)}), {_apart(second)}"
    elif len(others) < len(ranked):
        flattered = f"; as the best of {len(ranked)} it is flattered" if len(ranked) > 2 else ""
        sentence += f", {_apart(first)}{flattered}"
    level = sum(_inside_noise(entry) for entry in others)
    sentence += f". Of the {len(others)} besides DEL, {level} cannot be told from it" if level > 1 else ""
    unranked = len(entries) - len(ranked)
    are = "method is" if unranked == 1 else "methods are"
    what = "soft prompt" if figure is _retained_figure else "PPL"
    yield sentence + (f". {unranked} {are} not ranked for want of a {what}." if unranked else ".")


def _most_retained(ranked: list[Entry]) -> str:
    """What the first has done, which need not be to retain anything."""
    best = ranked[0].retained if ranked else None
    if best is None or best.low is None or best.low > 0:
        return "retains most of the prompt"
    return "comes first without being shown to retain anything of the prompt"


def _value(estimate: Estimate | None) -> float:
    return math.nan if estimate is None else estimate.value


def _retained_figure(entry: Entry) -> str:
    return "" if entry.retained is None else f"R = {with_interval(entry.retained)}"


def _perplexity_figure(entry: Entry) -> str:
    return "" if entry.row.perplexity is None else f"PPL {with_interval(entry.row.perplexity)}"


def _inside_noise(entry: Entry) -> bool:
    difference = entry.best.difference
    return difference is not None and difference.nll is not None and holds_zero(difference.nll)


def _apart(entry: Entry) -> str:
    """Whether the paired interval separates an entry from DEL."""
    difference = entry.best.difference
    if difference is None or difference.nll is None:
        return "a difference to DEL that was not measured in pairs"
    nll = difference.nll
    size = f"{change(nll)} nats a token, paired"
    if holds_zero(nll):
        return f"a difference to DEL inside the noise ({size})"
    return f"{'better' if nll.value < 0 else 'worse'} than DEL by more than the noise ({size})"


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
        Caveat(_letter(place), _sentence(_merged([e.row.privacy.caveat for e in found])), _names(found), key)
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
    return BELOW if calibration.asr.value <= calibration.target else "target out of reach"


def missed(board: Leaderboard) -> list[tuple[MethodCalibration, str, Calibration]]:
    """Those of the reported calibrations that found no value at the edge of their target."""
    return [found for found in reported(board) if not found[2].reached]


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


def privacy_statement(row: LeaderboardRow) -> list[str]:
    """The row's guarantee in words: what is promised for a token, for a prompt, and what was measured."""
    privacy = row.privacy
    sentences = [f"Mechanism: {privacy.mechanism}{_parameters(privacy)}."]
    phrase = guarantee(privacy)
    if phrase:
        condition = ", with the caveat below" if privacy.caveat and row.parameter not in (None, "mu") else ""
        sentences += [
            f"Guaranteed in the worst case{condition}: {phrase}.",
            f"For one token: {_odds(privacy.epsilon_token)}. For the whole prompt: {_odds(privacy.epsilon_sequence)}. "
            "The number of tokens is not protected.",
        ]
    else:
        sentences.append("No exact ε is recorded, so nothing is claimed for the worst case.")
    if row.certified is not None:
        sentences.append(
            "No attacker that knows only the tokens' frequencies names one with a probability above "
            f"{_bound(row.certified)}."
        )
    last = privacy.statement or privacy.caveat
    return [*sentences, *_measured(row), *([_sentence(last)] if last else [])]


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _parameters(privacy: PrivacyColumns) -> str:
    # mu stands in the guarantee, beside its epsilon, and nowhere else.
    shown = [f"{name} {setting(value)}" for name, value in privacy.parameters.items() if not name.startswith("mu")]
    return f" ({', '.join(shown)})" if shown else ""


def _odds(epsilon: float | None) -> str:
    if epsilon is None:
        return MISSING
    if epsilon <= VACUOUS_EPSILON:
        return f"what is sent multiplies the odds between any two inputs by at most {at_most(math.exp(epsilon))}"
    power = "" if math.isinf(epsilon) else f", a factor of {power_of_ten(math.ceil(epsilon / math.log(10)))}"
    return f"the odds between two inputs may change by exp({at_most(epsilon)}){power}: next to no promise"


def _measured(row: LeaderboardRow) -> Iterator[str]:
    worst = worst_attack(row)
    if worst is not None:
        yield (
            f"Measured: the strongest attack that was run names {percent(worst.value)} of the tokens "
            f"{interval(worst)} (n = {count(worst.n)})."
        )
    if row.clipped_share is not None:
        yield f"Clipping changed {percent(row.clipped_share)} of the code's coordinates."
