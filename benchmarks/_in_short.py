"""What came out, in one list at the head of the README's results; every number from the committed leaderboards.

The sentences name figures and leave out who should win: another outcome reads the same way.
"""

from collections.abc import Callable, Iterable, Sequence

from _cells import NAMES, code, guarantee, show
from _del_plus import shown_settings

from del_lightning.config import with_defaults
from del_lightning.metrics import over_seeds
from del_lightning.report import anew, arrange, words
from del_lightning.report.arrange import Entry
from del_lightning.report.schema import Leaderboard
from del_lightning.report.site.claims import both


def in_short(
    boards: Sequence[Leaderboard], replications: Sequence[Leaderboard], glue: tuple[int, int] | None
) -> list[str]:
    """The list, an item a question; empty before there is any result.

    Args:
        boards: One leaderboard of text generation a data set.
        replications: Boards of further trainings, for what is said over trainings.
        glue: Private rows of GLUE that are surely above the length of the text, and all private rows.
    """
    quoted = [(board, entry) for board in boards if (entry := arrange.headline(board)) is not None]
    items = [*_through(quoted, replications), *_read(quoted), *_ahead(boards), *_plus(), *_glue(glue)]
    return ["\n".join(f"- {item}" for item in items)] if items else []


def _through(quoted: Sequence[tuple[Leaderboard, Entry]], replications: Sequence[Leaderboard]) -> list[str]:
    """Perplexity with and without a soft prompt, and what of it came from the prompt itself."""
    fluent = _a_data_set(quoted, _lowered)
    told = [text for board, entry in quoted if (text := _retained(board, entry, replications))]
    if not fluent or not told:
        return []
    return [
        f"**What comes through.** With a soft prompt DEL's perplexity is {fluent}. A soft prompt adapts the model to "
        "the kind of text whatever was sent, so R counts what came of the prompt itself (0: nothing, 1: as much as a "
        f"clean prompt gives): {', '.join(told)}."
    ]


def _lowered(entry: Entry) -> str:
    with_prompt, without = (row and row.perplexity for row in (entry.prompted, entry.plain))
    if with_prompt is None or without is None:
        return ""
    return f"{words.number(with_prompt.value)} instead of {words.number(without.value)}"


def _retained(board: Leaderboard, entry: Entry, replications: Sequence[Leaderboard]) -> str:
    """R over the trainings of the board's quoted setting, and of the board's own where it is none of them."""
    name = NAMES.get(board.dataset, board.dataset)
    own = show(entry.retained, ".3f") if entry.retained is not None else ""
    for group in _alike(board, replications):
        for one in anew.over_trainings(group):
            if (one.row.method, one.row.matching, one.row.target) == _setting(entry):
                pooled = show(both(one.retained, over_seeds(one.each)), ".3f")
                ours, theirs = _measured(board), _measured(group[0])
                if not own or ours == theirs:
                    return f"{pooled} on {name} over {len(group)} trainings"
                return f"{own} on {name} ({_named(*ours)}) and {pooled} over {len(group)} trainings ({_named(*theirs)})"
    return f"{own} on {name}" if own else ""


def _measured(board: Leaderboard) -> tuple[str, int]:
    """The type of the model's numbers and how often noise was drawn: what may set two runs of one setting apart."""
    return str(with_defaults(board.config)["model"]["dtype"]), len(board.seeds)


def _named(dtype: str, draws: int) -> str:
    return f"{dtype}, {words.count(draws)} draw{'s' * (draws > 1)} of noise"


def _setting(entry: Entry) -> tuple[str, str | None, float | None]:
    return entry.row.method, entry.row.matching, entry.row.target


def _alike(board: Leaderboard, replications: Sequence[Leaderboard]) -> Iterable[list[Leaderboard]]:
    """Several trainings of the board's own model, data, bits and width, those of most methods first."""
    groups = [group for group in anew.groups(replications) if len(group) > 1 and _which(group[0]) == _which(board)]
    return sorted(groups, key=lambda group: -len(group[0].rows))


def _which(board: Leaderboard) -> tuple[str, str, int, int | None]:
    return board.model, board.dataset, *code(board)


def _read(quoted: Sequence[tuple[Leaderboard, Entry]]) -> list[str]:
    """What attackers read at the quoted setting, and its guarantee."""
    found = _a_data_set(quoted, _asr)
    epsilon = _a_data_set(quoted, lambda entry: guarantee(entry.row))
    if not found:
        return []
    return [
        f"**What is read.** The strongest attacker here reads {found} of the private tokens. Exact ε of a prompt: "
        f"{epsilon}."
    ]


def _asr(entry: Entry) -> str:
    nearest = words.attack_result(entry.row, words.is_nearest)
    strongest = words.worst_attack(entry.row)
    if nearest is None or strongest is None:
        return ""
    return f"{words.percent(strongest.value)} where the nearest neighbour reads {words.percent(nearest.value)}"


def _ahead(boards: Sequence[Leaderboard]) -> list[str]:
    """How many methods with a soft prompt are ahead of DEL and behind it, where the worst attacker reads as much."""
    found = []
    for board in boards:
        entries = arrange.matched(board, "worst", arrange.headline_target(board))
        others = [entry for entry in entries if not entry.is_reference and entry.prompted is not None]
        pairs = [entry.best.difference.nll for entry in others if entry.best.difference and entry.best.difference.nll]
        apart = [pair.value for pair in pairs if not words.holds_zero(pair)]
        if pairs:
            ahead, behind = sum(value < 0 for value in apart), sum(value > 0 for value in apart)
            name = NAMES.get(board.dataset, board.dataset)
            found.append(f"{name}: of {len(pairs)}, {ahead} ahead of DEL beyond the noise and {behind} behind")
    if not found:
        return []
    return [
        "**Who is ahead.** Other methods with soft prompts, where the strongest calibrated attack reads as much as of "
        f"DEL, paired over prompts. {'; '.join(found)}; the others cannot be told from it. One training each: another "
        "may move such a difference by more than its interval ([Limits](#limits))."
    ]


def _plus() -> list[str]:
    """DEL+ beside DEL at one guarantee, over the settings of its table."""
    shown = shown_settings()
    if not shown:
        return []
    ours, plus = [one.retained.value for _, one, _ in shown], [one.retained.value for *_, one in shown]
    last = [value for *_, one in shown for value in one.read[anew.LAST]]
    price = f"; the last token of a prompt is read in {_range(last, '.0%')} of all prompts" if last else ""
    return [
        f"**DEL+**, our variant with DEL's guarantee and bits: R {_range(plus, '.2f')} in {len(shown)} settings, where "
        f"DEL (with the same adapter) has {_range(ours, '.2f')}{price} ([docs/del_plus.md](docs/del_plus.md))."
    ]


def _range(values: Sequence[float], style: str) -> str:
    low, high = format(min(values), style), format(max(values), style)
    return low if low == high else f"{low} to {high}"


def _glue(found: tuple[int, int] | None) -> list[str]:
    if found is None:
        return []
    above, private = found
    return [
        f"**GLUE.** {above or 'None'} of {private} private rows {'is' if above == 1 else 'are'} surely above what the "
        "length of the text alone gives ([docs/glue.md](docs/glue.md))."
    ]


def _a_data_set(quoted: Sequence[tuple[Leaderboard, Entry]], of: Callable[[Entry], str]) -> str:
    """One piece of text a data set, its name behind it."""
    pieces = [(NAMES.get(board.dataset, board.dataset), of(entry)) for board, entry in quoted]
    return ", ".join(f"{piece} ({name})" for name, piece in pieces if piece)
