"""What an attacker recovers of private prompts: tokens, content words, whole prompts, and the wording.

Half of a text is stop words and punctuation, which a good prior guesses without reading anything. So every rate is
also taken over content tokens alone; and the pieces of the marker ``<unk>``, which word-level corpora put in place
of rare words, are counted apart from both, because they give each other away.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.text.rouge import rouge_score
from transformers import PreTrainedTokenizerBase

from del_lightning.errors import ConfigError
from del_lightning.metrics.attack import recovered
from del_lightning.metrics.intervals import bootstrap_mean, bootstrap_ratio, clopper_pearson
from del_lightning.report.schema import Estimate

TOP = (1, 5, 10)
"""Lengths of the lists of guesses that are scored."""

UNKNOWN = "<unk>"


def content_tokens(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> Tensor:
    """Which tokens carry content: (vocab_size,) booleans.

    Not content are special tokens, tokens without a letter or digit (spaces, punctuation, part of a character) and
    scikit-learn's English stop words, in any case and with or without the space in front.
    """
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    known = min(vocab_size, len(tokenizer))
    texts = tokenizer.batch_decode([[token] for token in range(known)])
    words = [text.strip().lower() for text in texts]
    content = [any(map(str.isalnum, word)) and word not in ENGLISH_STOP_WORDS for word in words]
    kept = torch.tensor(content + [False] * (vocab_size - known))
    kept[[token for token in tokenizer.all_special_ids if token < vocab_size]] = False
    return kept


def unknown_pieces(tokens: Tensor, lengths: Tensor, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Which tokens are pieces of the marker ``<unk>``: (N,) booleans.

    Args:
        tokens: (N,) true tokens of S sequences one after the other.
        lengths: (S,) tokens of each.
        tokenizer: Splits the marker into pieces as it does within a text.
    """
    spellings = {tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (UNKNOWN, " " + UNKNOWN)}
    found = torch.zeros(len(tokens), dtype=torch.bool)
    start = 0
    for length in lengths.tolist():
        ids = tokens[start : start + length].tolist()
        for pieces in spellings:
            for place in range(length - len(pieces) + 1):
                if tuple(ids[place : place + len(pieces)]) == pieces:
                    found[start + place : start + place + len(pieces)] = True
        start += length
    return found


def recovery(
    guess: Tensor,
    truth: Tensor,
    lengths: Tensor,
    tokenizer: PreTrainedTokenizerBase,
    content: Tensor | None = None,
) -> dict[str, Estimate]:
    """Everything that is reported about one attacker's guesses.

    * ``top-1``, ``top-5``, ``top-10``: share of all tokens whose id is among so many guesses (Clopper-Pearson);
    * ``content top-1`` and so on: the same over content tokens, ``unknown top-1`` over the pieces of ``<unk>``, both
      left out where there are none;
    * ``last top-1`` and so on: the same over the last token of every sequence, which a continuation tells most about;
    * ``exact``: share of sequences whose every token is read (Clopper-Pearson);
    * ``rouge-l``: ROUGE-L F1 of the recovered text, mean over sequences (bootstrap).

    Args:
        guess: (N, k) token ids, best first; lists of the lengths :data:`TOP` that k allows are scored.
        truth: (N,) true ids of S sequences one after the other.
        lengths: (S,) tokens of each sequence; they sum to N.
        tokenizer: Of the model under attack.
        content: :func:`content_tokens` of the tokenizer; None works it out.

    Raises:
        ConfigError: The shapes do not belong together, or there is no token.
    """
    if not len(truth) == len(guess) == int(lengths.sum()) > 0:
        counts = f"{len(guess)}, {len(truth)} and {int(lengths.sum())}"
        raise ConfigError(f"`guess`, `truth` and `lengths` must name one positive number of tokens, got {counts}")
    guess, truth, lengths = guess.cpu(), truth.cpu(), lengths.cpu()
    content = content_tokens(tokenizer, int(max(guess.max(), truth.max())) + 1) if content is None else content
    unknown = unknown_pieces(truth, lengths, tokenizer)
    texts = [tokenizer.batch_decode([part.tolist() for part in split(ids, lengths)]) for ids in (guess[:, 0], truth)]
    found = {
        **_top("", guess, truth),
        **_top("content ", *(ids[content[truth] & ~unknown] for ids in (guess, truth))),
        **_top("unknown ", guess[unknown, :1], truth[unknown]),
        **_top("last ", *(ids[lengths.cumsum(0)[lengths > 0] - 1] for ids in (guess, truth))),
    }
    found["exact"] = _rate(torch.stack([hits.all() for hits in split(guess[:, 0] == truth, lengths)]))
    return found | {"rouge-l": rouge_l(texts[0], texts[1])}


def _top(tokens: str, guess: Tensor, truth: Tensor) -> dict[str, Estimate]:
    """Rates of every list of guesses (N, k); none without tokens."""
    lists = [top for top in TOP if top <= guess.shape[1]] if len(truth) else []
    return {f"{tokens}top-{top}": _rate(recovered(guess[:, :top], truth)) for top in lists}


def split(values: Tensor, lengths: Tensor) -> list[Tensor]:
    """The rows (N, ...) of each sequence; ``lengths`` (S,) sum to N."""
    return list(torch.split(values, lengths.tolist()))


def rouge_l(recovered_texts: Sequence[str], texts: Sequence[str]) -> Estimate:
    """Mean ROUGE-L F1 of recovered texts, lower case and alphanumeric words only, with a bootstrap over texts."""
    pairs = zip(recovered_texts, texts, strict=True)
    scores = [float(rouge_score(guess, text, rouge_keys="rougeL")["rougeL_fmeasure"]) for guess, text in pairs]
    return bootstrap_mean(scores)


def paired_difference(first: Tensor, second: Tensor, lengths: Tensor) -> Estimate:
    """By how much more one attacker reads than another of the very same tokens: difference of the rates.

    The interval resamples whole sequences, since hits within one are not independent.

    Args:
        first: (N,) booleans, one attacker's hits.
        second: (N,) booleans, the other's.
        lengths: (S,) tokens of each sequence; they sum to N.

    Example:
        >>> first, second = torch.tensor([1, 1, 1, 0]).bool(), torch.tensor([1, 0, 0, 0]).bool()
        >>> paired_difference(first, second, torch.tensor([2, 2])).value
        0.5
    """
    more = first.cpu().double() - second.cpu().double()
    sums = np.array([float(part.sum()) for part in split(more, lengths.cpu())])
    return bootstrap_ratio(sums, lengths.cpu().numpy())


def worst_case(rates: Mapping[str, Estimate], confidence: float = 0.95) -> tuple[str, Estimate]:
    """The attack that reads most, and the rate of the best of all attacks.

    Picking the largest of several rates would void their own intervals. The limits here hold for all attacks at once
    (Bonferroni), hence for the best one, whichever that is.

    Args:
        rates: Attack -> share of tokens read, with its Clopper-Pearson interval.
        confidence: Of the returned interval.

    Raises:
        ConfigError: There is no attack, or a rate that is no share of counted tokens.

    Example:
        >>> name, rate = worst_case({"nearest": clopper_pearson(8, 100), "optimal": clopper_pearson(17, 100)})
        >>> name, rate.value
        ('optimal', 0.17)
    """
    if not rates:
        raise ConfigError("`rates` must hold an attack, got {}")
    for name, rate in rates.items():
        if rate.interval != "clopper-pearson":
            raise ConfigError(f"`rates[{name!r}]` must have a Clopper-Pearson interval, got {rate.interval!r}")
    each = 1 - (1 - confidence) / len(rates)
    wide = [clopper_pearson(round(rate.value * rate.n), rate.n, each) for rate in rates.values()]
    name, best = max(rates.items(), key=lambda item: item[1].value)
    low, high = (max(limit for limit in limits if limit is not None) for limits in _limits(wide))
    return name, Estimate(value=best.value, n=best.n, low=low, high=high, interval="clopper-pearson")


def _limits(rates: Sequence[Estimate]) -> tuple[list[float | None], list[float | None]]:
    return [rate.low for rate in rates], [rate.high for rate in rates]


def _rate(hits: Tensor) -> Estimate:
    return clopper_pearson(int(hits.sum()), hits.numel())
