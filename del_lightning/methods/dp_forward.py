"""DP-Forward (Du et al., CCS 2023) at the embedding layer: one guarantee for a whole sequence.

    E (L x b)  ->  s E, s = min(1, C/||E||_F)  ->  Y = s E + N(0, sigma^2)  ->  b floats a token

Two sequences of the same length differ by at most 2 C after clipping, so noise calibrated by Balle and Wang for
that sensitivity protects the sequence as one unit at (epsilon, delta). The released code calibrates for sensitivity 1
at C = 1, half of what exchanging a sequence takes; that is the variant ``released``.
"""

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from del_lightning.methods.base import Method, Release
from del_lightning.privacy import GaussianAccountant, PrivacyStatement
from del_lightning.privacy.analytic_gaussian import analytic_mu
from del_lightning.privacy.checks import require_positive

QUADRATURE = 7
"""Points at which the attacker's uncertainty about the clipping factor is averaged."""
_TYPICAL_TOKENS = 64


class DPForward(Method):
    """Gaussian noise on a sequence whose Frobenius norm is clipped."""

    name = "dp-forward"
    stochastic = True
    per_sequence = True
    parameter = "epsilon"
    parameter_range = (0.1, 1e6)
    epsilon: float
    mu: float
    sigma: float

    def __init__(
        self,
        embedding_table: Tensor,
        frequencies: Tensor,
        *,
        epsilon: float,
        delta: float = 1e-5,
        clip: float | None = None,
        released: bool = False,
    ) -> None:
        """Calibrate the noise.

        Args:
            embedding_table: Clean embeddings (V, b).
            frequencies: (V,) token counts of a public corpus.
            epsilon: Of a sequence, > 0.
            delta: Of a sequence, in (0, 1).
            clip: C > 0; None takes that of 64 typical tokens, sqrt(64 E||e||^2).
            released: Calibrate for sensitivity C instead of 2 C.

        Raises:
            ConfigError: An argument is out of range.
        """
        super().__init__(embedding_table)
        squared, weight = embedding_table.double().square().sum(1), frequencies.to(embedding_table.device).double()
        mean = float((squared * weight).sum() / weight.sum())
        self._mean = mean
        self._variance = float(((squared - mean).square() * weight).sum() / weight.sum())
        if clip is not None:
            require_positive("clip", clip)
        self.clip = math.sqrt(_TYPICAL_TOKENS * mean) if clip is None else clip
        self.name = "dp-forward-released" if released else "dp-forward"
        self.delta, self.released = delta, released
        self._set(epsilon)

    def _set(self, value: float) -> None:
        super()._set(value)
        claimed = analytic_mu(self.epsilon, self.delta)
        self.sigma = (self.clip if self.released else 2 * self.clip) / claimed
        self.mu = 2 * self.clip / self.sigma

    def release(self, token_ids: Tensor, generator: torch.Generator | None = None) -> Release:
        """Release noisy embeddings (B, L, b), float32; each row is one sequence."""
        clean = self.embedding_table[token_ids]
        norm = torch.linalg.vector_norm(clean.flatten(1), dim=1).clamp_min(torch.finfo(clean.dtype).tiny)
        factor = (self.clip / norm).clamp(max=1.0)
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        lengths = torch.full_like(token_ids, token_ids.shape[1])
        return Release(factor[:, None, None] * clean + self.sigma * noise, lengths)

    def restore(self, release: Release) -> Tensor:
        """Take them as they are."""
        return release.payload

    @torch.no_grad()
    def log_likelihood(self, release: Release) -> Tensor:
        """ln Pr(y | w) of every token, with the clipping factor integrated out.

        The attacker does not know the factor s, which depends on the other tokens too. Given w, the squared norm of
        a sequence of L tokens is ||e_w||^2 plus that of L - 1 others. The latter is taken to be normal, with the mean
        and variance of L - 1 tokens from the public corpus, and the Gaussian likelihood is averaged over it by
        Gauss-Hermite quadrature. That is exact for L = 1. For long sequences s varies by some percent only, and all
        that is lost against an attacker who is told s is the chance to know it better: one noisy norm of a sequence
        tells next to nothing about s at the noise levels at which anything is hidden.
        """
        noisy = release.payload.flatten(0, 1)
        lengths = release.sequence_tokens
        if lengths is None:
            lengths = torch.full(release.payload.shape[:2], release.payload.shape[1], device=noisy.device)
        lengths = lengths.flatten()
        scores = noisy.new_empty(len(noisy), self.vocabulary_size)
        for length in torch.unique(lengths).tolist():
            scores[lengths == length] = self._averaged(noisy[lengths == length], length)
        return scores.view(*release.payload.shape[:2], -1)

    def _averaged(self, noisy: Tensor, length: int) -> Tensor:
        """(n, V) for tokens of sequences that are all ``length`` tokens long."""
        table, width = self.embedding_table, self.embedding_table.shape[1]
        squared = table.square().sum(1)
        products = noisy @ table.T
        total = torch.full_like(products, -math.inf)
        for rest, weight in self._others(length - 1):
            factor = (self.clip / (squared + rest).sqrt()).clamp(max=1.0)
            exponent = (factor * products - factor.square() * squared / 2) / self.sigma**2
            total = torch.logaddexp(total, exponent + math.log(weight))
        constant = -noisy.square().sum(1) / (2 * self.sigma**2) - width * math.log(self.sigma * math.sqrt(2 * math.pi))
        return total + constant[:, None]

    def _others(self, tokens: int) -> list[tuple[float, float]]:
        """Squared norms of so many other tokens, with their probabilities."""
        if tokens == 0:
            return [(0.0, 1.0)]
        nodes, weights = np.polynomial.hermite_e.hermegauss(QUADRATURE)
        spread = math.sqrt(tokens * self._variance)
        values = np.maximum(tokens * self._mean + spread * nodes, 0.0)
        return list(zip(values.tolist(), (weights / weights.sum()).tolist(), strict=True))

    def statement(self, sequence_tokens: int, delta: float = 1e-5) -> PrivacyStatement:
        """Exact, for any change of the sequence that keeps its length; a single token is protected no better."""
        one = PrivacyStatement.for_gaussian(mu=self.mu, sequence_tokens=1, delta=delta)
        caveat = "the unit is the sequence: changing one token may cost as much as changing all"
        if self.released:
            actual = GaussianAccountant(self.mu).epsilon(self.delta)
            caveat += (
                f"; calibrated for sensitivity C instead of 2 C, so that the epsilon claimed, {self.epsilon:.4g}, "
                f"is {actual:.4g} (delta {self.delta:g})"
            )
        parameters = {"epsilon": self.epsilon, "delta": self.delta, "clip": self.clip, "sigma": self.sigma}
        return replace(
            one,
            mechanism="DP-Forward, noise as released" if self.released else "DP-Forward",
            parameters=parameters,
            unit="sequence",
            units=tuple(replace(u, tokens=sequence_tokens) if u.unit == "sequence" else u for u in one.units),
            caveat="; ".join(part for part in (caveat, one.caveat) if part),
        )

    def attack_bound(self, prior: float) -> float:
        """Exact: changing one token is one of the changes that the sequence's guarantee covers."""
        return GaussianAccountant(self.mu).attack_bound(prior)

    def payload_bits(self, release: Release) -> int:
        """32 b bits a token."""
        return release.payload.numel() * 32
