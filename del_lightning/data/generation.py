"""Text generation: prompts with a private part, and the batches that training and evaluation run on.

    training     [public prefix | private, 5-50% of a block | rest of the block: continuation]
    evaluation   [public prefix | private, first words of a text | rest of the text: reference]

Training batches are a pure function of (seed, step, rank), so a resumed run sees what an uninterrupted one would.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from itertools import pairwise
from typing import Self, TypeVar

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedTokenizerBase

from del_lightning.config import DataConfig
from del_lightning.data.corpora import SPLITS, Corpus
from del_lightning.data.tokens import IntArray, Ragged, tokenize, tokenizer_content, unigram_counts
from del_lightning.errors import DataError
from del_lightning.seeding import stream

Item = TypeVar("Item")

SORTED_BATCHES = 50
"""Global batches that are sorted by length together: many enough to save padding, few enough to stay random."""


@dataclass(frozen=True, eq=False)
class Batch:
    """B sequences of T tokens, padded on the left.

    Attributes:
        input_ids: (B, T) int64.
        attention_mask: (B, T) bool, false on padding.
        private_mask: (B, T) bool, true on private prompt tokens: they alone pass the front-end.
        target_mask: (B, T) bool, true on continuation tokens that are scored; each is predicted one place earlier.
        index: (B,) int64, number of the example.
    """

    input_ids: Tensor
    attention_mask: Tensor
    private_mask: Tensor
    target_mask: Tensor
    index: Tensor

    def to(self, device: torch.device | str) -> Self:
        """Copy on ``device``."""
        return replace(self, **{field.name: getattr(self, field.name).to(device) for field in fields(self)})


@dataclass(frozen=True)
class Prompt:
    """One evaluation prompt.

    Attributes:
        prefix_ids: Public instruction, with the tokenizer's opening token if it has one.
        private_ids: Private prompt, at least one token.
        reference_ids: What really follows, cut to ``data.reference_tokens``, at least one token.
        prompt: Text of the private prompt.
        reference: Text of everything that follows; ``prompt + reference`` is the original.
    """

    prefix_ids: list[int]
    private_ids: list[int]
    reference_ids: list[int]
    prompt: str
    reference: str

    def private_tensor(self) -> Tensor:
        """Private prompt (n,) int64."""
        return torch.tensor(self.private_ids)


@dataclass(frozen=True)
class Example:
    """One sequence in its three parts, and its number."""

    prefix: Sequence[int]
    private: Sequence[int]
    continuation: Sequence[int]
    index: int

    def __len__(self) -> int:
        return len(self.prefix) + len(self.private) + len(self.continuation)


def collate(examples: Sequence[Example], pad_id: int) -> Batch:
    """Put examples side by side, padded on the left to the longest."""
    shape = (len(examples), max(map(len, examples)))
    ids = torch.full(shape, pad_id)
    attention, private, target = (torch.zeros(shape, dtype=torch.bool) for _ in range(3))
    for row, example in enumerate(examples):
        start, end = shape[1] - len(example), shape[1] - len(example.continuation)
        ids[row, start:] = torch.tensor([*example.prefix, *example.private, *example.continuation])
        attention[row, start:] = True
        private[row, start + len(example.prefix) : end] = True
        target[row, end:] = True
    return Batch(ids, attention, private, target, torch.tensor([example.index for example in examples]))


def opening_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a text that opens a sequence, after the tokenizer's opening token if it has one."""
    ids: list[int] = list(tokenizer(text)["input_ids"])
    while ids and ids[-1] == tokenizer.eos_token_id != tokenizer.bos_token_id:
        ids.pop()  # some tokenizers close every text, but this one goes on
    return ids


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Token id under the padding."""
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(i for i in candidates if i is not None)


class SteppedDataModule(L.LightningDataModule):
    """Endless training batches that are a function of seed, step and rank alone.

    Args:
        batch_size: Items a training batch and rank.
        seed: Of the order of the items.
    """

    def __init__(self, batch_size: int, seed: int) -> None:
        super().__init__()
        self.batch_size, self.seed = batch_size, seed

    def steps(self, items: int, lengths: Tensor | None = None) -> Iterator[list[tuple[int, int]]]:
        """This rank's batches from the trainer's step on: (place in training, number of the item) of each member.

        All ranks walk one seeded permutation an epoch, side by side. What does not fill a global batch at the end
        of an epoch is left out, so no item occurs twice in a step (unless there are too few to fill one). With
        ``lengths`` (items,) a global batch holds items of similar length, which saves padding.
        """
        rank, world = self.place_among_ranks()
        together = self.batch_size * world
        epoch_length = max(items // together * together, min(items, together))
        step, epoch, order = self._first_batch(), -1, torch.empty(0)
        while True:
            batch = []
            for place in range(
                step * together + rank * self.batch_size, step * together + (rank + 1) * self.batch_size
            ):
                if place // epoch_length != epoch:
                    epoch = place // epoch_length
                    generator = stream("order", self.seed, epoch)
                    order = torch.randperm(items, generator=generator)[:epoch_length]
                    order = order if lengths is None else _similar_together(order, lengths, together, generator)
                batch.append((place, int(order[place % epoch_length])))
            yield batch
            step += 1

    def _first_batch(self) -> int:
        return self.trainer.global_step * self.trainer.accumulate_grad_batches if self.trainer else 0

    def place_among_ranks(self) -> tuple[int, int]:
        """(rank, number of ranks)."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


class GenerationDataModule(SteppedDataModule):
    """Batches of one corpus for training, validation and evaluation.

    Args:
        corpus: Text.
        tokenizer: Of the model in use.
        config: How text is cut.
        batch_size: Sequences a training batch and rank.
        seed: Of the order and the splits of training blocks.
        split_ratio: Range of a block's private share; None takes ``config.split_ratio``.
        block_tokens: Length of a block, prefix not counted; None takes ``config.train_tokens``.
        documents: Most documents used of each split; None uses all.

    Attributes:
        second_half: Whether training blocks come from the second half of the training split alone.
    """

    second_half: bool

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: PreTrainedTokenizerBase,
        config: DataConfig,
        *,
        batch_size: int,
        seed: int,
        split_ratio: Sequence[float] | None = None,
        block_tokens: int | None = None,
        documents: int | None = None,
    ) -> None:
        super().__init__(batch_size, seed)
        self.corpus, self.tokenizer, self.config, self.documents = corpus, tokenizer, config, documents
        self.split_ratio = list(split_ratio or config.split_ratio)
        self.block_tokens = block_tokens or config.train_tokens
        self.second_half = False
        self._tokens: dict[str, Ragged] = {}

    # --- text ------------------------------------------------------------------------------------------------------

    def texts(self, split: str) -> list[str]:
        """Documents of ``split`` that are used."""
        return self.corpus.documents(split)[: self.documents]

    def tokens(self, split: str) -> Ragged:
        """Their token ids, without special tokens."""
        if split not in self._tokens:
            self._tokens[split] = tokenize(self.texts(split), self.tokenizer)
        return self._tokens[split]

    def unigram_counts(self, vocab_size: int, split: str = "train") -> Tensor:
        """How often each token occurs in ``split``: (vocab_size,) int64."""
        return unigram_counts(self.tokens(split), vocab_size)

    @cached_property
    def prefix_ids(self) -> list[int]:
        """Public instruction, after the tokenizer's opening token if it has one."""
        return opening_ids(self.config.prefix, self.tokenizer)

    @cached_property
    def pad_id(self) -> int:
        """Token id under the padding."""
        return pad_id(self.tokenizer)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over text, tokenizer and cutting; not over seed, batch sizes and where the text was found.

        Nor over which test prompts come first: nothing is trained on them.
        """
        left_out = ("root", "eval_batch_size", "first_prompt")
        settings = {k: v for k, v in asdict(self.config).items() if k not in left_out}
        settings |= {"ratio": self.split_ratio, "block": self.block_tokens, "documents": self.documents}
        texts = [self.texts(split) for split in SPLITS]
        content = json.dumps([settings, tokenizer_content(self.tokenizer), texts], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    # --- training and validation blocks ----------------------------------------------------------------------------

    def train_dataloader(self) -> "DataLoader[Batch]":
        """Endless training batches, continuing at the trainer's step; a global batch holds ``batch_size`` a rank."""
        blocks = self.blocks("train")
        return batch_loader(lambda: self._training_batches(blocks))

    def val_dataloader(self) -> "DataLoader[Batch]":
        """``validation_blocks`` blocks, the same with the same splits every time, each on one rank only.

        Raises:
            DataError: Fewer blocks than ranks: a rank without any would leave the others waiting.
        """
        blocks = self.blocks("validation")
        chosen = evenly(len(blocks), self.config.validation_blocks)
        rank, world = self.place_among_ranks()
        if len(chosen) < world:
            raise DataError(f"`data.validation_blocks` must give each of {world} ranks a block, got {len(chosen)}")
        examples = [self._block(blocks, i, stream("validation split", i)) for i in chosen]
        dealt = deal(examples, rank, world, self.config.eval_batch_size)
        return batch_loader(lambda: (collate(part, self.pad_id) for part in dealt))

    def blocks(self, split: str) -> IntArray:
        """Documents of ``split``, joined by line breaks, cut into blocks: (blocks, block_tokens).

        Raises:
            DataError: The text does not fill one block.
        """
        line_break = np.asarray(self.tokenizer("\n", add_special_tokens=False)["input_ids"], dtype=np.int32)
        rows = self.tokens(split).rows()
        if self.second_half and split == "train":
            rows = rows[len(rows) // 2 :]
        flat = np.concatenate([part for row in rows for part in (row, line_break)])
        count = len(flat) // self.block_tokens
        if count == 0:
            raise DataError(
                f"split {split!r} of {self.corpus} must fill a block of {self.block_tokens} tokens "
                f"(data.train_tokens or codec.sequence_tokens), got {len(flat)} tokens"
            )
        return flat[: count * self.block_tokens].reshape(count, self.block_tokens)

    def _training_batches(self, blocks: IntArray) -> Iterator[Batch]:
        for batch in self.steps(len(blocks)):
            examples = [self._block(blocks, block, stream("split", self.seed, place)) for place, block in batch]
            yield collate(examples, self.pad_id)

    def _block(self, blocks: IntArray, index: int, generator: torch.Generator) -> Example:
        """Block ``index``, cut at a random share into private part and continuation, both at least one token."""
        low, high = self.split_ratio
        share = low + (high - low) * float(torch.rand((), generator=generator))
        cut = min(max(round(share * self.block_tokens), 1), self.block_tokens - 1)
        ids = blocks[index].tolist()
        return Example(self.prefix_ids, ids[:cut], ids[cut:], index)

    # --- evaluation prompts ----------------------------------------------------------------------------------------

    def test_dataloader(self) -> "DataLoader[Batch]":
        """Batches [prefix; private; reference] of :meth:`prompts`, similar lengths together, all on every rank."""
        batches = self._prompt_batches(self.config.eval_batch_size, with_reference=True)
        return batch_loader(lambda: iter(batches))

    def generation_batches(self, batch_size: int) -> list[Batch]:
        """Batches [prefix; private] of :meth:`prompts`, similar lengths together."""
        return self._prompt_batches(batch_size, with_reference=False)

    def prompts(self) -> list[Prompt]:
        """At most ``max_prompts`` test prompts, evenly over the eligible texts; ``index`` counts in this list.

        Drawing starts at text ``first_prompt``, counted round where there are no so many.

        Raises:
            DataError: No text is eligible.
        """
        return self._prompts

    def private_tokens(self, split: str, n: int, seed: int) -> Tensor:
        """``n`` random private tokens (n,) int64, from prompts cut from ``split`` as the test prompts are.

        A split whose prompts have fewer than ``n`` tokens gives tokens of its whole text instead; drawn without
        replacement as long as they last.
        """
        rows = [prompt.private_ids for prompt in self._eligible(split)]
        pool = np.array([token for row in rows for token in row], dtype=np.int64)
        if len(pool) < n:
            pool = self.tokens(split).flat.astype(np.int64)
        if len(pool) == 0:
            raise DataError(f"split {split!r} of {self.corpus} must hold a token, got none")
        generator = stream("private tokens", seed)
        if len(pool) < n:
            chosen = torch.randint(len(pool), (n,), generator=generator)
        else:
            chosen = torch.randperm(len(pool), generator=generator)[:n]
        return torch.from_numpy(pool)[chosen]

    def private_sequences(self, split: str, n: int) -> list[list[int]]:
        """At most ``n`` private prompts cut from ``split`` as the test prompts are, evenly over its eligible texts.

        Raises:
            DataError: No text of the split is eligible.
        """
        eligible = self._eligible(split)
        if not eligible:
            raise DataError(
                f"split {split!r} of {self.corpus} must hold a text of data.min_words="
                f"{self.config.min_words} words, got none"
            )
        return [eligible[i].private_ids for i in evenly(len(eligible), n)]

    @cached_property
    def _prompts(self) -> list[Prompt]:
        eligible = self._eligible("test")
        if not eligible:
            raise DataError(
                f"the test split of {self.corpus} must hold a text of data.min_words="
                f"{self.config.min_words} words with at most data.max_prompt_tokens={self.config.max_prompt_tokens} "
                "tokens in the prompt, got none"
            )
        first = self.config.first_prompt
        return [eligible[(i + first) % len(eligible)] for i in evenly(len(eligible), self.config.max_prompts)]

    def _eligible(self, split: str) -> list[Prompt]:
        """Every text of ``split`` that is long enough, as a prompt."""
        cut = [pair for text in self.texts(split) if (pair := self._cut(text)) is not None]
        privates = tokenize([private for private, _ in cut], self.tokenizer).rows()
        references = tokenize([reference for _, reference in cut], self.tokenizer).rows()
        longest = self.config.max_prompt_tokens or max(map(len, privates), default=0)
        return [
            Prompt(self.prefix_ids, private.tolist(), reference[: self.config.reference_tokens].tolist(), *texts)
            for texts, private, reference in zip(cut, privates, references, strict=True)
            if 0 < len(private) <= longest and len(reference) > 0
        ]

    def _cut(self, text: str) -> tuple[str, str] | None:
        """(First words, rest), which together are ``text``; None when the text is too short."""
        ends = [word.end() for word in re.finditer(r"\S+", text)]
        if len(ends) < self.config.min_words:
            return None
        end = ends[self.config.prompt_words - 1]
        return text[:end], text[end:]

    def _prompt_batches(self, batch_size: int, *, with_reference: bool) -> list[Batch]:
        examples = [
            Example(prompt.prefix_ids, prompt.private_ids, prompt.reference_ids if with_reference else [], index)
            for index, prompt in enumerate(self.prompts())
        ]
        return self._batches(sorted(examples, key=len), batch_size)

    def _batches(self, examples: Sequence[Example], size: int) -> list[Batch]:
        return [collate(examples[start : start + size], self.pad_id) for start in range(0, len(examples), size)]


def _similar_together(order: Tensor, lengths: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """A random order (n,) with batches of similar length: sorted in pools of some batches, then batches shuffled."""
    pools = torch.split(order, SORTED_BATCHES * size)
    ordered = torch.cat([pool[lengths[pool].argsort(stable=True)] for pool in pools])
    batches = torch.split(ordered, size)
    return torch.cat([batches[i] for i in torch.randperm(len(batches), generator=generator)])


def evenly(available: int, wanted: int) -> list[int]:
    """``wanted`` numbers below ``available`` (or all of them), evenly spaced from 0."""
    count = min(available, wanted)
    return [i * available // count for i in range(count)]


def deal(items: Sequence[Item], rank: int, world: int, size: int) -> list[list[Item]]:
    """One rank's items in batches of about ``size``, every item on one rank, and equally many batches on all ranks.

    Ranks that share the layers of a model must run them equally often. One rank alone gets full batches first.
    """
    own, least, most = list(items[rank::world]), len(items) // world, -(-len(items) // world)
    if world == 1:
        return [own[start : start + size] for start in range(0, len(own), size)]
    count = min(-(-most // size), least)
    bounds = [i * len(own) // count for i in range(count + 1)]
    return [own[start:end] for start, end in pairwise(bounds)]


class _Batches(IterableDataset[Batch]):
    """Batches made anew at each pass. Iterable, so that lightning shards nothing on top of what is sharded here."""

    def __init__(self, make: Callable[[], Iterator[Batch]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Batch]:
        return self.make()


def batch_loader(make: Callable[[], Iterator[Batch]]) -> "DataLoader[Batch]":
    """Loader over batches that ``make`` makes anew at each pass."""
    return DataLoader(_Batches(make), batch_size=None)
