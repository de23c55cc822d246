"""GLUE behind every front-end, from the committed leaderboards: its part of the README, and its complete tables."""

from dataclasses import dataclass

from _cells import NONE, RESULTS, dirty, show

from del_lightning.report import merge, nlu, words
from del_lightning.report.markdown import markdown_rows
from del_lightning.report.schema import NluLeaderboard, NluRow

USERS = "snd-user"
"""The way to classify whose user reads the clean text."""


def tasks() -> list[NluLeaderboard]:
    """The committed leaderboards of GLUE, the seeds of a task as one."""
    paths = sorted(RESULTS.glob("nlu/**/leaderboard.json"))
    return merge.merged([NluLeaderboard.model_validate_json(path.read_text()) for path in paths])


def nlu_title(board: NluLeaderboard) -> str:
    """Name of the task, and the bits of a board that has DEL at no others."""
    bits = {row.bits for row in board.rows if row.bits is not None}
    return f"**GLUE {board.task}{f', {bits.pop()} bits' if len(bits) == 1 else ''}**"


def _steps(board: NluLeaderboard) -> int:
    """Training steps through the model, which tell schedules of one task apart."""
    return max((row.steps or 0 for row in board.rows), default=0)


@dataclass(frozen=True)
class GlueCounts:
    """Rows of all boards with several trainings that are surely above the length of the text alone.

    Attributes:
        above: Of the private rows, those of users who read the clean text left out.
        private: Those rows.
        elsewhere: Those of boards at other bits than the README's table quotes.
        passes: Of the ways to classify clean text.
        clean: Those ways.
    """

    above: int
    private: int
    elsewhere: int
    passes: int
    clean: int


def glue_counts(found: list[NluLeaderboard]) -> GlueCounts | None:
    """What the boards of GLUE come to; None where there are none."""
    if not found:
        return None
    repeated = [board for board in found if len(board.seeds) > 1]  # one training has no interval over seeds
    private = [(board, row) for board in repeated for row in nlu.private(board) if row.variant != USERS]
    above = sum(nlu.beats_length(board, row) for board, row in private)
    elsewhere = sum(not _usual(board) for board, _ in private)
    clean = [(board, row) for board in repeated for row in board.rows if row.method == "clean" and row.variant != USERS]
    clean = [(board, row) for board, row in clean if nlu.without_text(board, row.variant) is not None]
    passes = sum(nlu.beats_length(board, row) for board, row in clean)
    return GlueCounts(above, len(private), elsewhere, passes, len(clean))


def glue_outcome(counts: GlueCounts) -> str:
    """How many private rows are surely above the length of the text alone, in a sentence."""
    other = f"; {counts.elsewhere} are at other bits, in the complete tables alone" if counts.elsewhere else ""
    return (
        f"**GLUE.** Classifying text behind every front-end, area under the curve (AUC): {counts.above} of "
        f"{counts.private} private rows are above what the length of the text alone gives, in pairs, over seeds and "
        f"over examples (a denoiser at the user, who has the clean text, is not among them{other}). Clean text passes "
        f"the same test in {counts.passes} of {counts.clean} ways; in the others nothing can be expected to. What "
        "that does and does not show: [docs/glue.md](docs/glue.md)."
    )


def glue_summary(found: list[NluLeaderboard]) -> str:
    """A line a task and way: clean text, the length alone, the quoted front-end, and how many beat the length.

    Boards of other bits and ways without a front-end stand in the complete tables.
    """
    lines = [
        "| task | way | majority, accuracy | clean text, accuracy | clean text, AUC | length alone, AUC | DEL, AUC | private rows above the length |",  # noqa: E501
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    shown = [(board, way) for board in filter(_usual, found) for way in nlu.variants(board) if nlu.private(board, way)]
    return "\n".join([*lines, *(f"| {' | '.join(_glue_cells(board, way))} |" for board, way in shown)])


def _usual(board: NluLeaderboard) -> bool:
    """Whether it has the number of bits that the README's table quotes."""
    return any(row.bits == nlu.HEADLINE_BITS for row in board.rows)


def _glue_cells(board: NluLeaderboard, way: str) -> list[str]:
    clean = next((row for row in board.rows if (row.variant, row.method) == (way, "clean")), None)
    mean, label = nlu.without_text(board, way), nlu.headline(board)
    quoted = None if label is None else nlu.row_of(board, way, label)
    private = nlu.private(board, way)
    above = sum(nlu.beats_length(board, row) for row in private)
    # Behind a mean embedding the user still has the clean text: that is no control for the length.
    users = way == USERS
    counted = not users and len(board.seeds) > 1
    return [
        f"{board.task}, {board.train_examples} training examples, {_steps(board)} steps",
        f"{nlu.framework(way)}, {nlu.VARIANTS[way]}",
        show(nlu.majority(board).over_seeds["accuracy"], ".3f"),
        show(clean and clean.over_seeds["accuracy"], ".3f"),
        show(clean and clean.over_seeds["auc"], ".3f"),
        NONE if users else show(mean and mean.over_seeds["auc"], ".3f"),
        NONE if quoted is None else f"{show(quoted.over_seeds['auc'], '.3f')} {quoted.label.removeprefix('DEL, ')}",
        f"{above} of {len(private)}" if counted else NONE,
    ]


def nlu_table(board: NluLeaderboard) -> str:
    """Accuracy and AUC of every way to classify behind every front-end, beside what was sent and read."""
    ways = nlu.variants(board)
    never = nlu.majority(board).over_seeds["accuracy"].value
    headings = ["front-end"]
    headings += [
        f"{nlu.framework(way)}, {nlu.VARIANTS[way]}: {nlu.FIGURES[name]}" for way in ways for name in nlu.figures(board)
    ]
    headings += ["ASR, nearest neighbour", "ASR, strongest attack", "exact ε of a text", "bits a token"]
    lines = [
        f"{nlu_title(board)}, {board.model}, {board.eval_examples} examples, {words.repeats(board)}; "
        f"{words.schedule(board)}{dirty(board)}. Majority class: accuracy {never:.3f}. "
        "Brackets are 95% intervals over seeds, of ASR over tokens.",
        "",
        "| " + " | ".join(headings) + " |",
        "| --- |" + " ---: |" * (len(headings) - 1),
    ]
    lines += [f"| {' | '.join(_nlu_cells(board, ways, front))} |" for front in nlu.fronts(board)]
    costs = ["What each way asks of both sides:", markdown_rows(nlu.cost_rows(board))]
    return "\n\n".join(["\n".join(lines), *costs, *_inferred(board)])


def _inferred(board: NluLeaderboard) -> list[str]:
    """What an attacker infers of whole texts, a line a front-end and a column an attribute."""
    names = list(dict.fromkeys(one.attribute for one in board.attributes))
    fronts = dict.fromkeys(one.label for one in board.attributes)
    found = {(one.label, one.attribute): one.auc for one in board.attributes}
    rows = [
        {"front-end": label, **{f"{name}: AUC": show(found.get((label, name)), ".3f") for name in names}}
        for label in fronts
    ]
    reading = "What an attacker infers of a whole text; behind the mean embedding that is what its length alone tells:"
    return [reading, markdown_rows(rows)] if rows else []


def _nlu_cells(board: NluLeaderboard, ways: list[str], front: NluRow) -> list[str]:
    rows = [nlu.row_of(board, way, front.label) for way in ways]
    figures = [show(row and row.over_seeds[name], ".3f") for row in rows for name in nlu.figures(board)]
    nearest = next((rate for name, rate in front.asr.items() if words.is_nearest(name)), None)
    strongest = max(front.asr.values(), key=lambda rate: rate.value, default=None)
    epsilon = None if front.privacy is None else front.privacy.epsilon_sequence
    return [
        nlu.front_name(board, front),
        *figures,
        show(nearest, ".1%"),
        show(strongest, ".1%"),
        "none" if epsilon is None else f"{epsilon:,.0f}",
        f"{front.cost.bits_per_token:,.0f}",
    ]
