"""The one entry point: ``python -m del_lightning stage=<name> experiment=<name> key=value ...``."""

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, cast, get_type_hints

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from del_lightning import ranks
from del_lightning.config import Config, register_schemas
from del_lightning.config.checks import writable_folder
from del_lightning.errors import DelError

USER_ERROR = 2
"""Exit code when the user has something to mend."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

OPTIONS = (
    *("--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun"),
    *("--shell-completion", "--config-path", "--config-name", "--config-dir", "--experimental-rerun", "--info"),
)
"""Hydra's own."""


def config_folder() -> Path:
    """Folder of the YAML files: ``conf/`` of a checkout, or the copy inside an installed package."""
    packaged = Path(__file__).parent / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[1] / "conf"


def _run(settings: DictConfig) -> None:
    config = cast(Config, OmegaConf.to_object(settings))
    if config.stage.name != "serve":  # which only reads what export left
        writable_folder("out", config.out)
    if HydraConfig.get().mode == RunMode.MULTIRUN and not OmegaConf.is_interpolation(settings, "title"):
        config.title = title_of_job(config.title, HydraConfig.get().overrides.task)
    from del_lightning.stages.checks import check  # Heavy imports wait until the settings are known good.
    from del_lightning.stages.workspace import Workspace

    workspace = Workspace(config, HydraConfig.get().overrides.task)
    check(workspace)
    with workspace:
        hydra.utils.get_method(config.stage._target_)(workspace)


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
    # Hydra would otherwise print its own abridged traceback; this also is the user's switch to see ours in full.
    full_error = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    ranks.silence_followers()
    if dashed := next((word for word in sys.argv[1:] if _is_dashed_setting(word)), None):
        _exit(f"settings are written key=value, without --, got {dashed!r}")
    register_schemas()
    application = hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")(_run_or_exit)
    try:
        application()
    except (HydraException, OmegaConfBaseException) as error:
        if full_error:
            raise
        _exit(explain(error))
    except OSError:
        # Hydra makes the folder of a multirun under `out` before any job could look at it.
        try:
            writable_folder("out", _typed("out", Config.out))
        except DelError as error:
            _exit(explain(error))
        raise


def _typed(key: str, default: str) -> str:
    """What the command line sets a setting to, the last time that it does."""
    return next((word.partition("=")[2] for word in reversed(sys.argv) if word.startswith(f"{key}=")), default)


def _is_dashed_setting(word: str) -> bool:
    """Whether a word looks like an option and is none; Hydra would take the beginning of one for the whole."""
    return word.startswith("--") and word.partition("=")[0] not in OPTIONS


def _run_or_exit(settings: DictConfig) -> None:
    """Run, turning what the user can mend into one line.

    ``SystemExit`` passes through Hydra unchanged, where any other exception is first announced by Hydra itself.
    """
    try:
        _run(settings)
    except (DelError, OmegaConfBaseException) as error:
        _exit(explain(error))
    except KeyboardInterrupt:
        if ranks.is_first():
            print("interrupted: the same command goes on from what is done", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _exit(message: str) -> None:
    speaker = "" if ranks.is_first() else f" (rank {ranks.rank()})"
    print(f"error{speaker}: {message}", file=sys.stderr)
    sys.exit(USER_ERROR)


def explain(error: BaseException) -> str:
    """Say in one line what is wrong with the configuration, with the valid names where a name is unknown."""
    text = " ".join(str(error).split())
    cause = " ".join(str(error.__cause__).split()) if error.__cause__ else ""
    if unknown := re.search(r"Key '(\S+)' (?:is )?not in '(\w+)'", f"{text} {cause}"):
        return _unknown_key(unknown[1], unknown[2])
    if listed := re.search(r"Invalid value assigned: \w+ is not a ListConfig.* full_key: (\S+)", f"{text} {cause}"):
        given = re.search(r"override \S+?=(.*?)(?: Invalid value|$)", text)
        value = _typed(listed[1], "a single value") if given is None else given[1].strip()
        return f"`{listed[1]}` must be a list such as [{value}], got {value}"
    if launcher := re.search(r"Could not find 'hydra/launcher/(ray|submitit_\w+)'", text):
        extra = "ray" if launcher[1] == "ray" else "slurm"
        return f"`hydra/launcher={launcher[1]}` needs an extra that is missing: pip install 'del-lightning[{extra}]'"
    if group := re.search(r"Could not find '(\w+)/(\S+?)'", text):
        folder = config_folder() / group[1]
        options = ", ".join(sorted(str(file.relative_to(folder).with_suffix("")) for file in folder.rglob("*.yaml")))
        return f"`{group[1]}={group[2]}` is unknown; choose one of: {options}"
    message = cause if cause and text.startswith("Error merging override") else text
    return re.sub(r" full_key: (\S+).*", r" (at `\1`)", message)


def _unknown_key(key: str, schema: str) -> str:
    known: dict[str, tuple[str, Any]] = {
        kind.__name__: (f"{group}.", kind)
        for group, kind in get_type_hints(Config).items()
        if isinstance(kind, type) and is_dataclass(kind)
    }
    prefix, kind = known.get(schema, ("", Config))
    names = ", ".join(field.name for field in fields(kind))
    return f"`{prefix}{key}` is not a setting; valid ones under `{prefix.rstrip('.') or 'the top level'}`: {names}"


if __name__ == "__main__":
    main()
