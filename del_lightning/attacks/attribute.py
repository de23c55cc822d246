"""Attribute inference: what does a release tell about its text as a whole, when no single token can be read?

The attacker knows the mechanism, so it privatises public texts with known attributes itself, with fresh randomness at
every pass, and trains a small network on what the server would see:

    release -> restored tokens -> two layers a token -> mean, maximum, length -> linear -> attribute or not

Mean and maximum cover what the text is about on the whole and whether some token occurs in it at all; the length is
never hidden.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from del_lightning.errors import ConfigError
from del_lightning.methods import Method, Release
from del_lightning.seeding import stream, stream_seed

WIDTH = 64
EPOCHS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 12, 64, 3e-3, 1e-2


@dataclass(frozen=True)
class Texts:
    """Texts with A binary attributes.

    Attributes:
        tokens: (N,) token ids of S texts one after the other.
        lengths: (S,) tokens of each text, at least 1; they sum to N.
        attributes: (S, A) 0 or 1.
    """

    tokens: Tensor
    lengths: Tensor
    attributes: Tensor

    @classmethod
    def of(cls, rows: list[list[int]], attributes: Iterable[list[int]]) -> "Texts":
        """From one list of token ids a text, and one list of values an attribute."""
        flat = torch.tensor([token for row in rows for token in row])
        return cls(flat, torch.tensor([len(row) for row in rows]), torch.tensor(list(attributes)).T)


class AttributeNetwork(nn.Module):
    """Two layers a token, mean and maximum over tokens and their number, a linear layer.

    Args:
        width: Numbers a token.
        attributes: A, how many are inferred at once.
    """

    mean: Tensor
    scale: Tensor
    length_mean: Tensor
    length_scale: Tensor

    def __init__(self, width: int, attributes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("length_mean", torch.zeros(()))
        self.register_buffer("length_scale", torch.ones(()))
        self.token = nn.Sequential(nn.Linear(width, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU())
        self.text = nn.Linear(2 * WIDTH + 1, attributes)

    def standardise(self, values: Tensor, lengths: Tensor) -> None:
        """Take mean and spread from tokens (N, r) and from the logarithms of lengths (S,)."""
        self.mean.copy_(values.mean(dim=0))
        self.scale.copy_(values.std(dim=0).clamp_min(1e-6))
        logarithms = lengths.to(values).log()
        self.length_mean.copy_(logarithms.mean())
        self.length_scale.copy_(logarithms.std().clamp_min(1e-6))

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Log-odds of the attributes (S, A) from tokens (N, r) and the texts' lengths (S,)."""
        hidden: Tensor = self.token((values - self.mean) / self.scale)
        text = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
        index = text[:, None].expand_as(hidden)
        empty = hidden.new_zeros(len(lengths), WIDTH)
        pooled = [
            empty.scatter_reduce(0, index, hidden, reduction, include_self=False) for reduction in ("mean", "amax")
        ]
        length = (lengths.to(hidden).log() - self.length_mean) / self.length_scale
        odds: Tensor = self.text(torch.cat([*pooled, length[:, None]], dim=1))
        return odds


class AttributeInference:
    """An adaptive attacker of whole texts.

    Args:
        public: Texts that it learns from.
        held_out: Texts that choose the best pass.
        seed: Of its own randomness, which is never the victims'.

    Raises:
        ConfigError: The public texts are all alike in an attribute.
    """

    def __init__(self, public: Texts, held_out: Texts, seed: int = 0) -> None:
        if not bool((public.attributes.amin(0) < public.attributes.amax(0)).all()):
            raise ConfigError("`public` must hold texts with and without each attribute, got one kind only")
        self.public, self.held_out, self.seed = public, held_out, seed

    def __call__(self, method: Method, release: Release, lengths: Tensor) -> Tensor:
        """Probability of each attribute (S, A) for the texts of a release (1, N, ...) with these lengths (S,)."""
        network = self._train(method)
        with torch.no_grad():
            odds: Tensor = network(_seen(method, release), lengths.to(release.payload.device))
        return odds.sigmoid().cpu()

    def _train(self, method: Method) -> AttributeNetwork:
        device = method.embedding_table.device
        held_out = self._release(method, self.held_out, "held out")
        first = self._release(method, self.public, "scale")
        with torch.random.fork_rng():
            torch.manual_seed(stream_seed("attribute network", self.seed))
            network = AttributeNetwork(first.shape[1], self.public.attributes.shape[1]).to(device)
        network.standardise(first, self.public.lengths)
        optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        best, kept = float("inf"), network.state_dict()
        for epoch in range(EPOCHS):
            self._epoch(network, optimizer, self._release(method, self.public, f"pass {epoch}"), epoch)
            with torch.no_grad():
                loss = float(_loss(network, held_out, self.held_out))
            if loss < best:
                best, kept = loss, {name: value.clone() for name, value in network.state_dict().items()}
        network.load_state_dict(kept)
        return network

    def _epoch(self, network: AttributeNetwork, optimizer: torch.optim.Optimizer, seen: Tensor, epoch: int) -> None:
        device = seen.device
        rows = torch.split(seen, self.public.lengths.tolist())
        order = torch.randperm(len(rows), generator=stream("attribute order", self.seed, epoch))
        for chosen in torch.split(order, BATCH):
            part = Texts(
                self.public.tokens, self.public.lengths[chosen].to(device), self.public.attributes[chosen].to(device)
            )
            optimizer.zero_grad()
            _loss(network, torch.cat([rows[i] for i in chosen.tolist()]), part).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    @torch.no_grad()
    def _release(self, method: Method, texts: Texts, purpose: str) -> Tensor:
        """What the server would see of the attacker's own texts, under noise of its own: (N, r)."""
        device = method.embedding_table.device
        generator = stream("attribute", self.seed, purpose, device=device)
        rows = torch.split(texts.tokens.to(device), texts.lengths.tolist())
        return _seen(method, Release.concatenate([method.release(row[None], generator) for row in rows]))


def _seen(method: Method, release: Release) -> Tensor:
    """The tokens of a release as numbers (N, r): values before a linear decoder, else restored embeddings."""
    short = method.score_values(release)
    return (method.restore(release).flatten(0, 1) if short is None else short[0]).float()


def _loss(network: AttributeNetwork, seen: Tensor, texts: Texts) -> Tensor:
    odds = network(seen, texts.lengths.to(seen.device))
    return nn.functional.binary_cross_entropy_with_logits(odds, texts.attributes.to(seen.device).float())
