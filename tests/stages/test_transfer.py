"""Soft prompts on other data and at other mu, on a random Llama of two layers."""

import math
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from del_lightning.config import Config, LoggerConfig, StageConfig, TransferConfig
from del_lightning.data import load_corpus
from del_lightning.errors import ConfigError, DataError
from del_lightning.report import words
from del_lightning.report.schema import TransferBoard
from del_lightning.report.transfer import render_markdown
from del_lightning.stages import transfer
from del_lightning.stages.checks import check
from del_lightning.stages.workspace import Workspace
from tests.stages.factory import config_for, need, records
from tests.stages.wandb_server import RunFile

STRICT, LOOSE = 1.0, 500.0
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _assets() -> None:
    need("lee.cor", "lee_background.cor")


@pytest.fixture(scope="module")
def config(model: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Two mu, and another data set: the same text, backwards."""
    root = tmp_path_factory.mktemp("root")
    for split in ("train", "validation"):
        texts = [" ".join(reversed(text.split())) for text in load_corpus("lee").documents(split)]
        (root / "c4").mkdir(exist_ok=True)
        pq.write_table(pa.table({"text": texts}), root / "c4" / f"{split}-00000-of-00001.parquet")
    small = config_for(model, encoder, tmp_path_factory.mktemp("transfer"))
    return replace(
        small,
        stage=StageConfig(name="transfer"),
        data=replace(small.data, root=str(root)),
        transfer=TransferConfig(mus=[STRICT, LOOSE], sources=["c4"]),
    )


@pytest.fixture(scope="module")
def board(config: Config) -> TransferBoard:
    workspace = Workspace(config)
    check(workspace)
    path = transfer.run(workspace)
    assert path is not None
    return TransferBoard.model_validate_json(path.read_text())


def test_every_use_is_there_once(board: TransferBoard) -> None:
    assert [(cell.used_at, cell.trained_on, cell.trained_at) for cell in board.cells] == [
        (STRICT, None, None),
        (STRICT, "lee", STRICT),
        (STRICT, "lee", LOOSE),
        (STRICT, "c4", STRICT),
        (LOOSE, None, None),
        (LOOSE, "lee", LOOSE),
        (LOOSE, "lee", STRICT),
        (LOOSE, "c4", LOOSE),
    ]
    assert (board.dataset, board.prompts, board.bits, board.dim) == ("lee", 6, 3, 4)
    assert board.privacy[f"{STRICT:g}"].epsilon_sequence < board.privacy[f"{LOOSE:g}"].epsilon_sequence


def test_differences_are_those_of_the_cells(board: TransferBoard) -> None:
    none, matched, other, _ = board.cells[4:]
    assert none.over_none is None
    assert matched.over_matched is None
    for cell, base, found in ((matched, none, matched.over_none), (other, matched, other.over_matched)):
        expected = math.log(cell.perplexity.value) - math.log(base.perplexity.value)
        assert found.nll.value == pytest.approx(expected, abs=1e-6)
        assert found.nll.low <= found.nll.value <= found.nll.high
        assert found.nll.n == 6
    assert other.over_matched.nll.value != 0


def test_each_soft_prompt_is_trained_once(config: Config, board: TransferBoard) -> None:
    before = records(Path(config.out))
    assert len(list(Path(config.out).glob("prompt/*/result.json"))) == 4  # two data sets, two mu
    assert len(list(Path(config.out).glob("codec/*/result.json"))) == 1
    transfer.run(Workspace(config))
    assert records(Path(config.out)) == before


def test_report_shows_every_cell(config: Config, board: TransferBoard) -> None:
    lines = render_markdown(board).splitlines()
    assert sum(line.startswith(f"| {words.number(STRICT)} |") for line in lines) == 4
    assert sum("no soft prompt" in line for line in lines) == 2
    assert (Path(config.out) / "report" / "small-pipeline" / "report.md").read_text() == render_markdown(board)


def test_bad_settings_are_refused_before_any_work(config: Config, tmp_path: Path) -> None:
    def refused(**changes: object) -> None:
        check(Workspace(replace(config, out=str(tmp_path / "out"), **changes)))  # type: ignore[arg-type]

    with pytest.raises(ConfigError, match=r"`transfer.sources` must name other data sets"):
        refused(transfer=TransferConfig(sources=["lee"]))
    with pytest.raises(ConfigError, match=r"`mechanism.mu` must be left out"):
        refused(mechanism=replace(config.mechanism, mu=3.0))
    with pytest.raises(DataError):
        refused(transfer=TransferConfig(sources=["ptb"]))
    with pytest.raises(ConfigError, match=r"`transfer.mus` must be different values"):
        TransferConfig(mus=[1.0, 1.0])
    assert not (tmp_path / "out").exists()


def test_a_front_end_first_asked_for_in_inference_mode_can_still_be_trained_behind(config: Config) -> None:
    workspace = Workspace(config)
    with torch.inference_mode():
        method = workspace.method("del")
    assert not any(parameter.is_inference() for parameter in method.parameters())


def test_wandb_gets_every_use_the_soft_prompts_and_the_report(
    config: Config, board: TransferBoard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staging"))
    with Workspace(replace(config, logger=LoggerConfig(kind="wandb", mode="offline"))) as workspace:
        transfer.run(workspace)
    (file,) = (Path(config.out) / "wandb").glob("offline-run-*/run-*.wandb")
    record = RunFile.read(file)
    for cell in board.cells:
        origin = "none" if cell.trained_on is None else f"{cell.trained_on}_mu{cell.trained_at:g}"
        name = f"transfer/mu{cell.used_at:g}/{origin}/perplexity"
        assert record.summary[name] == pytest.approx(cell.perplexity.value, rel=1e-6)
    contents = {kind: {e["path"] for e in one["manifest"]["contents"]} for kind, one in record.artifacts.items()}
    assert contents["report"] == {"report.md", "transfer.json"}
    assert "adapter_model.safetensors" in contents["soft-prompt"]
