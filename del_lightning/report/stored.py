"""Leaderboards as files: small enough to be kept under version control, and one record a line so that changes show.

What was measured is rounded. Settings (the configuration, a row's privacy parameter) and guarantees are not: who
repeats a run or looks up its row needs them as they were.
"""

import json
import math
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from del_lightning.artifacts import write_text
from del_lightning.report.schema import Estimate

DIGITS = 7
"""Significant digits of a measured figure. No interval in this project is narrower than a thousandth of its value."""

MEASURED = ("history", "nll_by_prompt")
"""Fields of measured figures that are no estimates: training curves, and the NLL of each prompt."""


def write_board(path: Path, board: BaseModel) -> None:
    """Write a leaderboard as JSON, atomically.

    Args:
        path: The file; an earlier one is replaced.
        board: A record of :mod:`~del_lightning.report.schema`; measured figures are rounded to :data:`DIGITS`
            significant digits.
    """
    content = rounded(json.loads(board.model_dump_json()))  # there, infinities are strings already
    lines = [f"{_compact(name)}: {_block(value)}" for name, value in content.items()]
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def rounded(value: Any, *, measured: bool = False) -> Any:
    """JSON data with the floats of estimates and training curves rounded; order among figures is kept.

    Args:
        value: The data.
        measured: Whether every float in it is a measured figure.
    """
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if measured and math.isfinite(value) else value
    if isinstance(value, list):
        return [rounded(item, measured=measured) for item in value]
    if isinstance(value, dict):
        measured = measured or value.keys() == Estimate.model_fields.keys()
        return {name: rounded(item, measured=measured or name in MEASURED) for name, item in value.items()}
    return value


def _block(value: Any) -> str:
    """A list of records takes a line each; anything else is one line."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(_compact(item) for item in value) + "\n]"
    return _compact(value)


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
