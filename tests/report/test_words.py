import math

import pytest

from del_lightning.report import words
from del_lightning.report.schema import Estimate
from tests.report.factory import estimate, make_board, row

THIN = words.THIN_SPACE


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (25.44, "25.4"),
        (0.1, "0.100"),
        (-0.0456, "−0.0456"),
        (0, "0"),
        (999.6, f"1{THIN}000"),
        (12345, f"12{THIN}300"),
        (0.9999, "1.00"),
        (1.234e-5, f"1.23{THIN}×{THIN}10⁻⁵"),
        (1e9, f"1.00{THIN}×{THIN}10⁹"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
        (math.nan, "–"),
        (None, "–"),
    ],
)
def test_three_significant_digits(value: float | None, text: str) -> None:
    assert words.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(4.0, "4"), (0.1, "0.1"), (1e-5, "10⁻⁵"), (2e-6, f"2{THIN}×{THIN}10⁻⁶"), (500, "500")]
)
def test_settings_have_no_trailing_zeros(value: float, text: str) -> None:
    assert words.setting(value) == text


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (0.112, 0.056, 0.1764, "[0.056, 0.176]"),
        (0.999, 0.998, 1.0, "[0.998, 1.000]"),
        (636, 598, 1234, f"[598, 1{THIN}230]"),
        (0, -0.004, 0.0046, "[−0.00400, 0.00460]"),
        (0.5, 0.0, math.inf, "[0, ∞]"),
    ],
)
def test_interval_ends_are_equally_fine(value: float, low: float, high: float, text: str) -> None:
    assert words.interval(Estimate(value=value, n=3, low=low, high=high, interval="bootstrap")) == text


def test_no_interval_prints_nothing() -> None:
    assert words.interval(Estimate(value=1.0, n=3)) == ""


@pytest.mark.parametrize(("seconds", "text"), [(42.2, "42 s"), (692, "11 min 32 s"), (11100, "3 h 5 min")])
def test_duration(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


def test_summary_quotes_the_row_nearest_to_the_headline_target() -> None:
    text = " ".join(words.summary(make_board()))
    assert "target of 0.1, DEL with its soft prompt reaches PPL 53.2 [50.0, 56.9], against 133" in text
    assert "(−60%)" in text
    assert "R = 0.112" in text
    assert "Bayes-optimal attacker reads 26%" in text


def test_summary_says_when_nothing_is_shown() -> None:
    zero = row(0.1, True, retained=Estimate(value=0.01, n=96, low=-0.02, high=0.04, interval="bootstrap"))
    worse = row(0.1, False, perplexity=estimate(54.0))
    text = " ".join(words.summary(make_board(rows=[worse, zero])))
    assert "cannot be told from 0" in text
    assert "the intervals overlap" in text


def test_summary_of_a_chosen_mu_names_its_epsilon() -> None:
    text = " ".join(words.summary(make_board(rows=[row(0.1, True, target=None, label="DEL, mu 21.4")])))
    assert "mu 21.4" not in text
    assert "At μ\u00a0=\u00a021.4, exact ε\u00a0=\u00a0231 a token" in text


def test_summary_without_del_says_so() -> None:
    assert "Only controls" in " ".join(words.summary(make_board(rows=[row("clean", False)])))


def test_warnings_follow_from_the_numbers() -> None:
    text = "\n".join(words.warnings(make_board()))
    assert text.startswith("These numbers are made up.")
    assert "say almost nothing (ε up to 16\u202f900 for a prompt): DEL, ASR 0.02; DEL, ASR 0.1" in text
    assert "Theorem 4.2" in text
    assert "look at R" in text
    assert "from PPL 636 to 59.3" in text


def test_strong_guarantee_gets_no_warning() -> None:
    strong = row(0.02, False)
    strong.privacy = strong.privacy.model_copy(
        update={"mu_token": 0.1, "epsilon_token": 0.3, "epsilon_sequence": 2.0, "paper_bound_vacuous": False}
    )
    board = make_board(rows=[strong], notes=[])
    assert words.warnings(board) == []
    assert "by at most 7.39" in " ".join(words.privacy_statement(strong))


def test_missed_calibration_is_a_warning() -> None:
    board = make_board()
    board.calibrations[0].reached = False
    board.calibrations[0].note = "smallest mu of the range returned"
    assert any("missed its target: smallest mu" in text for text in words.warnings(board))
    board.notes.append(board.calibrations[0].note)
    assert not any("missed its target" in text for text in words.warnings(board))


def test_guarantee_is_silent_without_both_epsilons() -> None:
    privacy = row(0.1, False).privacy
    assert "ε" in words.guarantee(privacy)
    assert words.guarantee(privacy.model_copy(update={"epsilon_sequence": None})) == ""


def test_worst_attack_is_the_stored_one_or_the_largest() -> None:
    item = row(0.1, False)
    assert words.worst_attack(item) == item.asr["Bayes-optimal"]
    item.asr["worst"] = estimate(0.9)
    assert words.worst_attack(item) == item.asr["worst"]
    item.asr.clear()
    assert words.worst_attack(item) is None


def test_attacks_are_ordered_and_unknown_ones_kept() -> None:
    board = make_board()
    for item in board.rows:
        item.asr = {"input_inference": estimate(0.2), "worst": estimate(0.9), **dict(reversed(item.asr.items()))}
    assert words.attacks(board) == ["nearest neighbour (cosine)", "Bayes-optimal", "input_inference"]
