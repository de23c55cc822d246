import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from del_lightning.__main__ import INTERRUPTED, main
from del_lightning.assets import packaged_path
from del_lightning.config.checks import writable_folder
from del_lightning.errors import AssetError, DataError
from del_lightning.refusal import USER_ERROR
from del_lightning.stages.report import LONGEST_SLUG, slug_of
from del_lightning.stages.workspace import Workspace

ROOT = Path(__file__).parents[1]
Run = Callable[..., tuple[int, str, str]]
STAGES = (
    *("account", "codec", "calibrate", "prompt", "attack", "evaluate", "report", "pipeline"),
    *("nlu", "export", "serve", "publish"),
)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process and an empty folder; returns exit code, output and error output."""
    monkeypatch.chdir(tmp_path)
    for name in ("HYDRA_FULL_ERROR", "DEL_LIGHTNING_TRACEBACKS", "TOKENIZERS_PARALLELISM", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "")  # main() sets them; monkeypatch puts them back
        monkeypatch.delenv(name)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["del-lightning", *arguments])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        output = capsys.readouterr()
        return code, output.out, output.err

    return call


def test_an_interruption_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("del_lightning.__main__._run", interrupted)
    assert run() == (INTERRUPTED, "", "interrupted: the same command goes on from what is done\n")


WRONG = {
    "mechanism.bits=9": "`mechanism.bits` must be between 1 and 8, got 9",
    "mechanism.bit=4": "`mechanism.bit` is not a setting; valid ones under `mechanism`: bits, mu, l2_clip",
    "mechanism.bits=abc": "'abc' of type 'str' could not be converted to Integer (at `mechanism.bits`)",
    "mechanism.mu=-1": "`mechanism.mu` must be a positive number, got -1.0",
    "model=nope": "`model=nope` is unknown; choose one of: gemma3, hub, qwen2_5_7b, smollm2",
    "stage=train": "choose one of: account, attack, calibrate, codec, evaluate, export, ",
    "experiment=nope": "one of: attacks/ptb, attacks/wikitext2, ",
    "experiment=cpu/nope": "`experiment=cpu/nope` is unknown",
    "evaluate.seed=1": "`evaluate.seed` is not a setting; valid ones under `evaluate`: encoder, pooling, seeds,",
    "nope=1": "`nope` is not a setting; valid ones under `the top level`: title, schedule, seed,",
    "data.split_ratio=0.5": "`data.split_ratio` must be a list such as [0.5], got 0.5",
    "targets=0.1": "`targets` must be a list such as [0.1], got 0.1",
    "report.results=a/b": "`report.results` must be a list such as [a/b], got a/b",
    "-m seed=1,2 targets=0.1": "`targets` must be a list such as [0.1], got 0.1",
    "--experiment=quickstart": "settings are written key=value, without --, got '--experiment=quickstart'",
    "seed=1 --mechanism.bits 2": "settings are written key=value, without --, got '--mechanism.bits'",
    "hydra/launcher=submitit_none": "pip install 'del-lightning[slurm]'",
    "methods=[mean,mean]": "`methods` must be a list without repeats, got ['mean', 'mean']",
    "targets=[0.1,0.1]": "`targets` must be a list without repeats, got [0.1, 0.1]",
    "title=": "`title` must be a non-empty line, got ''",
    "methods=[gaussian]": "`methods` must be one of clean, mean, random, projection, ",
    "mechanism.bits": "missing EQUAL",
    "model.name=./nope": "`model.name` must be an existing folder, got './nope'",
}


@pytest.mark.skipif(find_spec("hydra_plugins.hydra_ray_launcher") is not None, reason="Ray's launcher is installed")
def test_a_launcher_that_is_not_installed_is_named_with_its_extra(run: Run) -> None:
    done = run("-m", "hydra/launcher=ray", "seed=1,2")
    assert_one_line(done, "`hydra/launcher=ray` needs an extra that is missing: pip install 'del-lightning[ray]'")


NOT_WRITABLE = ("/proc/nope", "file", "file/deeper", "x" * 300)


@pytest.mark.parametrize("out", NOT_WRITABLE)
def test_a_folder_that_cannot_be_written_is_refused_first(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.setitem(sys.modules, "del_lightning.stages.checks", None)  # before any other check
    (tmp_path / "file").write_text("years of work")
    assert_one_line(run(f"out={out}"), f"`out` must be a folder that can be written, got '{out}'")
    assert_one_line(run("-m", "seed=1,2", f"out={out}"), f"`out` must be a folder that can be written, got '{out}'")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_looking_whether_a_folder_can_be_written_leaves_nothing(tmp_path: Path) -> None:
    writable_folder("out", str(tmp_path / "a" / "b"))
    writable_folder("out", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


WRONG_BEHIND_A_GOOD_MODEL = {
    "data.root=nope": "`data.root` must be an existing folder, got 'nope'",
    "codec.corpus=lee evaluate.encoder=./nope": "`evaluate.encoder` must be a packaged asset, a folder or a hub id",
    "experiment=cpu/ptb data.root=null data.name=lee": "`codec.corpus` 'c4' needs `data.root` (now null)",
    "codec.corpus=lee codec.dim=900": "`codec.dim` must be between 1 and the hidden size 576, got 900",
    "codec.corpus=lee targets=[]": "`targets` must hold a success rate to which del are calibrated, got []",
}


@pytest.mark.parametrize("arguments", WRONG)
def test_what_the_user_can_mend_is_one_line_and_exit_code_2(
    run: Run, tmp_path: Path, arguments: str, offline_hub: None
) -> None:
    assert_one_line(run(*arguments.split()), WRONG[arguments])
    assert list(tmp_path.iterdir()) == []  # before any work


@pytest.mark.parametrize("arguments", WRONG_BEHIND_A_GOOD_MODEL)
def test_so_is_what_only_a_look_at_the_assets_shows(
    run: Run, tmp_path: Path, arguments: str, offline_hub: None, packaged: None
) -> None:
    assert_one_line(run(*arguments.split()), WRONG_BEHIND_A_GOOD_MODEL[arguments])
    assert list(tmp_path.iterdir()) == []


def test_a_run_for_wandb_needs_a_login_first(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packaged: None
) -> None:
    asked: list[dict[str, object]] = []
    known = False

    def login(**how: object) -> bool:
        asked.append(how)
        return known

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr("wandb.login", login)
    monkeypatch.setattr("del_lightning.stages.codec.run", lambda workspace: None)
    online = ("stage=codec", "experiment=quickstart", "logger=wandb", "logger.mode=online")
    assert_one_line(run(*online), "`logger.mode` must be offline unless W&B knows you: run `wandb login` or set")
    assert list(tmp_path.iterdir()) == []
    assert all(how == {"prompt": False, "verify": False} for how in asked)
    known = True
    assert run(*online)[0] == 0
    count = len(asked)
    assert run(*online[:-1])[0] == run("stage=codec", "experiment=quickstart", "logger.mode=online")[0] == 0
    assert len(asked) == count  # nothing leaves the machine, so nobody need be known


def assert_one_line(done: tuple[int, str, str], expected: str) -> None:
    code, output, error = done
    assert code == USER_ERROR
    assert output == ""
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert error.endswith("\n")
    assert expected in error


@pytest.fixture
def packaged() -> None:
    """The assets that a default run needs."""
    for name in ("smollm2-135m-instruct", "all-minilm-l6-v2", "lee.cor"):
        try:
            packaged_path(name)
        except AssetError as error:
            pytest.skip(str(error))


def test_a_good_command_line_reaches_its_stage(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packaged: None
) -> None:
    seen: list[Workspace] = []
    monkeypatch.setattr("del_lightning.stages.codec.run", seen.append)
    code, _, error = run("stage=codec", "experiment=quickstart", "mechanism.bits=3", "out=elsewhere")
    assert (code, error) == (0, "")
    (workspace,) = seen
    assert workspace.config.mechanism.bits == 3
    assert workspace.config.title == "DEL quick start"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ((), [f"DEL quick start, experiment=quickstart, mechanism.bits={bits}" for bits in (2, 4)]),
        (("title=Mine",), [f"Mine, experiment=quickstart, mechanism.bits={bits}" for bits in (2, 4)]),
        (("title=${mechanism.bits} bits",), ["2 bits", "4 bits"]),
        (('title="Job ${hydra:job.num}"',), ["Job 0", "Job 1"]),
    ],
)
def test_every_job_of_a_multirun_has_a_title_of_its_own(
    run: Run, monkeypatch: pytest.MonkeyPatch, packaged: None, title: tuple[str, ...], expected: list[str]
) -> None:
    seen: list[Workspace] = []
    monkeypatch.setattr("del_lightning.stages.checks.check", lambda workspace: None)
    monkeypatch.setattr("del_lightning.stages.pipeline.run", seen.append)
    assert run("-m", "experiment=quickstart", "mechanism.bits=2,4", "out=runs", *title)[0] == 0
    assert [workspace.config.title for workspace in seen] == expected
    assert run("experiment=quickstart", "mechanism.bits=2")[0] == 0
    assert seen[-1].config.title == "DEL quick start"


WRONG_JOBS = {
    "mechanism.bits=1,4,40": "error: job mechanism.bits=40: `mechanism.bits` must be between 1 and 8, got 40\n",
    "mechanism.bits=1,x seed=1": "error: job mechanism.bits=x: Value 'x' of type 'str' could not be converted to",
    "model=smollm2,nope": "error: job model=nope: `model=nope` is unknown; choose one of: gemma3, hub,",
    "mechanism.bits=9 seed=1,2": "error: job seed=1: `mechanism.bits` must be between 1 and 8, got 9\n",
    "stage=account seed=1,2 mechanism.mu=4 codec.dim=18,${nope}": "error: job seed=1 codec.dim=$\\{nope\\}: Int",
    "data.name=lee,ptb data.root=/nope": "error: job data.name=ptb: `data.root` must be an existing folder, got '/nope",
    "out=runs,/proc/nope": "error: job out=/proc/nope: `out` must be a folder that can be written, got '/proc/nope'",
    "stage=account codec.dim=18 mechanism.mu=4 trainer.num_nodes=1,2": "error: job trainer.num_nodes=2: `trainer.",
    # Of a job for another machine the settings alone: what they name may be there.
    "hydra/launcher=submitit_slurm data.root=/nope targets=[0.1],[1.0]": "error: job targets=[1.0]: `targets` must be",
}


@pytest.mark.parametrize("arguments", WRONG_JOBS)
def test_every_job_of_a_multirun_is_looked_at_before_the_first_starts(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, packaged: None, offline_hub: None
) -> None:
    if "submitit" in arguments:
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    monkeypatch.setattr("hydra.utils.get_method", lambda target: lambda workspace: (tmp_path / "began").touch())
    code, output, error = run("-m", "codec.corpus=lee", *arguments.split())
    assert (code, output, error.count("\n")) == (USER_ERROR, "", 1)
    assert error.startswith(WRONG_JOBS[arguments])
    assert list(tmp_path.iterdir()) == []


def test_settings_may_read_what_only_a_running_job_knows(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Workspace] = []
    monkeypatch.setattr("hydra.utils.get_method", lambda target: seen.append)
    own = ("out=${hydra:job.num}", "hydra.sweep.dir=jobs", 'title="${hydra:runtime.output_dir}"')
    assert run("-m", "stage=account", "codec.dim=18", "mechanism.mu=10,20", *own)[0::2] == (0, "")
    assert [workspace.config.out for workspace in seen] == ["0", "1"]
    assert [Path(workspace.config.title).name for workspace in seen] == ["0", "1"]


def test_another_rank_leaves_that_look_to_the_first(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("del_lightning.multirun._check", lambda config: pytest.fail("looked again"))
    monkeypatch.setattr("hydra.utils.get_method", lambda target: lambda workspace: None)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert run("-m", "stage=account", "codec.dim=18", "mechanism.mu=10,20")[0] == 0


def test_an_interruption_of_that_look_is_one_line_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("del_lightning.multirun.config_of", interrupted)
    said = "interrupted: the same command goes on from what is done\n"
    assert run("-m", "seed=1,2") == (INTERRUPTED, "", said)


def test_a_report_of_a_long_title_has_a_folder_too() -> None:
    first, second = (slug_of(f"{'methods ' * 60}{number}") for number in (1, 2))
    assert first != second
    assert max(len(first), len(second)) <= LONGEST_SLUG
    assert slug_of("DEL, mechanism.bits=2") == "del--mechanism-bits-2"


def test_an_error_in_the_middle_of_a_stage_is_one_line_too(
    run: Run, monkeypatch: pytest.MonkeyPatch, packaged: None
) -> None:
    def fail(workspace: Workspace) -> None:
        raise DataError("`data.name` 'lee' ran out of text")

    monkeypatch.setattr("del_lightning.stages.codec.run", fail)
    code, output, error = run("stage=codec", "experiment=quickstart")
    assert (code, error) == (2, "error: `data.name` 'lee' ran out of text\n")
    assert output.startswith("memory: ")  # Said before the work starts; nothing else is.
    assert output.count("memory") == 1


def test_a_model_whose_memory_cannot_be_worked_out_runs_without_a_plan(
    run: Run, monkeypatch: pytest.MonkeyPatch, packaged: None
) -> None:
    def fail(*_: object) -> None:
        raise IndexError("no such layer")

    began: list[Workspace] = []
    monkeypatch.setattr("del_lightning.memory.plan", fail)
    monkeypatch.setattr("del_lightning.stages.codec.run", began.append)
    code, output, error = run("stage=codec", "experiment=quickstart")
    assert (code, error, len(began)) == (0, "", 1)
    assert " ".join(output.split()).startswith(
        "memory: not known for smollm2-135m-instruct before it is loaded (no such"
    )


def test_a_defect_of_ours_is_not_hidden(run: Run, monkeypatch: pytest.MonkeyPatch, packaged: None) -> None:
    def fail(workspace: Workspace) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("del_lightning.stages.codec.run", fail)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run("stage=codec", "experiment=quickstart")


def test_help_is_two_screens_that_say_where_to_go_on(run: Run) -> None:
    code, output, error = run("--help")
    assert (code, error) == (0, "")
    assert output.count("\n") <= 80
    assert max(map(len, output.splitlines())) <= 125
    for stage in STAGES:
        assert f"\n  {stage} " in output
    assert "experiment/paper: cnn_dailymail, mrpc, nlu, ptb, qqp, sst2, wikitext2" in output
    assert "bits: 4" not in output  # that is in --cfg job
    commands = [line.strip() for line in output.splitlines() if line.startswith("  python -m del_lightning ")]
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert len(commands) >= 5
    for one in commands:
        arguments = one.partition("  ")[0].removeprefix("python -m del_lightning ")
        assert arguments == "--cfg job" or arguments in readme, arguments
    assert "--cfg job" in output
    assert "del_lightning/config/" in output
    settings = run("--cfg", "job")
    assert (settings[0], settings[2]) == (0, "")
    assert "bits: 4" in settings[1]


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "0"}
    return subprocess.run(
        [sys.executable, "-m", "del_lightning", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("mechanism.bits=9", "`mechanism.bits` must be between 1 and 8, got 9"),
        ("mechanism.bit=4", "`mechanism.bit` is not a setting"),
        ("model=nope", "`model=nope` is unknown"),
    ],
)
def test_the_same_from_a_shell(tmp_path: Path, arguments: str, expected: str) -> None:
    done = command(*arguments.split(), cwd=tmp_path)
    assert done.returncode == USER_ERROR
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert expected in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_unreachable_hub_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: refused at once
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    (tmp_path / "here").mkdir()
    done = command("model.name=org/none", cwd=tmp_path / "here")
    assert done.returncode == USER_ERROR
    assert done.stderr.count("\n") == 1
    assert "`model.name` 'org/none'" in done.stderr
    assert "cannot be reached" in done.stderr
    assert list((tmp_path / "here").iterdir()) == []


def test_help_from_a_shell_needs_no_torch(tmp_path: Path) -> None:
    code = "import sys; from del_lightning.__main__ import main; sys.argv = ['x', '--help']\n"
    code += "try:\n    main()\nfinally:\n    print('torch' in sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert "Stages (each builds what it needs" in done.stdout
    assert done.stderr == "False\n"
