"""All jobs of a multirun are looked at before the first one starts: a wrong value in the last would cost hours."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

from hydra._internal.core_plugins.basic_launcher import BasicLauncherConf
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from del_lightning import ranks
from del_lightning.config import Config, config_of
from del_lightning.config.checks import writable_folder
from del_lightning.errors import ConfigError, DelError
from del_lightning.refusal import explain, refuse


class CheckJobs(Callback):
    """Refuses a multirun as long as one of its jobs is impossible.

    A sweeper that draws its values as it goes is left alone, and of jobs for other machines only the settings are
    looked at.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Ends the process with one line that names the job.

        Other ranks, which Lightning starts in the midst of a job, come here as well; the first one has looked for them.
        """
        if not ranks.is_first():
            return
        try:
            _check(config)
        except (DelError, HydraException, OmegaConfBaseException) as error:
            refuse(explain(error))  # Hydra makes a warning of what a callback raises, but for SystemExit


def _check(config: DictConfig) -> None:
    of_a_job = OmegaConf.is_interpolation(config, "out")  # ${hydra:job.num} is known by its jobs alone
    if not of_a_job and Path(config.out) in Path(config.hydra.sweep.dir).parents:
        writable_folder("out", config.out)  # Hydra makes the folder of a multirun in it before any job could look
    jobs, here = jobs_of(config), config.hydra.launcher._target_ == BasicLauncherConf._target_
    checked: list[tuple[str, list[str], Config]] = []
    for number, overrides in enumerate(jobs):
        name = _name(overrides, jobs)
        with _named(name), _composed(config, overrides, number) as settings:
            checked.append((name, overrides, config_of(settings, here=here)))
    if not here:
        return
    from del_lightning.stages.checks import check  # Heavy imports wait until the settings are known good.
    from del_lightning.stages.workspace import Workspace

    for name, overrides, one in checked:
        with _named(name):
            check(Workspace(one, overrides))


def jobs_of(config: DictConfig) -> list[list[str]]:
    """Overrides of every job, as the sweeper will find them; none of a sweeper that draws values as it goes.

    Args:
        config: Of the multirun, Hydra's own settings among them.
    """
    if config.hydra.sweeper._target_ != BasicSweeperConf._target_:
        return []
    given = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    typed = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)  # ${...} is that of a job
    overrides = parser.parse_overrides([*given, *cast(list[str], typed)])
    return [job for batch in BasicSweeper.split_arguments(overrides, None) for job in batch]


def _name(overrides: Sequence[str], jobs: Sequence[Sequence[str]]) -> str:
    """What only some of the jobs set; everything where there is one job."""
    own = [override for override in overrides if any(override not in other for other in jobs)]
    return " ".join(own or overrides)


@contextmanager
def _named(job: str) -> Iterator[None]:
    try:
        yield
    except (DelError, HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"job {job}: {explain(error)}") from error


@contextmanager
def _composed(config: DictConfig, overrides: Sequence[str], number: int) -> Iterator[DictConfig]:
    """One job's settings as its launcher will compose them, while Hydra's own say that this job runs."""
    job = GlobalHydra.instance().config_loader().load_sweep_config(config, list(overrides))
    with open_dict(job):
        job.hydra.job.id, job.hydra.job.num = str(number), number
    before = HydraConfig.instance().cfg
    try:
        HydraConfig.instance().set_config(job)  # which a title or a folder may read: ${hydra:job.num}
        folder = Path(job.hydra.sweep.dir, job.hydra.sweep.subdir).absolute()
        with read_write(job.hydra.runtime):
            job.hydra.runtime.output_dir = str(folder)
        HydraConfig.instance().set_config(job)  # a copy
        settings = deepcopy(job)
        with read_write(settings), open_dict(settings):
            del settings["hydra"]
        yield settings
    finally:
        HydraConfig.instance().cfg = before
