"""The semantic codebook of ``del-plus``: groups of the vocabulary from the public training split."""

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from del_lightning.artifacts import Artifact, Outcome
from del_lightning.codebook import Codebook, build_codebook
from del_lightning.codec import default_dim
from del_lightning.methods.factory import NEEDS_CODEBOOK
from del_lightning.stages.workspace import Workspace
from del_lightning.terminal import say

FILE = "codebook.safetensors"


def needed(ws: Workspace) -> bool:
    """Whether a front-end of this configuration sends groups."""
    return any(name in NEEDS_CODEBOOK for name in ws.config.methods)


def run(ws: Workspace) -> None:
    """Build the codebook and print what it has."""
    say(summary(ws))


def summary(ws: Workspace) -> str:
    """How many groups there are, and how much they say of a token of public text."""
    found = ensure(ws).result.details

    def groups(prefix: str) -> str:
        return f"{found[prefix + 'groups']:,} groups ({found[prefix + 'entropy_bits']:.1f} bits)"

    if last := ws.config.codebook.last:
        return f"DEL+ sends which of {groups('')} a token is in; of the last {last} tokens, of {groups('ending_')}."
    return f"DEL+ sends which of {groups('')} a token is in."


def ensure(ws: Workspace) -> Artifact:
    """Return the codebook's artefact, building it if it does not exist."""
    return ws.store.get("codebook", determined_by(ws), lambda folder: _build(ws, folder))


def load(ws: Workspace) -> Codebook:
    """Load the codebook of this configuration onto the workspace's device."""
    return Codebook.load(ensure(ws).folder / FILE).to(ws.device)


def determined_by(ws: Workspace) -> dict[str, Any]:
    """Everything the codebook depends on; how the server decodes is not among it."""
    settings = {name: value for name, value in asdict(ws.config.codebook).items() if name != "neighbours"}
    if not ws.config.codebook.last:  # what is not used does not count
        settings = {name: value for name, value in settings.items() if not name.startswith("last")}
    return {"model": ws.model_key, "data": ws.data.fingerprint, "codebook": settings, "dim": _dim(ws)}


def _dim(ws: Workspace) -> int:
    return ws.config.codec.dim or default_dim(ws.llm.hidden_size)


def _build(ws: Workspace, folder: Path) -> Outcome:
    say("grouping the vocabulary by public text")
    config = ws.config.codebook
    counts = ws.data.unigram_counts(ws.llm.vocab_size)
    group = partial(
        build_codebook,
        ws.embedding_table.cpu(),
        ws.data.tokens("train"),
        counts,
        dim=_dim(ws),
        topic_weight=config.topic_weight,
    )
    book = group(frequent=config.frequent, largest_share=config.largest_share)
    details = _details(book, counts)
    if config.last:
        ending = group(frequent=0, alone=config.last_alone, largest_share=config.last_share)
        book = replace(book, ending=ending, last=config.last)
        details |= {f"ending_{name}": value for name, value in _details(ending, counts).items()}
    book.save(folder / FILE)
    return Outcome(details=details)


def _details(book: Codebook, counts: Tensor) -> dict[str, float]:
    prior = (counts + 1).double() / (counts + 1).sum()
    mass = torch.zeros(len(book.words), dtype=torch.float64).index_add_(0, book.groups, prior)
    most = torch.zeros_like(mass).scatter_reduce(0, book.groups, prior, "amax")
    return {
        "groups": len(mass),
        "entropy_bits": float(-(mass * mass.log2()).sum()),
        "best_guess": float(most.sum()),  # of a token from its group, without noise
    }
