"""A run that is killed anywhere and started again ends with the very numbers of a run that was not."""

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from del_lightning.callbacks import AttackMonitor, CommunicationMonitor, PrivacyMonitor
from del_lightning.codec import pca_codec
from del_lightning.config import CodecConfig, DataConfig, PromptConfig, TrainerConfig
from del_lightning.data import Corpus, GenerationDataModule
from del_lightning.llm import FrozenLLM
from del_lightning.methods import DEL
from del_lightning.modules import CodecTraining, PromptTuning
from del_lightning.prompt import SoftPrompt
from del_lightning.split import SplitModel
from del_lightning.stages.training import Fit, fit

Factory = Callable[..., FrozenLLM]
STEPS = 12
TRAINER = TrainerConfig(accelerator="cpu", progress_bar=False, checkpoint_every=4, log_every=1, attack_every=3)
PROMPT = PromptConfig(virtual_tokens=3, steps=STEPS, batch_size=2, learning_rate=0.05, validate_every=4)
CODEC = CodecConfig(
    corpus="lee", dim=4, steps=STEPS, batch_size=2, learning_rate=0.01, warmup_steps=3, validate_every=4, train_noise_mu=9.0
)


class Killed(Exception):
    """Stands for a kill at one place of the run."""


class KillAt(L.Callback):
    """Raises at the start of a training step or in the middle of a validation."""

    def __init__(self, step: int, where: str) -> None:
        self.step, self.where = step, where

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if self.where == "training" and trainer.global_step == self.step:
            raise Killed

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self.where == "after step" and trainer.global_step == self.step:
            raise Killed

    def on_validation_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if self.where == "validation" and trainer.global_step == self.step:
            raise Killed

    def on_train_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self.where == "end":
            raise Killed


def sentences(seed: int, count: int) -> list[str]:
    words = ["the", "a", "cat", "dog", "bird", "sat", "ran", "flew", "on", "under", "mat", "log", "house", "and"]
    generator = random.Random(seed)
    return [" ".join(generator.choices(words, k=30)) for _ in range(count)]


def data_for(llm: FrozenLLM, batch_size: int) -> GenerationDataModule:
    texts = {"train": sentences(0, 12), "validation": sentences(1, 6), "test": sentences(2, 4)}
    config = DataConfig(
        prefix="go ", train_tokens=12, validation_blocks=5, eval_batch_size=2, min_words=10, prompt_words=5
    )
    return GenerationDataModule(Corpus("lee", "made up", texts.__getitem__), llm.tokenizer, config, batch_size=batch_size, seed=0)


def split_for(llm: FrozenLLM) -> SplitModel:
    table, weights = llm.embedding_table(), torch.ones(llm.vocab_size)
    codec = pca_codec(table, weights, 4)
    codec.calibrate_bound(table, weights, 0.95)
    return SplitModel(llm, DEL(table, codec, bits=4, mu=20.0), SoftPrompt.from_text("the cat", 3, llm))


def train_prompt(
    llm: FrozenLLM, folder: Path, config: PromptConfig = PROMPT, trainer: TrainerConfig = TRAINER, *extra: L.Callback
) -> tuple[Fit, dict[str, torch.Tensor]]:
    split = split_for(llm)
    monitors = [PrivacyMonitor(6), CommunicationMonitor(), AttackMonitor(trainer.attack_every)]
    folder.mkdir(exist_ok=True)
    module, data = PromptTuning(split, config, seed=0), data_for(llm, config.batch_size)
    result = fit(module, data, trainer, folder, callbacks=[*monitors, *extra])
    return result, {"prompt": split.prompt.embeddings.detach().clone()}


def train_codec(
    llm: FrozenLLM, folder: Path, config: CodecConfig = CODEC, trainer: TrainerConfig = TRAINER, *extra: L.Callback
) -> tuple[Fit, dict[str, torch.Tensor]]:
    codec = split_for(llm).method.codec
    folder.mkdir(exist_ok=True)
    module, data = CodecTraining(llm, codec, config, bits=4, seed=0), data_for(llm, config.batch_size)
    result = fit(module, data, trainer, folder, callbacks=extra)
    return result, {name: value.detach().clone() for name, value in codec.state_dict().items()}


PLACES = [
    (2, "training"),  # before the first checkpoint
    (4, "validation"),
    (5, "training"),  # right behind a validation
    (7, "training"),
    (8, "after step"),
    (11, "training"),
    (12, "validation"),  # the very last one
    (12, "end"),
]


@pytest.mark.parametrize(("step", "where"), PLACES)
@pytest.mark.parametrize("train", [train_prompt, train_codec])
def test_a_killed_run_ends_as_an_uninterrupted_one(
    tiny_llm: Factory, tmp_path: Path, train: Callable[..., Any], step: int, where: str
) -> None:
    llm = tiny_llm()
    config = PROMPT if train is train_prompt else CODEC
    expected, weights = train(llm, tmp_path / "whole", config, TRAINER)
    with pytest.raises(Killed):
        train(llm, tmp_path / "cut", config, TRAINER, KillAt(step, where))
    result, resumed = train(llm, tmp_path / "cut", config, TRAINER)
    assert result == expected
    for name, value in weights.items():
        assert torch.equal(resumed[name], value), name
