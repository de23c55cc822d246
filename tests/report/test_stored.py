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


def test_measured_figures_keep_seven_digits_and_everything_else_all() -> None:
    estimate = {"value": 0.123456789012, "n": 123456789, "low": -0.00001234567891, "high": None, "interval": "none"}
    content = {
        "value": 0.123456789012,
        "asr": {"x": estimate},
        "name": "0.123456789012",
        "history": [{"a": 1.23456789}],
    }
    assert rounded(content) == {
        "value": 0.123456789012,
        "asr": {"x": {**estimate, "value": 0.1234568, "low": -1.234568e-05}},
        "name": "0.123456789012",
        "history": [{"a": 1.234568}],
    }
    assert math.isinf(rounded(math.inf, measured=True))


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


def test_what_pairs_two_boards_is_kept_and_no_empty_list_of_it(tmp_path: Path) -> None:
    board = make_board()
    write_board(tmp_path / "old.json", board)
    old = json.loads((tmp_path / "old.json").read_text())
    assert "reference_tokens" not in old
    assert not any("nll_by_prompt" in row for row in old["rows"])
    board.rows[-1].nll_by_prompt = [1.23456789]
    board.reference_tokens = [48]
    write_board(tmp_path / "new.json", board)
    again = Leaderboard.model_validate_json((tmp_path / "new.json").read_text())
    assert (again.rows[-1].nll_by_prompt, again.reference_tokens) == ([1.234568], [48])


def test_settings_and_guarantees_are_exact(tmp_path: Path) -> None:
    board = make_board()
    board.config["prompt"] = {"learning_rate": 0.123456789012}
    board.rows[-1].value = 12.3456789012345
    write_board(tmp_path / "leaderboard.json", board)
    again = Leaderboard.model_validate_json((tmp_path / "leaderboard.json").read_text())
    assert again.config == board.config
    assert again.rows[-1].value == 12.3456789012345
    assert [row.privacy for row in again.rows] == [row.privacy for row in board.rows]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: str(path.relative_to(RESULTS)))
def test_committed_leaderboards_are_as_written_and_small(path: Path, tmp_path: Path) -> None:
    (run,) = load([str(path)]).runs
    write_board(tmp_path / "again.json", run.board)
    assert (tmp_path / "again.json").read_text() == path.read_text()
    assert path.stat().st_size < 2**20
