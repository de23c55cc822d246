"""Levels of attack success that were run apart are one leaderboard again; nothing else is mixed."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from del_lightning.report.levels import groups, joined_texts, merged
from del_lightning.report.schema import Leaderboard, LeaderboardRow, Texts
from del_lightning.report.site import load
from del_lightning.report.stored import write_board
from tests.report.factory import attacked, make_board, make_gallery, make_large_board, make_samples


def whole(**changes: Any) -> Leaderboard:
    """Every method at three targets, in one run."""
    board = make_large_board(**changes)
    config = {**board.config, "targets": [0.02, 0.1, 0.15], "title": board.title}
    seen = [attacked(label, 0.1, 0.2, 0.3) for label in dict.fromkeys(row.label for row in board.rows)]
    return board.model_copy(update={"config": config, "attacked": seen})


def level(board: Leaderboard, target: float, **changes: Any) -> Leaderboard:
    """What a run with this target alone has of a board."""
    rows = [row for row in board.rows if row.target in (None, target)]
    labels = {row.label for row in rows}
    update = {
        "title": f"{board.title}, ASR {target:g}",
        "rows": rows,
        "calibrations": [
            one.model_copy(
                update={
                    "found": {name: [c for c in found if c.target == target] for name, found in one.found.items()},
                    "points": [point for point in one.points if _is_near(point.value, one.found["nearest"], target)],
                }
            )
            for one in board.calibrations
        ],
        "curves": [one for one in board.curves if one.name.removeprefix("soft prompt, ") in {*labels, "codec"}],
        "attacked": [one for one in board.attacked if one.label in labels],
        "config": {**deepcopy(board.config), "targets": [target], "title": f"{board.title}, ASR {target:g}"},
        "overrides": ["experiment=leaderboard/ptb", f"targets=[{target}]", "title='one level'"],
        "wall_seconds": 10.0,
    }
    return board.model_copy(update={**update, **changes})


def _is_near(value: float, found: Sequence[Any], target: float) -> bool:
    """Whether a target's calibration tried a value; those of no target go to the first."""
    nearest = min(found, key=lambda one: abs(one.value - value))
    return bool(nearest.target == target)


def parts(board: Leaderboard) -> list[Leaderboard]:
    return [level(board, target) for target in (0.15, 0.02, 0.1)]


def test_they_are_the_board_of_one_run() -> None:
    board = whole()
    [one] = merged(parts(board))
    assert one.rows == sorted(board.rows, key=lambda row: _order(board, row))  # soft prompts too, side by side
    assert len(one.rows) == len(board.rows)
    assert one.config == board.config
    assert {curve.name: curve for curve in one.curves} == {curve.name: curve for curve in board.curves}
    assert {found.label: found for found in one.attacked} == {found.label: found for found in board.attacked}
    for joined, original in zip(one.calibrations, board.calibrations, strict=True):
        assert joined.found == original.found
        assert joined.outline == original.outline
        assert joined.points == original.points
    assert one.title == "Test data: many made-up methods"
    assert one.overrides == ["experiment=leaderboard/ptb", "targets=[0.02,0.1,0.15]"]
    assert one.wall_seconds == 30.0


def _order(board: Leaderboard, row: Any) -> tuple[int, float]:
    matchings = (None, *board.config["matching"])
    return matchings.index(row.matching), row.target or 0.0


def test_where_the_levels_come_from_is_said() -> None:
    board = whole()
    clean = board.environment.model_copy(update={"dirty": False, "revision": "f" * 40})
    first, second = level(board, 0.02, environment=clean), level(board, 0.1, environment=clean)
    [one] = merged([first, second])
    assert (one.environment.dirty, one.notes) == (False, board.notes)
    theirs = {"packages": {"torch": "2.6.0"}, "accelerator": "made-up GPU"}
    second = level(board, 0.1, environment=board.environment.model_copy(update=theirs), notes=["Only here."])
    [one] = merged([first, second])
    assert one.environment.dirty
    assert one.notes[:2] == ["ASR 0.02: These numbers are made up.", "ASR 0.1: Only here."]
    assert one.notes[-1] == (
        "Levels were run on different machines or versions of torch: 0.02 on made-up processor (torch 2.13.0); 0.1 on "
        "made-up GPU (torch 2.6.0)."
    )
    assert one.notes[-2] == (
        "Levels were run apart, by different versions of the code: 0.02 from revision fffffff; 0.1 from revision "
        "0123456."
    )


@pytest.mark.parametrize(
    "section",
    [
        {"prompt": {"steps": 7}},
        {"trainer": {"precision": "bf16-mixed"}},
        {"trainer": {"compile": True}},
        {"trainer": {"accumulate_grad_batches": 4}},
        {"model": {"dtype": "bfloat16"}},
        {"inverter": {"steps": 7}},
        {"seed": 5},
        {"methods": ["clean", "del"]},
        {"matching": ["nearest"]},
        {"soft_prompts": ["del"]},
    ],
)
def test_other_settings_stay_apart(section: dict[str, Any]) -> None:
    board = whole()
    first, second = level(board, 0.02), level(board, 0.1)
    for name, value in section.items():
        second.config[name] = {**second.config[name], **value} if isinstance(value, dict) else value
    assert merged([first, second]) == [first, second]


def test_a_board_from_before_it_had_targets_is_read() -> None:
    old = level(whole(), 0.02)
    del old.config["targets"]
    assert merged([old]) == [old]


def test_boards_with_a_common_level_or_none_stay_apart() -> None:
    board = whole()
    assert len(groups([board, level(board, 0.1)])) == 2
    given = level(board, 0.02)
    given.config["targets"] = []
    assert len(groups([given, level(board, 0.1)])) == 2
    assert len(groups([level(board, 0.02), level(board, 0.1, dataset="another corpus")])) == 2
    assert len(groups([level(board, 0.02), level(board, 0.1, seeds=[7])])) == 2


@pytest.mark.parametrize(
    ("titles", "expected"),
    [
        (("PTB (CPU schedule), ASR 0.02", "PTB (CPU schedule), ASR 0.1"), "PTB (CPU schedule)"),
        (("PTB (ASR 0.02)", "PTB (ASR 0.1)"), "PTB"),
        (("PTB, targets=[0.02]", "PTB, targets=[0.1]"), "PTB"),
        (("strict", "loose"), "strict and 1 more level"),
        (("ASR 0.02", "ASR 0.1"), "ASR 0.02 and 1 more level"),
    ],
)
def test_the_title_names_no_level(titles: tuple[str, str], expected: str) -> None:
    board = whole()
    [one] = merged([level(board, 0.02, title=titles[0]), level(board, 0.1, title=titles[1])])
    assert one.title == one.config["title"] == expected


def test_levels_of_other_prompts_or_with_other_controls_stay_apart() -> None:
    board = whole()
    first, second = level(board, 0.02), level(board, 0.1)

    def are_joined(**changes: Any) -> bool:
        return len(merged([first, second.model_copy(update=changes)])) == 1

    def moved(factor: float) -> list[LeaderboardRow]:
        return [
            row.model_copy(
                update={"perplexity": row.perplexity.model_copy(update={"value": row.perplexity.value * factor})}
            )
            if row.is_control and row.perplexity is not None
            else row
            for row in second.rows
        ]

    assert are_joined(rows=moved(1.001))
    assert not are_joined(rows=moved(1.02))
    assert not are_joined(rows=[row for row in second.rows if row.method != "projection"])
    assert not are_joined(private_tokens=7)
    first = first.model_copy(update={"reference_tokens": [7] * 96})
    assert are_joined(reference_tokens=[7] * 96)
    assert are_joined()  # from before they were kept
    assert not are_joined(reference_tokens=[8] * 96)


def write(folder: Path, board: Leaderboard, texts: Texts | None) -> None:
    folder.mkdir()
    write_board(folder / "leaderboard.json", board)
    if texts is not None:
        (folder / "texts.json").write_text(texts.model_dump_json())


def texts_of(board: Leaderboard) -> Texts:
    gallery = [
        one.model_copy(
            update={"levels": [found for found in one.levels if found.label in {row.label for row in board.rows}]}
        )
        for one in make_gallery()
    ]
    return Texts(title=board.title, generated=board.generated, samples=make_samples(board), gallery=gallery)


def test_a_site_shows_them_as_one_run_with_all_its_texts(tmp_path: Path) -> None:
    board = whole()
    strict, loose = level(board, 0.02), level(board, 0.1)
    for part in (strict, loose):
        write(tmp_path / f"ptb-{part.config['targets'][0]}", part, texts_of(part))
    [run] = load([tmp_path]).runs
    assert isinstance(run.board, Leaderboard)
    assert run.board.config["targets"] == [0.02, 0.1]
    assert run.source.count("leaderboard.json") == 2
    assert run.texts is not None
    assert (run.texts.title, run.texts.generated) == (run.board.title, run.board.generated)
    names = {row.label + (" + soft prompt" if row.soft_prompt else "") for row in run.board.rows}
    assert set(run.texts.samples[0].continuations) == names
    assert [found.label for found in run.texts.gallery[0].levels] == ["DEL, ASR 0.02", "DEL, ASR 0.1"]


def test_a_level_without_texts_hides_nobody_else_s(tmp_path: Path) -> None:
    board = whole()
    strict, loose = level(board, 0.02), level(board, 0.1)
    write(tmp_path / "strict", strict, texts_of(strict))
    write(tmp_path / "loose", loose, None)
    [run] = load([tmp_path]).runs
    assert run.texts is not None
    assert run.texts.samples == make_samples(strict)


def test_a_control_s_text_is_that_of_its_row(tmp_path: Path) -> None:
    board = whole()
    texts = [texts_of(part) for part in (level(board, 0.02), level(board, 0.1))]
    texts[1].samples[0].continuations["Clean prompt"] = "as another machine has it"
    found = joined_texts(board, texts)
    assert found is not None
    assert found.samples[0].continuations["Clean prompt"] == texts[0].samples[0].continuations["Clean prompt"]


def test_a_board_that_is_alone_is_left_as_it_is() -> None:
    alone = make_board()
    assert merged([alone]) == [alone]
