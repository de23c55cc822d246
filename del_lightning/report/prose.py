"""Sentences of the report: what came out, and what each method guarantees.

All are computed from the leaderboard and from nothing else, whoever wins.
"""

import math
from collections.abc import Callable, Iterator

from del_lightning.report import arrange
from del_lightning.report.anew import LAST
from del_lightning.report.arrange import Entry
from del_lightning.report.cautions import VACUOUS_EPSILON, sentence
from del_lightning.report.schema import (
    Estimate,
    Leaderboard,
    LeaderboardRow,
    PrivacyColumns,
)
from del_lightning.report.words import (
    MATCHED,
    MISSING,
    at_most,
    at_most_percent,
    attack_name,
    attack_result,
    change,
    count,
    guarantee,
    holds_zero,
    interval,
    is_nearest,
    most_recovered,
    overlapping,
    parameter,
    percent,
    power_of_ten,
    repeats,
    schedule,
    setting,
    steps,
    with_interval,
    worst_attack,
    worst_name,
)

NO_BOUND = 0.9995
"""A certified success rate from here on excludes nothing worth a sentence."""


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
    beside, bound, name = "", "", attack_name(worst_name(row))
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
    return [*sentences, *_measured(row), *([sentence(last)] if last else [])]


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
