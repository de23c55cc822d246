"""RANTEXT, the front-end of InferDPT (arXiv 2310.12214).

For every private token anew, Laplace noise on its vector draws a radius, and the substitute comes from within it:

    beta_j = range of coordinate j / divisor(epsilon),   r = ||Laplace(beta)||_2
    Pr(w' | w, r) proportional to exp((epsilon/2) (1 - d(w, w')/r)),   d(w, w') < r

A token that reads as digits becomes a random one that does. In the original, tokens without a vector are dropped and
numbers become random integers up to 1000; on the LLM's own tokens none is without, and numbers are single tokens.

The candidates depend on the private token, so epsilon is no local differential privacy: a token outside the candidates
of w can come from others but never from w.
"""

import math
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from del_lightning.methods.distances import sample_rows
from del_lightning.methods.substitution import ENTRIES, Substitution, pick
from del_lightning.methods.vocabulary import Vocabulary
from del_lightning.privacy import PrivacyStatement

EDGES = (*(i / 16 for i in range(16)), 0.97, 0.985, 0.995, 0.999)
"""Where the strata of the radius begin, as shares of its distribution. The attacker's likelihood is averaged over them;
the tail is cut finer, since what the largest radius does not reach would be impossible."""
_DRAWS = 1 << 14
_CACHED = 1 << 18
"""Entries of a part of the likelihoods: what a processor's cache holds through the passes over it."""
_FLOOR = -80.0
"""Logarithms of probabilities below it are taken for it: far below any that matters, and within float32."""


def divisor(epsilon: float) -> float:
    """What the coordinates' ranges are divided by (the authors' fit above 2; its logarithm has a pole at 2 itself)."""
    if epsilon <= 2:
        return epsilon
    return 0.01658 * math.log(19.0647 * epsilon - 38.1294) + 9.3111


class Rantext(Substitution):
    """Substitution within a random radius.

    Args:
        embedding_table: Clean embeddings (V, b).
        vocabulary: Tokens, their numbers and vectors.
        epsilon: > 0.

    Raises:
        ConfigError: ``epsilon`` is out of range.
    """

    name = "rantext"
    parameter = "epsilon"
    epsilon: float

    def __init__(self, embedding_table: Tensor, vocabulary: Vocabulary, *, epsilon: float) -> None:
        super().__init__(embedding_table, vocabulary)
        known = vocabulary.points[vocabulary.known]
        self.spread = known.amax(0) - known.amin(0)
        self.numbers = vocabulary.numbers.nonzero().squeeze(1)
        self._unit_quantiles = vocabulary.once("rantext radii", self._middles)
        self._set(epsilon)

    def _set(self, value: float) -> None:
        super()._set(value)
        self._log_normaliser: Tensor | None = None

    def _noise_norms(self, count: int, generator: torch.Generator | None) -> Tensor:
        """Norms (count,) of Laplace noise whose scale is each coordinate's whole range, float32."""
        shape, device = (count, len(self.spread)), self.spread.device
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64, device=device)
        size = -torch.log1p(-uniform)  # of a Laplace number; the sign does not matter to a norm
        norms: Tensor = torch.linalg.vector_norm(size.float() * self.spread, dim=1)
        return norms

    def _middles(self) -> Tensor:
        """A norm for each stratum, from 2^14 draws with a fixed seed: its middle, of the last one the largest drawn."""
        generator = torch.Generator(device=self.spread.device).manual_seed(0)
        size = max(1, ENTRIES // len(self.spread))
        counts = [min(size, _DRAWS - start) for start in range(0, _DRAWS, size)]
        drawn = torch.cat([self._noise_norms(count, generator) for count in counts])
        middles = [(low + high) / 2 for low, high in pairwise(EDGES)]
        return drawn.quantile(torch.tensor([*middles, 1.0], dtype=drawn.dtype, device=drawn.device))

    @property
    def quantiles(self) -> Tensor:
        """A radius for each stratum of :data:`EDGES`."""
        return self._unit_quantiles / divisor(self.epsilon)

    def radii(self, count: int, generator: torch.Generator | None) -> Tensor:
        """Radii (count,) of fresh noise, float32."""
        return self._noise_norms(count, generator) / divisor(self.epsilon)

    def draw(self, ids: Tensor, generator: torch.Generator | None) -> Tensor:
        """Exact: from a token's own distances, not from the histogram."""
        uniform = self.uniform(ids.shape, ids, generator)
        size = max(1, ENTRIES // max(len(self.vocabulary), len(self.spread)))
        parts = []
        for w, u in zip(torch.split(ids, size), torch.split(uniform, size), strict=True):
            parts.append(sample_rows(self._log_weights(w, self.radii(len(w), generator)), u[:, None]).squeeze(1))
        drawn = torch.cat(parts)
        is_number = self.vocabulary.numbers[ids]
        return torch.where(is_number, pick(self.numbers, uniform), drawn) if len(self.numbers) else drawn

    def _log_weights(self, ids: Tensor, radius: Tensor) -> Tensor:
        """(n, V); the same for all where a token has no vector."""
        share = self.vocabulary.space.distances(ids).div_(radius[:, None])
        weights = torch.where(share < 1, share.neg().add_(1).mul_(self.epsilon / 2), -math.inf)
        weights[~self.vocabulary.known[ids]] = 0.0
        return weights.masked_fill_(~self.vocabulary.known, -math.inf)

    @property
    def log_normaliser(self) -> Tensor:
        """ln of the sum of exp((epsilon/2)(1 - d/r)) over each token's candidates, (R, V), from the histogram."""
        if self._log_normaliser is None:
            histogram, rate = self.vocabulary.histogram(self.vocabulary.known), self.epsilon / 2
            rows = [rate + histogram.log_sum(rate / r, r) for r in self.quantiles.tolist()]
            self._log_normaliser = torch.stack(rows)
        return self._log_normaliser

    def log_probability(self, sent: Tensor) -> Tensor:
        """ln Pr(sent | w), averaged over the radius; that of a possible token is no lower than :data:`_FLOOR`."""
        rows = max(1, ENTRIES // len(self.vocabulary))
        return torch.cat([self._average(part) for part in torch.split(sent, rows)])

    def _average(self, sent: Tensor) -> Tensor:
        distances = self.vocabulary.space.distances(sent)
        rows = max(1, _CACHED // len(self.vocabulary))
        total = torch.cat([self._over_radii(part) for part in torch.split(distances, rows)])
        total[:, ~self.vocabulary.known] = -math.log(len(self.vocabulary.by_frequency))
        if len(self.numbers):
            to_number = torch.where(self.vocabulary.numbers[sent], -math.log(len(self.numbers)), -math.inf)
            total[:, self.numbers] = to_number[:, None]
        return total

    def _over_radii(self, distance: Tensor) -> Tensor:
        total, rate = torch.zeros_like(distance), self.epsilon / 2
        shares = [high - low for low, high in pairwise((*EDGES, 1.0))]
        for radius, share, normaliser in zip(self.quantiles.tolist(), shares, self.log_normaliser, strict=True):
            # Probabilities, so they cannot overflow; a sum of their logarithms would take several times as long.
            law = torch.add(rate + math.log(share) - normaliser, distance, alpha=-rate / radius)
            total += torch.where(distance < radius, law.clamp_min_(_FLOOR).exp_(), 0.0)
        return total.log_()

    def statement(self, sequence_tokens: int, delta: float = 1e-5) -> PrivacyStatement:
        """No epsilon: see the module's docstring."""
        caveat = (
            f"the authors' epsilon {self.epsilon:.4g} holds given the candidates, which depend on the private token: "
            "no local differential privacy"
        )
        return replace(PrivacyStatement.none(self.name.upper(), caveat), parameters={"epsilon": self.epsilon})
