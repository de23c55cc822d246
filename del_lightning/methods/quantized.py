"""DEL: project, clip, quantise stochastically to n bits a coordinate; decode linearly at the server."""

import torch
from torch import Tensor

from del_lightning.codec import LinearCodec
from del_lightning.methods.base import Footprint, Method, Release
from del_lightning.privacy import BinomialAccountant, PrivacyStatement, StochasticQuantizer


class DEL(Method):
    """The paper's method (Section 4): a linear codec around the stochastic n-bit quantizer.

    Since tokens are finitely many, the encoder is a table of clipped codes (V, d).
    """

    name = "del"
    stochastic = True
    parameter = "mu"
    mu: float
    quantizer: StochasticQuantizer
    code_table: Tensor

    def __init__(
        self, embedding_table: Tensor, codec: LinearCodec, *, bits: int, mu: float, l2_clip: float | None = None
    ) -> None:
        """Calibrate the quantizer to GDP parameter ``mu`` a token at the codec's width and bound.

        Args:
            embedding_table: Clean embeddings (V, b).
            codec: Trained projection.
            bits: n in 1..8.
            mu: The paper's GDP parameter, > 0.
            l2_clip: Norm to which the server clips a decoded code; post-processing, so free of privacy cost.

        Raises:
            ConfigError: ``bits`` or ``mu`` out of range.
        """
        super().__init__(embedding_table)
        self.codec = codec.requires_grad_(False).eval()
        self.bits, self.l2_clip = bits, l2_clip
        self._set(mu)
        self.register_buffer("code_table", codec.encode(embedding_table).detach(), persistent=False)

    def _set(self, value: float) -> None:
        super()._set(value)
        self._log_odds: tuple[Tensor, Tensor] | None = None
        bound = float(self.codec.bound)
        self.quantizer = StochasticQuantizer.from_mu(mu=self.mu, dim=self.codec.dim, bits=self.bits, bound=bound)

    def release(self, token_ids: Tensor, generator: torch.Generator | None = None) -> Release:
        """Release codes K in {0..2^n - 1}, uint8 (B, L, d)."""
        return Release(self.quantizer.encode(self.code_table[token_ids], generator))

    def restore(self, release: Release) -> Tensor:
        """Decode the codes to unbiased values, clip their norm if asked to, map them to embeddings."""
        values = self.quantizer.decode(release.payload)
        if self.l2_clip is not None:
            norm = values.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)
            values = values * (self.l2_clip / norm).clamp(max=1.0)
        return self.codec.decode(values)

    def code_values(self, release: Release) -> tuple[Tensor, Tensor]:
        """The decoded codes, not clipped, and the code table."""
        return self.quantizer.decode(release.payload).flatten(0, 1), self.code_table

    def log_likelihood(self, release: Release) -> Tensor:
        """Exact binomial log-likelihood of the codes under every token."""
        if self._log_odds is None or self._log_odds[0].device != self.code_table.device:
            self._log_odds = self.quantizer.log_odds(self.code_table)
        return self.quantizer.log_likelihood_given(release.payload, *self._log_odds)

    def statement(self, sequence_tokens: int, delta: float = 1e-5) -> PrivacyStatement:
        """Exact guarantee of the quantizer for one token and for the whole prompt."""
        return PrivacyStatement.for_quantizer(
            dim=self.codec.dim,
            bits=self.bits,
            mu=self.mu,
            sequence_tokens=sequence_tokens,
            delta=delta,
        )

    def attack_bound(self, prior: float) -> float:
        """Exact, from the trade-off function of one token."""
        return BinomialAccountant.from_mu(self.mu, self.codec.dim, self.bits).attack_bound(prior)

    def payload_bits(self, release: Release) -> int:
        """d n bits a token."""
        return release.payload.numel() * self.bits

    def footprint(self) -> Footprint:
        """The table of codes (V, d); the quantizer itself is a few numbers."""
        return Footprint.of(self.code_table)

    def score_values(self, release: Release) -> tuple[Tensor, Tensor] | None:
        """The decoded codes and the decoder's weight; a clipped norm changes no direction."""
        return self.quantizer.decode(release.payload).flatten(0, 1), self.codec.decoder.weight

    def clipped_share(self, token_ids: Tensor) -> float | None:
        """Share of coordinates beyond the bound."""
        return self.codec.clipped_share(self.embedding_table[token_ids.flatten()])
