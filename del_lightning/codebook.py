"""Semantic codebook: tokens that tell the language model much the same share one code word.

DEL's linear code lets every token keep a code of its own, so that an attacker who knows the mechanism reads the words
while a linear decoder hands the language model noise. Here the device sends which *group* a token belongs to:

    token --group--> code word in {-c, c}^d --n-bit quantizer--> codes --posterior of groups--> mean embedding

Grouping happens before the mechanism and is public, so the guarantee is the quantizer's own. What the groups add is
that no release, however clear, says more than the group. They are built from public text alone:

    frequent tokens     one group: they tell little about a text and are easily guessed
    all others          merged by what they mean and which texts they occur in (Ward's criterion, weighted by
                        frequency) until nobody holds more than a given share of a group

The last tokens of a prompt may have finer groups than the rest (:attr:`Codebook.ending`): a continuation depends on
them far more than on any others, and a token's place is no secret. A token that is sent as one of the last and again
as an inner one reveals both groups.

That share bounds the posterior probability of every token of such a group under the unigram prior, and with it the
success of the best guess from such a group. The frequent tokens are outside the bound, and so are tokens with a group
of their own. An attacker who reads the neighbours too can do better; attacks measure it.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from del_lightning.data.tokens import Ragged
from del_lightning.errors import ArtifactError, ConfigError
from del_lightning.terminal import track

CONTEXT_TOKENS = 4000
"""Most frequent tokens whose company describes a token's topic."""
RELIABLE_COUNT = 20
"""Occurrences from which on a token's own company is looked at."""
CANDIDATE_WORDS = 1 << 18
"""Code words among which those far apart are chosen: all of them up to d = 18."""


@dataclass(frozen=True)
class Codebook:
    """Which group every token belongs to, and what is sent for a group.

    Attributes:
        groups: (V,) int64 number of each token's group, below G.
        words: (G, d) float32 of -1 and 1; times the clipping bound c it is the group's code.
        ending: Codebook of the last tokens of a sequence; None treats all alike.
        last: How many those are.
    """

    groups: Tensor
    words: Tensor
    ending: "Codebook | None" = None
    last: int = 0

    def save(self, path: Path) -> None:
        """Write it as safetensors."""
        state = {"groups": self.groups.contiguous(), "words": self.words.to(torch.int8).contiguous()}
        if self.ending is not None:
            state |= {"ending.groups": self.ending.groups, "ending.words": self.ending.words.to(torch.int8)}
            state["last"] = torch.tensor(self.last)
        save_file(state, path)

    @classmethod
    def load(cls, path: Path) -> "Codebook":
        """Read what :meth:`save` wrote.

        Raises:
            ArtifactError: The file is missing, damaged, or holds no codebook.
        """
        try:
            state = load_file(path)
            book = cls(state["groups"], state["words"].float())
            if "last" in state:
                ending = cls(state["ending.groups"], state["ending.words"].float())
                book = replace(book, ending=ending, last=int(state["last"]))
        except (OSError, SafetensorError, KeyError) as error:
            raise ArtifactError(f"{path} must be a codebook's safetensors file: {error}") from None
        if not all(one is None or one._fits(book) for one in (book, book.ending)):
            raise ArtifactError(
                f"{path} must hold a group of every token and a word of -1 and 1 for every group, got other numbers"
            )
        return book

    def _fits(self, book: "Codebook") -> bool:
        """Whether groups have words that stay inside the clipping bound, of the same tokens and width as ``book``."""
        groups, words = self.groups, self.words
        if groups.dtype != torch.int64 or groups.ndim != 1 or words.ndim != 2 or not groups.numel():
            return False
        if groups.shape != book.groups.shape or words.shape[1] != book.words.shape[1]:
            return False
        return int(groups.min()) >= 0 and int(groups.max()) < len(words) and bool((words.abs() == 1).all())

    def to(self, device: torch.device) -> "Codebook":
        """The same on a device."""
        ending = None if self.ending is None else self.ending.to(device)
        return replace(self, groups=self.groups.to(device), words=self.words.to(device), ending=ending)


def build_codebook(
    embeddings: Tensor,
    tokens: Ragged,
    counts: Tensor,
    *,
    dim: int,
    frequent: int,
    largest_share: float,
    topic_weight: float = 1.0,
    alone: int = 0,
) -> Codebook:
    """Group a vocabulary by public text.

    Args:
        embeddings: Clean embeddings (V, b).
        tokens: Public text, in its order.
        counts: (V,) occurrences of every token in it.
        dim: Width d of a code word.
        frequent: So many of the most frequent tokens form one group, >= 0.
        largest_share: Largest share of a token in its group, the frequent tokens' aside, in (0, 1].
        topic_weight: Weight of which texts a token occurs in against its embedding, >= 0.
        alone: So many of the most frequent tokens are a group each, >= 0; ``frequent`` counts those behind them.

    Raises:
        ConfigError: A setting out of range, or more groups than there are code words of width ``dim``.
    """
    if not 0 < largest_share <= 1:
        raise ConfigError(f"`codebook.largest_share` must be in (0, 1], got {largest_share!r}")
    if not 0 <= frequent < len(embeddings):
        raise ConfigError(f"`codebook.frequent` must be between 0 and {len(embeddings) - 1}, got {frequent!r}")
    if not 0 <= alone < len(embeddings) - frequent:
        raise ConfigError(
            f"`codebook.last_alone` must be between 0 and {len(embeddings) - frequent - 1}, got {alone!r}"
        )
    prior = (counts + 1).float() / (counts + 1).sum()
    features = _features(embeddings, prior, topic_vectors(tokens, counts, embeddings), topic_weight)
    order = prior.argsort(descending=True, stable=True)
    rest = order[frequent + alone :].sort().values
    groups = torch.full((len(embeddings),), alone)
    groups[order[:alone]] = torch.arange(alone)
    first = alone + (frequent > 0)
    groups[rest] = balanced_groups(features[rest], prior[rest], counts[rest] > 0, largest_share) + first
    return Codebook(groups, code_words(int(groups.max()) + 1, dim))


def _features(embeddings: Tensor, prior: Tensor, topics: Tensor, topic_weight: float, width: int = 96) -> Tensor:
    """Leading directions of the embeddings beside the topics, each of mean square 1 over the tokens of a text."""
    centred = embeddings - prior @ embeddings
    _, vectors = torch.linalg.eigh((prior[:, None] * centred).T @ centred)
    parts = (centred @ vectors[:, -width:], topics - prior @ topics)
    scaled = [part / (prior @ part.square().sum(1)).sqrt().clamp_min(1e-12) for part in parts]
    return torch.cat([scaled[0], topic_weight * scaled[1]], dim=1)


def topic_vectors(tokens: Ragged, counts: Tensor, embeddings: Tensor, width: int = 48, window: int = 40) -> Tensor:
    """Which tokens follow a token within a window, in ``width`` numbers: (V, width).

    Leading singular vectors of the standardised deviation of pair counts from independence, over tokens that occur
    :data:`RELIABLE_COUNT` times; for all others, and in part for rare ones, a ridge regression on the embedding.

    Args:
        tokens: Public text, in its order.
        counts: (V,) occurrences of every token in it.
        embeddings: Clean embeddings (V, b).
        width: Numbers a token.
        window: Tokens behind a token that count as its company.
    """
    known = torch.nonzero(counts >= RELIABLE_COUNT).flatten()
    if len(known) <= width:
        return torch.zeros(len(counts), width)
    company = known[counts[known].argsort(descending=True, stable=True)][:CONTEXT_TOKENS]
    pairs = _pair_counts(torch.from_numpy(tokens.flat.astype(np.int64)), known, company, len(counts), window)
    expected = pairs.sum(1, keepdim=True) * pairs.sum(0, keepdim=True) / pairs.sum().clamp_min(1)
    deviation = (pairs - expected) / (expected + 5).sqrt() / pairs.sum(1, keepdim=True).sqrt().clamp_min(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        left, size, _ = torch.svd_lowrank(deviation, q=width, niter=4)
    own = left * size * math.sqrt(window)
    directions = F.normalize(embeddings - embeddings.mean(0), dim=1)
    seen, weight = directions[known], counts[known].clamp(max=200).float()[:, None]
    ridge = seen.T @ (weight * seen) + 50 * torch.eye(seen.shape[1])
    vectors: Tensor = directions @ torch.linalg.solve(ridge, seen.T @ (weight * own))
    trust = (counts[known] / (counts[known] + 100.0))[:, None]
    vectors[known] = trust * own + (1 - trust) * vectors[known]
    return vectors


def _pair_counts(text: Tensor, known: Tensor, company: Tensor, vocabulary: int, window: int) -> Tensor:
    """How often each of ``company`` follows each of ``known`` within the window: (len(known), len(company))."""
    places = torch.full((2, vocabulary), -1)
    places[0, known] = torch.arange(len(known))
    places[1, company] = torch.arange(len(company))
    row, column = places[0][text], places[1][text]
    pairs = torch.zeros(len(known) * len(company))
    for shift in range(1, min(window, len(text) - 1) + 1):
        first, second = row[:-shift], column[shift:]
        both = (first >= 0) & (second >= 0)
        pairs += torch.bincount(first[both] * len(company) + second[both], minlength=len(pairs))
    return pairs.view(len(known), len(company))


def balanced_groups(features: Tensor, prior: Tensor, seen: Tensor, largest_share: float) -> Tensor:
    """Merge tokens until nobody holds more than ``largest_share`` of a group: (n,) numbers of the groups.

    The lightest group that breaks the rule joins the one that costs least by Ward's criterion. Tokens that public text
    does not show join the nearest group in the end.

    Args:
        features: (n, f) what tokens are compared by.
        prior: (n,) their probabilities.
        seen: (n,) which of them occur in public text; all are taken as seen if none is.
        largest_share: In (0, 1]; what cannot be reached ends in a single group.
    """
    seen = seen if bool(seen.any()) else torch.ones_like(seen)
    tokens = torch.nonzero(seen).flatten()
    parent, centres, alive = _merge(features[tokens].clone(), prior[tokens].double(), largest_share)
    while not torch.equal(parent, parent[parent]):
        parent = parent[parent]
    numbers = torch.full((len(tokens),), -1)
    numbers[alive] = torch.arange(len(alive))
    groups = torch.full((len(features),), -1)
    groups[tokens] = numbers[parent]
    rest = torch.nonzero(~seen).flatten()
    for part in torch.split(rest, 4096):
        groups[part] = (centres.square().sum(1) - 2 * features[part] @ centres.T).argmin(1)
    return groups


def _merge(centres: Tensor, mass: Tensor, largest_share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Parents (n,) of the groups that single tokens began as; centres (G, f) and numbers (G,) of those left."""
    top, parent = mass.clone(), torch.arange(len(mass))
    square, alive = centres.square().sum(1), torch.ones(len(mass), dtype=torch.bool)
    breaks = torch.where(top > largest_share * mass, mass, torch.inf)
    for _ in track(range(len(mass) - 1), "merging tokens into groups"):
        one = int(breaks.argmin())
        if not math.isfinite(float(breaks[one])):
            break
        distance = (square - 2 * (centres @ centres[one]) + square[one]).clamp_min(0).double()
        cost = torch.where(alive, distance * mass * mass[one] / (mass + mass[one]), torch.inf)
        cost[one] = torch.inf
        other = int(cost.argmin())
        share = float(mass[one] / (mass[one] + mass[other]))
        centres[other] = (1 - share) * centres[other] + share * centres[one]
        square[other] = centres[other].square().sum()
        mass[other] += mass[one]
        top[other] = torch.maximum(top[one], top[other])
        alive[one], breaks[one], parent[one] = False, torch.inf, other
        breaks[other] = mass[other] if top[other] > largest_share * mass[other] else torch.inf
    kept = torch.nonzero(alive).flatten()
    return parent, centres[kept], kept


def code_words(count: int, dim: int) -> Tensor:
    """``count`` words of -1 and 1, (count, dim), far apart, those of the lowest numbers farthest.

    The error of a noisy word falls with its distance to the others. Up to d = 18 the words are a lexicode (Conway and
    Sloane 1986) of the greatest minimum distance that has as many: scanned in order, whatever is far enough is taken.

    Raises:
        ConfigError: There are fewer words of this width.
    """
    if dim < 1 or count > 2**dim:
        least = max(1, math.ceil(math.log2(count)))
        raise ConfigError(f"`codec.dim` must be at least {least} for {count} groups, got {dim}")
    if 2**dim > CANDIDATE_WORDS:
        generator = torch.Generator().manual_seed(0)
        candidates = torch.randint(2, (max(count, CANDIDATE_WORDS), dim), generator=generator).float() * 2 - 1
        return candidates[_spread(candidates, count)]
    near, far = 1, dim  # the distance 1 suffices for all words there are
    while near < far:
        middle = (near + far + 1) // 2
        near, far = (middle, far) if len(_lexicode(dim, middle, count)) == count else (near, middle - 1)
    numbers = torch.tensor(_lexicode(dim, near, count))
    words = ((numbers[:, None] >> torch.arange(dim)) & 1).float() * 2 - 1
    return words[_spread(words, count)]


def _lexicode(dim: int, distance: int, count: int) -> list[int]:
    """The first numbers of ``dim`` bits that differ from all before in ``distance`` bits, at most ``count``."""
    numbers = torch.arange(2**dim)
    ones = sum((numbers >> bit) & 1 for bit in range(dim))
    assert isinstance(ones, Tensor)
    chosen: list[int] = []
    free = torch.ones(len(numbers), dtype=torch.bool)
    while len(chosen) < count and bool(free.any()):
        chosen.append(int(free.byte().argmax()))
        free &= ones[numbers ^ chosen[-1]] >= distance
    return chosen


def _spread(words: Tensor, count: int) -> list[int]:
    """Numbers of ``count`` words, each the farthest from all before it."""
    chosen = [0]
    closest = words @ words[0]  # the larger the product, the closer
    while len(chosen) < count:
        closest[chosen[-1]] = torch.inf
        chosen.append(int(closest.argmin()))
        closest = torch.maximum(closest, words @ words[chosen[-1]])
    return chosen
