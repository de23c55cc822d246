import pytest
import torch
from transformers import PreTrainedTokenizerFast

from del_lightning.errors import ConfigError
from del_lightning.metrics import (
    clopper_pearson,
    content_tokens,
    paired_difference,
    recovery,
    rouge_l,
    unknown_pieces,
    worst_case,
)


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> torch.Tensor:
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_content_is_what_is_no_stop_word_punctuation_space_or_special_token(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    content = content_tokens(tiny_tokenizer, 310)
    assert content.shape == (310,)
    assert not content[len(tiny_tokenizer) :].any()
    vocabulary = tiny_tokenizer.get_vocab()
    for word, expected in (("cat", True), ("Ġhouse", True), ("the", False), ("Ġover", False), ("<eos>", False)):
        if word in vocabulary:
            assert bool(content[vocabulary[word]]) == expected, word
    # The alphabet is always there: bytes of letters and digits count, spaces, signs and "a", "I" do not.
    for word, expected in (("7", True), ("q", True), ("Ġ", False), ("!", False), ("a", False), ("I", False)):
        assert bool(content[vocabulary[word]]) == expected, word


def test_pieces_of_the_unknown_marker_are_found_with_and_without_a_space(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    texts = ["<unk> cat", "the <unk><unk> sat", "a < b unk >"]
    rows = [ids_of(tiny_tokenizer, text) for text in texts]
    lengths = torch.tensor([len(row) for row in rows])
    found = torch.split(unknown_pieces(torch.cat(rows), lengths, tiny_tokenizer), lengths.tolist())
    for text, row, marked in zip(texts, rows, found, strict=True):
        assert tiny_tokenizer.decode(row[marked]).replace(" ", "") == "<unk>" * text.count("<unk>")
    # A marker that two sequences share between them is none.
    pieces = ids_of(tiny_tokenizer, "<unk>")
    assert not unknown_pieces(pieces, torch.tensor([1, len(pieces) - 1]), tiny_tokenizer).any()


def test_recovery_counts_each_kind_of_token(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [ids_of(tiny_tokenizer, text) for text in ("cat 77", "the <unk>, dog")]
    truth, lengths = torch.cat(rows), torch.tensor([len(row) for row in rows])
    unknown = unknown_pieces(truth, lengths, tiny_tokenizer)
    content = content_tokens(tiny_tokenizer, len(tiny_tokenizer))[truth] & ~unknown
    # Guesses: right at the first place in the first sequence, at the third place in the second.
    wrong = (truth[:, None] + torch.arange(1, 6)) % len(tiny_tokenizer)
    guess = wrong.clone()
    guess[: lengths[0], 0] = truth[: lengths[0]]
    guess[lengths[0] :, 2] = truth[lengths[0] :]
    found = recovery(guess, truth, lengths, tiny_tokenizer)
    parts = {f"{part}top-{top}" for part in ("", "content ", "last ") for top in (1, 5)}
    assert set(found) == {*parts, "unknown top-1", "exact", "rouge-l"}
    assert (found["top-1"].value, found["top-1"].n) == (int(lengths[0]) / len(truth), len(truth))
    assert found["top-5"].value == 1
    assert (found["last top-1"].value, found["last top-1"].n, found["last top-5"].value) == (0.5, 2, 1)
    assert found["content top-1"].n == int(content.sum()) < len(truth)
    assert found["content top-1"].value == int(content[: lengths[0]].sum()) / int(content.sum())
    assert (found["unknown top-1"].value, found["unknown top-1"].n) == (0, int(unknown.sum()))
    assert (found["exact"].value, found["exact"].n) == (0.5, 2)
    assert found["exact"] == clopper_pearson(1, 2)
    assert 0.5 <= found["rouge-l"].value < 1
    assert found["rouge-l"].interval == "bootstrap"


def test_kinds_that_do_not_occur_are_left_out(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    truth = ids_of(tiny_tokenizer, "!!")
    found = recovery(truth[:, None], truth, torch.tensor([len(truth)]), tiny_tokenizer)
    assert set(found) == {"top-1", "last top-1", "exact", "rouge-l"}


def test_shapes_must_belong_together(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match="got 2, 2 and 3"):
        recovery(torch.zeros(2, 1), torch.zeros(2), torch.tensor([3]), tiny_tokenizer)


def test_rouge_l_is_the_share_of_the_longest_common_subsequence() -> None:
    # "the cat sat" of 3 and 4 words: precision 1, recall 3/4; then nothing in common.
    assert rouge_l(["The cat, sat!", "x"], ["the cat was sat", "y"]).value == pytest.approx((6 / 7 + 0) / 2)


def test_paired_difference_resamples_sequences() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.full((40,), 25)
    base = torch.rand(1000, generator=generator) < 0.3
    # The first reads everything the second reads, and one token more in every sequence: no doubt about the sign.
    more = base.clone().view(40, 25)
    more[torch.arange(40), (~more).int().argmax(1)] = True
    difference = paired_difference(more.flatten(), base, lengths)
    assert difference.value == pytest.approx(0.04)
    assert (difference.low, difference.high, difference.n) == (pytest.approx(0.04), pytest.approx(0.04), 40)
    same = paired_difference(base, base[torch.randperm(1000, generator=generator)], lengths)
    assert same.low < 0 < same.high


def test_worst_case_holds_for_all_attacks_at_once() -> None:
    rates = {"one": clopper_pearson(20, 100), "two": clopper_pearson(25, 100), "three": clopper_pearson(10, 30)}
    name, worst = worst_case(rates)
    assert (name, worst.value, worst.n) == ("three", 1 / 3, 30)
    wide = [clopper_pearson(hits, n, 1 - 0.05 / 3) for hits, n in ((20, 100), (25, 100), (10, 30))]
    assert worst.low == max(rate.low for rate in wide)  # that of "two", which is measured better
    assert worst.high == max(rate.high for rate in wide)
    assert worst_case({"one": rates["one"]}) == ("one", rates["one"])


def test_worst_case_refuses_what_it_cannot_bound() -> None:
    with pytest.raises(ConfigError, match="`rates` must hold an attack"):
        worst_case({})
    with pytest.raises(ConfigError, match=r"`rates\['x'\]` must have a Clopper-Pearson interval, got 'bootstrap'"):
        worst_case({"x": rouge_l(["a", "b"], ["a", "c"])})
