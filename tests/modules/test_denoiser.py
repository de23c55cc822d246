"""Denoisers learn the clean pooled output, touch nothing public, and train the same after an interruption."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor

from del_lightning.config import DenoiserConfig, TrainerConfig
from del_lightning.data.glue import GlueData, GlueDataModule, LabelledBatch
from del_lightning.errors import ConfigError
from del_lightning.llm import FrozenLLM
from del_lightning.methods import Clean
from del_lightning.modules import (
    CleanStates,
    DenoisedSplit,
    Denoiser,
    DenoiserTraining,
    ServerDenoiser,
    UserDenoised,
    UserDenoiser,
)
from del_lightning.prompt import SoftPrompt
from del_lightning.seeding import stream
from del_lightning.split import SplitModel
from del_lightning.stages.training import Fit, fit
from tests.modules.factory import labelled_data, split_for

Factory = Callable[..., FrozenLLM]
TRAINER = TrainerConfig(accelerator="cpu", progress_bar=False, checkpoint_every=2, log_every=1)
CONFIG = DenoiserConfig(steps=6, batch_size=4, learning_rate=1e-3, validate_every=3)

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def llm(tiny_llm: Factory) -> FrozenLLM:
    return tiny_llm()


@pytest.fixture
def data(llm: FrozenLLM) -> GlueData:
    return labelled_data(llm)


@pytest.fixture
def batch(data: GlueData) -> LabelledBatch:
    return data.batches("test", 6)[2]


def without_prompt(llm: FrozenLLM, mu: float = 20.0) -> SplitModel:
    split = split_for(llm, mu)
    return SplitModel(llm, split.method)


def trained(module: ServerDenoiser) -> ServerDenoiser:
    """As if it had been trained: it changes something."""
    with torch.no_grad():
        module.linear.weight.normal_(generator=stream("weights"))
    return module.eval()


def test_an_untrained_server_denoiser_does_nothing(llm: FrozenLLM, batch: LabelledBatch) -> None:
    split = without_prompt(llm)
    release = split.release_examples(batch, 0)
    denoised = DenoisedSplit(split, ServerDenoiser(16)).eval()
    assert torch.equal(denoised.pooled(batch, release), split.pooled(batch, release))


def test_server_denoiser_changes_private_positions_alone(llm: FrozenLLM, batch: LabelledBatch) -> None:
    split = without_prompt(llm)
    release = split.release_examples(batch, 0)
    before, after = split.embed(batch, release), DenoisedSplit(split, trained(ServerDenoiser(16))).embed(batch, release)
    changed = (before != after).any(dim=-1)
    assert torch.equal(changed, batch.private_mask)


@pytest.mark.parametrize("place", ["server", "user"])
def test_padding_changes_nothing(llm: FrozenLLM, data: GlueData, place: str) -> None:
    torch.manual_seed(0)
    split = without_prompt(llm)
    model = (
        DenoisedSplit(split, trained(ServerDenoiser(16)))
        if place == "server"
        else UserDenoised(split, UserDenoiser(16))
    ).eval()
    with torch.no_grad():
        together = [batch for size in (40, 1) for batch in data.batches("test", size)]
        states = {1: {}, 40: {}}
        for batch in together:
            for index, state in zip(
                batch.index.tolist(), model.pooled(batch, split.release_examples(batch, 0)), strict=True
            ):
                states[len(batch.index)][index] = state
    assert together[0].attention_mask.logical_not().any()
    for index, state in states[1].items():
        torch.testing.assert_close(states[40][index], state, atol=1e-4, rtol=1e-4)


def test_user_denoiser_sees_answer_clean_text_and_noise(llm: FrozenLLM, batch: LabelledBatch) -> None:
    split = without_prompt(llm)
    seen: dict[str, Tensor] = {}

    class Spy(UserDenoiser):
        def recover(self, pooled: Tensor, clean: Tensor, noise: Tensor, mask: Tensor) -> Tensor:
            seen.update(pooled=pooled, clean=clean, noise=noise, mask=mask)
            return super().recover(pooled, clean, noise, mask)

    release = split.release_examples(batch, 0)
    found = UserDenoised(split, Spy(16)).eval().pooled(batch, release)
    assert found.shape == (len(batch.label), 16)
    assert torch.equal(seen["pooled"], split.pooled(batch, release))
    assert torch.equal(seen["clean"][seen["mask"]], llm.embed(batch.input_ids[batch.private_mask]))
    restored = seen["clean"][seen["mask"]] + seen["noise"][seen["mask"]]
    torch.testing.assert_close(restored, split.method.restore(release)[0])
    assert not seen["clean"][~seen["mask"]].any()


def test_the_user_alone_never_looks_at_the_answer(
    llm: FrozenLLM, batch: LabelledBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    split, denoiser = without_prompt(llm), UserDenoiser(16)
    release = split.release_examples(batch, 0)
    with_server, alone = (UserDenoised(split, denoiser, server=server).eval() for server in (True, False))
    answered, unanswered = with_server.pooled(batch, release), alone.pooled(batch, release)
    assert not torch.allclose(answered, unanswered)
    monkeypatch.setattr(split, "pooled", lambda *_: pytest.fail("the server was asked"))
    assert torch.equal(alone.pooled(batch, release), unanswered)


def test_shape_is_snds() -> None:
    denoiser = Denoiser(16)
    layers = denoiser.layers.layers
    assert len(layers) == 6
    assert all((layer.self_attn.num_heads, layer.linear1.out_features) == (8, 1024) for layer in layers)
    assert all((layer.dropout.p, layer.norm_first) == (0.2, False) for layer in layers)
    with pytest.raises(ConfigError, match="multiple of 8, got 20"):
        Denoiser(20)


def test_targets_are_clean_states_computed_once(
    llm: FrozenLLM, batch: LabelledBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = CleanStates(SplitModel(llm))
    found = clean(batch)
    torch.testing.assert_close(found, SplitModel(llm).pooled(batch, None))
    monkeypatch.setattr(llm, "last", lambda *_, **__: pytest.fail("computed twice"))
    assert torch.equal(clean(batch), found)


def build(llm: FrozenLLM, place: str, config: DenoiserConfig = CONFIG, mu: float = 20.0) -> DenoiserTraining:
    torch.manual_seed(0)
    split = without_prompt(llm, mu)
    plain = SplitModel(llm)
    clean = {"train": CleanStates(plain), "validation": CleanStates(plain)}
    if place == "user":
        return DenoiserTraining(UserDenoised(split, UserDenoiser(16)), clean, config)
    if place == "prompt":
        split.prompt = SoftPrompt.from_text("the cat", 3, llm)
    return DenoiserTraining(DenoisedSplit(split, ServerDenoiser(16)), clean, config)


def train(module: DenoiserTraining, folder: Path, *callbacks: L.Callback) -> Fit:
    folder.mkdir(exist_ok=True)
    data = GlueDataModule(labelled_data(module.split.llm), 4, seed=0)
    return fit(module, data, TRAINER, folder, callbacks=callbacks)


def test_the_soft_prompt_has_a_learning_rate_of_its_own(llm: FrozenLLM) -> None:
    split, plain = without_prompt(llm), CleanStates(SplitModel(llm))
    split.prompt = SoftPrompt.from_text("the cat", 3, llm)
    model = DenoisedSplit(split, ServerDenoiser(16))
    module = DenoiserTraining(model, {"train": plain, "validation": plain}, CONFIG, prompt_rate=0.05)
    groups = module.configure_optimizers()["optimizer"].param_groups
    numbers = sum(parameter.numel() for parameter in model.denoiser.parameters())
    assert [(sum(p.numel() for p in g["params"]), g["initial_lr"]) for g in groups] == [(numbers, 1e-3), (48, 0.05)]
    model.prompt = None
    [alone] = module.configure_optimizers()["optimizer"].param_groups
    assert alone["initial_lr"] == 1e-3


@pytest.mark.parametrize("place", ["server", "prompt", "user"])
def test_error_falls_and_only_the_denoiser_trains(llm: FrozenLLM, tmp_path: Path, place: str) -> None:
    module = build(llm, place, replace(CONFIG, steps=30, validate_every=15, learning_rate=3e-3))
    prefix = "model.denoiser." if place == "user" else "model."
    before = {name: value.clone() for name, value in module.state_dict().items()}
    result = train(module, tmp_path)
    errors = [row["val/mse"] for row in result.history if "val/mse" in row]
    start = build(llm, place)
    start.eval()
    batch = labelled_data(llm).batches("validation", 16)[0]
    with torch.no_grad():
        untrained = float(start.loss(batch, stream("noise")))
    assert result.best == min(errors) < 0.9 * untrained
    changed = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == set(module.trainable())
    assert all(name.startswith((prefix, "model.denoiser.")) for name in changed)
    assert ("model.prompt.embeddings" in changed) == (place == "prompt")
    assert not any("llm" in name or "codec" in name for name in changed)


class Killed(Exception):  # noqa: N818
    pass


class KillAfter(L.Callback):
    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step == 5:
            raise Killed


@pytest.mark.parametrize("place", ["prompt", "user"])
def test_a_killed_training_ends_with_the_same_weights(llm: FrozenLLM, tmp_path: Path, place: str) -> None:
    """Dropout included: its masks are named like the noise."""
    whole = build(llm, place)
    expected = train(whole, tmp_path / "whole")
    with pytest.raises(Killed):
        train(build(llm, place), tmp_path / "killed", KillAfter())
    resumed = build(llm, place)
    torch.manual_seed(99)
    assert train(resumed, tmp_path / "killed") == expected
    for name, value in whole.trainable().items():
        assert torch.equal(resumed.trainable()[name], value), name


def test_nothing_to_denoise_in_clean_text(llm: FrozenLLM) -> None:
    module = build(llm, "server")
    module.model.method = Clean(llm.embedding_table())
    module.eval()
    batch = labelled_data(llm).batches("validation", 16)[0]
    assert module.loss(batch, stream("noise")).item() == pytest.approx(0.0, abs=1e-9)


def test_a_server_without_a_denoiser_is_kept_where_training_helps_nothing(llm: FrozenLLM, tmp_path: Path) -> None:
    module = build(llm, "server", replace(CONFIG, learning_rate=10.0))
    before = {name: value.clone() for name, value in module.trainable().items()}
    result = train(module, tmp_path)
    errors = {row["step"]: row["val/mse"] for row in result.history if "val/mse" in row}
    assert sorted(errors) == [0, 3, 6]
    assert result.best == errors[0] < min(errors[3], errors[6])
    assert all(torch.equal(value, before[name]) for name, value in module.trainable().items())
