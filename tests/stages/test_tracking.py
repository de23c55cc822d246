import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from del_lightning.report.schema import Estimate, Leaderboard
from del_lightning.stages.tracking import headline, leaderboard_metrics, level, nlu_metrics, place, word
from tests.report.factory import make_board, make_large_board
from tests.report.test_nlu import board as nlu_board


@pytest.mark.parametrize(
    ("matching", "target", "is_control", "expected"),
    [
        ("nearest", 0.1, False, "nearest_asr10"),
        ("worst", 0.02, False, "worst_asr2"),
        ("guarantee", 0.07, False, "guarantee_asr7"),
        ("nearest", 0.015, False, "nearest_asr1_5"),
        (None, None, False, "given"),
        (None, None, True, "control"),
    ],
)
def test_levels_say_what_set_the_parameter(
    matching: str | None, target: float | None, is_control: bool, expected: str
) -> None:
    assert level(matching, target, is_control=is_control) == expected


def test_words_hold_what_trackers_sort_by() -> None:
    assert word("LM prior, sequence") == "lm_prior_sequence"
    assert word("nearest neighbour (cosine)") == "nearest_neighbour_cosine"
    assert place("gaussian-code-nbit", "given", 2) == "gaussian_code_nbit_2/given"


@pytest.mark.parametrize("board", [make_board(), make_large_board()], ids=["small", "large"])
def test_every_row_has_its_figures_under_a_name_of_its_own(board: Leaderboard) -> None:
    metrics = leaderboard_metrics(board)
    assert all(re.fullmatch(r"[a-z_][a-z0-9_/]*", name) for name in metrics)
    assert all(math.isfinite(value) for value in metrics.values())
    bits = [name for name in metrics if name.startswith("leaderboard/") and name.endswith("/bits_per_token")]
    assert len(bits) == len(board.rows)


def test_figures_are_those_of_the_row() -> None:
    board = make_board()
    metrics = leaderboard_metrics(board)
    row = next(row for row in board.rows if (row.target, row.soft_prompt) == (0.1, True))
    where = "leaderboard/del/nearest_asr10/soft_prompt"
    assert row.perplexity is not None
    assert row.retained is not None
    assert metrics[f"{where}/perplexity"] == row.perplexity.value
    assert metrics[f"{where}/information_retained"] == row.retained.value
    assert metrics[f"{where}/asr/nearest_neighbour_cosine"] == row.asr["nearest neighbour (cosine)"].value
    assert metrics[f"{where}/epsilon_sequence"] == row.privacy.epsilon_sequence
    assert metrics["leaderboard/clean/control/plain/agreement"] == 22 / 25.4


def test_a_run_with_one_private_front_end_has_a_headline() -> None:
    board = make_board()
    assert headline(board) == {}  # two targets
    one = board.model_copy(update={"rows": [row for row in board.rows if row.is_control or row.target == 0.1]})
    row = next(row for row in one.rows if row.target == 0.1 and row.soft_prompt)
    found = headline(one)
    assert all(re.fullmatch(r"[a-z_][a-z0-9_]*", name) for name in found)  # no slash: W&B's strictest rule
    assert row.perplexity is not None
    assert row.retained is not None
    assert found["headline_perplexity"] == row.perplexity.value
    worst = max(rate.value for rate in row.asr.values())
    assert found["headline_retained_minus_asr_worst"] == row.retained.value - worst
    controls = board.model_copy(update={"rows": [row for row in board.rows if row.is_control]})
    assert headline(controls) == {}


def test_an_undefined_figure_is_left_out() -> None:
    board = make_board()
    row = next(row for row in board.rows if row.target == 0.1 and row.soft_prompt)
    undefined = row.model_copy(update={"retained": Estimate(value=math.nan, n=3), "perplexity": None})
    found = headline(board.model_copy(update={"rows": [undefined]}))
    assert not {name for name in found if "retained" in name or "perplexity" in name}
    assert "headline_coherence" in found


def test_classification_is_named_by_the_same_scheme() -> None:
    board = nlu_board()
    metrics = nlu_metrics(board)
    assert all(re.fullmatch(r"[a-z_][a-z0-9_/]*", name) for name in metrics)
    assert len([name for name in metrics if name.endswith("/auc")]) == len(board.rows)
    row = next(row for row in board.rows if (row.variant, row.bits, row.target) == ("prompt", 4, 0.1))
    assert metrics["nlu/prompt/del_4/nearest_asr10/auc"] == row.over_seeds["auc"].value
    assert metrics["nlu/prompt/del_4/nearest_asr10/asr/worst"] == row.asr["worst"].value
    assert "nlu/prompt/clean/control/accuracy" in metrics


LOGINS = """
import os
from del_lightning.config import Config, LoggerConfig
from del_lightning.errors import ConfigError
from del_lightning.stages.tracking import check_login

for key in (None, "short", "0" * 40):
    if key is not None:
        os.environ["WANDB_API_KEY"] = key
    try:
        check_login(Config(logger=LoggerConfig(kind="wandb", mode="online")))
        print("known")
    except ConfigError as error:
        print(error)
"""


def test_a_login_is_looked_for_and_not_asked_for(tmp_path: Path) -> None:
    """By W&B itself, in a process that never met it, of a user without a home."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_") and name != "NETRC"}
    environment = {**kept, "HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", LOGINS]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=True, cwd=tmp_path
    )
    none, short, key = done.stdout.splitlines()
    expected = "`logger.mode` must be offline unless W&B knows you: run `wandb login` or set WANDB_API_KEY, got online"
    assert none == f"{expected} (no login on this machine)"
    assert short.startswith(f"{expected} (WANDB_API_KEY invalid: ")
    assert key == "known"
