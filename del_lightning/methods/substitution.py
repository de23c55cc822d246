"""Methods that send another token in place of each private one.

    private token w  ->  Pr(w' | w)  ->  w'  ->  ceil(log2 V) bits  ->  the server embeds w' like any clean token

The published methods differ in Pr(w' | w) alone. All of it is public, so the strongest attacker weighs every token w
by Pr(w' | w) exactly, however fluent the substituted text may look.
"""

import math
from abc import abstractmethod

import torch
from torch import Tensor

from del_lightning.methods.base import Footprint, Method, Release
from del_lightning.methods.vocabulary import Vocabulary
from del_lightning.privacy import PrivacyStatement

ENTRIES = 1 << 24
"""Probabilities held at a time while drawing."""


class Substitution(Method):
    """One substituted token for each private one, drawn independently.

    Args:
        embedding_table: Clean embeddings (V, b), with which the server embeds what it receives.
        vocabulary: The LLM's tokens; shared between methods, since its tables are heavy.
    """

    stochastic = True

    def __init__(self, embedding_table: Tensor, vocabulary: Vocabulary) -> None:
        super().__init__(embedding_table)
        self.vocabulary = vocabulary

    @abstractmethod
    def draw(self, ids: Tensor, generator: torch.Generator | None) -> Tensor:
        """Substitutes (N,) for token ids (N,), N at least 1."""

    @abstractmethod
    def log_probability(self, sent: Tensor) -> Tensor:
        """ln Pr(sent | w) for every token w, (n, V), of n known tokens received."""

    @torch.no_grad()
    def release(self, token_ids: Tensor, generator: torch.Generator | None = None) -> Release:
        """Release substitutes (B, L), of the ids' type."""
        if token_ids.numel() == 0:
            return Release(token_ids)
        return Release(self.draw(token_ids.flatten(), generator).view(token_ids.shape))

    def restore(self, release: Release) -> Tensor:
        """Look the clean embeddings of the substitutes up."""
        return self.embedding_table[release.payload]

    @torch.no_grad()
    def log_likelihood(self, release: Release) -> Tensor:
        """The substitution probabilities themselves."""
        sent, inverse = torch.unique(release.payload, return_inverse=True)
        possible = self.vocabulary.known[sent][:, None]
        return torch.where(possible, self.log_probability(sent), -math.inf)[inverse]

    def payload_bits(self, release: Release) -> int:
        """ceil(log2 V) bits a token."""
        return release.tokens * math.ceil(math.log2(self.vocabulary_size))

    def footprint(self) -> Footprint:
        """The vectors that distances are taken between (V, k)."""
        return Footprint.of(self.vocabulary.points)

    def uniform(self, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
        """Uniform numbers of 53 bits on the device of ``like``."""
        return torch.rand(shape, generator=generator, dtype=torch.float64, device=like.device)


def pick(members: Tensor, uniform: Tensor) -> Tensor:
    """One of the ids (m,) for each number (n,) in [0, 1), all equally likely."""
    return members[(uniform * len(members)).long().clamp(max=len(members) - 1)]


class RandomTokens(Substitution):
    """Uniformly random tokens: the lower bound for every method that sends tokens."""

    name = "random"

    def draw(self, ids: Tensor, generator: torch.Generator | None) -> Tensor:
        """Ignore the ids."""
        return pick(self.vocabulary.by_frequency, self.uniform(ids.shape, ids, generator))

    def log_probability(self, sent: Tensor) -> Tensor:
        """-ln of the number of tokens, whatever was private."""
        shape = (len(sent), self.vocabulary_size)
        return torch.full(shape, -math.log(len(self.vocabulary.by_frequency)), device=sent.device)

    def footprint(self) -> Footprint:
        """Nothing."""
        return Footprint()

    def attack_bound(self, prior: float) -> float:
        """The prior itself: nothing is learned."""
        return prior

    def statement(self, sequence_tokens: int, delta: float = 1e-5) -> PrivacyStatement:
        """Perfect privacy of the content."""
        return PrivacyStatement.length_only("random tokens", sequence_tokens=sequence_tokens, delta=delta)
