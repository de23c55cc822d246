"""Input inference: what the decoded text around a position says about it.

Every position is snapped to the token another attack takes for most likely. Then each one in turn is hidden, and a
language model fills the gap from the perturbed text around it. The release at the position itself is not used: a hit
means that the context alone, as noisy as it was decoded, gives the token away. SANTEXT (Yue et al. 2021) introduced it
as mask token inference for text whose words were replaced; InferDPT (arXiv 2310.12214) calls it input inference.

A masked language model reads both sides; where none is at hand the frozen causal one predicts from the left side. A
masked model cuts text into other tokens than the LLM does, so the two meet in the text:

    private tokens    " Batt" "alion" " was" ...   piece j is hidden
    text              [pieces before j] [mask] [pieces after j]
    masked model      its own tokens of the left text, the mask, its own tokens of the right text

The mask's place is the count of tokens on its left. It is never searched for: the text may hold the mask itself.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import torch
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from del_lightning import assets
from del_lightning.errors import AssetError, ConfigError
from del_lightning.llm import FrozenLLM, quiet
from del_lightning.methods import Method, Release
from del_lightning.prompt import SoftPrompt

NAME = "input inference"

Snap = Callable[[Method, Release, Tensor], Mapping[str, Tensor]]
"""Any attack: its first guess says which token stands where."""

Predictor = Callable[[Tensor, int], Tensor]
"""(tokens (L,), k) -> (L, k): the k most likely tokens of every position, judged by the others."""

_UNREADABLE = "\ufffd"


class InputInference:
    """The attack. Called like any :class:`del_lightning.attacks.Attack`.

    Args:
        snap: Decodes the release first; Bayes-optimal or nearest neighbour.
        predictor: Fills the gaps: :class:`MaskedPredictor` or :class:`CausalPredictor`.
    """

    name = NAME

    def __init__(self, snap: Snap, predictor: Predictor) -> None:
        self.snap, self.predictor = snap, predictor

    @torch.no_grad()
    def __call__(self, method: Method, release: Release, lengths: Tensor, top_k: int = 1) -> Mapping[str, Tensor]:
        """Guess every token of ``release`` (1, N, ...), S sequences of ``lengths`` (S,): {name: (N, top_k)}.

        Raises:
            ConfigError: The lengths do not sum to N.
        """
        snapped = next(iter(self.snap(method, release, lengths).values()))[:, 0]
        if int(lengths.sum()) != len(snapped):
            raise ConfigError(f"`lengths` must sum to the {len(snapped)} tokens released, got {int(lengths.sum())}")
        parts = torch.split(snapped, lengths.tolist())
        guesses = [self.predictor(tokens, top_k) for tokens in parts if len(tokens)]
        return {self.name: torch.cat(guesses) if guesses else snapped.new_empty(0, top_k)}


class CausalPredictor:
    """The frozen LLM predicts each token from those on its left, in one forward pass a sequence.

    Args:
        llm: Frozen language model.
        prefix_ids: Public tokens in front of the private ones; may be empty behind a soft prompt.
        soft_prompt: In front of everything; None runs without.

    Raises:
        ConfigError: Nothing stands in front of the first token.
    """

    def __init__(self, llm: FrozenLLM, prefix_ids: Sequence[int], soft_prompt: SoftPrompt | None = None) -> None:
        if not prefix_ids and soft_prompt is None:
            raise ConfigError("`prefix_ids` must hold a token when there is no soft prompt, got none")
        self.llm, self.prefix_ids, self.soft_prompt = llm, list(prefix_ids), soft_prompt

    @torch.no_grad()
    def __call__(self, tokens: Tensor, top_k: int = 1) -> Tensor:
        """Most likely tokens (L, top_k) of every position of ``tokens`` (L,)."""
        ids = torch.cat([torch.tensor(self.prefix_ids, dtype=torch.long, device=tokens.device), tokens[:-1]])
        embeddings = self.llm.embed(ids)[None]
        if self.soft_prompt is not None:
            embeddings = torch.cat([self.soft_prompt(1, embeddings.dtype), embeddings], 1)
        seen = torch.ones(embeddings.shape[:2], dtype=torch.bool, device=tokens.device)
        last = torch.arange(embeddings.shape[1], device=tokens.device) >= embeddings.shape[1] - len(tokens)
        return self.llm.logits(embeddings, seen, last[None]).topk(top_k).indices


class MaskedPredictor:
    """A masked language model predicts each token from those on both sides, in one forward pass a token.

    What it fills in is a piece of text; the guess is the LLM's token with that text. A word that the LLM writes in
    several tokens stands for the longest of its beginnings that is one. A space in front of the snapped token stays.

    Args:
        model: Masked language model.
        tokenizer: Its tokenizer; must have a mask token.
        llm: The LLM whose tokens are guessed.
        batch: Gaps filled at a time.

    Raises:
        ConfigError: The tokenizer has no mask token, or ``batch`` is not positive.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, llm: FrozenLLM, batch: int = 32
    ) -> None:
        if tokenizer.mask_token_id is None:
            raise ConfigError(f"`tokenizer` must have a mask token, got {type(tokenizer).__name__} without one")
        if batch < 1:
            raise ConfigError(f"`batch` must be at least 1, got {batch!r}")
        self.model, self.tokenizer, self.batch = model.requires_grad_(False), tokenizer, batch
        self.model.train(False)
        self.pieces = pieces(llm.tokenizer, llm.vocab_size)
        self._token = _translation(pieces(tokenizer, model.config.vocab_size), tokenizer.all_special_ids, self.pieces)
        self._open = _first(tokenizer.cls_token_id, tokenizer.bos_token_id)
        self._close = _first(tokenizer.sep_token_id, tokenizer.eos_token_id)
        # RoBERTa's kind counts positions from 2, so two fewer than its table has rows are free.
        table = getattr(model.config, "max_position_embeddings", tokenizer.model_max_length) - 2
        self._room = min(tokenizer.model_max_length, table) - len(self._open) - len(self._close) - 1

    @classmethod
    def load(cls, name: str, llm: FrozenLLM, batch: int = 32) -> Self:
        """Load a packaged asset, a local folder or a hub id; no remote code is run.

        Raises:
            AssetError: It cannot be loaded, or is no masked language model.
            ConfigError: As for the class.
        """
        source = check_masked_model(name)
        try:
            with quiet():
                tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
                model, report = AutoModelForMaskedLM.from_pretrained(
                    source, use_safetensors=True, trust_remote_code=False, output_loading_info=True
                )
        except (OSError, ValueError, SafetensorError, HFValidationError) as error:
            raise _unusable(name, str(error).strip().split("\n", maxsplit=1)[0]) from error
        if report["missing_keys"]:  # an encoder without its head would predict at random
            raise _unusable(name, f"{len(report['missing_keys'])} weights are missing")
        return cls(model.to(llm.device), tokenizer, llm, batch)

    @torch.no_grad()
    def __call__(self, tokens: Tensor, top_k: int = 1) -> Tensor:
        """Most likely tokens (L, top_k) of every position of ``tokens`` (L,)."""
        texts = [self.pieces[token] for token in tokens.tolist()]
        guesses = [
            self._fill(texts, range(start, min(start + self.batch, len(texts))), top_k)
            for start in range(0, len(texts), self.batch)
        ]
        return torch.cat(guesses).to(tokens.device)

    def _fill(self, texts: list[str], gaps: range, top_k: int) -> Tensor:
        """Guesses (n, top_k) of some positions."""
        rows, places = zip(*(self.masked("".join(texts[:j]), "".join(texts[j + 1 :])) for j in gaps), strict=True)
        width = max(map(len, rows))
        pad = self.tokenizer.pad_token_id or 0
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=self.model.device)
        real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=self.model.device)
        logits: Tensor = self.model(input_ids=ids, attention_mask=real).logits
        filled = logits[torch.arange(len(rows)), torch.tensor(places)].float()
        spaced = torch.tensor([texts[j][:1].isspace() for j in gaps], device=filled.device)
        target = self._token.to(filled.device)[spaced.long()]
        # Several fillings may be one token of the LLM (upper case, a space more): the best counts.
        scores = filled.new_full((len(rows), len(self.pieces)), -torch.inf)
        filled = filled.masked_fill(target < 0, -torch.inf)
        return scores.scatter_reduce(1, target.clamp(min=0), filled, "amax").topk(top_k).indices

    def masked(self, left: str, right: str) -> tuple[list[int], int]:
        """Ids of the masked model for a gap between two texts, and the gap's place among them.

        Text that does not fit is cut at its far ends; each side gets half the room, and what the other leaves.
        """
        before, after = (
            self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in (left, right)
        )
        half = self._room // 2
        kept = min(len(before), max(half, self._room - len(after)))
        before, after = before[len(before) - kept :], after[: self._room - kept]
        ids = [*self._open, *before, self.tokenizer.mask_token_id, *after, *self._close]
        return ids, len(self._open) + len(before)


def _first(*ids: int | None) -> list[int]:
    """The first id that exists, as a list of one or none."""
    return [i for i in ids if i is not None][:1]


def pieces(tokenizer: PreTrainedTokenizerBase, size: int) -> list[str]:
    """Text of each of ``size`` token ids as it stands inside a text; empty where the id has none.

    Decoded behind a letter, because some tokenizers drop the space in front of a text's first word.
    """
    anchor = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    count = min(size, len(tokenizer))
    rows = [anchor] + [[*anchor, i] for i in range(count)]
    texts = tokenizer.batch_decode(rows, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return [text[len(texts[0]) :] for text in texts[1:]] + [""] * (size - count)


def _translation(fillings: list[str], special: Sequence[int], own: list[str]) -> Tensor:
    """The LLM's token for each filling, (2, fillings) int64, -1 for none: without and with a space in front."""
    known = {text: token for token, text in reversed(list(enumerate(own))) if text and _UNREADABLE not in text}
    table = torch.full((2, len(fillings)), -1)
    for i, text in enumerate(fillings):
        word = text.strip()
        if word and i not in special and _UNREADABLE not in word:
            table[0, i] = _longest(word, known)
            if text[0].isspace():  # a filling that continues a word cannot follow a space
                table[1, i] = _longest(" " + word, known)
    return table


def _longest(text: str, known: dict[str, int]) -> int:
    return next((known[text[:n]] for n in range(len(text), 0, -1) if text[:n].strip() and text[:n] in known), -1)


def check_masked_model(name: str) -> str:
    """Fail in seconds on what is neither here nor to be had: the hub's own client would try for long.

    Returns:
        Folder of a packaged model, otherwise ``name`` itself.

    Raises:
        AssetError: :meth:`MaskedPredictor.load` would fail.
    """
    source = str(assets.packaged_path(name)) if assets.is_packaged(name) else name
    try:
        AutoConfig.from_pretrained(source, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError) as error:
        problem = str(error).strip().split("\n", maxsplit=1)[0] if Path(source).is_dir() else assets.hub_problem()
        if problem is not None:
            raise _unusable(name, problem) from error
    return source


def _unusable(name: str, reason: str) -> AssetError:
    return AssetError(f"`name` must be a masked language model, got {name!r}: {reason}")
