"""Seeds that were run apart are one leaderboard again; nothing else is mixed."""

from pathlib import Path

import numpy as np
import pytest

from del_lightning.errors import ArtifactError
from del_lightning.metrics import binary_figures, over_seeds
from del_lightning.report.merge import groups, merged
from del_lightning.report.schema import Estimate, NluLeaderboard, NluValidation
from del_lightning.report.site import load
from del_lightning.report.stored import write_board
from tests.report.test_nlu import board

LABELS = [0, 1] * 20
CHANGED: list[dict[str, object]] = [
    {"model": {"dtype": "bfloat16"}},
    {"trainer": {"precision": "bf16-mixed"}},
    {"evaluate": {"delta": 1e-9}},
    {"data": {"train_tokens": 7}},
    {"attack": {"suite": ["nearest"], "metric": "euclidean"}},
    {"seed": 5},
]
"""Settings in which a board is another one."""


def seed_board(seed: int, **changes: object) -> NluLeaderboard:
    """A board of one seed, every row but the majority's with scores of its own."""
    base = board(seeds=[seed], labels=LABELS, **changes)
    base.config["nlu"] = {"task": "mrpc", "seeds": [seed]}
    random = np.random.default_rng(seed)
    rows = [
        row
        if row.variant == "majority"
        else row.model_copy(
            update={
                "seeds": 1,
                "scores": [random.random(len(LABELS)).round(4).tolist()],
                "validation": [NluValidation(start=1.0, best=0.1 * seed)],
            }
        )
        for row in base.rows
    ]
    return base.model_copy(update={"rows": rows, "wall_seconds": 10.0, "config": {**base.config}})


def test_figures_are_those_of_all_seeds() -> None:
    parts = [seed_board(seed) for seed in (2, 0, 1)]
    [one] = merged(parts)
    assert (one.seeds, one.wall_seconds, one.config["nlu"]["seeds"]) == ([0, 1, 2], 30.0, [0, 1, 2])
    for number, row in enumerate(one.rows):
        if row.variant == "majority":
            assert row == parts[1].rows[number]
            continue
        assert (row.seeds, row.scores) == (3, [parts[i].rows[number].scores[0] for i in (1, 2, 0)])
        assert [one.best for one in row.validation] == [0.0, 0.1, 0.2]
        accuracies = [binary_figures(scores, LABELS)["accuracy"] for scores in row.scores]
        assert row.over_seeds["accuracy"] == over_seeds(accuracies)
        assert row.over_examples["auc"].n == len(LABELS)
        assert row.asr == parts[1].rows[number].asr  # attacks read the releases of the first seed


def test_a_section_that_a_board_lacks_had_its_defaults() -> None:
    first, second = seed_board(0), seed_board(1)
    del second.config["baseline"]["metric"]["l2_clip"]
    del second.config["evaluate"]
    assert len(merged([first, second])) == 1
    second.config["baseline"]["metric"]["unheard_of"] = 1
    assert len(merged([first, second])) == 2


def test_a_later_seed_need_not_be_attacked_as_the_first_was() -> None:
    first, second = seed_board(0), seed_board(1)
    second.config["attack"] = {**second.config["attack"], "suite": ["nearest"]}
    [one] = merged([first, second])
    assert one.config["attack"] == first.config["attack"]
    assert one.rows[-1].asr == first.rows[-1].asr


def test_where_the_seeds_come_from_is_said() -> None:
    first, second, third = (seed_board(seed) for seed in range(3))
    assert merged([first, second])[0].notes == first.notes
    assert merged([first, second])[0].environment == first.environment
    environment = first.environment.model_copy(update={"revision": "fedcba9876", "dirty": True})
    [one] = merged([first, second.model_copy(update={"environment": environment}), third])
    assert one.environment.dirty is True
    seven = (first.environment.revision or "")[:7]
    assert one.notes[-1].endswith(f"of the code: 0, 2 from revision {seven}; 1 from revision fedcba9.")


@pytest.mark.parametrize(
    ("titles", "expected"),
    [
        (("MRPC, seed 0", "MRPC, seed 1"), "MRPC"),
        (("MRPC (seed 0)", "MRPC seed-1"), "MRPC"),
        (("MRPC, seed 0", "Another, seed 1"), "MRPC, seed 0"),
        (("Seed 0", "Seed 1"), "Seed 0"),
        (("MRPC", "MRPC"), "MRPC"),
        (("Linseed 0", "Linseed 1"), "Linseed 0"),
    ],
)
def test_the_title_of_several_names_no_seed(titles: tuple[str, str], expected: str) -> None:
    [one] = merged([seed_board(seed, title=title) for seed, title in enumerate(titles)])
    assert one.title == expected


def test_other_settings_common_seeds_and_boards_without_scores_stay_apart() -> None:
    first = seed_board(0)
    others = [
        seed_board(1, task="qqp"),
        seed_board(1, schedule="longer"),
        seed_board(1, model="another"),
        seed_board(1, denoised_prompt_rate=0.01),
        seed_board(1, tuned_start_counts=True),
        seed_board(0),
        seed_board(1).model_copy(update={"labels": []}),
        *(
            one.model_copy(update={"config": {**one.config, **changed}})
            for one, changed in ((seed_board(1), changed) for changed in CHANGED)
        ),
    ]
    for other in others:
        assert merged([first, other]) == [first, other]
    assert [len(group) for group in groups([first, seed_board(1), others[0]])] == [2, 1]


def test_what_does_not_fit_is_an_error() -> None:
    first, second = seed_board(0), seed_board(1)
    with pytest.raises(ArtifactError, match="must report the same examples"):
        merged([first, second.model_copy(update={"labels": LABELS[::-1]})])
    with pytest.raises(ArtifactError, match="must have one row 'snd' behind"):
        merged([first, second.model_copy(update={"rows": second.rows[:1] + second.rows[2:]})])
    moved = [row.model_copy(update={"value": row.value * 1.2 if row.value else None}) for row in second.rows]
    with pytest.raises(ArtifactError, match="must have about the same mu"):
        merged([first, second.model_copy(update={"rows": moved})])
    near = [row.model_copy(update={"value": row.value * 1.01 if row.value else None}) for row in second.rows]
    assert len(merged([first, second.model_copy(update={"rows": near})])) == 1


def test_a_site_shows_them_as_one_run(tmp_path: Path) -> None:
    for seed in (0, 1):
        path = tmp_path / f"seed-{seed}" / "leaderboard.json"
        path.parent.mkdir()
        write_board(path, seed_board(seed))
    [run] = load([tmp_path]).runs
    assert isinstance(run.board, NluLeaderboard)
    assert run.board.seeds == [0, 1]
    assert run.source.count("leaderboard.json") == 2


def test_settings_younger_than_a_board_do_not_keep_it_apart() -> None:
    old, new = seed_board(0), seed_board(1)
    younger = {**new.config, "nlu": {**new.config.get("nlu", {}), "part": [0, 2], "keep_denoisers": True}}
    assert len(merged([old, new.model_copy(update={"config": younger})])) == 1
    other = {**new.config, "nlu": {**new.config.get("nlu", {}), "draws": 7}}
    assert len(merged([old, new.model_copy(update={"config": other})])) == 2


def test_an_older_boards_intervals_end_where_figures_do() -> None:
    wide = Estimate(value=0.5, n=3, low=-0.5, high=1.5, interval="t")
    first = seed_board(0)
    rows = [row.model_copy(update={"over_seeds": dict.fromkeys(row.over_seeds, wide)}) for row in first.rows]
    [found] = merged([first.model_copy(update={"rows": rows})])
    for row in found.rows:
        for name, estimate in row.over_seeds.items():
            assert (estimate.low, estimate.high) == (-0.5 if name == "matthews" else 0.0, 1.0)
