import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_readme_quotes_the_committed_results() -> None:
    readme = runpy.run_path(str(ROOT / "benchmarks" / "_readme.py"))
    section = readme["section"]()
    if not section:
        pytest.skip("no leaderboard is committed under benchmarks/results")
    assert section in (ROOT / "README.md").read_text(encoding="utf-8")


def test_committed_results_name_no_folder_of_a_machine() -> None:
    for path in (ROOT / "benchmarks" / "results").rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert '"/' not in text, f"{path.name} holds an absolute path"
