"""The groups keep their promise on real text, and code words stand far apart."""

from pathlib import Path

import numpy as np
import pytest
import torch

from del_lightning.codebook import Codebook, balanced_groups, build_codebook, code_words, topic_vectors
from del_lightning.data.tokens import Ragged
from del_lightning.errors import ArtifactError, ConfigError


def test_no_token_holds_more_than_its_share() -> None:
    generator = torch.Generator().manual_seed(0)
    prior = torch.rand(500, generator=generator).pow(4)
    prior /= prior.sum()
    groups = balanced_groups(torch.randn(500, 8, generator=generator), prior, torch.ones(500, dtype=torch.bool), 0.2)
    mass = torch.zeros(int(groups.max()) + 1).index_add_(0, groups, prior)
    assert len(mass) > 3
    assert float((prior / mass[groups]).max()) <= 0.2 + 1e-6


def test_neighbours_share_a_group() -> None:
    centres = torch.randn(5, 16, generator=torch.Generator().manual_seed(1)) * 10
    features = centres.repeat_interleave(10, 0) + 0.01 * torch.randn(50, 16)
    groups = balanced_groups(features, torch.full((50,), 0.02), torch.ones(50, dtype=torch.bool), 0.1)
    assert torch.equal(groups.view(5, 10), groups.view(5, 10)[:, :1].expand(5, 10))
    assert len(groups.unique()) == 5


def test_unseen_tokens_join_the_nearest_group() -> None:
    features = torch.tensor([[0.0], [0.1], [10.0], [10.1], [9.0]])
    seen = torch.tensor([True, True, True, True, False])
    groups = balanced_groups(features, torch.tensor([0.2, 0.2, 0.2, 0.2, 0.2]), seen, 0.5)
    assert groups[0] == groups[1] != groups[2]
    assert groups[2] == groups[3] == groups[4]


def test_a_share_out_of_reach_leaves_one_group() -> None:
    groups = balanced_groups(torch.randn(4, 2), torch.full((4,), 0.25), torch.ones(4, dtype=torch.bool), 0.1)
    assert groups.tolist() == [0] * 4


def test_topics_tell_texts_apart() -> None:
    generator = np.random.default_rng(0)
    texts = [generator.integers(100 * (i % 2), 100 * (i % 2) + 100, 60).astype(np.int32) for i in range(400)]
    tokens = Ragged(np.concatenate(texts), np.arange(401) * 60)
    counts = torch.from_numpy(np.bincount(tokens.flat, minlength=220))
    vectors = topic_vectors(tokens, counts, torch.randn(220, 32), width=4, window=10)
    first = vectors[:200, 0].sign()
    assert abs(float(first[:100].mean() - first[100:].mean())) > 1.9
    assert vectors.isfinite().all()


def test_code_words_are_far_apart() -> None:
    words = code_words(512, 18)
    distances = (18 - words @ words.T) / 2 + 100 * torch.eye(512)
    assert words.shape == (512, 18)
    assert float(distances.min()) == 6
    assert float(distances[:2, :2].min()) >= 12
    assert code_words(70, 64).unique(dim=0).shape == (70, 64)


def test_more_groups_than_words_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"`codec.dim` must be at least 4 for 9 groups, got 3"):
        code_words(9, 3)


def test_a_codebook_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = Codebook(torch.tensor([0, 1, 1]), code_words(2, 4))
    written.save(tmp_path / "codebook.safetensors")
    read = Codebook.load(tmp_path / "codebook.safetensors")
    assert torch.equal(read.groups, written.groups)
    assert torch.equal(read.words, written.words)
    two = Codebook(written.groups, written.words, ending=Codebook(torch.arange(3), code_words(3, 4)), last=2)
    two.save(tmp_path / "two.safetensors")
    read = Codebook.load(tmp_path / "two.safetensors")
    assert read.last == 2
    assert read.ending is not None
    assert torch.equal(read.ending.groups, torch.arange(3))
    assert torch.equal(read.ending.words, code_words(3, 4))
    with pytest.raises(ArtifactError, match="must be a codebook"):
        Codebook.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    "book",
    [
        Codebook(torch.tensor([0, 2]), code_words(2, 4)),
        Codebook(torch.tensor([0, 1]), 5 * code_words(2, 4)),  # outside the clipping bound
        Codebook(torch.tensor([0.0, 1.0]), code_words(2, 4)),
        Codebook(torch.tensor([], dtype=torch.long), code_words(2, 4)),
        Codebook(torch.tensor([0, 1]), code_words(2, 4), ending=Codebook(torch.tensor([0]), code_words(1, 4)), last=1),
        Codebook(torch.tensor([0]), code_words(1, 4), ending=Codebook(torch.tensor([0]), code_words(1, 5)), last=1),
    ],
)
def test_codebooks_that_cannot_be_are_refused(book: Codebook, tmp_path: Path) -> None:
    book.save(tmp_path / "bad.safetensors")
    with pytest.raises(ArtifactError, match="a group of every token"):
        Codebook.load(tmp_path / "bad.safetensors")


def test_frequent_tokens_may_be_a_group_each() -> None:
    generator = np.random.default_rng(0)
    flat = np.minimum(generator.geometric(0.1, 2000) - 1, 39).astype(np.int32)
    counts = torch.from_numpy(np.bincount(flat, minlength=40))
    embeddings = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    text = Ragged(flat, np.array([0, 2000]))
    book = build_codebook(embeddings, text, counts, dim=8, frequent=0, largest_share=0.5, alone=5)
    sizes = book.groups.bincount()
    most = counts.argsort(descending=True, stable=True)[:5]
    assert (sizes[book.groups[most]] == 1).all()
    assert (sizes[5:] > 1).all()
    assert int(sizes.sum()) == 40


def test_settings_out_of_range_are_refused() -> None:
    tokens = Ragged(np.arange(4, dtype=np.int32), np.array([0, 4]))
    common = {"embeddings": torch.randn(4, 8), "tokens": tokens, "counts": torch.ones(4, dtype=torch.long), "dim": 4}
    with pytest.raises(ConfigError, match=r"`codebook.largest_share` must be in \(0, 1\], got 0"):
        build_codebook(**common, frequent=1, largest_share=0)
    with pytest.raises(ConfigError, match=r"`codebook.last_alone` must be between 0 and 2, got 3"):
        build_codebook(**common, frequent=1, largest_share=0.5, alone=3)
    with pytest.raises(ConfigError, match=r"`codebook.frequent` must be between 0 and 3, got 4"):
        build_codebook(**common, frequent=4, largest_share=0.5)
