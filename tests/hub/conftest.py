from collections.abc import Callable
from pathlib import Path

import pytest

from del_lightning.llm import FrozenLLM
from del_lightning.split import SplitModel
from tests.hub.factory import board_of, make_split


@pytest.fixture(scope="session")
def split(tiny_llm: Callable[..., FrozenLLM]) -> SplitModel:
    """A front-end of a language model that is on no hub."""
    return make_split(tiny_llm)


@pytest.fixture
def folder(split: SplitModel, tmp_path: Path) -> Path:
    """It, published with its results."""
    return split.save_pretrained(tmp_path / "published", results=board_of(split))
