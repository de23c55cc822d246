"""Stage ``report``: put the artefacts of a configuration side by side as a leaderboard."""

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from del_lightning.artifacts import Artifact, capture_environment
from del_lightning.config import Config
from del_lightning.metrics import information_retained
from del_lightning.report import console_table, write_report
from del_lightning.report.schema import (
    Calibration,
    CommunicationColumns,
    Estimate,
    Leaderboard,
    LeaderboardRow,
    Sample,
    TrainingCurve,
)
from del_lightning.stages import attack, calibrate, codec, evaluate, prompt
from del_lightning.stages.setting import NEEDS_CODEC, Setting, build_method
from del_lightning.stages.settings import settings
from del_lightning.stages.workspace import Workspace

CONTROLS = ("clean", "mean", "projection")


def run(ws: Workspace) -> Path:
    """Write the report of everything this configuration asks for, and print its table; returns the page's path."""
    found = settings(ws)
    board = leaderboard(ws, found)
    page = write_report(ws.store.root / "report" / _slug(ws.config.title), board, samples(ws, found))
    if ws.config.logger.kind == "wandb":
        ws.wandb_run.summary.update(summary_metrics(board))
    console = Console()
    console.print(console_table(board))
    console.print(f"report: {page.resolve()}", soft_wrap=True)
    return page


def summary_metrics(board: Leaderboard) -> dict[str, float]:
    """Flat names for a logger's summary, for instance ``leaderboard/del-asr0.1/soft_prompt/perplexity``."""
    summary: dict[str, float] = {}
    for row in board.rows:
        setting = Setting(row.method, row.privacy.mu_token if row.method == "del" else None, row.target)
        prefix = f"leaderboard/{setting.slug}/{'soft_prompt' if row.soft_prompt else 'plain'}"
        figures = {"perplexity": row.perplexity, "coherence": row.coherence, "agreement": row.agreement}
        figures |= {f"asr/{name}": rate for name, rate in row.asr.items()}
        figures |= {"information_retained": row.retained} if row.retained else {}
        summary |= {f"{prefix}/{name}": estimate.value for name, estimate in figures.items()}
        summary[f"{prefix}/bits_per_token"] = row.communication.bits_per_token
    return summary


def _shareable(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without folders of this machine, which nobody else needs to know."""
    local = "local folder" if config["data"]["root"] is not None else None
    return {**config, "out": Config.out, "data": {**config["data"], "root": local}}


def _without_folder(override: str) -> str:
    return "data.root=DIR" if override.startswith("data.root=") else override


def _slug(title: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in title.lower()).strip("-") or "report"


def leaderboard(ws: Workspace, found: list[Setting]) -> Leaderboard:
    """Assemble the typed leaderboard of these settings."""
    artifacts = list(_artifacts(ws, found))
    private = [len(p.private_ids) for p in ws.data.prompts()]
    return Leaderboard(
        title=ws.config.title,
        schedule=ws.config.schedule,
        dataset=ws.config.data.name,
        model=ws.llm.name,
        encoder=ws.encoder.name,
        prompts=len(private),
        private_tokens=sum(private),
        seeds=list(ws.config.evaluate.seeds),
        rows=[_row(ws, setting, soft) for setting in found for soft in (False, True)],
        calibrations=_calibrations(ws, found),
        curves=list(_curves(ws, found)),
        notes=_notes(ws, found),
        config=_shareable(asdict(ws.config)),
        overrides=[_without_folder(override) for override in ws.overrides if not override.startswith("out=")],
        environment=capture_environment(),
        wall_seconds=sum(artifact.result.wall_seconds for artifact in artifacts),
        generated=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _artifacts(ws: Workspace, found: list[Setting]) -> Iterator[Artifact]:
    if any(setting.method in NEEDS_CODEC for setting in found):
        yield codec.ensure(ws)
    if any(setting.target is not None for setting in found):
        yield calibrate.ensure(ws)
    for setting in found:
        yield prompt.ensure(ws, setting)
        yield attack.ensure(ws, setting)
        for soft_prompt in (False, True):
            yield evaluate.ensure(ws, setting, soft_prompt)


def _calibrations(ws: Workspace, found: list[Setting]) -> list[Calibration]:
    return calibrate.calibrations(ws) if any(setting.target is not None for setting in found) else []


def _curves(ws: Workspace, found: list[Setting]) -> Iterator[TrainingCurve]:
    if any(setting.method in NEEDS_CODEC for setting in found) and (history := codec.ensure(ws).result.history):
        yield TrainingCurve(name="codec", history=history)
    for setting in found:
        yield TrainingCurve(name=f"soft prompt, {setting.label}", history=prompt.ensure(ws, setting).result.history)


def _row(ws: Workspace, setting: Setting, soft_prompt: bool) -> LeaderboardRow:
    artifact = evaluate.ensure(ws, setting, soft_prompt)
    method = build_method(ws, setting)
    prompts = ws.data.prompts()
    length = round(float(np.mean([len(p.private_ids) for p in prompts])))
    release = method.release(torch.tensor([prompts[0].private_ids], device=ws.device))
    return LeaderboardRow(
        method=setting.method,
        label=setting.label,
        is_control=setting.method in CONTROLS,
        target=setting.target,
        soft_prompt=soft_prompt,
        virtual_tokens=ws.config.prompt.virtual_tokens if soft_prompt else None,
        prompt_steps=prompt.ensure(ws, setting).result.details["steps"] if soft_prompt else None,
        **{name: artifact.result.metrics[name] for name in ("perplexity", "coherence", "agreement")},
        retained=_retained(ws, setting) if soft_prompt else None,
        asr=attack.ensure(ws, setting).result.metrics,
        privacy=method.statement(length, ws.config.evaluate.delta).columns(),
        communication=_communication(method.payload_bits(release) / release.tokens, ws.llm.hidden_size),
        clipped_share=artifact.result.details["clipped_share"],
    )


def _communication(bits: float, hidden_size: int) -> CommunicationColumns:
    ratio = 32 * hidden_size / bits if bits else float("inf")
    return CommunicationColumns(bits_per_token=bits, ratio_fp32=ratio, ratio_fp16=ratio / 2)


def _retained(ws: Workspace, setting: Setting) -> Estimate | None:
    """R of a row with its soft prompt; None when a control it is measured against was not asked for."""
    if not {"clean", "mean"} <= set(ws.config.methods):
        return None
    tokens = np.array(_per_prompt(ws, Setting("clean"))["tokens"])
    mean, row, clean = (_mean_nll(ws, other) for other in (Setting("mean"), setting, Setting("clean")))
    return information_retained(mean, row, clean, tokens)


def _per_prompt(ws: Workspace, setting: Setting) -> dict[str, Any]:
    return evaluate.read_per_prompt(evaluate.ensure(ws, setting, soft_prompt=True))


def _mean_nll(ws: Workspace, setting: Setting) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Mean NLL a continuation token of each prompt (nats, averaged over seeds) behind the setting's soft prompt."""
    content = _per_prompt(ws, setting)
    return np.asarray(np.array(content["nll"]) / np.array(content["tokens"]))


def samples(ws: Workspace, found: list[Setting]) -> list[Sample]:
    """Continuations of the first test prompts side by side."""
    merged: list[Sample] = []
    for setting in found:
        for soft_prompt in (False, True):
            name = setting.label + (" + soft prompt" if soft_prompt else "")
            for number, entry in enumerate(evaluate.read_samples(evaluate.ensure(ws, setting, soft_prompt))):
                if number == len(merged):
                    merged.append(Sample(prompt=entry["prompt"], reference=entry["reference"], continuations={}))
                merged[number].continuations[name] = entry["continuation"]
    return merged


def _notes(ws: Workspace, found: list[Setting]) -> list[str]:
    """What a reader must know about these very numbers."""
    notes = [
        f"Utility intervals are bootstraps over {len(ws.data.prompts())} prompts, averaged over "
        f"{len(ws.config.evaluate.seeds)} noise seed(s); every part was trained once (seed {ws.config.seed}).",
        "Attack success counts every private token of the test prompts once; the interval is Clopper-Pearson.",
    ]
    return notes + [c.note for c in _calibrations(ws, found) if not c.reached]
