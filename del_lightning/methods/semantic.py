"""DEL with a semantic codebook: the device sends a token's group, the server takes the mean of what it may have been.

The mechanism, its guarantee and its bits are DEL's. Two things differ. The encoder maps a token to the code word of its
group (:mod:`del_lightning.codebook`) instead of a projection of its embedding, and the decoder is no linear map but the
posterior mean of the embedding (:mod:`del_lightning.methods.posterior`).
"""

import torch
from torch import Tensor

from del_lightning.bigrams import Bigrams
from del_lightning.codebook import Codebook
from del_lightning.methods.base import Footprint, Release
from del_lightning.methods.posterior import PosteriorDecoder
from del_lightning.privacy import BinomialAccountant, PrivacyStatement, StochasticQuantizer


class SemanticDEL(PosteriorDecoder):
    """Groups of tokens through the stochastic n-bit quantizer, decoded to posterior means."""

    name = "del-plus"
    stochastic = True
    parameter = "mu"
    mu: float
    quantizer: StochasticQuantizer
    groups: Tensor
    words: Tensor
    centres: Tensor
    log_mass: Tensor

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
        self.bits, self.bigrams = bits, bigrams
        self.register_buffer("groups", codebook.groups, persistent=False)
        self.register_buffer("words", codebook.words, persistent=False)
        self.register_buffer("prior", prior, persistent=False)
        share = prior.exp()
        mass = torch.zeros(len(codebook.words), device=prior.device).index_add_(0, codebook.groups, share)
        total = torch.zeros(len(mass), embedding_table.shape[1], device=prior.device)
        total.index_add_(0, codebook.groups, share[:, None] * embedding_table)
        self.register_buffer("centres", total / mass[:, None], persistent=False)
        self.register_buffer("log_mass", mass.log(), persistent=False)
        self._set(mu)

    def _set(self, value: float) -> None:
        super()._set(value)
        self.quantizer = StochasticQuantizer.from_mu(mu=self.mu, dim=self.dim, bits=self.bits, bound=1.0)
        self._log_odds = self.quantizer.log_odds(self.words)

    @property
    def dim(self) -> int:
        """Code width d."""
        return self.words.shape[1]

    def release(self, token_ids: Tensor, generator: torch.Generator | None = None) -> Release:
        """Release codes K in {0..2^n - 1}, uint8 (B, L, d)."""
        return Release(self.quantizer.encode(self.words[self.groups[token_ids]], generator))

    def restore(self, release: Release) -> Tensor:
        """Mean embedding given each position's own codes: sum over groups of Pr(group | K) times its centre."""
        return (self._group_likelihood(release) + self.log_mass).softmax(-1) @ self.centres

    def log_likelihood(self, release: Release) -> Tensor:
        """Exact binomial log-likelihood of the codes under every token: that of its group."""
        return self._group_likelihood(release)[..., self.groups]

    def _group_likelihood(self, release: Release) -> Tensor:
        """ln Pr(K | group), (B, L, G)."""
        weights, bias = (part.to(self.words.device) for part in self._log_odds)
        return self.quantizer.log_likelihood_given(release.payload, weights, bias)

    def code_values(self, release: Release) -> tuple[Tensor, Tensor]:
        """The decoded codes and every token's code word."""
        return self.quantizer.decode(release.payload).flatten(0, 1), self.words[self.groups]

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
        return Footprint.of(self.groups, self.words)
