"""GLUE: sentences or pairs of them to classify, all private inside a public template.

    Sentence 1: <private> Sentence 2: <private> Same meaning:   ->   " yes" or " no", or the class that a head reads

GLUE hides the labels of its test split, so its validation split is the test split here: it is reported and never
selects anything. What selects (best checkpoint, calibration) is cut from GLUE's training split, in a way that depends
on no seed. A seed draws the training examples from the rest.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from del_lightning.config import NluConfig
from del_lightning.data.corpora import check_columns, check_hub, parquet_files, read_parquet
from del_lightning.data.generation import (
    Batch,
    Prompt,
    SteppedDataModule,
    batch_loader,
    deal,
    evenly,
    opening_ids,
    pad_id,
)
from del_lightning.data.tokens import Ragged, tokenize, tokenizer_content
from del_lightning.errors import ConfigError, DataError
from del_lightning.seeding import stream

FOLDER = "glue"
"""Folder under ``data.root``; inside it one folder a task with ``{train,validation}-*.parquet``."""
HUB = "nyu-mll/glue"
HELD_OUT_SHARE, HELD_OUT_MOST = 0.1, 1000
"""Part of GLUE's training split that selects: this share of its rows, at most so many."""


@dataclass(frozen=True)
class GlueTask:
    """One task: where its text is and what the model is asked.

    Attributes:
        name: GLUE's configuration name.
        columns: Text columns, all of them private.
        pieces: Public text in front of each sentence, and at the end; one more than columns. No piece ends in a
            space: sentences are tokenised with one in front, as label words are.
        words: Label words of class 0 and class 1, as the model would continue the template.
        metric: GLUE's own metric besides accuracy: f1, matthews or accuracy itself.
        attribute: What an attacker would like to know of a text besides its class, in words ...
        pattern: ... and the regular expression that finds it in any of the sentences.
    """

    name: str
    columns: tuple[str, ...]
    pieces: tuple[str, ...]
    words: tuple[str, str]
    metric: str
    attribute: str
    pattern: str


_SAME = "\nSame meaning:"
_NUMBER = "mentions a number", r"\d"
_FIRST_PERSON = "speaks in the first person", r"(?i)\b(i|me|my|mine|we|us|our)\b"
_NEGATION = "negates", r"(?i)\b(not|no|never|nor|nothing|without)\b|n't\b"

TASKS: dict[str, GlueTask] = {
    task.name: task
    for task in (
        GlueTask(
            "sst2", ("sentence",), ("Review:", "\nSentiment:"), (" negative", " positive"), "accuracy", *_NEGATION
        ),
        GlueTask("cola", ("sentence",), ("Sentence:", "\nGrammatical:"), (" no", " yes"), "matthews", *_FIRST_PERSON),
        GlueTask(
            "mrpc",
            ("sentence1", "sentence2"),
            ("Sentence 1:", "\nSentence 2:", _SAME),
            (" no", " yes"),
            "f1",
            *_NUMBER,
        ),
        GlueTask(
            "qqp",
            ("question1", "question2"),
            ("Question 1:", "\nQuestion 2:", _SAME),
            (" no", " yes"),
            "f1",
            *_FIRST_PERSON,
        ),
        # GLUE's class 0 of these two is "entailment".
        GlueTask(
            "rte",
            ("sentence1", "sentence2"),
            ("Text:", "\nHypothesis:", "\nThe text implies it:"),
            (" yes", " no"),
            "accuracy",
            *_NUMBER,
        ),
        GlueTask(
            "qnli",
            ("question", "sentence"),
            ("Question:", "\nSentence:", "\nIt answers the question:"),
            (" yes", " no"),
            "accuracy",
            *_NUMBER,
        ),
    )
}
"""The binary tasks of GLUE that are known here."""


@dataclass(frozen=True)
class Rows:
    """Rows of one split of GLUE: ``texts[column][row]`` and ``labels[row]`` (0 or 1)."""

    texts: tuple[list[str], ...]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class LabelledBatch(Batch):
    """A batch with one class a sequence, and no continuation: the last position answers.

    Attributes:
        label: (B,) int64, 0 or 1.
    """

    label: Tensor


@dataclass(frozen=True)
class LabelledExample:
    """One sequence: its tokens, which of them are private, its class and its number."""

    ids: list[int]
    private: list[bool]
    label: int
    index: int

    def __len__(self) -> int:
        return len(self.ids)


def collate_labelled(examples: Sequence[LabelledExample], pad_id: int) -> LabelledBatch:
    """Put examples side by side, padded on the left to the longest."""
    shape = (len(examples), max(map(len, examples)))
    ids = torch.full(shape, pad_id)
    attention, private = (torch.zeros(shape, dtype=torch.bool) for _ in range(2))
    for row, example in enumerate(examples):
        start = shape[1] - len(example)
        ids[row, start:] = torch.tensor(example.ids)
        attention[row, start:] = True
        private[row, start:] = torch.tensor(example.private)
    return LabelledBatch(
        ids,
        attention,
        private,
        target_mask=torch.zeros(shape, dtype=torch.bool),
        index=torch.tensor([example.index for example in examples]),
        label=torch.tensor([example.label for example in examples]),
    )


def glue_task(name: str) -> GlueTask:
    """The task of that name.

    Raises:
        ConfigError: There is none.
    """
    if name not in TASKS:
        raise ConfigError(f"`nlu.task` must be one of {', '.join(TASKS)}, got {name!r}")
    return TASKS[name]


def check_glue(task: str, root: str | None) -> None:
    """Find out in seconds, reading no text, whether :func:`load_rows` can deliver.

    Raises:
        DataError: Missing root, file or column; unreachable hub.
        ConfigError: Unknown task.
    """
    if root is None:
        check_hub(task, HUB, "nlu.task")
        return
    for split in ("train", "validation"):
        check_columns(parquet_files(root, f"{FOLDER}/{task}", split), [*glue_task(task).columns, "label"])


def load_rows(task: GlueTask, split: str, root: str | None) -> Rows:
    """Rows of GLUE's own split ``train`` or ``validation`` that hold any text.

    Raises:
        DataError: The data cannot be found or read, a label is neither 0 nor 1, a sentence is no text, or there is
            none at all.
    """
    names = [*task.columns, "label"]
    columns = (
        _from_hub(task, split, names) if root is None else read_parquet(root, f"{FOLDER}/{task.name}", split, names)
    )
    *texts, labels = columns
    source = HUB if root is None else f"{FOLDER}/{task.name}/{split}-*.parquet"
    where = f"split {split!r} of `nlu.task` {task.name!r} ({source})"
    if others := [label for label in labels if label not in (0, 1)]:
        raise DataError(f"{where} must hold 0 or 1 in column 'label', got {others[0]!r}")
    for name, column in zip(task.columns, texts, strict=True):
        if others := [text for text in column if not isinstance(text, str | None)]:
            raise DataError(f"{where} must hold text in column {name!r}, got {others[0]!r}")
    stripped = [[(text or "").strip() for text in column] for column in texts]
    kept = [i for i in range(len(labels)) if any(column[i] for column in stripped)]
    if not kept:
        raise DataError(f"{where} must hold text in {' or '.join(task.columns)}, got {len(labels)} rows without any")
    return Rows(tuple([column[i] for i in kept] for column in stripped), [int(labels[i]) for i in kept])


def _from_hub(task: GlueTask, split: str, names: list[str]) -> list[list[Any]]:
    import datasets

    check_hub(task.name, HUB, "nlu.task")
    try:
        rows = datasets.load_dataset(HUB, name=task.name, split=split)
        return [list(rows[name]) for name in names]
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(
            f"`nlu.task` {task.name!r}: the hub's {HUB} cannot be read ({reason}); put "
            f"{FOLDER}/{task.name}/<split>-*.parquet with columns {', '.join(names)} under `data.root`, now null"
        ) from error


class GlueData:
    """One task, tokenised and divided: ``train``, ``validation`` (selects) and ``test`` (GLUE's validation split).

    It also answers what attacks and calibration ask of any data: private prompts, random private tokens, counts.

    Args:
        task: What is classified.
        tokenizer: Of the model in use.
        config: Sizes of the parts, longest sentence.
        root: Folder with the parquet files; None takes them from the hub.
    """

    def __init__(self, task: GlueTask, tokenizer: PreTrainedTokenizerBase, config: NluConfig, root: str | None) -> None:
        self.task, self.tokenizer, self.config, self.root = task, tokenizer, config, root
        self._rows: dict[str, Rows] = {}
        self._sentences: dict[str, list[list[list[int]]]] = {}

    def rows(self, split: str) -> Rows:
        """GLUE's split ``train``, or as ``test`` the rows of its validation split that are reported."""
        if split not in self._rows:
            rows = load_rows(self.task, "validation" if split == "test" else split, self.root)
            if split == "test":
                chosen = evenly(len(rows), self.config.eval_examples or len(rows))
                rows = Rows(tuple([texts[i] for i in chosen] for texts in rows.texts), [rows.labels[i] for i in chosen])
            self._rows[split] = rows
        return self._rows[split]

    def sentences(self, split: str) -> list[list[list[int]]]:
        """Token ids of every private sentence of :meth:`rows`, cut to ``nlu.sentence_tokens``: [row][column]."""
        if split not in self._sentences:
            columns = [
                tokenize([f" {text}" for text in texts], self.tokenizer).rows() for texts in self.rows(split).texts
            ]
            longest = self.config.sentence_tokens
            self._sentences[split] = [[ids[:longest].tolist() for ids in row] for row in zip(*columns, strict=True)]
        return self._sentences[split]

    @cached_property
    def pieces(self) -> list[list[int]]:
        """Token ids of the public pieces of the template."""
        first, *rest = self.task.pieces
        later = [list(self.tokenizer(piece, add_special_tokens=False)["input_ids"]) for piece in rest]
        return [opening_ids(first, self.tokenizer), *later]

    @cached_property
    def word_ids(self) -> list[int]:
        """First token of each class's label word, which a verbaliser compares.

        Raises:
            ConfigError: Both words begin with the same token.
        """
        ids = [int(self.tokenizer(word, add_special_tokens=False)["input_ids"][0]) for word in self.task.words]
        if ids[0] == ids[1]:
            raise ConfigError(
                f"`nlu.head` must be linear with a tokenizer to which {self.task.words} begin alike, got 'verbaliser'"
            )
        return ids

    # --- parts -------------------------------------------------------------------------------------------------------

    @property
    def held_out_rows(self) -> list[int]:
        """Rows of GLUE's training split that select and never train."""
        return self._division[0]

    @cached_property
    def _division(self) -> tuple[list[int], list[int]]:
        """Rows of GLUE's training split that (select, train); the same for every seed."""
        count = len(self.rows("train"))
        order = torch.randperm(count, generator=stream("glue held out", self.task.name)).tolist()
        held_out = max(1, min(HELD_OUT_MOST, round(HELD_OUT_SHARE * count)))
        return order[:held_out], order[held_out:]

    def pool(self, most: int) -> list[int]:
        """Rows that may train, whatever the seed; at most so many."""
        return self._division[1][:most]

    def training_rows(self, seed: int) -> list[int]:
        """Rows of the training examples of one seed, in random order: ``nlu.train_examples`` of them, or all."""
        _, pool = self._division
        order = torch.randperm(len(pool), generator=stream("glue training", self.task.name, seed)).tolist()
        return [pool[i] for i in order[: self.config.train_examples]]

    def part(self, name: str, seed: int = 0) -> list[LabelledExample]:
        """Examples of ``train`` (of one seed), ``validation`` or ``test``; each numbered by its place in the list."""
        match name:
            case "test":
                rows = list(range(len(self.rows("test"))))
            case "validation":
                rows = self._division[0][: self.config.selection_examples]
            case _:
                rows = self.training_rows(seed)
        split = "test" if name == "test" else "train"
        return [self._example(split, row, index) for index, row in enumerate(rows)]

    def _example(self, split: str, row: int, index: int) -> LabelledExample:
        """The template around the row's sentences."""
        ids, private = list(self.pieces[0]), [False] * len(self.pieces[0])
        for sentence, piece in zip(self.sentences(split)[row], self.pieces[1:], strict=True):
            ids += sentence + piece
            private += [True] * len(sentence) + [False] * len(piece)
        return LabelledExample(ids, private, self.rows(split).labels[row], index)

    def batches(self, name: str, size: int, seed: int = 0) -> list[LabelledBatch]:
        """A part in batches, similar lengths together."""
        examples = sorted(self.part(name, seed), key=len)
        padding = pad_id(self.tokenizer)
        return [collate_labelled(examples[start : start + size], padding) for start in range(0, len(examples), size)]

    def attributes(self, split: str, rows: Sequence[int]) -> dict[str, list[int]]:
        """What an attacker would like to know of rows of :meth:`rows`: their class, and the task's attribute.

        The attribute is that of the text which is sent, after cutting; the class is the whole text's.
        """
        labels, sentences = self.rows(split).labels, self.sentences(split)
        pattern = re.compile(self.task.pattern)
        texts = [[str(self.tokenizer.decode(ids)) for ids in sentences[row]] for row in rows]
        return {
            "class": [labels[row] for row in rows],
            self.task.attribute: [int(any(pattern.search(text) for text in row)) for row in texts],
        }

    def private_rows(self, split: str, rows: Sequence[int]) -> list[list[int]]:
        """Private tokens of rows of :meth:`rows`, the sentences one after the other."""
        sentences = self.sentences(split)
        return [[token for sentence in sentences[row] for token in sentence] for row in rows]

    @cached_property
    def majority(self) -> int:
        """The more frequent class of the rows that may train."""
        labels = self.rows("train").labels
        _, pool = self._division
        return int(2 * sum(labels[row] for row in pool) > len(pool))

    # --- what attacks and calibration ask of any data ----------------------------------------------------------------

    def prompts(self) -> list[Prompt]:
        """Private part of every test example: both sentences, one after the other."""
        return self._prompts

    @cached_property
    def _prompts(self) -> list[Prompt]:
        rows = range(len(self.rows("test")))
        texts = zip(*self.rows("test").texts, strict=True)
        private = self.private_rows("test", rows)
        return [Prompt(self.pieces[0], ids, [], "\n".join(text), "") for ids, text in zip(private, texts, strict=True)]

    def private_tokens(self, split: str, n: int, seed: int) -> Tensor:
        """``n`` random private tokens (n,) int64 of part ``train``, ``validation`` (all that is held out) or ``test``.

        Drawn without replacement as long as they last.
        """
        pool = torch.from_numpy(self.tokens(split).flat.astype(np.int64))
        generator = stream("private tokens", seed)
        if len(pool) < n:
            return pool[torch.randint(len(pool), (n,), generator=generator)]
        return pool[torch.randperm(len(pool), generator=generator)[:n]]

    def unigram_counts(self, vocab_size: int, split: str = "train") -> Tensor:
        """How often each token occurs in the private text of a part: (vocab_size,) int64."""
        return torch.bincount(torch.from_numpy(self.tokens(split).flat).long(), minlength=vocab_size)[:vocab_size]

    def tokens(self, split: str) -> Ragged:
        """The private text of a part, a row an example: what an attacker learns from which token follows which."""
        rows = self.private_rows("test", range(len(self.rows("test")))) if split == "test" else self._part_rows(split)
        offsets = np.cumsum([0, *map(len, rows)])
        return Ragged(np.fromiter((token for row in rows for token in row), dtype=np.int32), offsets)

    def _part_rows(self, split: str) -> list[list[int]]:
        held_out, pool = self._division
        return self.private_rows("train", held_out if split == "validation" else pool)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over text, labels, tokenizer, template and sizes; not over where the text was found."""
        names = ("sentence_tokens", "train_examples", "selection_examples", "eval_examples")
        sizes = {name: getattr(self.config, name) for name in names}
        rows = [asdict(self.rows(split)) for split in ("train", "test")]
        content = json.dumps([asdict(self.task), sizes, tokenizer_content(self.tokenizer), rows], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


class GlueDataModule(SteppedDataModule):
    """Training and selecting batches of one seed; training ones continue at the trainer's step.

    Args:
        data: The task.
        batch_size: Examples a training batch and rank.
        seed: Of the training examples and of their order.
    """

    def __init__(self, data: GlueData, batch_size: int, seed: int) -> None:
        super().__init__(batch_size, seed)
        self.data = data

    def train_dataloader(self) -> "DataLoader[Batch]":
        """Endless training batches of similar lengths; a global batch holds ``batch_size`` a rank."""
        return batch_loader(lambda: self._training_batches(self.data.part("train", self.seed)))

    def _training_batches(self, examples: list[LabelledExample]) -> Iterator[Batch]:
        lengths = torch.tensor([len(example) for example in examples])
        for batch in self.steps(len(examples), lengths):
            yield collate_labelled([examples[item] for _, item in batch], pad_id(self.data.tokenizer))

    def val_dataloader(self) -> "DataLoader[Batch]":
        """The selecting part, each example on one rank only."""
        rank, world = self.place_among_ranks()
        examples = sorted(self.data.part("validation"), key=len)
        if len(examples) < world:
            raise DataError(f"`nlu.selection_examples` must give each of {world} ranks one, got {len(examples)}")
        dealt, padding = deal(examples, rank, world, self.data.config.eval_batch_size), pad_id(self.data.tokenizer)
        return batch_loader(lambda: (collate_labelled(part, padding) for part in dealt))
