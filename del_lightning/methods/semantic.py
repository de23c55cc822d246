"""DEL with a semantic codebook: the device sends a token's group, the server takes the mean of what it may have been.

The mechanism, its guarantee and its bits are DEL's. Two things differ. The encoder maps a token to the code word of its
group (:mod:`del_lightning.codebook`) instead of a projection of its embedding; which groups those are may depend on the
token's place. The decoder is no linear map but the posterior mean of the embedding
(:mod:`del_lightning.methods.posterior`).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from del_lightning.bigrams import Bigrams
from del_lightning.codebook import Codebook
from del_lightning.errors import ConfigError
from del_lightning.methods.base import Footprint, Release
from del_lightning.methods.posterior import PosteriorDecoder
from del_lightning.privacy import BinomialAccountant, PrivacyStatement, StochasticQuantizer


class _Groups(nn.Module):
    """One codebook with what the server knows of its groups.

    Attributes:
        groups: (V,) group of every token.
        words: (G, d) code words.
        centres: (G, b) mean embedding of a group's tokens.
        log_mass: (G,) ln Pr(group) in public text.
    """

    groups: Tensor
    words: Tensor
    centres: Tensor
    log_mass: Tensor

    def __init__(self, codebook: Codebook, embedding_table: Tensor, prior: Tensor) -> None:
        super().__init__()
        share = prior.exp()
        mass = torch.zeros(len(codebook.words), device=prior.device).index_add_(0, codebook.groups, share)
        total = torch.zeros(len(mass), embedding_table.shape[1], device=prior.device)
        total.index_add_(0, codebook.groups, share[:, None] * embedding_table)
        self.register_buffer("groups", codebook.groups, persistent=False)
        self.register_buffer("words", codebook.words, persistent=False)
        self.register_buffer("centres", total / mass[:, None], persistent=False)
        self.register_buffer("log_mass", mass.log(), persistent=False)

    def code(self, token_ids: Tensor) -> Tensor:
        """Code words of tokens (...,): (..., d)."""
        return self.words[self.groups[token_ids]]


class SemanticDEL(PosteriorDecoder):
    """Groups of tokens through the stochastic n-bit quantizer, decoded to posterior means."""

    name = "del-plus"
    stochastic = True
    parameter = "mu"
    mu: float
    per_sequence = True  # a token's groups depend on its place
    quantizer: StochasticQuantizer

    def __init__(
        self,
        embedding_table: Tensor,
        codebook: Codebook,
        prior: Tensor,
        *,
        bits: int,
        mu: float,
        bigrams: Bigrams | None = None,
    ) -> None:
        """Calibrate the quantizer to GDP parameter ``mu`` a token.

        Args:
            embedding_table: Clean embeddings (V, b).
            codebook: Groups and code words, from public text.
            prior: (V,) ln Pr(token) in public text.
            bits: n in 1..8.
            mu: The paper's GDP parameter, > 0.
            bigrams: Let the server decode with the neighbours too; None decodes every position by itself.

        Raises:
            ConfigError: ``bits`` or ``mu`` out of range.
        """
        super().__init__(embedding_table)
        self.bits, self.bigrams, self.last = bits, bigrams, codebook.last
        self.register_buffer("prior", prior, persistent=False)
        self.whole = _Groups(codebook, embedding_table, prior)
        self.ending = None if codebook.ending is None else _Groups(codebook.ending, embedding_table, prior)
        self._set(mu)

    def _set(self, value: float) -> None:
        super()._set(value)
        self.quantizer = StochasticQuantizer.from_mu(mu=self.mu, dim=self.dim, bits=self.bits, bound=1.0)
        self._log_odds = {part: self.quantizer.log_odds(part.words) for part in self._parts}

    @property
    def _parts(self) -> list[_Groups]:
        return [part for part in (self.whole, self.ending) if part is not None]

    @property
    def dim(self) -> int:
        """Code width d."""
        return self.whole.words.shape[1]

    def release(self, token_ids: Tensor, generator: torch.Generator | None = None) -> Release:
        """Release codes K in {0..2^n - 1}, uint8 (B, L, d); every row is a whole sequence."""
        words = self.whole.code(token_ids)
        if self.ending is None:
            return Release(self.quantizer.encode(words, generator))
        length = token_ids.shape[1]
        words[:, max(0, length - self.last) :] = self.ending.code(token_ids[:, max(0, length - self.last) :])
        from_end = torch.arange(length - 1, -1, -1, device=token_ids.device).expand_as(token_ids)
        return Release(self.quantizer.encode(words, generator), from_end=from_end)

    def restore(self, release: Release) -> Tensor:
        """Mean embedding given each position's own codes: sum over groups of Pr(group | K) times its centre."""
        return self._by_place(release, lambda part, scores: (scores + part.log_mass).softmax(-1) @ part.centres)

    def log_likelihood(self, release: Release) -> Tensor:
        """Exact binomial log-likelihood of the codes under every token: that of its group."""
        return self._by_place(release, lambda part, scores: scores[..., part.groups])

    def _by_place(self, release: Release, make: Callable[[_Groups, Tensor], Tensor]) -> Tensor:
        """What ``make`` makes of a codebook and ln Pr(codes | group) under it, at the places where it is in use."""
        codes = release.payload
        if self.ending is None:
            return make(self.whole, self._group_likelihood(self.whole, codes))
        if release.from_end is None:
            raise ConfigError(f"`release` of {self.name!r} with finer groups at the end must say its places, got none")
        ending = release.from_end < self.last
        most = make(self.whole, self._group_likelihood(self.whole, codes))
        most[ending] = make(self.ending, self._group_likelihood(self.ending, codes[ending]))
        return most

    def _group_likelihood(self, part: _Groups, codes: Tensor) -> Tensor:
        """ln Pr(codes | group) of codes (..., d): (..., G)."""
        weights, bias = (odds.to(part.words.device) for odds in self._log_odds[part])
        return self.quantizer.log_likelihood_given(codes, weights, bias)

    def code_values(self, release: Release) -> tuple[Tensor, Tensor] | None:
        """The decoded codes and every token's code word; None where that depends on the place."""
        if self.ending is not None:
            return None
        return self.quantizer.decode(release.payload).flatten(0, 1), self.whole.words[self.whole.groups]

    def statement(self, sequence_tokens: int, delta: float = 1e-5) -> PrivacyStatement:
        """Exact guarantee of the quantizer for one token and for the whole prompt, as of DEL."""
        return PrivacyStatement.for_quantizer(
            dim=self.dim, bits=self.bits, mu=self.mu, sequence_tokens=sequence_tokens, delta=delta
        )

    def attack_bound(self, prior: float) -> float:
        """Exact, from the trade-off function of one token."""
        return BinomialAccountant.from_mu(self.mu, self.dim, self.bits).attack_bound(prior)

    def payload_bits(self, release: Release) -> int:
        """d n bits a token."""
        return release.payload.numel() * self.bits

    def footprint(self) -> Footprint:
        """A group number a token and a word a group; neither embeddings nor a projection."""
        return Footprint.of(*(tensor for part in self._parts for tensor in (part.groups, part.words)))
