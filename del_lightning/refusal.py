"""What a user can mend, said in one line on standard error."""

import os
import re
import sys
from dataclasses import fields, is_dataclass
from typing import Any, NoReturn, get_type_hints

from del_lightning import ranks
from del_lightning.config import Config, config_folder

USER_ERROR = 2
"""Exit code when the user has something to mend."""

_TRACEBACKS = "DEL_LIGHTNING_TRACEBACKS"


def settle_tracebacks() -> None:
    """Keep whether the user asked for tracebacks, ``HYDRA_FULL_ERROR=1``, for this process and those it starts.

    The program sets that variable itself: Hydra would otherwise print its own abridged traceback.
    """
    os.environ.setdefault(_TRACEBACKS, os.environ.get("HYDRA_FULL_ERROR", "0"))
    os.environ["HYDRA_FULL_ERROR"] = "1"


def wants_tracebacks() -> bool:
    """Whether a traceback is to be shown where one line would do."""
    return os.environ.get(_TRACEBACKS, os.environ.get("HYDRA_FULL_ERROR")) == "1"  # the latter from Python


def refuse(message: str) -> NoReturn:
    """Print the line and exit.

    ``SystemExit`` passes through Hydra unchanged, where any other exception is first announced by Hydra itself.
    """
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


def _typed(key: str, default: str) -> str:
    """What the command line sets a setting to, the last time that it does."""
    return next((word.partition("=")[2] for word in reversed(sys.argv) if word.startswith(f"{key}=")), default)


def _unknown_key(key: str, schema: str) -> str:
    known: dict[str, tuple[str, Any]] = {
        kind.__name__: (f"{group}.", kind)
        for group, kind in get_type_hints(Config).items()
        if isinstance(kind, type) and is_dataclass(kind)
    }
    prefix, kind = known.get(schema, ("", Config))
    names = ", ".join(field.name for field in fields(kind))
    return f"`{prefix}{key}` is not a setting; valid ones under `{prefix.rstrip('.') or 'the top level'}`: {names}"
