"""Stage ``evaluate``: what the server's model still makes of the prompts, for every front-end and soft prompt."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from del_lightning.artifacts import Artifact, Outcome, write_json
from del_lightning.methods import Footprint, Method
from del_lightning.methods.factory import TEXT_ONLY
from del_lightning.methods.inferdpt import extract, local_only, model_footprint
from del_lightning.metrics import Coherence, ConditionalPerplexity, NextTokenAgreement, bootstrap_mean, bootstrap_ratio
from del_lightning.report.schema import DeviceColumns, Estimate, PairedDifference
from del_lightning.seeding import stream
from del_lightning.split import SplitModel, example_of_target, targets
from del_lightning.stages import prompt as prompt_stage
from del_lightning.stages.setting import Setting, build_method, method_key, row_label
from del_lightning.stages.settings import settings, soft_prompts
from del_lightning.stages.workspace import Workspace
from del_lightning.terminal import say, track

PER_PROMPT = "per_prompt.json"
SAMPLES = "samples.json"
TIMED_PROMPTS = 8
"""Prompts whose privatisation is timed."""


def ensure(ws: Workspace, setting: Setting, soft_prompt: bool) -> Artifact:
    """Return the evaluation of a front-end without or with its soft prompt, running it if it was not."""
    return ensure_with(ws, setting, prompt_stage.ensure(ws, setting) if soft_prompt else None)


def ensure_with(ws: Workspace, setting: Setting, prompt: Artifact | None) -> Artifact:
    """Return the evaluation of a front-end behind any soft prompt of this language model, running it if it was not."""
    determined_by = {
        "model": ws.model_key,
        "method": method_key(ws, setting),
        "prompt": None if prompt is None else prompt.key,
        "evaluate": asdict(ws.config.evaluate),
        "data": ws.data.fingerprint,
        **ws.prompts_key,
        "seed": ws.config.seed,
    }
    if setting.method in TEXT_ONLY:
        determined_by["local"] = {"model": ws.local_llm.fingerprint, **asdict(ws.config.baseline.inferdpt)}
    return ws.store.get("evaluate", determined_by, lambda folder: _build(ws, setting, prompt, folder))


def run(ws: Workspace) -> None:
    """Evaluate every row and print it."""
    for setting in settings(ws):
        for soft_prompt in soft_prompts(ws, setting):
            metrics = ensure(ws, setting, soft_prompt).result.metrics
            name = row_label(setting, soft_prompt)
            perplexity = f"PPL {metrics['perplexity'].value:.1f}, " if "perplexity" in metrics else ""
            say(f"{name}: {perplexity}COH {metrics['coherence'].value:.3f}")


def mean_nll(artifact: Artifact) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """Mean NLL of a continuation token (nats, averaged over seeds), a prompt; None for a method that returns text."""
    content = read_per_prompt(artifact)
    if "nll" not in content:
        return None
    return np.asarray(np.array(content["nll"]) / np.array(content["tokens"]))


def difference(ours: Artifact, theirs: Artifact) -> PairedDifference:
    """One evaluation minus another of the same prompts, paired over prompts.

    Seeds may differ in number, so NLL is compared as the mean of a prompt.
    """
    content = read_per_prompt(theirs)
    coherence = bootstrap_mean(np.array(read_per_prompt(ours)["coherence"]) - np.array(content["coherence"]))
    first, second = mean_nll(ours), mean_nll(theirs)
    if first is None or second is None:
        return PairedDifference(coherence=coherence)
    weight = np.array(content["tokens"])
    return PairedDifference(nll=bootstrap_ratio(weight * (first - second), weight), coherence=coherence)


def read_per_prompt(artifact: Artifact) -> dict[str, Any]:
    """Per-prompt sums behind the metrics: nll (nats) and tokens, summed over seeds, and mean coherence."""
    content: dict[str, Any] = json.loads((artifact.folder / PER_PROMPT).read_text(encoding="utf-8"))
    return content


def read_samples(artifact: Artifact) -> list[dict[str, str]]:
    """Continuations of the first prompts: dictionaries with prompt, reference and continuation."""
    content: list[dict[str, str]] = json.loads((artifact.folder / SAMPLES).read_text(encoding="utf-8"))
    return content


@torch.inference_mode()
def _build(ws: Workspace, setting: Setting, prompt: Artifact | None, folder: Path) -> Outcome:
    name = row_label(setting, prompt is not None)
    expected = None if setting.method in TEXT_ONLY else ws.clean_choices  # of the plain model, before an adapter comes
    with prompt_stage.adapted(ws, prompt) as soft_prompt:
        split = SplitModel(ws.llm, build_method(ws, setting), soft_prompt).eval()
        scored = {} if expected is None else _teacher_forced(ws, split, expected, name)
        received = [] if setting.method == "local-only" else _continuations(ws, split, name)
    continuations = _mended(ws, setting.method, received) if setting.method in TEXT_ONLY else received
    coherence = _coherence(ws, continuations)
    write_json(folder / PER_PROMPT, {**scored, "coherence": coherence.tolist()})
    write_json(folder / SAMPLES, _samples(ws, continuations[0]))
    clipped = split.method.clipped_share(_private_tokens(ws)) if split.method is not None else None
    return Outcome(
        metrics=_estimates(scored) | {"coherence": bootstrap_mean(coherence)},
        details={
            "setting": asdict(setting),
            "soft_prompt": prompt is not None,
            "clipped_share": clipped,
            "device": _device(ws, setting.method, build_method(ws, setting), received).model_dump(),
        },
    )


def _estimates(scored: dict[str, Any]) -> dict[str, Estimate]:
    """Perplexity and agreement with their intervals; none for a method that only returns text."""
    if not scored:
        return {}
    nll, agreed, tokens = (np.array(scored[name]) for name in ("nll", "agreed", "tokens"))
    return {
        "perplexity": bootstrap_ratio(nll, tokens, transform=np.exp),
        "agreement": bootstrap_ratio(agreed, tokens),
    }


def _mended(ws: Workspace, name: str, continuations: list[list[str]]) -> list[list[str]]:
    """What the user's local model makes of the clean prompts, with or without the server's continuations."""
    config, evaluation = ws.config.baseline.inferdpt, ws.config.evaluate
    sampling = {"temperature": config.temperature, "top_p": config.top_p, "max_new_tokens": evaluation.max_new_tokens}
    prefixes = [prompt.prompt for prompt in ws.data.prompts()]
    if name == "local-only":
        return [local_only(ws.local_llm, prefixes, **sampling, seed=seed) for seed in evaluation.seeds]  # type: ignore[arg-type]
    pairs = zip(continuations, evaluation.seeds, strict=True)
    return [extract(ws.local_llm, prefixes, texts, **sampling, seed=seed) for texts, seed in pairs]  # type: ignore[arg-type]


def _local_seconds(ws: Workspace, received: list[list[str]]) -> list[float]:
    """Seconds that the user's local model takes for each of the first prompts, one at a time."""
    config, evaluation = ws.config.baseline.inferdpt, ws.config.evaluate
    sampling: dict[str, Any] = {"temperature": config.temperature, "top_p": config.top_p}
    sampling |= {"max_new_tokens": evaluation.max_new_tokens, "seed": evaluation.seeds[0]}
    times = []
    for index, prompt in enumerate(ws.data.prompts()[:TIMED_PROMPTS]):
        start = time.perf_counter()
        if received:
            extract(ws.local_llm, [prompt.prompt], [received[0][index]], **sampling)
        else:
            local_only(ws.local_llm, [prompt.prompt], **sampling)
        times.append(time.perf_counter() - start)
    return times


def _seeds(ws: Workspace, split: SplitModel) -> Sequence[int]:
    """Seeds that make a difference to teacher-forced metrics: without noise all of them give the same."""
    assert split.method is not None
    return ws.config.evaluate.seeds if split.method.stochastic else ws.config.evaluate.seeds[:1]


def _teacher_forced(ws: Workspace, split: SplitModel, clean_choices: list[Tensor], name: str) -> dict[str, Any]:
    """NLL and agreement with the clean model at the continuation's positions, a prompt, summed over seeds."""
    prompts = len(ws.data.prompts())
    # Rank 0 evaluates everything alone: nothing is spread over ranks that would have to be gathered.
    perplexity = ConditionalPerplexity(prompts, sync_on_compute=False).to(ws.device)
    agreement = NextTokenAgreement(prompts, sync_on_compute=False).to(ws.device)
    batches = list(zip(ws.data.test_dataloader(), clean_choices, strict=True))
    for batch, expected in track(batches, f"{name}: perplexity"):
        batch = batch.to(ws.device)
        for seed in _seeds(ws, split):
            logits = split.logits(batch, split.release_examples(batch, seed)).float()
            example = example_of_target(batch)
            perplexity.update(logits, targets(batch), example)
            agreement.update(logits, expected, example)
    nll, tokens = perplexity.per_example()
    agreed, _ = agreement.per_example()
    return {"nll": nll.tolist(), "tokens": tokens.tolist(), "agreed": agreed.tolist()}


def _continuations(ws: Workspace, split: SplitModel, name: str) -> list[list[str]]:
    """Sampled continuations: one list of texts a seed, in the order of the prompts."""
    config = ws.config.evaluate
    batches = ws.data.generation_batches(config.generation_batch_size)
    texts = [[""] * len(ws.data.prompts()) for _ in config.seeds]
    for row, seed in zip(texts, config.seeds, strict=True):
        for number, batch in enumerate(track(batches, f"{name}: continuations")):
            batch = batch.to(ws.device)
            generated = split.generate(
                batch,
                split.release_examples(batch, seed),
                max_new_tokens=config.max_new_tokens,
                top_p=config.top_p,
                temperature=config.temperature,
                seed=seed * len(batches) + number,
            )
            for index, ids in zip(batch.index.tolist(), generated, strict=True):
                row[index] = ws.llm.tokenizer.decode(ids, skip_special_tokens=True)
    return texts


def _coherence(ws: Workspace, continuations: list[list[str]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Cosine between continuation and reference, averaged over seeds: (prompts,)."""
    references = _references(ws)
    metric = Coherence(ws.encoder, sync_on_compute=False)
    for texts in continuations:
        metric.update(texts, references)
    by_seed = np.array(metric.values().tolist()).reshape(len(continuations), -1)
    return np.asarray(by_seed.mean(axis=0))


def _samples(ws: Workspace, continuations: list[str]) -> list[dict[str, str]]:
    """The first prompts, their references and what the row made of them."""
    entries = zip(ws.data.prompts(), _references(ws), continuations, strict=True)
    return [
        {"prompt": prompt.prompt, "reference": reference, "continuation": continuation}
        for prompt, reference, continuation in islice(entries, ws.config.evaluate.samples)
    ]


def _references(ws: Workspace) -> list[str]:
    """Texts of the reference tokens that perplexity is measured on, about as long as a continuation."""
    return [str(ws.llm.tokenizer.decode(prompt.reference_ids)) for prompt in ws.data.prompts()]


def _device(ws: Workspace, name: str, method: Method, received: list[list[str]]) -> DeviceColumns:
    """What is on the device, and the time it takes for a prompt; ``received``: what the server answered, a seed."""
    footprint, times, note = method.footprint(), list[float](), ""
    if name in TEXT_ONLY:
        local = model_footprint(ws.local_llm)
        footprint = Footprint(footprint.parameters + local.parameters, footprint.bytes + local.bytes)
        note = f"runs {ws.local_llm.name} on the device, {ws.config.evaluate.max_new_tokens} new tokens a prompt"
    local_seconds = _local_seconds(ws, received) if name in TEXT_ONLY else [0.0] * TIMED_PROMPTS
    for index, prompt in enumerate(ws.data.prompts()[:TIMED_PROMPTS]):
        ids = torch.tensor([prompt.private_ids], device=ws.device)
        start = time.perf_counter()
        method.release(ids, stream("timing", index, device=ws.device))
        times.append(1e3 * (time.perf_counter() - start + local_seconds[index]))
    return DeviceColumns(
        parameters=footprint.parameters,
        bytes=footprint.bytes,
        milliseconds=bootstrap_mean(times),
        note=note,
    )


def _private_tokens(ws: Workspace) -> Tensor:
    """All private tokens of the test prompts (N,)."""
    ids = [token for prompt in ws.data.prompts() for token in prompt.private_ids]
    return torch.tensor(ids, device=ws.device)
