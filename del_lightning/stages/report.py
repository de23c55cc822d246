"""Stage ``report``: the artefacts of a configuration side by side as a leaderboard; many leaderboards as a site."""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from del_lightning import ranks
from del_lightning.artifacts import Artifact, built_in, versions
from del_lightning.config import Config
from del_lightning.methods.factory import NEEDS_CODEBOOK
from del_lightning.metrics import information_retained
from del_lightning.report import console_table, write_report
from del_lightning.report.gallery import Guesses, collect
from del_lightning.report.schema import (
    CommunicationColumns,
    DeviceColumns,
    Estimate,
    GalleryPrompt,
    Leaderboard,
    LeaderboardRow,
    MethodCalibration,
    PairedDifference,
    Sample,
    TrainingCurve,
)
from del_lightning.report.site import load, write_site
from del_lightning.stages import attack, calibrate, codebook, codec, evaluate, prompt, tracking
from del_lightning.stages.setting import Setting, build_method, row_label
from del_lightning.stages.settings import levels, settings, soft_prompts
from del_lightning.stages.workspace import Workspace
from del_lightning.terminal import say

GALLERY = 2
"""Prompts of which the page shows what every attack recovers."""
LONGEST_SLUG = 200
"""Bytes of a report's folder name, at most: file systems take 255."""


def run(ws: Workspace) -> Path | None:
    """Write the report of everything this configuration asks for, and print its table.

    With ``report.results`` the leaderboards found there become a site instead, and nothing is run.

    Returns:
        The page's path; None on a rank other than 0, which has nothing to write.
    """
    if not ranks.is_first():
        return None
    if ws.config.report.results is not None:
        return merge(ws.config.report.results, ws.store.root / "site")
    found = settings(ws)
    board = ws.board = leaderboard(ws, found)
    folder = ws.store.root / "report" / slug_of(ws.config.title)
    page = write_report(folder, board, samples(ws, found), recovered_prompts(ws, found))
    if ws.config.logger.kind == "wandb":
        ws.wandb_run.summary.update(tracking.leaderboard_metrics(board))
        log_artifacts(ws, found, page)
    Console().print(console_table(board))
    say(f"report: {page.resolve()}")
    return page


def merge(results: list[str], folder: Path) -> Path:
    """Make one site of stored leaderboards, and say which files were none; returns the page of all runs.

    Args:
        results: Folders, searched at any depth, and JSON files.
        folder: Of the site; an earlier one is replaced as a whole.

    Raises:
        DelError: A place is missing, holds no leaderboard or a broken file; nothing has been written then.
    """
    found = load(results, leave_out=folder)
    for name, reason in found.skipped:
        say(f"skipped {name}: {reason}")
    page = write_site(folder, found.runs)
    say(f"site of {len(found.runs)} runs: {page.resolve()}")
    return page


def rows_of(ws: Workspace, found: list[Setting]) -> list[tuple[Setting, bool]]:
    """The rows of a leaderboard, in its order: each setting without and with its soft prompt."""
    return [(setting, soft) for setting in found for soft in soft_prompts(ws, setting)]


def log_artifacts(ws: Workspace, found: list[Setting], page: Path) -> None:
    """Log what came out to the run's W&B record: codec, soft prompts and report."""
    run = ws.wandb_run
    if codec.needed(ws):
        tracking.log_artifact(run, "codec", codec.ensure(ws))
    for setting in found:
        if True in soft_prompts(ws, setting):
            tracking.log_artifact(run, "soft-prompt", prompt.ensure(ws, setting), label=setting.label)
    tracking.log_report(run, page)


def shareable(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without folders of this machine, which nobody else needs to know."""
    local = "local folder" if config["data"]["root"] is not None else None
    return {**config, "out": Config.out, "data": {**config["data"], "root": local}}


def without_folder(override: str) -> str:
    """What was typed, but for a folder of this machine."""
    return "data.root=DIR" if override.startswith("data.root=") else override


def slug_of(title: str) -> str:
    """Folder name of a report; a long title is cut, and told from others that begin alike by its hash."""
    slug = "".join(c if c.isalnum() else "-" for c in title.lower()).strip("-") or "report"
    if len(slug.encode()) <= LONGEST_SLUG:
        return slug
    begin = slug.encode()[: LONGEST_SLUG - 9].decode(errors="ignore").strip("-")
    return f"{begin}-{hashlib.sha256(title.encode()).hexdigest()[:8]}"


def leaderboard(ws: Workspace, found: list[Setting]) -> Leaderboard:
    """Assemble the typed leaderboard of these settings."""
    artifacts = [*_artifacts(ws, found), *_levels(ws)]
    private = [len(p.private_ids) for p in ws.data.prompts()]
    return Leaderboard(
        title=ws.config.title,
        schedule=ws.config.schedule,
        dataset=ws.config.data.name,
        model=ws.llm.name,
        encoder=ws.encoder.name,
        prompts=len(private),
        private_tokens=sum(private),
        reference_tokens=[len(p.reference_ids) for p in ws.data.prompts()],
        seeds=list(ws.config.evaluate.seeds),
        rows=[_row(ws, found, setting, soft) for setting, soft in rows_of(ws, found)],
        calibrations=_calibrations(ws),
        curves=list(_curves(ws, found)),
        attack_curves=attack.curves(ws),
        attacked=[attack.attacked(ws, one) for one in [*found, *levels(ws)]] if len(ws.config.attack.suite) > 1 else [],
        notes=[*_notes(ws), *filter(None, [versions(artifacts)])],
        config=shareable(asdict(ws.config)),
        overrides=[without_folder(override) for override in ws.overrides if not override.startswith("out=")],
        environment=built_in(artifacts),
        wall_seconds=sum(artifact.result.wall_seconds for artifact in artifacts),
        generated=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _artifacts(ws: Workspace, found: list[Setting]) -> Iterator[Artifact]:
    if codec.needed(ws):
        yield codec.ensure(ws)
    if codebook.needed(ws):
        yield codebook.ensure(ws)
    for name in calibrate.calibrated(ws):
        yield calibrate.ensure(ws, name)
    for setting in found:
        yield from attack.ensure(ws, setting)
        for soft_prompt in soft_prompts(ws, setting):
            if soft_prompt:
                yield prompt.ensure(ws, setting)
            yield evaluate.ensure(ws, setting, soft_prompt)


def _levels(ws: Workspace) -> Iterator[Artifact]:
    for setting in levels(ws):
        yield from attack.ensure(ws, setting)


def _calibrations(ws: Workspace) -> list[MethodCalibration]:
    return [calibrate.calibration(ws, name) for name in calibrate.calibrated(ws)]


def _curves(ws: Workspace, found: list[Setting]) -> Iterator[TrainingCurve]:
    if codec.needed(ws) and (history := codec.ensure(ws).result.history):
        yield TrainingCurve(name="codec", history=_learning(history))
    for setting in found:
        if True in soft_prompts(ws, setting):
            history = _learning(prompt.ensure(ws, setting).result.history)
            yield TrainingCurve(name=f"soft prompt, {setting.label}", history=history)


def _learning(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """Losses by step, without the privacy and the bits of the front-end, which the rows hold."""
    drawn = ("step", "train/", "val/")
    return [{name: value for name, value in entry.items() if name.startswith(drawn)} for entry in history]


def _row(ws: Workspace, found: list[Setting], setting: Setting, soft_prompt: bool) -> LeaderboardRow:
    artifact, method = evaluate.ensure(ws, setting, soft_prompt), build_method(ws, setting)
    prompts = ws.data.prompts()
    release = method.release(torch.tensor([prompts[0].private_ids], device=ws.device))
    attacks, metrics = attack.ensure(ws, setting), artifact.result.metrics
    rank = ws.config.adapter.rank
    return LeaderboardRow(
        method=setting.method,
        label=setting.label,
        is_control=method.parameter is None,
        parameter=method.parameter,
        value=setting.value,
        target=setting.target,
        matching=setting.matching,
        soft_prompt=soft_prompt,
        virtual_tokens=ws.config.prompt.virtual_tokens if soft_prompt else None,
        prompt_steps=prompt.ensure(ws, setting).result.details["steps"] if soft_prompt else None,
        adapter_rank=rank if soft_prompt and rank else None,
        perplexity=metrics.get("perplexity"),
        coherence=metrics["coherence"],
        agreement=metrics.get("agreement"),
        retained=_retained(ws, setting) if soft_prompt else None,
        difference=_difference(ws, found, setting, soft_prompt),
        asr=attack.rates(ws, setting),
        recovery={name: measures for one in attacks for name, measures in attack.recovery(one).items()},
        certified=attack.certified(ws, method),
        privacy=method.statement(ws.mean_prompt_tokens, ws.config.evaluate.delta).columns(),
        communication=_communication(method.payload_bits(release) / release.tokens, ws.llm.hidden_size),
        device=DeviceColumns.model_validate(artifact.result.details["device"]),
        clipped_share=artifact.result.details["clipped_share"],
        nll_by_prompt=[] if (nll := evaluate.mean_nll(artifact)) is None else nll.tolist(),
    )


def _communication(bits: float, hidden_size: int) -> CommunicationColumns:
    ratio = 32 * hidden_size / bits if bits else float("inf")
    return CommunicationColumns(bits_per_token=bits, ratio_fp32=ratio, ratio_fp16=ratio / 2)


def _retained(ws: Workspace, setting: Setting) -> Estimate | None:
    """R of a row with its soft prompt; None when a control it is measured against was not asked for."""
    clean, mean = (Setting(name, ws.title(name)) for name in ("clean", "mean"))
    if not {"clean", "mean"} <= set(ws.config.methods) or not all(True in soft_prompts(ws, s) for s in (clean, mean)):
        return None
    tokens = np.array(evaluate.read_per_prompt(evaluate.ensure(ws, clean, True))["tokens"])
    low, ours, high = (evaluate.mean_nll(evaluate.ensure(ws, one, True)) for one in (mean, setting, clean))
    if ours is None or low is None or high is None:
        return None
    return information_retained(low, ours, high, tokens)


def _difference(ws: Workspace, found: list[Setting], setting: Setting, soft_prompt: bool) -> PairedDifference | None:
    """This row minus DEL's at the same target and matching; equal guarantee compares with DEL's nearest one."""
    matching = "nearest" if setting.matching == "guarantee" else setting.matching
    peers = [s for s in found if (s.method, s.target, s.matching) == ("del", setting.target, matching)]
    if not peers or setting.target is None or setting.method == "del" or soft_prompt not in soft_prompts(ws, peers[0]):
        return None
    return evaluate.difference(*(evaluate.ensure(ws, one, soft_prompt) for one in (setting, peers[0])))


def samples(ws: Workspace, found: list[Setting]) -> list[Sample]:
    """Continuations of the first test prompts side by side."""
    merged: list[Sample] = []
    for setting, soft_prompt in rows_of(ws, found):
        name = row_label(setting, soft_prompt)
        for number, entry in enumerate(evaluate.read_samples(evaluate.ensure(ws, setting, soft_prompt))):
            if number == len(merged):
                merged.append(Sample(prompt=entry["prompt"], reference=entry["reference"], continuations={}))
            merged[number].continuations[name] = entry["continuation"]
    return merged


def recovered_prompts(ws: Workspace, found: list[Setting]) -> list[GalleryPrompt]:
    """What every attack read of the first prompts, behind DEL at each of its settings and levels, and behind DEL+."""
    shown = [setting for setting in found if setting.method in ("del", *NEEDS_CODEBOOK)]
    shown += [setting for setting in levels(ws) if setting.method == "del"]
    guesses = [_guesses(ws, setting) for setting in shown]
    return collect(ws.llm.tokenizer, guesses, range(min(GALLERY, ws.config.evaluate.samples)))


def _guesses(ws: Workspace, setting: Setting) -> Guesses:
    """First guesses of every attack on a setting, of the prompts that its widest-read attacker read."""
    content = [attack.read_guesses(artifact) for artifact in attack.ensure(ws, setting)]
    widest = max(content, key=lambda one: len(one["lengths"]))
    label = setting.label if setting.matching else f"{setting.title} at mu {setting.value:g}"
    statement = build_method(ws, setting).statement(ws.mean_prompt_tokens, ws.config.evaluate.delta)
    attacks = {name: ids for one in content for name, ids in one["guesses"].items()}
    return Guesses(label, statement.columns(), widest["lengths"], widest["truth"], attacks)


def _notes(ws: Workspace) -> list[str]:
    """What a reader must know about these very numbers."""
    notes = [
        f"Utility intervals are bootstraps over {len(ws.data.prompts())} prompts, averaged over "
        f"{len(ws.config.evaluate.seeds)} noise seed(s); every part was trained once (seed {ws.config.seed}).",
        "Attack success counts every private token of the test prompts once; the interval is Clopper-Pearson.",
    ]
    if rank := ws.config.adapter.rank:
        notes.append(
            "With every soft prompt, controls included, the server trained a low-rank adapter of its language model "
            f"(LoRA, rank {rank}); the paper trains the soft prompt alone."
        )
    if codebook.needed(ws):
        notes.append(codebook.summary(ws))
    if "worst" in ws.config.matching:
        highest = ", ".join(calibrate.worst_of(ws.config.attack))
        notes.append(
            f"Matched by worst-case ASR: the highest of {highest} meets the target on validation text. The column of "
            "the worst attack may hold stronger ones, and so pass the target."
        )
    if "guarantee" in ws.config.matching:
        notes.append(
            "Matched by guarantee: Gaussian mechanisms stand at DEL's effective μ, which is exact for a token; "
            "DP-Forward, which protects a prompt as a whole, at DEL's exact ε of a prompt of mean length."
        )
    return notes
