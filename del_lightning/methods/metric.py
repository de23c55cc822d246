"""Metric differential privacy (d_chi privacy) on the full embedding, as designed and as SnD released it.

    y = e_w + z, z of density proportional to exp(-eta ||z||)  ->  b floats

Two tokens can be told apart with a loss of at most eta times their distance: near synonyms are well hidden, and the
topic is not. eta is no epsilon, and no epsilon follows short of eta times the vocabulary's diameter.
"""

from typing import Protocol

import torch
from torch import Tensor

from del_lightning.methods.base import Method, Release
from del_lightning.methods.lookup import LookupSum, sufficient_cells
from del_lightning.privacy import PrivacyStatement
from del_lightning.privacy.checks import require_positive
from del_lightning.privacy.metric_noise import CoordinateNoise, SphericalNoise

TOLERANCE = 0.05
"""Largest error of one coordinate's tabulated log-density, in nats."""
_ROWS = 8192


class _Noise(Protocol):
    def sample(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor: ...


class _Metric(Method):
    """Both variants but for the law of their noise."""

    stochastic = True
    parameter = "eta"
    eta: float
    noise: _Noise

    def __init__(
        self, embedding_table: Tensor, *, eta: float, l2_clip: float | None = None, clip_to_largest: bool = False
    ) -> None:
        """Noise on clean embeddings.

        Args:
            embedding_table: Clean embeddings (V, b).
            eta: Loss for a unit of distance, in nats; > 0.
            l2_clip: Norm to which the server clips what it receives; post-processing.
            clip_to_largest: Clip to the largest norm in ``embedding_table`` instead, as SnD does.

        Raises:
            ConfigError: An argument is out of range.
        """
        super().__init__(embedding_table)
        if clip_to_largest:
            l2_clip = float(torch.linalg.vector_norm(embedding_table, dim=-1).max())
        if l2_clip is not None:
            require_positive("l2_clip", l2_clip)
        self.l2_clip = l2_clip
        self._set(eta)

    def release(self, token_ids: Tensor, generator: torch.Generator | None = None) -> Release:
        """Release noisy embeddings (B, L, b), float32."""
        clean = self.embedding_table[token_ids]
        return Release(clean + self.noise.sample(clean, generator))

    def restore(self, release: Release) -> Tensor:
        """Take them as they are, shortened to ``l2_clip`` where they are longer."""
        noisy = release.payload
        if self.l2_clip is None:
            return noisy
        norm = torch.linalg.vector_norm(noisy, dim=-1, keepdim=True)
        scale: Tensor = self.l2_clip / norm.clamp_min(torch.finfo(noisy.dtype).tiny)
        return noisy * scale.clamp(max=1.0)

    def payload_bits(self, release: Release) -> int:
        """32 b bits a token."""
        return release.payload.numel() * 32


class MetricDP(_Metric):
    """The right noise: one Gamma radius a token, in a direction uniform on the sphere."""

    name = "metric-dp"
    parameter_range = (0.1, 1e5)
    noise: SphericalNoise

    def _set(self, value: float) -> None:
        super()._set(value)
        self.noise = SphericalNoise(self.embedding_table.shape[1], self.eta)

    def log_likelihood(self, release: Release) -> Tensor:
        """Exact density of the noise, -eta ||y - e_w|| + const."""
        noisy = release.payload.flatten(0, 1)
        parts = [torch.cdist(noisy, rows) for rows in torch.split(self.embedding_table, _ROWS)]
        return self.noise.log_density(torch.cat(parts, 1)).view(*release.payload.shape[:2], -1)

    def statement(self, sequence_tokens: int, delta: float = 1e-5) -> PrivacyStatement:
        """Metric privacy in the L2 distance."""
        return PrivacyStatement.for_metric(
            "metric differential privacy", eta=self.eta, distance="L2 distance of embeddings"
        )


class MetricDPReleased(_Metric):
    """As SnD's code has it: a radius and a factor U(-1, 1) drawn for every coordinate; see CoordinateNoise."""

    name = "metric-dp-snd"
    parameter_range = (0.1, 1e5)
    noise: CoordinateNoise

    def _set(self, value: float) -> None:
        super()._set(value)
        self.noise = CoordinateNoise(self.embedding_table.shape[1], self.eta)

    def log_likelihood(self, release: Release) -> Tensor:
        """Product of the coordinates' exact densities, tabulated within .05 a coordinate (at three or more of them).

        At an eta of tens of thousands, where every token is read, the largest table is not enough for that.
        """
        noisy, table = release.payload.flatten(0, 1), self.embedding_table
        width = float((table.amax(0) - table.amin(0)).max())
        total = LookupSum(table, sufficient_cells(width, self.noise.curvature, TOLERANCE))
        parts = []
        for y in torch.split(noisy, total.batch):
            parts.append(total(self.noise.log_density(y.T[:, None] - total.knots[..., None])))
        return torch.cat(parts).view(*release.payload.shape[:2], -1)

    def statement(self, sequence_tokens: int, delta: float = 1e-5) -> PrivacyStatement:
        """Metric privacy in the L1 distance, weaker than the L2 statement that was intended."""
        return PrivacyStatement.for_metric(
            "metric differential privacy, noise as released by SnD", eta=self.eta, distance="L1 distance of embeddings"
        )
