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
STATES = "states of the head"
"""Their mean and spread, which a head is saved with."""
UNSTEADY = ("snd-prompt",)
"""Where a head carries rounding furthest: states 1e-4 apart gave layers .0102 and probabilities .0098 apart (AVX2)."""
pytestmark = pytest.mark.slow


def settings(model: Path, root: Path, out: Path, strategy: str | None) -> list[str]:
    """Two processes of half the batch, or one without a strategy, behind a projection: ranks draw no noise.

    ``alone``: one process of half the batch. ``fsdp`` recomputes its layers too, as one does for a model that large.
    """
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
        "nlu.denoiser.learning_rate=0.01",
        *("nlu.lora.rank=2", "nlu.lora.alpha=4", "nlu.lora.learning_rate=0.01"),
        *("trainer.accelerator=cpu", "trainer.progress_bar=false", "logger=none", "attack.tokens=100"),
        f"trainer.devices={1 if strategy in (None, 'alone') else 2}",
        f"trainer.strategy={'fsdp' if strategy == 'fsdp' else 'ddp'}",
        f"trainer.activation_checkpointing={strategy == 'fsdp'}",
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
                str(ROOT / "tests" / "stages" / "comparable.py"),
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


def _folder(out: Path, way: str) -> Path:
    """Of the one artefact of this way."""
    records = {path: json.loads(path.read_text()) for path in out.glob("nlu/*/result.json")}
    (folder,) = (path.parent for path, record in records.items() if record["details"]["variant"] == way)
    return folder


def trained(out: Path, way: str) -> dict[str, dict[str, Tensor]]:
    """File -> tensors of the one artefact of this way."""
    found = {path.stem: load_file(path) for path in _folder(out, way).rglob("*.safetensors")}
    found[STATES] = {name: found["head"].pop(name) for name in ("mean", "scale")}
    return found


def scores(out: Path, way: str) -> Tensor:
    """Probabilities that the one artefact of this way gave to the reported examples."""
    return torch.tensor(json.loads((_folder(out, way) / "scores.json").read_text())["scores"])


def differing(
    one: dict[str, dict[str, Tensor]], two: dict[str, dict[str, Tensor]], tolerance: float, head: int = 5
) -> set[str]:
    """Files whose tensors differ by more than a part of their norm.

    Taken together: a key's bias has no gradient but rounding, out of which Adam makes whole steps. A head's layers,
    which each rank fits alone, make hundreds of steps on states that differ in their last digits: they may differ
    ``head`` times as much, what the head knows of those states (:data:`STATES`) may not.
    """

    def joined(tensors: dict[str, Tensor]) -> Tensor:
        return torch.cat([tensor.flatten() for _, tensor in sorted(tensors.items())])

    return {
        file
        for file, tensors in one.items()
        if (joined(two[file]) - joined(tensors)).norm()
        > tolerance * (head if file == "head" else 1) * joined(tensors).norm()
    }


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_train_what_one_does(finished: Callable[[str | None], Path], way: str, strategy: str) -> None:
    one, two = trained(finished(None), way), trained(finished(strategy), way)
    assert one.keys() == two.keys() == TRAINED[way] | {STATES}
    assert differing(one, two, 2e-3, head=10 if way in UNSTEADY else 5) == set()
    ours, theirs = (scores(finished(which), way) for which in (None, strategy))
    assert torch.allclose(ours, theirs, rtol=0, atol=0.015 if way in UNSTEADY else 5e-3)


@pytest.mark.parametrize("way", WAYS)
def test_one_of_the_two_alone_would_train_something_else(finished: Callable[[str | None], Path], way: str) -> None:
    """So the test above would notice gradients that are not averaged."""
    assert differing(trained(finished(None), way), trained(finished("alone"), way), 1e-2) >= TRAINED[way] - {"head"}
