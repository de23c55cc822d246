"""What each attack reads of a real prompt: original and recovered tokens one above the other.

A prompt is broken into lines that fit a page. Every line is a small table: one row of original tokens, below it one
row an attack, a column a token. Hits and misses differ in background *and* in slant, and each row says how many of
the prompt's tokens it got.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from transformers import PreTrainedTokenizerBase

from del_lightning.report import words
from del_lightning.report.schema import GalleryLevel, GalleryPrompt, PrivacyColumns, Reading

LINE = 120
"""Width of a line in characters; a column is as wide as its longest token."""
LONGEST = 24
"""Characters of a token that are shown."""
_SIGNS = {"\n": "⏎", "\t": "⇥", " ": "␣"}


@dataclass(frozen=True)
class Guesses:
    """First guesses of some attacks on the test prompts at one setting.

    Attributes:
        label: Name of the setting.
        privacy: What it guarantees.
        lengths: Tokens of each prompt.
        truth: True ids of the prompts one after the other.
        attacks: Attack -> guessed ids, in the same order; an attack may have read the first prompts only.
    """

    label: str
    privacy: PrivacyColumns
    lengths: Sequence[int]
    truth: Sequence[int]
    attacks: Mapping[str, Sequence[int]]


def collect(
    tokenizer: PreTrainedTokenizerBase, levels: Sequence[Guesses], prompts: Sequence[int]
) -> list[GalleryPrompt]:
    """Prompts of the gallery, with every level that covers them.

    Args:
        tokenizer: Turns ids into text.
        levels: Settings in the order of the page; all must hold the same prompts in the same order.
        prompts: Numbers of the prompts to show.
    """
    return [found for number in prompts if (found := _prompt(tokenizer, levels, number)) is not None]


def _prompt(tokenizer: PreTrainedTokenizerBase, levels: Sequence[Guesses], number: int) -> GalleryPrompt | None:
    shown, truth = [], list[int]()
    for level in levels:
        ends = [0, *accumulate(level.lengths)]
        if number >= len(level.lengths):
            continue
        part = slice(ends[number], ends[number + 1])
        truth = list(level.truth[part])
        attacks = {name: list(ids[part]) for name, ids in level.attacks.items() if len(ids) >= part.stop}
        readings = [
            Reading(attack=name, tokens=_texts(tokenizer, ids), hits=[a == b for a, b in zip(ids, truth, strict=True)])
            for name, ids in attacks.items()
        ]
        if readings:
            shown.append(GalleryLevel(label=level.label, privacy=level.privacy, readings=readings))
    return GalleryPrompt(tokens=_texts(tokenizer, truth), levels=shown) if shown else None


def _texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    return list(tokenizer.batch_decode([[token] for token in ids]))


def visible(token: str) -> str:
    """A token as a column shows it: no space around it, white space by a sign, a long one cut."""
    text = token.strip() or "".join(_SIGNS.get(sign, sign) for sign in token) or "␣"
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def breaks(columns: Sequence[Sequence[str]], width: int = LINE) -> Iterator[slice]:
    """Cut columns of texts into lines of at most ``width`` characters, each with at least one column."""
    start, used = 0, 0
    for place, column in enumerate(columns):
        wide = max(map(len, column)) + 1
        if place > start and used + wide > width:
            yield slice(start, place)
            start, used = place, 0
        used += wide
    if start < len(columns):
        yield slice(start, len(columns))


@dataclass(frozen=True)
class Row:
    """One attack's part of a line."""

    attack: str
    count: str
    """How much of the whole prompt it read."""
    cells: Sequence[tuple[str, bool]]
    """(token, whether it is right)."""


@dataclass(frozen=True)
class Line:
    """Some neighbouring tokens of a prompt, and what every attack made of them."""

    original: Sequence[str]
    rows: Sequence[Row]


def lines(prompt: GalleryPrompt, level: GalleryLevel, width: int = LINE) -> list[Line]:
    """Break a prompt and its readings at one level into lines of at most ``width`` characters."""
    original = [visible(token) for token in prompt.tokens]
    rows = [
        Row(
            words.attack_name(reading.attack),
            f"{sum(reading.hits)} of {len(reading.hits)}",
            [(visible(token), hit) for token, hit in zip(reading.tokens, reading.hits, strict=True)],
        )
        for reading in level.readings
    ]
    columns = [[token, *(row.cells[place][0] for row in rows)] for place, token in enumerate(original)]
    return [
        Line(original[part], [Row(row.attack, row.count, row.cells[part]) for row in rows])
        for part in breaks(columns, width)
    ]


def shown(prompts: Sequence[GalleryPrompt]) -> list[dict[str, Any]]:
    """The gallery as the page's template wants it."""
    return [
        {
            "text": "".join(prompt.tokens).strip(),
            "levels": [(level.label, words.guarantee(level.privacy), lines(prompt, level)) for level in prompt.levels],
        }
        for prompt in prompts
    ]
