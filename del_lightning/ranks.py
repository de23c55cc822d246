"""Several processes that train together: who this one is, and how the others follow the first.

Every process runs the same stages. What is trained, all ranks train together inside Lightning's Trainer; everything
else rank 0 does alone while the others wait for its artefacts. The processes come from torchrun or SLURM, or are
started by Lightning when ``trainer.devices`` is above one: then the others appear at the first training, run this
program from its start and find all earlier artefacts finished.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from del_lightning.errors import ArtifactError, ConfigError

POLL_SECONDS = 0.2
_STARTER = os.getppid()
"""The process that started this one: rank 0, where Lightning did. It may be process 1 of a container."""
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
"""Where launchers tell a process its number, the first that is set; the same as in Lightning."""


_SLURM_LAUNCH = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")


class Followed(Exception):  # noqa: N818  # not an error
    """A rank other than 0 has done its part of a training; rank 0 writes what came out."""


def rank() -> int:
    """This process's number among those that train together, from the launcher's environment; 0 when alone."""
    # As Lightning finds it, whose function would import torch, which `--help` can do without.
    return next((int(os.environ[key]) for key in RANK_VARIABLES if key in os.environ), 0)


def is_first() -> bool:
    """Whether this process writes artefacts and speaks to the user."""
    return rank() == 0


def local_rank() -> int:
    """This process's number on its machine: the index of its device."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))


@dataclass(frozen=True)
class Launch:
    """What started this process and its peers.

    Attributes:
        by: torchrun or SLURM.
        processes: All of them.
        each: Of one machine; None where the launcher does not say.
        machines: None where the launcher does not say.
        started: How many it really started; SLURM gives its whole job's number to a lone process of a batch script too.
    """

    by: str
    processes: int
    each: int | None
    machines: int | None
    started: int


def launched() -> Launch | None:
    """The launcher of this process; None where Lightning starts the others or nobody did.

    As Lightning finds it: a shell inside a SLURM allocation starts one process, whatever the allocation may hold.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        processes = int(os.environ["WORLD_SIZE"])
        return Launch("torchrun", processes, _number("LOCAL_WORLD_SIZE"), _number("GROUP_WORLD_SIZE"), processes)
    if "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        processes = int(os.environ["SLURM_NTASKS"])
        in_step = "SLURM_STEP_ID" in os.environ  # which srun makes
        started = _number("SLURM_STEP_NUM_TASKS") or processes if in_step else 1
        return Launch("SLURM", processes, _number("SLURM_NTASKS_PER_NODE"), _number("SLURM_NNODES"), started)
    return None


def _number(variable: str) -> int | None:
    value = os.environ.get(variable)
    return None if value is None else int(value)


def check_launch(devices: int, num_nodes: int) -> None:
    """Processes that do not know of each other would train the same part in the same folder behind the same noise.

    Args:
        devices: ``trainer.devices``, 1 or more.
        num_nodes: ``trainer.num_nodes``, 1 or more.

    Raises:
        ConfigError: A launcher started another number of processes, all together or on each machine, or several
            machines are asked for and nothing starts processes on them.
    """
    found = launched()
    if found is None:
        named = [key for key in (*RANK_VARIABLES, "NODE_RANK", "GROUP_RANK") if key in os.environ]
        if num_nodes > 1 and not named:
            raise ConfigError(f"`trainer.num_nodes` must be 1 unless srun or torchrun starts the run, got {num_nodes}")
        return
    if found.started != found.processes:  # Lightning would wait for the others for ever
        raise ConfigError(
            f"a SLURM job of {found.processes} tasks must start them with srun, got {found.started} process(es) "
            "without it: put srun in front of the command, or submit one task (--ntasks=1)"
        )
    if found.processes != devices * num_nodes:
        raise ConfigError(
            "`trainer.devices` × `trainer.num_nodes` must be the number of processes that "
            f"{found.by} started, {found.processes}, got {devices} × {num_nodes}"
        )
    if found.processes > 1:
        _check_machines(found, devices, num_nodes)


def _check_machines(found: Launch, devices: int, num_nodes: int) -> None:
    if found.by == "SLURM" and found.each is None:  # Lightning takes no other way to say it
        raise ConfigError(f"srun and sbatch must be given --ntasks-per-node={devices}, got --ntasks={found.processes}")
    for key, expected, given in (("devices", found.each, devices), ("num_nodes", found.machines, num_nodes)):
        if expected not in (None, given):
            what = "processes on each machine" if key == "devices" else "machines"
            raise ConfigError(f"`trainer.{key}` must be the number of {what} by {found.by}, {expected}, got {given}")


def launch_name() -> str:
    """A name that the processes of one launch share, and no earlier launch had.

    torchrun and SLURM number their launches, a job that SLURM puts back into its queue by a count of its own; what
    Lightning starts are children of rank 0.
    """
    launch = launched()
    if launch is not None and launch.by == "torchrun":
        names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
        return "-".join(os.environ.get(name, "") for name in names)
    if launch is not None:
        return "-".join(os.environ.get(name, "") for name in _SLURM_LAUNCH)
    return str(os.getpid() if is_first() else os.getppid())


def silence_followers() -> None:
    """Send what a rank other than 0 would print to nowhere; errors still show."""
    if not is_first():
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def call_path(folder: Path) -> Path:
    """File in an unfinished artefact's folder by which rank 0 calls the others to train it."""
    return folder / "ranks.txt"


def is_called(folder: Path) -> bool:
    """Whether rank 0 of this launch has begun to build in ``folder``."""
    try:
        return call_path(folder).read_text(encoding="utf-8") == launch_name()
    except FileNotFoundError:
        return False


def wait() -> None:
    """Wait a moment for rank 0.

    Raises:
        ArtifactError: Lightning started this process and rank 0 is gone; torchrun ends all ranks itself, and SLURM
            under ``--kill-on-bad-exit``.
    """
    time.sleep(POLL_SECONDS)
    if os.getppid() != _STARTER and launched() is None:
        raise ArtifactError(f"rank {rank()} waits for what rank 0 makes, and rank 0 has ended")
