import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from del_lightning import artifacts
from del_lightning.artifacts import (
    Artifact,
    ArtifactStore,
    Outcome,
    built_in,
    capture_environment,
    key_of,
    read_result,
    versions,
    write_json,
)
from del_lightning.checkpoints import EXTENSION
from del_lightning.errors import ArtifactError
from del_lightning.report.schema import SCHEMA_VERSION, Estimate, StageResult
from del_lightning.report.tables import environment_rows

LAST, BEST = (f"{name}{EXTENSION}" for name in ("last", "best"))
DETERMINED_BY = {"model": {"fingerprint": "abc"}, "seed": 0}


def store(root: Path) -> ArtifactStore:
    return ArtifactStore(root, {"seed": 0, "out": str(root)})


def nothing(folder: Path) -> Outcome:
    return Outcome()


def test_what_a_kill_left_of_writing_a_file_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    def build(folder: Path) -> Outcome:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                write_json(folder / "entries.json", {})
        assert len([path for path in folder.iterdir() if "entries" in path.name]) == 1
        return Outcome()

    made = store(tmp_path).get("part", DETERMINED_BY, build)
    assert sorted(path.name for path in made.folder.iterdir()) == ["config.yaml", "result.json"]


def test_key_is_stable_and_ignores_the_order_of_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "CODE_VERSION", 1)
    # Written down: a key that moves by accident would orphan every artefact on every disk.
    assert key_of({"a": 1, "b": [0.1, None]}) == "5ff763c764df6936"
    assert key_of({"b": [0.1, None], "a": 1}) == key_of({"a": 1, "b": [0.1, None]})
    assert len(key_of({})) == 16


def test_key_changes_with_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of({"a": 1})
    monkeypatch.setattr(artifacts, "CODE_VERSION", artifacts.CODE_VERSION + 1)
    assert key_of({"a": 1}) != before


@pytest.mark.parametrize(
    "other", [{"a": 2, "b": [0.1]}, {"a": 1, "b": [0.2]}, {"a": 1}, {"a": 1, "b": [0.1], "c": None}, {"a": "1"}]
)
def test_key_changes_with_any_setting(other: dict[str, object]) -> None:
    assert key_of(other) != key_of({"a": 1, "b": [0.1]})


def test_builds_once_and_then_only_reads(tmp_path: Path) -> None:
    folders = []

    def build(folder: Path) -> Outcome:
        folders.append(folder)
        (folder / "weights.bin").write_bytes(b"w")
        return Outcome(metrics={"loss": Estimate(value=1.5, n=3)}, details={"steps": 4}, history=[{"step": 1.0}])

    first = store(tmp_path).get("codec", DETERMINED_BY, build)
    second = store(tmp_path).get("codec", DETERMINED_BY, build)
    assert len(folders) == 1
    assert first == second
    assert first.folder == tmp_path / "codec" / key_of(DETERMINED_BY)
    assert (first.folder / "weights.bin").read_bytes() == b"w"
    assert not folders[0].exists()  # it was built elsewhere and renamed


def test_another_setting_is_another_artefact(tmp_path: Path) -> None:
    one = store(tmp_path).get("codec", {"seed": 0}, nothing)
    two = store(tmp_path).get("codec", {"seed": 1}, nothing)
    three = store(tmp_path).get("prompt", {"seed": 0}, nothing)
    assert len({one.folder, two.folder, three.folder}) == 3


def test_record_holds_what_a_reader_needs(tmp_path: Path) -> None:
    def build(folder: Path) -> Outcome:
        time.sleep(0.05)
        metrics = {"ppl": Estimate(value=float("inf"), n=2), "r": Estimate(value=0.5, n=9, low=0.1, high=0.9)}
        return Outcome(metrics, {"note": "x"}, [{"step": 1.0, "loss": 2.0}])

    result = store(tmp_path).get("codec", DETERMINED_BY, build).result
    assert (result.schema_version, result.stage, result.key) == (SCHEMA_VERSION, "codec", key_of(DETERMINED_BY))
    assert result.determined_by == DETERMINED_BY
    assert result.config == {"seed": 0, "out": str(tmp_path)}
    assert result.metrics["ppl"].value == float("inf")
    assert result.metrics["r"] == Estimate(value=0.5, n=9, low=0.1, high=0.9)
    assert result.history == [{"step": 1.0, "loss": 2.0}]
    assert 0.05 <= result.wall_seconds < 5
    assert result.environment.packages.keys() >= {"torch", "lightning", "transformers"}


def test_record_on_disk_is_plain_json_beside_its_settings(tmp_path: Path) -> None:
    folder = store(tmp_path).get("codec", DETERMINED_BY, nothing).folder
    assert json.loads((folder / "result.json").read_text()).keys() == StageResult.model_fields.keys()
    assert "seed: 0" in (folder / "config.yaml").read_text()


def test_a_failed_build_leaves_nothing_finished_and_its_files_to_the_next_attempt(tmp_path: Path) -> None:
    def fail(folder: Path) -> Outcome:
        (folder / LAST).write_text("half way")
        raise KeyboardInterrupt

    def finish(folder: Path) -> Outcome:
        assert (folder / LAST).read_text() == "half way"
        (folder / "weights.bin").touch()
        return Outcome()

    with pytest.raises(KeyboardInterrupt):
        store(tmp_path).get("prompt", DETERMINED_BY, fail)
    finished = tmp_path / "prompt" / key_of(DETERMINED_BY)
    assert not finished.exists()
    with pytest.raises(ArtifactError, match=r"no result\.json"):
        read_result(finished)
    folder = store(tmp_path).get("prompt", DETERMINED_BY, finish).folder
    assert {file.name for file in folder.iterdir()} == {"weights.bin", "result.json", "config.yaml"}
    assert [path.name for path in (tmp_path / "prompt").iterdir() if path.is_dir()] == [folder.name]


@pytest.mark.parametrize("left", [[LAST, BEST, "seconds.txt"], [LAST], []])
def test_a_kill_between_the_record_and_the_rename_costs_nothing(tmp_path: Path, left: list[str]) -> None:
    folder = store(tmp_path).get("prompt", DETERMINED_BY, nothing).folder
    folder.rename(folder.with_suffix(".partial"))
    for name in left:
        (folder.with_suffix(".partial") / name).touch()

    def never(folder: Path) -> Outcome:
        raise AssertionError("built again")

    assert store(tmp_path).get("prompt", DETERMINED_BY, never).folder == folder
    assert {file.name for file in folder.iterdir()} == {"result.json", "config.yaml"}


def test_time_of_interrupted_attempts_is_added(tmp_path: Path) -> None:
    def build(folder: Path) -> Outcome:
        (folder / "seconds.txt").write_text("120.5\n")
        return Outcome()

    artifact = store(tmp_path).get("prompt", DETERMINED_BY, build)
    assert 120.5 <= artifact.result.wall_seconds < 125
    assert not (artifact.folder / "seconds.txt").exists()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [("{", "does not fit"), ('{"stage": "codec"}', "does not fit"), ("", "does not fit")],
    ids=["cut", "incomplete", "empty"],
)
def test_a_damaged_record_is_reported_in_one_line(tmp_path: Path, content: str, complaint: str) -> None:
    folder = store(tmp_path).get("codec", DETERMINED_BY, nothing).folder
    (folder / "result.json").write_text(content)
    with pytest.raises(ArtifactError, match=complaint) as caught:
        store(tmp_path).get("codec", DETERMINED_BY, nothing)
    assert str(folder / "result.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_fields_of_a_record_are_refused(tmp_path: Path) -> None:
    path = store(tmp_path).get("codec", DETERMINED_BY, nothing).folder / "result.json"
    write_json(path, json.loads(path.read_text()) | {"colour": "blue"})
    with pytest.raises(ArtifactError, match="colour"):
        read_result(path.parent)


def test_writing_replaces_the_whole_file_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": list(range(100))})
    write_json(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_two_threads_build_once(tmp_path: Path) -> None:
    builds, results = [], []

    def build(folder: Path) -> Outcome:
        builds.append(folder)
        time.sleep(0.2)
        return Outcome(details={"build": len(builds)})

    threads = [
        threading.Thread(target=lambda: results.append(store(tmp_path).get("codec", DETERMINED_BY, build)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert len(builds) == 1
    assert [artifact.result.details for artifact in results] == [{"build": 1}, {"build": 1}]


BUILD_SLOWLY = """
import sys, time
from pathlib import Path
from del_lightning import artifacts
from del_lightning.artifacts import ArtifactStore, Outcome

def build(folder):
    with (folder.parent / "builds.txt").open("a") as log:
        log.write("built\\n")
    time.sleep(1)
    return Outcome()

root = Path(sys.argv[1])
(root / sys.argv[2]).touch()
while len(list(root.glob("ready-*"))) < 2:
    time.sleep(0.01)
ArtifactStore(root, {}).get("codec", {"seed": 0}, build)
"""


def test_two_processes_build_once(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", BUILD_SLOWLY, tmp_path, f"ready-{i}"], cwd=Path(__file__).parents[1])
        for i in range(2)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    assert (tmp_path / "codec" / "builds.txt").read_text() == "built\n"


def test_environment_describes_this_process() -> None:
    environment = capture_environment()
    assert environment.cores >= 1
    assert environment.memory_gib > 0
    assert environment.instructions
    assert environment.instructions in dict(environment_rows(environment))["Processor"]
    earlier = environment.model_copy(update={"instructions": None})
    assert dict(environment_rows(earlier))["Processor"] == f"{environment.processor}, {environment.cores} cores"
    assert (environment.revision is None) == (environment.dirty is None)


def test_a_report_says_that_its_parts_are_of_different_versions(tmp_path: Path) -> None:
    def built(name: str, revision: str | None, started: str) -> Artifact:
        made = store(tmp_path).get("stage", {"name": name}, nothing)
        environment = capture_environment().model_copy(update={"revision": revision})
        update = {"environment": environment, "started": started}
        return Artifact(made.folder, made.result.model_copy(update=update))

    first, second = built("a", "a" * 40, "2026-01-02"), built("b", "b" * 40, "2026-01-01")
    assert versions([first, built("c", "a" * 40, "2026-01-03")]) == ""
    said = versions([first, first, second, built("c", "a" * 40, "2026-01-03")])
    assert said.endswith("oldest first: 1 from revision bbbbbbb, 2 from revision aaaaaaa.")


def test_a_report_names_the_machine_of_its_runs_and_not_its_own(tmp_path: Path) -> None:
    def built(name: str, accelerator: str | None, seconds: float, dirty: bool, started: str) -> Artifact:
        made = store(tmp_path).get("stage", {"name": name}, nothing)
        environment = capture_environment().model_copy(update={"accelerator": accelerator, "dirty": dirty})
        update = {"environment": environment, "wall_seconds": seconds, "started": started}
        return Artifact(made.folder, made.result.model_copy(update=update))

    trained, attacked = built("a", "H100", 60.0, False, "2026-01-01"), built("b", None, 5.0, False, "2026-01-02")
    assert built_in([trained, attacked]).accelerator == "H100"
    assert built_in([trained, attacked]).dirty is False
    assert built_in([trained, built("c", None, 90.0, True, "2025-01-01")]).accelerator is None
    assert built_in([trained, built("c", None, 1.0, True, "2025-01-01")]).dirty is True  # one is enough
