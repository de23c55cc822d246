"""Heads, soft prompts and adapters learn to classify through the noise, and leave the frozen model as it was."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from del_lightning.config import LoraConfig, PromptConfig, TrainerConfig
from del_lightning.data.glue import GlueDataModule
from del_lightning.llm import FrozenLLM
from del_lightning.methods import Clean
from del_lightning.modules import ClassifierTraining, Head, Verbaliser, fit_head, low_rank_adapter
from del_lightning.prompt import SoftPrompt
from del_lightning.seeding import stream
from del_lightning.split import SplitModel
from del_lightning.stages.training import Fit, fit
from tests.modules.factory import labelled_data, split_for

Factory = Callable[..., FrozenLLM]
TRAINER = TrainerConfig(accelerator="cpu", progress_bar=False, checkpoint_every=50, log_every=5)
CONFIG = PromptConfig(virtual_tokens=3, steps=6, batch_size=4, learning_rate=0.05, validate_every=3)

pytestmark = pytest.mark.usefixtures("cache")


def separable(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """States of which one tiny coordinate tells the class and a huge one nothing."""
    generator = stream("states", seed)
    labels = torch.randint(2, (count,), generator=generator)
    states = torch.randn(count, 6, generator=generator)
    states[:, 0] = 1e-3 * (labels + 0.1 * states[:, 0])
    states[:, 1] *= 1e3
    return states, labels


@pytest.mark.parametrize("hidden", [None, 12])
def test_a_head_learns_from_cached_states(hidden: int | None) -> None:
    def run() -> tuple[Head, float]:
        torch.manual_seed(0)
        head = Head(6, hidden)
        return head, fit_head(head, separable(200, 0), separable(50, 1), seed=0)

    head, best = run()
    states, labels = separable(500, 2)
    assert float((head(states).argmax(1) == labels).float().mean()) > 0.95
    validation = separable(50, 1)
    loss = torch.nn.functional.cross_entropy(head(validation[0]), validation[1])
    assert best == pytest.approx(loss.item())
    again, _ = run()
    assert torch.equal(again(states), head(states))


def test_an_untrained_head_has_no_opinion() -> None:
    assert torch.equal(Head(6, 4)(torch.randn(3, 6)), torch.zeros(3, 2))


def test_a_head_that_cannot_learn_stays_where_validation_was_best() -> None:
    """Labels of pure chance: the head is left as it started rather than fitted to them."""
    generator = stream("chance")
    train = torch.randn(40, 30, generator=generator), torch.randint(2, (40,), generator=generator)
    validation = torch.randn(400, 30, generator=generator), torch.randint(2, (400,), generator=generator)
    start = Head(30)
    start.guess(train[1])
    first = torch.nn.functional.cross_entropy(start(validation[0]), validation[1]).item()
    assert fit_head(Head(30), train, validation, seed=0) <= first + 1e-6


def test_a_head_that_learns_nothing_answers_the_majority() -> None:
    """Whatever is learned from the training part is wrong in the validation part."""
    labels = (torch.arange(40) % 4 > 0).long()
    states = (2.0 * labels - 1)[:, None].repeat(1, 3)
    head = Head(3)
    best = fit_head(head, (states, labels), (-states, labels), seed=0)
    torch.testing.assert_close(head(states).softmax(dim=1), torch.tensor([11 / 42, 31 / 42]).expand(40, 2))
    assert best == pytest.approx(-(0.25 * math.log(11 / 42) + 0.75 * math.log(31 / 42)), abs=1e-5)


def test_a_saved_head_is_the_same_head(tmp_path: Path) -> None:
    head = Head(6, 12)
    fit_head(head, separable(60, 0), separable(20, 1), seed=0)
    head.save(tmp_path / "head.safetensors")
    other = Head(6, 12)
    other.load(tmp_path / "head.safetensors")
    assert torch.equal(other(separable(5, 3)[0]), head(separable(5, 3)[0]))


def test_verbaliser_compares_the_label_words() -> None:
    logits = torch.randn(4, 300)
    assert torch.equal(Verbaliser([7, 250])(torch.zeros(4, 2), logits), logits[:, [7, 250]])
    assert not list(Verbaliser([7, 250]).parameters())


def train(module: ClassifierTraining, folder: Path) -> Fit:
    folder.mkdir(exist_ok=True)
    return fit(module, GlueDataModule(labelled_data(module.split.llm, train_examples=160), 4, seed=0), TRAINER, folder)


def tuned(split: SplitModel) -> SplitModel:
    split.requires_grad_(False)
    split.prompt.requires_grad_(True)
    return split


@pytest.mark.parametrize("head", ["linear", "verbaliser"])
def test_soft_prompt_and_head_learn_the_task(tiny_llm: Factory, tmp_path: Path, head: str) -> None:
    torch.manual_seed(0)
    llm = tiny_llm()
    split = tuned(SplitModel(llm, Clean(llm.embedding_table()), SoftPrompt.from_text("the cat", 3, llm)))
    reader = Head(16) if head == "linear" else Verbaliser([70, 80])
    if isinstance(reader, Head):
        batch = labelled_data(llm).batches("validation", 16)[0]
        reader.standardise(split.pooled(batch, split.release(batch)).detach())
    module = ClassifierTraining(split, reader, replace(CONFIG, steps=120, validate_every=20))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    result = train(module, tmp_path)
    assert set(module.trainable()) == {name for name in before if name.startswith(("split.prompt", "head.layers"))}
    assert result.best < 0.64  # chance is .69
    changed = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    expected = {"split.prompt.embeddings"} | (
        {f"head.layers.0.{w}" for w in ("weight", "bias")} if head == "linear" else set()
    )
    assert changed == expected


def test_each_part_has_its_own_learning_rate(tiny_llm: Factory) -> None:
    module = ClassifierTraining(tuned(split_for(tiny_llm())), Head(16), CONFIG)
    groups = module.configure_optimizers()["optimizer"].param_groups
    assert [(sum(p.numel() for p in g["params"]), g["initial_lr"]) for g in groups] == [(48, 0.05), (34, 1e-3)]


def test_training_meets_fresh_noise(tiny_llm: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ClassifierTraining(tuned(split_for(tiny_llm())), Head(16), replace(CONFIG, validate_every=6))
    streams: list[int] = []
    release = module.split.release

    def spy(batch: object, generator: torch.Generator) -> object:
        if module.training:
            streams.append(generator.initial_seed())
        return release(batch, generator)

    monkeypatch.setattr(module.split, "release", spy)
    train(module, tmp_path)
    assert len(streams) == len(set(streams)) == 6


class Worsening(ClassifierTraining):
    """Every validation is worse than the one before."""

    validations = 0

    def score(self, loss: Tensor) -> Tensor:
        self.validations += 1
        return torch.tensor(float(self.validations))


def test_a_training_that_only_loses_leaves_what_it_started_from(tiny_llm: Factory, tmp_path: Path) -> None:
    """The head comes fitted: what training makes worse must not be reported as what a soft prompt is worth."""
    module = Worsening(tuned(split_for(tiny_llm())), Head(16), CONFIG)
    before = {name: value.clone() for name, value in module.trainable().items()}
    result = train(module, tmp_path)
    assert (result.best, module.validations) == (1.0, 3)  # before the first step, and twice in six
    assert all(torch.equal(value, before[name]) for name, value in module.trainable().items())
    better = ClassifierTraining(tuned(split_for(tiny_llm())), Head(16), CONFIG)
    train(better, tmp_path / "better")
    assert not all(torch.equal(value, before[name]) for name, value in better.trainable().items())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_adapter_comes_and_goes(tiny_llm: Factory, tmp_path: Path, family: str) -> None:
    pytest.importorskip("peft")
    llm = tiny_llm(family)
    batch = labelled_data(llm).batches("test", 8)[0]
    split = SplitModel(llm, Clean(llm.embedding_table()))
    release = split.release_examples(batch, 0)
    before, plain = split.pooled(batch, release), {name: value.clone() for name, value in llm.state_dict().items()}
    config = LoraConfig(rank=2, alpha=4, learning_rate=0.05)
    with low_rank_adapter(llm, config, seed=0) as adapter:
        assert torch.equal(split.pooled(batch, release), before)  # no effect yet
        module = ClassifierTraining(split, Head(16), replace(CONFIG, steps=20, learning_rate=0.05))
        trained = {name for name in module.trainable() if name.startswith("split.")}
        assert trained
        assert all("lora_" in name for name in trained)
        assert adapter.parameters == sum(module.trainable()[name].numel() for name in trained)
        train(module, tmp_path / "run")
        after = split.pooled(batch, release).detach()
        assert not torch.allclose(after, before)
        adapter.save(tmp_path / "adapter")
    assert torch.equal(split.pooled(batch, release), before)
    assert {name: torch.equal(value, plain[name]) for name, value in llm.state_dict().items()} == dict.fromkeys(
        plain, True
    )
    assert not any(parameter.requires_grad for parameter in llm.parameters())
    with low_rank_adapter(llm, config, seed=1) as adapter:
        adapter.load(tmp_path / "adapter")
        torch.testing.assert_close(split.pooled(batch, release).detach(), after)


def test_a_saved_adapter_loads_in_peft(tiny_llm: Factory, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    llm = tiny_llm()
    ids = torch.arange(1, 9)[None]
    with low_rank_adapter(llm, LoraConfig(rank=2, alpha=4), seed=0) as adapter, torch.no_grad():
        for name, parameter in llm.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=stream(name))
        adapter.save(tmp_path)
        expected = llm.model(input_ids=ids).logits
    model = peft.PeftModel.from_pretrained(llm.model, tmp_path)
    torch.testing.assert_close(model(input_ids=ids).logits, expected)
    assert not {file.name for file in tmp_path.iterdir()} - {"adapter_config.json", "adapter_model.safetensors"}
    assert "tiny-llama" in (tmp_path / "adapter_config.json").read_text()
