"""A language model and a sentence encoder that are small and no strangers to text."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from del_lightning.assets import packaged_path
from del_lightning.data import load_corpus
from del_lightning.errors import AssetError
from del_lightning.llm import FrozenLLM


def teach(llm: FrozenLLM, texts: list[str]) -> None:
    """A hundred steps on real text: a model that gains nothing from its prompt would have no information to retain."""
    ids = torch.tensor(llm.tokenizer("\n".join(texts))["input_ids"])
    optimizer = torch.optim.AdamW(llm.model.requires_grad_(True).parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        starts = torch.randint(len(ids) - 32, (16, 1), generator=generator)
        rows = ids[starts + torch.arange(32)]
        optimizer.zero_grad()
        llm.model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()


@pytest.fixture(scope="session")
def model(tiny_llm: Callable[..., FrozenLLM], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a Llama of two layers and its tokenizer."""
    try:
        packaged_path("lee_background.cor")
    except AssetError as error:
        pytest.skip(str(error))
    llm, folder = tiny_llm(hidden=32), tmp_path_factory.mktemp("model") / "tiny-llama"
    teach(llm, load_corpus("lee").documents("train"))
    llm.model.save_pretrained(folder)
    llm.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def encoder(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a random sentence encoder: the packaged one takes most of a minute for the long references."""
    folder = tmp_path_factory.mktemp("encoder") / "tiny-bert"
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=300, max_position_embeddings=64, **sizes)).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder
