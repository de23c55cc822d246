"""Stage ``nlu``: classify private text behind every front-end, end to end and in the SnD framework, and report it.

For each way to classify, each of its front-ends at each privacy level, and each seed: one artefact
(:mod:`~del_lightning.stages.classification`). The front-ends are calibrated to the attack success targets on held-out
text of the task itself, and attacked on the reported texts under the first seed.
"""

import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from del_lightning import ranks
from del_lightning.artifacts import Artifact, Outcome, built_in, versions
from del_lightning.attacks import AttributeInference, Texts
from del_lightning.config import SND
from del_lightning.data.corpora import check_corpus
from del_lightning.data.glue import check_glue
from del_lightning.errors import ConfigError
from del_lightning.methods import Footprint, Method
from del_lightning.methods.factory import NEEDS_CODEC, NEEDS_FREQUENCIES, built
from del_lightning.metrics import binary_figures, over_examples, over_seeds
from del_lightning.metrics.classification import RANGES
from del_lightning.modules.adapter import check_peft
from del_lightning.report.nlu import console_table
from del_lightning.report.nlu_page import write_nlu_report
from del_lightning.report.schema import (
    Estimate,
    MethodCalibration,
    NluAttribute,
    NluCost,
    NluLeaderboard,
    NluRow,
    NluValidation,
)
from del_lightning.stages import attack, calibrate, tracking
from del_lightning.stages import codec as codec_stage
from del_lightning.stages.classification import Front, NluTask, ensure, read_scores
from del_lightning.stages.report import shareable, slug_of, without_folder
from del_lightning.stages.setting import method_key
from del_lightning.stages.workspace import Workspace
from del_lightning.terminal import say

SUITE = ("nearest", "nearest-l2", "nearest-code", "bayes", "bigrams")
"""Attackers that need no running text of the corpus: a task of sentences has none."""

SCORE_DIGITS = 4
"""Decimals of the scores that a leaderboard keeps; its figures are those of the rounded scores."""

ATTRIBUTE_TEXTS = 2000
"""Public texts that the attribute attack learns from, at most."""


def check(ws: Workspace) -> None:
    """Fail now on what would fail after minutes.

    Raises:
        DelError: A model, data set or setting is missing or impossible.
    """
    ws.check_memory()  # its plan has the denoiser too, and refuses a width that SnD's heads do not divide
    check_glue(ws.config.nlu.task, ws.config.data.root)
    methods = built(ws.config)
    if methods & {*NEEDS_CODEC, *NEEDS_FREQUENCIES}:
        check_corpus(ws.config.codec.corpus, ws.config.data.root, "codec.corpus")
    if "lora" in ws.config.nlu.ways:
        check_peft()
    beyond = sorted(set(ws.config.attack.suite) - set(SUITE))
    if beyond:
        raise ConfigError(f"`attack.suite` must be among {', '.join(SUITE)} for stage=nlu, got {beyond[0]!r}")
    searched = sorted(name for name in methods if ws.parameter(name) and ws.given_value(name) is None)
    if searched and not ws.config.targets:
        raise ConfigError(f"`targets` must hold a success rate to which {', '.join(searched)} are calibrated, got []")
    if ws.config.nlu.head == "verbaliser" and {"prompt", "lora"} & set(ws.config.nlu.ways):
        # Refuses label words that begin alike. Last, because the tokenizer comes with the model that `run` needs too.
        _ = NluTask(ws).data.word_ids


def run(ws: Workspace) -> Path | None:
    """Train and evaluate what is missing, then write the report.

    Returns:
        The page's path; None on a rank other than 0 or for a part of the runs, which have nothing to write.
    """
    task = NluTask(ws)
    runs = list(_runs(task))
    seeds = ws.config.nlu.seeds
    # All rows under the first seed before any under the second: a run that is cut short still has whole tables.
    cells = [(seed, run) for seed in seeds for run in runs]
    place, parts = ws.config.nlu.part or (0, 1)
    for done, (seed, (variant, front)) in enumerate(mine := cells[place::parts]):
        artifact = ensure(task, variant, front, seed)
        figures = artifact.result.metrics
        say(
            f"{done + 1}/{len(mine)} {variant}, {front.setting.label}, seed {seed}: accuracy "
            f"{figures['accuracy'].value:.3f}, AUC {figures['auc'].value:.3f} ({artifact.result.wall_seconds:.0f} s)"
        )
    if ws.config.nlu.part is not None:
        return None
    if not ranks.is_first():
        return None
    board = leaderboard(task, runs)
    page = write_nlu_report(ws.store.root / "report" / slug_of(ws.config.title), board)
    if ws.config.logger.kind == "wandb":
        ws.wandb_run.summary.update(tracking.nlu_metrics(board))
        for seed, (variant, front) in cells:
            one = ensure(task, variant, front, seed)
            tracking.log_artifact(ws.wandb_run, "classifier", one, label=f"{variant}, {front.setting.label}")
        tracking.log_report(ws.wandb_run, page)
    console = Console()
    console.print(console_table(board))
    say(f"report: {page.resolve()}")
    return page


def _runs(task: NluTask) -> Iterator[tuple[str, Front]]:
    """Every way to classify behind every front-end at every level."""
    for variant, names in task.config.runs.items():
        for name in names:
            for front in task.fronts(name):
                yield variant, front


def leaderboard(task: NluTask, runs: list[tuple[str, Front]]) -> NluLeaderboard:
    """Assemble the typed leaderboard of these runs."""
    ws, data = task.ws, task.data
    artifacts = {
        (variant, front): [ensure(task, variant, front, seed) for seed in task.config.seeds] for variant, front in runs
    }
    fronts = _distinct([front for variant, front in runs if variant != "local"])
    inferred = [_inferred(task, front) for front in fronts]
    behind = [*(one for found in artifacts.values() for one in found), *inferred, *_shared(fronts)]
    config = asdict(ws.config)
    return NluLeaderboard(
        title=ws.config.title,
        schedule=ws.config.schedule,
        task=data.task.name,
        metric=data.task.metric,
        model=ws.llm.name,
        head=task.config.head,
        train_examples=len(data.training_rows(task.config.seeds[0])),
        selection_examples=len(data.part("validation")),
        eval_examples=len(data.rows("test")),
        private_tokens=sum(len(prompt.private_ids) for prompt in data.prompts()),
        seeds=list(task.config.seeds),
        denoised_prompt_rate=ws.config.prompt.learning_rate if "snd-prompt" in task.config.ways else None,
        tuned_start_counts=True if {"prompt", "lora"} & {*task.config.ways} else None,
        best_constant=_best_constant(task),
        labels=data.rows("test").labels,
        rows=[_majority(task), *(_row(task, variant, front, found) for (variant, front), found in artifacts.items())],
        attributes=[entry for front in fronts for entry in attributes(task, front)],
        calibrations=_calibrations(fronts),
        notes=[*_notes(task, fronts), *filter(None, [versions(behind)])],
        config=shareable(config),
        overrides=[without_folder(override) for override in ws.overrides if not override.startswith("out=")],
        environment=built_in(behind),
        wall_seconds=sum({one.key: one.result.wall_seconds for one in behind}.values()),
        generated=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _best_constant(task: NluTask) -> float | None:
    """Error of the best constant in a denoiser's place: how far clean outputs of held-out examples are from their mean.

    A denoiser that is not below it has learned nothing of any text.
    """
    if not {*task.config.ways} & {*SND}:
        return None
    clean, size = task.clean("validation", task.config.seeds[0]), task.config.eval_batch_size
    batches = task.data.batches("validation", size, task.config.seeds[0])
    states = torch.cat([clean(batch.to(task.ws.device)) for batch in batches])
    return float((states - states.mean(dim=0)).square().mean())


def _distinct(fronts: list[Front]) -> list[Front]:
    """The front-ends of several ways to classify, each once."""
    return list({(front.name, front.setting): front for front in fronts}.values())


def _shared(fronts: list[Front]) -> Iterator[Artifact]:
    """Artefacts that several rows rest on: codec, calibrations, attacks."""
    for front in fronts:
        yield from attack.ensure(front.view, front.setting)
        if codec_stage.needed(front.view):
            yield codec_stage.ensure(front.view)
        for name in calibrate.calibrated(front.view):
            yield calibrate.ensure(front.view, name)


def _calibrations(fronts: list[Front]) -> list[MethodCalibration]:
    """One record a front-end that was calibrated, named as its rows are."""
    found: dict[str, MethodCalibration] = {}
    for front in fronts:
        for name in calibrate.calibrated(front.view):
            found[front.name] = calibrate.calibration(front.view, name).model_copy(
                update={"label": front.setting.title}
            )
    return list(found.values())


def _row(task: NluTask, variant: str, front: Front, artifacts: list[Artifact]) -> NluRow:
    labels = task.data.rows("test").labels
    scores = [[round(score, SCORE_DIGITS) for score in read_scores(artifact)["scores"]] for artifact in artifacts]
    figures = [binary_figures(one, labels) for one in scores]
    method, setting, sends = front.method(), front.setting, variant != "local"
    statement = method.statement(front.view.mean_prompt_tokens, task.ws.config.evaluate.delta)
    return NluRow(
        variant=variant,
        method=setting.method,
        label=setting.label,
        is_control=method.parameter is None,
        bits=front.bits,
        parameter=method.parameter,
        value=setting.value,
        target=setting.target,
        matching=setting.matching,
        seeds=len(artifacts),
        steps=artifacts[0].result.details["steps"],
        over_seeds={name: over_seeds([figure[name] for figure in figures], within=RANGES[name]) for name in figures[0]},
        over_examples=over_examples(scores, labels),
        asr=attack.rates(front.view, setting) if sends else {},
        privacy=statement.columns() if sends else None,
        cost=_cost(task, variant, front, artifacts[0].result.details["trained"]),
        validation=[found for one in artifacts if (found := _validation(one)) is not None],
        scores=scores,
    )


def _validation(artifact: Artifact) -> NluValidation | None:
    """The first and the best validation of a training; None for a head alone."""
    values = [
        (row["step"], value)
        for row in artifact.result.history
        for name, value in row.items()
        if name.startswith("val/")
    ]
    if not values:
        return None
    first, start = values[0]
    return NluValidation(start=start if first == 0 else None, best=min(value for _, value in values))


def _cost(task: NluTask, variant: str, front: Front, trained: dict[str, int]) -> NluCost:
    method, view = front.method(), front.view
    release = method.release(torch.tensor([task.data.prompts()[0].private_ids], device=view.device))
    bits = 0.0 if variant == "local" else method.payload_bits(release) / release.tokens
    footprint = _footprint(variant, method)
    return NluCost(
        server_parameters=trained["server"],
        user_parameters=footprint.parameters + trained["user"],
        user_bytes=footprint.bytes + 4 * trained["user"],
        bits_per_token=bits,
        bits_per_text=bits * float(np.mean([len(prompt.private_ids) for prompt in task.data.prompts()])),
        bits_back={"snd-user": 32.0 * task.ws.llm.hidden_size, "local": 0.0}.get(variant, 1.0),
    )


def _footprint(variant: str, method: Method) -> Footprint:
    """The user's tables: the front-end's, and the clean embeddings that a denoiser of the user's reads.

    Metric-DP's own table is that of the clean embeddings, which need be held once.
    """
    own, table = method.footprint(), Footprint.of(method.embedding_table)
    if variant == "local":
        return table
    if variant != "snd-user" or type(method).footprint is Method.footprint:
        return own
    return Footprint(own.parameters + table.parameters, own.bytes + table.bytes)


def _majority(task: NluTask) -> NluRow:
    """The answer of somebody who never sees the text."""
    labels = task.data.rows("test").labels
    scores = [[float(task.data.majority)] * len(labels)]
    found = over_examples(scores, labels)
    nothing = NluCost(
        server_parameters=0, user_parameters=0, user_bytes=0, bits_per_token=0, bits_per_text=0, bits_back=0
    )
    return NluRow(
        variant="majority",
        method="majority",
        label="Majority class",
        is_control=True,
        seeds=1,
        over_seeds={name: Estimate(value=figure.value, n=1) for name, figure in found.items()},
        over_examples=found,
        cost=nothing,
    )


def attributes(task: NluTask, front: Front) -> list[NluAttribute]:
    """What is inferred of whole texts behind a front-end, under its name: levels of one value share an artefact."""
    found = _inferred(task, front).result.details["found"]
    return [NluAttribute.model_validate({**entry, "label": front.setting.label}) for entry in found]


def _inferred(task: NluTask, front: Front) -> Artifact:
    """Attribute inference from the releases that the token attacks read too."""
    determined_by = {
        "model": task.ws.model_key,
        "method": method_key(front.view, front.setting),
        "data": task.data.fingerprint,
        "texts": ATTRIBUTE_TEXTS,
        "length": "standardised",
        "seed": task.config.seeds[0],
    }
    return task.ws.store.get("attribute", determined_by, lambda folder: _infer(task, front))


def _infer(task: NluTask, front: Front) -> Outcome:
    data, method = task.data, front.method()
    release, lengths, _ = attack.release_prompts(front.view, method, None)
    train = data.pool(ATTRIBUTE_TEXTS)
    parts = {
        "public": ("train", train),
        "held_out": ("train", data.held_out_rows),
        "test": ("test", range(len(lengths))),
    }
    values = {part: data.attributes(split, list(rows)) for part, (split, rows) in parts.items()}
    public, held_out = (
        Texts.of(data.private_rows(*parts[part]), values[part].values()) for part in ("public", "held_out")
    )
    scores = AttributeInference(public, held_out, task.config.seeds[0])(method, release, lengths)
    found = []
    for column, (name, truth) in enumerate(values["test"].items()):
        figures = over_examples([scores[:, column].tolist()], truth)
        share = sum(truth) / len(truth)
        estimates = {name: figures[name].model_dump(mode="json") for name in ("accuracy", "auc")}
        found.append({"attribute": name, "majority": max(share, 1 - share), **estimates})
    return Outcome(details={"found": found})


def _drawn(task: NluTask) -> str:
    """Which training examples a seed draws, and from how many."""
    chosen, pool = len(task.data.training_rows(task.config.seeds[0])), len(task.data.pool(sys.maxsize))
    return (
        f"takes all {pool} training examples, and draws"
        if chosen == pool
        else (f"draws {chosen} of {pool} training examples")
    )


def _notes(task: NluTask, fronts: list[Front]) -> list[str]:
    """What a reader must know about these very numbers."""
    data, config = task.data, task.config
    pair = "both sentences together" if len(data.task.columns) > 1 else "the sentence"
    notes = [
        f"Reported are {len(data.rows('test'))} examples of GLUE's validation split; {len(data.part('validation'))} "
        "examples held out of its training split selected checkpoints, and nothing was chosen on reported ones.",
        f"A seed {_drawn(task)}, initial weights and noise anew. "
        "Intervals over seeds are Student's; intervals over examples are in leaderboard.json.",
        f"A text is {pair}: epsilon of a text covers all of it at once. The template is public and sent in the clear.",
        "Levels are matched by the nearest neighbour's success on held-out training text; at one level methods differ "
        "in what stronger attackers read, so compare at the strongest attack's success.",
    ]
    if data.task.name == "sst2":
        notes.append(
            "SST-2's training split holds phrases of the same sentences over and over: training texts are shorter than "
            "reported ones, and held-out phrases are not independent of training ones; the reported sentences are."
        )
    if set(config.ways) & set(SND):
        notes.append(
            f"Denoisers took {config.denoiser.steps} steps of {config.denoiser.batch_size}; their authors pass once "
            "over a public corpus. After a short training these are lower ends of what the SnD framework can do."
        )
    for calibration in _calibrations(fronts):
        for matching, results in calibration.found.items():
            notes += [
                f"{calibration.label}, {matching} ASR {result.target:g}: {result.note}"
                for result in results
                if matching in task.ws.config.matching and not result.reached
            ]
    return notes
