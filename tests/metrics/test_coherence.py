import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, BertTokenizerFast

from del_lightning import assets
from del_lightning.errors import AssetError, ConfigError
from del_lightning.metrics import Coherence, SentenceEncoder
from del_lightning.metrics.coherence import check_encoder

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "dog", "sat", "ran", "."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random one-layer encoder with room for 16 tokens."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("encoder") / "tiny-bert"
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(place)
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    BertTokenizerFast(vocab=vocabulary).save_pretrained(place)
    return str(place)


TEXTS = ["the cat sat", "", "the dog ran . the cat ran .", "dog", "   "]


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_batching_and_padding_change_nothing(folder: str, pooling: str) -> None:
    whole = SentenceEncoder(folder, pooling)(TEXTS)
    single = SentenceEncoder(folder, pooling, batch_size=1)(TEXTS)
    torch.testing.assert_close(whole, single, atol=1e-5, rtol=0)
    torch.testing.assert_close(whole.norm(dim=-1), torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0]))


def test_pooling_is_what_it_says(folder: str) -> None:
    encoder = SentenceEncoder(folder, "mean")
    ids = torch.tensor([[2, WORDS.index("the"), WORDS.index("cat"), 3]])
    states = encoder.model(input_ids=ids).last_hidden_state[0]
    for pooling, vector in (("mean", states.mean(0)), ("cls", states[0])):
        torch.testing.assert_close(SentenceEncoder(folder, pooling)(["the cat"])[0], vector / vector.norm())


def test_long_texts_are_truncated(folder: str) -> None:
    encoder = SentenceEncoder(folder)
    assert encoder.max_tokens == 16
    torch.testing.assert_close(encoder(["the cat " * 50]), encoder(["the cat " * 7]))


def test_coherence_is_the_mean_cosine(folder: str) -> None:
    encoder = SentenceEncoder(folder)
    metric = Coherence(encoder)
    metric.update(["the cat sat", ""], ["the cat sat", "dog"])
    metric.update(["the dog ran"], ["the cat sat"])
    expected = torch.cosine_similarity(*encoder(["the dog ran", "the cat sat"]), dim=0)
    torch.testing.assert_close(metric.values(), torch.stack([torch.tensor(1.0), torch.tensor(0.0), expected]))
    torch.testing.assert_close(metric.compute(), (1 + expected) / 3)
    assert "tiny-bert" in metric.name


def test_halves_merge_to_the_whole(folder: str) -> None:
    encoder = SentenceEncoder(folder)
    whole, first, second = Coherence(encoder), Coherence(encoder), Coherence(encoder)
    whole.update(["the cat", "dog"], ["the dog", "cat"])
    first.update(["the cat"], ["the dog"])
    second.update(["dog"], ["cat"])
    first.merge_state(second)
    torch.testing.assert_close(first.compute(), whole.compute())


def test_mismatched_lengths_are_refused(folder: str) -> None:
    with pytest.raises(ConfigError, match="must have one length, got 1 and 2"):
        Coherence(SentenceEncoder(folder)).update(["a"], ["b", "c"])


def test_unknown_pooling_is_refused(folder: str) -> None:
    with pytest.raises(ConfigError, match=r"`evaluate.pooling` must be one of cls, mean, got 'max'"):
        SentenceEncoder(folder, "max")


def test_missing_encoder_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(assets, "hub_problem", lambda: "the hub cannot be reached")
    for name in ("no-such-encoder", str(tmp_path)):
        with pytest.raises(AssetError) as error:
            check_encoder(name)
        assert str(error.value).startswith("`evaluate.encoder` must be a packaged asset, a folder or a hub id, got")
        assert "\n" not in str(error.value)


def test_weights_in_a_pickle_are_refused(folder: str, tmp_path: Path) -> None:
    place = shutil.copytree(folder, tmp_path / "pickled")
    weights = load_file(place / "model.safetensors")
    (place / "model.safetensors").unlink()
    torch.save(weights, place / "pytorch_model.bin")
    for load in (check_encoder, SentenceEncoder):
        with pytest.raises(AssetError, match=r"holds no model\.safetensors, and no pickle is read"):
            load(str(place))


def test_local_encoder_passes_the_check(folder: str) -> None:
    check_encoder(folder)


def test_packaged_encoder_gives_the_published_similarities() -> None:
    try:
        assets.packaged_path("all-minilm-l6-v2")
    except AssetError as error:
        pytest.skip(str(error))
    # Sentences and similarities of the sentence-transformers quick start.
    weather, sun, stadium = "The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."
    metric = Coherence(SentenceEncoder("all-minilm-l6-v2"))
    metric.update([weather, weather, sun], [sun, stadium, stadium])
    assert metric.values().tolist() == pytest.approx([0.6660, 0.1046, 0.1411], abs=2e-4)
    assert "all-minilm-l6-v2" in metric.name
