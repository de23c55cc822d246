import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from del_lightning.attacks import language_model as lm
from del_lightning.attacks.language_model import (
    MARGINALS,
    SEQUENCE,
    BigramPrior,
    LanguageModelPrior,
    Mixture,
    _real,
    tune,
)
from del_lightning.bigrams import Bigrams
from del_lightning.data.tokens import Ragged
from del_lightning.errors import ConfigError
from del_lightning.lattices import build_lattice, lattices
from del_lightning.llm import FrozenLLM
from del_lightning.methods import Clean, DPForward, MeanEmbedding, Method, Release
from del_lightning.privacy import PrivacyStatement, StochasticQuantizer
from del_lightning.prompt import SoftPrompt

Factory = Callable[..., FrozenLLM]
PREFIX = [5, 17, 40]
LENGTHS = torch.tensor([4, 2, 5])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Toy(Method):
    """The quantizer on rows of a random table."""

    name = "toy"

    def __init__(self, vocabulary: int, mu: float, dim: int = 4) -> None:
        super().__init__(2 * torch.rand(vocabulary, dim, generator=seeded(1)) - 1)
        self.quantizer = StochasticQuantizer.from_mu(mu, dim, 4, 1.0)
        self.most = 0

    def release(self, token_ids: Tensor, generator: torch.Generator | None = None) -> Release:
        return Release(self.quantizer.encode(self.embedding_table[token_ids], generator))

    def restore(self, release: Release) -> Tensor:
        return self.quantizer.decode(release.payload)

    def log_likelihood(self, release: Release) -> Tensor:
        self.most = max(self.most, release.tokens)
        return self.quantizer.log_likelihood(release.payload, self.embedding_table)

    def statement(self, sequence_tokens: int, delta: float = 1e-5) -> PrivacyStatement:
        return PrivacyStatement.none(self.name, "")

    def payload_bits(self, release: Release) -> int:
        return release.payload.numel() * 4


def markov(vocabulary: int, seed: int = 0, sharpness: float = 3.0) -> Tensor:
    """Transition probabilities (V, V) of a made-up language."""
    return (sharpness * torch.randn(vocabulary, vocabulary, generator=seeded(seed))).softmax(-1)


def text(transitions: Tensor, length: int, seed: int = 0) -> list[int]:
    generator, tokens = seeded(seed), [0]
    while len(tokens) < length:
        tokens.append(int(torch.multinomial(transitions[tokens[-1]], 1, generator=generator)))
    return tokens


def corpus(tokens: list[int]) -> Ragged:
    return Ragged(np.array(tokens, dtype=np.int32), np.array([0, len(tokens)]))


def spread(vocabulary: int, seed: int = 2) -> Tensor:
    return torch.randn(vocabulary, generator=seeded(seed)).log_softmax(-1)


class Tiny:
    """One attack on three released sequences of the tiny tokenizer's vocabulary."""

    def __init__(self, llm: FrozenLLM, mu: float = 12.0) -> None:
        self.llm, self.size = llm, llm.vocab_size
        self.prior = spread(self.size)
        self.method = Toy(self.size, mu)
        self.truth = torch.randint(0, self.size, (int(LENGTHS.sum()),), generator=seeded(3))
        self.release = self.method.release(self.truth[None], seeded(4))
        self.bigrams = Bigrams(corpus(torch.randint(0, self.size, (4000,), generator=seeded(5)).tolist()), self.prior)

    def attack(self, bigrams: bool = False, **settings: object) -> LanguageModelPrior:
        chosen = {"prefix_ids": PREFIX, "bigrams": self.bigrams if bigrams else None} | settings
        return LanguageModelPrior(self.llm, self.prior, **chosen)  # type: ignore[arg-type]

    def bayes(self) -> Tensor:
        return self.method.log_likelihood(self.release)[0] + self.prior


@pytest.fixture
def tiny(tiny_llm: Factory) -> Tiny:
    return Tiny(tiny_llm())


# --- the exact pass ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [1, 5, 40])
def test_without_weight_and_bigrams_both_guesses_are_bayes_optimal(tiny: Tiny, top_k: int) -> None:
    expected = tiny.bayes().topk(top_k).indices
    for share in (0.0, 0.7):
        found = tiny.attack(mixture=Mixture(weight=0.0, share=share))(tiny.method, tiny.release, LENGTHS, top_k)
        assert torch.equal(found[MARGINALS], expected)
        assert torch.equal(found[SEQUENCE], expected)


def test_the_exact_pass_sees_what_bayes_sees_of_methods_that_treat_sequences_as_a_whole() -> None:
    table = torch.randn(40, 6, generator=seeded(1)) * torch.linspace(0.4, 2.0, 40)[:, None]
    method = DPForward(table, torch.ones(40), epsilon=60.0, clip=4.0)
    rows = [torch.randint(0, 40, (1, length), generator=seeded(length)) for length in (3, 90, 60)]
    release = Release.concatenate([method.release(row, seeded(9)) for row in rows])
    lengths, prior = torch.tensor([3, 90, 60]), spread(40)
    lattice = torch.cat(
        [
            lattice.log_posterior.gather(2, lattice.ids.argsort(2))[_real(lattice, part)]
            for lattice, part in lattices(method, release, lengths, prior, None, 2)
        ]
    )
    exact = (method.log_likelihood(release)[0] + prior).log_softmax(-1)
    torch.testing.assert_close(lattice, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("top_k", [1, 5])
def test_bigrams_alone_are_the_attack_without_its_language_model(tiny: Tiny, top_k: int) -> None:
    whole = tiny.attack(bigrams=True, mixture=Mixture(weight=0.0, share=0.0))
    alone = BigramPrior(tiny.prior, tiny.bigrams, batch=2)
    expected = whole(tiny.method, tiny.release, LENGTHS, top_k)[MARGINALS]
    found = alone(tiny.method, tiny.release, LENGTHS, top_k)
    assert list(found) == ["bigram prior"]
    assert torch.equal(found["bigram prior"], expected)
    with pytest.raises(ConfigError, match="`top_k` must be between 1 and"):
        alone(tiny.method, tiny.release, LENGTHS, 0)


def enumerate_sequences(likelihood: Tensor, prior: Tensor, bigrams: Bigrams) -> tuple[Tensor, Tensor]:
    """All sequences (n, T) and their joint log probabilities (n,) with the release, term by term."""
    steps, size = likelihood.shape
    table = bigrams.log_prob(torch.arange(size), torch.arange(size).expand(size, -1)).double()
    every = torch.tensor(list(itertools.product(range(size), repeat=steps)))
    score = prior.double()[every[:, 0]]
    for t in range(steps):
        score = score + likelihood.double()[t, every[:, t]]
        score = score + (table[every[:, t - 1], every[:, t]] if t else 0)
    return every, score


def test_exact_pass_equals_enumeration() -> None:
    """V = 6, sequences of 4, 1 and 3 tokens side by side; marginals, and the look-ahead of every position."""
    size, lengths = 6, torch.tensor([4, 1, 3])
    method, prior = Toy(size, mu=4.0), spread(size)
    bigrams = Bigrams(corpus(text(markov(size), 300)), prior)
    release = method.release(torch.randint(0, size, (1, 8), generator=seeded(7)), seeded(8))
    lattice = build_lattice(method, release, lengths, prior, bigrams)
    likelihood = method.log_likelihood(release)[0].split(lengths.tolist())
    for s, own in enumerate(likelihood):
        every, score = enumerate_sequences(own, prior, bigrams)
        weights = score.softmax(0)
        for t in range(len(own)):
            expected = torch.zeros(size, dtype=torch.float64).index_add_(0, every[:, t], weights)
            found = torch.zeros(size).scatter(0, lattice.ids[s, t], lattice.log_posterior[s, t].exp())
            torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-4)
    assert (lattice.log_future[1] == 0).all()
    assert (lattice.log_future[0, 3] == 0).all()
    assert lattice.log_future[0, 2].std() > 0.1


def test_bigram_beam_search_finds_the_best_of_all_sequences(tiny_llm: Factory) -> None:
    size, lengths = 300, torch.tensor([3, 3])
    method, prior = Toy(size, mu=8.0), spread(size)
    bigrams = Bigrams(corpus(torch.randint(0, size, (3000,), generator=seeded(5)).tolist()), prior)
    release = method.release(torch.randint(0, size, (1, 6), generator=seeded(9)), seeded(10))
    attack = LanguageModelPrior(
        tiny_llm(), prior, prefix_ids=PREFIX, bigrams=bigrams, mixture=Mixture(weight=0.0), beam=100
    )
    found = attack(method, release, lengths)[SEQUENCE][:, 0].split(3)
    everything = torch.arange(size)
    table = bigrams.log_prob(everything, everything.expand(size, -1))
    for own, sequence in zip(method.log_likelihood(release)[0].split(3), found, strict=True):
        best, origins = prior + own[0], []
        for step in own[1:]:  # Viterbi
            best, origin = (best[:, None] + table).max(0)
            best, origins = best + step, [*origins, origin]
        path = [int(best.argmax())]
        for origin in reversed(origins):
            path = [int(origin[path[0]]), *path]
        assert sequence.tolist() == path


# --- the search with the language model ----------------------------------------------------------------------------


def score_of(tiny: Tiny, sequence: Tensor, start: int, attack: LanguageModelPrior) -> float:
    """Joint log score of one sequence by the definition: no cache, no batch, no candidates."""
    ids = torch.tensor([PREFIX + sequence.tolist()])
    embeddings = tiny.llm.embed(ids)
    if attack.soft_prompt is not None:
        embeddings = torch.cat([attack.soft_prompt(1, embeddings.dtype).detach(), embeddings], 1)
    logits = tiny.llm.model(inputs_embeds=embeddings).logits[0, -len(sequence) - 1 : -1].float()
    log_lm = (logits / attack.mixture.temperature).log_softmax(-1)
    likelihood = tiny.method.log_likelihood(tiny.release)[0, start : start + len(sequence)]
    likelihood = likelihood - likelihood.amax(-1, keepdim=True)
    total = 0.0
    for t, word in enumerate(sequence.tolist()):
        floor = tiny.prior[word]
        if attack.bigrams is not None and t:
            floor = attack.bigrams.log_prob(sequence[t - 1 : t], sequence[t : t + 1, None])[0, 0]
        weight = attack.mixture.weight
        total += float((weight * log_lm[t, word].exp() + (1 - weight) * floor.exp()).log() + likelihood[t, word])
    return total


@pytest.mark.parametrize("bigrams", [False, True])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("weight", [0.6, 1.0])
def test_beams_have_the_scores_of_the_definition(tiny: Tiny, bigrams: bool, soft: bool, weight: float) -> None:
    prompt = SoftPrompt(torch.randn(2, tiny.llm.hidden_size, generator=seeded(6))) if soft else None
    attack = tiny.attack(bigrams, mixture=Mixture(weight=weight, temperature=1.3), soft_prompt=prompt, beam=7)
    lattice = build_lattice(tiny.method, tiny.release, LENGTHS, tiny.prior, attack.bigrams)
    choices, scores = lm.search(lattice, LENGTHS, attack._context(), beam=7)
    starts = (LENGTHS.cumsum(0) - LENGTHS).tolist()
    checked = 0
    for s, (start, length) in enumerate(zip(starts, LENGTHS.tolist(), strict=True)):
        assert len({tuple(row) for row in choices[s, :, :length][scores[s] > -torch.inf].tolist()}) > 1
        for chosen, score in zip(choices[s], scores[s].tolist(), strict=True):
            if score > -torch.inf:
                sequence = lattice.ids[s, range(length), chosen[:length]]
                assert score == pytest.approx(score_of(tiny, sequence, start, attack), abs=1e-3)
                checked += 1
    assert checked > 10


def test_a_wide_beam_finds_the_best_sequence_of_all(tiny: Tiny) -> None:
    lengths = torch.tensor([2, 2])
    attack = tiny.attack(mixture=Mixture(weight=0.9), beam=300)
    tiny.release = Release(tiny.release.payload[:, :4])
    found = attack(tiny.method, tiny.release, lengths)[SEQUENCE][:, 0].split(2)
    for start, sequence in zip((0, 2), found, strict=True):
        likelihood = tiny.method.log_likelihood(tiny.release)[0, start : start + 2]
        first = torch.cat([torch.tensor(PREFIX).expand(300, -1), torch.arange(300)[:, None]], 1)
        log_lm = tiny.llm.model(input_ids=first).logits[:, -2:].float().softmax(-1)
        prior = 0.9 * log_lm + 0.1 * tiny.prior.exp()
        joint = (prior[0, 0].log() + likelihood[0])[:, None] + prior[:, 1].log() + likelihood[1]
        best = int(joint.argmax())
        assert sequence.tolist() == [best // 300, best % 300]


def test_a_wider_beam_never_scores_worse_on_these(tiny_llm: Factory) -> None:
    tiny = Tiny(tiny_llm())
    attack = tiny.attack(mixture=Mixture(weight=0.9))
    improved = False
    for seed in range(6):
        release = tiny.method.release(tiny.truth[None], seeded(seed))
        lattice = build_lattice(tiny.method, release, LENGTHS, tiny.prior, None)
        best = [lm.search(lattice, LENGTHS, attack._context(), beam)[1].amax(1) for beam in (1, 4, 30)]
        assert (best[0] <= best[1] + 1e-5).all()
        assert (best[1] <= best[2] + 1e-5).all()
        improved |= bool((best[0] < best[2] - 0.01).any())
    assert improved


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_batches_and_repetition_change_nothing(tiny: Tiny, batch: int) -> None:
    attack = tiny.attack(bigrams=True, beam=6, mixture=Mixture(weight=0.7))
    expected = attack(tiny.method, tiny.release, LENGTHS, 4)
    attack.batch = batch
    for _ in range(2):
        found = attack(tiny.method, tiny.release, LENGTHS, 4)
        assert all(torch.equal(found[name], expected[name]) for name in (SEQUENCE, MARGINALS))


def test_sequence_stands_first_and_the_others_follow_the_marginals(tiny: Tiny) -> None:
    attack = tiny.attack(beam=5, mixture=Mixture(weight=0.95, share=0.0))
    found = attack(tiny.method, tiny.release, LENGTHS, 6)
    sequence, marginals = found[SEQUENCE], found[MARGINALS]
    assert (sequence[:, 0] != marginals[:, 0]).any()
    for ours, ranking in zip(sequence.tolist(), marginals.tolist(), strict=True):
        assert ours[1:] == [token for token in ranking if token != ours[0]][:5]


def test_marginals_mix_the_exact_posterior_with_the_beams(tiny: Tiny) -> None:
    attack = tiny.attack(beam=9, mixture=Mixture(weight=0.8, share=0.4))
    posterior = next(attack.posteriors(tiny.method, tiny.release, LENGTHS))
    assert posterior.beams is not None
    torch.testing.assert_close(posterior.beams.sum(1), torch.ones(11))
    mixed = posterior.marginals(0.4).exp()
    torch.testing.assert_close(mixed, 0.6 * posterior.log_exact.exp() + 0.4 * posterior.beams)
    torch.testing.assert_close(posterior.marginals(1.0).exp(), posterior.beams)
    assert (posterior.beams > 0).sum() > 11


def test_beam_posterior_sums_weights_by_token() -> None:
    choices = torch.tensor([[[0, 1], [0, 2], [3, 1]]])
    scores = torch.tensor([[0.5, 0.3, 0.2]]).log()
    expected = torch.tensor([[[0.8, 0.0, 0.0, 0.2], [0.0, 0.7, 0.3, 0.0]]])
    torch.testing.assert_close(lm.beam_posterior(choices, scores, 4), expected)
    unused = torch.tensor([[0.0, -torch.inf, -torch.inf]])
    assert lm.beam_posterior(choices, unused, 4)[0, :, [0, 1]].tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_a_noise_free_release_is_read_whole(tiny_llm: Factory) -> None:
    llm = tiny_llm()
    truth = torch.randint(0, llm.vocab_size, (11,), generator=seeded())
    method = Clean(llm.embedding_table())
    prior = spread(llm.vocab_size)
    bigrams = Bigrams(corpus(truth.tolist()), prior)
    attack = LanguageModelPrior(llm, prior, prefix_ids=PREFIX, bigrams=bigrams, beam=4)
    for guess in attack(method, method.release(truth[None]), LENGTHS).values():
        assert torch.equal(guess[:, 0], truth)


def test_an_empty_release_leaves_the_language_model_alone(tiny_llm: Factory) -> None:
    llm = tiny_llm()
    method = MeanEmbedding(llm.embedding_table())
    attack = LanguageModelPrior(llm, spread(llm.vocab_size), prefix_ids=PREFIX, mixture=Mixture(weight=1.0), beam=1)
    release = method.release(torch.zeros(1, 6, dtype=torch.long))
    found = attack(method, release, torch.tensor([6]))[SEQUENCE][:, 0]
    ids = torch.tensor([PREFIX])
    for _ in range(6):
        ids = torch.cat([ids, llm.model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
    assert found.tolist() == ids[0, len(PREFIX) :].tolist()


def test_context_lets_an_attack_read_more(tiny_llm: Factory) -> None:
    """A made-up language whose bigrams are known: the exact pass reads clearly more than single positions tell."""
    llm = tiny_llm()
    transitions = markov(llm.vocab_size, sharpness=4.0)
    public, private = text(transitions, 20_000, seed=1), torch.tensor(text(transitions, 400, seed=2))
    counts = torch.bincount(torch.tensor(public), minlength=llm.vocab_size) + 1.0
    prior = (counts / counts.sum()).log()
    method = Toy(llm.vocab_size, mu=9.0)
    release = method.release(private[None], seeded())
    attack = LanguageModelPrior(
        llm, prior, prefix_ids=PREFIX, bigrams=Bigrams(corpus(public), prior), mixture=Mixture(weight=0.0)
    )
    lengths = torch.full((20,), 20)
    found = attack(method, release, lengths)
    rates = {name: float((guess[:, 0] == private).float().mean()) for name, guess in found.items()}
    bayes = float(((method.log_likelihood(release)[0] + prior).argmax(-1) == private).float().mean())
    assert rates[MARGINALS] > bayes + 0.1
    assert rates[SEQUENCE] > bayes + 0.1


def test_few_candidates_and_likelihoods_are_held(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("del_lightning.lattices.CANDIDATES", 50)
    monkeypatch.setattr("del_lightning.lattices.POSITIONS", 4)
    attack = tiny.attack(bigrams=True, beam=5, mixture=Mixture(weight=0.5))
    tiny.method.most = 0
    found = attack(tiny.method, tiny.release, LENGTHS, 50)
    assert tiny.method.most <= 4
    assert found[MARGINALS].shape == (11, 50)
    monkeypatch.setattr("del_lightning.lattices.CANDIDATES", 300)
    monkeypatch.setattr("del_lightning.lattices.POSITIONS", 128)
    assert torch.equal(attack(tiny.method, tiny.release, LENGTHS, 1)[SEQUENCE], found[SEQUENCE][:, :1])
    with pytest.raises(ConfigError, match="`top_k` must be between 1 and 300, got 301"):
        attack(tiny.method, tiny.release, LENGTHS, 301)


# --- tuning --------------------------------------------------------------------------------------------------------


def test_tuning_reads_at_least_as_much_as_bayes_and_as_the_exact_pass(tiny: Tiny) -> None:
    best, evidence = tune(tiny.attack(True, beam=4), tiny.method, tiny.truth, LENGTHS, weights=(0.3, 0.9))
    assert [row["weight"] for row in evidence] == [0.0, 0.0] + [0.3] * 3 + [0.9] * 3
    assert [row["bigrams"] for row in evidence[:3]] == [False, True, True]
    assert all(row["n"] == 11 for row in evidence)
    chosen = {"bigrams": best.bigrams is not None, **vars(best.mixture)}
    hits = [int(row["hits"]) for row in evidence if chosen.items() <= row.items()]
    assert hits[0] >= max(int(row["hits"]) for row in evidence[:2])


def test_a_search_must_win_by_a_standard_error(tiny: Tiny) -> None:
    def trial(weight: float, hits: list[int]) -> tuple[LanguageModelPrior, Tensor]:
        return tiny.attack(mixture=Mixture(weight=weight)), torch.tensor(hits) > 0

    exact, better = trial(0.0, [1, 0, 0, 0, 0, 0]), trial(0.0, [1, 1, 0, 0, 0, 0])
    equal, lucky = trial(0.3, [1, 1, 0, 0, 0, 0]), trial(0.5, [1, 1, 1, 0, 0, 0])
    clear = trial(0.7, [1, 1, 1, 1, 0, 0])  # two more of two that differ
    assert lm._choose([exact, better, equal]) is better[0]
    assert lm._choose([exact, better, lucky]) is better[0]
    assert lm._choose([exact, better, lucky, clear]) is clear[0]
    noisy = trial(0.9, [0, 0, 1, 1, 1, 1])  # two more, but six differ
    assert lm._choose([better, noisy]) is better[0]


def test_tuning_counts_what_the_tuned_attack_reads(tiny: Tiny) -> None:
    attack = tiny.attack(beam=4)
    _, evidence = tune(attack, tiny.method, tiny.truth, LENGTHS, weights=(0.9,), shares=(1.0,), seed=3)
    assert evidence[0]["hits"] != evidence[1]["hits"]
    parts = [
        tiny.method.release(ids[None], lm.stream("tuning noise", 3, i))
        for i, ids in enumerate(tiny.truth.split(LENGTHS.tolist()))
    ]
    release = Release.concatenate(parts)
    bayes = (tiny.method.log_likelihood(release)[0] + tiny.prior).argmax(-1)
    assert evidence[0]["hits"] == int((bayes == tiny.truth).sum())
    guess = attack.using(Mixture(0.9, 1.0, 1.0), None)(tiny.method, release, LENGTHS)[MARGINALS][:, 0]
    assert evidence[1]["hits"] == int((guess == tiny.truth).sum())


def test_tuning_turns_to_a_language_model_that_knows_the_text(tiny_llm: Factory) -> None:
    """The text is what the model itself would write, the prior says nothing."""
    llm = tiny_llm()
    ids, mask = torch.tensor([PREFIX] * 12), torch.ones(12, 3, dtype=torch.bool)
    rows = llm.generate(llm.embed(ids), mask, max_new_tokens=8, min_new_tokens=8, do_sample=True, temperature=0.5)
    method = Toy(llm.vocab_size, mu=6.0)
    attack = LanguageModelPrior(llm, torch.full((300,), 1 / 300).log(), prefix_ids=PREFIX)
    best, evidence = tune(attack, method, torch.tensor(rows).flatten(), torch.full((12,), 8), weights=(0.95,))
    assert best.mixture.weight == 0.95
    assert max(row["hits"] for row in evidence) > 2 * evidence[0]["hits"]


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beam": 0}, "`beam` must be at least 1, got 0"),
        ({"batch": 0}, "`batch` must be at least 1, got 0"),
        ({"prefix_ids": []}, "`prefix_ids` must hold a token when there is no soft prompt, got none"),
    ],
)
def test_impossible_settings_are_refused(tiny: Tiny, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny.attack(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": 1.1}, "`weight` must be between 0 and 1, got 1.1"),
        ({"share": -0.1}, "`share` must be between 0 and 1, got -0.1"),
        ({"temperature": 0.0}, "`temperature` must be a positive number, got 0.0"),
    ],
)
def test_impossible_mixtures_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(Mixture(), **change)


def test_other_vocabularies_are_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"`prior` must have shape \(300,\), got \(299,\)"):
        LanguageModelPrior(tiny.llm, tiny.prior[1:], prefix_ids=PREFIX)
    with pytest.raises(ConfigError, match="`bigrams` must be of a vocabulary of 300 tokens, got 4"):
        tiny.attack().using(Mixture(), Bigrams(corpus([0, 1]), torch.zeros(4)))
    with pytest.raises(ConfigError, match="`method` must have 300 tokens, got 20"):
        tiny.attack()(Toy(20, 9.0), tiny.release, LENGTHS)


@pytest.mark.parametrize("lengths", [[4, 2], [11, 0], [], [12, -1]])
def test_lengths_must_fit_the_release(tiny: Tiny, lengths: list[int]) -> None:
    with pytest.raises(ConfigError, match="`lengths` must be positive and sum to the 11 tokens"):
        tiny.attack()(tiny.method, tiny.release, torch.tensor(lengths, dtype=torch.long))
