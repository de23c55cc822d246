"""The frozen causal language model that the server runs.

Any ``AutoModelForCausalLM`` will do. It comes from a packaged asset, a local folder or the hub, always as
safetensors and never with code of its own. :class:`FrozenLLM` shows the rest of the framework five things:

    embed(ids)                  token embeddings as the first layer receives them        (..., b)
    embedding_table()           the same for the whole vocabulary                        (V, b)
    logits(embeddings, keep)    next-token logits, computed only at the kept positions   (N, V)
    last(embeddings)            state and next-token logits after each whole sequence    (B, h), (B, V)
    generate(embeddings)        continuations, batched with left padding and a KV cache
"""

import hashlib
import inspect
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    Cache,
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.utils import logging as hf_logging

from del_lightning.errors import ConfigError

_FINGERPRINT_SAMPLES = 64
_PLAIN_ATTENTION_LENGTH = 128
"""Positions up to which unfused attention trains faster on a CPU in bfloat16: with torch 2.13 the fused kernel's
backward pass takes twice its time at 60 and at 112 positions, and less from 256 on."""


class FrozenLLM(nn.Module):
    """A causal LM that is never trained: no parameter takes a gradient, and it stays in evaluation mode.

    Gradients do flow *through* it to the input embeddings, which is how codec and soft prompt learn.

    Args:
        model: Any causal LM; it is changed in place (frozen, evaluation mode).
        tokenizer: Its tokenizer; given a padding token (its end token) if it has none, and padded on the left.
        name: What reports call the model.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.model.train(False)
        self.tokenizer = tokenizer
        self.name = name
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "left"
        # An instruct model's own sampling settings (a repetition penalty, say) would fill what generate() leaves open.
        if model.generation_config is not None:
            ends = model.generation_config.eos_token_id
            model.generation_config = GenerationConfig(eos_token_id=ends)  # type: ignore[no-untyped-call]
        parameters = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in parameters
        self._keeps_logits = "logits_to_keep" in parameters
        self._table: Tensor | None = None
        self._recomputes = False
        self.reuses_starts = True
        """Whether a start that all sequences share runs once. Its gradients then flow through keys and values alone,
        which what hooks into the layers' outputs (FSDP) does not see."""

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever the surrounding module does: dropout would add noise of its own."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self._embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights and activations."""
        return self._embedding.weight.dtype

    @property
    def vocab_size(self) -> int:
        """Rows V of the embedding table (a tokenizer may use fewer)."""
        return self._embedding.weight.shape[0]

    @property
    def hidden_size(self) -> int:
        """Width b of the input embeddings."""
        return self._embedding.weight.shape[1]

    @property
    def _embedding(self) -> nn.Embedding:
        return cast(nn.Embedding, self.model.get_input_embeddings())

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings (..., b) of token ids (...), as the model takes them for ``inputs_embeds``.

        The embedding *module* is applied, not its weight looked up: Gemma's multiplies by sqrt(b) on the way.
        """
        return cast(Tensor, self._embedding(ids))

    def embedding_table(self) -> Tensor:
        """Embeddings (V, b) of the whole vocabulary, float32, without gradient; computed once a device."""
        if self._table is None or self._table.device != self.device:
            with torch.no_grad():
                self._table = self.embed(torch.arange(self.vocab_size, device=self.device)).float()
        return self._table

    def logits(self, inputs_embeds: Tensor, attention_mask: Tensor, keep: Tensor, *, shared: int = 0) -> Tensor:
        """Next-token logits (N, V) at the N kept positions, in row-major order.

        The output layer, the most expensive one for a large vocabulary, sees only the kept rows: a hook replaces
        its input (B, T, h) by (1, N, h), so whatever the model does with logits afterwards (scaling, soft-capping)
        stays as it is, in any architecture.

        Args:
            inputs_embeds: (B, T, b) of any float type; gradients flow back to it.
            attention_mask: (B, T), true on real positions; padding may be anywhere.
            keep: (B, T) bool, real positions only; the row of (i, t) predicts what follows position t of sequence i.
            shared: So many positions at the start are the same in every sequence, and none of them is kept. Without
                padding they run through the model once instead of B times, and gradients flow back to row 0 alone.
        """
        inputs_embeds, attention_mask, keep = _pad_left(inputs_embeds.to(self.dtype), attention_mask, keep)
        cache = None
        if shared and self._may_share(len(keep)) and bool(attention_mask.all()):
            cache = self._shared_start(inputs_embeds[:1, :shared], len(keep))
            inputs_embeds, keep = inputs_embeds[:, shared:], keep[:, shared:]
        return self._kept(inputs_embeds, keep, attention_mask, cache)[1]

    def last(self, inputs_embeds: Tensor, attention_mask: Tensor, *, shared: int = 0) -> tuple[Tensor, Tensor]:
        """Final hidden states (B, h) and next-token logits (B, V) at the last real position of every sequence.

        The states are what the output layer receives. Padding moves to the right, where a causal model never sees
        it, so unlike in :meth:`logits` the shared start runs once for padded sequences too.

        Args:
            inputs_embeds: (B, T, b) of any float type; gradients flow back to it.
            attention_mask: (B, T), true on real positions, at least one a row; padding may be anywhere.
            shared: So many positions at the start are real and the same in every sequence; gradients flow back to
                row 0 alone.
        """
        inputs_embeds, attention_mask = _pad_right(inputs_embeds.to(self.dtype), attention_mask)
        cache = None
        if shared and self._may_share(len(inputs_embeds)):
            cache = self._shared_start(inputs_embeds[:1, :shared], len(inputs_embeds))
            inputs_embeds, attention_mask = inputs_embeds[:, shared:], attention_mask[:, shared:]
        ends = attention_mask.long().sum(dim=1, keepdim=True) - 1
        keep = torch.arange(attention_mask.shape[1], device=ends.device) == ends
        return self._kept(inputs_embeds, keep, None, cache)

    def recompute_layers(self) -> None:
        """From now on keep only what enters a decoder layer for the backward pass, and compute the rest again there.

        The same numbers with far less memory and about a third more time: activation checkpointing. No layer is put
        into another module, which would rename its weights: adapters are found, saved and loaded by their names.
        """
        layers = decoder_layers(self.model) or ()
        for layer in layers if not self._recomputes else ():
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        self._recomputes = True

    def compile_layers(self) -> None:
        """From now on run what is between the attentions, norms and feed-forward parts, as compiled code.

        Attention stays as it is: keys, values and masks change size with every batch.
        """
        layers = decoder_layers(self.model) or ()
        for part in (part for layer in layers for part in layer.children() if "Attention" not in type(part).__name__):
            part.compile(dynamic=True)

    def _may_share(self, rows: int) -> bool:
        """Whether a common start of several rows may run once. Layers that run twice would fill its cache twice."""
        recomputes = self._recomputes and torch.is_grad_enabled()
        return rows > 1 and self.reuses_starts and self.shares_states and not recomputes

    def _shared_start(self, inputs_embeds: Tensor, rows: int) -> DynamicCache:
        """Keys and values of a start (1, S, b) without padding, for ``rows`` sequences."""
        cache = DynamicCache(config=self.model.config)
        nothing = torch.zeros(inputs_embeds.shape[:2], dtype=torch.bool, device=inputs_embeds.device)
        self._kept(inputs_embeds, nothing, None, cache)
        cache.batch_repeat_interleave(rows)
        return cache

    def _kept(
        self, inputs_embeds: Tensor, keep: Tensor, attention_mask: Tensor | None, cache: DynamicCache | None
    ) -> tuple[Tensor, Tensor]:
        """States (N, h) and logits (N, V) at the kept ones of the last T positions.

        The mask (B, S + T) covers the cache's S positions too; None where no kept position could see padding.
        """
        kept: list[Tensor] = []

        def select(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            kept.append(args[0][keep])
            return (kept[0].unsqueeze(0), *args[1:])

        settings: dict[str, Any] = {} if cache is None else {"past_key_values": cache}
        if attention_mask is not None:
            settings["attention_mask"] = attention_mask.long()
            settings |= {name: ids[:, -keep.shape[1] :] for name, ids in self._positions(attention_mask).items()}
        head = cast(Any, self.model).get_output_embeddings()
        hook = head.register_forward_pre_hook(select)
        try:
            with self._attention(inputs_embeds):
                output = self.model(inputs_embeds=inputs_embeds, use_cache=cache is not None, **settings)
        finally:
            hook.remove()
        return kept[0], cast(Tensor, output.logits[0])

    @contextmanager
    def _attention(self, inputs_embeds: Tensor) -> Iterator[None]:
        """Run with the attention that is faster when the backward pass counts."""
        on_cpu = inputs_embeds.device.type == "cpu" and self.dtype == torch.bfloat16
        short = inputs_embeds.shape[1] <= _PLAIN_ATTENTION_LENGTH
        # Layers that run again in the backward pass would choose anew there, outside of this context.
        trains = torch.is_grad_enabled() and not self._recomputes
        chosen = self.model.config._attn_implementation
        if not (on_cpu and short and trains and chosen == "sdpa"):
            yield
            return
        self.model.set_attn_implementation("eager")
        try:
            yield
        finally:
            self.model.set_attn_implementation(chosen)

    @contextmanager
    def _whole_head_inputs(self) -> Iterator[None]:
        """The output layer gets the last states of all sequences as one piece of memory.

        Cut out of longer ones they would be multiplied sequence by sequence, each with a copy of the layer's weights.
        """
        head = cast(nn.Module, cast(Any, self.model).get_output_embeddings())
        hook = head.register_forward_pre_hook(lambda _head, args: (args[0].contiguous(), *args[1:]))
        try:
            yield
        finally:
            hook.remove()

    def next_logits(
        self,
        cache: Cache,
        positions: Tensor,
        *,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, V) of the token behind T new positions; keys and values of these go into the cache.

        Args:
            cache: Holds S positions of each sequence, and S + T after the call.
            positions: (B, T) places of the new positions in their sequences, from 0.
            input_ids: (B, T) token ids of the new positions, or else
            inputs_embeds: (B, T, b) their embeddings, of any float type.
            attention_mask: (B, S + T), true on real positions; None: all are.
        """
        places = {"position_ids": positions} if self._takes_positions else {}
        last = {"logits_to_keep": 1} if self._keeps_logits else {}
        with self._whole_head_inputs():
            output = self.model(
                input_ids=input_ids,
                inputs_embeds=None if inputs_embeds is None else inputs_embeds.to(self.dtype),
                attention_mask=None if attention_mask is None else attention_mask.long(),
                past_key_values=cache,
                use_cache=True,
                **places,
                **last,
            )
        return cast(Tensor, output.logits[:, -1])

    def generate(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        *,
        max_new_tokens: int,
        min_new_tokens: int = 0,
        top_p: float = 1.0,
        temperature: float = 1.0,
        do_sample: bool = False,
        seed: int = 0,
    ) -> list[list[int]]:
        """Continuations as token ids, cut before the end token.

        The global random state is left alone; a call with the same arguments returns the same tokens.

        Args:
            inputs_embeds: (B, T, b) of any float type.
            attention_mask: (B, T), true on real positions; padding may be anywhere.
            max_new_tokens: Most tokens to generate.
            min_new_tokens: The end token is forbidden before this many.
            top_p: Nucleus in (0, 1]; used when sampling.
            temperature: Positive; used when sampling.
            do_sample: Sample, or take the most likely token.
            seed: Seed of the sampling.
        """
        sampling = {"temperature": temperature, "top_p": top_p, "top_k": 0} if do_sample else {}
        settings = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            do_sample=do_sample,
            pad_token_id=self.pad_id,
            eos_token_id=self.end_ids or None,
            **sampling,
        )
        inputs_embeds, attention_mask, _ = _pad_left(inputs_embeds, attention_mask, attention_mask)
        cuda = [self.device.index or 0] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda), torch.no_grad(), quiet(), self._whole_head_inputs():
            torch.manual_seed(seed)
            tokens = cast(Any, self.model).generate(
                inputs_embeds=inputs_embeds.to(self.dtype),
                attention_mask=attention_mask.long(),
                generation_config=settings,
                **self._positions(attention_mask),
            )
        return [self._until_end(row) for row in tokens.tolist()]

    @property
    def pad_id(self) -> int:
        """Token id that fills padding; its embedding is never attended to."""
        return cast(int, self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0)

    @property
    def end_ids(self) -> list[int]:
        """Token ids that end a text: the tokenizer's and those of the model's generation settings."""
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        ids = configured if isinstance(configured, list) else [configured]
        return sorted({i for i in [*ids, self.tokenizer.eos_token_id] if i is not None})

    @cached_property
    def shares_states(self) -> bool:
        """Whether all that a position leaves for later ones are keys and values: recurrent states pass no gradient."""
        if "past_key_values" not in inspect.signature(self.model.forward).parameters:
            return False
        layers = DynamicCache(config=self.model.config).layers
        return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)

    def _until_end(self, tokens: list[int]) -> list[int]:
        ends = set(self.end_ids)
        return tokens[: next((i for i, token in enumerate(tokens) if token in ends), len(tokens))]

    def _positions(self, attention_mask: Tensor) -> dict[str, Tensor]:
        """Positions counted from the first real token, so that padding on the left does not shift them."""
        if not self._takes_positions:
            return {}
        return {"position_ids": (attention_mask.long().cumsum(-1) - 1).clamp(min=0)}

    @property
    def fingerprint(self) -> str:
        """16 hex digits that name the weights: the same for any name, folder and float type they are loaded under.

        Taken over the architecture, the whole embedding table and a sample of every other weight, all in bfloat16.
        """
        config = self.model.config.get_text_config()
        shape = [getattr(config, key, None) for key in ("model_type", "vocab_size", "hidden_size", "num_hidden_layers")]
        digest = hashlib.sha256(json.dumps([type(self.model).__name__, *shape]).encode())
        digest.update(_bytes(self._embedding.weight))
        for _, weight in sorted(self.model.named_parameters()):
            flat = weight.detach().flatten()
            digest.update(_bytes(flat[:: max(1, flat.numel() // _FINGERPRINT_SAMPLES)]))
        return digest.hexdigest()[:16]


class Continuations:
    """Continuations of one beginning, grown token by token; the beginning runs through the model once.

    Rows may branch, die and change places at every token, as a beam search needs it. All rows are equally long, so
    nothing is padded.

    Args:
        llm: The language model.
        beginning: Embeddings (P, b) that every row starts with, P at least 1.

    Raises:
        ConfigError: The model keeps more than keys and values for later positions, which cannot change places.

    Attributes:
        logits: (R, V) what follows each row, in the model's precision; one row until :meth:`extend` is called.
    """

    @torch.no_grad()
    def __init__(self, llm: FrozenLLM, beginning: Tensor) -> None:
        if not llm.shares_states:
            raise ConfigError(f"`llm` must keep a cache of keys and values only, got {llm.name!r}")
        self._llm, self._length = llm, len(beginning)
        self._cache = DynamicCache(config=llm.model.config)
        seen = torch.ones(1, len(beginning), dtype=torch.bool, device=llm.device)
        last = torch.arange(1, len(beginning) + 1, device=llm.device)[None] == len(beginning)
        _, self.logits = llm._kept(beginning[None].to(llm.dtype), last, seen, self._cache)

    @torch.no_grad()
    def extend(self, parents: Tensor, tokens: Tensor) -> Tensor:
        """Make the new row r of the old row ``parents[r]`` and ``tokens[r]``; both (R,). Returns :attr:`logits`."""
        self._cache.reorder_cache(cast(torch.LongTensor, parents))
        self._length += 1
        seen = torch.ones(len(tokens), self._length, dtype=torch.bool, device=tokens.device)
        _, self.logits = self._llm._kept(self._llm.embed(tokens)[:, None], seen[:, -1:], seen, self._cache)
        return self.logits


def _pad_left(embeddings: Tensor, mask: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Move all padding to the left: embeddings (B, T, b), mask and keep (B, T).

    A soft prompt in front of a padded batch leaves padding in the middle, and models with a sliding attention window
    measure distance by place, not by position id, so there it would shorten the window.
    """
    order = mask.bool().long().argsort(dim=1, stable=True)
    rows = order[..., None].expand_as(embeddings)
    return embeddings.gather(1, rows), mask.gather(1, order), keep.gather(1, order)


def _pad_right(embeddings: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move all padding to the right: embeddings (B, T, b) and mask (B, T)."""
    order = mask.bool().long().argsort(dim=1, stable=True, descending=True)
    return embeddings.gather(1, order[..., None].expand_as(embeddings)), mask.gather(1, order)


def _bytes(weight: Tensor) -> bytes:
    return weight.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and notices while it loads or generates; errors still come through."""
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity(logging.ERROR)
    hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def decoder_layers(model: nn.Module) -> nn.ModuleList | None:
    """The repeated layers of a language model: the longest list of modules of one class in ``model``, if any."""
    lists = [part for part in model.modules() if isinstance(part, nn.ModuleList) and len({*map(type, part)}) == 1]
    return max(lists, key=len, default=None)
