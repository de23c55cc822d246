"""A run that is killed anywhere and started again ends with the very numbers of a run that was not."""

import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.callbacks.progress.progress_bar import get_standard_metrics
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file
from torch import Tensor

from del_lightning.callbacks import AttackMonitor, CommunicationMonitor, PrivacyMonitor
from del_lightning.config import AdapterConfig, CodecConfig, PromptConfig, TrainerConfig
from del_lightning.data import Batch
from del_lightning.errors import ArtifactError, ConfigError
from del_lightning.llm import FrozenLLM
from del_lightning.modules import CodecTraining, PromptTuning, low_rank_adapter
from del_lightning.modules.adapter import LowRankAdapter
from del_lightning.prompt import WEIGHTS_FILE
from del_lightning.refusal import settle_tracebacks, wants_tracebacks
from del_lightning.split import SplitModel
from del_lightning.stages.training import Fit, _others_may_end, _StepBar, _take_best, determined_by, fit, pick_device
from tests.modules.factory import data_for, split_for

Factory = Callable[..., FrozenLLM]
Trained = tuple[Fit, dict[str, Tensor]]

TRAINER = TrainerConfig(accelerator="cpu", progress_bar=False, checkpoint_every=2, log_every=1)
PROMPT = PromptConfig(virtual_tokens=3, steps=12, batch_size=2, learning_rate=0.05, validate_every=4)
CODEC = CodecConfig(
    corpus="lee",
    steps=12,
    batch_size=2,
    learning_rate=0.01,
    warmup_steps=3,
    validate_every=4,
    train_noise_mu=9.0,
)


class Killed(Exception):  # noqa: N818
    """Stands for a kill at one place of the run."""


class KillAt(L.Callback):
    """Raises when training is at ``step``: before it, right after it, in its validation, or at the end of the run."""

    def __init__(self, step: int, where: str) -> None:
        self.step, self.where = step, where

    def _kill(self, trainer: L.Trainer, where: str) -> None:
        if (trainer.global_step, where) == (self.step, self.where):
            raise Killed

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._kill(trainer, "before")

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._kill(trainer, "after")

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._kill(trainer, "validation")

    def on_train_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._kill(trainer, "end")


class Scripted(PromptTuning):
    """Validates to a given NLL at each step, and remembers the prompt that did."""

    def __init__(self, split: SplitModel, config: PromptConfig, script: Callable[[int], float]) -> None:
        super().__init__(split, config)
        self.script, self.seen = script, dict[int, Tensor]()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.seen[self.global_step] = self.split.prompt.embeddings.detach().clone()
        self.validation_sum += torch.tensor([self.script(self.global_step), 1.0])


def train(
    llm: FrozenLLM,
    folder: Path,
    config: PromptConfig | CodecConfig = PROMPT,
    trainer: TrainerConfig = TRAINER,
    extra: tuple[L.Callback, ...] = (),
    adapter: LowRankAdapter | None = None,
) -> Trained:
    split = split_for(llm)
    if isinstance(config, PromptConfig):
        module: Any = PromptTuning(split, config, seed=0, adapter=adapter)
        monitors = (PrivacyMonitor(6), CommunicationMonitor(), AttackMonitor(3))
    else:
        module, monitors = CodecTraining(llm, split.method.codec, config, bits=4, seed=0), ()
    folder.mkdir(exist_ok=True)
    result = fit(module, data_for(llm), trainer, folder, callbacks=[*monitors, *extra])
    return result, {name: value.detach().clone() for name, value in module.trainable().items()}


def assert_equal(one: Trained, other: Trained) -> None:
    assert one[0] == other[0]  # curve, steps and best perplexity
    for name, value in other[1].items():
        assert torch.equal(one[1][name], value), name


SCHEDULES = {"prompt": PROMPT, "codec": CODEC}


@pytest.fixture(scope="module")
def uninterrupted(tiny_llm: Factory, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    known: dict[str, Trained] = {}

    def get(part: str) -> Trained:
        if part not in known:
            known[part] = train(tiny_llm(), tmp_path_factory.mktemp(part), SCHEDULES[part])
        return known[part]

    return get


PLACES = [
    (1, "after"),  # no checkpoint yet
    (4, "after"),  # a step that is due for a checkpoint and a validation
    (4, "validation"),
    (5, "before"),
    (7, "after"),
    (12, "validation"),  # the last one of all
    (12, "end"),
]


@pytest.mark.parametrize(("step", "where"), PLACES)
@pytest.mark.parametrize("part", SCHEDULES)
def test_a_killed_run_ends_as_an_uninterrupted_one(
    tiny_llm: Factory, tmp_path: Path, uninterrupted: Callable[[str], Trained], part: str, step: int, where: str
) -> None:
    llm, config = tiny_llm(), SCHEDULES[part]
    with pytest.raises(Killed):
        train(llm, tmp_path, config, extra=(KillAt(step, where),))
    assert_equal(train(llm, tmp_path, config), uninterrupted(part))


@pytest.mark.parametrize("word", ["cuda", "gpu"])
def test_a_device_that_is_not_there_is_called_as_the_user_did(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=rf"`trainer.accelerator` must be auto or cpu .*, got '{word}'"):
        pick_device(TrainerConfig(accelerator=word))


def test_a_run_may_be_killed_twice(tiny_llm: Factory, tmp_path: Path, uninterrupted: Callable[[str], Trained]) -> None:
    for step in (5, 9):
        with pytest.raises(Killed):
            train(tiny_llm(), tmp_path, extra=(KillAt(step, "before"),))
    assert_equal(train(tiny_llm(), tmp_path), uninterrupted("prompt"))


def test_what_was_trained_before_the_kill_is_not_trained_again(
    tiny_llm: Factory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Count(L.Callback):
        steps = 0

        def on_train_batch_start(self, *_: Any) -> None:
            self.steps += 1

    with pytest.raises(Killed):
        train(tiny_llm(), tmp_path, extra=(KillAt(7, "before"),))
    assert "continuing" not in capsys.readouterr().out
    count = Count()
    train(tiny_llm(), tmp_path, extra=(count,))
    assert count.steps == 12 - 6
    assert capsys.readouterr().out.count("continuing from step 6 of 12\n") == 1


@pytest.mark.parametrize("recompute", [False, True], ids=["plain", "recomputed layers"])
def test_a_killed_adapter_ends_as_an_uninterrupted_one(tiny_llm: Factory, tmp_path: Path, recompute: bool) -> None:
    pytest.importorskip("peft")

    def run(name: str, *extra: L.Callback) -> tuple[Trained, dict[str, Tensor]]:
        llm, folder = tiny_llm(), tmp_path / name
        if recompute:
            llm.recompute_layers()
        with low_rank_adapter(llm, AdapterConfig(rank=2, alpha=4), seed=0) as adapter:
            found = train(llm, folder, extra=extra, adapter=adapter)
            adapter.save(folder / "adapter")
        return found, load_file(folder / "adapter" / WEIGHTS_FILE)

    expected, saved = run("whole")
    assert "split.prompt.embeddings" in expected[1]
    assert len(expected[1]) == 1 + len(saved) > 1
    assert any(weight.any() for name, weight in saved.items() if "lora_B" in name)  # it starts as zero
    with pytest.raises(Killed):
        run("cut", KillAt(7, "after"))
    resumed, again = run("cut")
    assert_equal(resumed, expected)
    assert all(torch.equal(again[name], weight) for name, weight in saved.items())


@pytest.mark.parametrize(("step", "where"), [(5, "before"), (8, "validation")])
def test_accumulated_batches_resume_too(tiny_llm: Factory, tmp_path: Path, step: int, where: str) -> None:
    trainer = replace(TRAINER, accumulate_grad_batches=3)
    expected = train(tiny_llm(), tmp_path / "whole", trainer=trainer)
    with pytest.raises(Killed):
        train(tiny_llm(), tmp_path / "cut", trainer=trainer, extra=(KillAt(step, where),))
    assert_equal(train(tiny_llm(), tmp_path / "cut", trainer=trainer), expected)
    assert [row["step"] for row in expected[0].history] == [float(step) for step in range(1, 13)]


def test_early_stopping_stops_at_the_same_step_after_a_kill(tiny_llm: Factory, tmp_path: Path) -> None:
    config = replace(PROMPT, steps=40, validate_every=2, patience=2)

    def run(name: str, *extra: L.Callback) -> Trained:
        module = Scripted(split_for(tiny_llm()), config, lambda step: abs(step - 3))  # no better than at 2 and 4
        (tmp_path / name).mkdir(exist_ok=True)
        result = fit(module, data_for(module.split.llm), TRAINER, tmp_path / name, callbacks=extra)
        return result, {"prompt": module.split.prompt.embeddings}

    expected = run("whole")
    assert expected[0].steps == 6
    for name, place in {"before": (5, "before"), "end": (6, "end")}.items():
        with pytest.raises(Killed):
            run(name, KillAt(*place))
        assert_equal(run(name), expected)


@pytest.mark.parametrize("best", [4, 8, 12])
def test_the_best_validation_is_kept(tiny_llm: Factory, tmp_path: Path, best: int) -> None:
    module = Scripted(split_for(tiny_llm()), PROMPT, lambda step: 1.0 if step == best else 2.0)
    result = fit(module, data_for(module.split.llm), TRAINER, tmp_path)
    assert result.best == pytest.approx(math.e)
    assert result.steps == 12
    assert torch.equal(module.split.prompt.embeddings, module.seen[best])
    assert not torch.equal(module.seen[4], module.seen[8])


def test_a_run_shorter_than_its_validation_interval_is_validated_at_its_end(tiny_llm: Factory, tmp_path: Path) -> None:
    result, _ = train(tiny_llm(), tmp_path, replace(PROMPT, steps=3, validate_every=100))
    assert [row["step"] for row in result.history if "val/perplexity" in row] == [3.0]


def test_history_holds_every_measurement_where_it_was_made(uninterrupted: Callable[[str], Trained]) -> None:
    history = uninterrupted("prompt")[0].history
    assert [row["step"] for row in history] == [float(step) for step in range(1, 13)]
    assert all("train/loss" in row and "privacy/gdp_mu_token" in row for row in history)
    assert [row["step"] for row in history if "val/perplexity" in row] == [4.0, 8.0, 12.0]
    assert [row["step"] for row in history if "attack/nn_asr" in row] == [3.0, 6.0, 9.0, 12.0]


def test_log_interval_thins_the_history(tiny_llm: Factory, tmp_path: Path) -> None:
    result, _ = train(tiny_llm(), tmp_path, trainer=replace(TRAINER, log_every=5))
    assert [row["step"] for row in result.history if "train/loss" in row] == [3.0, 5.0, 6.0, 9.0, 10.0, 12.0]
    assert [row["step"] for row in result.history if "val/perplexity" in row] == [4.0, 8.0, 12.0]


def test_time_of_killed_attempts_is_left_for_the_record(tiny_llm: Factory, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(tiny_llm(), tmp_path, extra=(KillAt(7, "before"),))
    (tmp_path / "seconds.txt").write_text("100.0\n")
    with pytest.raises(Killed):
        train(tiny_llm(), tmp_path, extra=(KillAt(11, "before"),))
    after_two = float((tmp_path / "seconds.txt").read_text())
    assert 100 < after_two < 110
    train(tiny_llm(), tmp_path)
    # The last attempt is timed by whoever called.
    assert float((tmp_path / "seconds.txt").read_text()) == after_two


def test_sigterm_is_never_lightnings(tiny_llm: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even before the first step, where ranks wait for each other too."""
    before, seen, inner = signal.getsignal(signal.SIGTERM), list[object](), L.Trainer._run_stage

    def run_stage(trainer: L.Trainer) -> object:
        seen.append(signal.getsignal(signal.SIGTERM))
        return inner(trainer)

    monkeypatch.setattr(L.Trainer, "_run_stage", run_stage)
    train(tiny_llm(), tmp_path)
    assert [*seen, signal.getsignal(signal.SIGTERM)] == [before, before]


def test_a_run_that_lost_its_best_validation_says_so(tmp_path: Path) -> None:
    nothing = ModelCheckpoint(tmp_path, monitor="val/perplexity")
    with pytest.raises(ArtifactError, match="must hold the best validation of its run, got none"):
        _take_best(torch.nn.Identity(), nothing, tmp_path)


def test_what_changes_the_numbers_is_part_of_a_key() -> None:
    plain = determined_by(TrainerConfig())
    assert plain == determined_by(TrainerConfig(), full_precision=True) == {"accumulate": 1}
    for changes in ({"devices": 2}, {"num_nodes": 2}, {"accumulate_grad_batches": 2}, {"compile": True}):
        assert determined_by(TrainerConfig(**changes), full_precision=True) != plain
    mixed = TrainerConfig(precision="bf16-mixed")
    assert determined_by(mixed) != plain
    assert determined_by(mixed, full_precision=True) == plain  # codec and inverter train in float32 whatever it says


def test_mixed_precision_rounds_the_language_model_and_nothing_that_is_kept(
    tiny_llm: Factory, tmp_path: Path, uninterrupted: Callable[[str], Trained]
) -> None:
    seen = set[torch.dtype]()

    class Rounded(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            layer = pl_module.split.llm.model.model.layers[0].mlp.up_proj
            layer.register_forward_hook(lambda _module, _inputs, output: seen.add(output.dtype))

    full, full_weights = uninterrupted("prompt")
    mixed, weights = train(tiny_llm(), tmp_path, trainer=replace(TRAINER, precision="bf16-mixed"), extra=(Rounded(),))
    assert seen == {torch.bfloat16}
    assert mixed.best == pytest.approx(full.best, rel=0.02)
    assert mixed.best != full.best
    for name, value in weights.items():
        assert value.dtype == torch.float32
        assert (value - full_weights[name]).norm() < 0.1 * full_weights[name].norm()


def test_the_progress_bar_shows_no_version_of_the_logger(tmp_path: Path) -> None:
    trainer = L.Trainer(logger=CSVLogger(tmp_path), accelerator="cpu", enable_checkpointing=False)
    assert "v_num" in get_standard_metrics(trainer)
    assert "v_num" not in _StepBar().get_metrics(trainer, L.LightningModule())


@pytest.mark.parametrize(
    ("error", "one_line"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]: Connection reset by peer."), True),
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"), True),
        (torch.distributed.DistBackendError("NCCL error: remote process exited or there was a network error"), True),
        (torch.distributed.DistNetworkError("Failed to recv, got 0 bytes. Connection was likely closed."), True),
        (torch.distributed.DistBackendError("NCCL error: unhandled cuda error: out of memory"), False),
        (torch.distributed.DistNetworkError("The server socket has failed to listen: EADDRINUSE"), False),
        (RuntimeError("[gloo/allreduce.cc:9] shapes do not agree"), False),
        (RuntimeError("a tracker's Connection reset by peer"), False),
    ],
)
def test_only_the_loss_of_another_rank_is_one_line(
    error: Exception, one_line: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DEL_LIGHTNING_TRACEBACKS", "HYDRA_FULL_ERROR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ArtifactError if one_line else type(error)), _others_may_end():
        raise error
    for name in ("HYDRA_FULL_ERROR", "DEL_LIGHTNING_TRACEBACKS"):  # from Python, and from the command line
        monkeypatch.setenv(name, "1")
        with pytest.raises(type(error)), _others_may_end():
            raise error
        monkeypatch.delenv(name)


def test_a_users_wish_for_tracebacks_reaches_processes_that_this_one_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    for wished in ("0", "1"):
        monkeypatch.setenv("HYDRA_FULL_ERROR", wished)
        monkeypatch.setenv("DEL_LIGHTNING_TRACEBACKS", "")
        monkeypatch.delenv("DEL_LIGHTNING_TRACEBACKS")
        for _ in ("this one", "the other, which inherits both"):
            settle_tracebacks()
            assert os.environ["HYDRA_FULL_ERROR"] == "1"
            assert wants_tracebacks() == (wished == "1")
