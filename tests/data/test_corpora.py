"""Corpora: the right text, disjoint splits, and one clear line when something is missing."""

from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.errors import HTTPError

from del_lightning import assets
from del_lightning.data import Corpus, check_corpus, load_corpus
from del_lightning.data.corpora import SPLITS, split_shares
from del_lightning.errors import AssetError, DataError


def write(root: Path, name: str, **columns: list[str | None]) -> None:
    path = root / f"{name}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def one_line(error: pytest.ExceptionInfo[DataError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_wikitext_documents_are_paragraphs(tmp_path: Path) -> None:
    rows = ["", " = Title = \n", " First paragraph . \n", " = = Section = = \n", " a = b \n", None, "  \n"]
    write(tmp_path, "wikitext/wikitext-2-v1/test", text=rows)
    assert load_corpus("wikitext2", str(tmp_path)).documents("test") == ["First paragraph .", "a = b"]


def test_shards_are_read_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "ptb_text_only"
    folder.mkdir()
    for shard in (1, 0):
        pq.write_table(pa.table({"sentence": [f"s{shard}"]}), folder / f"train-0000{shard}-of-00002.parquet")
    assert load_corpus("ptb", str(tmp_path)).documents("train") == ["s0", "s1"]


@pytest.mark.parametrize("derived", ["train", "test", None])
@pytest.mark.parametrize("missing", [set(), {"train"}, {"test"}])
def test_splits_never_overlap(derived: str | None, missing: set[str]) -> None:
    shares = split_shares(set(SPLITS) - missing, derived)
    for origin in SPLITS:
        parts = sorted((start, stop) for source, start, stop in shares.values() if source == origin)
        assert all(first[1] <= second[0] for first, second in pairwise(parts))
        assert all(start < stop for start, stop in parts)
    if missing - {derived}:
        assert (next(iter(missing)), 0.0, 1.0) in shares.values()  # reading it names the missing file


def test_missing_split_is_cut_from_validation(tmp_path: Path) -> None:
    texts = [f"t{i}" for i in range(10)]
    write(tmp_path, "cnn_dailymail/validation", article=texts)
    write(tmp_path, "cnn_dailymail/test", article=["other"])
    cnn = load_corpus("cnn_dailymail", str(tmp_path))
    assert [cnn.documents(split) for split in SPLITS] == [texts[:8], texts[8:], ["other"]]
    write(tmp_path, "c4/train", text=["other"])
    write(tmp_path, "c4/validation", text=texts)
    c4 = load_corpus("c4", str(tmp_path))
    assert [c4.documents(split) for split in SPLITS] == [["other"], texts[:5], texts[5:]]


def test_unknown_names() -> None:
    for call in (load_corpus, check_corpus):
        with pytest.raises(DataError, match=r"data\.name.*wikitext2.*'nope'"):
            call("nope", None)
    with pytest.raises(DataError, match=r"train, validation, test.*'dev'"):
        Corpus("toy", "memory", lambda split: [split]).documents("dev")


def test_missing_things_name_data_root(tmp_path: Path) -> None:
    cases = {"/no/such/root": "existing folder", str(tmp_path): "ptb_text_only/train-*.parquet"}
    for root, words in cases.items():
        for call in (check_corpus, lambda name, root: load_corpus(name, root).documents("train")):
            with pytest.raises(DataError) as error:
                call("ptb", root)
            assert "`data.root`" in one_line(error)
            assert words in one_line(error)
            assert root in one_line(error)


def test_missing_test_file_is_noticed_early(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        write(tmp_path, f"ptb_text_only/{split}", sentence=["text"])
    with pytest.raises(DataError, match=r"ptb_text_only/test-"):
        check_corpus("ptb", str(tmp_path))
    write(tmp_path, "ptb_text_only/test", sentence=["text"])
    check_corpus("ptb", str(tmp_path))


def test_wrong_column_and_damaged_file(tmp_path: Path) -> None:
    for split in SPLITS:
        write(tmp_path, f"ptb_text_only/{split}", text=["text"])
    for call in (check_corpus, lambda name, root: load_corpus(name, root).documents("test")):
        with pytest.raises(DataError) as error:
            call("ptb", str(tmp_path))
        assert "column 'sentence', got text" in one_line(error)
    (tmp_path / "ptb_text_only" / "test-00000-of-00001.parquet").write_text("not parquet")
    with pytest.raises(DataError) as error:
        load_corpus("ptb", str(tmp_path)).documents("test")
    assert "unreadable" in one_line(error)


def test_empty_split(tmp_path: Path) -> None:
    write(tmp_path, "ptb_text_only/train", sentence=["", "  "])
    with pytest.raises(DataError, match=r"'train'.*'ptb'.*holds no text"):
        load_corpus("ptb", str(tmp_path)).documents("train")


@pytest.mark.parametrize("name", ["ptb", "wikitext2", "cnn_dailymail", "c4"])
def test_unreachable_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise HTTPError("no route")

    monkeypatch.setattr(assets, "get_session", type("Session", (), {"head": refuse}))
    for call in (check_corpus, lambda name, root: load_corpus(name, root).documents("test")):
        with pytest.raises(DataError) as error:
            call(name, None)
        assert "`data.root`" in one_line(error)
        assert "cannot be reached" in one_line(error)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("ptb", (42068, 3370, 3761)),
        ("wikitext2", (17556, 1841, 2185)),
        ("cnn_dailymail", (800, 200, 200)),
        ("c4", (1000, 740, 740)),
    ],
)
def test_real_corpora(name: str, counts: tuple[int, int, int], data_root: Path) -> None:
    check_corpus(name, str(data_root))
    corpus = load_corpus(name, str(data_root))
    documents = [corpus.documents(split) for split in SPLITS]
    assert tuple(map(len, documents)) == counts
    assert all(text == text.strip() != "" for texts in documents for text in texts)
    long = [{text for text in texts if len(text) > 400} for texts in documents]
    assert not long[0] & long[1]
    assert not long[0] & long[2]
    assert not long[1] & long[2]


def test_lee() -> None:
    try:
        check_corpus("lee", None)
    except AssetError as error:
        pytest.skip(str(error))
    corpus = load_corpus("lee")
    documents = [corpus.documents(split) for split in SPLITS]
    assert list(map(len, documents)) == [216, 29, 98]
    assert len(set().union(*documents)) == 343
    assert any("£3,000" in text for text in documents[2])
