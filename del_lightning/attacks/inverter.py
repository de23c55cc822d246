"""The trained inverter: an attacker that learns, through the mechanism itself, what long context adds to a release.

    score(w at t) = ln Pr(w at t | all releases, bigram prior) + <context at t, w>

The first term is exact (:func:`del_lightning.lattices.build_lattice`): Bayes-optimal under a bigram
prior, or without bigrams the Bayes-optimal attack on single tokens. A small transformer encoder reads what the
releases say about the whole sequence and adds the second, a product with a fixed low-rank table of the vocabulary.
Its last layer starts at zero, so training starts at the exact attack and can only add what that one does not know:
context beyond a neighbour, and how wrong the bigrams are. :class:`del_lightning.modules.InverterTraining` trains it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from del_lightning.bigrams import Bigrams
from del_lightning.config import InverterConfig
from del_lightning.errors import ArtifactError, ConfigError
from del_lightning.lattices import build_lattice
from del_lightning.methods import Method, Release

CANDIDATES = 256
"""Tokens a position that the inverter ranks anew: those of the highest exact posterior."""

LIKELIEST = 64
"""Candidates whose mean embedding the encoder reads."""


@dataclass(frozen=True)
class Evidence:
    """What the releases say of T positions in each of S sequences, without context beyond a neighbour.

    Attributes:
        ids: (S, T, C) candidate tokens, the likeliest first.
        log_posterior: (S, T, C) their exact log posterior.
        features: (S, T, F) what the encoder reads.
        padding: (S, T) True behind a sequence's end, where the rest means nothing.
    """

    ids: Tensor
    log_posterior: Tensor
    features: Tensor
    padding: Tensor


class Inverter(nn.Module):
    """Transformer encoder over the exact posteriors of a sequence.

    Attributes:
        words: The vocabulary in ``width`` decorrelated coordinates (V, width): principal directions of the embedding
            table, a frequent token counting for more, scaled to a mean square norm of one. Fixed.
    """

    words: Tensor
    directions: Tensor
    prior: Tensor

    def __init__(self, table: Tensor, prior: Tensor, config: InverterConfig, bigrams: Bigrams | None = None) -> None:
        """Start at the exact attack.

        Args:
            table: Clean embeddings (V, b).
            prior: (V,) ln Pr(token), see :func:`del_lightning.attacks.log_prior`.
            config: Size of the encoder.
            bigrams: Of public text; None starts at the Bayes-optimal attack on single tokens.
        """
        super().__init__()
        directions = principal_directions(table, prior.exp(), min(config.width, table.shape[1]))
        self.register_buffer("directions", directions, persistent=False)
        self.register_buffer("words", table @ directions, persistent=False)
        self.register_buffer("prior", prior, persistent=False)
        self.bigrams, self.heads = bigrams, config.heads
        rank = directions.shape[1]
        self.read = nn.Linear(2 * rank + 2, config.width)
        self.encoder = nn.ModuleList(_Block(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.write = nn.Linear(config.width, rank)
        self.reset()

    def reset(self) -> None:
        """Forget what was learned about context: back to the exact attack."""
        nn.init.zeros_(self.write.weight)
        nn.init.zeros_(self.write.bias)

    @torch.no_grad()
    def evidence(self, method: Method, release: Release, lengths: Tensor) -> Evidence:
        """Exact posteriors and features of S sequences; release (1, N, ...), lengths (S,) that sum to N."""
        lattice = build_lattice(method, release, lengths, self.prior, self.bigrams)
        count = min(CANDIDATES, lattice.ids.shape[2])
        log_posterior, place = lattice.log_posterior.topk(count)
        ids = lattice.ids.gather(2, place)
        padding = torch.arange(ids.shape[1], device=ids.device) >= lengths.to(ids.device)[:, None]
        restored = torch.zeros(*padding.shape, self.directions.shape[1], device=ids.device)
        restored[~padding] = _normalised(method.restore(release)[0].float() @ self.directions)
        features = torch.cat([restored, self._summary(ids, log_posterior)], dim=-1)
        return Evidence(ids, log_posterior, features.masked_fill(padding[..., None], 0.0), padding)

    def _summary(self, ids: Tensor, log_posterior: Tensor) -> Tensor:
        """(S, T, rank + 2): mean embedding of the likeliest tokens, and how sure the posterior is."""
        weights = log_posterior[..., :LIKELIEST].softmax(-1)
        mean = torch.einsum("stc,stcr->str", weights, self.words[ids[..., :LIKELIEST]])
        sure = torch.stack([weights.norm(dim=-1), log_posterior[..., 0].exp()], dim=-1)
        return torch.cat([_normalised(mean), sure], dim=-1)

    def forward(self, evidence: Evidence) -> Tensor:
        """Unnormalised log posterior (S, T, C) of the candidates."""
        return self.scores(self.context(evidence), evidence.ids, evidence.log_posterior)

    def context(self, evidence: Evidence) -> Tensor:
        """What each position's surroundings expect there, (S, T, rank)."""
        states = self.read(evidence.features)
        bias = distance_bias(self.heads, evidence.padding)
        for layer in self.encoder:
            states = layer(states, bias)
        context: Tensor = self.write(self.norm(states))
        return context

    def scores(self, context: Tensor, ids: Tensor, log_posterior: Tensor) -> Tensor:
        """Scores (..., C) of candidates (..., C) in a context (..., rank)."""
        return log_posterior + torch.einsum("...r,...cr->...c", context, self.words[ids])

    def save(self, path: Path) -> None:
        """Write the trained weights as safetensors."""
        save_file({name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}, path)

    def restore_from(self, path: Path) -> None:
        """Read weights written by :meth:`save`.

        Raises:
            ArtifactError: The file is missing or damaged, or holds an inverter of another size.
        """
        try:
            self.load_state_dict(load_file(path))
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = " ".join(str(error).split())  # torch reports mismatched shapes over several lines
            raise ArtifactError(f"{path} must be an inverter's safetensors file: {reason}") from None


class _Block(nn.Module):
    """Encoder layer, normalised in front.

    torch's own layer ignores a mask of one bias a head in its inference path (2.13: other numbers than in training).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.transform = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, states: Tensor, bias: Tensor) -> Tensor:
        """states (S, L, width), bias (S, heads, L, L)."""
        parts = self.project(self.first(states)).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        states = states + self.merge(attended.transpose(1, 2).flatten(2))
        changed: Tensor = states + self.transform(self.second(states))
        return changed


def _normalised(rows: Tensor) -> Tensor:
    return nn.functional.layer_norm(rows, rows.shape[-1:])


def principal_directions(table: Tensor, weights: Tensor, width: int) -> Tensor:
    """Directions (b, width) in which the rows of a table (V, b), weighted by (V,), are uncorrelated.

    Every coordinate has variance 1 / width.
    """
    share = (weights / weights.sum()).double()[:, None]
    moment, mean = torch.zeros(table.shape[1], table.shape[1], dtype=torch.float64), torch.zeros(table.shape[1])
    moment, mean = moment.to(table.device), mean.double().to(table.device)
    for rows, part in zip(torch.split(table, 1 << 14), torch.split(share, 1 << 14), strict=True):
        weighted = part * rows.double()
        moment += rows.double().T @ weighted
        mean += weighted.sum(0)
    values, vectors = torch.linalg.eigh(moment - torch.outer(mean, mean))
    scale = values[-width:].clamp_min(float(values[-1]) * 1e-9).rsqrt() / width**0.5
    directions: Tensor = vectors[:, -width:] * scale
    return directions.float()


def distance_bias(heads: int, padding: Tensor) -> Tensor:
    """Attention bias (S, heads, L, L): half of the heads look back, half ahead, and near positions weigh more.

    The bias falls linearly with distance, by a slope of each head's own, and needs no position embeddings: prompts may
    be longer than any sequence seen in training.

    Args:
        heads: Even number of heads.
        padding: (S, L) True where there is no token; no token looks there.
    """
    place = torch.arange(padding.shape[1], device=padding.device)
    back = (place[:, None] - place).float()
    slopes = 2.0 ** -torch.arange(heads // 2, device=padding.device)
    bias = torch.cat([_one_way(slopes, back), _one_way(slopes, -back)])
    hidden = padding[:, None, None, :] & (back != 0)  # padding itself must see something
    return bias.masked_fill(hidden, -torch.inf)


def _one_way(slopes: Tensor, distance: Tensor) -> Tensor:
    bias = -slopes[:, None, None] * distance
    return bias.masked_fill(distance < 0, -torch.inf)


class TrainedInverter:
    """The attack with a trained inverter.

    Args:
        inverter: Trained for the method and privacy level under attack.
        batch: Sequences attacked together; bounds the memory.
    """

    name = "trained inverter"

    def __init__(self, inverter: Inverter, batch: int = 8) -> None:
        self.inverter, self.batch = inverter.eval(), batch

    @torch.no_grad()
    def __call__(self, method: Method, release: Release, lengths: Tensor, top_k: int = 1) -> Mapping[str, Tensor]:
        """See :class:`del_lightning.attacks.Attack`.

        Raises:
            ConfigError: ``top_k`` is above the number of candidates.
        """
        most = min(CANDIDATES, method.vocabulary_size)
        if not 1 <= top_k <= most:
            raise ConfigError(f"`top_k` must be between 1 and {most}, got {top_k!r}")
        guesses, start = [], 0
        for part in torch.split(lengths.to(self.inverter.prior.device), self.batch):
            stop = start + int(part.sum())
            evidence = self.inverter.evidence(method, release[slice(start, stop)], part)
            best = self.inverter(evidence).topk(top_k).indices
            guesses.append(evidence.ids.gather(2, best)[~evidence.padding])
            start = stop
        return {self.name: torch.cat(guesses)}
