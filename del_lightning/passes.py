"""Bytes that a language model's passes hold where nothing is kept for a backward pass, worked out on fake tensors.

They have sizes and no content, so that the model's own code runs in no time and without its weights.
"""

import inspect
import weakref
from collections.abc import Callable, Hashable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    PreTrainedConfig,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from del_lightning import assets
from del_lightning.llm import quiet
from del_lightning.metrics.perplexity import token_nll


class Peak(TorchDispatchMode):
    """Counts the bytes of all tensors that were made in it and still live, and the most there ever were.

    Args:
        model: Its weights are not counted, nor what is a view of one.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: int = 0
        self.most: int = 0
        self._known = {_number(tensor) for tensor in (*model.parameters(), *model.buffers())}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._count, result)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage, number = tensor.untyped_storage(), _number(tensor)
        if number not in self._known:
            self._known.add(number)
            weakref.finalize(storage, self._forget, number, storage.nbytes())
            self.live += storage.nbytes()
            self.most = max(self.most, self.live)

    def _forget(self, number: int, size: int) -> None:
        self._known.discard(number)  # the next storage may get it
        self.live -= size


def _number(tensor: Tensor) -> int:
    """Of a tensor's storage, which views share."""
    return int(tensor.untyped_storage()._cdata)


class Passes:
    """Every pass of one model is worked out once, whoever asks for it.

    Args:
        architecture: The language model's ``config.json``.
        dtype: Of its weights.
    """

    def __init__(self, architecture: PreTrainedConfig, dtype: torch.dtype) -> None:
        self._mode, self._known, self.dtype = FakeTensorMode(), dict[Hashable, int](), dtype
        self._takes_cache = True
        with self._mode, quiet():
            model = AutoModelForCausalLM.from_config(architecture, dtype=dtype)  # type: ignore[no-untyped-call]
            self._model: PreTrainedModel = model.requires_grad_(False)
        self.vocabulary, self.width = cast(nn.Embedding, self._model.get_input_embeddings()).weight.shape

    def scored(self, rows: int, tokens: int, scored: int) -> int:
        """Negative log-likelihood of the last ``scored`` tokens of every row."""

        def run() -> None:
            logits = self._read(rows, tokens, scored).float()
            token_nll(logits, torch.zeros(len(logits), dtype=torch.long))

        return self._given(rows, tokens) + self._once(("scored", rows, tokens, scored), lambda: self._peak(run))

    def expected(self, rows: int, tokens: int, scored: int) -> int:
        """The same tokens' logits and their normalisers."""

        def run() -> None:
            logits = self._read(rows, tokens, scored).float()
            (logits - logits.amax(-1, keepdim=True)).exp_().sum(-1)

        return self._given(rows, tokens) + self._once(("expected", rows, tokens, scored), lambda: self._peak(run))

    def generated(self, rows: int, tokens: int, new: int) -> int:
        """Continuations: the prompts at once, then one token at a time behind all keys and values."""
        first = self._once(("first", rows, tokens), lambda: self._peak(lambda: self._first(rows, tokens)))
        drawn = self._once(("drawn", rows), lambda: self._peak(lambda: self._drawn(rows)))
        return max(self._given(rows, tokens) + first, self.state(rows, tokens + new) + drawn)

    def state(self, rows: int, tokens: int) -> int:
        """Keys and values of so many tokens."""

        def of_one() -> int:
            cache = self._first(1, 1)
            layers = () if cache is None else cache.layers
            kept = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
            return sum(tensor.nbytes for tensor in kept if isinstance(tensor, Tensor))

        return rows * tokens * self._once("state", of_one)

    def other(self, name: str, kind: Any, rows: int, tokens: int) -> int:
        """Another model, in float32, and what it makes of some rows; 0 for one that is not here.

        Args:
            name: Packaged asset, folder or hub id.
            kind: transformers' class that makes it of its configuration.
            rows: Texts at a time.
            tokens: Of each; what the model cannot read is cut off.
        """

        def run() -> int:
            source = str(assets.packaged_path(name)) if assets.is_packaged(name) else name
            try:
                config = AutoConfig.from_pretrained(source, trust_remote_code=False, local_files_only=True)
            except (OSError, ValueError):  # what is wrong with it is said where it is looked for
                return 0
            with quiet():
                model = kind.from_config(config, dtype=torch.float32).requires_grad_(False)
            length = min(tokens, getattr(config, "max_position_embeddings", tokens))
            ids, real = torch.zeros(rows, length, dtype=torch.long), torch.ones(rows, length, dtype=torch.long)
            weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
            return int(weights) + self._peak(lambda: model(input_ids=ids, attention_mask=real), model)

        return self._once((name, kind, rows, tokens), run)

    def _once(self, key: Hashable, run: Callable[[], int]) -> int:
        if key not in self._known:
            with self._mode, torch.no_grad():
                self._known[key] = run()
        return self._known[key]

    def _peak(self, run: Callable[[], object], model: nn.Module | None = None) -> int:
        peak = Peak(model or self._model)
        with peak:
            run()
        return peak.most

    def _given(self, rows: int, tokens: int) -> int:
        """Embeddings, as they are, behind a soft prompt and with all padding on one side; masks of unequal lengths."""
        return 3 * rows * tokens * self.width * torch.float32.itemsize + 2 * rows * tokens**2 * self.dtype.itemsize

    def _read(self, rows: int, tokens: int, scored: int) -> Tensor:
        """Logits (N, V) of the last ``scored`` tokens of every row, as :meth:`FrozenLLM.logits` makes them."""
        output = self._run(rows, tokens, lambda states: states[:, -scored:].flatten(0, 1).clone()[None], {})
        return cast(Tensor, output.logits[0])

    def _first(self, rows: int, tokens: int) -> Any:
        """The prompts' own pass, of which the last states become logits; returns its cache, if the model has one."""

        def run(**settings: Any) -> Any:
            return self._run(rows, tokens, lambda states: states[:, -1:].contiguous(), settings)

        if "past_key_values" not in inspect.signature(self._model.forward).parameters:
            run()
            return None
        if self._takes_cache:
            try:
                cache = DynamicCache(config=self._model.config)
                run(use_cache=True, past_key_values=cache)
                return cache
            except Exception:  # noqa: BLE001 - each model refuses a cache of another kind in its own way
                self._takes_cache = False
        # Not in the handler, whose traceback would keep the failed pass's tensors alive, and counted.
        return run(use_cache=True).past_key_values

    def _run(self, rows: int, tokens: int, select: Callable[[Tensor], Tensor], settings: dict[str, Any]) -> Any:
        """A pass whose output layer gets what is selected of the states (B, T, h)."""
        head = cast(nn.Module, cast(Any, self._model).get_output_embeddings())
        hook = head.register_forward_pre_hook(lambda _head, args: (select(args[0]), *args[1:]))
        inputs = torch.empty(rows, tokens, self.width, dtype=self.dtype)
        real = torch.ones(rows, tokens, dtype=torch.long)
        try:
            return self._model(inputs_embeds=inputs, attention_mask=real, **({"use_cache": False} | settings))
        finally:
            hook.remove()

    def _drawn(self, rows: int) -> None:
        """As ``generate`` draws from a nucleus."""
        logits, ids = torch.empty(rows, self.vocabulary, dtype=self.dtype), torch.zeros(rows, 1, dtype=torch.long)
        scores = logits.to(copy=True, dtype=torch.float32)
        scores = TemperatureLogitsWarper(0.7)(ids, scores)
        scores = TopPLogitsWarper(0.9)(ids, scores)
        torch.multinomial(scores.softmax(-1), 1)
