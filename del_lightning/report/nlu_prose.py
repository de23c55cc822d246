"""What a GLUE leaderboard says in sentences: what was measured, what came out, what to know before quoting it."""

from collections.abc import Iterator

from del_lightning.config import END_TO_END
from del_lightning.report import words
from del_lightning.report.nlu import (
    HEADLINE_BITS,
    VARIANTS,
    beats_length,
    extent,
    framework,
    headline,
    majority,
    mean_best,
    private,
    row_of,
    variants,
    without_text,
)
from del_lightning.report.schema import NluLeaderboard, NluRow


def setup(board: NluLeaderboard) -> str:
    """What was measured."""
    schedule = f" Schedule: {words.schedule(board)}." if board.schedule else ""
    return (
        f"{board.model} answers GLUE's {board.task} about private text that it receives only through each front-end: "
        f"{words.count(board.eval_examples)} examples, {words.count(board.private_tokens)} private tokens, "
        f"{words.repeats(board)} with {words.count(board.train_examples)} examples.{_head(board)}{schedule}"
    )


def _head(board: NluLeaderboard) -> str:
    """What reads the answer of a tuned model."""
    if not {row.variant for row in board.rows} & {"prompt", "lora"}:
        return ""
    reads = "a linear head" if board.head == "linear" else "label words (a verbaliser)"
    return f" Behind a soft prompt or adapter the answer is read by {reads}."


def averaged(board: NluLeaderboard) -> str:
    """What a figure in the table is."""
    number = len(board.seeds)
    return "One training" if number == 1 else f"Mean over {number} trainings with Student's 95% interval over seeds"


def outcome(board: NluLeaderboard) -> list[str]:
    """What came out, in sentences: what clean text allows, DEL at the setting that is quoted everywhere, all rows."""
    never = majority(board).over_seeds["accuracy"].value
    return [*_clean_text(board, never), *_headline(board), *_counted(board), *_denoisers(board)]


def _counted(board: NluLeaderboard) -> Iterator[str]:
    """How many private rows are above the length of the text; one training has no interval over seeds to say so."""
    rows = [row for row in private(board) if row.variant != "snd-user"]
    if rows and len(board.seeds) > 1:
        above = sum(beats_length(board, row) for row in rows)
        yield (
            f"Of {len(rows)} private rows, at every level and number of bits, {above or 'none'} "
            f"{'is' if above < 2 else 'are'} above what the length of the text alone gives, in pairs, over seeds and "
            "over examples."
        )


def _clean_text(board: NluLeaderboard, never: float) -> Iterator[str]:
    for variant in variants(board):
        row = next((row for row in board.rows if (row.variant, row.method) == (variant, "clean")), None)
        if row is not None:
            accuracy = row.over_seeds["accuracy"]
            points = words.number(100 * (accuracy.value - never))
            yield (
                f"{framework(variant)}, {VARIANTS[variant]}: clean text {words.with_interval(accuracy)} accuracy, "
                f"{points} points from the majority class ({words.number(never)}){_against_length(board, row)}."
            )


def _against_length(board: NluLeaderboard, row: NluRow) -> str:
    """Whether clean text passes what private rows are held to."""
    if without_text(board, row.variant) is None or len(board.seeds) < 2:
        return ""
    surely = "surely" if beats_length(board, row) else "not surely"
    return f"; its area under the curve is {surely} above that of the length alone"


def _denoisers(board: NluLeaderboard) -> Iterator[str]:
    """How far denoisers got, against the best constant in their place."""
    constant = board.best_constant
    if constant is None:
        return
    for variant in (one for one in variants(board) if one not in END_TO_END):
        errors = [mean_best(row) for row in private(board, variant) if row.validation]
        if not errors:
            continue
        far = sum(error >= constant for error in errors)
        behind = f"behind {far} of {len(errors)} private front-ends" if far else "behind every private front-end"
        meaning = ": there it measures how short its training was, not what a front-end lets through" if far else ""
        yield (
            f"{framework(variant)}, {VARIANTS[variant]}: {behind} the denoiser comes {'no ' if far else ''}nearer to "
            "the clean output than the best constant would on held-out examples (mean "
            f"squared error {extent(errors, words.number)} against {words.number(constant)}"
            f"{_behind_no_text(board, variant)}){meaning}."
        )


def _behind_no_text(board: NluLeaderboard, variant: str) -> str:
    row = without_text(board, variant)
    return f"; {words.number(mean_best(row))} behind the mean embedding" if row is not None and row.validation else ""


def _headline(board: NluLeaderboard) -> Iterator[str]:
    """Every way to classify behind the front-end that is quoted, both settings side by side."""
    label = headline(board)
    if label is None:
        return
    found = []
    for name in dict.fromkeys(framework(variant) for variant in variants(board)):
        ways = [_way(board, variant, label) for variant in variants(board) if framework(variant) == name]
        found.append(f"{name}: {'; '.join(filter(None, ways)) or 'not run'}")
    usual = any(row.label == label and row.bits == HEADLINE_BITS for row in board.rows)
    fixed = " (what every report quotes, whatever came out)" if usual else ""
    yield f"{label}{fixed}, area under the curve. {'. '.join(found)}."


def _way(board: NluLeaderboard, variant: str, label: str) -> str:
    row = row_of(board, variant, label)
    if row is None:
        return ""
    mean = without_text(board, variant)
    seeds = f"{words.with_interval(row.over_seeds['auc'])} over seeds, " if row.seeds > 1 else ""
    parts = [f"{VARIANTS[variant]} {seeds}{words.with_interval(row.over_examples['auc'])} over examples"]
    surely = "" if beats_length(board, row) else "not surely "
    if mean is not None:
        sent = "with the mean embedding sent instead" if variant == "snd-user" else "with the length of the text alone"
        parts.append(f"{surely}above {words.with_interval(mean.over_seeds['auc'])} {sent}")
    elif surely:
        parts.append("not surely above chance")
    return ", ".join(parts)


def notes(board: NluLeaderboard) -> list[str]:
    """What to know before quoting: the board's own notes, and what has come out about its code since."""
    found = list(board.notes)
    if board.tuned_start_counts is None and {row.variant for row in board.rows} & {"prompt", "lora"}:
        found.append(
            "Soft prompts and adapters were made by code that kept the best of a training even where the fitted head "
            "that it started from was better: their rows may be below what no training at all gives."
        )
    return found
