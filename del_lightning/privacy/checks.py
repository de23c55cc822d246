"""Checks of arguments that the whole privacy core shares; nothing but the standard library."""

import math

from del_lightning.errors import ConfigError


def require(condition: bool, argument: str, expectation: str, value: object) -> None:
    """Raise :class:`ConfigError` in one line unless the condition holds."""
    if not condition:
        raise ConfigError(f"`{argument}` must be {expectation}, got {value!r}")


def require_count(argument: str, value: object, low: int = 1, high: int | None = None) -> None:
    """Demand an integer of at least ``low`` and, if given, at most ``high``."""
    expectation = f"an integer of at least {low}" if high is None else f"an integer between {low} and {high}"
    is_count = isinstance(value, int) and not isinstance(value, bool) and low <= value <= (high or value)
    require(is_count, argument, expectation, value)


def require_positive(argument: str, value: float) -> None:
    """Demand a positive finite number."""
    require(math.isfinite(value) and value > 0, argument, "a positive finite number", value)
