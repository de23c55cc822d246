"""The model card of a published front-end: README.md with the hub's front matter.

Everything in it is computed from the record, the statement and the results, whoever they flatter.
"""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from del_lightning.privacy import PrivacyStatement
from del_lightning.report import words
from del_lightning.report.schema import Estimate, Leaderboard, LeaderboardRow

if TYPE_CHECKING:
    from del_lightning.hub.record import SplitRecord

TAGS = ["differential-privacy", "split-inference", "soft-prompt", "prompt-tuning", "del-lightning"]

_TELLING = 0.995
"""From this share of the tokens on, a bound on what attacks read says nothing."""


def model_card(
    record: "SplitRecord", statement: PrivacyStatement, board: Leaderboard | None, repo_id: str | None = None
) -> str:
    """Markdown with YAML front matter; ``repo_id`` is what its example loads."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    title = f"DEL, {record.bits} bit{'s' if record.bits > 1 else ''}, for {_inline(record.model.name)}"
    return environment.get_template("card.md.j2").render(
        front_matter=f"---\n{_metadata(record, title, board).to_yaml()}\n---",
        title=title,
        record=record,
        model=_inline(record.model.name),
        name=json.dumps(repo_id or "FOLDER OR REPOSITORY"),
        guarantees=statement.plain(),
        statement=statement.summary(),
        board=board,
        **({} if board is None else _measured(board)),
        certified=_certified(board),
        trained_on="" if board is None else f" of {_inline(board.dataset)}",
    )


def _inline(text: str) -> str:
    """One line without characters that Markdown or a table takes for its own."""
    return re.sub(r"[\s`|<>*\[\]]+", " ", text).strip()


def _private(board: Leaderboard) -> list[LeaderboardRow]:
    return [row for row in board.rows if not row.is_control]


def _measured(board: Leaderboard) -> dict[str, Any]:
    best = _private(board)[-1]
    retained = best.retained
    unclear = retained is not None and words.holds_zero(retained)
    seeds = "one seed" if len(board.seeds) == 1 else f"{len(board.seeds)} seeds"
    return {
        "setup": f"{words.count(board.prompts)} test prompts of {_inline(board.dataset)}, "
        f"{words.count(board.private_tokens)} private tokens, {seeds} of the noise.",
        "schedule": _inline(board.schedule),
        "encoder": _inline(board.encoder),
        "utility": [list(_utility(row)) for row in board.rows],
        "attacks": list(_attacks(best)),
        "about_zero": "; here it cannot be told from 0" if unclear else "",
    }


def _utility(row: LeaderboardRow) -> Iterator[str]:
    yield _inline(words.row_name(row))
    for estimate in (row.perplexity, row.coherence, row.agreement, row.retained):
        yield words.MISSING if estimate is None else words.with_interval(estimate)


def _attacks(row: LeaderboardRow) -> Iterator[tuple[str, str]]:
    for name, rate in row.asr.items():
        shown = "the strongest of these" if name == "worst" else _inline(name)
        yield shown, f"{words.percent(rate.value)} {_percents(rate)}".strip()


def _percents(rate: Estimate) -> str:
    if rate.low is None or rate.high is None:
        return ""
    return f"[{words.percent(rate.low)}, {words.percent(rate.high)}] of {words.count(rate.n)}"


def _certified(board: Leaderboard | None) -> str:
    bound = None if board is None else _private(board)[-1].certified
    if bound is None or bound >= _TELLING:
        return ""
    most = words.percent(bound)
    return f"; one that knows only how frequent tokens are reads at most {most} of them, whatever it computes"


def _metadata(record: "SplitRecord", title: str, board: Leaderboard | None) -> ModelCardData:
    source = record.model.source
    return ModelCardData(
        library_name="del-lightning",
        pipeline_tag="text-generation",
        base_model=source if source and "/" in source else None,
        tags=TAGS,
        model_name=title if board else None,
        eval_results=_eval_results(board) if board else None,
    )


def _eval_results(board: Leaderboard) -> list[EvalResult]:
    """The private row's figures as the hub's ``model-index`` takes them."""
    row = _private(board)[-1]
    figures = {
        "perplexity": ("Perplexity of the continuation", row.perplexity),
        "coherence": (f"Coherence ({_inline(board.encoder)})", row.coherence),
        "agreement": ("Next-token agreement with the clean prompt", row.agreement),
        "information_retained": ("Information retained", row.retained),
        "attack_success_rate": ("Attack success rate, strongest attack", words.worst_attack(row)),
    }
    dataset = _inline(board.dataset)
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=dataset,
            dataset_name=dataset,
            metric_type=kind,
            metric_name=name,
            metric_value=figure.value,
        )
        for kind, (name, figure) in figures.items()
        if figure is not None and math.isfinite(figure.value)
    ]
