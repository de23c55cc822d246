import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch

from del_lightning.attacks import log_prior
from del_lightning.attacks.inverter import Inverter
from del_lightning.checkpoints import SafetensorsIO
from del_lightning.config import InverterConfig, TrainerConfig
from del_lightning.llm import FrozenLLM
from del_lightning.modules import InverterTraining
from del_lightning.stages.training import Fit, fit
from tests.modules.factory import data_for, split_for

Factory = Callable[..., FrozenLLM]
TRAINER = TrainerConfig(accelerator="cpu", progress_bar=False, checkpoint_every=3, log_every=1)
CONFIG = InverterConfig(
    width=16, layers=1, heads=2, steps=6, batch_size=4, sequence_tokens=12, warmup_steps=0, validate_every=3
)


def module_for(llm: FrozenLLM, config: InverterConfig = CONFIG, mu: float = 8.0) -> InverterTraining:
    method = split_for(llm, mu).method
    assert method is not None
    prior = log_prior(data_for(llm).unigram_counts(llm.vocab_size))
    torch.manual_seed(0)
    return InverterTraining(method, Inverter(method.embedding_table, prior, config), config)


def train(module: InverterTraining, llm: FrozenLLM, folder: Path, *callbacks: L.Callback) -> Fit:
    folder.mkdir(exist_ok=True)
    return fit(module, data_for(llm, module.schedule.batch_size), TRAINER, folder, callbacks=callbacks)


def test_training_starts_at_the_exact_attack_and_adds_context(tiny_llm: Factory, tmp_path: Path) -> None:
    llm = tiny_llm()
    module = module_for(llm, replace(CONFIG, steps=60, validate_every=20, learning_rate=1e-2))
    result = train(module, llm, tmp_path)
    # The first step's loss is that of the exact attack; the corpus has no context to speak of, but frequent words.
    batch = next(iter(data_for(llm, 4).train_dataloader()))
    own, exact = module_for(llm).losses(batch, module.noise("train", 0))
    torch.testing.assert_close(own, exact)
    assert result.history[0]["train/loss"] == pytest.approx(float(exact.mean()), rel=1e-5)
    assert result.best < 0.97 * module.start_perplexity
    module.keep_the_better(result.best)
    assert module.inverter.write.weight.abs().max() > 0


def test_checkpoint_holds_the_inverter_and_its_start_alone(tiny_llm: Factory, tmp_path: Path) -> None:
    module = module_for(tiny_llm())
    train(module, tiny_llm(), tmp_path)
    checkpoint = SafetensorsIO().load_checkpoint(tmp_path / "best.ckpt.safetensors")
    assert checkpoint["state_dict"].keys() == module.trainable().keys()
    assert all(name.startswith("inverter.") for name in checkpoint["state_dict"])
    assert checkpoint["inverter_start"] == module.start_perplexity < math.inf


def test_what_training_made_worse_is_forgotten(tiny_llm: Factory, tmp_path: Path) -> None:
    module = module_for(tiny_llm(), replace(CONFIG, learning_rate=30.0))
    result = train(module, tiny_llm(), tmp_path)
    assert result.best > module.start_perplexity
    module.keep_the_better(result.best)
    assert module.inverter.write.weight.abs().max() == 0


class Stop(L.Callback):
    """A run that is cut off after some steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


def test_resumed_training_ends_where_an_uninterrupted_one_does(tiny_llm: Factory, tmp_path: Path) -> None:
    llm = tiny_llm()
    whole = module_for(llm)
    expected = train(whole, llm, tmp_path / "whole")
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(module_for(llm), llm, tmp_path / "cut", Stop(4))
    resumed = module_for(llm)
    assert train(resumed, llm, tmp_path / "cut").best == expected.best
    assert resumed.start_perplexity == whole.start_perplexity
    for name, value in whole.trainable().items():
        assert torch.equal(value, resumed.trainable()[name])


def test_tokens_beyond_the_candidates_count_nowhere(tiny_llm: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("del_lightning.attacks.inverter.CANDIDATES", 5)
    llm = tiny_llm()
    module = module_for(llm, mu=1.0)
    batch = next(iter(data_for(llm, 4).train_dataloader()))
    own, _ = module.losses(batch, module.noise("train", 0))
    assert 0 < len(own) < 4 * 12
    assert torch.isfinite(own).all()
