"""What training tests share: a small corpus, and DEL in front of a small random model."""

import random
from typing import Any

import torch

from del_lightning.codec import pca_codec
from del_lightning.config import DataConfig, NluConfig
from del_lightning.data import Corpus, GenerationDataModule
from del_lightning.data.glue import TASKS, GlueData, Rows
from del_lightning.llm import FrozenLLM
from del_lightning.methods import DEL
from del_lightning.prompt import SoftPrompt
from del_lightning.split import SplitModel

WORDS = ["the", "a", "cat", "dog", "bird", "sat", "ran", "flew", "on", "under", "mat", "log", "house", "and"]


def sentences(seed: int, count: int) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=30)) for _ in range(count)]


def data_for(
    llm: FrozenLLM, batch_size: int = 2, split_ratio: tuple[float, float] = (0.2, 0.6)
) -> GenerationDataModule:
    texts = {"train": sentences(0, 12), "validation": sentences(1, 6), "test": sentences(2, 4)}
    config = DataConfig(
        prefix="go ",
        train_tokens=12,
        split_ratio=list(split_ratio),
        validation_blocks=5,
        eval_batch_size=2,
        min_words=10,
        prompt_words=5,
    )
    corpus = Corpus("lee", "made up", texts.__getitem__)
    return GenerationDataModule(corpus, llm.tokenizer, config, batch_size=batch_size, seed=0)


def split_for(llm: FrozenLLM, mu: float = 20.0) -> SplitModel:
    table, weights = llm.embedding_table(), torch.ones(llm.vocab_size)
    codec = pca_codec(table, weights, 4)
    codec.calibrate_bound(table, weights, 0.95)
    return SplitModel(llm, DEL(table, codec, bits=4, mu=mu), SoftPrompt.from_text("the cat", 3, llm))


def labelled_rows(seed: int, count: int) -> Rows:
    """Sentences of five words that are about a cat (class 1) or a dog (class 0)."""
    generator = random.Random(seed)
    labels = [generator.randrange(2) for _ in range(count)]
    texts = [" ".join([*generator.choices(WORDS[5:], k=4), "cat" if label else "dog"]) for label in labels]
    return Rows((texts,), labels)


def labelled_data(llm: FrozenLLM, **settings: Any) -> GlueData:
    """A made-up task in SST-2's template: 200 rows to train and select, 40 to report."""
    config = NluConfig(**{"train_examples": 64, "selection_examples": 16, "eval_batch_size": 8} | settings)
    data = GlueData(TASKS["sst2"], llm.tokenizer, config, root=None)
    data._rows |= {"train": labelled_rows(0, 200), "test": labelled_rows(1, 40)}
    return data
