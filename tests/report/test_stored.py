import json
import math
from pathlib import Path

import pytest

from del_lightning.report.schema import Leaderboard
from del_lightning.report.site import load
from del_lightning.report.stored import DIGITS, rounded, write_board
from tests.report.factory import make_board

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
COMMITTED = sorted(path for name in ("leaderboard", "attacks", "transfer") for path in RESULTS.rglob(f"{name}.json"))


def test_figures_keep_seven_digits_and_everything_else_all() -> None:
    content = {
        "a": 0.123456789012,
        "b": [123456789, -0.00001234567891],
        "c": "0.123456789012",
        "d": math.inf,
        "e": None,
    }
    found = rounded(content)
    assert found == {"a": 0.1234568, "b": [123456789, -1.234568e-05], "c": "0.123456789012", "d": math.inf, "e": None}
    assert isinstance(found["b"][0], int)


def test_a_stored_board_reads_back(tmp_path: Path) -> None:
    board = make_board()
    write_board(tmp_path / "leaderboard.json", board)
    again = Leaderboard.model_validate_json((tmp_path / "leaderboard.json").read_text())
    assert again.config == board.config
    assert again.rows[-1].perplexity is not None
    assert board.rows[-1].perplexity is not None
    assert again.rows[-1].perplexity.value == pytest.approx(board.rows[-1].perplexity.value, rel=10 ** (1 - DIGITS))
    assert any(math.isinf(row.communication.ratio_fp32) for row in again.rows)
    lines = (tmp_path / "leaderboard.json").read_text().splitlines()
    assert sum(line.startswith('{"method":') for line in lines) >= len(board.rows)  # a row a line


def test_the_configuration_is_exact(tmp_path: Path) -> None:
    board = make_board()
    board.config["prompt"] = {"learning_rate": 0.123456789012}
    write_board(tmp_path / "leaderboard.json", board)
    assert json.loads((tmp_path / "leaderboard.json").read_text())["config"] == board.config


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: str(path.relative_to(RESULTS)))
def test_committed_leaderboards_are_as_written_and_small(path: Path, tmp_path: Path) -> None:
    (run,) = load([str(path)]).runs
    write_board(tmp_path / "again.json", run.board)
    assert (tmp_path / "again.json").read_text() == path.read_text()
    assert path.stat().st_size < 2**20
