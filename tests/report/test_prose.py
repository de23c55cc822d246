from del_lightning.privacy import PrivacyStatement
from del_lightning.report import cautions, prose
from del_lightning.report.schema import Estimate, LeaderboardRow, PairedDifference
from tests.report.factory import (
    NEAREST,
    OPTIMAL,
    estimate,
    make_board,
    make_large_board,
    noisy,
    other_row,
    rate,
    row,
)


def test_summary_quotes_the_row_nearest_to_the_headline_target() -> None:
    text = " ".join(prose.summary(make_board()))
    assert "target of 0.1, DEL with its soft prompt reaches PPL 53.2 [50.0, 56.9], against 133" in text
    assert "(−60%)" in text
    assert "R = 0.112" in text
    assert "strongest attack that was run (Bayes-optimal) reads 26% of the private tokens" in text
    assert "the nearest-neighbour attack 9.8%" in text
    assert "can read more than 99.91%" in text


def test_summary_says_when_nothing_is_shown() -> None:
    zero = row(0.1, True, retained=Estimate(value=0.01, n=96, low=-0.02, high=0.04, interval="bootstrap"))
    worse = row(0.1, False, perplexity=estimate(54.0))
    text = " ".join(prose.summary(make_board(rows=[worse, zero])))
    assert "cannot be told from 0" in text
    assert "the intervals overlap" in text


def test_summary_of_a_chosen_mu_names_its_epsilon() -> None:
    text = " ".join(prose.summary(make_board(rows=[row(0.1, True, target=None, matching=None, label="DEL, mu 21.4")])))
    assert "mu 21.4" not in text
    assert "At μ\u00a0=\u00a021.4, exact ε\u00a0=\u00a0231 a token" in text


def test_summary_without_del_says_so() -> None:
    assert "Only controls" in " ".join(prose.summary(make_board(rows=[row("clean", False)])))


def test_warnings_follow_from_the_numbers() -> None:
    text = "\n".join(cautions.warnings(make_board()))
    assert text.startswith("These numbers are made up.")
    assert "say almost nothing (ε up to 16\u202f900 for a prompt): DEL (at all settings)" in text
    assert "Theorem 4.2" in text
    assert "look at R" in text
    assert "from PPL 636 to 59.3" in text


def test_places_that_are_given_away_are_a_warning() -> None:
    board = make_board()
    tested = next(row for row in board.rows if row.method == "del")
    for value, told in ((0.81, True), (0.05, False)):
        found = {"bigram prior": {"last top-1": rate(value, n=64)}}
        rows = [row.model_copy(update={"recovery": found}) if row is tested else row for row in board.rows]
        texts = [text for text in cautions.warnings(board.model_copy(update={"rows": rows})) if "last tokens" in text]
        assert [f"{tested.label} gives away" in text and "read 81%" in text for text in texts] == [True] * told


def test_a_method_at_the_guarantee_of_del_is_told_beside_it() -> None:
    def given(method: str, last: float, epsilon: float = 231.0, **changes: object) -> LeaderboardRow:
        found = row(0.1, True, target=None, matching=None, method=method, label=f"{method}, given value", **changes)
        recovery = {OPTIMAL: {"content top-1": rate(last / 4), "last top-1": rate(last)}}
        privacy = found.privacy.model_copy(update={"epsilon_token": epsilon})
        return found.model_copy(update={"recovery": recovery, "privacy": privacy})

    ours, plus = given("del", 0.2), given("del-plus", 0.8, retained=estimate(0.4))
    text = " ".join(prose.outcome(make_board(rows=[ours, plus])))
    assert "del-plus at the same guarantee (in brackets del): R = 0.400 (0.112), the strongest attack reads" in text
    assert "20% (5.0%) of those that carry content, 80% (20%) of the last tokens of prompts." in text
    weaker = given("del-plus", 0.8, epsilon=300.0)
    assert "same guarantee" not in " ".join(prose.outcome(make_board(rows=[ours, weaker])))


def test_strong_guarantee_gets_no_warning() -> None:
    strong = row(0.02, False)
    strong.privacy = strong.privacy.model_copy(
        update={"mu_token": 0.1, "epsilon_token": 0.3, "epsilon_sequence": 2.0, "paper_bound_vacuous": False}
    )
    board = make_board(rows=[strong], notes=[])
    assert cautions.warnings(board) == []
    assert "by at most 7.39" in " ".join(prose.privacy_statement(strong))


def test_the_statement_itself_is_printed() -> None:
    found = PrivacyStatement.for_quantizer(dim=18, bits=4, mu=20.0, sequence_tokens=50)
    strict = row(0.02, False).model_copy(update={"privacy": found.columns()})
    line = found.summary()
    assert prose.privacy_statement(strict)[-1] == line[0].upper() + line[1:] + "."


def test_missed_calibration_is_a_warning() -> None:
    board = make_board()
    found = board.calibrations[0].found["nearest"][0]
    found.reached, found.note = False, "smallest mu of the range returned"
    found.asr = found.asr.model_copy(update={"value": 0.37})
    text = f"Calibration, target out of reach: nearest-neighbour ASR {found.target:g} for DEL (37% at the smallest"
    assert any(text in warning for warning in cautions.warnings(board))
    board.notes.append(found.note)
    assert not any("out of reach" in text for text in cautions.warnings(board))


def test_methods_that_miss_the_same_targets_share_a_sentence() -> None:
    board = make_large_board()
    for place, method in enumerate(board.calibrations):
        worst = method.found["worst"][0]
        worst.reached, worst.note = False, "out of reach"
        worst.asr = worst.asr.model_copy(update={"value": 0.2 + 0.01 * place})
    (text,) = [warning for warning in cautions.warnings(board) if "out of reach" in warning]
    assert all(method.label in text for method in board.calibrations)
    assert text.count("worst-case ASR") == 1
    assert text.endswith(f"(20% to {20 + len(board.calibrations) - 1}% at the smallest value tried).")


def test_a_method_that_stays_below_a_target_did_not_miss_it() -> None:
    board = make_board()
    found = board.calibrations[0].found["nearest"][1]
    found.reached, found.asr = False, found.asr.model_copy(update={"value": 0.02})
    assert cautions.verdict(found) == "stays below the target"
    assert any("stays below the target: nearest-neighbour ASR" in text for text in cautions.warnings(board))
    assert not any("out of reach" in text for text in cautions.warnings(board))


def against_del(nll: float, retained: float) -> list[LeaderboardRow]:
    """DEL and one other method, matched, with a paired difference of ``nll``."""
    other = other_row("metric", "nearest", 0.1, True)
    changes = {"difference": PairedDifference(nll=noisy(nll)), "retained": estimate(retained)}
    return [row(0.1, False), row(0.1, True), other.model_copy(update=changes)]


def test_summary_names_the_winner_whoever_it_is() -> None:
    text = " ".join(prose.summary(make_board(rows=against_del(-0.05, 0.3))))
    assert "of 2 methods Metric-DP retains most of the prompt (R = 0.300" in text
    assert "better than DEL by more than the noise (−0.050 [−0.070, −0.029] nats a token, paired)" in text
    text = " ".join(prose.summary(make_board(rows=against_del(0.05, 0.05))))
    assert "of 2 methods DEL retains most" in text
    assert "the next is Metric-DP" in text
    assert "worse than DEL by more than the noise" in text


def test_the_first_of_those_that_retain_nothing_is_not_said_to_retain_most() -> None:
    nothing = {"retained": Estimate(value=-2.1, n=64, low=-2.6, high=-1.7, interval="bootstrap")}
    board = make_board(rows=[one.model_copy(update=nothing) for one in against_del(0.05, 0.05) if one.soft_prompt])
    assert "retains most" not in " ".join(prose.summary(board))
    assert "comes first without being shown to retain anything of the prompt (R = −2.10" in " ".join(
        prose.summary(board)
    )
    warned = [text for text in cautions.warnings(board) if "does worse than behind no text at all" in text]
    assert len(warned) == 1
    assert "DEL, ASR 0.1" in warned[0]
    assert not any("no text at all" in text for text in cautions.warnings(make_board()))


def test_summary_says_where_the_interval_does_not_separate() -> None:
    text = " ".join(prose.summary(make_board(rows=against_del(-0.01, 0.3))))
    assert "a difference to DEL inside the noise (−0.010 [−0.030, 0.011]" in text


def test_without_soft_prompts_the_winner_is_told_by_perplexity() -> None:
    rows = [row(0.1, False), other_row("metric", "nearest", 0.1, False), other_row("inferdpt", "nearest", 0.1, False)]
    text = " ".join(prose.summary(make_board(rows=rows)))
    assert "of 2 methods DEL has the lowest PPL without a soft prompt" in text
    assert "1 method is not ranked for want of a PPL" in text


def test_each_matching_has_its_winner() -> None:
    sentences = list(prose.winners(make_large_board()))
    assert [text.partition(",")[0] for text in sentences] == [
        "Matched by nearest-neighbour ASR 0.1",
        "Matched by worst-case ASR 0.1",
    ]
    assert "6 methods are not ranked for want of a soft prompt" in sentences[0]


def test_caveats_are_told_once_whatever_their_numbers() -> None:
    board = make_large_board()
    notes = cautions.caveats(board)
    assert len({note.mark for note in notes}) == len(notes) == len({note.key for note in notes})
    metric = next(note for note in notes if "Metric-DP" in note.methods)
    assert metric.methods == ("Metric-DP", "Metric-DP as released by SnD")
    assert " to " in metric.text
    assert "L2 distance" in metric.text  # a number that is the same everywhere stays
    mark = cautions.caveat_marks(board)
    rows = [item for item in board.rows if item.method == "metric"]
    assert {mark(item.privacy) for item in rows} == {metric.mark}
    assert mark(row("clean", False).privacy) == ""


def test_other_kinds_of_guarantees_are_a_warning() -> None:
    texts = [text for text in cautions.warnings(make_large_board()) if "different kinds" in text]
    assert len(texts) == 1
    assert "SANTEXT+" in texts[0]
    assert "Gaussian" not in texts[0]


def test_methods_that_are_meant_as_a_whole_are_named_once() -> None:
    (text,) = [text for text in cautions.warnings(make_large_board()) if "say almost nothing" in text]
    assert text.count("DP-Forward as released") == 1
    assert "InferDPT (at all settings)." in text


def test_measured_rate_above_the_certified_bound_is_a_warning() -> None:
    board = make_board(rows=[row(0.1, False, certified=0.2)])
    assert "more often than the certified bound allows: DEL, ASR 0.1" in "\n".join(cautions.warnings(board))
    # An attack that reads the context knows more than the bound supposes.
    contextual = {NEAREST: rate(0.1), OPTIMAL: rate(0.15), "LM prior, sequence": rate(0.5)}
    board = make_board(rows=[row(0.1, False, certified=0.2, asr=contextual)])
    assert "certified bound" not in "\n".join(cautions.warnings(board))


def test_statement_without_epsilon_gives_the_caveat() -> None:
    text = " ".join(prose.privacy_statement(other_row("metric", "nearest", 0.1, False)))
    assert "nothing is claimed for the worst case" in text
    assert "Metric privacy at eta" in text
    text = " ".join(prose.privacy_statement(other_row("custext", "nearest", 0.1, False)))
    assert "worst case, with the caveat below: ε" in text
