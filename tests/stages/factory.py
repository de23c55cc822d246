"""The configuration of a whole pipeline that takes seconds, and what its runs leave."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from del_lightning.assets import packaged_path
from del_lightning.config import (
    AttackConfig,
    CodecConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    LoggerConfig,
    MechanismConfig,
    ModelConfig,
    PromptConfig,
    TrainerConfig,
)
from del_lightning.errors import AssetError
from del_lightning.report.schema import Leaderboard
from tests.modules.factory import labelled_rows

TITLE = "Small pipeline"


def need(*assets: str) -> None:
    for name in assets:
        try:
            packaged_path(name)
        except AssetError as error:
            pytest.skip(str(error))


def config_for(model: Path, encoder: Path, out: Path) -> Config:
    return Config(
        title=TITLE,
        out=str(out),
        targets=[0.1, 0.4],
        model=ModelConfig(name=str(model)),
        data=DataConfig(
            min_words=30,
            prompt_words=8,
            max_prompts=6,
            reference_tokens=10,
            train_tokens=24,
            split_ratio=[0.4, 0.7],
            validation_blocks=4,
            eval_batch_size=4,
        ),
        codec=CodecConfig(
            corpus="lee", dim=4, steps=4, batch_size=2, sequence_tokens=24, warmup_steps=1, validate_every=2
        ),
        mechanism=MechanismConfig(bits=3),
        prompt=PromptConfig(virtual_tokens=3, steps=4, batch_size=2, learning_rate=0.05, validate_every=2),
        attack=AttackConfig(tokens=200, tolerance=0.1, resolution=0.3, outline=4, levels=[60.0, 5.0]),
        evaluate=EvaluateConfig(
            encoder=str(encoder), max_new_tokens=6, generation_batch_size=4, seeds=[0, 1], samples=2
        ),
        trainer=TrainerConfig(accelerator="cpu", progress_bar=False, checkpoint_every=1, log_every=1, attack_every=2),
        logger=LoggerConfig(kind="none"),
    )


def records(out: Path) -> dict[Path, int]:
    """Every finished artefact's record and when it was written."""
    paths = [path for path in out.glob("*/*/result.json") if path.parent.suffix != ".partial"]
    return {path.relative_to(out): path.stat().st_mtime_ns for path in paths}


def board_of(out: Path) -> Leaderboard:
    return Leaderboard.model_validate_json((out / "report" / "small-pipeline" / "leaderboard.json").read_text())


def timeless(board: Leaderboard) -> list[dict[str, object]]:
    """The rows but for the time that privatising took."""
    return [row.model_dump(exclude={"device": {"milliseconds"}}) for row in board.rows]


def command_line(config: Config) -> list[str]:
    """The same configuration from a shell."""

    def values(prefix: str, settings: object) -> list[str]:
        return [f"{prefix}.{key}={json.dumps(value)}" for key, value in vars(settings).items() if value is not None]

    groups = ("data", "codec", "mechanism", "prompt", "attack", "evaluate", "trainer", "logger")
    overrides = [override for group in groups for override in values(group, getattr(config, group))]
    overrides = [override for override in overrides if "text=" not in override and ".prefix=" not in override]
    overrides += [f"title={config.title}", f"out={config.out}", f"targets={config.targets}"]
    overrides += [f"model.name={config.model.name}", "model.dtype=float32"]
    return [sys.executable, "-m", "del_lightning", "stage=pipeline", *overrides]


def kill_when(
    process: subprocess.Popen[bytes], reached: Callable[[], bool], with_signal: signal.Signals = signal.SIGKILL
) -> None:
    """Send a signal as soon as a point is reached; to the whole group where the process leads one."""
    limit = time.monotonic() + 300
    while not reached():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < limit
        time.sleep(0.002)
    leads = os.getpgid(process.pid) == process.pid
    (os.killpg if leads else os.kill)(process.pid, with_signal)
    process.wait(timeout=60)


def write_pairs(root: Path) -> Path:
    """GLUE's MRPC made small: class 1 where both sentences of a pair name the same animal. Returns ``root``."""
    for split, seed, count in (("train", 0, 120), ("validation", 9, 30)):
        first, second = labelled_rows(seed, count), labelled_rows(seed + 1, count)
        labels = [int(a == b) for a, b in zip(first.labels, second.labels, strict=True)]
        digits = [" 7" if row % 2 else "" for row in range(count)]
        texts = [text + digit for text, digit in zip(first.texts[0], digits, strict=True)]
        path = root / "glue" / "mrpc" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"sentence1": texts, "sentence2": second.texts[0], "label": labels}), path)
    return root
