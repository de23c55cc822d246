"""The semantic codebook of ``del-plus``: groups of the vocabulary from the public training split."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich import print as rprint

from del_lightning.artifacts import Artifact, Outcome
from del_lightning.codebook import Codebook, build_codebook
from del_lightning.codec import default_dim
from del_lightning.stages.workspace import Workspace

FILE = "codebook.safetensors"


def ensure(ws: Workspace) -> Artifact:
    """Return the codebook's artefact, building it if it does not exist."""
    return ws.store.get("codebook", determined_by(ws), lambda folder: _build(ws, folder))


def load(ws: Workspace) -> Codebook:
    """Load the codebook of this configuration onto the workspace's device."""
    book = Codebook.load(ensure(ws).folder / FILE)
    return Codebook(book.groups.to(ws.device), book.words.to(ws.device))


def determined_by(ws: Workspace) -> dict[str, Any]:
    """Everything the codebook depends on; how the server decodes is not among it."""
    settings = {name: value for name, value in asdict(ws.config.codebook).items() if name != "neighbours"}
    return {"model": ws.model_key, "data": ws.data.fingerprint, "codebook": settings, "dim": _dim(ws)}


def _dim(ws: Workspace) -> int:
    return ws.config.codec.dim or default_dim(ws.llm.hidden_size)


def _build(ws: Workspace, folder: Path) -> Outcome:
    rprint("grouping the vocabulary by public text")
    config = ws.config.codebook
    counts = ws.data.unigram_counts(ws.llm.vocab_size)
    book = build_codebook(
        ws.embedding_table.cpu(),
        ws.data.tokens("train"),
        counts,
        dim=_dim(ws),
        frequent=config.frequent,
        largest_share=config.largest_share,
        topic_weight=config.topic_weight,
    )
    book.save(folder / FILE)
    prior = (counts + 1).double() / (counts + 1).sum()
    mass = torch.zeros(len(book.words), dtype=torch.float64).index_add_(0, book.groups, prior)
    most = torch.zeros_like(mass).scatter_reduce(0, book.groups, prior, "amax")
    return Outcome(
        details={
            "groups": len(mass),
            "entropy_bits": float(-(mass * mass.log2()).sum()),
            "best_guess": float(most.sum()),  # of a token from its group, without noise
        }
    )
