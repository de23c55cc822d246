"""Jobs of a sweep through launchers: submitit's local one, the sister of the one for SLURM, and Ray's."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def sweep(launcher: str, folder: Path) -> None:
    """Two accounts, a job each; both must have left their curve."""
    settings = ["stage=account", "mechanism.mu=10,20", "codec.dim=18", "mechanism.bits=4"]
    command = [sys.executable, "-m", "del_lightning", "-m", f"hydra/launcher={launcher}", *settings]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)
    curves = sorted(path.name for path in (folder / "runs" / "account").iterdir())
    assert curves == ["tradeoff-d18-n4-mu10.svg", "tradeoff-d18-n4-mu20.svg"]


def test_submitit_runs_every_combination(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs pip install 'del-lightning[slurm]'")
    sweep("submitit_local", tmp_path)
    logs = "".join(path.read_text() for path in tmp_path.glob("runs/multirun/.submitit/*/*_log.out"))
    assert logs.count("completed successfully") == 2


def test_ray_runs_every_combination(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="needs pip install 'del-lightning[ray]'")
    sweep("ray", tmp_path)
