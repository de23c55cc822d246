"""Jobs of a sweep through a launcher: submitit's local one, the sister of the one for SLURM."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_submitit_runs_every_combination(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs pip install 'del-lightning[slurm]'")
    settings = ["stage=account", "mechanism.mu=10,20", "codec.dim=18", "mechanism.bits=4"]
    command = [sys.executable, "-m", "del_lightning", "-m", "hydra/launcher=submitit_local", *settings]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=300)
    curves = sorted(path.name for path in (tmp_path / "runs" / "account").iterdir())
    assert curves == ["tradeoff-d18-n4-mu10.svg", "tradeoff-d18-n4-mu20.svg"]
    logs = "".join(path.read_text() for path in tmp_path.glob("runs/multirun/.submitit/*/*_log.out"))
    assert logs.count("completed successfully") == 2
