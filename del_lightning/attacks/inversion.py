"""Embedding inversion: which token does each private position hold?

Two attackers of the same release. The *nearest neighbour* (the paper's attack success rate) looks for the token
whose clean embedding is most similar to what the server restored. The *Bayes-optimal* one knows the mechanism too,
which is public, and picks the token of the highest posterior ln prior(w) + ln Pr(release | w): no attacker that
looks at one position at a time has a higher expected success under the same prior.
"""

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from del_lightning.errors import ConfigError
from del_lightning.methods import Method, Release

METRICS = ("cosine", "l2")
VOCABULARY_CHUNK = 16_384
"""Vocabulary rows scored at a time."""


def nearest_neighbour(
    vectors: Tensor, table: Tensor, metric: str = "cosine", top_k: int = 1, chunk: int = 1024
) -> Tensor:
    """Rows of a table that are most similar to each vector; holds ``chunk`` x ``VOCABULARY_CHUNK`` scores at a time.

    Args:
        vectors: (N, b) on the table's device.
        table: (V, b).
        metric: ``cosine`` similarity or ``l2`` distance.
        top_k: Guesses a vector, 1 to V.
        chunk: Vectors a matrix product.

    Returns:
        (N, top_k) row numbers, best first.

    Raises:
        ConfigError: Unknown metric.

    Example:
        >>> nearest_neighbour(torch.tensor([[3.0, 0.1]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])).tolist()
        [[1]]
    """
    if metric not in METRICS:
        raise ConfigError(f"`metric` must be one of {', '.join(METRICS)}, got {metric!r}")
    return torch.cat([_nearest(rows, table, metric, top_k) for rows in torch.split(vectors.float(), chunk)])


def _nearest(vectors: Tensor, table: Tensor, metric: str, top_k: int) -> Tensor:
    """The running top k over slices of the table."""
    scores = vectors.new_empty(len(vectors), 0)
    found = torch.empty(len(vectors), 0, dtype=torch.long, device=vectors.device)
    for start in range(0, len(table), VOCABULARY_CHUNK):
        part = _similarity(vectors, table[start : start + VOCABULARY_CHUNK].float(), metric)
        best = part.topk(min(top_k, part.shape[1]))
        scores, found = torch.cat([scores, best.values], 1), torch.cat([found, best.indices + start], 1)
        keep = scores.topk(min(top_k, scores.shape[1])).indices
        scores, found = scores.gather(1, keep), found.gather(1, keep)
    return found


def _similarity(vectors: Tensor, table: Tensor, metric: str) -> Tensor:
    """Scores (N, V) that rank like the metric; a vector's own length changes no ranking and is left as it is."""
    norms = torch.linalg.vector_norm(table, dim=1)
    products = vectors @ table.T
    if metric == "l2":
        return products.sub_(norms.square() / 2)
    return products.div_(norms.clamp_min(torch.finfo(norms.dtype).tiny))


def log_prior(counts: Tensor, smoothing: float = 1.0) -> Tensor:
    """Logarithm of smoothed unigram probabilities, (V,) float32.

    Args:
        counts: (V,) occurrences of each token in a public corpus.
        smoothing: Added to every count, so that no token is impossible; > 0.

    Raises:
        ConfigError: ``smoothing`` is not positive.
    """
    if not smoothing > 0:
        raise ConfigError(f"`smoothing` must be positive, got {smoothing!r}")
    weights = counts.double() + smoothing
    return (weights / weights.sum()).log().float()


def most_likely(log_likelihood: Iterable[Tensor], prior: Tensor, top_k: int = 1) -> Tensor:
    """Tokens of the highest posterior probability.

    Args:
        log_likelihood: Chunks (n, V) of ln Pr(release | token), consumed one at a time.
        prior: (V,) ln Pr(token).
        top_k: Guesses a position, 1 to V.

    Returns:
        (N, top_k) token ids, best first; N is the sum of the chunks' lengths.
    """
    best = [(chunk + prior.to(chunk.device)).topk(top_k).indices for chunk in log_likelihood]
    return torch.cat(best) if best else torch.empty(0, top_k, dtype=torch.long, device=prior.device)


class Attack(Protocol):
    """Anything that guesses tokens from a release."""

    name: str
    """Word used in tables."""

    def guess(self, method: Method, release: Release, mask: Tensor | None = None, top_k: int = 1) -> Tensor:
        """Return ids (N, top_k), best first, of the N tokens where ``mask`` (B, L) is True, in row-major order."""
        ...


class NearestNeighbour:
    """The paper's attack: restore as the server does, then the most similar clean embedding.

    Args:
        metric: ``cosine`` (the paper's) or ``l2``.
        chunk: Tokens a matrix product.

    Raises:
        ConfigError: Unknown metric.
    """

    def __init__(self, metric: str = "cosine", chunk: int = 1024) -> None:
        if metric not in METRICS:
            raise ConfigError(f"`metric` must be one of {', '.join(METRICS)}, got {metric!r}")
        self.name = f"nearest-neighbour-{metric}"
        self.metric, self.chunk = metric, chunk

    @torch.no_grad()
    def guess(self, method: Method, release: Release, mask: Tensor | None = None, top_k: int = 1) -> Tensor:
        """See :class:`Attack`."""
        restored = method.restore(release.rows(mask))[0]
        return nearest_neighbour(restored, method.embedding_table, self.metric, top_k, self.chunk)


class BayesOptimal:
    """The strongest attack on single tokens: the posterior's mode under a public prior.

    Args:
        prior: (V,) ln Pr(token), see :func:`log_prior`.
        chunk: Tokens whose likelihood is held at a time.
    """

    name = "bayes-optimal"

    def __init__(self, prior: Tensor, chunk: int = 1024) -> None:
        self.prior, self.chunk = prior, chunk

    @torch.no_grad()
    def guess(self, method: Method, release: Release, mask: Tensor | None = None, top_k: int = 1) -> Tensor:
        """See :class:`Attack`."""
        rows = release.rows(mask)
        starts = range(0, rows.tokens, self.chunk)
        chunks = (method.log_likelihood(rows[slice(start, start + self.chunk)])[0] for start in starts)
        return most_likely(chunks, self.prior, top_k)
