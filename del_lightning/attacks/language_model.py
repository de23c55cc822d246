"""Embedding inversion with the context: what language models expect, and what every release says exactly.

The Bayes-optimal attack looks at one position at a time. A prompt is text, so its neighbours tell much about a token.
Here the private tokens are a sequence under a prior, and ln Pr(release | token) stays exact:

1. *Exact pass.* Under a bigram prior (:class:`Bigrams`) two passes give the posterior of every position, and the
   look-ahead ln Pr(releases to the right | token). Without bigrams it is the Bayes-optimal posterior of one position.
2. *Beam search.* From left to right a beam's score grows by

       ln Pr(K_t | w) + ln[lambda p_LM(w | beam) + (1 - lambda) p(w | last token)],

   p_LM the frozen language model behind a public prefix and, optionally, a soft prompt trained on public text of the
   domain; p the bigrams, or unigrams without them. Beams are kept by their score plus the look-ahead.
3. *Two guesses.* The best whole sequence, and position by position the most probable token under a mixture of the
   exact posterior and that of the final beams, which know the language model's view of both sides.

The mixing is tuned on public text (:func:`tune`). A language model that reads mostly wrong words expects wrong ones,
so at strict privacy its weight goes to 0 and the exact posterior remains: with no bigrams either, the Bayes-optimal
attack itself. The beam search follows BeamClean (arXiv 2505.13758), which estimates the noise; here it is known.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from del_lightning.bigrams import Bigrams
from del_lightning.errors import ConfigError
from del_lightning.lattices import CANDIDATES, Lattice, lattices
from del_lightning.llm import Continuations, FrozenLLM
from del_lightning.methods import Method, Release
from del_lightning.prompt import SoftPrompt
from del_lightning.seeding import stream

SEQUENCE, MARGINALS = "LM prior, sequence", "LM prior, marginals"
"""Names of the two guesses."""

MARGIN = 10.0
"""Beams this many nats below the best are given up: each has less than 5e-5 of its weight."""


@dataclass(frozen=True)
class Mixture:
    """How much the language model counts.

    Attributes:
        weight: lambda, its share in the prior of the beam search, 0 to 1; 0 never runs it.
        temperature: Its logits are divided by this; > 0.
        share: Share of the final beams in the marginals, 0 to 1; the rest is the exact posterior's.

    Raises:
        ConfigError: A number is out of range.
    """

    weight: float = 0.8
    temperature: float = 1.0
    share: float = 0.3

    def __post_init__(self) -> None:
        for name in ("weight", "share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"`{name}` must be between 0 and 1, got {getattr(self, name)!r}")
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"`temperature` must be a positive number, got {self.temperature!r}")


class LanguageModelPrior:
    """The contextual attack; see the module's docstring. Called like any :class:`del_lightning.attacks.Attack`.

    Args:
        llm: Frozen language model, on the method's device.
        prior: (V,) ln Pr(token), unigram.
        prefix_ids: Public tokens in front of the private ones; may be empty behind a soft prompt.
        soft_prompt: In front of everything, trained on clean public text of the domain; None runs without.
        bigrams: Of public text of the domain; None leaves the exact pass without context.
        mixture: How much the language model counts; see :func:`tune`.
        beam: Sequences kept at every position.
        batch: Sequences attacked together; bounds the memory, batch x beam rows of V logits.

    Raises:
        ConfigError: An argument is impossible.
    """

    def __init__(
        self,
        llm: FrozenLLM,
        prior: Tensor,
        *,
        prefix_ids: Sequence[int],
        soft_prompt: SoftPrompt | None = None,
        bigrams: Bigrams | None = None,
        mixture: Mixture | None = None,
        beam: int = 20,
        batch: int = 8,
    ) -> None:
        for name, count in (("beam", beam), ("batch", batch)):
            if count < 1:
                raise ConfigError(f"`{name}` must be at least 1, got {count!r}")
        if prior.shape != (llm.vocab_size,):
            raise ConfigError(f"`prior` must have shape ({llm.vocab_size},), got {tuple(prior.shape)}")
        if bigrams is not None and bigrams.size != len(prior):
            raise ConfigError(f"`bigrams` must be of a vocabulary of {len(prior)} tokens, got {bigrams.size}")
        if not prefix_ids and soft_prompt is None:
            raise ConfigError("`prefix_ids` must hold a token when there is no soft prompt, got none")
        self.llm, self.prior, self.prefix_ids, self.soft_prompt = llm, prior, list(prefix_ids), soft_prompt
        self.bigrams, self.mixture, self.beam, self.batch = bigrams, mixture or Mixture(), beam, batch

    def using(self, mixture: Mixture, bigrams: Bigrams | None) -> Self:
        """The same attack with another mixture and with these bigrams or none."""
        return type(self)(
            self.llm,
            self.prior,
            prefix_ids=self.prefix_ids,
            soft_prompt=self.soft_prompt,
            bigrams=bigrams,
            mixture=mixture,
            beam=self.beam,
            batch=self.batch,
        )

    @torch.no_grad()
    def __call__(self, method: Method, release: Release, lengths: Tensor, top_k: int = 1) -> Mapping[str, Tensor]:
        """Guess every token: name -> (N, top_k) ids, best first.

        The sequence fills the first column only; the further ones rank the other tokens as the marginals do.

        Args:
            method: The front-end that made the release.
            release: (1, N, ...): the tokens of S sequences one after the other.
            lengths: (S,) tokens of each sequence; they sum to N.
            top_k: Guesses a token, 1 to the smaller of V and :data:`CANDIDATES`.

        Raises:
            ConfigError: Lengths or top_k do not fit, or the method has another vocabulary.
        """
        _check_top_k(top_k, len(self.prior))
        guesses = [
            (posterior.sequence_first(top_k, self.mixture.share), posterior.best(top_k, self.mixture.share))
            for posterior in self.posteriors(method, release, lengths)
        ]
        sequence, marginals = (torch.cat(parts) for parts in zip(*guesses, strict=True))
        return {SEQUENCE: sequence, MARGINALS: marginals}

    @torch.no_grad()
    def posteriors(self, method: Method, release: Release, lengths: Tensor) -> "Iterator[Posterior]":
        """What is known after the search, for every batch of sequences; arguments as in a call."""
        for lattice, part in lattices(method, release, lengths, self.prior, self.bigrams, self.batch):
            yield self._decode(lattice, part)

    def _decode(self, lattice: "Lattice", lengths: Tensor) -> "Posterior":
        """Positions (n,) of all sequences of a lattice."""
        if self.mixture.weight == 0 and self.bigrams is None:
            sequence, beams = lattice.log_posterior.argmax(-1), None  # independent positions need no search
        else:
            choices, scores = search(lattice, lengths, self._context(), self.beam)
            best = scores.argmax(1)
            sequence = choices[torch.arange(len(best), device=best.device), best]
            # Without the language model the exact posterior knows all that the beams know, and more.
            beams = None if self.mixture.weight == 0 else beam_posterior(choices, scores, lattice.ids.shape[2])
        real = _real(lattice, lengths)
        rows = (lattice.ids[real], lattice.log_posterior[real], sequence[real])
        return Posterior(*rows, None if beams is None else beams[real])

    def _context(self) -> "Context":
        return Context(self.prior, self.bigrams, self.mixture, self._beginning() if self.mixture.weight else None)

    def _beginning(self) -> Continuations:
        parts = [] if self.soft_prompt is None else [self.soft_prompt(1, self.llm.dtype)[0]]
        parts += [self.llm.embed(torch.tensor(self.prefix_ids, device=self.llm.device))] if self.prefix_ids else []
        return Continuations(self.llm, torch.cat(parts))


class BigramPrior:
    """The exact pass alone, without any language model: cheap enough to run against every method.

    Args:
        prior: (V,) ln Pr(token), unigram.
        bigrams: Of public text of the domain.
        batch: Sequences attacked together; bounds the memory.
    """

    name = "bigram prior"

    def __init__(self, prior: Tensor, bigrams: Bigrams, batch: int = 8) -> None:
        self.prior, self.bigrams, self.batch = prior, bigrams, batch

    @torch.no_grad()
    def __call__(self, method: Method, release: Release, lengths: Tensor, top_k: int = 1) -> Mapping[str, Tensor]:
        """Guess every token: name -> (N, top_k) ids, best first; arguments as of :class:`LanguageModelPrior`.

        Raises:
            ConfigError: Lengths or top_k do not fit, or the method has another vocabulary.
        """
        _check_top_k(top_k, len(self.prior))
        guesses = []
        for lattice, part in lattices(method, release, lengths, self.prior, self.bigrams, self.batch):
            real = _real(lattice, part)
            best = lattice.log_posterior[real].topk(top_k).indices
            guesses.append(lattice.ids[real].gather(1, best))
        return {self.name: torch.cat(guesses)}


def _check_top_k(top_k: int, vocabulary: int) -> None:
    most = min(CANDIDATES, vocabulary)
    if not 1 <= top_k <= most:
        raise ConfigError(f"`top_k` must be between 1 and {most}, got {top_k!r}")


@dataclass(frozen=True)
class Posterior:
    """What an attack knows about n positions, over K candidates each.

    Attributes:
        ids: (n, K) candidate tokens.
        log_exact: (n, K) their log posterior of the exact pass.
        sequence: (n,) number of the candidate in the best sequence.
        beams: (n, K) posterior of the final beams; None where the exact pass knows all.
    """

    ids: Tensor
    log_exact: Tensor
    sequence: Tensor
    beams: Tensor | None

    def marginals(self, share: float) -> Tensor:
        """ln of the mixture of exact posterior and final beams, (n, K)."""
        if self.beams is None or share == 0:
            return self.log_exact
        shares = torch.tensor([1 - share, share], device=self.ids.device).log()
        return torch.logaddexp(self.log_exact + shares[0], self.beams.log() + shares[1])

    def best(self, top_k: int, share: float) -> Tensor:
        """(n, top_k) tokens by :meth:`marginals`."""
        return self.ids.gather(1, self.marginals(share).topk(top_k).indices)

    def sequence_first(self, top_k: int, share: float) -> Tensor:
        """(n, top_k) tokens: the best sequence's, then the others by :meth:`marginals`."""
        scores = self.marginals(share).scatter(1, self.sequence[:, None], torch.inf)
        return self.ids.gather(1, scores.topk(top_k).indices)


def _real(lattice: Lattice, lengths: Tensor) -> Tensor:
    """(S, T) which positions hold a token."""
    return torch.arange(lattice.ids.shape[1], device=lengths.device) < lengths[:, None]


# --- beam search ---------------------------------------------------------------------------------------------------


class Context:
    """The prior of a next token given a beam: language model and bigrams, or unigrams, mixed.

    Args:
        prior: (V,) ln Pr(token).
        bigrams: Take the prior's place behind the first token; None leaves it.
        mixture: Weight and temperature of the language model.
        language: It, at the beginning that every beam shares; None where its weight is 0.
    """

    def __init__(
        self, prior: Tensor, bigrams: Bigrams | None, mixture: Mixture, language: Continuations | None
    ) -> None:
        self._prior, self._bigrams, self._mixture, self._language = prior, bigrams, mixture, language
        self._last: Tensor | None = None

    def extend(self, parents: Tensor, tokens: Tensor) -> None:
        """Row r becomes the old row ``parents[r]`` followed by ``tokens[r]``; both (R,)."""
        self._last = tokens
        if self._language is not None:
            self._language.extend(parents, tokens)

    def log_prob(self, words: Tensor) -> Tensor:
        """ln of the mixed probability of the tokens ``words`` (R, K) behind each row: (R, K) float32."""
        floor = (
            self._prior[words]
            if self._bigrams is None or self._last is None
            else self._bigrams.log_prob(self._last, words)
        )
        if self._language is None:
            return floor
        logits = self._language.logits.float() / self._mixture.temperature
        log_lm = logits.expand(len(words), -1).gather(1, words) - logits.logsumexp(-1, keepdim=True)
        shares = torch.tensor([self._mixture.weight, 1 - self._mixture.weight], device=words.device).log()
        return torch.logaddexp(log_lm + shares[0], floor + shares[1])


def search(lattice: Lattice, lengths: Tensor, context: Context, beam: int) -> tuple[Tensor, Tensor]:
    """Beam search over the candidates of S sequences, all in step.

    Args:
        lattice: Candidates and what their releases say.
        lengths: (S,) positions of each sequence.
        context: Prior of the next token; consumed.
        beam: Sequences kept at every position.

    Returns:
        Candidate numbers (S, beam, T) and joint log scores (S, beam); an unused beam scores -inf.
    """
    ids, sequences = lattice.ids, len(lengths)
    scores = torch.full((sequences, beam), -torch.inf, device=ids.device)
    scores[:, 0] = 0.0
    choices = torch.zeros(sequences, beam, ids.shape[1], dtype=torch.long, device=ids.device)
    # Where the context's rows belong; all sequences share its one row at first.
    owner, slot = torch.arange(sequences, device=ids.device), torch.zeros_like(lengths)
    row = torch.zeros(sequences, beam, dtype=torch.long, device=ids.device)
    for t in range(ids.shape[1]):
        grown = torch.full((sequences, beam, ids.shape[2]), -torch.inf, device=ids.device)
        grown[owner, slot] = context.log_prob(ids[owner, t]) + lattice.log_likelihood[owner, t]
        grown += scores[..., None]
        parent, choice, kept = _select(grown, lattice.log_future[:, t], beam)
        running = t < lengths
        scores = torch.where(running[:, None], kept, scores)
        moved = choices.gather(1, parent[..., None].expand_as(choices))
        moved[:, :, t] = choice
        choices = torch.where(running[:, None, None], moved, choices)
        owner, slot = ((scores > -torch.inf) & (t + 1 < lengths)[:, None]).nonzero(as_tuple=True)
        if len(owner):
            context.extend(row[owner, parent[owner, slot]], ids[owner, t, choice[owner, slot]])
        row[owner, slot] = torch.arange(len(owner), device=ids.device)
    return choices, scores


def _select(grown: Tensor, log_future: Tensor, beam: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best continuations of each sequence, judged with the look-ahead.

    Args:
        grown: (S, beam, K) scores of every beam with every candidate.
        log_future: (S, K) look-ahead of the candidates.
        beam: How many to keep.

    Returns:
        Beam, candidate and score of each, (S, beam), best first; beyond :data:`MARGIN` the score is -inf.
    """
    judged = (grown + log_future[:, None]).flatten(1)
    value, place = judged.topk(beam)
    kept = grown.flatten(1).gather(1, place).masked_fill(value < value[:, :1] - MARGIN, -torch.inf)
    return place // grown.shape[2], place % grown.shape[2], kept


def beam_posterior(choices: Tensor, scores: Tensor, candidates: int) -> Tensor:
    """Probability of every candidate under the normalised beams.

    Args:
        choices: (S, beam, T) candidate numbers.
        scores: (S, beam) joint log scores.
        candidates: K.

    Returns:
        (S, T, K).
    """
    weights = scores.softmax(1)
    posterior = torch.zeros(*choices[:, 0].shape, candidates, device=scores.device)
    for chosen, weight in zip(choices.unbind(1), weights.unbind(1), strict=True):  # one at a time: repeatable sums
        posterior.scatter_add_(2, chosen[..., None], weight[:, None, None].expand(*chosen.shape, 1))
    return posterior


# --- tuning --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def tune(
    attack: LanguageModelPrior,
    method: Method,
    token_ids: Tensor,
    lengths: Tensor,
    *,
    weights: Sequence[float] = (0.5, 0.8),
    temperatures: Sequence[float] = (1.0,),
    shares: Sequence[float] = (0.1, 0.3, 0.5),
    seed: int = 0,
) -> tuple[LanguageModelPrior, list[dict[str, float | bool]]]:
    """Fit the mixture to one method at one privacy level, on public text like the text under attack.

    The exact attacks, Bayes-optimal and the exact pass with bigrams, stand against one search for each weight and
    temperature, whose shares come free. The best search must read more tokens than the best exact attack by a
    standard error of the difference on these tokens: luck does not displace what is exact and cheap. Either way the
    result reads at least as many of these tokens as the Bayes-optimal attack.

    Args:
        attack: Its mixture is replaced; it is used with its bigrams and without.
        method: The front-end under attack.
        token_ids: (N,) tokens of S public sequences one after the other.
        lengths: (S,) tokens of each.
        weights: Of the language model in the search, besides 0.
        temperatures: Of the language model.
        shares: Of the final beams in the marginals.
        seed: Of the method's noise.

    Returns:
        The attack with the mixture chosen, and every trial in order: ``bigrams``, ``weight``, ``temperature``,
        ``share``, ``hits`` of the marginals and ``n``.
    """
    parts = torch.split(token_ids, lengths.tolist())
    noise = [stream("tuning noise", seed, i, device=token_ids.device) for i in range(len(parts))]
    released = [method.release(ids[None], own) for ids, own in zip(parts, noise, strict=True)]
    release = Release.concatenate(released)
    alone = [None] if attack.bigrams is None else [None, attack.bigrams]
    trials = [(attack.using(Mixture(weight=0.0, share=0.0), chain), (0.0,)) for chain in alone]
    searches = [attack.using(Mixture(weight, t), attack.bigrams) for weight in weights for t in temperatures]
    results = [
        (trial.using(replace(trial.mixture, share=share), trial.bigrams), guess == token_ids)
        for trial, tried in [*trials, *((search, shares) for search in searches)]
        for share, guess in zip(tried, _read(trial, method, release, lengths, tried), strict=True)
    ]
    return _choose(results), [
        {"bigrams": tuned.bigrams is not None, **vars(tuned.mixture), "hits": int(hits.sum()), "n": len(hits)}
        for tuned, hits in results
    ]


def _read(
    attack: LanguageModelPrior, method: Method, release: Release, lengths: Tensor, shares: Sequence[float]
) -> Iterator[Tensor]:
    """Best token of every position (N,) by the marginals, for each share; one search serves all."""
    found = [[known.best(1, share)[:, 0] for share in shares] for known in attack.posteriors(method, release, lengths)]
    return (torch.cat(parts) for parts in zip(*found, strict=True))


def _choose(results: Sequence[tuple[LanguageModelPrior, Tensor]]) -> LanguageModelPrior:
    """The trial with most hits (N,), of equal ones the first; a search must win by a standard error."""
    exact, exact_hits = max((r for r in results if not r[0].mixture.weight), key=lambda r: int(r[1].sum()))
    best, hits = max(results, key=lambda r: int(r[1].sum()))
    gain, differing = int(hits.sum() - exact_hits.sum()), int((hits != exact_hits).sum())
    return best if gain > math.sqrt(differing) else exact
