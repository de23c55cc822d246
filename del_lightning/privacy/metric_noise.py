"""Noise for metric differential privacy (d_chi privacy): what is close may be told apart less than what is far.

The right noise for the L2 distance has density proportional to exp(-eta ||z||): a direction uniform on the sphere and
one radius ~ Gamma(d, 1/eta) a vector. The released code of SnD (arXiv 2310.09130) draws a radius and a "direction"
U(-1, 1) for every coordinate instead. That noise is about sqrt(d/3) times larger, and the coordinates are independent
with the density derived at :class:`CoordinateNoise`.
"""

import math

import numpy as np
import torch
from torch import Tensor

from del_lightning.privacy.checks import require_count, require_positive

_TABLE_ROWS = 4096
"""Grid points whose sums are held at a time."""


class SphericalNoise:
    """Density proportional to exp(-eta ||z||_2) on R^d: the loss between x and x' is at most eta ||x - x'||_2.

    Args:
        dim: d, at least 1.
        eta: Loss for a unit of distance, in nats; positive.

    Raises:
        ConfigError: An argument is out of range.
    """

    def __init__(self, dim: int, eta: float) -> None:
        require_count("dim", dim)
        require_positive("eta", eta)
        self.dim, self.eta = dim, eta

    def sample(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Noise of the shape (..., d), float type and device of ``like``."""
        direction = torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
        direction /= torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
        return direction * (_standard_gamma(like[..., :1], self.dim, generator) / self.eta)

    def log_density(self, distance: Tensor) -> Tensor:
        """ln density of noise of length ``distance`` (...)."""
        d = self.dim
        # Area of the sphere times the integral of r^(d-1) exp(-eta r).
        log_volume = math.log(2) + d / 2 * math.log(math.pi) - math.lgamma(d / 2) + math.lgamma(d)
        return -self.eta * distance + (d * math.log(self.eta) - log_volume)


class CoordinateNoise:
    """Every coordinate z = l u on its own, l ~ Gamma(d, 1/eta), u ~ U(-1, 1): SnD's released code.

    Given l, z is uniform on [-l, l], so its density is E[1/(2l); l > |z|] = eta/(2(d-1)) Q(d-1, eta |z|), with Q the
    regularised upper incomplete gamma function. -ln Q has a slope between 0 and eta, hence the loss between x and x'
    is at most eta ||x - x'||_1, and not eta ||x - x'||_2 as intended.

    Args:
        dim: d, at least 2.
        eta: Positive.

    Raises:
        ConfigError: An argument is out of range.
    """

    def __init__(self, dim: int, eta: float) -> None:
        require_count("dim", dim, 2)
        require_positive("eta", eta)
        self.dim, self.eta = dim, eta
        self._tail = GammaTail(dim - 1)

    def sample(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Noise of the shape (..., d), float type and device of ``like``."""
        sign = 2 * torch.rand(like.shape, generator=generator, device=like.device, dtype=like.dtype) - 1
        return sign * (_standard_gamma(like, self.dim, generator) / self.eta)

    def log_density(self, z: Tensor) -> Tensor:
        """ln density of single coordinates (...), float64, within 1e-3."""
        return self._tail(self.eta * z.abs()) + math.log(self.eta / (2 * (self.dim - 1)))

    @property
    def curvature(self) -> float:
        """Largest |second derivative| of the log-density: at most 2 eta^2/(d - 1), found numerically.

        At d = 2 there is a kink at 0 besides.
        """
        return 2 * self.eta**2 / (self.dim - 1)


class GammaTail:
    """ln Q(a, t) of an integer a, tabulated once: Q(a, t) = exp(-t) sum_{k<a} t^k/k!, all terms positive.

    Linear between grid points, whose distance is .02 a^(1/4); the second derivative is at most 2/a, so the error stays
    below 1e-4. Beyond the grid the leading terms of the asymptotic series are used (within 1e-3).

    Args:
        shape: a, at least 1.
    """

    def __init__(self, shape: int) -> None:
        require_count("shape", shape)
        self.shape, self.step = shape, 0.02 * shape**0.25
        grid = torch.arange(0, 4 * shape + 400, self.step, dtype=torch.float64)
        k = torch.arange(shape, dtype=torch.float64)
        parts = [
            torch.logsumexp(torch.xlogy(k, t[:, None]) - torch.lgamma(k + 1), 1) for t in torch.split(grid, _TABLE_ROWS)
        ]
        self._values = torch.cat(parts) - grid

    def __call__(self, t: Tensor) -> Tensor:
        """ln Q(a, t) of t (...) of at least 0, float64."""
        values, t = self._values.to(t.device), t.to(torch.float64)
        place = t / self.step
        cell = place.long().clamp_(max=len(values) - 2)
        low, high = values[cell], values[cell + 1]
        tail = low.lerp_(high, place - cell)
        beyond = place > len(values) - 1
        if beyond.any():  # rare, and three times as costly as the table
            tail[beyond] = self._asymptotic(t[beyond])
        return tail

    def _asymptotic(self, t: Tensor) -> Tensor:
        a = self.shape
        t = t.clamp_min(2.0 * a)
        return (a - 1) * t.log() - t - math.lgamma(a) - torch.log1p(-(a - 1) / t)


def _standard_gamma(like: Tensor, shape: float, generator: torch.Generator | None) -> Tensor:
    """Gamma(shape, 1) numbers of like's shape from numpy's sampler, seeded by the generator (torch has none)."""
    device = "cpu" if generator is None else generator.device
    seed = torch.randint(2**62, (1,), generator=generator, device=device)
    draws = np.random.default_rng(int(seed)).standard_gamma(shape, tuple(like.shape))
    return torch.from_numpy(draws).to(like)
