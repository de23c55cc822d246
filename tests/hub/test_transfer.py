"""To the hub and back, against a hub's client that only writes down what it is asked for."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, create_autospec

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from del_lightning.errors import ArtifactError, AssetError, DelError, RemoteError
from del_lightning.hub import fetch, push
from del_lightning.hub.record import FILES
from del_lightning.split import SplitModel
from tests.hub.factory import batch_of, board_of

REPO = "somebody/del-tiny"


@pytest.fixture
def hub(tmp_path: Path) -> Mock:
    """A hub with one repository, a folder; every call must fit the real client's signature."""
    api: Mock = create_autospec(HfApi, instance=True)
    remote = tmp_path / "remote"
    remote.mkdir()
    (remote / ".gitattributes").touch()

    def names() -> list[str]:
        return [path.name for path in remote.iterdir()]

    def upload(*, folder_path: Path, **_: Any) -> None:
        shutil.copytree(folder_path, remote, dirs_exist_ok=True)

    def info(*_: Any, **__: Any) -> SimpleNamespace:
        return SimpleNamespace(sha="c0ffee", siblings=[SimpleNamespace(rfilename=name) for name in names()])

    api.create_repo.return_value = f"https://hub/{REPO}"
    api.list_repo_files.side_effect = lambda *_, **__: names()
    api.upload_folder.side_effect = upload
    api.model_info.side_effect = info
    api.snapshot_download.return_value = str(remote)
    api.remote = remote
    return api


def response(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    answer = Mock(status_code=status, headers={}, request=Mock())
    return kind("\n\nNo such thing.\nAnd much more about it.", response=answer)


def one_line(caught: pytest.ExceptionInfo[DelError]) -> str:
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_folder_goes_up_as_one_commit(folder: Path, hub: Mock) -> None:
    assert push(folder, REPO, api=hub) == f"https://hub/{REPO}"
    hub.create_repo.assert_called_once_with(REPO, private=True, exist_ok=True)
    (call,) = hub.upload_folder.call_args_list
    assert call.kwargs["repo_id"] == REPO
    assert call.kwargs["allow_patterns"] == list(FILES)
    assert call.kwargs["delete_patterns"] == list(FILES)  # results of an earlier publication go


def test_what_was_pushed_comes_back(split: SplitModel, hub: Mock) -> None:
    assert split.push_to_hub(REPO, results=board_of(split), private=False, api=hub) == f"https://hub/{REPO}"
    hub.create_repo.assert_called_once_with(REPO, private=False, exist_ok=True)
    loaded = SplitModel.from_pretrained(REPO, split.llm, revision="v1", api=hub)
    assert hub.model_info.call_args.kwargs["revision"] == "v1"
    # The commit that was looked at is the one that is downloaded.
    assert hub.snapshot_download.call_args.kwargs["revision"] == "c0ffee"
    batch = batch_of()
    logits = [one.logits(batch, one.release(batch, torch.Generator().manual_seed(0))) for one in (split, loaded)]
    assert torch.equal(*logits)
    assert f'from_pretrained("{REPO}"' in (hub.remote / "README.md").read_text()


def test_nothing_is_sent_of_a_folder_that_is_no_publication(folder: Path, hub: Mock) -> None:
    (folder / "codec.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactError, match="SHA-256"):
        push(folder, REPO, api=hub)
    assert hub.mock_calls == []


def test_a_repository_of_something_else_is_left_alone(folder: Path, hub: Mock) -> None:
    (hub.remote / "model.safetensors").touch()
    with pytest.raises(ArtifactError, match=r"repository 'somebody/del-tiny' must hold only .* got model.safetensors"):
        push(folder, REPO, api=hub)
    hub.upload_folder.assert_not_called()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            response(HfHubHTTPError, 403),
            "refused to publish 'somebody/del-tiny' (`hf auth login` first?): No such thing.",
        ),
        (response(RepositoryNotFoundError, 401), "refused to publish"),
        (LocalTokenNotFoundError("Token is required"), "refused to publish"),
        (HTTPError("no route"), "cannot be reached to publish 'somebody/del-tiny': no route"),
        (OfflineModeIsEnabled("offline mode"), "cannot be reached to publish"),
        (HFValidationError("Repo id must be 'owner/name'"), "`repo_id` must be owner/name"),
    ],
)
@pytest.mark.parametrize("call", ["create_repo", "upload_folder"])
def test_a_hub_that_refuses_is_one_line(folder: Path, hub: Mock, call: str, error: Exception, expected: str) -> None:
    getattr(hub, call).side_effect = error
    with pytest.raises(RemoteError) as caught:
        push(folder, REPO, api=hub)
    assert expected in one_line(caught)


def test_a_folder_needs_no_hub(folder: Path, hub: Mock) -> None:
    assert fetch(str(folder), api=hub) == folder
    assert hub.mock_calls == []


def test_a_file_is_no_publication(folder: Path, hub: Mock) -> None:
    with pytest.raises(AssetError, match=r"README\.md' must be a folder or a repository on the hub, got a file"):
        fetch(str(folder / "README.md"), api=hub)
    assert hub.mock_calls == []


def test_a_repository_with_unknown_files_is_not_downloaded(folder: Path, hub: Mock) -> None:
    push(folder, REPO, api=hub)
    (hub.remote / "modeling_evil.py").touch()
    with pytest.raises(ArtifactError, match=r"must hold only .* got modeling_evil\.py") as caught:
        fetch(REPO, api=hub)
    one_line(caught)
    hub.snapshot_download.assert_not_called()


def test_a_repository_without_a_publication_is_not_downloaded(hub: Mock) -> None:
    with pytest.raises(ArtifactError, match=r"must hold adapter_config\.json, got none"):
        fetch(REPO, api=hub)
    hub.snapshot_download.assert_not_called()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (response(RepositoryNotFoundError, 404), "must be a folder or a repository on the hub, got neither"),
        (HFValidationError("bad"), "must be a folder or a repository on the hub, got neither"),
        (response(GatedRepoError, 403), "is gated"),
        (response(RevisionNotFoundError, 404), "`revision` 'v9' does not exist in 'somebody/del-tiny'"),
    ],
)
def test_a_repository_that_is_not_there_is_one_line(hub: Mock, error: Exception, expected: str) -> None:
    hub.model_info.side_effect = error
    with pytest.raises(AssetError) as caught:
        fetch(REPO, "v9", api=hub)
    assert expected in one_line(caught)


def test_without_the_hub_what_was_downloaded_before_is_used(hub: Mock) -> None:
    hub.model_info.side_effect = HTTPError("no route")
    assert fetch(REPO, "v1", api=hub) == hub.remote
    assert hub.snapshot_download.call_args.kwargs["local_files_only"] is True
    assert hub.snapshot_download.call_args.kwargs["revision"] == "v1"
    hub.snapshot_download.side_effect = LocalEntryNotFoundError("nothing\nthere")
    with pytest.raises(AssetError, match=r"but the hub did not answer \(HTTPError\)") as caught:
        fetch(REPO, api=hub)
    one_line(caught)


def test_a_download_that_breaks_off_is_one_line(folder: Path, hub: Mock) -> None:
    push(folder, REPO, api=hub)
    hub.snapshot_download.side_effect = OSError("disk full\nreally")
    with pytest.raises(AssetError, match="download failed: disk full") as caught:
        fetch(REPO, api=hub)
    one_line(caught)
