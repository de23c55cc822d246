"""To the hub and back. Whatever fails on the way is one line; whatever comes back is checked like any folder."""

from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from del_lightning import assets
from del_lightning.errors import AssetError, RemoteError
from del_lightning.hub.record import FILES, check_known, check_names, read_folder


def push(folder: str | Path, repo_id: str, *, private: bool = True, api: HfApi | None = None) -> str:
    """Upload a published folder as one commit, creating the repository if there is none.

    Args:
        folder: What :func:`~del_lightning.hub.write_folder` left; checked before anything is sent.
        repo_id: ``owner/name`` on the hub.
        private: Whether a new repository is only its owner's to see; an existing one stays as it is.
        api: The hub's client; None takes one with this machine's login.

    Returns:
        Address of the repository.

    Raises:
        ArtifactError: The folder is no publication, or the repository holds files of something else.
        RemoteError: The hub refused, or cannot be reached.
    """
    read_folder(folder)
    api = api or HfApi()
    try:
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        check_known(_seen(api.list_repo_files(repo_id)), f"the repository {repo_id!r}")  # nobody could load it
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message="Codec, soft prompt and privacy statement",
            allow_patterns=list(FILES),
            delete_patterns=list(FILES),  # of an earlier publication, where this one has none
        )
    except HFValidationError as error:
        raise RemoteError(f"`repo_id` must be owner/name, got {repo_id!r}: {_line(error)}") from error
    except (HfHubHTTPError, LocalTokenNotFoundError) as error:
        raise RemoteError(f"the hub refused to publish {repo_id!r} (`hf auth login` first?): {_line(error)}") from error
    except (HTTPError, OSError) as error:
        raise RemoteError(f"the hub cannot be reached to publish {repo_id!r}: {_line(error)}") from error
    return str(address)


def fetch(name: str, revision: str | None = None, api: HfApi | None = None) -> Path:
    """Folder with a publication: ``name`` itself if it is one on this machine, otherwise downloaded from the hub.

    A repository with unknown files is refused before any of it is downloaded. Without the hub, what was downloaded
    before is used.

    Raises:
        AssetError: There is no such folder and no such repository, or the hub cannot be reached.
        ArtifactError: The repository is no publication.
    """
    if Path(name).is_dir():
        return Path(name)
    if Path(name).is_file():
        raise AssetError(f"{name!r} must be a folder or a repository on the hub, got a file")
    api = api or HfApi()
    try:
        info = api.model_info(name, revision=revision, timeout=assets.HUB_TIMEOUT)
    except GatedRepoError as error:
        raise AssetError(f"{name!r} is gated: accept its terms, then run `hf auth login`") from error
    except RevisionNotFoundError as error:
        raise AssetError(f"`revision` {revision!r} does not exist in {name!r}") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise AssetError(f"{name!r} must be a folder or a repository on the hub, got neither") from error
    except (HTTPError, OSError) as error:
        return _download(name, revision, api, offline=error)
    check_names(_seen(file.rfilename for file in info.siblings or []), f"the repository {name!r}")
    return _download(name, info.sha, api)


def _seen(names: Iterable[str]) -> set[str]:
    """File names of a repository but for hidden ones, which the hub writes itself."""
    return {name for name in names if not name.startswith(".")}


def _download(name: str, revision: str | None, api: HfApi, offline: Exception | None = None) -> Path:
    local = offline is not None
    try:
        return Path(api.snapshot_download(name, revision=revision, allow_patterns=list(FILES), local_files_only=local))
    except (HTTPError, OSError) as error:
        reason = f"the hub did not answer ({type(offline).__name__})" if local else f"download failed: {_line(error)}"
        raise AssetError(f"{name!r} must be a folder or a repository on the hub, but {reason}") from error


def _line(error: BaseException) -> str:
    """The first line of an error; the hub's messages run over many."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
