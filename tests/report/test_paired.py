"""Differences on common resamples of the examples are narrower than those of two separate intervals."""

import numpy as np
import pytest

from del_lightning.metrics import binary_figures, differences, over_examples
from del_lightning.report import nlu, nlu_page
from del_lightning.report.paired import auc_difference, difference_rows
from tests.report.test_merge import seed_board

RANDOM = np.random.default_rng(0)
MANY = RANDOM.integers(0, 2, 200)
GOOD = np.clip(0.5 + 0.3 * (2 * MANY - 1) + RANDOM.normal(0, 0.3, (3, 200)), 0, 1)
WORSE = np.clip(GOOD - 0.03 * (2 * MANY - 1), 0, 1)


def test_the_difference_of_the_figures_with_an_interval_of_its_own() -> None:
    found = differences(GOOD, WORSE, MANY)
    for name, estimate in found.items():
        means = [np.mean([binary_figures(row, MANY)[name] for row in rows]) for rows in (GOOD, WORSE)]
        assert estimate.value == pytest.approx(means[0] - means[1])
        assert estimate.low <= estimate.value <= estimate.high
    assert found["auc"].low > 0
    apart = [over_examples(rows, MANY)["auc"] for rows in (GOOD, WORSE)]
    assert apart[0].low < apart[1].high  # which two intervals would not have told
    same = differences(GOOD, GOOD, MANY)["auc"]
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_pairs_of_methods_and_of_ways_at_the_quoted_level() -> None:
    board = seed_board(0)
    rows = difference_rows(board)
    pairs = {(row["First"], row["Second"]) for row in rows}
    quoted = "DEL, 4 bits, ASR 0.1"
    assert (f"{quoted}, soft prompt", f"{quoted}, denoiser at the server") in pairs
    assert all(first.startswith(quoted) or second.startswith("Mean embedding") for first, second in pairs)
    assert (f"{quoted}, soft prompt", "Mean embedding, soft prompt") in pairs
    assert {row["Verdict"] for row in rows} <= {"inside the noise", "first higher", "second higher"}
    assert "Compared in pairs" in nlu_page.render_markdown(board)
    assert 'id="differences"' in nlu_page.render_html(board)


def test_nothing_is_compared_without_scores() -> None:
    board = seed_board(0)
    old = board.model_copy(update={"labels": []})
    assert difference_rows(old) == []
    assert 'id="differences"' not in nlu_page.render_html(old)
    first, second = [row for row in board.rows if row.scores][:2]
    assert auc_difference(board, first, second.model_copy(update={"scores": second.scores * 2})) is None
    assert auc_difference(board, first, first).value == 0


def test_text_came_through_where_pairs_beat_the_length_over_examples_and_seeds() -> None:
    board = seed_board(0)
    labels, control = MANY.tolist(), WORSE.tolist()
    rows = [row.model_copy(update={"scores": control if row.method == "mean" else GOOD.tolist()}) for row in board.rows]
    better = board.model_copy(update={"rows": rows, "labels": labels})
    ours = next(row for row in rows if row.method == "del" and row.variant == "prompt")
    assert nlu.beats_length(better, ours)
    assert not nlu.beats_length(better, ours.model_copy(update={"scores": control}))
    # One seed says the opposite: the examples alone would still call it better.
    mixed = [GOOD[0], GOOD[1], 2 * WORSE[2] - GOOD[2]]
    assert differences(mixed, WORSE, MANY)["auc"].low > 0
    assert not nlu.beats_length(better, ours.model_copy(update={"scores": np.clip(mixed, 0, 1).tolist()}))
