"""Stage ``transfer``: what a soft prompt is worth on other data, or at another mu, than it was trained at.

A soft prompt that only fits where it was trained must be trained anew for every data set and privacy level. So each is
compared, prompt by prompt, with the one that was trained in place, and with none at all.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from del_lightning import ranks
from del_lightning.artifacts import Artifact, built_in, write_text
from del_lightning.config import MechanismConfig
from del_lightning.data import check_corpus
from del_lightning.errors import ConfigError
from del_lightning.methods import DEL
from del_lightning.report.schema import TransferBoard, TransferCell
from del_lightning.report.stored import write_board
from del_lightning.report.transfer import console_table, render_markdown
from del_lightning.stages import evaluate, prompt, tracking
from del_lightning.stages.report import shareable, slug_of, without_folder
from del_lightning.stages.setting import Setting
from del_lightning.stages.workspace import Workspace
from del_lightning.terminal import say


@dataclass(frozen=True)
class _Use:
    """One soft prompt at one mu; ``source`` None: no soft prompt."""

    source: str | None
    trained_at: float | None
    used_at: float


def check(ws: Workspace) -> None:
    """Fail now on what would fail after minutes.

    Raises:
        DelError: A data set is missing, names itself as its source, or mu is set elsewhere.
    """
    for source in ws.config.transfer.sources:
        if source == ws.config.data.name:
            raise ConfigError(f"`transfer.sources` must name other data sets than `data.name`, got {source!r}")
        check_corpus(source, ws.config.data.root, "transfer.sources")
    if ws.config.mechanism.mu != MechanismConfig.mu:
        raise ConfigError(f"`mechanism.mu` must be left out: `transfer.mus` holds them, got {ws.config.mechanism.mu!r}")


def run(ws: Workspace) -> Path | None:
    """Train what is missing, evaluate every use, write ``transfer.json`` and ``report.md``.

    Returns:
        Path of the JSON file; None on a rank other than 0.
    """
    found = [(use, *_evaluated(ws, use)) for use in _uses(ws)]
    if not ranks.is_first():
        return None
    board = _board(ws, [(use, evaluated) for use, _, evaluated in found], [one for _, one, _ in found])
    folder = ws.store.root / "report" / slug_of(ws.config.title)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "report.md", render_markdown(board))
    write_board(folder / "transfer.json", board)
    if ws.config.logger.kind == "wandb":
        ws.wandb_run.summary.update(tracking.transfer_metrics(board))
        for one in {trained.key: trained for _, trained, _ in found if trained is not None}.values():
            tracking.log_artifact(ws.wandb_run, "soft-prompt", one)
        tracking.log_report(ws.wandb_run, folder / "transfer.json")
    console = Console()
    console.print(console_table(board))
    say(f"report: {(folder / 'report.md').resolve()}")
    return folder / "transfer.json"


def _uses(ws: Workspace) -> Iterator[_Use]:
    """At every mu: none, the one trained in place, those of the other mu, those of the other data sets."""
    config = ws.config.transfer
    for mu in config.mus:
        yield _Use(None, None, mu)
        yield _Use(ws.config.data.name, mu, mu)
        yield from (_Use(ws.config.data.name, other, mu) for other in config.mus if other != mu)
        yield from (_Use(source, mu, mu) for source in config.sources)


def _evaluated(ws: Workspace, use: _Use) -> tuple[Artifact | None, Artifact]:
    """Soft prompt and evaluation of a use."""
    trained = None
    if use.source is not None:
        place = ws if use.source == ws.config.data.name else ws.on(use.source)
        trained = prompt.ensure(place, _at(ws, use.trained_at))
    evaluated = evaluate.ensure_with(ws, _at(ws, use.used_at), trained)
    origin = "no soft prompt" if use.source is None else f"soft prompt of {use.source} at mu {use.trained_at:g}"
    say(f"{origin}, used at mu {use.used_at:g}: PPL {evaluated.result.metrics['perplexity'].value:.1f}")
    return trained, evaluated


def _at(ws: Workspace, mu: float | None) -> Setting:
    return Setting("del", ws.title("del"), mu)


def _board(ws: Workspace, found: list[tuple[_Use, Artifact]], trained: list[Artifact | None]) -> TransferBoard:
    method = ws.method("del")
    assert isinstance(method, DEL)
    lengths = [len(one.private_ids) for one in ws.data.prompts()]
    mean, delta = ws.mean_prompt_tokens, ws.config.evaluate.delta
    statements = {mu: method.at(mu).statement(mean, delta) for mu in ws.config.transfer.mus}
    parts = {one.key: one for one in [*trained, *(evaluated for _, evaluated in found)] if one is not None}
    return TransferBoard(
        title=ws.config.title,
        schedule=ws.config.schedule,
        dataset=ws.config.data.name,
        model=ws.llm.name,
        encoder=ws.encoder.name,
        bits=method.bits,
        dim=method.codec.dim,
        prompts=len(lengths),
        private_tokens=sum(lengths),
        virtual_tokens=ws.config.prompt.virtual_tokens,
        seeds=list(ws.config.evaluate.seeds),
        seed=ws.config.seed,
        privacy={f"{mu:g}": statement.columns() for mu, statement in statements.items()},
        cells=[_cell(ws.config.data.name, use, evaluated, dict(found)) for use, evaluated in found],
        config=shareable(asdict(ws.config)),
        overrides=[without_folder(override) for override in ws.overrides if not override.startswith("out=")],
        environment=built_in(parts.values()),
        wall_seconds=sum(one.result.wall_seconds for one in parts.values()),
        generated=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _cell(dataset: str, use: _Use, evaluated: Artifact, found: dict[_Use, Artifact]) -> TransferCell:
    matched, none = _Use(dataset, use.used_at, use.used_at), _Use(None, None, use.used_at)
    metrics = evaluated.result.metrics
    return TransferCell(
        trained_on=use.source,
        trained_at=use.trained_at,
        used_at=use.used_at,
        perplexity=metrics["perplexity"],
        coherence=metrics["coherence"],
        agreement=metrics["agreement"],
        over_matched=None if use == matched else evaluate.difference(evaluated, found[matched]),
        over_none=None if use == none else evaluate.difference(evaluated, found[none]),
    )
