"""Text corpora by name, from the hub or from parquet files under a local root.

Every corpus offers three splits that share no document. Where a source lacks one, it is cut from validation in a
fixed way, see :func:`split_shares`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from huggingface_hub import constants

from del_lightning import assets
from del_lightning.errors import DataError

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Corpus:
    """Documents of one corpus.

    Attributes:
        name: What the configuration calls it.
        source: Where the text comes from, for reports.
        load: Split -> raw documents; called once a split.
        setting: What of the configuration names it, for errors.
    """

    name: str
    source: str
    load: Callable[[str], list[str]]
    setting: str = "data.name"
    _cache: dict[str, list[str]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __str__(self) -> str:
        return f"`{self.setting}` {self.name!r}"

    def documents(self, split: str) -> list[str]:
        """Stripped, non-empty documents of ``split`` (train, validation or test).

        Raises:
            DataError: No such split, or it holds no text.
        """
        if split not in SPLITS:
            raise DataError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        if split not in self._cache:
            texts = [text.strip() for text in self.load(split) if text and not text.isspace()]
            if not texts:
                raise DataError(f"split {split!r} of {self} ({self.source}) holds no text")
            self._cache[split] = texts
        return self._cache[split]


@dataclass(frozen=True)
class _Source:
    """Where a corpus lies on the hub and under ``data.root``.

    Attributes:
        folder: Folder under the root with ``<split>-*.parquet``.
        column: Text column.
        hub: Repository id.
        request: What else ``datasets.load_dataset`` needs to find it.
        derived: Split that the source may lack.
        streamed: Documents to stream a split, at most, from a hub data set too large to download; None takes all.
        keep: Which rows are documents.
    """

    folder: str
    column: str
    hub: str
    request: dict[str, Any]
    derived: str | None = None
    streamed: int | None = None
    keep: Callable[[str], bool] = bool


def _is_paragraph(row: str) -> bool:
    """Wikitext rows of the form `` = Title = `` are headings."""
    text = row.strip()
    return not (text.startswith("=") and text.endswith("="))


_SOURCES = {
    # The repository itself holds a loading script, which `datasets` no longer runs; the hub keeps a converted branch.
    "ptb": _Source(
        "ptb_text_only",
        "sentence",
        "ptb_text_only",
        {
            "revision": "refs/convert/parquet",
            "data_files": {split: f"penn_treebank/{split}/*.parquet" for split in SPLITS},
        },
    ),
    "wikitext2": _Source(
        "wikitext/wikitext-2-v1", "text", "Salesforce/wikitext", {"name": "wikitext-2-v1"}, keep=_is_paragraph
    ),
    "cnn_dailymail": _Source("cnn_dailymail", "article", "abisee/cnn_dailymail", {"name": "3.0.0"}, derived="train"),
    "c4": _Source("c4", "text", "allenai/c4", {"name": "en"}, derived="test", streamed=40_000),
}


def load_corpus(name: str, root: str | None = None, setting: str = "data.name") -> Corpus:
    """Corpus ``name``; its text is read when a split is first asked for.

    Args:
        name: lee, ptb, wikitext2, cnn_dailymail or c4.
        root: Folder with the corpora as parquet; None takes them from the hub. The packaged Lee corpus needs neither.
        setting: What of the configuration names it, for errors.

    Raises:
        DataError: Unknown name. A missing root, file or column, or an unreachable hub, shows when text is read.
    """
    if name == "lee":
        return Corpus("lee", "Lee news corpus, packaged with gensim", _lee, setting)
    source = _source(name, setting)
    if root is None:
        return Corpus(name, f"hub: {source.hub}", lambda split: _from_hub(name, source, split, setting), setting)
    return Corpus(name, f"{root}/{source.folder}", lambda split: _from_root(source, root, split), setting)


def hub_id(name: str) -> str | None:
    """Repository of a corpus on the hub; None for one that is not there, or that nobody knows."""
    return _SOURCES[name].hub if name in _SOURCES else None


def check_corpus(name: str, root: str | None = None, setting: str = "data.name") -> None:
    """Find out in seconds, reading no text, whether :func:`load_corpus` can deliver.

    Raises:
        DataError: Unknown name; missing root, file or column; unreachable hub.
        AssetError: The packaged corpus is not installed.
    """
    if name == "lee":
        assets.packaged_path("lee.cor")
    elif root is None:
        check_hub(name, _source(name, setting).hub, setting)
    else:
        source = _source(name, setting)
        shares = split_shares(_available(source, root), source.derived)
        for split in dict.fromkeys(origin for origin, _, _ in shares.values()):
            check_columns(parquet_files(root, source.folder, split), [source.column])


def split_shares(available: set[str], derived: str | None) -> dict[str, tuple[str, float, float]]:
    """Split -> (split of the source, start, stop) with start and stop as shares of its documents.

    A missing split is cut from validation, and the three stay disjoint: without train (the cnn_dailymail sample),
    train is the first 80% of validation; without test (C4), test is the last half of validation. Only the split
    named by ``derived`` may be missing; any other is left in, so that reading it says which file is not there.
    """
    cut = 0.8 if derived == "train" and "train" not in available else 0.0
    end = 0.5 if derived == "test" and "test" not in available else 1.0
    return {
        "train": ("validation", 0.0, cut) if cut else ("train", 0.0, 1.0),
        "validation": ("validation", cut, end),
        "test": ("validation", end, 1.0) if end < 1 else ("test", 0.0, 1.0),
    }


def _share(rows: list[str], start: float, stop: float) -> list[str]:
    return rows[round(start * len(rows)) : round(stop * len(rows))]


def _source(name: str, setting: str) -> _Source:
    if name not in _SOURCES:
        raise DataError(f"`{setting}` must be one of lee, {', '.join(_SOURCES)}, got {name!r}")
    return _SOURCES[name]


# --- parquet under data.root ---------------------------------------------------------------------------------------


def _from_root(source: _Source, root: str, split: str) -> list[str]:
    origin, start, stop = split_shares(_available(source, root), source.derived)[split]
    (rows,) = read_parquet(root, source.folder, origin, [source.column])
    return _share([row for row in rows if row and source.keep(row)], start, stop)


def _available(source: _Source, root: str) -> set[str]:
    return {split for split in SPLITS if any((_folder(root) / source.folder).glob(f"{split}-*.parquet"))}


def _folder(root: str) -> Path:
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise DataError(f"`data.root` must be an existing folder, got {root!r}")
    return folder


def parquet_files(root: str, folder: str, split: str) -> list[Path]:
    """Shards of a split in their order.

    Raises:
        DataError: No such root, or no file of the split.
    """
    files = sorted((_folder(root) / folder).glob(f"{split}-*.parquet"))
    if not files:
        raise DataError(f"`data.root` must hold {folder}/{split}-*.parquet, got {root!r}")
    return files


def check_columns(files: Sequence[Path], columns: Sequence[str]) -> None:
    """Find out, reading no rows, whether every file has the columns.

    Raises:
        DataError: A file is no parquet file or lacks a column.
    """
    for file in files:
        try:
            names = pq.read_schema(file).names
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"`data.root` must hold parquet files, got unreadable {str(file)!r}") from error
        for column in columns:
            if column not in names:
                raise DataError(f"`data.root` file {str(file)!r} must have a column {column!r}, got {', '.join(names)}")


def read_parquet(root: str, folder: str, split: str, columns: Sequence[str]) -> list[list[Any]]:
    """Columns of a split, over all its shards.

    Raises:
        DataError: No such root, file or column.
    """
    files = parquet_files(root, folder, split)
    check_columns(files, columns)
    tables = [pq.read_table(file, columns=list(columns)) for file in files]
    return [[value for table in tables for value in table[column].to_pylist()] for column in columns]


# --- hub -----------------------------------------------------------------------------------------------------------


def check_hub(name: str, repository: str, setting: str) -> None:
    """Find out whether the hub answers, without which ``setting`` cannot be ``name``, read from ``repository``.

    Raises:
        DataError: It does not.
    """
    if constants.is_offline_mode():
        return  # the user asked for what is cached; reading it says when there is nothing
    if problem := assets.hub_problem():
        raise DataError(f"`{setting}` {name!r} needs `data.root` (now null) or the hub's {repository}, but {problem}")


def _from_hub(name: str, source: _Source, split: str, setting: str) -> list[str]:
    import datasets

    check_hub(name, source.hub, setting)
    available = {"train", "validation"} if source.derived == "test" else set(SPLITS)
    origin, start, stop = split_shares(available, source.derived)[split]
    try:
        rows = datasets.load_dataset(source.hub, **source.request, split=origin, streaming=source.streamed is not None)
        texts = [row[source.column] for row in islice(rows, source.streamed)]
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(
            f"`{setting}` {name!r}: the hub's {source.hub} cannot be read ({reason}); put "
            f"{source.folder}/<split>-*.parquet with column {source.column!r} under `data.root`, now null"
        ) from error
    return _share([text for text in texts if text and source.keep(text)], start, stop)


# --- packaged ------------------------------------------------------------------------------------------------------


def _lee(split: str) -> list[str]:
    """Background documents 0-219 for training, 220-249 for validation, the rest and the second file for testing.

    Seven documents occur twice, each time within a split; one copy is dropped. None occurs in two splits.
    """
    background = assets.packaged_path("lee_background.cor").read_text(encoding="utf-8").splitlines()
    evaluation = assets.packaged_path("lee.cor").read_text(encoding="latin-1").splitlines()
    parts = {
        "train": background[:220],
        "validation": background[220:250],
        "test": background[250:] + evaluation,
    }
    return list(dict.fromkeys(line.strip() for line in parts[split]))
