"""The results in README, benchmarks/results/README.md and docs/del_plus.md, from the committed leaderboards.

python benchmarks/_readme.py     writes them and the README's pictures; tests/test_readme.py checks that they hold what
                                 the leaderboards say: no number is typed by hand
"""

from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from _cells import NAMES, NONE, RESULTS, ROOT, dirty, guarantee, show, trainings_table
from _del_plus import del_plus, frontiers, plus_summary
from _glue import glue_counts, glue_outcome, glue_summary, nlu_table, tasks
from _in_short import in_short

from del_lightning.report import anew, arrange, levels, pictures, prose, words
from del_lightning.report.arrange import Entry
from del_lightning.report.markdown import markdown_rows
from del_lightning.report.schema import AttackedSetting, Leaderboard, LeaderboardRow
from del_lightning.report.tables import ATTACKED_NOTE, attacked_rows

README, COMPLETE = ROOT / "README.md", RESULTS / "README.md"
DEL_PLUS = ROOT / "docs" / "del_plus.md"
PICTURES = ROOT / "docs" / "pictures"
START, END = "<!-- results -->\n", "<!-- end of results -->"
DIFFERENCE = "NLL − DEL"
SHORT = ("PPL, soft prompt", "R", DIFFERENCE, "ASR, nearest neighbour", "ASR, strongest attack", "bits a token")
"""Columns of the README's tables, besides the name and the guarantee."""


def section() -> str:
    """The README's section: for every committed leaderboard what came out, and its rows at the quoted target."""
    shown, found = drawn(), tasks()
    glue = glue_counts(found)
    parts = in_short(boards(), replications(), None if glue is None else (glue.above, glue.private))
    parts += _pictures(shown)
    for board in boards():
        name = NAMES.get(board.dataset, board.dataset)
        parts += _folded(f"{name}: every method", [_outcome(board), _table(board, _quoted(board), short=True)])
    parts += _folded("DEL+ beside DEL", plus_summary())
    if glue is not None:
        parts += _folded("GLUE: every way to classify", [glue_outcome(glue), glue_summary(found)])
    if parts:
        parts.append(
            "Every method at every target, every attacker and the columns that are left out here: "
            "[benchmarks/results](benchmarks/results/README.md)."
        )
    return "\n\n".join(parts)


def _folded(title: str, parts: list[str]) -> list[str]:
    """Parts of a page that open on a click; empty lines around them, or Markdown inside is not read as such."""
    return [f"<details>\n<summary>{title}</summary>", *parts, "</details>"] if parts else []


def page() -> str:
    """The complete tables: one a leaderboard, in the order of their names; the attackers compared; those of GLUE."""
    attacked = [Leaderboard.model_validate_json(path.read_text()) for path in sorted(RESULTS.glob("*/attacks.json"))]
    tables = [_table(board, _entries(board), short=False) for board in [*boards(), *elsewhere()]]
    tables += [*trained_anew(), *map(attack_table, attacked), *map(nlu_table, tasks())]
    head = (
        "# Results\n\nWritten by `python benchmarks/_readme.py` from the JSON files here. What the columns mean: "
        "[README](../../README.md#how-to-read-the-leaderboard)."
    )
    return "\n\n".join([head, *tables]) + "\n"


@cache
def boards() -> list[Leaderboard]:
    """The committed leaderboards of text generation with every method; levels that were run apart are one."""
    paths = sorted([*RESULTS.glob("*/leaderboard.json"), *RESULTS.glob("levels/*/leaderboard.json")])
    return levels.merged([Leaderboard.model_validate_json(path.read_text()) for path in paths])


def elsewhere() -> list[Leaderboard]:
    """The replication runs with a language model or on a data set that no leaderboard has.

    Further trainings of one setting stand in :func:`trained_anew`.
    """
    known = {(board.model, board.dataset) for board in boards()}
    found = [board for board in replications() if (board.model, board.dataset) not in known]
    several = [one.title for group in anew.groups(found) if len(group) > 1 for one in group]
    return [board for board in found if board.title not in several]


@cache
def replications() -> list[Leaderboard]:
    """The replication runs of text generation, by name."""
    paths = sorted((RESULTS / "replication").glob("*/leaderboard.json"))
    return [Leaderboard.model_validate_json(path.read_text()) for path in paths]


def trained_anew() -> list[str]:
    """What methods retain over several trainings of everything, as far as the replication runs have them."""
    several = [group for group in anew.groups(replications()) if len(group) > 1]
    if not several:
        return []
    head = (
        "**Trained anew.** Every part trained under each of several seeds (replication runs), methods calibrated each "
        "time. Brackets are 95% intervals: over prompts, of the NLL averaged over trainings; behind the colon over "
        "trainings, by Student's t."
    )
    return ["\n".join([head, "", *trainings_table(several)])]


def drawn() -> dict[Path, str]:
    """Where each picture lies, and the picture."""
    found = {PICTURES / f"{board.dataset}.svg": pictures.utility(board) for board in boards()}
    found |= {PICTURES / f"del_plus_{dataset}.svg": picture for dataset, picture in frontiers()}
    return {path: picture for path, picture in found.items() if picture}


def _pictures(shown: dict[Path, str]) -> list[str]:
    """The pictures beside each other, under the names of their data sets."""
    names = [board.dataset for board in boards() if PICTURES / f"{board.dataset}.svg" in shown]
    if not names:
        return []
    text = "R of every method with a soft prompt against the success of the strongest attack"
    cells = [f"![{text}, {name}](docs/pictures/{name}.svg)" for name in names]
    rows = [[NAMES.get(name, name) for name in names], ["---"] * len(names), cells]
    return ["\n".join(f"| {' | '.join(row)} |" for row in rows)]


def _outcome(board: Leaderboard) -> str:
    """What the report says came out, after the name of the data set."""
    return " ".join([f"**{NAMES.get(board.dataset, board.dataset)}.**", *prose.outcome(board), *prose.winners(board)])


def _quoted(board: Leaderboard) -> list[Entry]:
    """Both ends of R, DEL as the paper matches it, and all methods matched by the worst attacker if there are any."""
    target = arrange.headline_target(board)
    nearest, worst = (arrange.matched(board, matching, target) for matching in ("nearest", "worst"))
    ends = [entry for entry in arrange.controls(board) if entry.row.method in ("clean", "mean")]
    if not worst:
        return [*ends, *(nearest or arrange.tested(board))]
    return [*ends, *(entry for entry in nearest if entry.is_reference), *worst]


def attack_table(board: Leaderboard) -> str:
    """What every attack reads where calibration to the nearest neighbour stops."""
    rows = attacked_rows(board.model_copy(update={"attacked": [one for one in board.attacked if _is_matched(one)]}))
    name = NAMES.get(board.dataset, board.dataset)
    counts = sorted({rate.n for one in board.attacked if _is_matched(one) for rate in one.asr.values()})
    lines = [
        f"**{name}**: what every attack reads at the mu that nearest-neighbour calibration returns, {board.model}, "
        f"{' or '.join(f'{n:,}' for n in counts)} tokens; {words.schedule(board)}. {ATTACKED_NOTE}",
        "",
    ]
    return "\n".join([*lines, markdown_rows(rows)])


def _is_matched(one: AttackedSetting) -> bool:
    return one.value is not None and ", ASR " in one.label


def _entries(board: Leaderboard) -> list[Entry]:
    """Controls, DEL at every setting, and the other methods where the report's summary compares them with it."""
    found: list[Entry] = []
    for group in arrange.groups(board):
        found += [e for e in group.entries if (group.headline or e.is_reference) and e not in found]
    return found


def _table(board: Leaderboard, entries: Iterable[Entry], *, short: bool) -> str:
    entries = list(entries)
    columns = {name: cell for name, cell in _columns(board).items() if not short or _is_short(name)}
    shown = [(heading, cell) for heading, cell in columns.items() if any(cell(entry) != NONE for entry in entries)]
    name = NAMES.get(board.dataset, board.dataset)
    compared = any(heading == DIFFERENCE for heading, _ in shown)
    note = f"; where no soft prompt was trained, {DIFFERENCE} compares the rows without" if compared else ""
    lines = [
        f"{'' if short else f'**{name}**, '}{board.model}, {board.prompts} prompts, {words.repeats(board)}; "
        f"{words.schedule(board)}: {words.steps(board)}{dirty(board)}. Brackets are 95% intervals{note}.",
        "",
        "| " + " | ".join(heading for heading, _ in shown) + " |",
        "| --- |" + " ---: |" * (len(shown) - 1),
    ]
    return "\n".join([*lines, *("| " + " | ".join(cell(entry) for _, cell in shown) + " |" for entry in entries)])


def _is_short(heading: str) -> bool:
    return heading in SHORT or heading == "front-end" or heading.startswith("exact ε")


def _columns(board: Leaderboard) -> dict[str, Callable[[Entry], str]]:
    """Heading -> cell; a column without any number is left out."""
    privacy = next(entry.row.privacy for entry in arrange.tested(board) if entry.is_reference)
    return {
        "front-end": lambda entry: entry.row.label,
        "PPL": lambda entry: show(entry.plain and entry.plain.perplexity, ",.1f"),
        "PPL, soft prompt": lambda entry: show(entry.prompted and entry.prompted.perplexity, ",.1f"),
        f"COH ({board.encoder})": lambda entry: show(entry.plain and entry.plain.coherence, ".3f"),
        "COH, soft prompt": lambda entry: show(entry.prompted and entry.prompted.coherence, ".3f"),
        "R": lambda entry: show(entry.retained, ".3f"),
        DIFFERENCE: _difference,
        "ASR, nearest neighbour": lambda e: show(words.attack_result(e.row, words.is_nearest), ".1%"),
        "ASR, strongest attack": lambda entry: _strongest(entry.row),
        "certified bound": lambda e: NONE if e.row.certified is None else words.at_most_percent(e.row.certified),
        f"exact ε, {privacy.sequence_tokens} tokens, δ = {privacy.delta:g}": lambda entry: guarantee(entry.row),
        "bits a token": lambda entry: f"{entry.row.communication.bits_per_token:,.0f}",
    }


def _difference(entry: Entry) -> str:
    difference = entry.best.difference
    if difference is None or difference.nll is None:
        return NONE
    inside = "inside the noise: " if words.holds_zero(difference.nll) else ""
    return inside + show(difference.nll, "+.3f")


def _strongest(row: LeaderboardRow) -> str:
    name = words.attack_name(words.worst_name(row))
    return show(words.worst_attack(row), ".1%") + (f" {name}" if name else "")


def _put(page: Path, results: str) -> None:
    """Replace what stands between the marks of a page."""
    before, rest = page.read_text(encoding="utf-8").split(START, 1)
    page.write_text(f"{before}{START}\n{results}\n\n{END}{rest.split(END, 1)[1]}", encoding="utf-8")


def write() -> None:
    """Put the sections into README and docs/del_plus.md, and write the complete tables and the pictures."""
    _put(README, section())
    _put(DEL_PLUS, del_plus())
    COMPLETE.write_text(page(), encoding="utf-8")
    PICTURES.mkdir(exist_ok=True)
    for path, picture in drawn().items():
        path.write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    write()
