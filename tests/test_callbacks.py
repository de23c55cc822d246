import csv
import time
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from torch import Tensor

from del_lightning.callbacks import AttackMonitor, CommunicationMonitor, History, PrivacyMonitor
from del_lightning.config import PromptConfig, TrainerConfig
from del_lightning.llm import FrozenLLM
from del_lightning.methods import Clean, Release
from del_lightning.modules import PromptTuning
from del_lightning.privacy import BinomialAccountant
from del_lightning.privacy.statement import PRIOR
from del_lightning.prompt import SoftPrompt
from del_lightning.split import SplitModel
from del_lightning.stages.training import Fit, fit
from tests.modules.factory import data_for, split_for

Factory = Callable[..., FrozenLLM]
TRAINER = TrainerConfig(accelerator="cpu", progress_bar=False, checkpoint_every=100, log_every=1)
CONFIG = PromptConfig(virtual_tokens=3, steps=4, batch_size=2, validate_every=4)
MU, TOKENS, DELTA = 20.0, 6, 1e-6


def train(split: SplitModel, folder: Path, *callbacks: L.Callback, logger: Logger | bool = False) -> Fit:
    folder.mkdir(exist_ok=True)
    return fit(PromptTuning(split, CONFIG), data_for(split.llm), TRAINER, folder, callbacks=callbacks, logger=logger)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def values(rows: list[dict[str, str]], name: str) -> list[float]:
    return [float(row[name]) for row in rows if row.get(name)]


def clean_split(llm: FrozenLLM) -> SplitModel:
    return SplitModel(llm, Clean(llm.embedding_table()), SoftPrompt.from_text("the cat", 3, llm))


def test_privacy_is_logged_with_its_exact_epsilons(
    tiny_llm: Factory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = CSVLogger(tmp_path / "logs")
    train(split_for(tiny_llm(), MU), tmp_path / "run", PrivacyMonitor(TOKENS, DELTA), logger=logger)
    rows = rows_of(Path(logger.log_dir))
    token = BinomialAccountant.from_mu(MU, 4, 4)
    assert values(rows, "privacy/gdp_mu_token") == pytest.approx([MU] * 4)
    assert values(rows, "privacy/gdp_mu_effective_token") == pytest.approx([token.effective_mu] * 4, rel=1e-5)
    assert values(rows, "privacy/epsilon_token") == pytest.approx([token.epsilon(DELTA)] * 4, rel=1e-5)
    sequence = token.compose(TOKENS).epsilon(DELTA)
    assert values(rows, "privacy/epsilon_sequence") == pytest.approx([sequence] * 4, rel=1e-5)
    for unit, tokens in (("token", 1), ("sequence", TOKENS)):
        bound = token.compose(tokens).attack_bound(PRIOR)
        assert values(rows, f"privacy/attack_bound_{unit}") == pytest.approx([bound] * 4, rel=1e-5)
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("exact epsilon") == 1
    assert f"a sequence of {TOKENS} tokens" in said


def test_clean_prompts_log_no_guarantee(tiny_llm: Factory, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = train(clean_split(tiny_llm()), tmp_path, PrivacyMonitor(TOKENS))
    assert not any(name.startswith("privacy/") for row in result.history for name in row)
    assert "no differential privacy guarantee" in capsys.readouterr().out


def test_communication_counts_the_private_tokens_of_every_batch(tiny_llm: Factory, tmp_path: Path) -> None:
    monitor, logger = CommunicationMonitor(), CSVLogger(tmp_path / "logs")
    split = split_for(tiny_llm())
    train(split, tmp_path / "run", monitor, logger=logger)
    batches = iter(data_for(split.llm).train_dataloader())
    tokens = torch.tensor([int(next(batches).private_mask.sum()) for _ in range(4)])
    rows = rows_of(Path(logger.log_dir))
    assert values(rows, "communication/bits_per_token") == [16.0] * 4  # d = 4 coordinates of 4 bits
    expected = (tokens.cumsum(0) * 16 / 8e6).tolist()
    assert values(rows, "communication/megabytes_sent") == pytest.approx(expected, rel=1e-5)
    assert (monitor.tokens, monitor.bits) == (int(tokens.sum()), int(tokens.sum()) * 16)


def test_communication_goes_on_counting_after_a_resume() -> None:
    first, second = CommunicationMonitor(), CommunicationMonitor()
    first.bits, first.tokens = 160, 10
    second.load_state_dict(first.state_dict())
    assert (second.bits, second.tokens) == (160, 10)


def test_attack_success_lies_in_its_interval(tiny_llm: Factory, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path / "logs")
    train(split_for(tiny_llm(), mu=1e6), tmp_path / "run", AttackMonitor(every=2), logger=logger)
    rows = [row for row in rows_of(Path(logger.log_dir)) if row["attack/nn_asr"]]
    assert int(rows[0]["step"]) == 1  # Lightning counts from 0: the second step is the first to be attacked
    for row in rows:
        low, rate, high = (float(row[f"attack/nn_asr{end}"]) for end in ("_low", "", "_high"))
        assert 0 <= low < rate <= high <= 1


def test_attack_reads_everything_of_clean_prompts_and_little_through_much_noise(
    tiny_llm: Factory, tmp_path: Path
) -> None:
    def rate(split: SplitModel, name: str, metric: str) -> float:
        history = train(split, tmp_path / name, AttackMonitor(every=4, metric=metric)).history
        return history[-1]["attack/nn_asr"]

    for metric in ("cosine", "l2"):
        assert rate(clean_split(tiny_llm()), f"clean-{metric}", metric) == 1.0
        assert rate(split_for(tiny_llm(), mu=0.1), f"noise-{metric}", metric) < 0.3


def test_a_release_that_depends_on_its_sequence_is_attacked_a_sequence_at_a_time(
    tiny_llm: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    split, released = split_for(tiny_llm(), mu=1e6), []
    assert split.method is not None
    release = split.method.release

    def recorded(ids: Tensor, generator: torch.Generator | None = None) -> Release:
        released.append(ids.tolist())
        return release(ids, generator)

    monkeypatch.setattr(type(split.method), "per_sequence", True)
    monkeypatch.setattr(split.method, "release", recorded)
    batch = next(iter(data_for(split.llm).train_dataloader()))
    hits = AttackMonitor(every=1).hits(split, batch, torch.Generator())
    assert released == [[ids[mask].tolist()] for ids, mask in zip(batch.input_ids, batch.private_mask, strict=True)]
    assert 0 < hits <= int(batch.private_mask.sum())


def test_attack_does_not_disturb_training(tiny_llm: Factory, tmp_path: Path) -> None:
    watched, alone = split_for(tiny_llm()), split_for(tiny_llm())
    train(watched, tmp_path / "watched", PrivacyMonitor(TOKENS), CommunicationMonitor(), AttackMonitor(every=1))
    train(alone, tmp_path / "alone")
    assert torch.equal(watched.prompt.embeddings, alone.prompt.embeddings)


def test_history_survives_a_checkpoint() -> None:
    first, second = History(every=1), History(every=1)
    first.rows = [{"step": 1.0, "train/loss": 2.0}]
    second.load_state_dict(first.state_dict())
    assert second.rows == first.rows


@pytest.mark.slow
def test_weights_and_biases_offline(tiny_llm: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(project="test", mode="offline", dir=str(tmp_path), settings=wandb.Settings(x_disable_stats=True))
    monitors = [PrivacyMonitor(TOKENS), CommunicationMonitor(), AttackMonitor(every=2)]
    logger = WandbLogger(experiment=run, prefix="prompt")
    train(split_for(tiny_llm(), MU), tmp_path / "run", *monitors, logger=logger)
    summary = dict(run.summary)
    run.finish()
    assert summary["prompt-privacy/gdp_mu_token"] == pytest.approx(MU)
    assert summary["prompt-communication/bits_per_token"] == 16.0
    assert 0 <= summary["prompt-attack/nn_asr"] <= 1
    assert summary["prompt-val/perplexity"] > 1
    (file,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 60  # the service writes behind our back, and late on a busy machine
    while b"gdp_mu_token" not in file.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.1)
