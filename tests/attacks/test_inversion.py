import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from del_lightning.attacks import Attack, BayesOptimal, NearestNeighbour, log_prior, most_likely, nearest_neighbour
from del_lightning.attacks.inversion import METRICS
from del_lightning.codec import pca_codec
from del_lightning.config import ModelConfig
from del_lightning.data import load_corpus
from del_lightning.data.tokens import tokenize, unigram_counts
from del_lightning.errors import ConfigError
from del_lightning.loading import load_llm
from del_lightning.methods import DEL, Clean, Method, Release
from del_lightning.metrics import clopper_pearson, paired_difference
from del_lightning.privacy import PrivacyStatement, StochasticQuantizer


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Toy(Method):
    """The quantizer on the embeddings themselves, without a codec."""

    name = "toy"

    def __init__(self, table: Tensor, quantizer: StochasticQuantizer) -> None:
        super().__init__(table)
        self.quantizer = quantizer
        self.largest_chunk = 0

    def release(self, token_ids: Tensor, generator: torch.Generator | None = None) -> Release:
        return Release(self.quantizer.encode(self.embedding_table[token_ids], generator))

    def restore(self, release: Release) -> Tensor:
        return self.quantizer.decode(release.payload)

    def code_values(self, release: Release) -> tuple[Tensor, Tensor]:
        return self.restore(release).flatten(0, 1), self.embedding_table

    def log_likelihood(self, release: Release) -> Tensor:
        self.largest_chunk = max(self.largest_chunk, release.tokens)
        return self.quantizer.log_likelihood(release.payload, self.embedding_table)

    def statement(self, sequence_tokens: int, delta: float = 1e-5) -> PrivacyStatement:
        return PrivacyStatement.none(self.name, "")

    def payload_bits(self, release: Release) -> int:
        return release.payload.numel() * self.quantizer.bits


def ask(attack: Attack, method: Method, release: Release, top_k: int = 1) -> Tensor:
    """The one guess of an attacker that makes one."""
    (guess,) = attack(method, release, torch.tensor([release.tokens]), top_k).values()
    return guess


def toy(vocabulary: int = 40, dim: int = 6, mu: float = 12.0, bits: int = 3) -> Toy:
    table = 2 * torch.rand(vocabulary, dim, generator=seeded(1)) - 1
    return Toy(table, StochasticQuantizer.from_mu(mu, dim, bits, 1.0))


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_nearest_neighbour_equals_the_naive_search(metric: str, chunk: int) -> None:
    vectors, table = torch.randn(50, 8, generator=seeded(1)), 3 * torch.randn(200, 8, generator=seeded(2))
    table[:5] *= 10  # lengths matter to one metric and not to the other
    if metric == "cosine":
        closeness = torch.cosine_similarity(vectors[:, None].double(), table[None].double(), dim=-1)
    else:
        closeness = -torch.cdist(vectors.double(), table.double())
    expected = closeness.topk(3).indices
    assert torch.equal(nearest_neighbour(vectors, table, metric, top_k=3, chunk=chunk), expected)


def test_the_two_metrics_differ() -> None:
    table = torch.tensor([[10.0, 1.0], [1.0, 0.9]])
    vector = torch.tensor([[2.0, 0.4]])
    assert nearest_neighbour(vector, table, "cosine").item() == 0
    assert nearest_neighbour(vector, table, "l2").item() == 1


def test_zero_rows_and_half_precision_are_harmless() -> None:
    table = torch.cat([torch.zeros(1, 4), torch.eye(4)]).to(torch.bfloat16)
    assert nearest_neighbour(torch.eye(4, dtype=torch.bfloat16), table).flatten().tolist() == [1, 2, 3, 4]


def test_unknown_metric_is_refused() -> None:
    with pytest.raises(ConfigError, match="`metric` must be one of cosine, l2, got 'dot'"):
        nearest_neighbour(torch.eye(2), torch.eye(2), "dot")
    with pytest.raises(ConfigError, match="`metric` must be one of cosine, l2, code, got 'dot'"):
        NearestNeighbour("dot")


def test_log_prior_is_smoothed_and_normalised() -> None:
    prior = log_prior(torch.tensor([0, 3, 7]), smoothing=0.5)
    np.testing.assert_allclose(prior.exp().numpy(), np.array([0.5, 3.5, 7.5]) / 11.5, rtol=1e-6)
    with pytest.raises(ConfigError, match="`smoothing` must be positive, got 0"):
        log_prior(torch.tensor([1, 2]), smoothing=0)


def test_most_likely_consumes_chunks_one_at_a_time() -> None:
    scores, prior = torch.randn(9, 5, generator=seeded()), torch.randn(5, generator=seeded(1))
    expected = (scores + prior).argsort(dim=-1, descending=True)[:, :2]
    assert torch.equal(most_likely(iter(scores.split(4)), prior, top_k=2), expected)
    assert most_likely(iter(()), prior, top_k=2).shape == (0, 2)


def test_bayes_attack_attains_the_optimum_that_enumeration_finds() -> None:
    method = toy(vocabulary=5, dim=2, mu=3.0, bits=2)
    weights = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
    law = {}
    m, amplitude = method.quantizer.levels, method.quantizer.amplitude
    for codes in itertools.product(range(m + 1), repeat=2):
        p = (amplitude + method.embedding_table.double().numpy()) / (2 * amplitude)
        terms = [math.comb(m, k) * p[:, j] ** k * (1 - p[:, j]) ** (m - k) for j, k in enumerate(codes)]
        law[codes] = weights * terms[0] * terms[1]
    assert sum(joint.sum() for joint in law.values()) == pytest.approx(1)
    attack = BayesOptimal(torch.from_numpy(weights).log().float())
    releases = Release(torch.tensor(list(law))[None])
    guesses = ask(attack, method, releases)[:, 0].tolist()
    reached = sum(joint[guess] for joint, guess in zip(law.values(), guesses, strict=True))
    assert reached == pytest.approx(sum(joint.max() for joint in law.values()), rel=1e-9)


@pytest.mark.parametrize("mu", [1.0, 3.0, 8.0])
def test_bayes_rate_on_samples_is_the_enumerated_one(mu: float) -> None:
    method, n = toy(vocabulary=5, dim=2, mu=mu, bits=2), 20_000
    weights = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05])
    every = Release(torch.cartesian_prod(torch.arange(4), torch.arange(4))[None])
    exact = float((method.log_likelihood(every)[0].double().exp() * weights).amax(-1).sum())
    truth = torch.multinomial(weights, n, replacement=True, generator=seeded(3))
    guess = ask(BayesOptimal(weights.log()), method, method.release(truth[None], seeded(4)))[:, 0]
    rate = clopper_pearson(int((guess == truth).sum()), n)
    assert rate.low <= exact <= rate.high
    assert exact > 0.4  # more than naming the commonest token


@pytest.mark.slow
@pytest.mark.parametrize("mu", [5.0, 20.0, 60.0])
def test_bayes_beats_every_nearest_neighbour_on_real_tables(real: tuple[DEL, Tensor, Tensor], mu: float) -> None:
    method, prior, truth = real
    method = method.at(mu)
    release = method.release(truth[None], seeded(int(mu)))
    best = ask(BayesOptimal(prior), method, release)[:, 0] == truth
    for metric in METRICS:
        hits = ask(NearestNeighbour(metric), method, release)[:, 0] == truth
        assert paired_difference(best, hits, torch.full((60,), 25)).low > 0, metric


@pytest.fixture(scope="module")
def real(data_root: Path) -> tuple[DEL, Tensor, Tensor]:
    """DEL on the packaged model, ln Pr(token) in PTB's training text, and 1,500 tokens of its test text."""
    llm = load_llm(ModelConfig())
    corpus = load_corpus("ptb", str(data_root))
    counts, test = (tokenize(corpus.documents(split), llm.tokenizer) for split in ("train", "test"))
    frequencies = unigram_counts(counts, llm.vocab_size)
    codec = pca_codec(llm.embedding_table(), frequencies + 1, 18)
    codec.calibrate_bound(llm.embedding_table(), frequencies + 1, 0.99)
    truth = torch.from_numpy(test.flat[:1500]).long()
    return DEL(llm.embedding_table(), codec, bits=4, mu=1.0), log_prior(frequencies), truth


def test_bayes_attack_beats_the_nearest_neighbour_on_samples() -> None:
    method = toy()
    weights = 1 / torch.arange(1, 41)
    truth = torch.multinomial(weights, 4000, replacement=True, generator=seeded(5))[None]
    release = method.release(truth, seeded(6))
    rates = [
        float((ask(attack, method, release)[:, 0] == truth[0]).float().mean())
        for attack in (BayesOptimal(weights.log()), NearestNeighbour("cosine"))
    ]
    assert rates[0] > rates[1] + 0.05
    assert rates[1] > 3 / 40


def test_guesses_follow_the_tokens_and_every_attack_reads_a_release_without_noise() -> None:
    # Corners of the cube at a mu that leaves hardly any noise.
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 6)[:40]
    method = Toy(corners, StochasticQuantizer.from_mu(1e4, dim=6, bits=3, bound=1.0))
    ids = torch.randint(0, 40, (1, 15), generator=seeded(2))
    release = method.release(ids, seeded(4))
    for attack in (*(NearestNeighbour(metric) for metric in METRICS), BayesOptimal(torch.zeros(40))):
        assert torch.equal(ask(attack, method, release)[:, 0], ids[0])
        assert ask(attack, method, release, top_k=4).shape == (15, 4)


@pytest.mark.parametrize("l2_clip", [None, 2.0])
def test_short_cosine_ranking_is_the_long_one(l2_clip: float | None) -> None:
    table = torch.randn(300, 32, generator=seeded()) * torch.rand(300, 1, generator=seeded(1))
    codec = pca_codec(table, torch.ones(300), 6)
    codec.calibrate_bound(table, torch.ones(300), 0.95)
    attack, truth = NearestNeighbour(chunk=7), torch.randint(300, (1, 60), generator=seeded(2))
    # One attacker meets methods that share a decoder and one that does not, forth and back.
    other = pca_codec(table, torch.rand(300, generator=seeded(3)), 6)
    other.bound.copy_(codec.bound)
    for mu, used in ((3.0, codec), (30.0, codec), (30.0, other), (30.0, codec)):
        method = DEL(table, used, bits=4, mu=mu, l2_clip=l2_clip)
        release = method.release(truth, seeded(4))
        expected = torch.cosine_similarity(method.restore(release)[0, :, None].double(), table[None].double(), dim=-1)
        assert torch.equal(ask(attack, method, release, top_k=5), expected.topk(5).indices)
    assert attack._directions is not None
    assert attack._directions[2].shape == (300, 6)


def test_code_space_compares_decoded_codes_before_the_linear_decoder() -> None:
    method = toy()
    release = method.release(torch.randint(0, 40, (1, 50), generator=seeded(2)), seeded(3))
    estimates = method.quantizer.decode(release.payload)[0].double()
    expected = torch.cdist(estimates, method.embedding_table.double()).topk(3, largest=False).indices
    assert torch.equal(ask(NearestNeighbour("code"), method, release, top_k=3), expected)


def test_code_space_needs_a_code() -> None:
    method = Clean(torch.eye(4))
    with pytest.raises(ConfigError, match="`metric` must be one of cosine, l2 for method 'clean', got 'code'"):
        ask(NearestNeighbour("code"), method, method.release(torch.tensor([[1]])))


def test_bayes_attack_bounds_its_memory_and_chunks_do_not_matter() -> None:
    method = toy()
    release = method.release(torch.randint(0, 40, (2, 50), generator=seeded()), seeded(1))
    whole = ask(BayesOptimal(torch.zeros(40)), method, release, top_k=3)
    method.largest_chunk = 0
    assert torch.equal(ask(BayesOptimal(torch.zeros(40), chunk=16), method, release, top_k=3), whole)
    assert method.largest_chunk == 16


def test_nothing_released_is_nothing_guessed() -> None:
    method, nothing = toy(), torch.empty(1, 0, dtype=torch.long)
    release = method.release(nothing, seeded())
    for attack in (NearestNeighbour("cosine"), BayesOptimal(torch.zeros(40))):
        assert ask(attack, method, release, top_k=3).shape == (0, 3)


def test_names_tell_the_attacks_apart() -> None:
    method = toy()
    release = method.release(torch.tensor([[1, 2]]), seeded())
    attacks = [*(NearestNeighbour(metric) for metric in METRICS), BayesOptimal(torch.zeros(40))]
    names = [name for attack in attacks for name in attack(method, release, torch.tensor([2]))]
    neighbours = ["nearest neighbour (cosine)", "nearest neighbour (l2)", "nearest neighbour (code)"]
    assert names == [*neighbours, "Bayes-optimal"]
