"""What all releases of a sequence say about every token of it, under a bigram prior: exactly, and without any search.

The private tokens are the states of a hidden Markov model, the releases its observations. One pass to the right and one
to the left give the posterior of every position. Attackers guess from it; a server may decode with it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from del_lightning.bigrams import Bigrams
from del_lightning.errors import ConfigError
from del_lightning.methods.base import Method, Release

CANDIDATES = 2048
"""Tokens a position that are considered: those of the highest single-position posterior."""

POSITIONS = 128
"""Positions whose log-likelihoods over the whole vocabulary are held at a time."""

NOTHING = 1e-20
"""A probability that changes no sum in float32; CPUs are slow on the smallest numbers there are."""


@dataclass(frozen=True)
class Lattice:
    """K candidates at each of T positions of S sequences; what stands behind a sequence's end means nothing.

    Attributes:
        ids: (S, T, K) tokens, by ln Pr(release | token) + ln prior(token).
        log_likelihood: (S, T, K) ln Pr(release | token), up to a constant a position.
        log_future: (S, T, K) ln Pr(all later releases | token) under the bigrams, likewise; 0 without.
        log_posterior: (S, T, K) ln Pr(token | all releases), normalised over the candidates.
    """

    ids: Tensor
    log_likelihood: Tensor
    log_future: Tensor
    log_posterior: Tensor


def lattices(
    method: Method, release: Release, lengths: Tensor, prior: Tensor, bigrams: Bigrams | None, batch: int
) -> "Iterator[tuple[Lattice, Tensor]]":
    """The lattice and the lengths (S,) of every batch of sequences.

    Raises:
        ConfigError: Lengths do not fit, or the method has another vocabulary.
    """
    for some, part in batches(method, release, lengths, prior, batch):
        yield build_lattice(method, some, part, prior, bigrams), part


def batches(
    method: Method, release: Release, lengths: Tensor, prior: Tensor, size: int
) -> "Iterator[tuple[Release, Tensor]]":
    """The release and the lengths (S,) of every batch of at most ``size`` sequences.

    Raises:
        ConfigError: Lengths do not fit, or the method has another vocabulary.
    """
    if method.vocabulary_size != len(prior):
        raise ConfigError(f"`method` must have {len(prior)} tokens, got {method.vocabulary_size}")
    if len(release) != 1 or len(lengths) == 0 or bool((lengths < 1).any()) or int(lengths.sum()) != release.tokens:
        raise ConfigError(
            f"`lengths` must be positive and sum to the {release.tokens} tokens of one released row, "
            f"got {lengths.tolist()} for {len(release)}"
        )
    start = 0
    for part in torch.split(lengths.to(prior.device), size):
        stop = start + int(part.sum())
        yield release[slice(start, stop)], part
        start = stop


def build_lattice(method: Method, release: Release, lengths: Tensor, prior: Tensor, bigrams: Bigrams | None) -> Lattice:
    """Two passes over S sequences at once; messages run over the whole vocabulary, candidates are what is kept.

    Args:
        method: The front-end that made the release.
        release: (1, N, ...) of the sequences one after the other.
        lengths: (S,) tokens of each.
        prior: (V,) ln Pr(token).
        bigrams: The chain; None makes the positions independent.
    """
    steps = torch.arange(int(lengths.max()), device=lengths.device)
    rows = _rows(lengths, steps)
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    expected = prior.expand(len(lengths), -1)  # ln Pr(token | earlier releases)
    for _, likelihood in _by_step(method, release, rows):
        ids = (likelihood + prior).topk(min(CANDIDATES, len(prior))).indices
        kept.append((ids, likelihood.gather(1, ids), expected.gather(1, ids)))
        if bigrams is not None:
            expected = bigrams.follow((likelihood + expected).softmax(-1)).log()
    ids, log_likelihood, log_past = (torch.stack(parts, 1) for parts in zip(*kept, strict=True))
    log_future = torch.zeros_like(log_past)
    if bigrams is not None:
        for step, future in _look_ahead(method, release, rows, lengths, bigrams):
            log_future[:, step] = future.gather(1, ids[:, step]).log()
    log_posterior = (log_likelihood + log_past + log_future).log_softmax(-1)
    return Lattice(ids, log_likelihood, log_future, log_posterior)


def mean_values(
    method: Method, release: Release, lengths: Tensor, prior: Tensor, bigrams: Bigrams, values: Tensor
) -> Tensor:
    """Means of something known of every token, over the posterior of every position given the whole sequence.

    The passes are those of :func:`build_lattice`; nothing is left out.

    Args:
        method: The front-end that made the release.
        release: (1, N, ...) of the sequences one after the other.
        lengths: (S,) tokens of each, which sum to N; S times the longest times V numbers are held.
        prior: (V,) ln Pr(token).
        bigrams: The chain.
        values: (V, b), an embedding table for instance.

    Returns:
        (N, b).
    """
    steps = torch.arange(int(lengths.max()), device=lengths.device)
    inside = steps < lengths[:, None]
    rows = _rows(lengths, steps)
    futures = dict(_look_ahead(method, release, rows, lengths, bigrams))
    expected = prior.expand(len(lengths), -1)  # ln Pr(token | earlier releases)
    held: list[Tensor] = []
    means: list[Tensor] = []
    for step, likelihood in _by_step(method, release, rows):
        past = (likelihood + expected).softmax(-1)
        held.append(past * futures.pop(step) if step in futures else past)
        expected = bigrams.follow(past).log()
        if len(held) * len(rows) >= POSITIONS or step == len(steps) - 1:  # the table is read once for all of them
            weights = torch.stack(held, 1)
            means.append(F.threshold(weights / weights.sum(-1, keepdim=True), NOTHING, 0) @ values)
            held.clear()
    return torch.cat(means, 1)[inside]


def _rows(lengths: Tensor, steps: Tensor) -> Tensor:
    """Place (S, T) of every sequence's positions among all; behind a sequence's end that of its last one."""
    return (lengths.cumsum(0) - lengths)[:, None] + torch.minimum(steps, lengths[:, None] - 1)


def _look_ahead(
    method: Method, release: Release, rows: Tensor, lengths: Tensor, bigrams: Bigrams
) -> Iterator[tuple[int, Tensor]]:
    """(t, Pr(releases after t | token at t)) from the last step but one to the first, (S, V) up to a factor."""
    future = torch.ones(len(rows), bigrams.size, device=rows.device)
    for step, likelihood in _by_step(method, release, rows, backwards=True):
        if step == 0:
            return
        earlier = bigrams.precede(likelihood.exp() * future)
        # A sequence that ends before this step has no release here.
        future = torch.where((step < lengths)[:, None], earlier / earlier.amax(-1, keepdim=True), 1.0)
        yield step - 1, future


def _by_step(
    method: Method, release: Release, rows: Tensor, *, backwards: bool = False
) -> Iterator[tuple[int, Tensor]]:
    """(t, ln Pr(release | token) (S, V) with maximum 0) of the positions ``rows[:, t]`` (S, T), step by step."""
    size = max(1, POSITIONS // len(rows))
    starts = range(0, rows.shape[1], size)
    for start in reversed(starts) if backwards else starts:
        part = rows[:, start : start + size].T
        scores = method.log_likelihood(release.take(part.flatten()))[0]
        scores = (scores - scores.amax(-1, keepdim=True)).view(*part.shape, -1)
        steps = list(enumerate(scores, start))
        yield from reversed(steps) if backwards else steps
