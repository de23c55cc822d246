"""Tokenisation is right, cached by content, and survives a damaged cache."""

from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from del_lightning.data import Ragged, tokenize, unigram_counts
from del_lightning.data import tokens as module

TEXTS = ["the cat sat", "", "a dog ran over the log", "x"]


def equal(a: Ragged, b: Ragged) -> bool:
    return np.array_equal(a.flat, b.flat) and np.array_equal(a.offsets, b.offsets)


def test_rows_are_the_tokenizers_ids(cache: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenize(TEXTS, tiny_tokenizer)
    expected = [tiny_tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert [row.tolist() for row in tokens.rows()] == expected
    assert [tokens[i].tolist() for i in range(len(tokens))] == expected
    assert len(list((cache / "tokens").iterdir())) == 1


def test_no_texts(cache: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenize([], tiny_tokenizer)) == 0


@pytest.mark.usefixtures("cache")
def test_second_time_comes_from_the_cache(
    tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tokenize(TEXTS, tiny_tokenizer)
    monkeypatch.setattr(module, "_tokenize", None)
    assert equal(tokenize(TEXTS, tiny_tokenizer), first)
    with pytest.raises(TypeError):  # other texts, and the same characters cut elsewhere, are no hit
        tokenize(["the cat sat", "", "a dog ran over the logx", ""], tiny_tokenizer)


def test_another_tokenizer_is_no_hit(cache: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tokenize(TEXTS, tiny_tokenizer)
    backend = tiny_tokenizer.backend_tokenizer
    other = PreTrainedTokenizerFast(tokenizer_object=type(backend).from_str(backend.to_str()), eos_token="<eos>")
    tokenize(TEXTS, other)
    assert len(list((cache / "tokens").iterdir())) == 1
    other.add_tokens(["dog"])
    tokenize(TEXTS, other)
    assert len(list((cache / "tokens").iterdir())) == 2


@pytest.mark.parametrize("damage", [b"", b"not an archive", None])
def test_damaged_cache_is_rebuilt(cache: Path, tiny_tokenizer: PreTrainedTokenizerFast, damage: bytes | None) -> None:
    first = tokenize(TEXTS, tiny_tokenizer)
    (file,) = (cache / "tokens").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert equal(tokenize(TEXTS, tiny_tokenizer), first)
    assert file.read_bytes() == whole


def test_unigram_counts(cache: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenize(TEXTS, tiny_tokenizer)
    counts = unigram_counts(tokens, 310)
    assert counts.shape == (310,)
    assert counts.sum() == len(tokens.flat)
    (the,) = tiny_tokenizer(" the", add_special_tokens=False)["input_ids"]
    assert counts[the] == 1
