"""The soft prompt: k trainable embeddings in front of everything else, and PEFT's file format for them.

It is the same object as in prompt tuning (Lester et al. 2021); only what it is trained against differs. So a
prompt trained here loads in PEFT (``PeftModel.from_pretrained``) and the other way round: ``adapter_config.json``
and ``adapter_model.safetensors`` with one tensor ``prompt_embeddings``.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from del_lightning.errors import ArtifactError, ConfigError
from del_lightning.llm import FrozenLLM

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
TENSOR = "prompt_embeddings"


def peft_config(base_model: str, shape: tuple[int, ...], heads: int, layers: int) -> dict[str, Any]:
    """Content of PEFT's ``adapter_config.json`` for a prompt of ``shape`` (k, b)."""
    return {
        "peft_type": "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "num_virtual_tokens": shape[0],
        "token_dim": shape[1],
        "num_transformer_submodules": 1,
        "num_attention_heads": heads,
        "num_layers": layers,
        "prompt_tuning_init": "RANDOM",
        "inference_mode": True,
    }


class SoftPrompt(nn.Module):
    """Virtual tokens P (k, b), kept in float32 whatever the language model's precision.

    A small learning rate on bfloat16 weights would round most updates away.
    """

    def __init__(self, embeddings: Tensor) -> None:
        """Start from ``embeddings`` (k, b)."""
        super().__init__()
        self.embeddings = nn.Parameter(embeddings.detach().clone().float())

    @property
    def virtual_tokens(self) -> int:
        """Length k."""
        return self.embeddings.shape[0]

    def forward(self, batch_size: int, dtype: torch.dtype) -> Tensor:
        """Return the prompt for a batch, (batch_size, k, b) in ``dtype``."""
        return self.embeddings.to(dtype).expand(batch_size, -1, -1)

    @classmethod
    def from_text(cls, text: str, virtual_tokens: int, llm: FrozenLLM) -> "SoftPrompt":
        """Start from the embeddings of ``text``, repeated or cut to ``virtual_tokens`` (the paper's start).

        Raises:
            ConfigError: The text has no tokens.
        """
        ids: list[int] = llm.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise ConfigError(f"`prompt.init_text` must hold at least one token, got {text!r}")
        repeated = (ids * (virtual_tokens // len(ids) + 1))[:virtual_tokens]
        device = next(llm.model.parameters()).device
        return cls(llm.embed(torch.tensor(repeated, device=device)))

    def save(self, folder: Path, llm: FrozenLLM, base_model: str | None = None) -> None:
        """Write PEFT's two files into ``folder``; ``base_model`` stands in for the model's name."""
        shape, model = self.embeddings.shape, llm.model.config
        name = llm.name if base_model is None else base_model
        config = peft_config(name, shape, model.num_attention_heads, model.num_hidden_layers)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        save_file({TENSOR: self.embeddings.detach().cpu().contiguous()}, folder / WEIGHTS_FILE)

    @classmethod
    def load(cls, folder: Path) -> "SoftPrompt":
        """Read a prompt written here or by PEFT.

        Raises:
            ArtifactError: The folder holds no prompt-tuning adapter, or a damaged one.
        """
        try:
            config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
            kind = config.get("peft_type")
            if kind != "PROMPT_TUNING":
                raise ArtifactError(f"{folder / CONFIG_FILE} must have peft_type PROMPT_TUNING, got {kind!r}")
            return cls(load_file(folder / WEIGHTS_FILE)[TENSOR])
        except (FileNotFoundError, SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise ArtifactError(f"{folder} must hold a PEFT prompt-tuning adapter: {error}") from None
