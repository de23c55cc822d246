"""Which process this one is, without importing what its launcher's framework needs."""

import os
from contextlib import nullcontext

import pytest
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.utilities.rank_zero import _get_rank

from del_lightning import ranks
from del_lightning.errors import ArtifactError, ConfigError

LAUNCHERS = (
    *(*ranks.RANK_VARIABLES, "NODE_RANK", "GROUP_RANK"),
    *("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"),
    *("SLURM_NTASKS", "SLURM_JOB_NAME", "SLURM_JOB_ID", "SLURM_NTASKS_PER_NODE", "SLURM_NNODES"),
    *("SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "SLURM_RESTART_COUNT"),
)
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4"}
BATCH = {"SLURM_NTASKS": "8", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0", "SLURM_NNODES": "2"}
"""What a batch script of SLURM finds; in a step, which srun makes, there is more."""
STEP = BATCH | {"SLURM_STEP_ID": "0", "SLURM_NTASKS_PER_NODE": "4"}
SHELL = BATCH | {"SLURM_JOB_NAME": "bash"}


@pytest.mark.parametrize(
    "environment",
    [{}, {"RANK": "3"}, {"LOCAL_RANK": "2", "SLURM_PROCID": "7"}, {"SLURM_PROCID": "7"}, {"JSM_NAMESPACE_RANK": "1"}],
)
def test_rank_is_the_one_that_lightning_finds(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ranks.RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert ranks.rank() == (_get_rank() or 0)
    assert ranks.is_first() == (not environment)


@pytest.mark.parametrize("parent", [1, 4321])
def test_waiting_ends_when_the_process_that_started_this_one_is_gone(
    parent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ranks, "POLL_SECONDS", 0)
    monkeypatch.setattr(ranks, "_STARTER", parent)
    monkeypatch.setattr(ranks.os, "getppid", lambda: parent)
    ranks.wait()  # also where rank 0 is process 1 of a container
    monkeypatch.setattr(ranks.os, "getppid", lambda: 99)
    with pytest.raises(ArtifactError, match="rank 0 has ended"):
        ranks.wait()


@pytest.mark.parametrize(
    ("environment", "devices", "num_nodes", "refused"),
    [
        ({}, 2, 1, ""),  # Lightning starts the others
        ({}, 1, 2, "`trainer.num_nodes` must be 1 unless srun or torchrun starts the run, got 2"),
        ({"NODE_RANK": "0"}, 1, 2, ""),
        (TORCHRUN, 2, 2, ""),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "2"}, 2, 2, ""),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "2"}, 4, 1, "`trainer.devices` must be the .* machine by torchrun, 2, got 4"),
        (TORCHRUN | {"WORLD_SIZE": "2"}, 4, 1, r"torchrun started, 2, got 4 × 1"),
        (STEP, 4, 2, ""),
        (STEP, 1, 1, r"SLURM started, 8, got 1 × 1"),
        (STEP, 8, 1, r"`trainer.devices` must be the number of processes on each machine by SLURM, 4, got 8"),
        (STEP | {"SLURM_NNODES": "1"}, 4, 2, r"`trainer.num_nodes` must be the number of machines by SLURM, 1, got 2"),
        (BATCH | {"SLURM_STEP_ID": "0"}, 4, 2, r"srun and sbatch must be given --ntasks-per-node=4, got --ntasks=8"),
        (BATCH, 4, 2, r"job of 8 tasks must start them with srun, got 1 process\(es\) without it: put srun in front"),
        (BATCH, 1, 1, r"job of 8 tasks must start them with srun"),
        (STEP | {"SLURM_STEP_NUM_TASKS": "1"}, 4, 2, r"job of 8 tasks must start them with srun"),  # salloc's shell
        (STEP | {"SLURM_STEP_NUM_TASKS": "8"}, 4, 2, ""),
        (BATCH | {"SLURM_NTASKS": "1"}, 1, 1, ""),
        (BATCH | {"SLURM_NTASKS": "1"}, 2, 1, r"SLURM started, 1, got 2 × 1"),
        (SHELL, 1, 1, ""),
    ],
)
def test_a_launch_is_as_large_as_the_settings_say(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], devices: int, num_nodes: int, refused: str
) -> None:
    set_launcher(monkeypatch, environment)
    if not refused:
        ranks.check_launch(devices, num_nodes)
        return
    with pytest.raises(ConfigError, match=refused):
        ranks.check_launch(devices, num_nodes)


@pytest.mark.parametrize(("environment", "devices", "num_nodes"), [(STEP, 4, 2), (STEP, 8, 1), (BATCH, 4, 2)])
def test_what_slurm_says_is_refused_where_lightning_would(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], devices: int, num_nodes: int
) -> None:
    set_launcher(monkeypatch, environment)
    assert SLURMEnvironment.detect()
    try:
        SLURMEnvironment().validate_settings(devices, num_nodes)
        refused = False
    except (RuntimeError, ValueError):
        refused = True
    assert refused == ((environment, devices) != (STEP, 4))
    with pytest.raises(ConfigError) if refused else nullcontext():
        ranks.check_launch(devices, num_nodes)


def test_a_shell_of_slurm_starts_its_own_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """There Lightning starts the other processes: their launch has no name by SLURM, and rank 0 can be gone."""
    set_launcher(monkeypatch, SHELL | {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"})
    assert ranks.launch_name() == str(os.getpid())
    monkeypatch.setattr(ranks, "POLL_SECONDS", 0)
    monkeypatch.setattr(ranks, "_STARTER", -1)
    with pytest.raises(ArtifactError, match="rank 0 has ended"):
        ranks.wait()
    set_launcher(monkeypatch, STEP | {"SLURM_JOB_ID": "7"})
    assert ranks.launch_name() == "7-0-"
    ranks.wait()


def set_launcher(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
