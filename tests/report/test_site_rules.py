"""The rules behind the replication page, on boards whose numbers are turned until the verdict must turn, too."""

import json
import math
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from del_lightning.__main__ import main
from del_lightning.errors import ArtifactError
from del_lightning.report.page import write_report
from del_lightning.report.schema import Estimate, Leaderboard, LeaderboardRow, NluLeaderboard
from del_lightning.report.site import load, own_settings, rules
from del_lightning.report.site.claims import Finding
from del_lightning.report.site.runs import Run
from tests.report.factory import (
    attack_curve,
    calibration,
    estimate,
    make_board,
    make_large_board,
    other_row,
    rate,
    row,
)
from tests.report.test_nlu import board as make_nlu

ROOT = Path(__file__).parents[2]
Turn = Callable[[LeaderboardRow], dict[str, object]]


def turned(board: Leaderboard, turn: Turn) -> Leaderboard:
    return board.model_copy(update={"rows": [row.model_copy(update=turn(row)) for row in board.rows]})


def judged(rule: Callable[[list[Run]], Finding], *boards: Leaderboard | NluLeaderboard) -> Finding:
    return rule([Run(f"run-{number}", "made up", board) for number, board in enumerate(boards)])


def sharp(value: float) -> Estimate:
    return estimate(value, spread=0.001)


@pytest.mark.parametrize(("ours", "verdict"), [(0.6, "agrees"), (0.2, "disagrees"), (0.4, "undecided")])
def test_coherence_is_compared_at_equal_success_of_the_nearest_neighbour(ours: float, verdict: str) -> None:
    def turn(row: LeaderboardRow) -> dict[str, object]:
        worst_helps = 0.9 if row.matching == "worst" else ours
        values = {"del": worst_helps, "mean": 0.3}
        return {"difference": None, "coherence": sharp(values.get(row.method, 0.4))}

    found = judged(rules.coherence(("rantext", "inferdpt"), "x"), turned(make_large_board(), turn))
    assert found.verdict == verdict
    assert len(found.comparisons) == 6  # two methods at three targets
    assert "Matched by the strongest attack instead: All 6 comparisons confirm." in found.reason


@pytest.mark.parametrize(
    ("nothing", "outcome"), [(0.3, "confirms"), (0.4, "decides nothing"), (0.5, "decides nothing")]
)
def test_coherence_that_sending_nothing_reaches_as_well_decides_nothing(nothing: float, outcome: str) -> None:
    def turn(row: LeaderboardRow) -> dict[str, object]:
        values = {"del": 0.6, "mean": nothing}
        return {"difference": None, "coherence": sharp(values.get(row.method, 0.4))}

    board = turned(make_large_board(), turn)
    found = judged(rules.coherence(("rantext",), "RANTEXT"), board)
    assert {one.outcome for one in found.comparisons} == {outcome}
    alone = board.model_copy(update={"rows": [row for row in board.rows if row.method != "mean"]})
    without = judged(rules.coherence(("rantext",), "RANTEXT"), alone)
    assert {one.outcome for one in without.comparisons} == {"decides nothing"}


def with_coherence(seed: int, ours: float, targets: tuple[float, ...] = (0.1,)) -> Leaderboard:
    """Controls, DEL and RANTEXT at .4, all over two prompts and one training."""
    rows = [row("clean", True, nll_by_prompt=[3.0, 3.0]), row("mean", True, nll_by_prompt=[6.0, 6.0])]
    for target in targets:
        rows += [row(target, True, nll_by_prompt=[5.0, 5.0])]
        rows += [other_row("rantext", "nearest", target, False, nll_by_prompt=[5.0, 5.0])]
    board = make_board(rows=rows, reference_tokens=[10, 10])
    board.config["seed"] = seed

    def turn(row: LeaderboardRow) -> dict[str, object]:
        return {"difference": None, "coherence": sharp({"del": ours, "rantext": 0.4}.get(row.method, 0.2))}

    return turned(board, turn)


def test_coherence_is_averaged_over_trainings_and_one_of_them_does_not_count_again() -> None:
    boards = [with_coherence(seed, ours) for seed, ours in enumerate((0.5, 0.39, 0.51))]
    alone = with_coherence(0, 0.5, (0.1, 0.02))
    alone.config["evaluate"] = {**alone.config["evaluate"], "seeds": [5]}
    rule = rules.coherence(("rantext",), "RANTEXT")
    pooled, single = sorted(judged(rule, *boards, alone).comparisons, key=lambda one: -len(one.runs))
    assert len(pooled.runs) == 3
    assert "mean of 3 trainings" in pooled.what
    assert (pooled.outcome, single.outcome) == ("inside the noise", "confirms")
    assert "ASR 0.02" in single.what  # what was run once alone still counts
    assert [one.outcome for one in judged(rule, boards[0]).comparisons] == ["confirms"]


def test_methods_that_were_not_run_leave_the_claim_open() -> None:
    found = judged(rules.coherence(("rantext",), "RANTEXT"), make_board())
    assert (found.verdict, found.comparisons) == ("not run", ())
    assert found.reason == (
        "No loaded run holds RANTEXT calibrated to a nearest-neighbour target beside DEL with its soft prompt. "
        "Methods loaded: DEL."
    )


@pytest.mark.parametrize(("optimal", "verdict"), [(0.001, "agrees"), (0.9, "disagrees")])
def test_the_nearest_neighbour_must_stand_for_the_strongest_attack(optimal: float, verdict: str) -> None:
    board = turned(make_board(), lambda row: {"asr": {**row.asr, "Bayes-optimal": rate(optimal)}})
    assert judged(rules.attacks, board).verdict == verdict


def test_success_must_fall_with_privacy() -> None:
    curve = attack_curve()
    points = [point.model_copy(update={"asr": dict(curve.points[0].asr)}) for point in curve.points]
    flat = make_board(rows=[], attack_curves=[curve.model_copy(update={"points": points})])
    assert judged(rules.attacks, make_board(rows=[], attack_curves=[curve])).verdict == "agrees"
    assert judged(rules.attacks, flat).verdict == "undecided"


@pytest.mark.parametrize(("prompted", "verdict"), [(0.9, "agrees"), (0.3, "disagrees"), (0.532, "undecided")])
def test_a_soft_prompt_must_help_over_seeds_and_over_examples(prompted: float, verdict: str) -> None:
    board = make_nlu(denoised_prompt_rate=0.01)
    plain = [row for row in board.rows if row.variant == "snd" and row.target == 0.02]
    better = {"accuracy": rate(prompted), "auc": rate(prompted, 200)}
    rows = [
        row.model_copy(update={"variant": "snd-prompt", "over_seeds": better, "over_examples": better}) for row in plain
    ]
    found = judged(rules.understanding, board.model_copy(update={"rows": [*board.rows, *rows]}))
    assert found.verdict == verdict
    old = judged(rules.understanding, make_nlu(rows=[*board.rows, *rows]))
    assert (old.verdict, old.comparisons) == ("not run", ())
    assert "Soft prompts learned at the denoiser's rate and are not judged in Made-up GLUE." in old.reason
    assert judged(rules.understanding, make_nlu(task="sst2")).verdict == "not run"


def test_mechanisms_are_compared_where_both_reach_the_level() -> None:
    board = make_nlu()
    metric = [
        row.model_copy(update={"method": "metric-dp", "label": row.label.replace("DEL, 4 bits", "Metric DP")})
        for row in board.rows
        if row.variant == "snd" and row.bits == 4
    ]
    made = [calibration("del", "DEL, 1 bit"), calibration("metric-dp", "Metric DP", "eta")]
    made[0].found["nearest"] = [one.model_copy(update={"reached": False}) for one in made[0].found["nearest"]]
    compared = judged(rules.understanding, board.model_copy(update={"rows": [*board.rows, *metric]})).comparisons
    assert len(compared) == 3
    changed = {"rows": [*board.rows, *metric], "calibrations": made}
    few = judged(rules.understanding, board.model_copy(update=changed)).comparisons
    assert [one.first[0].split(":")[0] for one in few] == ["DEL, 4 bits, ASR 0.02", "DEL, 4 bits, ASR 0.1"]
    made[1].found["nearest"] = [one.model_copy(update={"reached": False}) for one in made[1].found["nearest"]]
    assert judged(rules.understanding, board.model_copy(update=changed)).comparisons == ()


def wide(dim: int, ppl: float, mu: float) -> Leaderboard:
    """DEL at a given mu, sharper than the noise."""

    def turn(row: LeaderboardRow) -> dict[str, object]:
        if row.is_control:
            return {}
        parameters = {"mu": mu, "bits": 4.0, "dim": float(dim)}
        given = {"value": mu, "target": None, "matching": None, "perplexity": sharp(ppl)}
        return {**given, "privacy": row.privacy.model_copy(update={"parameters": parameters})}

    board = make_board()
    board.config["codec"]["dim"] = dim
    return turned(board.model_copy(update={"rows": [row for row in board.rows if row.target != 0.02]}), turn)


@pytest.mark.parametrize(("mu", "narrow", "verdict"), [(20.0, 40.0, "agrees"), (20.0, 60.0, "disagrees"),
                                                       (60.0, 40.0, "disagrees"), (60.0, 60.0, "agrees")])  # fmt: skip
def test_the_narrow_code_wins_where_privacy_is_strict(mu: float, narrow: float, verdict: str) -> None:
    assert judged(own_settings.width, wide(18, narrow, mu), wide(128, 50.0, mu)).verdict == verdict


def test_widths_are_not_compared_across_other_settings() -> None:
    other = wide(128, 50.0, 20.0)
    other.config["data"]["name"] = "ptb"
    assert judged(own_settings.width, wide(18, 40.0, 20.0), other).verdict == "not run"
    assert judged(own_settings.width, wide(18, 40.0, 20.0), wide(128, 50.0, 30.0)).verdict == "not run"


def coarse(bits: int, ppl: float) -> Leaderboard:
    def turn(row: LeaderboardRow) -> dict[str, object]:
        parameters = {**row.privacy.parameters, "bits": float(bits)}
        sizes = row.communication.model_copy(
            update={"bits_per_token": 18.0 * bits, "ratio_fp32": 1024 / bits, "ratio_fp16": 512 / bits}
        )
        changes = {"privacy": row.privacy.model_copy(update={"parameters": parameters}), "communication": sizes}
        return {} if row.is_control else {**changes, "perplexity": sharp(ppl)}

    board = make_board()
    board.config["mechanism"]["bits"] = bits
    return turned(board, turn)


@pytest.mark.parametrize(("ppl", "verdict"), [(40.0, "agrees"), (52.0, "agrees"), (60.0, "disagrees")])
def test_fewer_bits_may_cost_a_tenth(ppl: float, verdict: str) -> None:
    assert judged(own_settings.bits, coarse(1, ppl), coarse(8, 50.0)).verdict == verdict


def by_prompt(board: Leaderboard, nll: list[float]) -> Leaderboard:
    """The board with the NLL of two prompts, and intervals of perplexity too wide to say anything."""
    wide = estimate(50.0, spread=3.0)
    nothing = [nll + 2 for nll in (3.01, 5.01)]
    changed = turned(
        board,
        lambda row: {"nll_by_prompt": nothing} if row.is_control else {"nll_by_prompt": nll, "perplexity": wide},
    )
    return changed.model_copy(update={"reference_tokens": [10, 30]})


@pytest.mark.parametrize(("nll", "verdict"), [([3.0, 5.0], "agrees"), ([3.5, 5.5], "disagrees")])
def test_rows_of_two_boards_are_paired_prompt_by_prompt(nll: list[float], verdict: str) -> None:
    few, most = coarse(1, 50.0), coarse(8, 50.0)
    found = judged(own_settings.bits, by_prompt(few, nll), by_prompt(most, [3.01, 5.01]))
    assert found.verdict == verdict
    assert all(one.what.endswith("paired") for one in found.comparisons)
    other = by_prompt(most, [3.01, 5.01]).model_copy(update={"reference_tokens": [10, 31]})
    assert judged(own_settings.bits, by_prompt(few, nll), other).verdict == "undecided"


@pytest.mark.parametrize(
    ("mean", "outcome"), [(70.0, "confirms"), (55.0, "decides nothing"), (40.0, "decides nothing")]
)
def test_few_bits_are_enough_only_where_none_are_not(mean: int, outcome: str) -> None:
    def turn(row: LeaderboardRow) -> dict[str, object]:
        return {"perplexity": sharp(mean)} if row.method == "mean" else {}

    found = judged(own_settings.bits, *(turned(coarse(bits, 50.0), turn) for bits in (1, 8)))
    assert {one.outcome for one in found.comparisons} == {outcome}
    assert found.verdict == ("agrees" if outcome == "confirms" else "undecided")
    assert ("Nothing is decided where a row that sends no text" in found.reason) == (outcome != "confirms")
    worse = judged(own_settings.bits, turned(coarse(1, 60.0), turn), turned(coarse(8, 50.0), turn))
    assert worse.verdict == "disagrees"  # to contradict takes no control


def test_without_the_control_nothing_is_confirmed() -> None:
    boards = [coarse(bits, 50.0) for bits in (1, 8)]
    alone = [board.model_copy(update={"rows": [r for r in board.rows if r.method != "mean"]}) for board in boards]
    assert {one.outcome for one in judged(own_settings.bits, *alone).comparisons} == {"decides nothing"}


def test_rows_that_several_runs_hold_count_once() -> None:
    board = turned(make_large_board(), lambda row: {"difference": None})
    copy = board.model_copy(update={"title": "The same rows in another run"})
    rule = rules.coherence(("rantext", "inferdpt"), "x")
    once, twice = judged(rule, board), judged(rule, board, copy)
    assert len(once.comparisons) == len(twice.comparisons) == 6
    assert twice.reason.split(" A soft prompt")[0] == once.reason.split(" A soft prompt")[0]
    elsewhere = board.model_copy(update={"dataset": "ptb"})
    assert len(judged(rule, board, elsewhere).comparisons) == 12


def with_gaussian(seed: int, ours: list[float], theirs: list[float]) -> Leaderboard:
    """Controls, DEL and Gaussian noise on the code with two prompts' NLL, all with a soft prompt."""
    rows = [
        *(row("clean", True, nll_by_prompt=[3.0, 3.0]), row("mean", True, nll_by_prompt=[6.0, 6.0])),
        row(0.1, True, nll_by_prompt=ours),
        other_row("gaussian-code", "nearest", 0.1, True, nll_by_prompt=theirs),
    ]
    board = make_board(rows=rows, reference_tokens=[10, 10])
    board.config["seed"] = seed
    return board


def test_trainings_of_one_configuration_are_compared_as_one() -> None:
    boards = [with_gaussian(seed, [4.0 + gap, 5.0 + gap], [4.2, 5.2]) for seed, gap in enumerate((0.0, 0.1, 0.2))]
    (one,) = judged(rules.gaussian, *boards).comparisons
    assert len(one.runs) == 3
    assert "mean of 3 trainings" in one.what
    assert one.first[1].value == pytest.approx(math.exp(4.6))
    # .2, .1 and 0 nats ahead: every prompt alike, so the interval is Student's over trainings.
    assert one.difference.value == pytest.approx(0.1)
    assert one.difference.low == pytest.approx(0.1 - 4.303 * 0.1 / math.sqrt(3), abs=1e-3)
    assert one.outcome == "inside the noise"
    (alone,) = judged(rules.gaussian, boards[0]).comparisons
    assert (alone.outcome, alone.difference.low) == ("confirms", pytest.approx(0.2))


def test_bits_are_compared_over_the_trainings_that_both_settings_have() -> None:
    boards = []
    for bits, seed, nll in [(1, 0, [3.0, 5.0]), (1, 1, [3.2, 5.2]), (8, 0, [3.1, 5.1]), (8, 1, [3.1, 5.1])]:
        board = by_prompt(coarse(bits, 50.0), nll)
        board.config["seed"] = seed
        boards.append(board)
    alone = by_prompt(coarse(8, 50.0), [9.0, 9.0])
    alone.config["seed"] = 2
    found = judged(own_settings.bits, *boards, alone)
    assert len(found.comparisons) == 2  # two targets
    for one in found.comparisons:
        assert len(one.runs) == 4
        assert "mean of 2 trainings" in one.what
        assert one.difference.value == pytest.approx(0.0, abs=1e-12)
        assert one.difference.low == pytest.approx(-12.706 * 0.1, rel=1e-3)  # .1 and -.1


def short(board: Leaderboard) -> Leaderboard:
    """No target of any method is reached."""
    for made in board.calibrations:
        for results in made.found.values():
            results[:] = [result.model_copy(update={"reached": False}) for result in results]
    return board


def test_a_target_that_few_bits_cannot_reach_is_named() -> None:
    few, most = coarse(1, 50.0), coarse(8, 50.0)
    assert not any("cannot reach" in one.what for one in judged(own_settings.bits, few, most).comparisons)
    found = judged(own_settings.bits, short(few), most).comparisons
    assert all("which n = 1 cannot reach at any mu" in one.what for one in found if "ASR" in one.what)
    assert any("cannot reach" in one.what for one in found)


def test_a_target_that_is_not_reached_in_one_training_alone_says_so() -> None:
    boards = [by_prompt(coarse(bits, 50.0), [3.0 + seed, 5.0]) for seed in (0, 1) for bits in (1, 8)]
    for seed, board in enumerate((boards[:2], boards[2:])):
        for one in board:
            one.config["seed"] = seed
    found = judged(own_settings.bits, short(boards[0]), *boards[1:]).comparisons
    assert any("which n = 1 (in 1 of 2 trainings) cannot reach at any mu" in one.what for one in found)


def test_bits_are_compared_under_one_adapter_only() -> None:
    boards = coarse(1, 40.0), coarse(8, 50.0)
    boards[0].config["adapter"] = {"rank": 0, "alpha": 32}  # as good as none, which older boards do not name
    assert judged(own_settings.bits, *boards).verdict == "agrees"
    boards[0].config["adapter"] = {"rank": 16, "alpha": 32}
    assert judged(own_settings.bits, *boards).verdict == "not run"


def test_the_payload_is_held_to_the_headline_only_at_one_bit() -> None:
    assert judged(own_settings.payload, coarse(1, 50.0)).verdict == "agrees"
    found = judged(own_settings.payload, coarse(4, 50.0))
    assert found.verdict == "partly"
    assert found.reason.endswith("The headline's n = 1 was not run.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 1}, r"results/leaderboard.json must have schema version 2, got 1"),
        ({"prompts": "many"}, r"results/leaderboard.json must fit the schema of a leaderboard, got: prompts: "),
    ],
)
def test_a_leaderboard_of_another_schema_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    (tmp_path / "results").mkdir()
    content = json.loads(make_board().model_dump_json()) | change
    (tmp_path / "results" / "leaderboard.json").write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=message):
        load([tmp_path / "results"])


def test_commands_of_the_docs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HYDRA_FULL_ERROR", "TOKENIZERS_PARALLELISM", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "")  # main() sets them; monkeypatch puts them back
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "site.md").read_text(encoding="utf-8")
    commands = [shlex.split(line, comments=True) for line in re.findall(r"^python -m .*$", page, flags=re.MULTILINE)]
    places = [re.findall(r"[\w/-]+", word.removeprefix("report.results=")) for word in (one[4] for one in commands)]
    assert [len(found) for found in places] == [1, 2]
    board = make_board(rows=make_board().rows[:2], calibrations=[], curves=[])
    for place in {place for found in places for place in found}:
        write_report(tmp_path / place / "made-up", board.model_copy(update={"title": place}), [])
    for command in commands:
        monkeypatch.setattr(sys, "argv", command[2:])
        main()
    assert len(list((tmp_path / "runs/site/runs").iterdir())) == 1
    assert len(list((tmp_path / "merged/site/runs").iterdir())) == 2
    assert shlex.join(commands[0][3:]) in (ROOT / "Makefile").read_text(encoding="utf-8")
