"""Shared fixtures: small random models of every family, and the real corpora where they are present."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from del_lightning.llm import FrozenLLM
from tests.pages import corpora

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # Workers share the cores; so do the processes that a test starts.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // int(workers))
    torch.set_num_threads(threads)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))

FAMILIES = ("llama", "qwen2", "gpt2", "opt", "gemma", "gemma2", "gemma3", "mixtral")
"""Learned, offset and rotary positions; scaled embeddings; soft-capped logits; sliding windows; experts."""

SENTENCE = "the cat sat on a mat while big birds flew far over the old house and then a small dog ran near"


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with 300 tokens; knows every text, opens none."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([SENTENCE] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def _config(family: str, vocab_size: int, layers: int, hidden: int) -> PreTrainedConfig:  # noqa: PLR0911
    common = {
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 2 * hidden,
        "max_position_embeddings": 1024,
        "initializer_range": 0.2,  # far from the usual 0.02, so that next-token distributions are not flat
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
    }
    gemma = common | {"head_dim": hidden // 2}
    match family:
        case "llama":
            return LlamaConfig(**common, tie_word_embeddings=True)
        case "qwen2":
            return Qwen2Config(**common)
        case "gpt2":
            return GPT2Config(
                vocab_size=vocab_size,
                n_embd=hidden,
                n_layer=layers,
                n_head=2,
                initializer_range=0.2,
                bos_token_id=0,
                eos_token_id=0,
            )
        case "opt":
            return OPTConfig(
                vocab_size=vocab_size,
                hidden_size=hidden,
                num_hidden_layers=layers,
                num_attention_heads=2,
                ffn_dim=2 * hidden,
                word_embed_proj_dim=hidden,
                init_std=0.2,
                bos_token_id=0,
                eos_token_id=0,
                pad_token_id=1,
            )
        case "gemma":
            return GemmaConfig(**gemma)
        case "gemma2":
            return Gemma2Config(**gemma, query_pre_attn_scalar=hidden // 2, sliding_window=6)
        case "gemma3":
            kinds = ["sliding_attention" if layer % 2 == 0 else "full_attention" for layer in range(layers)]
            return Gemma3TextConfig(**gemma, query_pre_attn_scalar=hidden // 2, sliding_window=6, layer_types=kinds)
        case "mixtral":
            return MixtralConfig(**common, num_local_experts=3, num_experts_per_tok=2)
        case _:
            raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")


@pytest.fixture(scope="session")
def tiny_llm(tiny_tokenizer: PreTrainedTokenizerFast) -> Callable[..., FrozenLLM]:
    """Factory ``tiny_llm(family="llama", layers=2, hidden=16, dtype=torch.float32, seed=0)``: a random FrozenLLM."""

    def build(
        family: str = "llama", *, layers: int = 2, hidden: int = 16, dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> FrozenLLM:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            config = _config(family, len(tiny_tokenizer), layers, hidden)
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        return FrozenLLM(model, tiny_tokenizer, f"tiny-{family}")

    return build


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder with the real corpora as parquet."""
    if (root := corpora()) is None:
        pytest.skip("no corpora; set DEL_DATA_ROOT to a folder with ptb_text_only, wikitext, ... as parquet")
    return root


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of one's own."""
    monkeypatch.setenv("DEL_LIGHTNING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def offline_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may wait for a network."""
    monkeypatch.setattr("del_lightning.assets.hub_problem", lambda: "the hub cannot be reached")
    monkeypatch.setattr("del_lightning.loading._hub_files", lambda config: None)
