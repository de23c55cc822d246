"""Numbers and sentences of the report, computed from the leaderboard and from nothing else.

A number has three significant digits; infinity is ∞ and a missing value an en dash. A GDP parameter mu is never
written without the exact epsilon beside it (a mu of 20 looks harmless and is not), so every sentence that
mentions mu comes from :func:`guarantee`.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime

from del_lightning.report.schema import Estimate, Leaderboard, LeaderboardRow, PrivacyColumns

MISSING = "–"
NO_BREAK = "\u00a0"
THIN_SPACE = "\u202f"
"""Narrow no-break space: groups digits."""

VACUOUS_MU = 10.0
"""From this mu a token on, total variation exceeds .9999: the worst case excludes almost nothing."""
VACUOUS_EPSILON = math.log(1000)
"""A prompt's epsilon above this lets an observation multiply odds more than a thousandfold."""
HEADLINE_TARGET = 0.1
"""The summary quotes the DEL row calibrated nearest to this attack success rate."""


GLOSSARY = (
    (
        "PPL",
        "Perplexity of the reference continuation given the privatised prompt: exp of the mean negative "
        "log-likelihood a token. Lower is better.",
    ),
    (
        "COH",
        "Coherence: cosine between the sentence embeddings of the generated and the reference continuation. Depends "
        "on the encoder, which is therefore part of its name.",
    ),
    ("Agreement", "Share of continuation positions at which the most likely token equals the clean model's."),
    (
        "R",
        "Information retained: (NLL of mean + its soft prompt − NLL of the method) / (NLL of mean + its soft prompt − "
        "NLL of clean + its soft prompt). 0: the private prompt told the server nothing; 1: as good as the clean "
        "prompt.",
    ),
    (
        "ASR",
        "Attack success rate: share of private tokens that an attacker names correctly at the first guess. "
        "“Worst” is the strongest attack that was run.",
    ),
    (
        "μ",
        "Parameter of Gaussian differential privacy that the quantizer is calibrated with, for one token. An "
        "approximation, so it always stands beside the exact ε.",
    ),
    ("μ eff", "Smallest μ for which the mechanism's exact trade-off function really is μ-GDP, for one token."),
    (
        "ε, δ",
        "Differential privacy, exact: apart from probability δ, what is sent multiplies the odds between any two "
        "inputs by at most exp(ε).",
    ),
    ("Bits a token", "Payload of one private token before entropy coding and framing."),
)


def number(value: float | None) -> str:
    """Three significant digits: ``25.4``, ``12 300``, ``1.2 × 10⁻⁵``, ``∞``, or an en dash for None and NaN."""
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    sign = "−" if value < 0 else ""
    return sign + _magnitude(float(f"{abs(value):.2e}"))


def _magnitude(value: float) -> str:
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(value))
    if -4 <= exponent < 6:
        return f"{value:,.{max(0, 2 - exponent)}f}".replace(",", THIN_SPACE)
    mantissa, power = f"{value:.2e}".split("e")
    return f"{mantissa}{THIN_SPACE}×{THIN_SPACE}{_power_of_ten(int(power))}"


def _power_of_ten(exponent: int) -> str:
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def setting(value: float | None) -> str:
    """A number that somebody chose, without trailing zeros: ``4``, ``0.1``, ``10⁻⁵``."""
    text = number(value)
    mantissa, times, power = text.partition(f"{THIN_SPACE}×{THIN_SPACE}")
    short = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return power if times and short == "1" else short + times + power


def count(value: float) -> str:
    """A whole number in full, with its digits grouped; others as :func:`number`."""
    whole = math.isfinite(value) and float(value).is_integer()
    return f"{int(value):,}".replace(",", THIN_SPACE) if whole else number(value)


def percent(share: float) -> str:
    """A share as per cent: ``40%``, ``0.8%``."""
    return f"{share * 100:.{0 if abs(share) >= 0.0995 else 1}f}%".replace("-", "−")


def interval(estimate: Estimate) -> str:
    """``[23.1, 27.4]``, or nothing where no interval exists."""
    if estimate.low is None or estimate.high is None:
        return ""
    decimals = _decimals(max(abs(estimate.low), abs(estimate.high)))
    if estimate.value and _decimals(estimate.value) > decimals:
        decimals += 1  # 0.999 [0.998, 1.000], not [1.00, 1.00]
    return f"[{_fixed(estimate.low, decimals)}, {_fixed(estimate.high, decimals)}]"


def _decimals(value: float) -> int:
    """Decimals that show three significant digits."""
    if value == 0 or not math.isfinite(value):
        return 0
    return max(0, 2 - math.floor(math.log10(float(f"{abs(value):.2e}"))))


def _fixed(value: float, decimals: int) -> str:
    """``value`` with the decimals that both ends of an interval share; very large and small ones on their own."""
    if value == 0 or decimals > 6 or not abs(value) < 1000:
        return number(value)
    return f"{value:.{decimals}f}".replace("-", "−" if round(value, decimals) else "")


def with_interval(estimate: Estimate) -> str:
    """``25.4 [23.1, 27.4]``."""
    return f"{number(estimate.value)} {interval(estimate)}".strip()


def duration(seconds: float) -> str:
    """``42 s``, ``11 min 32 s`` or ``3 h 5 min``."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    minutes, rest = divmod(total, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def moment(text: str) -> str:
    """A time stamp to the minute, ``2026-01-01 12:00 UTC``."""
    return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def row_name(row: LeaderboardRow) -> str:
    """The row's name in samples and tables: its label, plus `` + soft prompt`` where it has one."""
    return f"{row.label} + soft prompt" if row.soft_prompt else row.label


def groups(board: Leaderboard) -> list[tuple[str, list[LeaderboardRow]]]:
    """Rows as (heading, rows): controls, then the methods under test; in the board's order within."""
    controls = [row for row in board.rows if row.is_control]
    tested = [row for row in board.rows if not row.is_control]
    return [(name, rows) for name, rows in (("Controls", controls), ("DEL", tested)) if rows]


def is_nearest(attack: str) -> bool:
    """Whether the attack is the paper's: the nearest neighbour of the decoded embedding."""
    return "nearest" in attack


def is_optimal(attack: str) -> bool:
    """Whether the attack is the Bayes-optimal one."""
    return "bayes" in attack.lower() or "optimal" in attack


def attacks(board: Leaderboard) -> list[str]:
    """All attacks of the board: nearest neighbour, Bayes-optimal, others; ``worst`` is not among them."""
    names = dict.fromkeys(name for row in board.rows for name in row.asr if name != "worst")
    return sorted(names, key=lambda name: (not is_nearest(name), not is_optimal(name)))


def attack_result(row: LeaderboardRow, matches: Callable[[str], bool]) -> Estimate | None:
    """The row's result under the first attack whose name matches."""
    return next((estimate for attack, estimate in row.asr.items() if matches(attack)), None)


def worst_attack(row: LeaderboardRow) -> Estimate | None:
    """The strongest attack's result: as stored, or the largest of those that were run."""
    if "worst" in row.asr:
        return row.asr["worst"]
    return max(row.asr.values(), key=lambda estimate: estimate.value, default=None)


def guarantee(privacy: PrivacyColumns, *, name_mu: bool = True) -> str:
    """The guarantee in one phrase: mu with the exact epsilon of a token and of a prompt; empty without one.

    Without both epsilons nothing is said, because a mu alone would be read as a guarantee.
    """
    if privacy.epsilon_token is None or privacy.epsilon_sequence is None:
        return ""
    mu = f"μ = {number(privacy.mu_token)}, exact " if name_mu and privacy.mu_token is not None else ""
    tokens = MISSING if privacy.sequence_tokens is None else count(privacy.sequence_tokens)
    phrase = (
        f"{mu}ε = {number(privacy.epsilon_token)} a token and ε = {number(privacy.epsilon_sequence)} "
        f"for a prompt of {tokens} tokens, at δ = {setting(privacy.delta)}"
    )
    return phrase.replace(" = ", f"{NO_BREAK}={NO_BREAK}")


def partner(board: Leaderboard, row: LeaderboardRow) -> LeaderboardRow | None:
    """The same method at the same setting with the opposite choice of soft prompt."""
    return next(
        (other for other in board.rows if other.label == row.label and other.soft_prompt != row.soft_prompt), None
    )


def headline_row(board: Leaderboard) -> LeaderboardRow | None:
    """The DEL row that the summary quotes: nearest to ASR 0.1, with a soft prompt if there is one."""
    tested = [row for row in board.rows if not row.is_control]

    def distance(row: LeaderboardRow) -> tuple[float, bool]:
        return (math.inf if row.target is None else abs(row.target - HEADLINE_TARGET), not row.soft_prompt)

    return min(tested, key=distance, default=None)


def summary(board: Leaderboard) -> list[str]:
    """What was measured and what came out, in sentences."""
    seeds = "one seed" if len(board.seeds) == 1 else f"{len(board.seeds)} seeds"
    schedule = f" Schedule: {board.schedule}." if board.schedule else ""
    sentences = [
        f"{board.model} continues private prompts from {board.dataset} that it receives only through each method's "
        f"front-end: {count(board.prompts)} test prompts, {count(board.private_tokens)} private tokens, {seeds}."
        f"{schedule}"
    ]
    row = headline_row(board)
    if row is None:
        return [*sentences, "Only controls were run, so there is no result on DEL itself."]
    return [*sentences, *_headline(board, row)]


def _headline(board: Leaderboard, row: LeaderboardRow) -> Iterator[str]:
    level = f"a nearest-neighbour ASR target of {row.target:g}" if row.target is not None else guarantee(row.privacy)
    where = f"At {level}, DEL" if level else row.label
    prompt = " with its soft prompt" if row.soft_prompt else " without a soft prompt"
    yield f"{where}{prompt} reaches PPL {with_interval(row.perplexity)}{_against_partner(board, row)}."
    if row.retained is not None:
        yield f"Information retained R = {with_interval(row.retained)}{_about_zero(row.retained)}."
    yield from _attack_sentence(row)


def _against_partner(board: Leaderboard, row: LeaderboardRow) -> str:
    other = partner(board, row)
    if other is None or not row.soft_prompt:
        return ""
    change = row.perplexity.value / other.perplexity.value - 1
    signed = f"{'+' if change > 0 else ''}{percent(change)}"
    overlap = "; the intervals overlap" if overlapping(row.perplexity, other.perplexity) else ""
    return f", against {with_interval(other.perplexity)} without ({signed}{overlap})"


def overlapping(first: Estimate, second: Estimate) -> bool:
    """Whether both intervals exist and share a point."""
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return False
    return first.low <= second.high and second.low <= first.high


def _about_zero(retained: Estimate) -> str:
    if retained.low is None or retained.high is None or not retained.low <= 0 <= retained.high:
        return ""
    return ", which cannot be told from 0: nothing shows that the prompt's content reached the server's output"


def _attack_sentence(row: LeaderboardRow) -> Iterator[str]:
    nearest = attack_result(row, is_nearest)
    optimal = attack_result(row, is_optimal)
    if optimal is not None:
        beside = "" if nearest is None else f"; the nearest-neighbour attack {percent(nearest.value)}"
        yield f"The Bayes-optimal attacker reads {percent(optimal.value)} of the private tokens{beside}."
    elif nearest is not None:
        yield f"The nearest-neighbour attacker reads {percent(nearest.value)} of the private tokens."


def warnings(board: Leaderboard) -> list[str]:
    """What a reader must know before quoting the table: the board's notes, then what its numbers imply."""
    implied = (_worst_case_warning, _vacuous_bound_warning, _missed_target_warning, _adaptation_warning)
    return [*board.notes, *(text for warn in implied for text in warn(board))]


def tested_settings(board: Leaderboard) -> list[LeaderboardRow]:
    """One row for each setting under test: with and without a soft prompt the guarantee is the same."""
    settings: dict[str, LeaderboardRow] = {}
    for row in board.rows:
        if not row.is_control:
            settings.setdefault(row.label, row)
    return list(settings.values())


def is_weak(privacy: PrivacyColumns) -> bool:
    """Whether the worst-case guarantee says almost nothing."""
    mu, epsilon = privacy.mu_token, privacy.epsilon_sequence
    return (mu is not None and mu >= VACUOUS_MU) or (epsilon is not None and epsilon > VACUOUS_EPSILON)


def _labels(rows: Iterable[LeaderboardRow]) -> str:
    return "; ".join(row.label for row in rows)


def _worst_case_warning(board: Leaderboard) -> Iterator[str]:
    weak = [row for row in tested_settings(board) if is_weak(row.privacy)]
    if not weak:
        return
    largest = max((row.privacy.epsilon_sequence or 0.0 for row in weak), default=0.0)
    size = f" (ε up to {number(largest)} for a prompt)" if largest else ""
    yield (
        f"In the worst case these guarantees say almost nothing{size}: {_labels(weak)}. "
        "Their privacy rests on the attacks that were measured, and a stronger attack may exist."
    )


def _vacuous_bound_warning(board: Leaderboard) -> Iterator[str]:
    vacuous = [row for row in tested_settings(board) if row.privacy.paper_bound_vacuous]
    if vacuous:
        yield (
            f"The lower bound of the paper's Theorem 4.2 is vacuous for {_labels(vacuous)}; "
            "the exact ε in the table needs no such bound."
        )


def _missed_target_warning(board: Leaderboard) -> Iterator[str]:
    for calibration in board.calibrations:
        if not calibration.reached and calibration.note not in board.notes:
            yield f"Calibration to ASR {calibration.target:g} missed its target: {calibration.note}"


def _adaptation_warning(board: Leaderboard) -> Iterator[str]:
    if not any(row.soft_prompt for row in board.rows):
        return
    text = "A soft prompt alone adapts the LLM to the domain, so a lower PPL is not recovered content: look at R."
    for row in board.rows:
        bare = partner(board, row)
        if row.method == "mean" and row.soft_prompt and bare is not None:
            text += (
                f" The mean embedding, which carries none of the prompt, already goes from PPL "
                f"{number(bare.perplexity.value)} to {number(row.perplexity.value)}."
            )
    yield text


def privacy_statement(row: LeaderboardRow) -> list[str]:
    """The row's guarantee in words: what is promised for a token, for a prompt, and what was measured."""
    privacy = row.privacy
    sentences = [f"Mechanism: {privacy.mechanism}{_parameters(privacy)}."]
    phrase = guarantee(privacy)
    if phrase:
        sentences += [
            f"Guaranteed in the worst case: {phrase}.",
            f"For one token: {_odds(privacy.epsilon_token)}. For the whole prompt: {_odds(privacy.epsilon_sequence)}. "
            "The number of tokens is not protected.",
        ]
    else:
        sentences.append("No exact ε is recorded, so nothing is claimed for the worst case.")
    return [*sentences, *_measured(row), *([_sentence(privacy.caveat)] if privacy.caveat else [])]


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
        return f"what is sent multiplies the odds between any two inputs by at most {number(math.exp(epsilon))}"
    power = "" if math.isinf(epsilon) else f", a factor of {_power_of_ten(math.floor(epsilon / math.log(10)))}"
    return f"the odds between two inputs may change by exp({number(epsilon)}){power}: next to no promise"


def _measured(row: LeaderboardRow) -> Iterator[str]:
    worst = worst_attack(row)
    if worst is not None:
        yield (
            f"Measured: the strongest attack that was run names {percent(worst.value)} of the tokens "
            f"{interval(worst)} (n = {count(worst.n)})."
        )
    if row.clipped_share is not None:
        yield f"Clipping changed {percent(row.clipped_share)} of the code's coordinates."


def shared_n(rows: Iterable[LeaderboardRow], pick: Callable[[LeaderboardRow], Estimate | None]) -> int | None:
    """The sample size, if all rows that have the number share one."""
    estimates = [estimate for row in rows if (estimate := pick(row)) is not None]
    sizes = {estimate.n for estimate in estimates}
    return sizes.pop() if len(sizes) == 1 else None
