import math

import pytest

from del_lightning.report import words
from del_lightning.report.schema import Estimate
from tests.report.factory import estimate, make_board, other_row, row

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
    ("value", "text"),
    [(3200.759, "3\u202f201"), (20.0, "20.0"), (3.1, "3.10"), (3.101, "3.11"), (1e-7, "1.00\u202f×\u202f10⁻⁷"),
     (1234567.8, "1.24\u202f×\u202f10⁶"), (math.inf, "∞"), (0.0, "0"), (None, words.MISSING)],
)  # fmt: skip
def test_promises_are_rounded_up(value: float | None, text: str) -> None:
    assert words.at_most(value) == text


def test_bounds_on_success_are_rounded_up() -> None:
    assert [words.at_most_percent(share) for share in (0.0331, 0.5, 1.7)] == ["3.4%", "50.0%", "100.0%"]


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


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0"), (512, "512\u00a0B"), (3538944, "3.38\u00a0MiB"), (41472, "40.5\u00a0KiB"), (5e9, "4.66\u00a0GiB")],
)
def test_memory(size: float, text: str) -> None:
    assert words.memory(size) == text


def test_change_is_as_fine_as_its_interval() -> None:
    narrow = Estimate(value=-0.00443, n=96, low=-0.02443, high=0.01657, interval="bootstrap")
    assert words.change(narrow) == "−0.004 [−0.024, 0.017]"
    assert words.change(Estimate(value=0.5, n=96)) == "+0.500"


def test_eta_is_shown_and_mu_is_not() -> None:
    metric = other_row("metric", "nearest", 0.1, False)
    assert words.parameter(metric).startswith("η\u00a0=\u00a0")
    assert words.parameter(row(0.1, False)) == ""
    assert words.parameter(row("clean", False)) == ""


def test_a_schedule_that_was_changed_by_hand_says_so() -> None:
    typed = ["experiment=cpu/sst2", "data.root=DIR", "nlu.seeds=[1]", "nlu.train_examples=48", "prompt.steps=4"]
    board = make_board(schedule="192 examples", overrides=typed)
    assert words.schedule(board) == "192 examples, but with nlu.train_examples=48, prompt.steps=4"
    assert words.schedule(make_board(schedule="192 examples", overrides=typed[:3])) == "192 examples"
    assert (
        words.schedule(make_board(schedule="48 examples", overrides=[*typed, "schedule='48 examples'"]))
        == "48 examples"
    )
    assert words.schedule(make_board(schedule="", overrides=typed)) == ""
