"""Stage publish, and every command and example of docs/publishing.md, on a small model and without a hub."""

import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from unittest.mock import Mock, create_autospec

import pytest
from huggingface_hub import HfApi

from del_lightning.__main__ import main
from del_lightning.config import Config, MechanismConfig, ModelConfig, PublishConfig
from del_lightning.errors import ConfigError, RemoteError
from del_lightning.hub import read_folder
from del_lightning.llm import FrozenLLM
from del_lightning.loading import load_llm
from del_lightning.report.schema import Leaderboard
from del_lightning.split import SplitModel
from del_lightning.stages import publish
from del_lightning.stages.workspace import Workspace
from tests.stages.small import small

PAGE = Path(__file__).parents[2] / "docs" / "publishing.md"
REPO = "you/del-smollm2"


def blocks(language: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [block for block in found if ">>>" not in block]


def commands() -> list[list[str]]:
    """The words of every command line of the page."""
    return [shlex.split(line) for block in blocks("bash") for line in block.splitlines()]


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HYDRA_FULL_ERROR", "TOKENIZERS_PARALLELISM", "HF_HUB_DISABLE_TELEMETRY"):
            patch.setenv(name, "")  # main() sets them; the patch puts them back
            patch.delenv(name)
        yield patch


@pytest.fixture(scope="module")
def said() -> list[str]:
    """What the command lines printed, a text each."""
    return []


@pytest.fixture(scope="module")
def call(
    model: Path, encoder: Path, said: list[str], patch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[list[str]], Path]:
    """Run a command line in a folder of its own, in small; returns that folder."""
    place = tmp_path_factory.mktemp("somebody")
    patch.chdir(place)
    patch.setenv("DEL_LIGHTNING_CACHE", str(place / "cache"))
    settings = {**small(model, encoder), "methods": "[clean,mean,del]", "mechanism.mu": 40.0, "logger": "none"}
    changed = [f"{name}={value}" for name, value in settings.items()]

    def run(words: list[str]) -> Path:
        assert words[:3] == ["python", "-m", "del_lightning"]
        patch.setattr(sys, "argv", ["del-lightning", *words[3:], *changed])
        with redirect_stdout(StringIO()) as output:
            main()
        said.append(output.getvalue())
        return place

    return run


@pytest.fixture(scope="module")
def published(call: Callable[[list[str]], Path]) -> Path:
    """What the page's first command leaves."""
    place = call(commands()[0])
    (folder,) = (place / "runs" / "publish").iterdir()
    return folder


@pytest.fixture(scope="module")
def llm(model: Path) -> FrozenLLM:
    return load_llm(ModelConfig(name=str(model)))


def test_the_page_holds_the_commands_that_are_run_here() -> None:
    assert [words[:4] for words in commands()] == [
        ["python", "-m", "del_lightning", "stage=publish"],
        ["hf", "auth", "login"],
        ["python", "-m", "del_lightning", "stage=publish"],
    ]
    assert len(blocks("python")) == 2


@pytest.mark.slow
def test_a_run_is_published_with_its_results(published: Path, llm: FrozenLLM) -> None:
    record = read_folder(published)[0]
    assert (record.mu, record.bits, record.virtual_tokens, record.prefix) == (40.0, 4, 20, Config().data.prefix)
    board = Leaderboard.model_validate_json((published / "results.json").read_bytes())
    assert {row.method for row in board.rows} == {"clean", "mean", "del"}
    assert [row.soft_prompt for row in board.rows if row.value == 40.0] == [False, True]
    split = SplitModel.from_pretrained(published, llm)
    trained = SplitModel.from_artifacts(published.parents[1] / "prompt" / published.name, llm)
    assert {name: value.tolist() for name, value in split.state_dict().items() if "llm" not in name} == {
        name: value.tolist() for name, value in trained.state_dict().items() if "llm" not in name
    }
    assert split.prefix == trained.prefix


@pytest.mark.slow
def test_the_last_lines_say_how_to_load_it_and_how_to_push_it(published: Path, said: list[str], model: Path) -> None:
    head, load, push = said[0].rstrip().splitlines()[-3:]
    assert head == f"published DEL, given value: {published}"
    code = load.partition("  load: ")[2]
    split = eval(code, {"SplitModel": SplitModel, "load_llm": load_llm, "ModelConfig": ModelConfig})
    assert split.method.mu == 40.0
    words = shlex.split(push.partition("   (")[0])
    assert words == ["push:", "hf", "upload", "--private", "owner/name", str(published)]


@pytest.mark.slow
def test_nothing_of_the_machine_is_published(published: Path, model: Path) -> None:
    for path in published.iterdir():
        content = path.read_bytes()
        for place in (model.parent, published.parents[2], Path.home()):
            assert str(place).encode() not in content, path.name


@pytest.mark.slow
def test_the_page_is_true(
    published: Path,
    model: Path,
    call: Callable[[list[str]], Path],
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Push, load and push again as the page says; only the model is another, and nobody else has it."""
    hub: Mock = create_autospec(HfApi, instance=True)
    hub.create_repo.return_value = f"https://hub/{REPO}"
    hub.list_repo_files.return_value = [".gitattributes"]
    cards: list[str] = []
    hub.upload_folder.side_effect = lambda folder_path, **_: cards.append((Path(folder_path) / "README.md").read_text())
    monkeypatch.setattr("del_lightning.hub.transfer.HfApi", lambda: hub)
    monkeypatch.setattr(publish, "get_token", lambda: "hf_token")
    monkeypatch.setattr("del_lightning.assets.hub_problem", lambda: None)
    place = call(commands()[2])
    hub.create_repo.assert_called_once_with(REPO, private=True, exist_ok=True)
    assert f'SplitModel.from_pretrained("{REPO}"' in cards[0]
    pushed, load = said[-1].rstrip().splitlines()[-2:]
    assert pushed == f"  pushed: https://hub/{REPO}"
    assert load.startswith(f'  load: SplitModel.from_pretrained("{REPO}"')
    assert [path.name for path in published.parent.iterdir()] == [published.name]

    monkeypatch.setattr("del_lightning.hub.record.model_settings", lambda *_: ModelConfig(str(model)))
    printed: list[str] = []
    for block in blocks("python"):
        exec(block.replace("<key>", published.name), {"print": printed.append})
    assert len(printed) == 1
    assert len(cards) == 2
    assert "published without measurements" in (place / "unmeasured" / "README.md").read_text()
    shutil.rmtree(place / "unmeasured")


# --- what is refused before any work -----------------------------------------------------------------------------


def check(
    monkeypatch: pytest.MonkeyPatch, problem: str | None = None, token: str | None = "t", **changes: object
) -> None:
    monkeypatch.setattr(publish, "get_token", lambda: token)
    monkeypatch.setattr("del_lightning.assets.hub_problem", lambda: problem)
    publish.check(Workspace(replace(Config(publish=PublishConfig(repo_id="me/it")), **changes)))  # type: ignore[arg-type]


def test_one_repository_takes_one_privacy_level(monkeypatch: pytest.MonkeyPatch) -> None:
    check(monkeypatch, targets=[0.1])
    check(monkeypatch, mechanism=MechanismConfig(mu=20.0))
    check(monkeypatch, targets=[0.1], matching=["worst", "guarantee"])
    check(monkeypatch, targets=[0.1, 0.2], publish=PublishConfig())
    for changes in ({"targets": [0.1, 0.2]}, {"targets": [0.1], "matching": ["nearest", "worst"]}):
        with pytest.raises(ConfigError, match=r"must come with one privacy level: set mechanism\.mu, or"):
            check(monkeypatch, **changes)


def test_a_hub_is_looked_for_only_to_push(monkeypatch: pytest.MonkeyPatch) -> None:
    check(monkeypatch, token=None, problem="gone", publish=PublishConfig())
    with pytest.raises(ConfigError, match=r"must come with a login on this machine \(`hf auth login`\), got none"):
        check(monkeypatch, token=None, targets=[0.1])
    with pytest.raises(RemoteError, match="must be null without the hub: gone"):
        check(monkeypatch, problem="gone", targets=[0.1])


@pytest.mark.parametrize(("key", "names"), [("methods", ["clean"]), ("soft_prompts", ["mean"])])
def test_there_must_be_something_to_publish(monkeypatch: pytest.MonkeyPatch, key: str, names: list[str]) -> None:
    with pytest.raises(ConfigError, match=f"`{key}` must hold 'del' for stage=publish"):
        check(monkeypatch, **{key: names})


@pytest.mark.parametrize("name", ["MIT License", "", "apache 2"])
def test_a_license_is_spelled_as_the_hub_does(name: str) -> None:
    with pytest.raises(ConfigError, match=r"`publish\.license` must be a license as the hub spells it, such as "):
        PublishConfig(license=name)
    PublishConfig(license="apache-2.0")


@pytest.mark.parametrize("name", ["it", "me/it/again", "me/", "https://hub/me/it", "me/it?"])
def test_a_repository_has_an_owner_and_a_name(name: str) -> None:
    with pytest.raises(ConfigError, match=r"`publish\.repo_id` must be owner/name, got"):
        PublishConfig(repo_id=name)
