from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor

from del_lightning.checkpoints import SafetensorsIO
from del_lightning.config import PromptConfig, TrainerConfig
from del_lightning.llm import FrozenLLM
from del_lightning.methods import Release
from del_lightning.modules import PromptTuning
from del_lightning.prompt import SoftPrompt
from del_lightning.split import SplitModel
from del_lightning.stages.training import Fit, fit
from tests.modules.factory import data_for, split_for

Factory = Callable[..., FrozenLLM]
TRAINER = TrainerConfig(accelerator="cpu", progress_bar=False, checkpoint_every=3, log_every=1)
CONFIG = PromptConfig(virtual_tokens=3, steps=6, batch_size=2, learning_rate=0.05, validate_every=3)


def train(module: PromptTuning, folder: Path, trainer: TrainerConfig = TRAINER, *callbacks: L.Callback) -> Fit:
    folder.mkdir(exist_ok=True)
    data = data_for(module.split.llm, module.config.batch_size)
    return fit(module, data, trainer, folder, callbacks=callbacks)


class Releases:
    """Wraps a method's release and keeps a copy of every payload, with what it was a release of."""

    def __init__(self, split: SplitModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ids: list[Tensor] = []
        self.payloads: list[Tensor] = []
        self._release = split.method.release
        monkeypatch.setattr(split.method, "release", self)

    def __call__(self, ids: Tensor, generator: torch.Generator | None = None) -> Release:
        release = self._release(ids, generator)
        self.ids.append(ids)
        self.payloads.append(release.payload)
        return release


def equal_lists(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_gradient_and_optimizer_state_exist_for_the_prompt_alone(tiny_llm: Factory, tmp_path: Path) -> None:
    class Look(L.Callback):
        def on_before_zero_grad(self, trainer: L.Trainer, module: L.LightningModule, optimizer: object) -> None:
            self.gradients = {name for name, p in module.named_parameters() if p.grad is not None}

        def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
            (optimizer,) = trainer.optimizers
            self.optimised = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
            self.state = sum(v.numel() for state in optimizer.state.values() for v in state.values())

    module, look = PromptTuning(split_for(tiny_llm()), CONFIG), Look()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    train(module, tmp_path, TRAINER, look)
    assert look.gradients == {"split.prompt.embeddings"}
    assert look.optimised == 3 * 16
    assert look.state == 2 * 3 * 16 + 1  # two moments of AdamW, and the step
    changed = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"split.prompt.embeddings"}


def test_checkpoint_holds_the_prompt_alone(tiny_llm: Factory, tmp_path: Path) -> None:
    module = PromptTuning(split_for(tiny_llm()), CONFIG)
    train(module, tmp_path)
    for name in ("best.ckpt.safetensors", "last.ckpt.safetensors"):
        checkpoint = SafetensorsIO().load_checkpoint(tmp_path / name)
        assert checkpoint["state_dict"].keys() == {"split.prompt.embeddings"}
        if name == "best.ckpt.safetensors":  # only read back, never resumed from
            assert "optimizer_states" not in checkpoint
            continue
        stored = [state for optimizer in checkpoint["optimizer_states"] for state in optimizer["state"].values()]
        assert len(stored) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_perplexity_falls(tiny_llm: Factory, tmp_path: Path, dtype: torch.dtype) -> None:
    module = PromptTuning(
        split_for(tiny_llm(dtype=dtype)), replace(CONFIG, steps=60, validate_every=20, learning_rate=0.2)
    )
    start = Scored(module).perplexity()
    result = train(module, tmp_path)
    losses = [row["train/loss"] for row in result.history]
    assert sum(losses[-10:]) < sum(losses[:10]) - 3  # 0.3 nats a token
    assert result.best < 0.7 * start
    assert module.split.prompt.embeddings.dtype == torch.float32
    assert module.split.llm.dtype == dtype


class Scored:
    """Perplexity of a module on its validation blocks, worked out apart from Lightning."""

    def __init__(self, module: PromptTuning) -> None:
        self.module = module

    @torch.no_grad()
    def perplexity(self) -> float:
        total, count = 0.0, 0
        for number, batch in enumerate(data_for(self.module.split.llm).val_dataloader()):
            release = self.module.split.release(batch, self.module.noise("validation", number))
            logits = self.module.split.logits(batch, release).double()
            truth = batch.input_ids[batch.target_mask]
            total -= float(logits.log_softmax(-1)[torch.arange(len(truth)), truth].sum())
            count += len(truth)
        return float(torch.tensor(total / count).exp())


def test_validation_perplexity_weighs_every_token_the_same(tiny_llm: Factory, tmp_path: Path) -> None:
    """Batches of different sizes (2, 2, 1 blocks) and continuations of different lengths."""
    module = PromptTuning(split_for(tiny_llm()), CONFIG)
    module.noise("validation", 0)
    result = train(module, tmp_path)
    # The module was left with the prompt of the best validation.
    assert Scored(module).perplexity() == pytest.approx(result.best, rel=1e-4)


def test_noise_is_fresh_at_every_step_and_the_same_in_a_repetition(
    tiny_llm: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str, seed: int = 0) -> Releases:
        module = PromptTuning(split_for(tiny_llm()), replace(CONFIG, validate_every=6), seed)
        releases = Releases(module.split, monkeypatch)
        train(module, tmp_path / name)
        return releases

    first, second, other = run("first"), run("second"), run("other", seed=1)
    assert equal_lists(first.payloads, second.payloads)
    assert equal_lists(first.ids, other.ids)
    assert not any(torch.equal(a, b) for a, b in zip(first.payloads, other.payloads, strict=True))


def test_the_same_tokens_meet_new_noise_in_training_and_the_same_in_validation(
    tiny_llm: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = PromptTuning(split_for(tiny_llm()), CONFIG)
    constant = next(iter(data_for(module.split.llm).train_dataloader()))
    releases = Releases(module.split, monkeypatch)
    data = data_for(module.split.llm)
    monkeypatch.setattr(data, "_training_batches", lambda blocks: iter(lambda: constant, None))
    fit(module, data, TRAINER, tmp_path)
    # 3 training steps, 3 validation batches, and the same again.
    training = releases.payloads[:3] + releases.payloads[6:9]
    assert len(releases.payloads) == 12
    assert equal_lists([*releases.ids[:3], *releases.ids[6:9]], [releases.ids[0]] * 6)
    assert not any(torch.equal(a, b) for i, a in enumerate(training) for b in training[:i])
    assert equal_lists(releases.payloads[3:6], releases.payloads[9:12])


def test_ranks_never_share_noise(tiny_llm: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
    module = PromptTuning(split_for(tiny_llm()), CONFIG)
    seeds = {module.noise(purpose, step).initial_seed() for purpose in ("train", "validation") for step in range(3)}
    monkeypatch.setattr(PromptTuning, "global_rank", 1)
    seeds |= {module.noise(purpose, step).initial_seed() for purpose in ("train", "validation") for step in range(3)}
    assert len(seeds) == 12


def test_accumulated_batches_meet_noise_of_their_own(
    tiny_llm: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = PromptTuning(split_for(tiny_llm()), replace(CONFIG, steps=2, validate_every=2))
    seeds: list[int] = []
    noise = module.noise

    def spy(purpose: str, index: int) -> torch.Generator:
        generator = noise(purpose, index)
        if purpose == "train":
            seeds.append(generator.initial_seed())
        return generator

    monkeypatch.setattr(module, "noise", spy)
    train(module, tmp_path, replace(TRAINER, accumulate_grad_batches=3))
    assert len(seeds) == len(set(seeds)) == 6


def test_learning_rate_warms_up_and_decays_to_zero(tiny_llm: Factory, tmp_path: Path) -> None:
    class Rates(L.Callback):
        def __init__(self) -> None:
            self.rates: list[float] = []

        def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
            self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    rates = Rates()
    train(PromptTuning(split_for(tiny_llm()), replace(CONFIG, warmup_steps=2)), tmp_path, TRAINER, rates)
    assert rates.rates == pytest.approx([0.025, 0.05, 0.05, 0.0375, 0.025, 0.0125])


def test_clean_prompts_can_be_tuned_without_a_method(tiny_llm: Factory, tmp_path: Path) -> None:
    llm = tiny_llm()
    module = PromptTuning(SplitModel(llm, None, SoftPrompt.from_text("the cat", 3, llm)), CONFIG)
    before = module.split.prompt.embeddings.detach().clone()
    train(module, tmp_path)
    assert not torch.equal(module.split.prompt.embeddings, before)


def test_the_frozen_model_stays_in_evaluation_mode(tiny_llm: Factory, tmp_path: Path) -> None:
    """GPT-2 has dropout, which would be noise that nobody asked for."""

    class Mode(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: object) -> None:
            self.training = [part for part in module.split.llm.model.modules() if part.training]

    mode = Mode()
    train(PromptTuning(split_for(tiny_llm("gpt2")), replace(CONFIG, steps=3)), tmp_path, TRAINER, mode)
    assert mode.training == []
