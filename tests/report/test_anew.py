"""What a method retains over several trainings."""

from dataclasses import asdict
from typing import Any

import pytest

from del_lightning.config import CodebookConfig
from del_lightning.report import anew
from del_lightning.report.schema import Leaderboard
from tests.report.factory import make_board, row

TOKENS = [10, 30]
MEAN, CLEAN = [4.0, 5.0], [3.0, 3.0]


def board(
    seed: int, *, plus: list[float], ours: list[float], mu: float = 20, methods: str = "all", **changes: Any
) -> Leaderboard:
    """Controls, DEL and DEL+ with two prompts' NLL, all with a soft prompt."""
    rows = [
        row("clean", True, nll_by_prompt=CLEAN),
        row("mean", True, nll_by_prompt=MEAN),
        row(0.1, True, nll_by_prompt=ours),
        row(0.1, True, nll_by_prompt=plus, method="del-plus", label="DEL+"),
        row(0.1, False, nll_by_prompt=[9.0, 9.0]),
    ]
    config = {"seed": seed, "mechanism": {"mu": mu}, "methods": methods}
    return make_board(rows=rows, reference_tokens=TOKENS, config=config, **changes)


def test_boards_are_grouped_by_all_but_their_seed() -> None:
    equal = {"plus": MEAN, "ours": MEAN}
    boards = [board(2, **equal), board(0, **equal, mu=40), board(1, **equal), board(1, **equal, dataset="other")]
    boards.append(board(1, **equal))  # a seed counts once
    boards.append(board(0, **equal, methods="some"))
    found = [[one.config["seed"] for one in group] for group in anew.groups(boards)]
    assert sorted(found) == [[0], [0], [1], [1, 2]]


def test_a_setting_younger_than_a_board_had_its_default() -> None:
    equal = {"plus": MEAN, "ours": MEAN}
    old, new = board(0, **equal), board(1, **equal)
    assert "codebook" not in old.config
    for last, together in ((CodebookConfig().last, 1), (CodebookConfig().last + 2, 2)):
        config = {**new.config, "codebook": asdict(CodebookConfig(last=last))}
        assert len(anew.groups([old, new.model_copy(update={"config": config})])) == together


def test_boards_without_numbers_of_each_prompt_are_left_out() -> None:
    old = board(0, plus=MEAN, ours=MEAN)
    old = old.model_copy(update={"rows": [one.model_copy(update={"nll_by_prompt": []}) for one in old.rows]})
    assert anew.groups([old]) == []


def test_retained_is_of_the_mean_over_trainings_weighted_by_tokens() -> None:
    boards = [board(0, plus=[3.5, 4.0], ours=[4.0, 5.0]), board(1, plus=[3.5, 5.0], ours=[4.0, 4.5])]
    ours, plus = anew.over_trainings(boards)
    # Available: 10 * 1 + 30 * 2 = 70 nats. DEL+: 10 * .5 + 30 * (1 + 0) / 2 = 20. DEL: 30 * .25 = 7.5.
    assert (ours.row.method, plus.row.method) == ("del", "del-plus")
    assert plus.seeds == [0, 1]
    assert plus.retained.value == pytest.approx(20 / 70)
    assert ours.retained.value == pytest.approx(7.5 / 70)
    assert ours.gain is None
    assert plus.gain is not None
    assert plus.gain.value == pytest.approx(12.5 / 70)
    # Each training by itself: 35 - 0 and 5 - 15 nats.
    assert plus.gain_each == pytest.approx([35 / 70, -10 / 70])
    assert ours.gain_each == []
    assert plus.asr == [0.262, 0.262]
    assert len(plus.coherence) == 2
    assert set(plus.read) == set(anew.MEASURES)


def test_without_controls_there_is_nothing_to_say() -> None:
    one = board(0, plus=MEAN, ours=MEAN)
    assert anew.over_trainings([one.model_copy(update={"rows": one.rows[2:]})]) == []
