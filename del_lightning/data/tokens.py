"""Tokenisation, done once: the result is kept on disk under the hash of text and tokenizer."""

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from del_lightning.assets import cache_dir

IntArray = npt.NDArray[np.int32]
_BATCH = 1000


@dataclass(frozen=True)
class Ragged:
    """Token ids of many texts in one array.

    Attributes:
        flat: (N,) int32, all ids one after the other.
        offsets: (texts + 1,) int64; text i is ``flat[offsets[i]:offsets[i + 1]]``.
    """

    flat: IntArray
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> IntArray:
        return self.flat[self.offsets[index] : self.offsets[index + 1]]

    def rows(self) -> list[IntArray]:
        """One array a text."""
        return [self.flat[start:stop] for start, stop in pairwise(self.offsets)]


def tokenize(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Ragged:
    """Token ids of every text, without special tokens; from the cache when text and tokenizer are unchanged."""
    path = cache_dir() / "tokens" / f"{_digest([tokenizer_content(tokenizer), *texts])}.npz"
    cached = _read(path)
    if cached is not None and len(cached) == len(texts):
        return cached
    tokens = _tokenize(texts, tokenizer)
    _write(path, tokens)
    return tokens


def tokenizer_content(tokenizer: PreTrainedTokenizerBase) -> str:
    """Everything that decides what a tokenizer returns, as text."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # a slow tokenizer has no serialised form; its vocabulary and class must do
        return f"{type(tokenizer).__name__} {sorted(tokenizer.get_vocab().items())}"
    return str(backend.to_str())


def unigram_counts(tokens: Ragged, vocab_size: int) -> Tensor:
    """How often each token occurs: (vocab_size,) int64."""
    return torch.from_numpy(np.bincount(tokens.flat, minlength=vocab_size)[:vocab_size])


def _digest(parts: Iterable[str]) -> str:
    """Hash of a list of texts; lengths go in too, so that moving a boundary changes it."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _tokenize(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Ragged:
    rows: list[IntArray] = []
    for start in range(0, len(texts), _BATCH):
        batch = list(texts[start : start + _BATCH])
        encoded = tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]
        rows += [np.asarray(ids, dtype=np.int32) for ids in encoded]
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return Ragged(np.concatenate([np.empty(0, np.int32), *rows]), offsets)


def _read(path: Path) -> Ragged | None:
    """The cached tokens; None when there are none, or the file is damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return Ragged(stored["flat"], stored["offsets"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write(path: Path, tokens: Ragged) -> None:
    """Write to a temporary file, then rename: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.savez(file, flat=tokens.flat, offsets=tokens.offsets)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
