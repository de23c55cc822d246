import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from del_lightning.bigrams import DISCOUNT, Bigrams
from del_lightning.data.tokens import Ragged
from del_lightning.errors import ConfigError

VOCABULARY = 7
DOCUMENTS = [[0, 1, 2, 1, 2, 1, 0], [3], [], [2, 2, 2, 3, 1]]


def ragged(documents: list[list[int]]) -> Ragged:
    flat = np.array([token for document in documents for token in document], dtype=np.int32)
    return Ragged(flat, np.cumsum([0, *map(len, documents)], dtype=np.int64))


def reference(documents: list[list[int]], unigram: np.ndarray) -> np.ndarray:
    """The definition, entry by entry."""
    size = len(unigram)
    counts = np.zeros((size, size))
    for document in documents:
        for v, w in itertools.pairwise(document):
            counts[v, w] += 1
    table = np.tile(unigram, (size, 1))
    for v in range(size):
        if total := counts[v].sum():
            backing = DISCOUNT * (counts[v] > 0).sum() / total
            table[v] = np.maximum(counts[v] - DISCOUNT, 0) / total + backing * unigram
    return table


@pytest.fixture
def prior() -> Tensor:
    weights = torch.arange(1.0, VOCABULARY + 1)
    return (weights / weights.sum()).log()


@pytest.fixture
def table(prior: Tensor) -> np.ndarray:
    return reference(DOCUMENTS, prior.exp().double().numpy())


def test_probabilities_follow_the_definition_and_sum_to_one(prior: Tensor, table: np.ndarray) -> None:
    bigrams = Bigrams(ragged(DOCUMENTS), prior)
    found = bigrams.log_prob(torch.arange(VOCABULARY), torch.arange(VOCABULARY).expand(VOCABULARY, -1)).exp()
    np.testing.assert_allclose(found.numpy(), table, rtol=1e-5)
    np.testing.assert_allclose(found.sum(1).numpy(), 1, rtol=1e-5)
    assert found[0, 1] > 2 * found[0, 4]


def test_words_are_looked_up_row_by_row(prior: Tensor, table: np.ndarray) -> None:
    bigrams = Bigrams(ragged(DOCUMENTS), prior)
    previous, words = torch.tensor([2, 6, 2]), torch.tensor([[3, 2], [0, 5], [6, 1]])
    found = bigrams.log_prob(previous, words).exp().numpy()
    np.testing.assert_allclose(found, table[previous.numpy()[:, None], words.numpy()], rtol=1e-5)


def test_steps_are_products_with_the_table(prior: Tensor, table: np.ndarray) -> None:
    bigrams = Bigrams(ragged(DOCUMENTS), prior)
    vectors = torch.rand(4, VOCABULARY, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(bigrams.follow(vectors).numpy(), vectors.numpy() @ table, rtol=1e-5)
    np.testing.assert_allclose(bigrams.precede(vectors).numpy(), vectors.numpy() @ table.T, rtol=1e-5)


@pytest.mark.parametrize("documents", [[], [[4]], [[4], [5]]])
def test_a_corpus_without_pairs_leaves_the_prior(documents: list[list[int]], prior: Tensor) -> None:
    bigrams = Bigrams(ragged(documents), prior)
    words = torch.arange(VOCABULARY)[None]
    torch.testing.assert_close(bigrams.log_prob(torch.tensor([4]), words)[0], prior)
    torch.testing.assert_close(bigrams.follow(torch.eye(VOCABULARY)[4:5])[0], prior.exp())


def test_foreign_tokens_are_refused(prior: Tensor) -> None:
    with pytest.raises(ConfigError, match="`tokens` must be below the prior's 7 entries, got 7"):
        Bigrams(ragged([[1, 7]]), prior)
