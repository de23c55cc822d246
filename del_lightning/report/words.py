"""Numbers and phrases of the report.

A number has three significant digits; infinity is ∞ and a missing value an en dash. A GDP parameter mu is never
written without the exact epsilon beside it (a mu of 20 looks harmless and is not), so every phrase that mentions mu
comes from :func:`guarantee`.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Context, Decimal

from del_lightning.report.schema import (
    Estimate,
    Leaderboard,
    LeaderboardRow,
    NluLeaderboard,
    PrivacyColumns,
    TransferBoard,
)

MISSING = "–"
NO_BREAK = "\u00a0"
THIN_SPACE = "\u202f"
"""Narrow no-break space: groups digits."""

SYMBOLS = {"mu": "μ", "eta": "η", "epsilon": "ε"}
"""Privacy parameters as tables print them."""
MATCHED = {"nearest": "nearest-neighbour ASR", "worst": "worst-case ASR", "guarantee": "DEL's guarantee at ASR"}
"""What methods of a group have in common, as sentences name it."""

GLOSSARY = (
    (
        "Soft prompt",
        "Vectors that the server learns and puts in front of what it receives, for a language model that stays frozen "
        "(unless a run says that an adapter was trained too). They adapt it to the kind of text even where nothing of "
        "the prompt came through.",
    ),
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
        "NLL − DEL",
        "Nats a token that a method loses (positive) or wins (negative) against DEL at the same target, paired over "
        "prompts. “Inside the noise” where the 95% interval holds 0.",
    ),
    (
        "ASR",
        "Attack success rate: share of private tokens that an attacker names correctly at the first guess. The nearest "
        "neighbour is the paper's attacker.",
    ),
    (
        "Strongest attack",
        "The largest success of all attacks that were run on a row (“worst of all”), with its name. Attackers know the "
        "mechanism, and some the language; a stronger one may exist.",
    ),
    (
        "Content, unknown, last",
        "The same success over some of the tokens: those that carry content (a letter or digit, and no English stop "
        "word), the pieces of the marker “<unk>”, and the last private token of every prompt. Five or ten guesses: "
        "the right token is among so many. Whole prompts: every token is named at the first guess.",
    ),
    (
        "Certified",
        "No attacker that knows only how frequent tokens are names one correctly with a higher probability, whatever "
        "it computes; from the exact accountant. Attacks that read the context know more, and may exceed it.",
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
    (
        "η",
        "Parameter of metric privacy: what is sent multiplies the odds between two tokens by at most exp(η × their "
        "distance). No ε follows from it.",
    ),
    ("Bits a token", "Payload of one private token before entropy coding and framing."),
    (
        "n",
        "Bits of a coordinate where a quantizer is meant (n = 4); beside a measured number its sample size: prompts, "
        "tokens or trainings (n = 64).",
    ),
)


def meaning(heading: str, small: Sequence[str] = ()) -> str:
    """What the glossary says to a column, for the pointer; empty where it says nothing.

    Args:
        heading: Of the column, for instance ``COH[encoder]``.
        small: Lines of small type under it.
    """
    terms = dict(GLOSSARY)
    name = heading.partition("[")[0].replace(NO_BREAK, " ")
    if name == "ASR" and any(text.startswith(("worst of all", "strongest")) for text in small):
        name = "Strongest attack"
    if name == "Parameter":
        return " ".join(f"{term}: {terms[term]}" for term in ("μ", "μ eff", "ε, δ", "η"))
    return terms.get("ε, δ" if name.startswith("ε ") else name, "")


def number(value: float | None) -> str:
    """Three significant digits: ``25.4``, ``12 300``, ``1.2 × 10⁻⁵``, ``∞``, or an en dash for None and NaN."""
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    sign = "−" if value < 0 else ""
    return sign + _magnitude(float(f"{abs(value):.2e}"))


def at_most(value: float | None) -> str:
    """A promise as :func:`number`, never below its value: rounded up, from 100 on to a whole number."""
    if value is None or not math.isfinite(value) or value <= 0:
        return number(value)
    exact = Decimal(str(value))
    digits = min(exact.adjusted() - 2, 0) if exact < 10**6 else exact.adjusted() - 2
    rounded = float(exact.quantize(Decimal(1).scaleb(digits), ROUND_CEILING, Context(prec=60)))
    return count(rounded) if 100 <= rounded < 10**6 else number(rounded)


def at_most_percent(share: float) -> str:
    """A bound on a share as per cent with one digit, rounded up and at most 100%."""
    return f"{min(Decimal(100), 100 * Decimal(str(share))).quantize(Decimal('0.1'), ROUND_CEILING)}%"


def at_most_whole(value: float) -> str:
    """A promise in whole numbers with commas, for tables of plain text: rounded up."""
    return f"{math.ceil(value):,}" if math.isfinite(value) else "∞"


def _magnitude(value: float) -> str:
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(value))
    if -4 <= exponent < 6:
        return f"{value:,.{max(0, 2 - exponent)}f}".replace(",", THIN_SPACE)
    mantissa, power = f"{value:.2e}".split("e")
    return f"{mantissa}{THIN_SPACE}×{THIN_SPACE}{power_of_ten(int(power))}"


def power_of_ten(exponent: int) -> str:
    """``10⁻⁵``."""
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


def share(estimate: Estimate) -> str:
    """A measured share with its interval in per cent: ``12.3% [10.1, 14.7]``."""
    return f"{per_cent(estimate)} {per_cent_interval(estimate)}".strip()


def per_cent(estimate: Estimate) -> str:
    """A measured share with one digit: ``12.3%``."""
    return f"{100 * estimate.value + 0.0:.1f}%".replace("-", "−")


def per_cent_interval(estimate: Estimate) -> str:
    """``[10.1, 14.7]``, in per cent, or nothing where no interval exists."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"[{100 * estimate.low:.1f},{NO_BREAK}{100 * estimate.high:.1f}]".replace("-", "−")


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
    """``25.4 [23.1, 27.4]``; what is known exactly in full and by itself."""
    if estimate.interval == "exact":
        return count(estimate.value)
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


def signed(value: float) -> str:
    """Three significant digits with their sign: ``+0.120``, ``−0.0456``, ``0``."""
    return f"+{number(value)}" if value > 0 else number(value)


def change(estimate: Estimate) -> str:
    """A difference with its interval, as fine as the interval's two leading digits: ``−0.004 [−0.024, 0.017]``."""
    if estimate.low is None or estimate.high is None:
        return signed(estimate.value)
    decimals = max(0, _decimals(max(abs(estimate.low), abs(estimate.high))) - 1)
    value, low, high = (_fixed(x, decimals) for x in (estimate.value, estimate.low, estimate.high))
    return f"{'+' if estimate.value > 0 else ''}{value} [{low}, {high}]"


def memory(size: float) -> str:
    """A number of bytes: ``0``, ``512 B``, ``40.5 KiB``, ``113 MiB``."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{setting(size)}{NO_BREAK}{unit}" if size else "0"
        size /= 1024
    return f"{setting(size)}{NO_BREAK}GiB"


def row_name(row: LeaderboardRow) -> str:
    """The row's name in samples and tables: its label, plus `` + soft prompt`` where it has one."""
    return f"{row.label} + soft prompt" if row.soft_prompt else row.label


_SPACES = {"cosine)": "", "l2)": ", L2", "code)": " on the code"}
"""Where a nearest neighbour was looked for; by the cosine of decoded embeddings is the paper's attack."""


def attack_name(attack: str) -> str:
    """An attack as all tables and figures name it: ``nearest neighbour``, ``nearest neighbour, L2``."""
    name, _, space = attack.replace("_", " ").partition(" (")
    return f"{name}{_SPACES.get(space, f' ({space}')}" if space else name


_TOKENS = {
    "": "All tokens",
    "content": "Content tokens",
    "unknown": "Pieces of <unk>",
    "last": "Last token of a prompt",
}
_GUESSES = {"top-1": "first guess", "top-5": "five guesses", "top-10": "ten guesses"}
ROUGE = "rouge-l"
"""The measure of :func:`~del_lightning.metrics.recovery` that is no share."""


def measure_name(measure: str) -> str:
    """A measure of :func:`~del_lightning.metrics.recovery` as a heading: ``Content tokens, five guesses``."""
    if measure in ("exact", ROUGE):
        return {"exact": "Whole prompts", ROUGE: "ROUGE-L of the text"}[measure]
    tokens, _, guesses = measure.rpartition(" ")
    return f"{_TOKENS.get(tokens, tokens)}, {_GUESSES.get(guesses, guesses)}"


def is_nearest(attack: str) -> bool:
    """Whether the attack is the paper's: the nearest neighbour of the decoded embedding."""
    return "nearest" in attack


def is_optimal(attack: str) -> bool:
    """Whether the attack is the Bayes-optimal one."""
    return "bayes" in attack.lower() or "optimal" in attack


def reads_one_token(attack: str) -> bool:
    """Whether the attack sees a token's release and no context."""
    return is_nearest(attack) or is_optimal(attack)


def attacks(board: Leaderboard) -> list[str]:
    """All attacks of the board: nearest neighbour, Bayes-optimal, others; ``worst`` is not among them."""
    names = dict.fromkeys(name for row in board.rows for name in row.asr if name != "worst")
    return sorted(names, key=lambda name: (not is_nearest(name), not is_optimal(name)))


def attack_result(row: LeaderboardRow, matches: Callable[[str], bool]) -> Estimate | None:
    """The row's result under the first attack whose name matches."""
    return next((estimate for attack, estimate in row.asr.items() if matches(attack)), None)


def repeats(board: Leaderboard | NluLeaderboard | TransferBoard) -> str:
    """How often what was repeated: text is generated under several draws of noise, GLUE trained under several seeds."""
    number = len(board.seeds)
    if isinstance(board, NluLeaderboard):
        return "one training" if number == 1 else f"{number} trainings"
    return f"{draws(number)}, every part trained once (seed {board.config.get('seed', 0)})"


_SCHEDULED = {
    *("steps", "batch_size", "learning_rate", "virtual_tokens", "draws", "max_prompts"),
    *("train_tokens", "sequence_tokens", "sentence_tokens", "train_examples", "selection_examples", "eval_examples"),
}
"""Settings that say how long and on how much something trains, and on how much it is measured."""


def schedule(board: Leaderboard | NluLeaderboard | TransferBoard) -> str:
    """The experiment's label of its schedule, and what was set to something else on the command line."""
    changed = [one for one in board.overrides if one.partition("=")[0].rpartition(".")[2] in _SCHEDULED]
    if not board.schedule or not changed or any(one.startswith("schedule=") for one in board.overrides):
        return board.schedule
    return f"{board.schedule}, but with {', '.join(changed)}"


def draws(number: int) -> str:
    """How many draws of noise."""
    return "one draw of noise" if number == 1 else f"{number} draws of noise"


def steps(board: Leaderboard) -> str:
    """A schedule in numbers: ``codec 60 steps of 4, soft prompts at most 150 of 8``; empty where it is not recorded."""
    parts = [(name, board.config.get(part) or {}) for name, part in (("codec", "codec"), ("soft prompts", "prompt"))]
    least = "at most " if (board.config.get("prompt") or {}).get("patience") is not None else ""
    found = [
        f"{name} {least if name != 'codec' else ''}{count(part['steps'])} steps of {part['batch_size']}"
        for name, part in parts
        if {"steps", "batch_size"} <= part.keys()
    ]
    return ", ".join(found)


def worst_attack(row: LeaderboardRow) -> Estimate | None:
    """The strongest attack's result: as stored, or the largest of those that were run."""
    if "worst" in row.asr:
        return row.asr["worst"]
    return max(row.asr.values(), key=lambda estimate: estimate.value, default=None)


def most_recovered(row: LeaderboardRow, measure: str) -> Estimate | None:
    """The most that any attack recovers by a measure of :func:`~del_lightning.metrics.recovery`; None: not measured."""
    found = [one for measures in row.recovery.values() if (one := measures.get(measure)) is not None]
    return max(found, key=lambda one: one.value, default=None)


def worst_name(row: LeaderboardRow) -> str:
    """Name of the strongest attack; empty where only its result is stored."""
    named = {name: rate.value for name, rate in row.asr.items() if name != "worst"}
    return max(named, key=lambda name: named[name], default="")


def guarantee(privacy: PrivacyColumns, *, name_mu: bool = True) -> str:
    """The guarantee in one phrase: mu with the exact epsilon of a token and of a prompt; empty without one.

    Without both epsilons nothing is said, because a mu alone would be read as a guarantee.
    """
    if privacy.epsilon_token is None or privacy.epsilon_sequence is None:
        return ""
    mu = f"μ = {at_most(privacy.mu_token)}, exact " if name_mu and privacy.mu_token is not None else ""
    tokens = MISSING if privacy.sequence_tokens is None else count(privacy.sequence_tokens)
    phrase = (
        f"{mu}ε = {at_most(privacy.epsilon_token)} a token and ε = {at_most(privacy.epsilon_sequence)} "
        f"for a prompt of {tokens} tokens, at δ = {setting(privacy.delta)}"
    )
    return phrase.replace(" = ", f"{NO_BREAK}={NO_BREAK}")


def holds_zero(estimate: Estimate) -> bool:
    """Whether the estimate has an interval and 0 lies in it."""
    return estimate.low is not None and estimate.high is not None and estimate.low <= 0 <= estimate.high


def parameter(row: LeaderboardRow) -> str:
    """The privacy parameter with its number, ``η = 12.3``; empty for mu, which needs its epsilon, and for controls."""
    if row.value is None or row.parameter in (None, "mu"):
        return ""
    symbol = SYMBOLS.get(row.parameter, row.parameter)
    return f"{symbol}{NO_BREAK}={NO_BREAK}{number(row.value)}"


def overlapping(first: Estimate, second: Estimate) -> bool:
    """Whether both intervals exist and share a point."""
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return False
    return first.low <= second.high and second.low <= first.high


def shared_n(estimates: Iterable[Estimate | None]) -> int | None:
    """The sample size, if all estimates share one."""
    sizes = {estimate.n for estimate in estimates if estimate is not None}
    return sizes.pop() if len(sizes) == 1 else None
