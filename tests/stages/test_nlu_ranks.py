"""Classifiers, denoisers and adapters that two processes train together are those of one with twice the batch."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.stages.factory import need, write_pairs

ROOT = Path(__file__).parents[2]
WAYS = ("prompt", "lora", "snd", "snd-prompt", "snd-user")
TRAINED = {
    "prompt": {"head", "adapter_model"},
    "lora": {"head", "adapter_model"},
    "snd": {"head", "denoiser"},
    "snd-prompt": {"head", "denoiser", "adapter_model"},
    "snd-user": {"head", "denoiser"},
}
"""Way to classify -> the tensors it leaves."""
pytestmark = pytest.mark.slow


def settings(model: Path, root: Path, out: Path, strategy: str | None) -> list[str]:
    """Two processes of half the batch, or one without a strategy, behind a projection: ranks draw no noise."""
    halved = 2 if strategy else 4
    return [
        "stage=nlu",
        f"out={out}",
        f"model.name={model}",
        "model.dtype=float32",
        f"data.root={root}",
        "targets=[]",
        *("codec.corpus=lee", "codec.dim=6", "codec.steps=2", "codec.sequence_tokens=24", "codec.validate_every=2"),
        *("prompt.virtual_tokens=3", "prompt.steps=4", "prompt.learning_rate=0.05", "prompt.validate_every=2"),
        f"prompt.batch_size={halved}",
        *("nlu.task=mrpc", "nlu.seeds=[3]", "nlu.train_examples=16", "nlu.selection_examples=50"),
        *("nlu.eval_examples=20", "nlu.fronts=[projection]", f"nlu.ways=[{','.join(WAYS)}]", "nlu.keep_denoisers=true"),
        *("nlu.denoiser.steps=4", f"nlu.denoiser.batch_size={halved}", "nlu.denoiser.validate_every=2"),
        *("nlu.lora.rank=2", "nlu.lora.alpha=4", "nlu.lora.learning_rate=0.01"),
        *("trainer.accelerator=cpu", "trainer.progress_bar=false", "logger=none", "attack.tokens=100"),
        f"trainer.devices={2 if strategy else 1}",
        f"trainer.strategy={strategy or 'ddp'}",
    ]


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str | None], Path]:
    """Output folder of the stage under a strategy."""
    need("lee_background.cor")
    root, known = write_pairs(tmp_path_factory.mktemp("root")), dict[str | None, Path]()

    def get(strategy: str | None) -> Path:
        if strategy not in known:
            folder = tmp_path_factory.mktemp(strategy or "one")
            command = [
                sys.executable,
                str(ROOT / "tests" / "stages" / "no_dropout.py"),
                *settings(model, root, folder / "out", strategy),
            ]
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
            known[strategy] = folder / "out"
        return known[strategy]

    return get


def trained(out: Path, way: str) -> dict[str, dict[str, Tensor]]:
    """File -> tensors of the one artefact of this way."""
    records = {path: json.loads(path.read_text()) for path in out.glob("nlu/*/result.json")}
    (folder,) = (path.parent for path, record in records.items() if record["details"]["variant"] == way)
    return {path.stem: load_file(path) for path in folder.rglob("*.safetensors")}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_train_what_one_does(finished: Callable[[str | None], Path], way: str, strategy: str) -> None:
    one, two = trained(finished(None), way), trained(finished(strategy), way)
    assert one.keys() == two.keys() == TRAINED[way]
    for name, alone in one.items():
        torch.testing.assert_close(two[name], alone, rtol=1e-3, atol=1e-4)
