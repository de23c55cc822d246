"""The one entry point: ``python -m del_lightning stage=<name> experiment=<name> key=value ...``."""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from del_lightning import ranks, sweeps
from del_lightning.config import Config, config_folder, config_of, register_schemas
from del_lightning.errors import DelError
from del_lightning.refusal import explain, refuse, settle_tracebacks, wants_tracebacks

if TYPE_CHECKING:
    from del_lightning.stages.workspace import Workspace

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

OPTIONS = (
    *("--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun"),
    *("--shell-completion", "--config-path", "--config-name", "--config-dir", "--experimental-rerun", "--info"),
)
"""Hydra's own."""


def _run(settings: DictConfig) -> None:
    config = config_of(settings)
    if HydraConfig.get().mode == RunMode.MULTIRUN and not OmegaConf.is_interpolation(settings, "title"):
        config.title = title_of_job(config.title, HydraConfig.get().overrides.task)
    from del_lightning.stages.checks import check  # Heavy imports wait until the settings are known good.
    from del_lightning.stages.workspace import Workspace
    from del_lightning.terminal import say

    workspace = Workspace(config, HydraConfig.get().overrides.task)
    check(workspace)
    if workspace.memory is not None:
        say(workspace.memory.summary())
        for line in _precision(config, workspace):
            say(line)
    with workspace:
        hydra.utils.get_method(config.stage._target_)(workspace)
    if HydraConfig.get().mode == RunMode.MULTIRUN and workspace.board is not None:
        # As they were typed: a title's ${hydra:job.num} is no number yet where the multirun looks for its jobs.
        typed = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
        sweeps.leave_outcome(HydraConfig.get().sweep.dir, cast(list[str], typed), workspace.board)


def _precision(config: Config, workspace: "Workspace") -> list[str]:
    """What a run that loads the model computes in, where that was left to the machine or is slow on it."""
    from del_lightning.precision import advice

    taken = workspace.config.model.dtype
    chosen = [f"model.dtype=auto: {taken}"] if config.model.dtype == "auto" else []
    return [*chosen, *filter(None, [advice(workspace.config, workspace.device)])]


def title_of_job(title: str, overrides: Sequence[str]) -> str:
    """A title that no other job of a multirun has: what was set is behind it, but for folders of this machine.

    A report lies under its title, and jobs share ``out``: under one title the last job's report would be the only one.
    """
    given = [override for override in overrides if not override.startswith(("title=", "out=", "data.root="))]
    return ", ".join([title, *given])


def main() -> None:
    """Compose the configuration from the command line and run its stage.

    Exits with code 2 and one line on standard error when there is something for the user to mend.
    """
    settle_tracebacks()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    ranks.silence_followers()
    if dashed := next((word for word in sys.argv[1:] if _is_dashed_setting(word)), None):
        refuse(f"settings are written key=value, without --, got {dashed!r}")
    register_schemas()
    application = hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")(_run_or_exit)
    try:
        application()
    except (HydraException, OmegaConfBaseException) as error:
        if wants_tracebacks():
            raise
        refuse(explain(error))
    except KeyboardInterrupt:
        if ranks.is_first():
            print("interrupted: the same command goes on from what is done", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _is_dashed_setting(word: str) -> bool:
    """Whether a word looks like an option and is none; Hydra would take the beginning of one for the whole."""
    return word.startswith("--") and word.partition("=")[0] not in OPTIONS


def _run_or_exit(settings: DictConfig) -> None:
    """Run, turning what the user can mend into one line."""
    try:
        _run(settings)
    except (DelError, OmegaConfBaseException) as error:
        refuse(explain(error))


if __name__ == "__main__":
    main()
