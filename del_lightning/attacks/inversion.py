"""Embedding inversion: which token does each private position hold?

Two attackers that look at one position at a time. The *nearest neighbour* (the paper's attack success rate) looks for
the token whose clean embedding is most similar to what the server restored, or whose clean code is nearest to the
released one. The *Bayes-optimal* one knows the mechanism too, which is public, and picks the token of the highest
posterior ln prior(w) + ln Pr(release | w): no other attacker that looks at one position at a time has a higher expected
success under the same prior.
"""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from del_lightning.errors import ConfigError
from del_lightning.methods import Method, Release

METRICS = ("cosine", "l2", "code")
VOCABULARY_CHUNK = 4096
"""Vocabulary rows scored at a time: with 1,024 tokens a tile of 16 MB, which a processor's cache nearly holds."""

LIKELIHOOD_ENTRIES, FEWEST_TOKENS = 1 << 22, 64
"""Log-likelihoods held at a time: 16 MiB, or 64 tokens of a large vocabulary. Larger pieces are slower on a processor
unless codes are wide, and bound less memory."""


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
    if metric not in METRICS[:2]:
        raise ConfigError(f"`metric` must be one of {', '.join(METRICS[:2])}, got {metric!r}")
    return torch.cat([_nearest(rows, table, metric, top_k) for rows in torch.split(vectors.float(), chunk)])


def _nearest(vectors: Tensor, table: Tensor, metric: str, top_k: int) -> Tensor:
    """The running top k over slices of the table; ``metric`` may also be the plain ``dot`` product."""
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
    products = vectors @ table.T
    if metric == "dot":
        return products
    norms = torch.linalg.vector_norm(table, dim=1)
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


def log_likelihoods(method: Method, release: Release, chunk: int | None = None) -> Iterator[Tensor]:
    """ln Pr(release | token) in pieces (n, V), in the order of the tokens.

    Args:
        method: The front-end that made the release.
        release: (B, L, ...); its tokens are taken row by row.
        chunk: Tokens a piece, at most; None takes as many as :data:`LIKELIHOOD_ENTRIES` allows.
    """
    rows = release.rows()
    size = max(FEWEST_TOKENS, LIKELIHOOD_ENTRIES // method.vocabulary_size)
    size = size if chunk is None else min(size, chunk)
    for start in range(0, rows.tokens, size):
        yield method.log_likelihood(rows[slice(start, start + size)])[0]


class NearestNeighbour:
    """The paper's attack: restore every position by itself, then the most similar clean embedding.

    That is what the server does, unless it reads the neighbours too: then the contextual attacks do as it does.

    Args:
        metric: ``cosine`` (the paper's) or ``l2`` between embeddings, or ``code``: L2 between the released code and
            the vocabulary's clean codes, before the linear decoder.
        chunk: Tokens a matrix product.

    Raises:
        ConfigError: Unknown metric.
    """

    def __init__(self, metric: str = "cosine", chunk: int = 1024) -> None:
        if metric not in METRICS:
            raise ConfigError(f"`metric` must be one of {', '.join(METRICS)}, got {metric!r}")
        self.name = f"nearest neighbour ({metric})"
        self.metric, self.chunk = metric, chunk
        self._directions: tuple[Tensor, Tensor, Tensor] | None = None

    @torch.no_grad()
    def __call__(self, method: Method, release: Release, lengths: Tensor, top_k: int = 1) -> Mapping[str, Tensor]:
        """See :class:`del_lightning.attacks.Attack`; positions are independent, so ``lengths`` is not used.

        Raises:
            ConfigError: The metric is ``code`` and the method has none.
        """
        return {self.name: self._guess(method, release.rows(), top_k)}

    def _guess(self, method: Method, release: Release, top_k: int) -> Tensor:
        if self.metric == "code":
            codes = method.code_values(release)
            if codes is None:
                raise ConfigError(f"`metric` must be one of cosine, l2 for method {method.name!r}, got 'code'")
            return nearest_neighbour(codes[0], codes[1], "l2", top_k, self.chunk)
        short = method.score_values(release) if self.metric == "cosine" else None
        if short is not None and short[1].shape[1] < short[1].shape[0]:
            scored = self._seen_through(method.embedding_table, short[1])
            parts = torch.split(short[0].float(), self.chunk)
            return torch.cat([_nearest(rows, scored, "dot", top_k) for rows in parts])
        restored = method.restore(release)[0]
        return nearest_neighbour(restored, method.embedding_table, self.metric, top_k, self.chunk)

    def _seen_through(self, table: Tensor, matrix: Tensor) -> Tensor:
        """Unit embeddings times the decoder, (V, r): with it, a cosine with M v is a product in r dimensions.

        The last one is kept, because one decoder serves every release of a method at every privacy level.
        """
        kept = self._directions
        if kept is None or kept[0] is not table or kept[1].device != matrix.device or not torch.equal(kept[1], matrix):
            parts = torch.split(table, VOCABULARY_CHUNK)
            seen = [torch.nn.functional.normalize(rows.float(), dim=1) @ matrix for rows in parts]
            kept = self._directions = table, matrix.clone(), torch.cat(seen)
        return kept[2]


class BayesOptimal:
    """The strongest attack on single tokens: the posterior's mode under a public prior.

    Args:
        prior: (V,) ln Pr(token), see :func:`log_prior`.
        chunk: Tokens whose likelihood is held at a time, at most (a large vocabulary holds fewer).
    """

    name = "Bayes-optimal"

    def __init__(self, prior: Tensor, chunk: int = 1024) -> None:
        self.prior, self.chunk = prior, chunk

    @torch.no_grad()
    def __call__(self, method: Method, release: Release, lengths: Tensor, top_k: int = 1) -> Mapping[str, Tensor]:
        """See :class:`del_lightning.attacks.Attack`; positions are independent, so ``lengths`` is not used."""
        return {self.name: most_likely(log_likelihoods(method, release, self.chunk), self.prior, top_k)}
