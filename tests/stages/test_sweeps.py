"""The files for `wandb sweep`: accepted by W&B's own tools, runnable at every corner, and run once end to end.

There is no W&B server here: `wandb sweep` and `wandb agent` are the real ones, what they talk to is a local fake.
"""

import itertools
import json
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from wandb.apis.public.sweeps import _validate_config_and_fill_distribution
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from del_lightning import sweeps
from del_lightning.config import Config, LoggerConfig, config_folder, register_schemas
from del_lightning.report import cautions
from del_lightning.report.schema import Estimate, Leaderboard
from del_lightning.stages import tracking
from tests.stages.small import small
from tests.stages.wandb_server import FakeServer, RunFile, fake_server

ROOT = Path(__file__).parents[2]
FILES = sorted((config_folder() / "sweep").glob("*.yaml"))
NAMES = [file.stem for file in FILES]

KEYS = {"program", "project", "name", "description", "method", "metric", "command", "parameters"}
DISTRIBUTIONS = {"uniform": float, "log_uniform_values": float, "int_uniform": int}


def load(file: Path) -> dict[str, Any]:
    return cast(dict[str, Any], yaml.safe_load(file.read_text(encoding="utf-8")))


def values(parameter: dict[str, Any]) -> list[Any]:
    """Both ends of a parameter's numbers, or all of its words."""
    choices = parameter.get("values") or [parameter["min"], parameter["max"]]
    return choices if isinstance(choices[0], str) else [min(choices), max(choices)]


def corners(sweep: dict[str, Any]) -> Iterator[dict[str, Any]]:
    names = list(sweep["parameters"])
    for draw in itertools.product(*(values(sweep["parameters"][name]) for name in names)):
        yield dict(zip(names, draw, strict=True))


def covering(sweep: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A few corners in which every value stands at least once; composing all of them takes long."""
    choices = {name: values(parameter) for name, parameter in sweep["parameters"].items()}
    for number in range(max(map(len, choices.values()))):
        yield {name: found[number % len(found)] for name, found in choices.items()}


def agent_arguments(sweep: dict[str, Any], draw: dict[str, Any]) -> list[str]:
    """What an agent would run behind `python -m del_lightning`, expanded as `wandb_agent.Agent` does."""
    arguments = create_sweep_command_args({"args": {name: {"value": value} for name, value in draw.items()}})
    filled = {**arguments, "env": ["/usr/bin/env"], "interpreter": ["python"]}
    command: list[str] = []
    for chunk in create_sweep_command(list(sweep["command"])):
        command += filled[chunk[2:-1]] if chunk.startswith("${") and chunk.endswith("}") else [chunk]
    assert command[:4] == ["/usr/bin/env", "python", "-m", "del_lightning"]
    return command[4:]


@pytest.fixture(scope="module")
def composed() -> Iterator[Callable[[list[str]], Config]]:
    """What a command line hands to a stage."""
    register_schemas()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        yield lambda overrides: cast(Config, OmegaConf.to_object(compose("config", overrides)))


def test_there_is_a_search_and_a_grid() -> None:
    assert {load(file)["method"] for file in FILES} == {"bayes", "grid"}
    searched, grid = (load(file)["parameters"] for file in FILES)
    assert set(searched) == {"prompt.learning_rate", "prompt.virtual_tokens", "mechanism.bits", "mechanism.mu"}
    assert set(grid) == {"methods", "targets"}


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_a_file_is_what_wandb_takes(file: Path) -> None:
    """The rules of W&B's schema that concern these files; the server checks no more than that."""
    sweep = load(file)
    assert set(sweep) == KEYS
    assert set(sweep["metric"]) == {"name", "goal"}
    assert sweep["metric"]["goal"] in ("minimize", "maximize")
    assert sweep["project"] == LoggerConfig().project
    assert all(isinstance(chunk, str) for chunk in sweep["command"])
    for name, parameter in sweep["parameters"].items():
        assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", name)
        if "values" in parameter:
            assert set(parameter) == {"values"}
            assert all(type(value) in (int, float, str) for value in parameter["values"])
        else:
            assert set(parameter) == {"distribution", "min", "max"}
            kind = DISTRIBUTIONS[parameter["distribution"]]
            assert (type(parameter["min"]), type(parameter["max"])) == (kind, kind)
            assert 0 < parameter["min"] < parameter["max"]
    # What `wandb sweep` itself does before it uploads: nothing is left for it to guess.
    assert _validate_config_and_fill_distribution(sweep) == sweep


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_no_setting_reaches_the_program_as_none(file: Path) -> None:
    """An agent formats values as Python does, and Hydra takes None for a word: a null must be the text "null"."""
    parameters = load(file)["parameters"].values()
    assert all(None not in (*parameter.get("values", []), parameter.get("value", 0)) for parameter in parameters)


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_every_value_composes(file: Path, composed: Callable[[list[str]], Config]) -> None:
    sweep = load(file)
    for draw in covering(sweep):
        config = composed(agent_arguments(sweep, draw))
        assert (config.stage.name, config.logger.kind, config.logger.mode) == ("pipeline", "wandb", "online")
        assert {"clean", "mean"} < set(config.methods)
        assert config.title.startswith("Sweep run ")
        for name, value in draw.items():
            found = OmegaConf.select(OmegaConf.structured(config), name)
            text = str(found).replace("'", "").replace(" ", "")
            assert text == str(value)


@pytest.mark.parametrize("value", [1e-05, 0.0031622776601683795, 1e-3, 5])
def test_any_number_that_python_prints_is_read_back(value: float, composed: Callable[[list[str]], Config]) -> None:
    arguments = create_sweep_command_args({"args": {"prompt.learning_rate": {"value": value}}})
    assert composed(arguments["args_no_hyphens"]).prompt.learning_rate == value


def jobs(line: str) -> list[list[str]]:
    """The overrides of every job of a `python -m del_lightning -m ...` line, as Hydra's own sweeper makes them."""
    words = shlex.split(line)
    assert words[:4] == ["python", "-m", "del_lightning", "-m"]
    parsed = OverridesParser.create().parse_overrides(words[4:])
    return [job for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]


def multirun_lines() -> list[str]:
    text = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8").replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.startswith("python -m del_lightning -m ")]


def shared(overrides: list[str]) -> frozenset[str]:
    """What of a command line decides the numbers: all but the default stage, the report's title and the logger."""
    return frozenset(one for one in overrides if one.split("=")[0] not in ("stage", "title", "logger", "logger.mode"))


def test_the_documented_multirun_is_the_grid() -> None:
    (sweep,) = (load(file) for file in FILES if load(file)["method"] == "grid")
    ours = [shared(job) for job in jobs(multirun_lines()[0])]
    assert len(ours) == 30
    theirs = [shared(agent_arguments(sweep, draw)) for draw in corners(sweep)]
    assert len(ours) == len(theirs)
    assert set(ours) == set(theirs)


def test_the_other_multirun_stays_within_the_searched_ranges(composed: Callable[[list[str]], Config]) -> None:
    (sweep,) = (load(file) for file in FILES if load(file)["method"] == "bayes")
    fixed = shared(agent_arguments(sweep, {}))
    found = jobs(multirun_lines()[1])
    assert len({shared(job) for job in found}) == 16
    for job in found:
        drawn = dict(one.split("=") for one in shared(job) - fixed)
        assert set(drawn) == set(sweep["parameters"])
        for name, value in drawn.items():
            low, high = values(sweep["parameters"][name])
            assert low <= float(value) <= high
    composed(without_job_number(found[-1]))


def without_job_number(job: list[str]) -> list[str]:
    """Only a running job has one."""
    return [override.replace("${hydra:job.num}", "0") for override in job]


def test_a_title_of_a_job_is_its_own() -> None:
    for line in multirun_lines()[:2]:  # the third makes no report
        assert all('title="Sweep job ${hydra:job.num}"' in job for job in jobs(line))


# --- runs --------------------------------------------------------------------------------------------------------


def environment(folder: Path, **more: str) -> dict[str, str]:
    """A shell in which `python` and `wandb` are those of these tests, and nothing is written outside ``folder``."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    places = {f"WANDB_{name}_DIR": str(folder / name.lower()) for name in ("DATA", "CACHE", "CONFIG")}
    quiet = {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "false", "OMP_NUM_THREADS": "1"}
    home = {"HOME": str(folder), "DEL_LIGHTNING_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return {**kept, "PATH": path, **places, **quiet, **home, **more}


def shell(command: list[str], folder: Path, **more: str) -> str:
    done = subprocess.run(
        command, cwd=folder, env=environment(folder, **more), capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


DRAW = {"mechanism.bits": 2, "mechanism.mu": 41.7, "prompt.learning_rate": 0.0316, "prompt.virtual_tokens": 3}


@pytest.fixture(scope="module")
def swept(model: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[FakeServer, Path]:
    """`wandb sweep conf/sweep/bayes.yaml` and one run of the `wandb agent` line it prints, offline."""
    folder = tmp_path_factory.mktemp("sweep")
    with fake_server() as fake:
        # Behind the file's own command: the later of two equal settings counts.
        fake.draws = [{**DRAW, **small(model, encoder), "logger.mode": "offline"}]
        account = {"WANDB_BASE_URL": fake.url, "WANDB_API_KEY": "0" * 40}
        printed = shell(["wandb", "sweep", str(config_folder() / "sweep" / "bayes.yaml")], folder, **account)
        line = re.sub(r"\x1b\[\d*m", "", printed)
        (agent,) = re.findall(r"Run sweep agent with: (.*)", line)
        output = shell([*shlex.split(agent), "--count", "1"], folder, **account)
    assert "report: " in output, output  # an agent itself ends well, however its run went
    return fake, folder


@pytest.fixture(scope="module")
def record(swept: tuple[FakeServer, Path]) -> RunFile:
    (file,) = (swept[1] / "runs" / "wandb").glob("offline-run-*/run-*.wandb")
    return RunFile.read(file)


@pytest.fixture(scope="module")
def board(swept: tuple[FakeServer, Path]) -> Leaderboard:
    (file,) = (swept[1] / "runs" / "report").glob("*/leaderboard.json")
    return Leaderboard.model_validate_json(file.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_sweep_is_uploaded_as_it_stands(swept: tuple[FakeServer, Path]) -> None:
    fake, _ = swept
    assert yaml.safe_load(fake.sweep) == load(config_folder() / "sweep" / "bayes.yaml")
    assert set(fake.asked) == {"Viewer", "UpsertSweep", "SweepWithRuns", "CreateAgent", "Heartbeat"}


@pytest.mark.slow
def test_the_agent_runs_the_draw(record: RunFile, board: Leaderboard) -> None:
    assert record.exit_code == 0
    for name, value in DRAW.items():
        group, key = name.split(".")
        assert record.config[group][key] == record.config[name] == value  # ours, and the agent's own note
    assert record.config["methods"] == ["clean", "mean", "del"]
    assert board.title == "Sweep run run0"
    assert board.config["mechanism"]["mu"] == 41.7


@pytest.mark.slow
def test_curves_are_kept_with_their_steps(record: RunFile) -> None:
    parts = ("codec", "soft_prompt/clean/control", "soft_prompt/mean/control", "soft_prompt/del/given")
    for part, steps in zip(parts, (2, 4, 4, 4), strict=True):
        losses = [row for row in record.history if f"{part}/train/loss" in row]
        assert [row.get("trainer/global_step") for row in losses] == list(range(steps))
        validated = [row for row in record.history if f"{part}/val/perplexity" in row]
        assert len(validated) == steps // 2
    name = "soft_prompt/del/given/privacy/gdp_mu_token"
    assert [row[name] for row in record.history if name in row] == pytest.approx([41.7] * 4)


@pytest.mark.slow
def test_summary_is_the_leaderboard(record: RunFile, board: Leaderboard) -> None:
    def stored(estimate: Estimate) -> object:
        return pytest.approx(estimate.value, rel=1e-6)  # files round what was measured

    rows = {(row.method, row.soft_prompt): row for row in board.rows}
    ours = rows["del", True]
    where = "leaderboard/del/given/soft_prompt"
    assert record.summary[f"{where}/perplexity"] == stored(ours.perplexity)
    assert record.summary[f"{where}/asr/bayes_optimal"] == stored(ours.asr["Bayes-optimal"])
    assert record.summary[f"{where}/epsilon_token"] == ours.privacy.epsilon_token
    assert record.summary[f"{where}/bits_per_token"] == 8
    assert record.summary["leaderboard/clean/control/plain/perplexity"] == stored(rows["clean", False].perplexity)
    assert record.summary["headline_information_retained"] == stored(ours.retained)


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_the_metric_of_a_sweep_is_one_that_runs_write(file: Path, record: RunFile, board: Leaderboard) -> None:
    assert isinstance(record.summary[load(file)["metric"]["name"]], float)


@pytest.mark.slow
def test_artefacts_wait_for_their_upload(record: RunFile, swept: tuple[FakeServer, Path]) -> None:
    expected = {
        "codec": {"codec.safetensors"},
        "soft-prompt": {"adapter_config.json", "adapter_model.safetensors", "codec.safetensors"},
        "report": {"index.html", "leaderboard.json", "report.md", "texts.json"},
    }
    assert set(record.artifacts) >= set(expected)
    for kind, names in expected.items():
        contents = record.artifacts[kind]["manifest"]["contents"]
        assert {entry["path"] for entry in contents} == names
        for entry in contents:
            assert (swept[1] / entry["local_path"]).stat().st_size == int(entry["size"])
    facts = json.loads(record.artifacts["soft-prompt"]["metadata"])
    assert facts["label"] == "DEL, given value"
    assert facts["metrics"]["val/perplexity"]["value"] > 1


@pytest.mark.slow
def test_multirun_makes_a_report_a_job_and_trains_shared_parts_once(model: Path, encoder: Path, tmp_path: Path) -> None:
    arguments = [f"{name}={value}" for name, value in small(model, encoder).items()]
    arguments += ["methods=[mean,del],[mean,gaussian-code]", "targets=[0.4]", "soft_prompts=[mean]", "logger=none"]
    title = 'title="Sweep job ${hydra:job.num}"'
    shell(["python", "-m", "del_lightning", "-m", "experiment=quickstart", title, *arguments], tmp_path)
    runs = tmp_path / "runs"
    boards = [
        Leaderboard.model_validate_json((runs / "report" / f"sweep-job-{job}" / "leaderboard.json").read_text())
        for job in (0, 1)
    ]
    assert [{row.method for row in board.rows} for board in boards] == [{"mean", "del"}, {"mean", "gaussian-code"}]
    assert len(list((runs / "codec").glob("*/result.json"))) == 1
    assert len(list((runs / "prompt").glob("*/result.json"))) == 1
    assert len(list((runs / "calibrate").glob("*/result.json"))) == 2


def shortened(number: int, folder: Path, model: Path, encoder: Path, **own: str) -> str:
    """One of the documented multiruns with other lists of values and the settings of a run that takes seconds."""
    small_settings = {**small(model, encoder), "logger": "none", "prompt.virtual_tokens": "3"} | own
    kept = [word for word in shlex.split(multirun_lines()[number]) if word.split("=")[0] not in small_settings]
    return shell([*kept, *(f"{name}={value}" for name, value in small_settings.items())], folder)


def board_of_job(folder: Path, job: int) -> Leaderboard:
    file = folder / "runs" / "report" / f"sweep-job-{job}" / "leaderboard.json"
    return Leaderboard.model_validate_json(file.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_documented_grid_runs_and_keeps_what_is_out_of_reach(model: Path, encoder: Path, tmp_path: Path) -> None:
    methods, targets = "[clean,mean,del],[clean,mean,gaussian-code]", "[0.001],[0.4]"
    # A token of a small vocabulary is read by chance more often than one in a thousand.
    printed = shortened(0, tmp_path, model, encoder, methods=methods, targets=targets)
    boards = [board_of_job(tmp_path, job) for job in range(4)]
    absent = [[one.label for one in cautions.out_of_reach(board)] for board in boards]
    assert absent == [["DEL, ASR 0.001"], [], ["Gaussian on the code, ASR 0.001"], []]
    for board, missed in zip(boards, absent, strict=True):
        assert {row.is_control for row in board.rows} == ({True} if missed else {True, False})
        assert len(tracking.headline(board)) == (0 if missed else len(tracking.headline(boards[1])))
        assert [name for name in tracking.leaderboard_metrics(board) if name.startswith("not_reached/")] == (
            [f"not_reached/{tracking.place(board.calibrations[0].method, 'nearest_asr0_1')}"] if missed else []
        )
    last = printed.strip().splitlines()[-1]
    assert re.match(r"best of 4 jobs: headline_\w+ = \S+ with methods=\S+ targets=\[0\.4\]; ", last)
    for missed in absent[0] + absent[2]:
        assert f"{missed} not reached, closest " in last
        assert len(re.findall(f"{missed} +not reached, closest", printed)) == 2  # its own table, and the last line
    merged = shell(["python", "-m", "del_lightning", "stage=report", "report.results=[runs/report]"], tmp_path)
    site = (tmp_path / "runs" / "site" / "index.html").read_text(encoding="utf-8")
    assert "site of 2 runs" in merged  # the targets of a method are one leaderboard
    assert site.count('<td data-sort="" title="no value of its parameter meets the target">not reached') == 2


@pytest.mark.slow
def test_the_documented_search_without_wandb_names_its_best(model: Path, encoder: Path, tmp_path: Path) -> None:
    own = {"prompt.learning_rate": "0.005,0.02", "mechanism.bits": "2", "mechanism.mu": "20"}
    printed = shortened(1, tmp_path, model, encoder, **own)
    metric = load(config_folder() / "sweep" / "bayes.yaml")["metric"]["name"]
    found = [tracking.headline(board_of_job(tmp_path, job))[metric] for job in (0, 1)]
    best = max(found)
    rate = ("0.005", "0.02")[found.index(best)]
    assert printed.strip().splitlines()[-1] == f"best of 2 jobs: {metric} = {best:.4g} with prompt.learning_rate={rate}"


def test_the_line_behind_a_multirun() -> None:
    def outcome(job: int, missed: str = "", **figures: float) -> dict[str, Any]:
        return {
            "overrides": ["a=1", f"title=x{job}", f"b={job}"],
            "figures": figures,
            "missed": [missed] * bool(missed),
        }

    ours, other = sweeps.METRICS
    assert sweeps.line([outcome(0, **{ours: 1.0}), outcome(1, **{ours: 2.0})]) == f"best of 2 jobs: {ours} = 2 with b=1"
    assert sweeps.line([outcome(0, "DEL not reached"), outcome(1, **{other: 0.5})]) == (
        f"best of 2 jobs: {other} = 0.5 with b=1; DEL not reached"
    )
    assert sweeps.line([outcome(0), outcome(1)]).startswith(f"multirun of 2 jobs: none has {ours}")


def test_a_figure_that_is_no_number_is_not_the_best() -> None:
    jobs = [
        {"overrides": [f"a={value}"], "figures": {sweeps.METRICS[0]: value}, "missed": []} for value in (math.nan, 0.5)
    ]
    assert sweeps.line(jobs) == f"best of 2 jobs: {sweeps.METRICS[0]} = 0.5 with a=0.5"


@pytest.fixture
def multirun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DictConfig:
    """Settings of a multirun of one job, whose outcome is there, in a folder with that of another."""
    monkeypatch.setattr(sweeps, "jobs_of", lambda config: [["a=1"]])
    monkeypatch.setattr(sweeps, "to_absolute_path", str)  # which wants a running Hydra
    for job in ("a=1", "a=2"):
        path = sweeps.outcome_path(str(tmp_path), [job])
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"overrides": [job], "figures": {sweeps.METRICS[0]: 1.0}, "missed": []}))
    return OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})


def test_a_multirun_forgets_and_tells_of_its_own_jobs(
    multirun: DictConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweeps.SweepOutcome().on_multirun_end(multirun)
    assert capsys.readouterr().out == f"best of 1 jobs: {sweeps.METRICS[0]} = 1 with a=1\n"
    sweeps.SweepOutcome().on_multirun_start(multirun)
    assert [sweeps.outcome_path(str(tmp_path), [job]).exists() for job in ("a=1", "a=2")] == [False, True]


def test_another_rank_of_a_multirun_neither_forgets_nor_tells(
    multirun: DictConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    sweeps.SweepOutcome().on_multirun_start(multirun)
    sweeps.SweepOutcome().on_multirun_end(multirun)
    assert sweeps.outcome_path(str(tmp_path), ["a=1"]).exists()
    assert capsys.readouterr().out == ""


def test_a_typing_error_in_a_sweep_is_refused(composed: Callable[[list[str]], Config]) -> None:
    sweep = load(FILES[0])
    with pytest.raises(HydraException):
        composed(agent_arguments(sweep, {"mechanism.nu": 3.0}))
    with pytest.raises(HydraException):
        composed(agent_arguments(sweep, {"mechanism.mu": None}))
