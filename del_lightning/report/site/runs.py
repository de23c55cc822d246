"""Find stored leaderboards and read them; everything else in the folders is left alone and named.

A leaderboard is known by its content, whatever its file is called. What is damaged stops everything before a page is
written, and so does a file that has a leaderboard's name and holds something else: a site that silently lacks a run
would be taken for the whole.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from del_lightning.errors import ArtifactError, ConfigError
from del_lightning.report import levels, merge
from del_lightning.report.schema import SCHEMA_VERSION, Leaderboard, NluLeaderboard, Texts, TransferBoard

Board = Leaderboard | NluLeaderboard | TransferBoard

_KINDS = (Leaderboard, TransferBoard, NluLeaderboard)
"""In the order of their runs."""

_NAMES = {
    "leaderboard.json": "the leaderboard of stage report or nlu (an object with `rows` and `config`)",
    "transfer.json": "the table of stage transfer (an object with `cells` and `config`)",
}
"""Name under which a stage writes its numbers -> what such a file must hold."""

DATASETS = {
    "ptb": "PTB",
    "wikitext2": "WikiText-2",
    "cnn_dailymail": "CNN/DailyMail",
    "c4": "C4",
    "lee": "Lee news",
}
"""Corpus in the configuration -> its name on pages."""


@dataclass(frozen=True)
class Run:
    """One leaderboard of the site.

    Attributes:
        slug: Name of its page.
        source: File that it was read from, under the folder that was named.
        board: What was measured.
        texts: Continuations and recovered prompts, where they lie beside it.
    """

    slug: str
    source: str
    board: Board
    texts: Texts | None = None

    @property
    def page(self) -> str:
        """Address of its page, from the site's folder."""
        return f"runs/{self.slug}.html"

    @property
    def data(self) -> str:
        """Data set or task as pages name it."""
        if isinstance(self.board, NluLeaderboard):
            return f"GLUE {self.board.task.upper()}"
        return DATASETS.get(self.board.dataset, self.board.dataset)


def generation(runs: Iterable[Run]) -> Iterator[tuple[Run, Leaderboard]]:
    """The runs that continue text."""
    return ((run, run.board) for run in runs if isinstance(run.board, Leaderboard))


def classification(runs: Iterable[Run]) -> Iterator[tuple[Run, NluLeaderboard]]:
    """The runs that classify."""
    return ((run, run.board) for run in runs if isinstance(run.board, NluLeaderboard))


@dataclass(frozen=True)
class Found:
    """The runs in the order of their pages, and (file, reason) of every other JSON file."""

    runs: list[Run]
    skipped: list[tuple[str, str]]


def load(places: Sequence[str | Path], leave_out: Path | None = None) -> Found:
    """Read every leaderboard at these places.

    Args:
        places: Folders, searched at any depth, and JSON files.
        leave_out: Folder that is not searched: the site itself may lie among the results.

    Raises:
        ConfigError: A place does not exist, or holds no leaderboard.
        ArtifactError: A file is no JSON, cannot be read, is a leaderboard of another schema, or has the name of one
            and is none.
    """
    read: dict[Path, tuple[str, Board | Texts | str]] = {}
    for place in map(Path, places):
        files = {path.resolve(): name for path, name in _files(place, leave_out)}
        read |= {path: (name, _read(path)) for path, name in files.items() if path not in read}
        if not any(isinstance(read[path][1], Board) for path in files):
            reason = next((f" ({read[path][1]})" for path in files if place.is_file()), "")
            raise ConfigError(f"`report.results` must name places with leaderboards, found none in '{place}'{reason}")
    return _sorted(read)


def _files(place: Path, leave_out: Path | None) -> Iterator[tuple[Path, str]]:
    """(file, its name on pages) of every JSON file at a place."""
    if place.is_file():
        yield place, place.name
    elif place.is_dir():
        hidden = None if leave_out is None else leave_out.resolve()
        for path in sorted(place.rglob("*.json")):
            if path.is_file() and hidden not in path.resolve().parents:
                yield path, f"{place.resolve().name}/{path.relative_to(place).as_posix()}"
    else:
        raise ConfigError(f"`report.results` must name existing folders or JSON files, got '{place}'")


def _read(path: Path) -> Board | Texts | str:
    """The record that a file holds, or the reason why it holds none."""
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except OSError as error:
        raise ArtifactError(f"`report.results`: {path} must be readable, got: {error.strerror}") from None
    except ValueError as error:
        raise ArtifactError(f"`report.results`: {path} must hold JSON, got: {error}") from None
    kind, promised = _kind(content), _NAMES.get(path.name)
    if kind is None and promised is None:
        return "no leaderboard"
    version = content.get("schema_version", SCHEMA_VERSION) if isinstance(content, dict) else SCHEMA_VERSION
    if version != SCHEMA_VERSION:
        raise ArtifactError(f"`report.results`: {path} must have schema version {SCHEMA_VERSION}, got {version!r}")
    if kind is None:
        raise ArtifactError(f"`report.results`: {path} must hold {promised}, got {_told(content)}")
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        reason = f"{place}: {first['msg']}"
        raise ArtifactError(f"`report.results`: {path} must fit the schema of a leaderboard, got: {reason}") from None


def _kind(content: Any) -> type[Leaderboard] | type[NluLeaderboard] | type[TransferBoard] | type[Texts] | None:
    """The record that a file's content claims to be."""
    if not isinstance(content, dict):
        return None
    if {"samples", "gallery"} <= content.keys():
        return Texts
    if {"rows", "config"} <= content.keys():
        return NluLeaderboard if "task" in content else Leaderboard
    return TransferBoard if {"cells", "config"} <= content.keys() else None


def _told(content: Any) -> str:
    """What JSON holds, in a few words."""
    if isinstance(content, dict):
        keys = ", ".join(json.dumps(key)[:40] for key in list(content)[:4]) + (", ..." if len(content) > 4 else "")
        return f"an object with {keys}" if content else "an empty object"
    return {list: "a list", str: "a text", type(None): "null"}.get(type(content), json.dumps(content))


def _sorted(read: dict[Path, tuple[str, Board | Texts | str]]) -> Found:
    """Give every leaderboard its texts and a page; a second copy of the same one is left out."""
    runs: list[Run] = []
    skipped = [(name, item) for name, item in read.values() if isinstance(item, str)]
    seen: dict[str, str] = {}
    boards = [(path, name, item) for path, (name, item) in read.items() if isinstance(item, Board)]
    for path, name, board in sorted(boards, key=lambda item: (_word(item[0]), item[1])):
        first = seen.setdefault(board.model_dump_json(), name)
        if first != name:
            skipped.append((name, f"the same as {first}"))
            continue
        runs.append(Run(_free(_word(path), runs), name, board, _texts(path.parent, board, read)))
    used = [run.texts for run in runs]
    runs = _levels_together(_seeds_together(runs))
    skipped += [
        (name, "texts of no run beside it")
        for name, item in read.values()
        if isinstance(item, Texts) and item not in used
    ]
    runs.sort(key=lambda run: (_KINDS.index(type(run.board)), run.data, run.board.model, run.slug))
    return Found(runs, sorted(skipped))


def _seeds_together(runs: list[Run]) -> list[Run]:
    """The runs, with those of one GLUE task that differ only in their seeds as one."""
    tasks = {id(board): run for run, board in classification(runs)}
    found = [run for run in runs if id(run.board) not in tasks]
    for group in merge.groups([board for _, board in classification(runs)]):
        found.append(_joined([tasks[id(board)] for board in group], merge.joined(group)))
    return found


def _levels_together(runs: list[Run]) -> list[Run]:
    """The runs, with those that continue text and differ only in their levels of attack success as one."""
    texts = {id(board): run for run, board in generation(runs)}
    found = [run for run in runs if id(run.board) not in texts]
    for group in levels.groups([board for _, board in generation(runs)]):
        parts, board = [texts[id(board)] for board in group], levels.joined(group)
        found.append(replace(_joined(parts, board), texts=levels.joined_texts(board, [part.texts for part in parts])))
    return found


def _joined(parts: list[Run], board: Board) -> Run:
    """The first of several runs with the board of them all."""
    return replace(parts[0], source=", ".join(run.source for run in parts), board=board)


def _texts(folder: Path, board: Board, read: dict[Path, tuple[str, Board | Texts | str]]) -> Texts | None:
    """The texts beside a leaderboard that belong to it."""
    near = (item for path, (_, item) in read.items() if path.parent == folder and isinstance(item, Texts))
    return next((text for text in near if (text.title, text.generated) == (board.title, board.generated)), None)


def _word(path: Path) -> str:
    """Name of a page: the file's folder and its own name."""
    return re.sub(r"[^a-z0-9.]+", "-", f"{path.parent.name}-{path.stem}".lower()).strip("-.") or "run"


def _free(word: str, runs: Iterable[Run]) -> str:
    """The word, with a number where an earlier page has it."""
    taken, number, slug = {run.slug for run in runs}, 1, word
    while slug in taken:
        number += 1
        slug = f"{word}-{number}"
    return slug
