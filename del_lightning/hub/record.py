"""The folder of a published front-end: codec, soft prompt, mechanism, what they guarantee and what was measured.

    README.md                    model card
    del_lightning.json           base model, mechanism, guarantee, and a hash of every other file but the card
    codec.safetensors            projection and decoder
    adapter_config.json          soft prompt, in PEFT's format
    adapter_model.safetensors
    results.json                 the leaderboard's rows of this front-end and its controls, if it was evaluated

All of it is JSON, safetensors and text. A folder that comes from somewhere is hostile until proven otherwise: unknown
files and keys, other shapes and types, numbers that are none, and a stated guarantee below the exact one are refused.
What is said in words, the card above all, nobody can check: a loaded model states its own guarantee.
"""

import hashlib
import json
import math
import os
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open

from del_lightning import __version__, assets
from del_lightning.artifacts import write_json, write_text
from del_lightning.codec import LinearCodec
from del_lightning.config import ModelConfig
from del_lightning.errors import ArtifactError, ConfigError
from del_lightning.hub.card import model_card
from del_lightning.llm import FrozenLLM
from del_lightning.loading import model_license
from del_lightning.methods import DEL
from del_lightning.privacy import PrivacyStatement
from del_lightning.prompt import CONFIG_FILE, TENSOR, WEIGHTS_FILE, SoftPrompt, peft_config
from del_lightning.report.schema import SCHEMA_VERSION, Leaderboard, LeaderboardRow, PrivacyColumns, Record
from del_lightning.serve.bundle import file_hash

if TYPE_CHECKING:
    from del_lightning.split import SplitModel

RECORD, CARD, CODEC, RESULTS = "del_lightning.json", "README.md", "codec.safetensors", "results.json"
HASHED = (CODEC, CONFIG_FILE, WEIGHTS_FILE, RESULTS)
FILES = (CARD, RECORD, *HASHED)
"""Everything that a folder may hold, hidden files aside, which are never read."""

CONTROLS = ("clean", "mean")
"""Controls whose rows are published beside the front-end's."""

PROMPT_TOKENS = 64
"""Length of a prompt that a guarantee is stated for where no measurement says another."""

_MOST_TRIALS = 1 << 32
"""Bits of one prompt that a guarantee is recomputed for: beyond, a made-up length could take all memory."""

_SLACK = 1e-6
"""Relative difference that a recomputed epsilon may have from the stated one: another machine's arithmetic."""

_PLACE = re.compile(r"(?<![\w.:/~])(?:~|\.{1,2})?/[^\s,;'\"()\[\]{}]+")
"""A place on this machine inside a text: not behind a letter, as in and/or, nor behind a colon, as in an address."""

_VERSIONS = {"format": 1, "schema_version": SCHEMA_VERSION}
"""Versions of records that this package reads, by the key that tells them."""

_Kind = TypeVar("_Kind", bound=Record)
_Count = Annotated[int, Field(ge=1)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class LanguageModel(Record):
    """The frozen model that codec and soft prompt belong to."""

    name: str
    """What people call it."""
    source: str | None
    """Hub id or packaged asset to load it from; None for a model that only its publisher has."""
    revision: str | None
    dtype: Literal["float32", "bfloat16"]
    fingerprint: str
    hidden_size: _Count
    vocab_size: _Count


class SplitRecord(Record):
    """``del_lightning.json``."""

    format: Literal[1] = 1
    version: str
    """Of the package that wrote it."""
    model: LanguageModel
    bits: Annotated[int, Field(ge=1, le=8)]
    dim: _Count
    bound: _Positive
    mu: _Positive
    """The paper's parameter a token; no guarantee by itself."""
    l2_clip: _Positive | None
    virtual_tokens: _Count
    prefix: str
    """Public instruction in front of the private prompt that the soft prompt was trained with."""
    privacy: PrivacyColumns
    """For a token, and for a prompt of ``privacy.sequence_tokens`` tokens."""
    files: dict[str, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]
    """Name -> SHA-256 of the other files; the card may be edited."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """Of everything else as it stands in the file, so that a slip of the hand does not pass for what was measured; None
    in older records. Who means to change a record can change this too: it is no signature."""


def write_folder(
    folder: str | Path,
    split: "SplitModel",
    *,
    results: Leaderboard | None = None,
    repo_id: str | None = None,
    license: str | None = None,
) -> Path:
    """Write a front-end with its card; the record comes last, so that half a folder is never taken for a whole one.

    Args:
        folder: Created; may hold an earlier publication and nothing else.
        split: DEL with a soft prompt.
        results: A leaderboard that holds this very mechanism; only its rows and its controls' are kept.
        repo_id: What the card tells people to load.
        license: What the card names, as the hub spells it; None takes the language model's own where it is known.

    Raises:
        ArtifactError: The folder holds other files, the model is not DEL with a soft prompt, or the results are of
            another model, mechanism or length of the soft prompt.
    """
    folder, method, prompt = Path(folder), split.method, split.prompt
    if not isinstance(method, DEL) or method.name != DEL.name or prompt is None:
        raise ArtifactError(f"`split` must be DEL with a soft prompt to be published, got {_kind(split)}")
    _make_room(folder)
    board = None if results is None else _selected(results, split, method)
    model = _language_model(split.llm, results)
    _write_parts(folder, method, prompt, model, split.llm, board)
    statement = _statement(method, board)
    hashes = {name: found for name in HASHED if (found := file_hash(folder / name))}
    record = SplitRecord(
        version=__version__,
        model=model,
        bits=method.bits,
        dim=method.codec.dim,
        bound=float(method.codec.bound),
        mu=method.mu,
        l2_clip=method.l2_clip,
        virtual_tokens=prompt.virtual_tokens,
        prefix=split.prefix,
        privacy=statement.columns(),
        files=hashes,
    )
    own = model_license(split.llm.name, model.revision)
    card = model_card(record, statement, board, repo_id=repo_id, license=license, model_license=own)
    write_text(folder / CARD, card)
    write_json(folder / RECORD, record.model_copy(update={"sha256": _digest(record.model_dump(mode="json"))}))
    return folder


def _digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of a record's content besides its own hash, however the file is laid out.

    Of the content, not of what is read from it: a key that a later version adds does not change older files.
    """
    kept = {name: value for name, value in content.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _make_room(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ArtifactError(f"{folder} must be a folder, got a file") from None
    if unknown := sorted(_visible(folder) - set(FILES)):
        raise ArtifactError(f"{folder} must be empty or hold an earlier publication, got {unknown[0]}")


def _write_parts(
    folder: Path, method: DEL, prompt: SoftPrompt, model: LanguageModel, llm: FrozenLLM, board: Leaderboard | None
) -> None:
    for name in (RECORD, *HASHED):
        (folder / name).unlink(missing_ok=True)
    method.codec.save(folder / CODEC)
    prompt.save(folder, llm, base_model=model.source or model.name)
    if board is not None:
        write_json(folder / RESULTS, board)


def _kind(split: "SplitModel") -> str:
    name = "no front-end" if split.method is None else split.method.name
    return name + (" without a soft prompt" if split.prompt is None else "")


def _language_model(llm: FrozenLLM, results: Leaderboard | None) -> LanguageModel:
    source = llm.name if is_public(llm.name) else None
    settings = {} if results is None else results.config.get("model", {})
    return LanguageModel.model_validate(
        {
            "name": llm.name if source else Path(llm.name).name,
            "source": source,
            "revision": settings.get("revision") if source else None,
            "dtype": str(llm.dtype).removeprefix("torch."),
            "fingerprint": llm.fingerprint,
            "hidden_size": llm.hidden_size,
            "vocab_size": llm.vocab_size,
        }
    )


def is_public(name: str) -> bool:
    """Whether a model's name means the same on another machine: a packaged asset or a hub id."""
    if assets.is_packaged(name):
        return True
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name and not Path(name).exists()


def _statement(method: DEL, board: Leaderboard | None) -> PrivacyStatement:
    """For the length of a prompt and the delta that the measurements have, if there are any."""
    privacy = None if board is None else next(row.privacy for row in board.rows if not row.is_control)
    if privacy is None or privacy.sequence_tokens is None or privacy.delta is None:
        return method.statement(PROMPT_TOKENS)
    return method.statement(privacy.sequence_tokens, privacy.delta)


def _selected(board: Leaderboard, split: "SplitModel", method: DEL) -> Leaderboard:
    """The rows of this mechanism and of the controls, without folders of this machine."""
    if Path(board.model).name != Path(split.llm.name).name:
        raise ArtifactError(f"`results` must be of the model {split.llm.name!r}, got those of {board.model!r}")
    if (clip := board.config.get("mechanism", {}).get("l2_clip")) != method.l2_clip:
        raise ArtifactError(f"`results` must have the mechanism's l2_clip {method.l2_clip}, got {clip}")
    found = {row.soft_prompt: row for row in reversed(board.rows) if _is_of(row, _facts(method, method.codec.dim))}
    if True not in found:
        raise ArtifactError(
            f"`results` must hold DEL with a soft prompt at mu {method.mu:g}, {method.bits} bits and width "
            f"{method.codec.dim}, got {', '.join(dict.fromkeys(row.label for row in board.rows)) or 'no rows'}"
        )
    if split.prompt is None or found[True].virtual_tokens != split.prompt.virtual_tokens:
        raise ArtifactError(f"`results` must have this soft prompt's length, got {found[True].virtual_tokens}")
    rows = [*(row for row in board.rows if row.method in CONTROLS), *(found[soft] for soft in sorted(found))]
    calibrations = [one for one in board.calibrations if one.method == DEL.name]
    kept = {"rows": rows, "calibrations": calibrations, "curves": [], "attack_curves": [], "attacked": []}
    plain = board.model_copy(update=kept).model_dump(mode="json")
    return Leaderboard.model_validate(_without_places(plain))


def _facts(mechanism: "DEL | SplitRecord", dim: int) -> dict[str, float]:
    """What a quantizer's guarantee follows from, as its statement lists it."""
    return {"mu": mechanism.mu, "bits": mechanism.bits, "dim": dim}


def _is_of(row: LeaderboardRow, facts: Mapping[str, float]) -> bool:
    return row.method == DEL.name and not row.is_control and row.privacy.parameters == facts


def _without_places(value: Any) -> Any:
    """JSON content in which a place on this machine is left with its last name."""
    match value:
        case dict():
            return {key: _without_places(entry) for key, entry in value.items()}
        case list():
            return [_without_places(entry) for entry in value]
        case str():
            key, equals, rest = value.rpartition("=")
            return _PLACE.sub(lambda found: Path(found[0]).name, f"{key}{equals}{_last_name(rest)}")
        case _:
            return value


def _last_name(value: str) -> str:
    """The last name of what is a path as a whole, blanks and all; any other text as it is."""
    is_path = value.startswith(("/", "~/", "./", "../")) or (os.sep in value and Path(value).exists())
    return Path(value).name if is_path and value.isprintable() else value


# --- reading -----------------------------------------------------------------------------------------------------


def read_folder(folder: str | Path) -> tuple[SplitRecord, LinearCodec, SoftPrompt]:
    """Read and check a published folder.

    Raises:
        ArtifactError: A file is missing, unknown, damaged or not what the record says.
    """
    folder = Path(folder)
    names = _visible(folder)
    if RECORD not in names:
        raise ArtifactError(f"{folder} must be a published front-end, found no {RECORD}")
    check_names(names, str(folder))
    record = _parse(folder / RECORD, SplitRecord)
    _check_mechanism(folder / RECORD, record)
    _check_hashes(folder, record, names)
    codec = _read_codec(folder / CODEC, record)
    prompt = _read_prompt(folder, record)
    _check_guarantee(folder / RECORD, record, record.privacy)
    if RESULTS in names:
        _check_results(folder / RESULTS, record)
    if record.sha256 not in (None, _digest(_read_json(folder / RECORD))):  # last: what is wrong in particular says more
        raise ArtifactError(f"{folder / RECORD} must be as it was published, got another SHA-256 than it names")
    return record, codec, prompt


def _visible(folder: Path) -> set[str]:
    """Names in a folder; hidden ones belong to git, the hub and file managers, and are never read."""
    found = [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
    return {path.name if path.is_file() else f"{path.name} (no file)" for path in found}


def check_names(names: set[str], where: str) -> None:
    """Refuse files that a publication does not have, or one without a file that every publication has.

    Raises:
        ArtifactError: A name is unknown, or one is missing.
    """
    check_known(names, where)
    if missing := sorted(set(FILES) - {CARD, RESULTS} - names):
        raise ArtifactError(f"{where} must hold {missing[0]}, got none")


def check_known(names: set[str], where: str) -> None:
    """Refuse files that a publication does not have.

    Raises:
        ArtifactError: A name is unknown.
    """
    if unknown := sorted(names - set(FILES)):
        raise ArtifactError(f"{where} must hold only {', '.join(FILES)}, got {unknown[0]}")


def _parse(path: Path, kind: type[_Kind]) -> _Kind:
    """Read a record; its version comes first, since nothing else of a newer one need be known here."""
    content = _read_json(path)
    if not isinstance(content, dict):
        raise ArtifactError(f"{path} must hold one JSON object, got {type(content).__name__}")
    for name, known in _VERSIONS.items():
        if name in kind.model_fields and (found := content.get(name)) != known:
            newer = ": update del-lightning" if isinstance(found, int) and found > known else ""
            raise ArtifactError(f"{path} must have {name} {known}, got {_shown(found)}{newer}")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise ArtifactError(_problem(path, error)) from None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} must be whole JSON: {error}") from None


def _problem(path: Path, error: ValidationError) -> str:
    """The first of a record's problems as one line."""
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    match first["type"]:
        case "missing":
            return f"{path} must hold {_word(place)}, got none"
        case "extra_forbidden":
            return f"{path} must hold known keys only, got {_word(place)}"
    expected = re.sub(r"^\w+ should", "must", first["msg"])
    return f"{path}: {_word(place)} {expected}, got {_shown(first['input'])}"


def _shown(value: Any) -> str:
    """A value that a file holds, as a few characters of one line."""
    return "none" if value is None else reprlib.repr(value)


def _word(text: str) -> str:
    """Text of a file on one line."""
    return _shown(text).strip("'\"")


def _check_mechanism(path: Path, record: SplitRecord) -> None:
    """The guarantee must be that of the mechanism beside it: of two numbers for one thing, one was changed."""
    own, stated = _facts(record, record.dim), record.privacy.parameters
    if own != stated:
        raise ArtifactError(f"{path} must state the guarantee of its own {_listed(own)}, got that of {_listed(stated)}")


def _listed(facts: Mapping[str, float]) -> str:
    return ", ".join(f"{_word(name)} {value:g}" for name, value in facts.items()) or "nothing"


def _check_hashes(folder: Path, record: SplitRecord, names: set[str]) -> None:
    present = names & set(HASHED)
    if missing := sorted(set(record.files) - present):
        raise ArtifactError(f"{folder} must hold {_word(missing[0])}, which {RECORD} names, got none")
    if unnamed := sorted(present - set(record.files)):
        raise ArtifactError(f"{folder / RECORD} must name every file beside it, got no hash of {unnamed[0]}")
    for name, expected in record.files.items():
        if (found := file_hash(folder / name)) != expected:
            raise ArtifactError(f"{folder / name} must have the SHA-256 {expected}, got {found}")


def _check_tensors(path: Path, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse other tensors, shapes, types and numbers before anything is built from them."""
    try:
        with safe_open(path, "pt") as file:
            if set(file.keys()) != set(expected):
                raise ArtifactError(f"{path} must hold {', '.join(expected)}, got {', '.join(sorted(file.keys()))}")
            for name, shape in expected.items():
                found = file.get_slice(name)
                if (tuple(found.get_shape()), found.get_dtype()) != (shape, "F32"):
                    got = f"{found.get_dtype()} {tuple(found.get_shape())}"
                    raise ArtifactError(f"{path} must hold {name} as F32 {shape}, got {got}")
                if not bool(torch.isfinite(file.get_tensor(name)).all()):
                    raise ArtifactError(f"{path} must hold finite numbers, got others in {name}")
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} must be a safetensors file: {error}") from None


def _read_codec(path: Path, record: SplitRecord) -> LinearCodec:
    wide, narrow = record.model.hidden_size, record.dim
    shapes = {"encoder.weight": (narrow, wide), "decoder.weight": (wide, narrow), "bound": ()}
    _check_tensors(path, shapes)
    codec = LinearCodec.load(path)
    if float(codec.bound) != record.bound:
        raise ArtifactError(f"{path} must have the record's bound {record.bound}, got {float(codec.bound)}")
    return codec


def _read_prompt(folder: Path, record: SplitRecord) -> SoftPrompt:
    shape = (record.virtual_tokens, record.model.hidden_size)
    _check_tensors(folder / WEIGHTS_FILE, {TENSOR: shape})
    path = folder / CONFIG_FILE
    config = _read_json(path)
    if not isinstance(config, dict) or config != _expected_config(record, shape, config):
        raise ArtifactError(f"{path} must be PEFT's configuration of a soft prompt {shape}, got other keys or values")
    return SoftPrompt.load(folder)


def _expected_config(record: SplitRecord, shape: tuple[int, int], found: dict[str, Any]) -> dict[str, Any]:
    """What PEFT's file must hold; heads and layers are facts of the model that nothing here reads."""
    heads, layers = found.get("num_attention_heads"), found.get("num_layers")
    if not isinstance(heads, int) or not isinstance(layers, int):
        return {}
    return peft_config(record.model.source or record.model.name, shape, heads, layers)


def _check_results(path: Path, record: SplitRecord) -> None:
    facts = _facts(record, record.dim)
    rows = [row for row in _parse(path, Leaderboard).rows if row.method not in CONTROLS]
    others = dict.fromkeys(_word(row.label) for row in rows if not _is_of(row, facts))
    if others or not any(row.soft_prompt for row in rows):
        got = ", ".join(others) or "no row with a soft prompt"
        raise ArtifactError(f"{path} must hold the mechanism {_listed(facts)} and its controls, got {got}")
    for row in rows:
        _check_guarantee(path, record, row.privacy)


def _check_guarantee(path: Path, record: SplitRecord, stated: PrivacyColumns) -> None:
    """No publication may promise more than its mechanism keeps."""
    if stated.sequence_tokens is None or stated.delta is None:
        raise ArtifactError(f"{path} must state a guarantee for a prompt, got none")
    if stated.sequence_tokens * record.dim * (2**record.bits - 1) > _MOST_TRIALS:
        raise ArtifactError(f"{path} must state a guarantee for a prompt, got {stated.sequence_tokens} tokens")
    try:
        exact = PrivacyStatement.for_quantizer(
            dim=record.dim,
            bits=record.bits,
            mu=record.mu,
            sequence_tokens=stated.sequence_tokens,
            delta=stated.delta,
        ).columns()
    except ConfigError as error:
        raise ArtifactError(f"{path} must hold a possible mechanism: {error}") from None
    for name in ("mu_token", "mu_effective", "epsilon_token", "epsilon_sequence"):
        said, true = getattr(stated, name), getattr(exact, name)
        if true is not None and (said is None or math.isnan(said) or said < true * (1 - _SLACK)):
            raise ArtifactError(f"{path} must state a {name} of at least {true:g}, got {said}")


def check_model(record: SplitRecord, llm: FrozenLLM, where: str) -> None:
    """Refuse a language model that the front-end was not made for.

    Raises:
        ArtifactError: Its weights have another fingerprint.
    """
    if llm.fingerprint != record.model.fingerprint:
        raise ArtifactError(
            f"{where} was made for {record.model.name} with fingerprint {record.model.fingerprint}, "
            f"got {llm.name} with {llm.fingerprint}"
        )
    if (llm.hidden_size, llm.vocab_size) != (record.model.hidden_size, record.model.vocab_size):
        raise ArtifactError(f"{where} must have its model's sizes, got {record.model.hidden_size}")


def model_settings(record: SplitRecord, where: str) -> ModelConfig:
    """How to load the language model.

    Raises:
        ArtifactError: Only the publisher has it.
    """
    source = record.model.source
    if source is None or not is_public(source):
        raise ArtifactError(f"{where} was made for {record.model.name}, which is on no hub: pass it as `llm`")
    return ModelConfig(name=source, dtype=record.model.dtype, revision=record.model.revision)
