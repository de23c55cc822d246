"""Stage ``publish``: every DEL setting of the configuration as a folder that anybody can load and check.

    <out>/publish/<key of the soft prompt>/    what del_lightning.hub describes, with the leaderboard's rows of it

Publishing again takes the newest measurements and changes nothing else.
"""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import get_token

from del_lightning import assets
from del_lightning.errors import ConfigError, RemoteError
from del_lightning.hub import push, write_folder
from del_lightning.hub.record import is_public
from del_lightning.methods import DEL
from del_lightning.report.schema import Leaderboard
from del_lightning.split import SplitModel
from del_lightning.stages import prompt, report
from del_lightning.stages.setting import Setting
from del_lightning.stages.settings import settings
from del_lightning.stages.workspace import Workspace


def check(ws: Workspace) -> None:
    """Fail now on what would fail after minutes.

    Raises:
        ConfigError: There is nothing to publish, more than one repository can hold, or no login.
        RemoteError: The hub cannot be reached.
    """
    config = ws.config
    for key, names in (("methods", config.methods), ("soft_prompts", config.soft_prompts)):
        if names is not None and DEL.name not in names:
            raise ConfigError(f"`{key}` must hold {DEL.name!r} for stage=publish, got {names}")
    if config.publish.repo_id is None:
        return
    levels = len(config.targets) * sum(matching != "guarantee" for matching in config.matching)
    if ws.given_value(DEL.name) is None and levels != 1:
        raise ConfigError(
            "`publish.repo_id` must come with one privacy level: set mechanism.mu, or one of targets, "
            f"got {config.targets} matched by {', '.join(config.matching)}"
        )
    if get_token() is None:
        raise ConfigError("`publish.repo_id` must come with a login on this machine (`hf auth login`), got none")
    if problem := assets.hub_problem():
        raise RemoteError(f"`publish.repo_id` must be null without the hub: {problem}")


def run(ws: Workspace) -> None:
    """Publish every DEL setting of the configuration, building and measuring what is missing.

    Raises:
        ConfigError: No target can be met.
        RemoteError: The hub refused, or cannot be reached.
    """
    found = settings(ws)
    ours = [setting for setting in found if setting.method == DEL.name]
    if not ours:
        raise ConfigError(f"`targets` must hold a success rate that DEL can be held to, got {ws.config.targets}")
    board = report.leaderboard(ws, found)
    for setting in ours:
        folder = write(ws, setting, board).resolve()
        print(f"published {setting.label}: {folder}")
        for line in following(ws, folder):
            print(line)  # as it is: lines that somebody copies are not to be wrapped


def following(ws: Workspace, folder: Path) -> Iterator[str]:
    """Push a folder if a repository is named; say how to load it and, where none is named, how to push it."""
    repo_id = ws.config.publish.repo_id
    if repo_id is not None:
        yield f"  pushed: {push(folder, repo_id, private=ws.config.publish.private)}"
    place = json.dumps(repo_id or str(folder), ensure_ascii=False)
    model = f"load_llm(ModelConfig({json.dumps(ws.llm.name, ensure_ascii=False)}))"
    yield f"  load: SplitModel.from_pretrained({place}{'' if is_public(ws.llm.name) else f', {model}'})"
    if repo_id is None:
        yield (
            f"  push: hf upload --private owner/name {shlex.quote(str(folder))}"
            "   (or the same command with one privacy level and publish.repo_id=owner/name)"
        )


def write(ws: Workspace, setting: Setting, board: Leaderboard) -> Path:
    """Write one setting's folder."""
    artifact, publish = prompt.ensure(ws, setting), ws.config.publish
    split = SplitModel.from_artifacts(artifact.folder, ws.llm)
    folder = ws.store.root / "publish" / artifact.key
    return write_folder(folder, split, results=board, repo_id=publish.repo_id, license=publish.license)
