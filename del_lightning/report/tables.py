"""The leaderboard as a table: one definition of its columns, shown as HTML, as Markdown and in the terminal.

One line holds one method at one setting: what a soft prompt changes has two columns, everything else one.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from del_lightning.report import arrange, cautions, words
from del_lightning.report.arrange import Entry
from del_lightning.report.schema import (
    AttackedSetting,
    Calibration,
    CommunicationColumns,
    DeviceColumns,
    Environment,
    Estimate,
    Leaderboard,
    LeaderboardRow,
    MethodCalibration,
    PrivacyColumns,
)

ATTACKED_NOTE = (
    "Shares of the private tokens with 95% intervals. Differences are in percentage points, paired over the same "
    "tokens; their intervals resample whole prompts."
)
PLAIN, PROMPTED = "no soft prompt", "+ soft prompt"


@dataclass(frozen=True)
class Cell:
    """One cell: the value, the small type under it, the number to sort by, and what the pointer reveals."""

    text: str
    small: tuple[str, ...] = ()
    sort: float | None = None
    title: str = ""
    mark: str = ""
    """Letter of a note under the table."""

    @property
    def line(self) -> str:
        """The cell on one line."""
        between = "" if not self.small else " " if self.small[0].startswith("[") else ", "
        note = f" ({self.mark})" if self.mark else ""
        return f"{self.text}{between}{'; '.join(self.small)}{note}"


@dataclass(frozen=True)
class Column:
    """One column: heading, lines of small type under it, and how an entry fills it."""

    name: str
    cell: Callable[[Entry], Cell]
    small: tuple[str, ...] = ()
    extra: bool = False
    """Hidden until a reader asks for all columns."""

    @property
    def line(self) -> str:
        """The heading on one line."""
        return f"{self.name} ({', '.join(self.small)})" if self.small else self.name

    @property
    def title(self) -> str:
        """What it means, for the pointer."""
        return words.meaning(self.name, self.small)


def missing(why: str) -> Cell:
    """An en dash that says why there is no number."""
    return Cell(words.MISSING, title=why)


def method_cell(board: Leaderboard, group: arrange.Group, entry: Entry) -> Cell:
    """Name, where a group has one setting for all, else the label; under it what sets the entry apart.

    That is a soft prompt of another size than most have, and a target that it cannot meet, or stays below with room.
    """
    small = []
    own = prompt_size(entry.prompted)
    if own and own != shared_prompt_size(board):
        small.append(own)
    missed = {(m.method, matching, c.target): cautions.verdict(c) for m, matching, c in cautions.missed(board)}
    small += [verdict for calibrated, verdict in missed.items() if calibrated == _calibrated_to(entry)]
    return Cell(entry.name if group.together else entry.row.label, tuple(small))


def _calibrated_to(entry: Entry) -> tuple[str, str | None, float | None]:
    return entry.row.method, entry.row.matching, entry.row.target


def prompt_size(row: LeaderboardRow | None) -> str:
    """``20 virtual tokens, 150 steps``; empty without a soft prompt."""
    parts = []
    if row is not None and row.virtual_tokens is not None:
        parts.append(f"{words.count(row.virtual_tokens)} virtual tokens")
    if row is not None and row.prompt_steps is not None:
        parts.append(f"{words.count(row.prompt_steps)} steps")
    return ", ".join(parts)


def shared_prompt_size(board: Leaderboard) -> str:
    """The size that most soft prompts of the board have; empty without any."""
    sizes = [size for row in board.rows if row.soft_prompt and (size := prompt_size(row))]
    return max(dict.fromkeys(sizes), key=sizes.count, default="")


def estimate_cell(estimate: Estimate | None, why: str, shared_n: int | None) -> Cell:
    """Value over its interval; the sample size too, unless the column's heading gives it."""
    if estimate is None:
        return missing(why)
    return _estimated(estimate, words.number(estimate.value), words.interval(estimate), shared_n)


def rate_cell(estimate: Estimate | None, why: str, shared_n: int | None) -> Cell:
    """:func:`estimate_cell` of an attack's success, in per cent."""
    if estimate is None:
        return missing(why)
    return _estimated(estimate, words.per_cent(estimate), words.per_cent_interval(estimate), shared_n)


def _estimated(estimate: Estimate, value: str, interval: str, shared_n: int | None) -> Cell:
    size = f"n = {words.count(estimate.n)}"
    kind = "no interval" if estimate.interval == "none" else f"95% interval: {estimate.interval}"
    small = (interval, size if shared_n is None else "")
    return Cell(value, tuple(filter(None, small)), estimate.value, f"{size}, {kind}")


def difference_cell(row: LeaderboardRow | None, pick: Callable[[LeaderboardRow], Estimate | None]) -> Cell:
    """A paired difference to DEL, in words where its interval holds 0."""
    if row is not None and row.method == arrange.REFERENCE:
        return Cell("reference", sort=0.0, title="the others are compared with this row")
    estimate = None if row is None else pick(row)
    if row is None or estimate is None:
        return missing("no row of DEL at this setting to compare with in pairs")
    size, title = words.change(estimate), f"n = {words.count(estimate.n)}, paired over prompts"
    if words.holds_zero(estimate):
        return Cell("inside the noise", (size,), estimate.value, title)
    value, _, interval = size.partition(" ")
    return Cell(value, (interval,) if interval else (), estimate.value, title)


def parameter_cell(row: LeaderboardRow, mark: str = "") -> Cell:
    """The privacy parameter with what it guarantees: mu with the exact epsilons, never alone; others with a note."""
    privacy = row.privacy
    if row.parameter not in (None, "mu") and row.value is not None:
        text = f"{words.SYMBOLS.get(row.parameter, row.parameter)} {words.number(row.value)}"
        small = _epsilons(privacy) or ("no ε follows",)
        if row.parameter == "epsilon" and row.value == privacy.epsilon_token:
            small = ("a token", *small[1:])
        return Cell(text, small, row.value, privacy.caveat, mark)
    if not _epsilons(privacy):
        return missing(
            privacy.caveat or f"{privacy.mechanism}: no exact ε is recorded, and a μ without it is not shown"
        )
    token, sequence = _epsilons(privacy)
    effective = [] if privacy.mu_effective is None else [f"μ eff {words.at_most(privacy.mu_effective)}"]
    small = (*effective, token, sequence)
    text = f"μ {words.at_most(privacy.mu_token)}" if privacy.mu_token is not None else words.MISSING
    return Cell(text, small, privacy.mu_token, words.guarantee(privacy), mark)


def _epsilons(privacy: PrivacyColumns) -> tuple[str, ...]:
    if privacy.epsilon_token is None or privacy.epsilon_sequence is None:
        return ()
    tokens = words.MISSING if privacy.sequence_tokens is None else words.count(privacy.sequence_tokens)
    token, sequence = words.at_most(privacy.epsilon_token), words.at_most(privacy.epsilon_sequence)
    return (f"ε {token} a token", f"ε {sequence} / {tokens} tokens")


def bits_cell(sent: CommunicationColumns) -> Cell:
    """Payload of a token, and how many times smaller that is than an fp32 and an fp16 embedding."""
    if math.isinf(sent.ratio_fp32):
        small: tuple[str, ...] = ("∞× vs fp32",)
    else:
        small = tuple(
            f"{words.number(ratio)}× vs {name}"
            for name, ratio in (("fp32", sent.ratio_fp32), ("fp16", sent.ratio_fp16))
        )
    return Cell(words.count(sent.bits_per_token), small, sent.bits_per_token)


def device_cell(device: DeviceColumns | None) -> Cell:
    """What the user's device must hold."""
    if device is None:
        return missing("not recorded")
    return Cell(words.memory(device.bytes), sort=device.bytes, title=f"{words.count(device.parameters)} parameters")


def worst_cell(row: LeaderboardRow, shared_n: int | None) -> Cell:
    """The strongest attack's success, with its name."""
    cell = rate_cell(words.worst_attack(row), "no attack was run on this row", shared_n)
    name = words.attack_name(words.worst_name(row))
    return Cell(cell.text, (*cell.small, name) if name else cell.small, cell.sort, cell.title)


def certified_cell(row: LeaderboardRow) -> Cell:
    """The certified bound on attacks that know the tokens' frequencies only."""
    if row.certified is None:
        return missing("its guarantee bounds no attack")
    bound = words.at_most_percent(row.certified)
    if cautions.breaks_bound(row):
        return Cell(bound, ("below the measured rate",), row.certified)
    return Cell(f"≤ {bound}", sort=row.certified)


def estimate_column(
    entries: list[Entry],
    name: str,
    pick: Callable[[Entry], Estimate | None],
    *,
    why: str,
    small: str = "",
    extra: bool = False,
    show: Callable[[Estimate | None, str, int | None], Cell] = estimate_cell,
) -> Column:
    """A column of estimates; its heading gives the sample size if all these entries share one."""
    shared = words.shared_n(pick(entry) for entry in entries)
    heading = tuple(text for text in (small, _size(shared)) if text)
    return Column(name, lambda entry: show(pick(entry), why, shared), heading, extra)


def _size(shared: int | None) -> str:
    return "" if shared is None else f"n = {words.count(shared)}"


def _pair(
    board: Leaderboard,
    entries: list[Entry],
    name: str,
    pick: Callable[[LeaderboardRow], Estimate | None],
    extra: bool,
) -> Iterator[Column]:
    """A column without and one with soft prompt, those that the board has."""

    def plain(entry: Entry) -> Estimate | None:
        return None if entry.plain is None else pick(entry.plain)

    def prompted(entry: Entry) -> Estimate | None:
        return None if entry.prompted is None else pick(entry.prompted)

    if any(not row.soft_prompt for row in board.rows):
        yield estimate_column(entries, name, plain, why="not measured", small=PLAIN, extra=extra)
    if any(row.soft_prompt for row in board.rows):
        why = "not measured, or no soft prompt was trained"
        yield estimate_column(entries, name, prompted, why=why, small=PROMPTED, extra=extra)


def _differences(board: Leaderboard) -> Iterator[Column]:
    """Differences to DEL: those behind the best row of a method first; none where nothing was compared."""
    if all(row.difference is None for row in board.rows):
        return

    def nll(row: LeaderboardRow) -> Estimate | None:
        return None if row.difference is None else row.difference.nll

    def coherence(row: LeaderboardRow) -> Estimate | None:
        return None if row.difference is None else row.difference.coherence

    def best(entry: Entry) -> Cell:
        cell = difference_cell(entry.best, nll)
        shown = any(row.soft_prompt for row in board.rows) and not entry.best.soft_prompt and cell.sort
        return Cell(cell.text, (*cell.small, PLAIN), cell.sort, cell.title) if shown else cell

    prompted = any(row.soft_prompt for row in board.rows)
    yield Column(f"NLL{words.NO_BREAK}−{words.NO_BREAK}DEL", best, (PROMPTED if prompted else PLAIN,))
    if prompted:
        yield Column(
            f"NLL{words.NO_BREAK}−{words.NO_BREAK}DEL",
            lambda entry: difference_cell(entry.plain, nll),
            (PLAIN,),
            extra=True,
        )
    yield Column(
        f"COH{words.NO_BREAK}−{words.NO_BREAK}DEL",
        lambda entry: difference_cell(entry.best, coherence),
        ("higher is better",),
        extra=True,
    )


def _attack_columns(board: Leaderboard, entries: list[Entry]) -> Iterator[Column]:
    why = "this attack was not run on this row"
    for attack in words.attacks(board):

        def pick(entry: Entry, attack: str = attack) -> Estimate | None:
            return entry.row.asr.get(attack)

        name, extra = words.attack_name(attack), not words.is_nearest(attack)
        yield estimate_column(entries, "ASR", pick, why=why, small=name, extra=extra, show=rate_cell)
    shared = words.shared_n(words.worst_attack(entry.row) for entry in entries)
    small = tuple(text for text in ("worst of all", _size(shared)) if text)
    yield Column("ASR", lambda entry: worst_cell(entry.row, shared), small)
    if any(row.certified is not None for row in board.rows):
        yield Column("Certified", lambda entry: certified_cell(entry.row), ("bound on ASR",))


def columns(board: Leaderboard, entries: list[Entry]) -> list[Column]:
    """All columns behind the method's name, the same for every group; headings give sizes that these entries share."""
    no_r = "needs a soft prompt on this row and on the clean and mean controls"
    deltas = {row.privacy.delta for row in board.rows if row.privacy.delta}
    delta = [f"δ = {words.setting(deltas.pop())}"] if len(deltas) == 1 else []
    mark = cautions.caveat_marks(board)
    found = [
        *_pair(board, entries, "PPL", lambda row: row.perplexity, extra=False),
        *_pair(board, entries, f"COH[{board.encoder}]", lambda row: row.coherence, extra=True),
        *_pair(board, entries, "Agreement", lambda row: row.agreement, extra=True),
        estimate_column(entries, "R", lambda entry: entry.retained, why=no_r),
        *_differences(board),
        *_attack_columns(board, entries),
        Column("Parameter", lambda e: parameter_cell(e.row, mark(e.row.privacy)), ("with exact ε", *delta)),
        Column("Bits a token", lambda entry: bits_cell(entry.row.communication)),
    ]
    if any(row.device for row in board.rows):
        found.append(Column("Device", lambda entry: device_cell(entry.row.device), ("bytes held",), extra=True))
    return found


def device_rows(board: Leaderboard) -> list[dict[str, str]]:
    """What each method needs on the user's device, one line a method; empty if nothing was recorded."""
    found = [(entry, entry.row.device) for entry in arrange.representatives(board)]
    return [
        {
            "Method": entry.name,
            "Parameters": words.count(device.parameters),
            "Bytes": words.memory(device.bytes),
            "Milliseconds a prompt": _with_size(device.milliseconds),
            "Bits a token": words.count(entry.row.communication.bits_per_token),
            "Note": device.note,
        }
        for entry, device in found
        if device is not None
    ]


def _with_size(estimate: Estimate | None, show: Callable[[Estimate], str] = words.with_interval) -> str:
    if estimate is None:
        return words.MISSING
    return f"{show(estimate)}, n = {words.count(estimate.n)}"


def recovery_rows(board: Leaderboard) -> list[dict[str, str]]:
    """What each attack recovers at the setting that the summary quotes, one line a method and attack."""
    entries = [entry for entry in arrange.representatives(board) if not entry.row.is_control]
    recovered = [(entry, attack, found) for entry in entries for attack, found in entry.row.recovery.items()]
    measures = dict.fromkeys(measure for *_, found in recovered for measure in found)
    sizes = {measure: words.shared_n(found.get(measure) for *_, found in recovered) for measure in measures}
    return [
        {
            "Method": entry.name,
            "Attack": words.attack_name(attack),
            "Certified bound, first guess": _bound(entry.row.certified, attack),
        }
        | {_measure_heading(name, size): _measured(name, found.get(name), size) for name, size in sizes.items()}
        for entry, attack, found in recovered
    ]


def _measure_heading(measure: str, shared_n: int | None) -> str:
    """The measure's name, with its sample size where all rows share one."""
    size = _size(shared_n).replace(" = ", f"{words.NO_BREAK}={words.NO_BREAK}")
    return words.measure_name(measure) + (f" ({size})" if size else "")


def _measured(measure: str, estimate: Estimate | None, shared_n: int | None) -> str:
    """One measure of an attack; all are shares but one."""
    if estimate is None:
        return words.MISSING
    text = words.with_interval(estimate) if measure == words.ROUGE else words.share(estimate)
    return text if shared_n is not None else f"{text}, {_size(estimate.n)}"


def _bound(certified: float | None, attack: str) -> str:
    """The bound that holds for an attack; those that read the context have none."""
    return (
        f"≤ {words.at_most_percent(certified)}"
        if certified is not None and words.reads_one_token(attack)
        else words.MISSING
    )


def attacked_rows(board: Leaderboard) -> list[dict[str, str]]:
    """Every attack on every setting, and the attacks against each other, one line a setting."""
    names = dict.fromkeys(name for one in board.attacked for name in one.asr if name != "worst")
    pairs = dict.fromkeys((pair.stronger, pair.weaker) for one in board.attacked for pair in one.differences)
    return [
        {"Method": one.label, "Parameter, exact ε": _whole_parameter(one)}
        | {words.attack_name(name): _share(one.asr.get(name)) for name in names}
        | {"Certified, one token": _bound(one.certified, "nearest")}
        | {
            f"{words.attack_name(strong)} − {words.attack_name(weak)}": _gain(one, strong, weak)
            for strong, weak in pairs
        }
        for one in board.attacked
    ]


def _whole_parameter(one: AttackedSetting) -> str:
    """Mu with its epsilons, a line each where there is room for no more; other parameters by their number."""
    epsilons = _epsilons(one.privacy)
    if not epsilons:
        return words.MISSING if one.value is None else words.number(one.value)
    mu = [] if one.privacy.mu_token is None else [f"μ {words.at_most(one.privacy.mu_token)}"]
    return ", ".join(part.replace(" ", words.NO_BREAK) for part in (*mu, *epsilons))


def _share(estimate: Estimate | None) -> str:
    return words.MISSING if estimate is None else words.share(estimate)


def _gain(one: AttackedSetting, strong: str, weak: str) -> str:
    """A paired difference in percentage points."""
    for pair in one.differences:
        if (pair.stronger, pair.weaker) == (strong, weak):
            value, low, high = pair.difference.value, pair.difference.low, pair.difference.high
            limits = "" if low is None or high is None else f" [{100 * low:+.1f},{words.NO_BREAK}{100 * high:+.1f}]"
            return f"{100 * value:+.1f}{limits}".replace("-", "−")
    return words.MISSING


def out_of_reach_rows(board: Leaderboard) -> list[dict[str, str]]:
    """One line a setting that has no row in the leaderboard because no value of its parameter meets the target."""
    return [
        {"Method": one.label, "Target": "not reached", "Closest ASR": _with_size(one.closest)}
        for one in cautions.out_of_reach(board)
    ]


def calibration_rows(board: Leaderboard) -> list[dict[str, str]]:
    """One line a calibration: what was searched, what came out with its guarantee, measured ASR, verdict."""
    return [
        {
            "Method": method.label,
            "Matched by": f"{words.MATCHED.get(matching, matching)} {item.target:g}",
            "Parameter, exact ε": _calibrated_value(board, method, matching, item),
            "ASR at this setting": _with_size(item.asr, words.share),
            "Settings tried": words.count(len(method.points)),
            "Verdict": cautions.verdict(item) + (f": {item.note}" if item.note else ""),
        }
        for method, matching, item in cautions.reported(board)
    ]


def _calibrated_value(board: Leaderboard, method: MethodCalibration, matching: str, found: Calibration) -> str:
    """Of mu's epsilons the row at this calibration knows; without such a row mu is not shown."""
    if method.parameter != "mu":
        return f"{words.SYMBOLS.get(method.parameter, method.parameter)} = {words.number(found.value)}"
    for row in board.rows:
        same = (row.method, row.matching, row.target) == (method.method, matching, found.target)
        if same and (phrase := words.guarantee(row.privacy, name_mu=False)):
            return f"μ = {words.at_most(found.value)}, exact {phrase}"
    return words.MISSING


def environment_rows(environment: Environment) -> list[tuple[str, str]]:
    """The environment as (name, value)."""
    processor = filter(None, (environment.processor, environment.instructions, f"{environment.cores} cores"))
    revision = environment.revision or "not run from a checkout"
    if environment.dirty:
        revision += " with uncommitted changes"
    return [
        ("Revision", revision),
        ("Python", environment.python),
        ("Platform", environment.platform),
        ("Processor", ", ".join(processor)),
        ("Memory", f"{words.number(environment.memory_gib)} GiB"),
        ("Accelerator", environment.accelerator or "none"),
        *sorted(environment.packages.items()),
    ]


def reading_note(board: Leaderboard) -> str:
    """How to read the tables."""
    size = shared_prompt_size(board)
    prompts = f" A soft prompt has {size} unless the row says otherwise." if size else ""
    return f"Each value with its 95% interval.{prompts}"
