"""Coherence (COH): how close a continuation's meaning is to the reference's, by a sentence encoder.

Values of different encoders cannot be compared, so the encoder's name is part of the metric's name.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from del_lightning import assets
from del_lightning.errors import AssetError, ConfigError
from del_lightning.llm import quiet

POOLINGS = ("cls", "mean")


def check_encoder(name: str) -> None:
    """Fail early where :class:`SentenceEncoder` would.

    Raises:
        AssetError: ``name`` is no packaged asset, no model folder and not to be had from the hub; or it is a folder
            whose weights are in pickles.
    """
    source = _source(name)
    weights = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    if Path(source).is_dir() and not any((Path(source) / file).is_file() for file in weights):
        raise _unavailable(name, f"it holds no {SAFE_WEIGHTS_NAME}, and no pickle is read")
    try:
        AutoConfig.from_pretrained(source, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError) as error:
        # Only what is neither here nor in the hub's cache is worth a request.
        if Path(source).is_dir():
            raise _unavailable(name, _line(error)) from error
        _check_hub(name)


def _source(name: str) -> str:
    """Folder of a packaged encoder, otherwise ``name`` itself: a folder or a hub id."""
    return str(assets.packaged_path(name)) if assets.is_packaged(name) else name


def _check_hub(name: str) -> None:
    if (problem := assets.hub_problem()) is not None:
        raise _unavailable(name, problem)
    try:
        AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _unavailable(name, _line(error)) from error


def _unavailable(name: str, reason: str) -> AssetError:
    return AssetError(f"`evaluate.encoder` must be a packaged asset, a folder or a hub id, got {name!r}: {reason}")


def _line(error: Exception) -> str:
    return str(error).strip().split("\n", maxsplit=1)[0]


class SentenceEncoder(nn.Module):
    """A frozen text encoder that returns unit vectors.

    Args:
        name: Packaged asset, local folder or hub id; no remote code is run.
        pooling: ``mean`` over the token states or ``cls``, the first one.
        batch_size: Texts encoded at a time.

    Raises:
        AssetError: The encoder cannot be loaded.
        ConfigError: Unknown pooling.
    """

    def __init__(self, name: str, pooling: str = "mean", batch_size: int = 32) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ConfigError(f"`evaluate.pooling` must be one of {', '.join(POOLINGS)}, got {pooling!r}")
        self.name = Path(name).name if Path(name).is_dir() else name
        self.pooling, self.batch_size = pooling, batch_size
        check_encoder(name)
        source = _source(name)
        try:
            with quiet():
                self.tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
                # Where the hub has pickles alone, transformers takes the converted weights that the hub's bot offers.
                model = AutoModel.from_pretrained(
                    source, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
                )
        except (OSError, ValueError, SafetensorError) as error:
            raise _unavailable(name, _line(error)) from error
        self.model: nn.Module = model.requires_grad_(False).eval()
        self.max_tokens = min(self.tokenizer.model_max_length, model.config.max_position_embeddings)

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Tensor:
        """Encode texts to unit vectors (n, h), float32; an empty text becomes the zero vector."""
        # Longest first, so that a batch holds texts of similar length and little padding.
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        vectors = torch.cat([self._encode([texts[i] for i in batch]) for batch in batches])
        result = torch.empty_like(vectors)
        result[order] = vectors
        filled = torch.tensor([bool(text.strip()) for text in texts], device=result.device)
        return result * filled[:, None]

    def _encode(self, texts: list[str]) -> Tensor:
        device = next(self.model.parameters()).device
        # A full stop stands in for an empty text: some tokenizers would return no token at all.
        inputs = self.tokenizer(
            [text if text.strip() else "." for text in texts],
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        ).to(device)
        states: Tensor = self.model(**inputs).last_hidden_state
        return F.normalize(pool(states, inputs["attention_mask"], self.pooling), dim=-1)


def pool(states: Tensor, attention_mask: Tensor, pooling: str) -> Tensor:
    """One vector a text (B, h) of token states (B, T, h), padded on the right."""
    if pooling == "cls":
        return states[:, 0]
    weights = attention_mask[..., None].to(states)
    return (states * weights).sum(1) / weights.sum(1)


class Coherence(Metric):
    """Mean cosine between the sentence embeddings of continuation and reference.

    An empty continuation counts as 0. With several processes :meth:`values` is ordered by process.

    Args:
        encoder: The sentence encoder.
        kwargs: Those of every torchmetrics metric.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    cosines: list[Tensor]

    def __init__(self, encoder: SentenceEncoder, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.encoder = encoder
        self.name = f"coherence ({encoder.name}, {encoder.pooling})"
        self.add_state("cosines", default=[], dist_reduce_fx="cat")

    def update(self, continuations: Sequence[str], references: Sequence[str]) -> None:
        """Add pairs of texts.

        Raises:
            ConfigError: Not as many continuations as references.
        """
        if len(continuations) != len(references):
            counts = f"{len(continuations)} and {len(references)}"
            raise ConfigError(f"`continuations` and `references` must have one length, got {counts}")
        vectors = self.encoder([*continuations, *references])
        self.cosines.append((vectors[: len(continuations)] * vectors[len(continuations) :]).sum(-1))

    def compute(self) -> Tensor:
        """Mean cosine in [-1, 1]; NaN before the first update."""
        return self._merged().mean()

    def values(self) -> Tensor:
        """Cosine of every pair, in the order of the updates, over all processes (call it on each)."""
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=self.sync_on_compute and not self._is_synced
        ):
            return self._merged()

    def _merged(self) -> Tensor:
        return dim_zero_cat(self.cosines) if len(self.cosines) else torch.empty(0, device=self.device)
