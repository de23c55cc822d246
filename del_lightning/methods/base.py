"""The one interface of every method: what leaves the device, what the server makes of it, what it gives away.

    release(token_ids) -> Release      on the device; the only thing that is sent
    restore(release) -> embeddings     at the server, before the soft prompt
    log_likelihood(release)            ln Pr(release | token): all a strongest per-token attacker needs
    statement, payload_bits            what it guarantees and what it costs
    footprint                          what the device must hold for it
    at(value)                          the same method at another privacy level, sharing every table

Calibration, training, evaluation and attacks all call the same object, so no two of them can mean different
mechanisms by the same name.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from del_lightning.errors import ConfigError
from del_lightning.privacy import PrivacyStatement
from del_lightning.privacy.checks import require_positive


@dataclass(frozen=True)
class Release:
    """What leaves the device, and nothing else.

    Attributes:
        payload: (B, L, ...) one entry a token: integer codes, floats or token ids; its last axis may be empty.
        sequence_tokens: (B, L) tokens of the sequence that each token belongs to, which the server sees anyway; only
            of methods that treat a sequence as a whole, so that an attack may take their releases apart.
        from_end: (B, L) place of each token in its sequence, counted from the end: 0 for the last one. The server sees
            it anyway; only of methods that treat places differently.
    """

    payload: Tensor
    sequence_tokens: Tensor | None = None
    from_end: Tensor | None = None

    def __len__(self) -> int:
        """Number of sequences B."""
        return self.payload.shape[0]

    @property
    def tokens(self) -> int:
        """Number of tokens B * L."""
        return self.payload.shape[0] * self.payload.shape[1]

    def rows(self, mask: Tensor | None = None) -> "Release":
        """Flatten to one sequence (1, N, ...), keeping the tokens where ``mask`` (B, L) is True."""
        return self._map(lambda x: (x.flatten(0, 1) if mask is None else x[mask])[None])

    def __getitem__(self, tokens: slice) -> "Release":
        """Keep a range of positions in every sequence."""
        return self._map(lambda x: x[:, tokens])

    def take(self, positions: Tensor) -> "Release":
        """The positions (n,) of every sequence, in that order."""
        return self._map(lambda x: x[:, positions])

    def _map(self, select: Callable[[Tensor], Tensor]) -> "Release":
        public = (None if x is None else select(x) for x in (self.sequence_tokens, self.from_end))
        return Release(select(self.payload), *public)

    @staticmethod
    def concatenate(releases: "list[Release]") -> "Release":
        """Join releases of one method along the token axis."""
        lengths = [release.sequence_tokens for release in releases if release.sequence_tokens is not None]
        places = [release.from_end for release in releases if release.from_end is not None]
        payload = torch.cat([release.payload for release in releases], dim=1)
        return Release(payload, *(torch.cat(public, dim=1) if public else None for public in (lengths, places)))


@dataclass(frozen=True)
class Footprint:
    """What the user's device must hold for a front-end, besides the tokenizer.

    Attributes:
        parameters: Numbers in its tables and models.
        bytes: Their size as this package stores them.
    """

    parameters: int = 0
    bytes: int = 0

    @classmethod
    def of(cls, *tensors: Tensor) -> "Footprint":
        """Sum over tables that the device holds."""
        return cls(sum(t.numel() for t in tensors), sum(t.numel() * t.element_size() for t in tensors))


class Method(nn.Module, ABC):
    """A front-end: how private tokens reach the server. See the module's docstring for the contract.

    Attributes:
        name: Word used in configuration and tables.
        stochastic: Whether two releases of the same tokens may differ.
        per_sequence: Whether a token's release depends on the others of its sequence, or on its place in it. Then every
            row of :meth:`release` must be one sequence, and nothing but it.
        last: So many tokens at the end of a sequence are released in a way of their own.
        parameter: Attribute that holds the privacy parameter ("mu", "eta" or "epsilon"); None for controls.
        parameter_range: Where calibration searches for it; a larger value is never more private.
        embedding_table: Clean input embeddings (V, b), float32; public knowledge.
    """

    name: str
    stochastic: bool = False
    per_sequence: ClassVar[bool] = False
    last: int = 0
    parameter: ClassVar[str | None] = None
    parameter_range: ClassVar[tuple[float, float]] = (0.1, 1000.0)
    embedding_table: Tensor

    def __init__(self, embedding_table: Tensor) -> None:
        """``embedding_table``: clean input embeddings of the vocabulary (V, b)."""
        super().__init__()
        self.register_buffer("embedding_table", embedding_table, persistent=False)

    @property
    def vocabulary_size(self) -> int:
        """V."""
        return self.embedding_table.shape[0]

    @abstractmethod
    def release(self, token_ids: Tensor, generator: torch.Generator | None = None) -> Release:
        """Privatise token ids (B, L); fresh randomness from ``generator`` at every call."""

    @abstractmethod
    def restore(self, release: Release) -> Tensor:
        """Return the server's embeddings (B, L, b), float32."""

    def restore_sequences(self, release: Release, lengths: Tensor) -> Tensor:
        """Like :meth:`restore`, for a server that looks at whole sequences.

        Args:
            release: (1, N, ...) the private tokens of S sequences one after the other.
            lengths: (S,) tokens of each sequence, at least one; they sum to N.

        Returns:
            Embeddings (1, N, b), float32.
        """
        return self.restore(release)

    @abstractmethod
    def log_likelihood(self, release: Release) -> Tensor:
        """Return ln Pr(release | token) for every token of the vocabulary, (B, L, V); -inf where impossible."""

    @abstractmethod
    def statement(self, sequence_tokens: int, delta: float = 1e-5) -> PrivacyStatement:
        """What is guaranteed for one token and for a prompt of ``sequence_tokens`` tokens."""

    def attack_bound(self, prior: float) -> float | None:
        """Bound on the probability with which any attacker names one token, or None without a guarantee.

        Args:
            prior: Probability of the attacker's best guess without the release, in (0, 1]. An attacker who knows the
                rest of the text has a larger one than an attacker who knows word frequencies.
        """
        return None

    @abstractmethod
    def payload_bits(self, release: Release) -> int:
        """Bits of the payload before entropy coding and framing."""

    def footprint(self) -> Footprint:
        """What the user's device must hold besides the tokenizer; the embedding table unless a method says else."""
        return Footprint.of(self.embedding_table)

    @property
    def value(self) -> float | None:
        """The privacy parameter in force; None for a control."""
        return None if self.parameter is None else float(getattr(self, self.parameter))

    def at(self, value: float) -> Self:
        """The same method at another value of its parameter; tables are shared, so this is cheap.

        Raises:
            ConfigError: The method has no parameter, or the value is out of range.
        """
        if self.parameter is None:
            raise ConfigError(f"`method` must have a privacy parameter to be set, got {self.name!r}")
        twin = copy.copy(self)
        # A shallow copy shares these dictionaries, and setting a buffer on one module would set it on both.
        for members in ("_parameters", "_buffers", "_modules"):
            setattr(twin, members, dict(getattr(self, members)))
        twin._set(value)
        return twin

    def _set(self, value: float) -> None:
        """Take a privacy level: all that depends on it, and nothing else. Methods with a parameter extend this."""
        assert self.parameter is not None
        require_positive(self.parameter, value)
        setattr(self, self.parameter, float(value))

    def score_values(self, release: Release) -> tuple[Tensor, Tensor] | None:
        """Values and matrix of a linear decoder: a short cut to the ranking of clean embeddings.

        Returns:
            Values (N, r) of the N = B * L tokens and a matrix (b, r) such that ``values @ matrix.T`` is a positive
            multiple, token by token, of what :meth:`restore` returns; None where the decoder is not linear.
        """
        return None

    def code_values(self, release: Release) -> tuple[Tensor, Tensor] | None:
        """The server's estimates of the codes (N, d) and the vocabulary's clean codes (V, d); None without codes."""
        return None

    def clipped_share(self, token_ids: Tensor) -> float | None:
        """Share of the code's coordinates that clipping changes for these tokens; None without a code."""
        return None


def exact_match(distance: Tensor) -> Tensor:
    """Log-likelihood of a noise-free release: 0 where the distance to a token's own release is 0, else -inf."""
    return torch.where(distance == 0, 0.0, -torch.inf)
