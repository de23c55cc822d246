"""Attribute inference finds what is in a release, and nothing where only the length was sent."""

import pytest
import torch
from torch import Tensor

from del_lightning.attacks import AttributeInference, Texts
from del_lightning.attacks.attribute import AttributeNetwork
from del_lightning.codec import pca_codec
from del_lightning.errors import ConfigError
from del_lightning.methods import DEL, Clean, MeanEmbedding, Method, Release
from del_lightning.metrics import binary_figures
from del_lightning.seeding import stream

VOCABULARY, WIDTH = 50, 12
MARKED = 7


def texts(seed: int, count: int, *, longer: bool = False) -> Texts:
    """Random texts: half hold a marked token, or with ``longer`` are longer; the second attribute is pure chance."""
    generator = stream("texts", seed)
    rows, attributes = [], [[], []]
    for i in range(count):
        has = i % 2
        length = int(torch.randint(5, 12, (), generator=generator)) + (8 * has if longer else 0)
        row = (torch.randint(8, VOCABULARY, (length,), generator=generator)).tolist()
        if has and not longer:
            row[int(torch.randint(len(row), (), generator=generator))] = MARKED
        rows.append(row)
        attributes[0].append(has)
        attributes[1].append(int(torch.randint(2, (), generator=generator)))
    return Texts.of(rows, attributes)


@pytest.fixture
def table() -> Tensor:
    return torch.randn(VOCABULARY, WIDTH, generator=stream("table"))


def auc(method: Method, victims: Texts, *, longer: bool = False) -> float:
    attacker = AttributeInference(texts(0, 400, longer=longer), texts(1, 80, longer=longer))
    release = method.release(victims.tokens[None], stream("victims"))
    scores = attacker(method, release, victims.lengths)
    assert scores.shape == victims.attributes.shape
    first, chance = (binary_figures(scores[:, i], victims.attributes[:, i])["auc"] for i in range(2))
    assert 0.35 < chance < 0.65
    return first


def quantised(table: Tensor, mu: float) -> DEL:
    codec = pca_codec(table, torch.ones(VOCABULARY), 6)
    codec.calibrate_bound(table, torch.ones(VOCABULARY), 0.99)
    return DEL(table, codec, bits=4, mu=mu)


def test_a_token_in_clean_text_is_found(table: Tensor) -> None:
    assert auc(Clean(table), texts(2, 200)) > 0.95


def test_noise_hides_it_by_degrees(table: Tensor) -> None:
    victims = texts(2, 200)
    loose, strict = auc(quantised(table, 60.0), victims), auc(quantised(table, 0.2), victims)
    assert loose > 0.7
    assert 0.35 < strict < 0.65


def test_only_the_length_betrays_a_mean_embedding(table: Tensor) -> None:
    assert 0.35 < auc(MeanEmbedding(table), texts(2, 200)) < 0.65
    assert auc(MeanEmbedding(table), texts(2, 200, longer=True), longer=True) > 0.95


@pytest.mark.parametrize("attribute", ["longer", "shorter"])
def test_a_length_that_tells_little_is_read_the_right_way_round(table: Tensor, attribute: str) -> None:
    """Real texts differ in length by more than an attribute moves it, and all are far from one token long."""
    generator = stream("weak length")

    def weak(count: int) -> Texts:
        has = torch.randint(2, (count, 1), generator=generator)
        shift = 5 * (has[:, 0] if attribute == "longer" else 1 - has[:, 0])
        lengths = torch.randint(35, 55, (count,), generator=generator) + shift
        tokens = torch.randint(8, VOCABULARY, (int(lengths.sum()),), generator=generator)
        return Texts(tokens, lengths, torch.cat([has, torch.randint(2, (count, 1), generator=generator)], dim=1))

    public, held_out, victims = weak(600), weak(200), weak(400)
    method = MeanEmbedding(table)
    release = method.release(victims.tokens[None], stream("victims"))
    scores = AttributeInference(public, held_out)(method, release, victims.lengths)
    sign = 1 if attribute == "longer" else -1
    alone = binary_figures((sign * victims.lengths.double() / 100 + 0.5).numpy(), victims.attributes[:, 0])["auc"]
    assert alone > 0.6
    assert binary_figures(scores[:, 0], victims.attributes[:, 0])["auc"] == pytest.approx(alone, abs=0.02)


def test_same_seed_same_scores_and_global_randomness_untouched(table: Tensor) -> None:
    victims, method = texts(2, 20), quantised(table, 20.0)
    release = method.release(victims.tokens[None], stream("victims"))
    state = torch.get_rng_state()
    found = [
        AttributeInference(texts(0, 100), texts(1, 40), seed)(method, release, victims.lengths) for seed in (5, 5, 6)
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_attacker_never_uses_the_victims_noise(table: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    method, seeds = quantised(table, 20.0), []
    release = method.release

    def spy(ids: Tensor, generator: torch.Generator) -> Release:
        seeds.append(generator.initial_seed())
        return release(ids, generator)

    victims = texts(2, 10)
    sent = method.release(victims.tokens[None], stream("noise", 0, 0))
    monkeypatch.setattr(method, "release", spy)
    AttributeInference(texts(0, 20), texts(1, 10))(method, sent, victims.lengths)
    assert stream("noise", 0, 0).initial_seed() not in seeds
    assert len(set(seeds)) == 14  # held out, scale, and every pass


def test_texts_of_different_lengths_are_pooled_apart() -> None:
    network = AttributeNetwork(3, 2).eval()
    values, lengths = torch.randn(9, 3), torch.tensor([2, 4, 3])
    together = network(values, lengths)
    for row, part in enumerate(torch.split(values, lengths.tolist())):
        torch.testing.assert_close(together[row], network(part, lengths[row][None])[0])


def test_one_kind_of_text_teaches_nothing() -> None:
    with pytest.raises(ConfigError, match="`public` must hold texts with and without each attribute"):
        AttributeInference(Texts.of([[1], [2]], [[0, 0], [0, 1]]), texts(1, 4))
