"""Pairs of neighbouring tokens in public text: the smallest language model, and one whose posterior is exact.

Under a bigram prior a released sequence is a hidden Markov model: the private tokens are its states, what left the
device its observations. Two passes over the sequence then give what every release, to the left *and* to the right,
says about every token, summed over all V^T sequences. That costs a sparse product a token, with no search in it.

    p(w | v) = max(c(v, w) - D, 0) / c(v) + D n(v) / c(v) p(w)

is absolute discounting (Ney, Essen and Kneser 1994): c counts pairs, n(v) the different followers of v, p(w) is the
unigram prior, which receives the discounted mass. A token that public text never shows keeps the prior alone.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from del_lightning.data.tokens import Ragged
from del_lightning.errors import ConfigError

DISCOUNT = 0.75
"""D, the customary value."""


class Bigrams:
    """Interpolated bigram probabilities of a corpus.

    Args:
        tokens: Public documents; pairs do not reach from one into the next.
        prior: (V,) ln p(w), see :func:`del_lightning.attacks.log_prior`; everything is kept on its device.

    Raises:
        ConfigError: A token of the corpus lies outside the prior's vocabulary.

    Example:
        >>> corpus = Ragged(np.array([0, 1, 0, 1], dtype=np.int32), np.array([0, 4]))
        >>> bigrams = Bigrams(corpus, torch.tensor([0.5, 0.5]).log())
        >>> bigrams.log_prob(torch.tensor([0]), torch.tensor([[0, 1]])).exp()  # 0.375 / 2 = D n / c p(w), and the rest
        tensor([[0.1875, 0.8125]])
    """

    def __init__(self, tokens: Ragged, prior: Tensor) -> None:
        self.size = len(prior)
        if len(tokens.flat) and int(tokens.flat.max()) >= self.size:
            raise ConfigError(f"`tokens` must be below the prior's {self.size} entries, got {int(tokens.flat.max())}")
        keys, counts = (torch.from_numpy(array).to(prior.device) for array in _pairs(tokens, self.size))
        before, after = keys // self.size, keys % self.size
        total = torch.zeros(self.size, dtype=torch.float64, device=prior.device).index_add_(0, before, counts)
        followers = torch.bincount(before, minlength=self.size)
        values = ((counts - DISCOUNT) / total[before]).float()
        self._prior = prior.exp()
        self._backing = torch.where(total > 0, DISCOUNT * followers / total, 1.0).float()
        self._keys, self._values = keys, values
        self._followers = _Sparse(before, after, values, self.size)
        order = torch.argsort(after, stable=True)
        self._leaders = _Sparse(after[order], before[order], values[order], self.size)

    def log_prob(self, previous: Tensor, words: Tensor) -> Tensor:
        """ln p(w | v) of the tokens ``words`` (R, K) behind ``previous`` (R,): (R, K) float32."""
        smooth = self._backing[previous][:, None] * self._prior[words]
        if len(self._keys) == 0:
            return smooth.log()
        wanted = previous[:, None] * self.size + words
        place = torch.searchsorted(self._keys, wanted).clamp_(max=len(self._keys) - 1)
        return (torch.where(self._keys[place] == wanted, self._values[place], 0.0) + smooth).log()

    def follow(self, current: Tensor) -> Tensor:
        """One step on: (S, V) probabilities of a token -> those of the next, sum_v x(v) p(w | v)."""
        return self._leaders.times(current) + (current @ self._backing)[:, None] * self._prior

    def precede(self, weights: Tensor) -> Tensor:
        """One step back: (S, V) weights of a token -> their mean given the one before, sum_w p(w | v) x(w)."""
        return self._followers.times(weights) + (weights @ self._prior)[:, None] * self._backing


class _Sparse:
    """A V x V matrix by rows. ``embedding_bag`` multiplies with it fast, and adds in one order on every device."""

    def __init__(self, rows: Tensor, columns: Tensor, values: Tensor, size: int) -> None:
        """``rows`` (n,) ascend."""
        starts = torch.searchsorted(rows, torch.arange(size, device=rows.device))
        self.columns, self.values, self.starts = columns.contiguous(), values.contiguous(), starts

    def times(self, vectors: Tensor) -> Tensor:
        """Matrix times each of the vectors (S, V): (S, V)."""
        table = vectors.T.contiguous()
        return F.embedding_bag(self.columns, table, self.starts, mode="sum", per_sample_weights=self.values).T


def _pairs(tokens: Ragged, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs v V + w that occur within a document, ascending int64, and how often, float64."""
    flat = tokens.flat.astype(np.int64)
    inside = np.ones(len(flat), dtype=bool)
    inside[tokens.offsets[:-1][tokens.offsets[:-1] < len(flat)]] = False
    keys, counts = np.unique((flat[:-1] * size + flat[1:])[inside[1:]], return_counts=True)
    return keys, counts.astype(np.float64)
