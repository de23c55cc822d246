"""Checks that need more than a type.

Each raises a ConfigError that names the key, what was expected and what was given.
"""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from del_lightning.errors import ConfigError


def require(condition: bool, key: str, expectation: str, value: object) -> None:
    """Refuse a value, by a condition that it fails."""
    if not condition:
        raise ConfigError(f"`{key}` must be {expectation}, got {value!r}")


def positive(key: str, value: float | None) -> None:
    """A positive, finite number, or None."""
    if value is not None:
        require(math.isfinite(value) and value > 0, key, "a positive number", value)


def at_least(key: str, value: int | None, low: int) -> None:
    """No smaller than ``low``, or None."""
    if value is not None:
        require(value >= low, key, f"at least {low}", value)


def web_address(key: str, value: str) -> None:
    """An http or https address with a host."""
    try:
        parts = urlsplit(value)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port or a host that is none
        good = False
    good = good and value.isprintable() and " " not in value
    require(good, key, "an http or https address with a host, for instance http://127.0.0.1:8001", value)


def one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    """One of the names that there are."""
    require(value in choices, key, "one of " + ", ".join(choices), value)


def distinct(key: str, value: Sequence[object]) -> None:
    """No entry twice."""
    require(len(set(value)) == len(value), key, "a list without repeats", value)


def writable_folder(key: str, value: str) -> None:
    """A folder that can be written or made; nothing is left of finding out."""
    try:
        near = next(path for path in (Path(value).absolute(), *Path(value).absolute().parents) if path.exists())
        # Permissions alone do not tell: a read-only mount and /proc have theirs too. The file never has a name.
        with tempfile.TemporaryFile(dir=near):
            return
    except (OSError, ValueError) as error:
        reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
    raise ConfigError(f"`{key}` must be a folder that can be written, got {value!r}{reason}")


def share(key: str, value: float) -> None:
    """Strictly between 0 and 1."""
    require(0 < value < 1, key, "strictly between 0 and 1", value)


def ratio_range(key: str, value: list[float]) -> None:
    """Two shares in increasing order."""
    ok = len(value) == 2 and 0 < value[0] <= value[1] < 1
    require(ok, key, "two increasing numbers strictly between 0 and 1", value)


def low_rank(section: str, rank: int, alpha: int, learning_rate: float, *, least: int) -> None:
    """Settings of a low-rank adapter whose rank is no smaller than ``least``."""
    at_least(f"{section}.rank", rank, least)
    at_least(f"{section}.alpha", alpha, 1)
    positive(f"{section}.learning_rate", learning_rate)
