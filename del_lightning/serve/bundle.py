"""The client's side of an export: a folder of a few megabytes that replaces the language model on the device.

    manifest.json      what the bundle belongs to, its privacy configuration, a hash of every other file
    tokenizer.json     the tokenizer, as the `tokenizers` library and its JavaScript namesake read it
    thresholds.npy     (V, d) uint32: the bits of token t's coordinate j are 1 with probability thresholds[t, j] / 2^32
    prior.npy          (V,) uint16: -2048 ln of a token's public frequency, for the preview of an attack

Token embeddings come from a finite table, so the projection, the clipping and the amplitude all end in the thresholds.
Needs numpy and `tokenizers`; the server's folder of the same export holds the same manifest.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from del_lightning.errors import ArtifactError, ConfigError
from del_lightning.privacy.secure import WORD_BITS, SecureSampler
from del_lightning.wire import Codes, Public

MANIFEST, TOKENIZER, THRESHOLDS, PRIOR = "manifest.json", "tokenizer.json", "thresholds.npy", "prior.npy"
FORMAT = 1
PRIOR_SCALE = 2048
"""Steps of one nat in the stored prior, which then reaches down to e^-32."""
_CHUNK = 64
"""Tokens attacked at a time; bounds the memory to a few tens of megabytes."""

Thresholds = NDArray[np.uint32]
Ids = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an export is, said the same way on both sides.

    Attributes:
        format: Version of this layout.
        model: Fingerprint of the language model, 16 hex digits.
        model_name: What people call it.
        setting: Fingerprint of codec, mechanism and soft prompt, 16 hex digits.
        label: What people call it.
        bits: n.
        dim: Code width d.
        bound: Clipping bound c.
        mu: The paper's parameter a token; no guarantee by itself.
        a_plus: The sampler's largest threshold.
        amplitude: A at which the server decodes.
        vocab_size: Rows V of the threshold table.
        prefix: Public instruction that the soft prompt was trained with.
        prefix_ids: Its token ids, with the tokenizer's opening token if it has one.
        delta: At which budgets and statements hold.
        budget_tokens: All tokens that one user may release in the long run ...
        budget_epsilon: ... and their exact epsilon, the client's budget unless told otherwise.
        statement: What is guaranteed, in words.
        files: Name -> SHA-256 of the other files of the folder.
    """

    format: int = FORMAT
    model: str
    model_name: str
    setting: str
    label: str
    bits: int
    dim: int
    bound: float
    mu: float
    a_plus: int
    amplitude: float
    vocab_size: int
    prefix: str
    prefix_ids: tuple[int, ...]
    delta: float
    budget_tokens: int
    budget_epsilon: float
    statement: str
    files: Mapping[str, str]

    def save(self, folder: Path) -> None:
        """Write ``manifest.json``; every number survives exactly."""
        (folder / MANIFEST).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read the manifest of a folder and compare every file that it names with its hash.

        Raises:
            ArtifactError: the folder is no export, of another version, or a file is missing or damaged.
        """
        path = Path(folder) / MANIFEST
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise ArtifactError(f"{folder} must be a folder that stage=export wrote, found no {MANIFEST}") from None
        except ValueError as error:
            raise ArtifactError(f"{path} must be JSON: {error}") from None
        names = {field.name for field in fields(cls)}
        if not isinstance(content, dict) or set(content) != names or content["format"] != FORMAT:
            raise ArtifactError(f"{path} must be a manifest of format {FORMAT}; export again, or update the client")
        manifest = cls(**content | {"prefix_ids": tuple(content["prefix_ids"])})
        for name, expected in manifest.files.items():
            found = file_hash(Path(folder) / name)
            if found != expected:
                raise ArtifactError(f"{Path(folder) / name} must have the SHA-256 {expected}, got {found or 'no file'}")
        return manifest


def file_hash(path: Path) -> str | None:
    """SHA-256 of a file; None if there is none."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


class Bundle:
    """The client bundle of one export.

    Args:
        folder: ``client`` folder that stage=export wrote.

    Raises:
        ArtifactError: a file is missing, damaged, or does not fit the manifest.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = manifest = Manifest.load(folder)
        for name in (TOKENIZER, THRESHOLDS, PRIOR):
            if name not in manifest.files:
                raise ArtifactError(f"{self.folder} must be a client bundle, its manifest names no {name}")
        self.tokenizer = Tokenizer.from_file(str(self.folder / TOKENIZER))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.thresholds: Thresholds = self._array(THRESHOLDS, np.uint32, (manifest.vocab_size, manifest.dim))
        self.sampler = SecureSampler(manifest.bits, manifest.bound, manifest.mu, manifest.dim)
        if self.sampler.threshold != manifest.a_plus:
            raise ArtifactError(
                f"{self.folder / MANIFEST} must have the a_plus of its mu, {self.sampler.threshold}, "
                f"got {manifest.a_plus}"
            )

    def encode(self, text: str) -> tuple[Ids, list[str]]:
        """Tokenize private text; returns the ids (T,) and the piece of text that each stands for.

        Raises:
            ConfigError: the text holds no token, or one that the model does not know.
        """
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        if not encoding.ids:
            raise ConfigError(f"the prompt must hold at least one token, got {text!r}")
        if max(encoding.ids) >= self.manifest.vocab_size:
            raise ConfigError(f"token ids must be below {self.manifest.vocab_size}, got {max(encoding.ids)}")
        return np.asarray(encoding.ids), [text[start:end] for start, end in encoding.offsets]

    def public_ids(self, public: Public) -> list[int]:
        """Token ids of public text behind a prompt, as the server reads it."""
        if isinstance(public, str):
            return list(self.tokenizer.encode(public, add_special_tokens=False).ids)
        return list(public)

    def release(self, ids: Ids) -> Codes:
        """Draw fresh codes (T, d) for token ids (T,): the one thing that may leave the device."""
        return self.sampler.draw(self.thresholds[ids])

    def invert(self, codes: Codes) -> Ids:
        """The best attack on single tokens: the likeliest id of each (T,), from codes (T, d) and public frequencies.

        An attacker who also uses the context, through a language model's prior, reads more.

        ln Pr(t | K) = sum_j (K_j - m/2) ln(p_j / q_j) + (m/2) sum_j ln(p_j q_j) + ln prior(t), up to a constant.
        """
        weights, bias = self._attack
        centred = codes.astype(np.float32) - self.sampler.levels / 2
        parts = np.split(centred, range(_CHUNK, len(centred), _CHUNK))
        return np.concatenate([(part @ weights + bias).argmax(axis=1) for part in parts])

    def text(self, ids: Ids) -> str:
        """Text of token ids."""
        return str(self.tokenizer.decode(ids.tolist(), skip_special_tokens=False))

    @cached_property
    def _attack(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Weights (d, V) and bias (V,) of the attacker's scores."""
        ones = self.thresholds.astype(np.float64) / 2**WORD_BITS
        log_ones, log_zeros = np.log(ones), np.log1p(-ones)
        prior = self._array(PRIOR, np.uint16, (self.manifest.vocab_size,)).astype(np.float64) / -PRIOR_SCALE
        bias = self.sampler.levels / 2 * (log_ones + log_zeros).sum(axis=1) + prior
        # Only differences between tokens matter, and small numbers keep their digits.
        return (log_ones - log_zeros).T.astype(np.float32), (bias - bias.max()).astype(np.float32)

    def _array(self, name: str, dtype: type[np.generic], shape: tuple[int, ...]) -> NDArray[Any]:
        path = self.folder / name
        try:
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path} must be a NumPy array: {error}") from None
        if (array.dtype, array.shape) != (np.dtype(dtype), shape):
            raise ArtifactError(
                f"{path} must hold {np.dtype(dtype)} of shape {shape}, got {array.dtype} of {array.shape}"
            )
        return array


def quantize_prior(frequencies: NDArray[np.floating[Any]]) -> NDArray[np.uint16]:
    """The stored form of positive token frequencies (V,): -2048 ln p, rounded."""
    shares = np.asarray(frequencies, dtype=np.float64) / float(frequencies.sum())
    largest = np.iinfo(np.uint16).max
    steps: NDArray[np.uint16] = np.rint(np.clip(-PRIOR_SCALE * np.log(shares), 0, largest)).astype(np.uint16)
    return steps
