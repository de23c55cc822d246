"""The server itself as the attacker: what its own adapted model expects at a place, beside what the release says.

Whoever serves the prompts holds the very soft prompt and adapter that were trained through the noise, and computes the
decoded prompt anyway. One pass of the language model over it says which token it expects at every private place:

    score(w at t) = ln Pr(w at t | all releases, bigram prior) + lambda [ln p_model(w | decoded before t) - ln Pr(w)]

The first term is exact (:func:`del_lightning.lattices.build_lattice`) and is ranked anew by the second, whose share
lambda is tuned on public text (:func:`tune`). Unlike :class:`del_lightning.attacks.language_model.LanguageModelPrior`,
which gives the model tokens that it supposes, this attacker gives it the noisy embeddings it was trained on.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from del_lightning.bigrams import Bigrams
from del_lightning.errors import ConfigError
from del_lightning.lattices import Lattice, batches, build_lattice
from del_lightning.llm import FrozenLLM
from del_lightning.methods import Method, Release
from del_lightning.prompt import SoftPrompt
from del_lightning.seeding import stream

NAME = "server's model"

SHARES = (0.0, 0.25, 0.5, 1.0)
"""Values of lambda that are tried."""


class ServerModel:
    """The attack; see the module's docstring. Called like any :class:`del_lightning.attacks.Attack`.

    Args:
        llm: The server's language model, with its adapter in place when the attack is called.
        prior: (V,) ln Pr(token), unigram.
        bigrams: Of public text of the domain.
        prefix_ids: Public tokens in front of the private ones; may be empty behind a soft prompt.
        soft_prompt: The server's; None runs without.
        share: lambda, >= 0.
        batch: Sequences attacked together; bounds the memory.

    Raises:
        ConfigError: ``share`` is negative, or nothing stands in front of the first token.
    """

    name = NAME

    def __init__(
        self,
        llm: FrozenLLM,
        prior: Tensor,
        bigrams: Bigrams,
        *,
        prefix_ids: Sequence[int],
        soft_prompt: SoftPrompt | None = None,
        share: float = 0.5,
        batch: int = 8,
    ) -> None:
        if not share >= 0:
            raise ConfigError(f"`share` must be at least 0, got {share!r}")
        if not prefix_ids and soft_prompt is None:
            raise ConfigError("`prefix_ids` must hold a token when there is no soft prompt, got none")
        self.llm, self.prior, self.bigrams, self.share, self.batch = llm, prior, bigrams, share, batch
        self.prefix_ids, self.soft_prompt = list(prefix_ids), soft_prompt

    @torch.no_grad()
    def __call__(self, method: Method, release: Release, lengths: Tensor, top_k: int = 1) -> Mapping[str, Tensor]:
        """Guess every token of ``release`` (1, N, ...), S sequences of ``lengths`` (S,): {name: (N, top_k)}.

        Raises:
            ConfigError: Lengths do not fit, or the method has another vocabulary.
        """
        return {self.name: torch.cat([best for [best] in self.guesses(method, release, lengths, [self.share], top_k)])}

    @torch.no_grad()
    def guesses(
        self, method: Method, release: Release, lengths: Tensor, shares: Sequence[float], top_k: int = 1
    ) -> Iterator[list[Tensor]]:
        """For every batch of sequences the guesses (n, top_k) under each share; arguments as in a call."""
        for some, part in batches(method, release, lengths, self.prior, self.batch):
            lattice = build_lattice(method, some, part, self.prior, self.bigrams)
            inside = torch.arange(lattice.ids.shape[1], device=part.device) < part[:, None]
            ids, exact = lattice.ids[inside], lattice.log_posterior[inside]
            expected = self._expected(method, some, part, lattice)[inside] if any(shares) else torch.zeros_like(exact)
            yield [ids.gather(1, (exact + share * expected).topk(top_k).indices) for share in shares]

    def _expected(self, method: Method, release: Release, lengths: Tensor, lattice: Lattice) -> Tensor:
        """ln p_model(w) - ln Pr(w) of every candidate, (S, T, K); what stands behind a sequence's end means nothing."""
        restored = torch.split(method.restore_sequences(release, lengths)[0], lengths.tolist())
        padded = pad_sequence(list(restored), batch_first=True).to(self.llm.dtype)
        beginning = self._beginning(padded.dtype).expand(len(padded), -1, -1)
        start, length = beginning.shape[1], padded.shape[1]
        steps = torch.arange(start + length, device=padded.device)
        seen = steps < start + lengths[:, None]
        keep = (steps >= start - 1) & (steps < start - 1 + lengths[:, None])
        logits = self.llm.logits(torch.cat([beginning, padded], 1), seen, keep).float()
        found = torch.zeros_like(lattice.log_posterior)
        inside = torch.arange(length, device=padded.device) < lengths[:, None]
        candidates = lattice.ids[inside]
        found[inside] = logits.gather(1, candidates) - logits.logsumexp(-1, keepdim=True) - self.prior[candidates]
        return found

    def _beginning(self, dtype: torch.dtype) -> Tensor:
        """Soft prompt and public prefix, (1, k, b)."""
        parts = [] if self.soft_prompt is None else [self.soft_prompt(1, dtype)]
        if self.prefix_ids:
            parts.append(self.llm.embed(torch.tensor([self.prefix_ids], device=self.llm.device)).to(dtype))
        return torch.cat(parts, 1)


@torch.no_grad()
def tune(
    attack: ServerModel, method: Method, sequences: Sequence[Sequence[int]], seed: int = 0
) -> list[dict[str, float]]:
    """Set the attack's share to the one that reads most of public text like the text under attack.

    Args:
        attack: Changed in place.
        method: The front-end under attack.
        sequences: Public token ids.
        seed: Of the method's noise.

    Returns:
        Every trial: ``share``, ``hits`` and ``n``.
    """
    parts = [torch.tensor(ids, device=attack.llm.device) for ids in sequences if ids]
    noise = [stream("tuning noise", seed, i, device=attack.llm.device) for i in range(len(parts))]
    release = Release.concatenate([method.release(ids[None], own) for ids, own in zip(parts, noise, strict=True)])
    truth, lengths = torch.cat(parts), torch.tensor([len(ids) for ids in parts])
    found = [torch.cat(best)[:, 0] for best in zip(*attack.guesses(method, release, lengths, SHARES), strict=True)]
    hits = [int((best == truth).sum()) for best in found]
    attack.share = SHARES[max(range(len(SHARES)), key=lambda i: hits[i])]
    return [{"share": share, "hits": count, "n": len(truth)} for share, count in zip(SHARES, hits, strict=True)]
