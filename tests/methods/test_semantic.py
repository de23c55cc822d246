"""The semantic method decodes exactly what the releases say, and says no more than a token's group."""

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from torch import Tensor

from del_lightning.attacks import BayesOptimal
from del_lightning.attacks.language_model import BigramPrior
from del_lightning.bigrams import Bigrams
from del_lightning.codebook import Codebook, code_words
from del_lightning.data.tokens import Ragged
from del_lightning.errors import ConfigError
from del_lightning.methods import Release
from del_lightning.methods.semantic import SemanticDEL

GROUPS = torch.tensor([0, 0, 1, 1, 2, 2, 2])
PRIOR = torch.tensor([0.3, 0.2, 0.1, 0.1, 0.15, 0.1, 0.05]).log()
TABLE = torch.randn(7, 5, generator=torch.Generator().manual_seed(3))
TEXT = Ragged(np.random.default_rng(0).integers(0, 7, 300).astype(np.int32), np.array([0, 120, 300]))


def semantic(mu: float = 3.0, bigrams: Bigrams | None = None) -> SemanticDEL:
    return SemanticDEL(TABLE, Codebook(GROUPS, code_words(3, 4)), PRIOR, bits=2, mu=mu, bigrams=bigrams)


def token_posterior(method: SemanticDEL, release: Release) -> Tensor:
    return (method.log_likelihood(release) + PRIOR).softmax(-1)


def test_tokens_of_a_group_cannot_be_told_apart() -> None:
    method = semantic(mu=50.0)
    release = method.release(torch.arange(7)[None], torch.Generator().manual_seed(0))
    likelihood = method.log_likelihood(release)
    for group in range(3):
        members = likelihood[..., group == GROUPS]
        assert torch.equal(members, members[..., :1].expand_as(members))


def test_releases_follow_the_likelihood() -> None:
    method = semantic(mu=4.0)
    draws = 20_000
    release = method.release(torch.full((1, draws), 4), torch.Generator().manual_seed(1))
    found, counts = release.payload[0].unique(dim=0, return_counts=True)
    expected = method.log_likelihood(Release(found[None]))[0, :, 4].exp()
    common = expected > 0.005
    assert int(common.sum()) > 5
    deviation = (counts[common] / draws - expected[common]) / (expected[common] / draws).sqrt()
    assert float(deviation.abs().max()) < 4.5


def test_every_position_is_decoded_to_its_posterior_mean() -> None:
    method = semantic()
    release = method.release(torch.tensor([[0, 2, 4, 6]]), torch.Generator().manual_seed(0))
    torch.testing.assert_close(method.restore(release), token_posterior(method, release) @ TABLE)


def enumerated(method: SemanticDEL, release: Release, lengths: list[int], bigrams: Bigrams) -> Tensor:
    """Posterior means (N, b) by the sum over all sequences of tokens."""
    likelihood, start, found = method.log_likelihood(release)[0], 0, []
    for length in lengths:
        total = torch.zeros(length, 7)
        for sequence in product(range(7), repeat=length):
            score = PRIOR[sequence[0]] + sum(likelihood[start + t, w] for t, w in enumerate(sequence))
            for before, after in pairwise(sequence):
                score = score + bigrams.log_prob(torch.tensor([before]), torch.tensor([[after]]))[0, 0]
            total[torch.arange(length), list(sequence)] += score.exp()
        found.append(total / total.sum(1, keepdim=True) @ TABLE)
        start += length
    return torch.cat(found)


def test_neighbours_are_read_as_exactly_as_by_enumeration() -> None:
    bigrams = Bigrams(TEXT, PRIOR)
    method = semantic(bigrams=bigrams)
    release = method.release(torch.tensor([[1, 3, 5, 0, 6]]), torch.Generator().manual_seed(2))
    restored = method.restore_sequences(release, torch.tensor([3, 2]))[0]
    torch.testing.assert_close(restored, enumerated(method, release, [3, 2], bigrams), atol=1e-4, rtol=1e-4)


def test_so_are_those_of_last_tokens_with_groups_of_their_own() -> None:
    bigrams = Bigrams(TEXT, PRIOR)
    method = two_codebooks(bigrams=bigrams)
    noise = torch.Generator().manual_seed(2)
    release = Release.concatenate([method.release(torch.tensor([ids]), noise) for ids in ([1, 3, 5], [0, 6], [2])])
    restored = method.restore_sequences(release, torch.tensor([3, 2, 1]))[0]
    torch.testing.assert_close(restored, enumerated(method, release, [3, 2, 1], bigrams), atol=1e-4, rtol=1e-4)


def test_contextual_attackers_know_both_codebooks() -> None:
    bigrams, lengths = Bigrams(TEXT, PRIOR), torch.tensor([3, 2])
    method, noise = two_codebooks(mu=20.0, bigrams=bigrams), torch.Generator().manual_seed(2)
    release = Release.concatenate([method.release(torch.tensor([ids]), noise) for ids in ([1, 3, 5], [0, 6])])
    guess = BigramPrior(PRIOR, bigrams)(method, release, lengths)["bigram prior"][:, 0]
    assert guess[[1, 2, 3, 4]].tolist() == [3, 5, 0, 6]  # the last two of each are told apart
    # A table of one-hot rows makes posterior means the posterior itself.
    method.embedding_table = torch.eye(7)
    assert torch.equal(guess, method.restore_sequences(release, lengths)[0].argmax(1))


def test_codes_without_their_places_are_refused() -> None:
    method = two_codebooks()
    release = method.release(torch.tensor([[1, 2, 3]]))
    for use in (method.log_likelihood, method.restore):
        with pytest.raises(ConfigError, match="must say its places, got none"):
            use(Release(release.payload))


def test_without_neighbours_both_decoders_agree() -> None:
    method = semantic()
    release = method.release(torch.tensor([[1, 3, 5]]), torch.Generator().manual_seed(2))
    assert torch.equal(method.restore_sequences(release, torch.tensor([3])), method.restore(release))


def test_limits_of_mu() -> None:
    ids = torch.arange(7)[None]
    clear = semantic(mu=1e4)
    centres = torch.stack([(PRIOR[g == GROUPS].softmax(0)[:, None] * TABLE[g == GROUPS]).sum(0) for g in range(3)])
    torch.testing.assert_close(clear.restore(clear.release(ids))[0], centres[GROUPS], atol=1e-3, rtol=1e-3)
    blind = semantic(mu=1e-4)
    mean = PRIOR.exp() @ TABLE
    torch.testing.assert_close(blind.restore(blind.release(ids))[0], mean.expand(7, -1), atol=1e-3, rtol=1e-3)


def test_the_best_guess_is_a_group_s_most_frequent_token() -> None:
    method = semantic(mu=1e4)
    ids = torch.arange(7)[None]
    guesses = BayesOptimal(PRIOR)(method, method.release(ids), torch.tensor([7]))["Bayes-optimal"][:, 0]
    assert guesses.tolist()[:2] == [0, 0]
    assert guesses.tolist()[4:] == [4, 4, 4]


def test_guarantee_and_bits_are_those_of_the_quantizer() -> None:
    method = semantic(mu=3.0)
    release = method.release(torch.tensor([[1, 2, 3]]))
    assert method.payload_bits(release) == 3 * 4 * 2
    assert method.statement(3).columns() == method.at(5.0).at(3.0).statement(3).columns()
    assert method.attack_bound(0.3) > 0.3
    with pytest.raises(ConfigError, match="`mu`"):
        semantic(mu=0.0)


def two_codebooks(mu: float = 3.0, bigrams: Bigrams | None = None) -> SemanticDEL:
    """The last two tokens are told apart one by one."""
    book = Codebook(GROUPS, code_words(3, 4), ending=Codebook(torch.arange(7), code_words(7, 4)), last=2)
    return SemanticDEL(TABLE, book, PRIOR, bits=2, mu=mu, bigrams=bigrams)


def test_the_last_tokens_have_groups_of_their_own() -> None:
    method = two_codebooks(mu=1e4)
    ids = torch.tensor([[0, 2, 4, 5, 6], [6, 5, 4, 3, 1]])
    restored = method.restore(method.release(ids))
    torch.testing.assert_close(restored[:, -2:], TABLE[ids[:, -2:]], atol=1e-3, rtol=1e-3)
    alike = semantic(mu=1e4)
    torch.testing.assert_close(restored[:, :-2], alike.restore(alike.release(ids))[:, :-2], atol=1e-3, rtol=1e-3)
    short = torch.tensor([[3]])
    torch.testing.assert_close(method.restore(method.release(short)), TABLE[short], atol=1e-3, rtol=1e-3)
    assert method.code_values(method.release(short)) is None


def test_places_go_with_their_codes() -> None:
    method = two_codebooks()
    first, second = (method.release(torch.tensor([ids])) for ids in ([1, 2, 3], [4, 5, 6, 0]))
    joined = Release.concatenate([first, second])
    assert joined.from_end is not None
    assert joined.from_end.tolist() == [[2, 1, 0, 3, 2, 1, 0]]
    likelihood = method.log_likelihood(joined)
    torch.testing.assert_close(likelihood[:, :3], method.log_likelihood(first))
    torch.testing.assert_close(likelihood[:, 3:], method.log_likelihood(second))
    order = torch.tensor([6, 0, 3])
    torch.testing.assert_close(method.log_likelihood(joined.take(order)), likelihood[:, order])


def test_releases_of_the_last_tokens_follow_their_likelihood() -> None:
    method, draws = two_codebooks(mu=4.0), 20_000
    ids = torch.tensor([[0, 4]]).expand(draws, 2)
    release = method.release(ids, torch.Generator().manual_seed(1))
    found, counts = release.payload[:, 1].unique(dim=0, return_counts=True)
    expected = method.log_likelihood(Release(found[None], from_end=torch.zeros(1, len(found))))[0, :, 4].exp()
    common = expected > 0.005
    assert int(common.sum()) > 5
    deviation = (counts[common] / draws - expected[common]) / (expected[common] / draws).sqrt()
    assert float(deviation.abs().max()) < 4.5


def test_the_last_tokens_have_the_guarantee_of_all() -> None:
    method, alike = two_codebooks(mu=3.0), semantic(mu=3.0)
    assert method.statement(5).columns() == alike.statement(5).columns()
    assert method.attack_bound(0.3) == alike.attack_bound(0.3)
    ids = torch.arange(5)[None]
    assert method.payload_bits(method.release(ids)) == alike.payload_bits(alike.release(ids))
