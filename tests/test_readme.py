import runpy
from pathlib import Path

import pytest

from tests.report.factory import attacked, make_board, make_large_board
from tests.report.test_nlu import board as nlu_board

ROOT = Path(__file__).parents[1]


def test_readme_quotes_the_committed_results() -> None:
    readme = runpy.run_path(str(ROOT / "benchmarks" / "_readme.py"))
    section = readme["section"]()
    if not section:
        pytest.skip("no leaderboard is committed under benchmarks/results")
    assert section in (ROOT / "README.md").read_text(encoding="utf-8")
    assert (ROOT / "benchmarks" / "results" / "README.md").read_text(encoding="utf-8") == readme["page"]()
    assert readme["del_plus"]() in (ROOT / "docs" / "del_plus.md").read_text(encoding="utf-8")
    pictures = readme["drawn"]()
    assert pictures
    for path, picture in pictures.items():
        assert path.read_text(encoding="utf-8") == picture
        assert f"({path.relative_to(ROOT).as_posix()})" in section


def test_tables_of_many_methods_keep_to_what_is_compared() -> None:
    readme = runpy.run_path(str(ROOT / "benchmarks" / "_readme.py"))
    board = make_large_board()
    table = readme["_table"](board, readme["_entries"](board), short=False)
    lines = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(lines) == len(set(lines))
    assert [line for line in lines if line.startswith("DEL,")] == [
        f"DEL, {kind} {target:g}" for kind in ("ASR", "worst ASR") for target in (0.02, 0.1, 0.15)
    ]
    assert "Metric-DP, worst ASR 0.1" in lines
    assert "Metric-DP, ASR 0.02" not in lines
    assert "inside the noise: " in table
    assert "η\u00a0=\u00a0192, see its caveat" in table
    small = make_board()
    assert "NLL − DEL" not in readme["_table"](small, readme["_entries"](small), short=False)  # nothing was compared


def test_readme_quotes_one_target() -> None:
    readme = runpy.run_path(str(ROOT / "benchmarks" / "_readme.py"))
    board = make_large_board()
    lines = readme["_table"](board, readme["_quoted"](board), short=True).splitlines()
    names = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")][2:]
    tested = [name for name in names if ", " in name]
    assert tested[0] == "DEL, ASR 0.1"
    assert all(name.endswith("worst ASR 0.1") for name in tested[1:])
    assert "COH" not in lines[2]


def test_attack_table_keeps_to_calibrated_settings() -> None:
    readme = runpy.run_path(str(ROOT / "benchmarks" / "_readme.py"))
    board = make_board(attacked=[attacked("DEL, ASR 0.1", 0.1, 0.19, 0.26), attacked("DEL", 0.2, 0.3, None)])
    table = readme["attack_table"](board)
    assert [line.split(" | ")[0] for line in table.splitlines()][4:] == ["| DEL, ASR 0.1"]
    assert "+9.0 [+8.0,\u00a0+10.0]" in table


def test_committed_results_name_no_folder_of_a_machine() -> None:
    for path in (ROOT / "benchmarks" / "results").rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert '"/' not in text, f"{path.name} holds an absolute path"


def test_glue_has_its_sentence_and_tables_with_the_tasks_own_figure() -> None:
    readme = runpy.run_path(str(ROOT / "benchmarks" / "_readme.py"))
    board = nlu_board()
    readme["section"].__globals__.update(boards=list, tasks=lambda: [board])
    section = readme["section"]()
    private = [row for row in board.rows if row.method in ("del", "gaussian-code", "metric-dp")]
    above = [r for r in private if min(r.over_seeds["auc"].low or 0, r.over_examples["auc"].low or 0) > 0.5]
    assert section.startswith("**GLUE.** Classifying text behind every front-end")
    assert f"{len(above)} of {len(private)} private rows are above what the length of the text alone gives" in section
    summary = [line for line in section.splitlines() if line.startswith("| ")]
    assert {line.count("|") for line in summary} == {9}
    assert len(summary) == 2 + len({row.variant for row in private})
    assert all(line.startswith("| mrpc | ") for line in summary[2:])
    table = readme["nlu_table"](board)
    headings = next(line for line in table.splitlines() if line.startswith("| front-end"))
    for figure in ("Accuracy", "F1", "AUC"):
        assert f"End to end, soft prompt: {figure}" in headings
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert {line.count("|") for line in rows} == {headings.count("|")}
