"""The model card of a published front-end: README.md with the hub's front matter.

Everything in it is computed from the record, the statement and the results, whoever they flatter.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from del_lightning.assets import ASSETS
from del_lightning.config import CORPORA
from del_lightning.data import load_corpus
from del_lightning.data.corpora import hub_id
from del_lightning.privacy import PrivacyStatement
from del_lightning.report import words
from del_lightning.report.schema import Estimate, Leaderboard, LeaderboardRow

if TYPE_CHECKING:
    from del_lightning.hub.record import SplitRecord

TAGS = ["differential-privacy", "split-inference", "soft-prompt", "prompt-tuning", "del-lightning"]

_GETS = {"clean": "the prompt in the clear", "mean": "the prompt's length only"}
"""Controls beside the front-end, as a stranger would put it."""

_KNOWS = {
    "nearest": "nothing: takes the token that lies nearest to what was decoded",
    "Bayes-optimal": "the noise, and how frequent tokens are",
    "bigram": "the noise, and which token follows which",
    "LM prior": "the noise, and what a language model expects",
    "server's model": "the noise, and what the server's own model expects",
    "input inference": "what a language model puts in the place of each token",
    "inverter": "the noise, and what a network learned from many codes",
}
"""What an attack builds on, by a part of its name."""

_TELLING = 0.995
"""From this share of the tokens on, a bound on what attacks read says nothing."""


def model_card(
    record: "SplitRecord",
    statement: PrivacyStatement,
    board: Leaderboard | None,
    *,
    repo_id: str | None = None,
    license: str | None = None,
    model_license: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Markdown with YAML front matter.

    Args:
        record: What is published.
        statement: Its guarantee.
        board: Its measurements; None says that there are none.
        repo_id: What the example loads; None leaves a gap for it.
        license: What the publisher names, as the hub spells it; None takes ``model_license``.
        model_license: What :func:`~del_lightning.loading.model_license` found.
    """
    fields = model_license if license is None else {"license": license}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    title = f"Private prompts for {_inline(record.model.name)}: DEL, {record.bits} bit{'s' if record.bits > 1 else ''}"
    return environment.get_template("card.md.j2").render(
        front_matter=f"---\n{_metadata(record, title, board, fields).to_yaml()}\n---",
        title=title,
        record=record,
        model=_inline(record.model.name),
        name=json.dumps(repo_id or "FOLDER OR REPOSITORY"),
        unnamed=repo_id is None,
        guarantees=statement.plain(),
        statement=statement.summary(),
        epsilon=statement.summary().partition(": ")[2].partition(";")[0],
        board=board,
        **({"retained": ""} if board is None else _measured(board)),
        certified=_certified(board),
        trained_on="" if board is None else f" of {_text(board)}",
        license=_license(fields, license is not None),
    )


def _license(fields: Mapping[str, str], is_given: bool) -> str:
    named = _inline(fields.get("license_name") or fields.get("license", ""))
    if not named:
        return "None is named here: ask whoever published it, and see that of the language model."
    link = f" ({_inline(fields['license_link'])})" if "license_link" in fields else ""
    return f"{named}{link}." if is_given else f"That of the language model: {named}{link}. None of its own was named."


def _inline(text: str) -> str:
    """One line without characters that Markdown or a table takes for its own."""
    return re.sub(r"[\s`|<>*\[\]]+", " ", text).strip()


def _private(board: Leaderboard) -> list[LeaderboardRow]:
    return [row for row in board.rows if not row.is_control]


def _text(board: Leaderboard) -> str:
    """The corpus in words that mean something elsewhere."""
    known = board.dataset in CORPORA
    return f"`{board.dataset}` ({load_corpus(board.dataset).source})" if known else _inline(board.dataset)


def _measured(board: Leaderboard) -> dict[str, Any]:
    best = _private(board)[-1]
    return {
        "retained": "" if best.retained is None else _comes_through(best.retained),
        "read": _is_read(best),
        "setup": f"{words.count(board.prompts)} prompts from the test part of {_text(board)}, "
        f"{words.count(board.private_tokens)} private tokens, {words.draws(len(board.seeds))}.",
        "schedule": _inline(board.schedule),
        "encoder": _inline(board.encoder),
        "utility": [list(_utility(row)) for row in board.rows],
        "attacks": list(_attacks(best)),
    }


def _comes_through(retained: Estimate) -> str:
    about_zero = ", which cannot be told from nothing" if words.holds_zero(retained) else ""
    return (
        f"R = {words.with_interval(retained)}{about_zero}, over {words.count(retained.n)} prompts (in brackets: the "
        "95% interval). 0 is as if only the prompt's length were sent, 1 as if it were sent in the clear."
    )


def _is_read(row: LeaderboardRow) -> str:
    rate, name = words.worst_attack(row), words.worst_name(row)
    if rate is None:
        return "no attack was run on it. Attack it before you rely on it."
    return (
        f"the strongest attack that was run ({_inline(name)}) names {words.percent(rate.value)} {_percents(rate)} "
        "private tokens of test prompts correctly."
    )


def _utility(row: LeaderboardRow) -> Iterator[str]:
    yield _GETS.get(row.method, "these noisy codes")
    yield "yes" if row.soft_prompt else "no"
    for estimate in (row.perplexity, row.coherence, row.agreement, row.retained):
        yield words.MISSING if estimate is None else words.with_interval(estimate)


def _attacks(row: LeaderboardRow) -> Iterator[tuple[str, str, str]]:
    for name, rate in row.asr.items():
        shown = "the strongest of these" if name == "worst" else _inline(name)
        known = next((what for part, what in _KNOWS.items() if part in name), words.MISSING)
        yield shown, known, f"{words.percent(rate.value)} {_percents(rate)}".strip()


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


def _metadata(
    record: "SplitRecord", title: str, board: Leaderboard | None, license_fields: Mapping[str, str]
) -> ModelCardData:
    return ModelCardData(
        library_name="del-lightning",
        pipeline_tag="text-generation",
        base_model=_base_model(record.model.source),
        datasets=_datasets(board) or None,
        tags=TAGS,
        model_name=title if board else None,
        eval_results=_eval_results(board) if board else None,
        license=license_fields.get("license"),
        license_name=license_fields.get("license_name"),
        license_link=license_fields.get("license_link"),
    )


def _base_model(source: str | None) -> str | None:
    """The model's name on the hub; a packaged one is a copy of one that is there."""
    if source is not None and (asset := ASSETS.get(source.lower())):
        return asset.hub or None
    return source


def _datasets(board: Leaderboard | None) -> list[str]:
    """Corpora on the hub that codec and soft prompt were trained on."""
    config = {} if board is None else board.config
    names = (config.get(group, {}).get(key) for group, key in (("data", "name"), ("codec", "corpus")))
    return [found for name in dict.fromkeys(names) if name and (found := hub_id(name))]


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
    name = _inline(board.dataset)
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=hub_id(name) or name,
            dataset_name=name,
            dataset_split="test",
            metric_type=kind,
            metric_name=f"{title}, n = {figure.n}",
            metric_value=figure.value,
        )
        for kind, (title, figure) in figures.items()
        if figure is not None and math.isfinite(figure.value)
    ]
