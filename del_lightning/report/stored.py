"""Leaderboards as files: small enough to be kept under version control, and one record a line so that changes show."""

import json
import math
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from del_lightning.artifacts import write_text

DIGITS = 7
"""Significant digits of a stored figure. No interval in this project is narrower than a thousandth of its value."""

EXACT = ("config",)
"""What is typed in again to repeat a run is kept to the last digit."""


def write_board(path: Path, board: BaseModel) -> None:
    """Write a leaderboard as JSON, atomically.

    Args:
        path: The file; an earlier one is replaced.
        board: A record of :mod:`~del_lightning.report.schema`; figures are rounded to :data:`DIGITS` significant
            digits, its configuration is not.
    """
    content = json.loads(board.model_dump_json())  # there, infinities are strings already
    lines = [f"{_compact(name)}: {_block(_figures(name, value))}" for name, value in content.items()]
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def _figures(name: str, value: Any) -> Any:
    return value if name in EXACT else rounded(value)


def rounded(value: Any) -> Any:
    """JSON data with every float at :data:`DIGITS` significant digits; order among figures is kept."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else value
    if isinstance(value, list):
        return [rounded(item) for item in value]
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    return value


def _block(value: Any) -> str:
    """A list of records takes a line each; anything else is one line."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(_compact(item) for item in value) + "\n]"
    return _compact(value)


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
