"""The leaderboard as a table: one definition of its columns, shown as HTML, as Markdown and in the terminal."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from del_lightning.report import words
from del_lightning.report.schema import Calibration, Environment, Estimate, Leaderboard, LeaderboardRow, PrivacyColumns


@dataclass(frozen=True)
class Cell:
    """One cell: the value, the small type under it, the number to sort by, and what the pointer reveals."""

    text: str
    small: tuple[str, ...] = ()
    sort: float | None = None
    title: str = ""

    @property
    def line(self) -> str:
        """The cell on one line."""
        return f"{self.text} {'; '.join(self.small)}".strip()


@dataclass(frozen=True)
class Column:
    """One column: heading, lines of small type under it, and how a row fills it."""

    name: str
    cell: Callable[[LeaderboardRow], Cell]
    small: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """The heading on one line."""
        return f"{self.name} ({', '.join(self.small)})" if self.small else self.name


def missing(why: str) -> Cell:
    """An en dash that says why there is no number."""
    return Cell(words.MISSING, title=why)


def method_cell(row: LeaderboardRow) -> Cell:
    """Label, and the size of the soft prompt under it."""
    if not row.soft_prompt:
        return Cell(row.label, ("no soft prompt",))
    parts = []
    if row.virtual_tokens is not None:
        parts.append(f"{words.count(row.virtual_tokens)} virtual tokens")
    if row.prompt_steps is not None:
        parts.append(f"{words.count(row.prompt_steps)} steps")
    return Cell(row.label, ("+ soft prompt", *([", ".join(parts)] if parts else [])))


def estimate_cell(estimate: Estimate | None, why: str, shared_n: int | None) -> Cell:
    """Value over its interval; the sample size too, unless the column's heading gives it."""
    if estimate is None:
        return missing(why)
    small = [text for text in (words.interval(estimate),) if text]
    if shared_n is None:
        small.append(f"n = {words.count(estimate.n)}")
    kind = "no interval" if estimate.interval == "none" else f"95% interval: {estimate.interval}"
    return Cell(words.number(estimate.value), tuple(small), estimate.value, f"n = {words.count(estimate.n)}, {kind}")


def target_cell(row: LeaderboardRow) -> Cell:
    """ASR to which the mechanism was calibrated."""
    if row.target is None:
        return missing("not calibrated to an attack success rate")
    return Cell(f"{row.target:g}", sort=row.target)


def mu_cell(row: LeaderboardRow) -> Cell:
    """mu a token with the exact epsilons of a token and of a prompt, and the effective mu; never mu alone."""
    privacy = row.privacy
    if privacy.epsilon_token is None or privacy.epsilon_sequence is None:
        return missing(
            privacy.caveat or f"{privacy.mechanism}: no exact ε is recorded, and a μ without it is not shown"
        )
    small = [
        f"ε {words.number(privacy.epsilon_token)} a token",
        f"ε {words.number(privacy.epsilon_sequence)} / {_tokens(privacy)} tokens",
    ]
    if privacy.mu_effective is not None:
        small.append(f"μ eff {words.number(privacy.mu_effective)}")
    text = f"μ {words.number(privacy.mu_token)}" if privacy.mu_token is not None else words.MISSING
    return Cell(text, tuple(small), privacy.mu_token, words.guarantee(privacy))


def _tokens(privacy: PrivacyColumns) -> str:
    return words.MISSING if privacy.sequence_tokens is None else words.count(privacy.sequence_tokens)


def bits_cell(row: LeaderboardRow) -> Cell:
    """Payload of a token, and how many times smaller that is than an fp32 and an fp16 embedding."""
    sent = row.communication
    if math.isinf(sent.ratio_fp32):
        small: tuple[str, ...] = ("∞× vs fp32",)
    else:
        small = tuple(
            f"{words.number(ratio)}× vs {name}"
            for name, ratio in (("fp32", sent.ratio_fp32), ("fp16", sent.ratio_fp16))
        )
    return Cell(words.count(sent.bits_per_token), small, sent.bits_per_token)


def estimate_column(
    board: Leaderboard, name: str, pick: Callable[[LeaderboardRow], Estimate | None], *, why: str, small: str = ""
) -> Column:
    """A column of estimates; its heading gives the sample size if all rows share one."""
    shared = words.shared_n(board.rows, pick)
    size = "" if shared is None else f"n = {words.count(shared)}"
    heading = tuple(text for text in (small, size) if text)
    return Column(name, lambda row: estimate_cell(pick(row), why, shared), heading)


def _attack_column(board: Leaderboard, attack: str) -> Column:
    why = "this attack was not run on this row"
    return estimate_column(board, "ASR", lambda row: row.asr.get(attack), why=why, small=attack.replace("_", " "))


def columns(board: Leaderboard) -> list[Column]:
    """All columns of the leaderboard, the method's name first."""
    unscored = "not measured"
    no_r = "needs a soft prompt on this row and on the clean and mean controls"
    deltas = {row.privacy.delta for row in board.rows if row.privacy.delta is not None}
    delta = [f"δ = {words.setting(deltas.pop())}"] if len(deltas) == 1 else []
    return [
        Column("Method", method_cell),
        Column("ASR target", target_cell),
        estimate_column(board, "PPL", lambda row: row.perplexity, why=unscored),
        estimate_column(board, f"COH[{board.encoder}]", lambda row: row.coherence, why=unscored),
        estimate_column(board, "Agreement", lambda row: row.agreement, why=unscored),
        estimate_column(board, "R", lambda row: row.retained, why=no_r),
        *(_attack_column(board, attack) for attack in words.attacks(board)),
        estimate_column(board, "ASR", words.worst_attack, why="no attack was run on this row", small="worst"),
        Column("μ a token", mu_cell, ("with exact ε", *delta)),
        Column("Bits a token", bits_cell),
    ]


def calibration_rows(board: Leaderboard) -> list[dict[str, str]]:
    """One line a calibration: target, mu with its epsilons, measured ASR, verdict."""
    return [
        {
            "Target": f"{item.target:g}",
            "μ a token, exact ε": _calibrated_mu(board, item),
            "ASR at this setting": f"{words.with_interval(item.asr)}, n = {words.count(item.asr.n)}",
            "Settings tried": words.count(len(item.evidence)),
            "Verdict": ("target met" if item.reached else "target missed") + (f": {item.note}" if item.note else ""),
        }
        for item in board.calibrations
    ]


def _calibrated_mu(board: Leaderboard, calibration: Calibration) -> str:
    """The epsilons come from the row that uses this calibration; without such a row mu is not shown."""
    for row in board.rows:
        same = row.target == calibration.target and row.privacy.mu_token is not None
        if same and (phrase := words.guarantee(row.privacy, name_mu=False)):
            return f"μ = {words.number(calibration.mu)}, exact {phrase}"
    return words.MISSING


def environment_rows(environment: Environment) -> list[tuple[str, str]]:
    """The environment as (name, value)."""
    revision = environment.revision or "not run from a checkout"
    if environment.dirty:
        revision += " with uncommitted changes"
    return [
        ("Revision", revision),
        ("Python", environment.python),
        ("Platform", environment.platform),
        ("Processor", f"{environment.processor}, {environment.cores} cores"),
        ("Memory", f"{words.number(environment.memory_gib)} GiB"),
        ("Accelerator", environment.accelerator or "none"),
        *sorted(environment.packages.items()),
    ]


def _escape(text: str) -> str:
    """Keep text from opening a cell, a tag, a link or a line of its own."""
    flat = " ".join(text.splitlines()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in ("\\", "|", "`", "*"):
        flat = flat.replace(mark, "\\" + mark)
    return flat.replace("](", "]\\(")


def _markdown_table(heading: list[str], lines: list[list[str]]) -> str:
    rows = [heading, ["---"] * len(heading), *([_escape(cell) for cell in line] for line in lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _markdown_leaderboard(board: Leaderboard) -> str:
    shown = columns(board)
    heading = [_escape(column.line) for column in shown]
    rows = [row for _, group in words.groups(board) for row in group]
    lines = [[words.row_name(row), *(column.cell(row).line for column in shown[1:])] for row in rows]
    return _markdown_table(heading, lines)


def render_markdown(board: Leaderboard) -> str:
    """The report as Markdown: summary, leaderboard, calibration, notes, environment, links. No data-set text."""
    calibrations = calibration_rows(board)
    parts = [f"# {_escape(board.title)}", _escape(" ".join(words.summary(board)))]
    parts += ["## Leaderboard", "Each value with its 95% interval.", _markdown_leaderboard(board)]
    if calibrations:
        table = _markdown_table(list(calibrations[0]), [list(line.values()) for line in calibrations])
        parts += ["## Calibration", table]
    parts += ["## Notes", "\n".join(f"- {_escape(note)}" for note in words.warnings(board)) or "None."]
    environment = [[name, value] for name, value in environment_rows(board.environment)]
    parts += ["## Environment", _markdown_table(["", ""], environment)]
    took = f"Generated {words.moment(board.generated)}; the runs behind it took {words.duration(board.wall_seconds)}."
    parts += [took, "More: [figures and samples](index.html), [all numbers](leaderboard.json)."]
    return "\n\n".join(parts) + "\n"


def console_table(board: Leaderboard) -> Table:
    """The leaderboard for a terminal of 80 columns: values only; the report has the intervals.

    Of the privacy figures it shows epsilon of a whole prompt, the one that needs no company.
    """
    table = Table(
        title=board.title,
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
        show_edge=False,
    )
    attacks = words.attacks(board)
    headings = ("PPL", "COH", "R", *map(_attack_heading, attacks), "ε of a\nprompt", "bits a\ntoken")
    table.add_column("Front-end", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for _, rows in words.groups(board):
        for row in rows:
            estimates = [row.perplexity, row.coherence, row.retained, *(row.asr.get(name) for name in attacks)]
            formats = [",.1f", ".2f", ".2f", *(".1%" for _ in attacks)]
            cells = [_plain(estimate, style) for estimate, style in zip(estimates, formats, strict=True)]
            epsilon = row.privacy.epsilon_sequence
            cells += ["none" if epsilon is None else f"{epsilon:,.0f}", f"{row.communication.bits_per_token:,.0f}"]
            label = "  + soft prompt" if row.soft_prompt else row.label
            table.add_row(Text(label), *cells)
        table.add_section()
    table.caption = f"{board.prompts} prompts; 95% intervals are in the report. ε: exact, δ = {_delta(board)}."
    table.caption_justify = "left"
    return table


def _plain(estimate: Estimate | None, style: str) -> str:
    return words.MISSING if estimate is None else format(estimate.value, style)


def _attack_heading(name: str) -> str:
    short = "nearest" if "nearest" in name.lower() else name.partition("-")[0].partition(" ")[0]
    return f"ASR\n{short}"


def _delta(board: Leaderboard) -> str:
    deltas = {row.privacy.delta for row in board.rows if row.privacy.delta is not None}
    return ", ".join(words.setting(delta) for delta in sorted(deltas)) or words.MISSING
