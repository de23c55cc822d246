"""How a page is put together: a template with its style sheet and script inline.

A page loads nothing, and its content security policy has the browser refuse everything else. Texts of models and data
sets are hostile until proven otherwise, so everything is escaped except the figures, the style sheet and the script,
which are ours.
"""

import base64
import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from del_lightning.report.schema import Leaderboard, NluLeaderboard

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Place:
    """Where the page of one run lies.

    Attributes:
        twins: Files beside it that hold the same numbers.
        home: Page of all runs that it belongs to; empty if it stands alone.
    """

    twins: tuple[str, ...] = ("report.md", "leaderboard.json")
    home: str = ""


ALONE = Place()


def render(
    template: str,
    context: Mapping[str, Any],
    *,
    styles: tuple[str, ...] = ("page.css",),
    scripts: tuple[str, ...] = ("page.js",),
) -> str:
    """Fill a template that needs no other file and no network.

    Args:
        template: Its path under this folder.
        context: What it shows; a name that it lacks is an error.
        styles: Style sheets under this folder, one after the other.
        scripts: Scripts under this folder, run as one.
    """
    script = _joined(scripts)
    environment = Environment(loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined)
    page = environment.get_template(template).render(
        context,
        css=Markup(_joined(styles)),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return encodable(page)


def encodable(text: str) -> str:
    """The text without half a surrogate pair, which a tokenizer may decode and no file can hold."""
    return text.encode(errors="replace").decode()


def _joined(names: tuple[str, ...]) -> str:
    return "".join((_FOLDER / name).read_text(encoding="utf-8") for name in names)


def command(board: Leaderboard | NluLeaderboard) -> str:
    """Command line that repeats the run, as it was typed; folders of the machine it ran on are left to the reader.

    The type of the model's numbers is part of it: what is fastest here may not be so elsewhere.
    """
    arguments = [*board.overrides] or ["stage=pipeline"]
    dtype = (board.config.get("model") or {}).get("dtype")
    if dtype is not None and not any(argument.startswith("model.dtype=") for argument in arguments):
        arguments.append(f"model.dtype={dtype}")
    return " ".join(["python -m del_lightning", *(shlex.quote(argument) for argument in arguments)])
