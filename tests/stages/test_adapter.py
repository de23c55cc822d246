"""Soft prompts with a low-rank adapter beside them, on a random Llama of two layers."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from del_lightning.artifacts import read_result
from del_lightning.config import AdapterConfig, Config, MechanismConfig
from del_lightning.errors import ConfigError
from del_lightning.stages import attack, evaluate, pipeline, prompt, tracking
from del_lightning.stages.checks import check
from del_lightning.stages.setting import Setting
from del_lightning.stages.workspace import Workspace
from tests.stages.factory import board_of, config_for, need

pytestmark = pytest.mark.slow
MU = 20.0
DEL = Setting("del", "DEL", MU)


@pytest.fixture(scope="module", autouse=True)
def _assets() -> None:
    pytest.importorskip("peft")
    need("lee.cor", "lee_background.cor")


def with_adapter(model: Path, encoder: Path, out: Path, rank: int = 2) -> Config:
    config = config_for(model, encoder, out)
    return replace(
        config,
        methods=["clean", "mean", "del"],
        mechanism=MechanismConfig(bits=3, mu=MU),
        adapter=AdapterConfig(rank=rank, alpha=4, learning_rate=0.05),
        attack=replace(config.attack, levels=[]),
    )


@pytest.fixture(scope="module")
def finished(model: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = with_adapter(model, encoder, tmp_path_factory.mktemp("adapter"))
    pipeline.run(Workspace(config))
    return config


def test_every_soft_prompt_of_the_board_has_its_adapter(finished: Config) -> None:
    board = board_of(Path(finished.out))
    assert [row.adapter_rank for row in board.rows] == [None, 2] * 3
    assert all(row.retained is not None for row in board.rows if row.soft_prompt)
    assert any("LoRA, rank 2" in note for note in board.notes)
    folders = [path.parent for path in Path(finished.out).glob(f"prompt/*/{prompt.ADAPTER}")]
    assert len(folders) == 3
    for folder in folders:
        assert json.loads((folder / prompt.ADAPTER / "adapter_config.json").read_text())["r"] == 2


def test_all_files_of_an_adapter_are_logged(finished: Config) -> None:
    logged: list[Any] = []
    workspace = Workspace(finished)
    [_, _, setting] = prompt.prompted(workspace)
    run = SimpleNamespace(log_artifact=logged.append)
    tracking.log_artifact(run, "soft-prompt", prompt.ensure(workspace, setting))
    names = set(logged[0].manifest.entries)
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors", "adapter_model.safetensors"} <= names
    assert not {"result.json", "config.yaml"} & names


def test_an_adapter_is_trained_and_used_and_leaves_the_model_as_it_was(finished: Config) -> None:
    workspace = Workspace(finished)
    before = {name: value.clone() for name, value in workspace.llm.state_dict().items()}
    artifact = prompt.ensure(workspace, DEL)
    ids = torch.arange(1, 9)[None]
    plain = workspace.llm.model(input_ids=ids).logits
    with prompt.adapted(workspace, artifact) as soft_prompt, torch.no_grad():
        assert soft_prompt is not None
        assert not torch.allclose(workspace.llm.model(input_ids=ids).logits, plain)
    after = workspace.llm.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    with prompt.adapted(workspace, None) as soft_prompt:
        assert soft_prompt is None


def test_the_same_prompt_without_an_adapter_is_another_artefact(finished: Config) -> None:
    workspace, alone = Workspace(finished), Workspace(replace(finished, adapter=AdapterConfig()))
    first, second = prompt.ensure(workspace, DEL), prompt.ensure(alone, DEL)
    assert first.key != second.key
    assert "adapter" not in second.result.determined_by
    rows = [evaluate.mean_nll(evaluate.ensure(ws, DEL, True)) for ws in (workspace, alone)]
    assert rows[0] is not None
    assert rows[1] is not None
    assert not (rows[0] == rows[1]).all()
    plain = [evaluate.ensure(ws, DEL, False).key for ws in (workspace, alone)]
    assert plain[0] == plain[1]  # a row without a soft prompt has no adapter either


def test_a_contextual_attacker_may_use_the_adapter(finished: Config) -> None:
    suite = replace(finished.attack, suite=["language-model"], prompts=3, beam=2, tuning_prompts=2, adapted_prior=True)
    workspace = Workspace(replace(finished, attack=suite))
    (artifact,) = attack.ensure(workspace, DEL)
    clean = prompt.ensure(workspace, Setting("clean", workspace.title("clean")))
    assert read_result(artifact.folder).determined_by["attack"]["soft_prompt"] == clean.key
    assert not any("lora" in name for name, _ in workspace.llm.named_parameters())


@pytest.mark.parametrize("stage", ["export", "publish"])
def test_stages_that_know_soft_prompts_only_say_so(finished: Config, stage: str) -> None:
    config = replace(finished, stage=replace(finished.stage, name=stage))
    with pytest.raises(
        ConfigError, match=rf"`adapter.rank` must be 0 for stage={stage}, which knows soft prompts alone .*, got 2"
    ):
        check(Workspace(config))
