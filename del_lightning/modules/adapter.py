"""Low-rank adapter of the server's model (PEFT's LoRA): what the server could train instead of a soft prompt.

It changes the model itself, so one server cannot share a copy of it between tasks as it does with soft prompts. PEFT
puts it into the model in place, and it is taken out again at the end of the context.
"""

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from del_lightning.errors import ConfigError
from del_lightning.llm import FrozenLLM
from del_lightning.prompt import WEIGHTS_FILE

if TYPE_CHECKING:
    from peft import PeftModel


def check_peft() -> None:
    """Fail now where there can be no adapter.

    Raises:
        ConfigError: PEFT is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        raise ConfigError("a low-rank adapter needs PEFT: run `pip install del-lightning[peft]`")


class LowRank(Protocol):
    """Size of an adapter: rank r >= 1; its output is scaled by alpha / r."""

    rank: int
    alpha: int


class LowRankAdapter:
    """An adapter that is in place."""

    def __init__(self, model: "PeftModel", name: str) -> None:
        """``name``: of the language model, for the adapter's own record."""
        self._model, self._name = model, name

    @property
    def parameters(self) -> int:
        """How many numbers it has."""
        return sum(parameter.numel() for parameter in self.weights().values())

    def weights(self) -> dict[str, nn.Parameter]:
        """Its own weights alone, by their names in the language model."""
        return {name: weight for name, weight in self._model.named_parameters() if "lora_" in name}

    def save(self, folder: Path) -> None:
        """Write it in PEFT's format, ``adapter_config.json`` and ``adapter_model.safetensors``."""
        from peft import get_peft_model_state_dict

        config = self._model.active_peft_config
        config.base_model_name_or_path = self._name
        config.inference_mode = True
        folder.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(str(folder))
        state = get_peft_model_state_dict(self._model, save_embedding_layers=False)
        save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, folder / WEIGHTS_FILE)

    def load(self, folder: Path) -> None:
        """Take the weights that :meth:`save` wrote."""
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(self._model, load_file(folder / WEIGHTS_FILE))


@contextmanager
def low_rank_adapter(llm: FrozenLLM, config: LowRank, seed: int) -> Iterator[LowRankAdapter]:
    """Put a new adapter into a language model, trainable and without effect yet, until the context ends.

    Args:
        llm: Changed in place, and restored.
        config: Rank and scale.
        seed: Of the adapter's start.

    Raises:
        ConfigError: PEFT is not installed, or does not know where this architecture takes adapters.
    """
    check_peft()
    from peft import LoraConfig as Settings
    from peft import get_peft_model

    settings = Settings(r=config.rank, lora_alpha=config.alpha, task_type="CAUSAL_LM")
    with torch.random.fork_rng(), warnings.catch_warnings():
        torch.manual_seed(seed)
        # GPT-2's projections are stored transposed; PEFT notices by itself.
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False")
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.* is deprecated")  # PEFT's own call
        try:
            model = get_peft_model(llm.model, settings)
        except ValueError as error:
            reason = next(iter(str(error).splitlines()), "")
            raise ConfigError(
                f"`model.name` must be a model that PEFT adapts for a low-rank adapter, got {llm.name!r}: {reason}"
            ) from None
    try:
        yield LowRankAdapter(model, llm.name)
    finally:
        model.unload()
