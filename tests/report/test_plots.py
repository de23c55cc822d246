import math
import re
from xml.etree import ElementTree

import pytest

from del_lightning.config import METHODS
from del_lightning.report import attack_plots, drawing, plots, words
from del_lightning.report.schema import Estimate, TrainingCurve
from tests.report.factory import STRENGTH, attack_curve, estimate, make_board, make_large_board, other_row, row


def drawn_markers(svg: str, colour: str) -> int:
    return len(re.findall(rf"<use [^>]*fill: var\(--{colour}\)", svg))


def test_utility_curves_mark_every_setting_in_the_methods_colour() -> None:
    svg = plots.utility_curves(make_board(), "ppl-prompted")
    ElementTree.fromstring(svg)
    assert drawn_markers(svg, "with") == 2
    text = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert "mean embedding" in text
    assert "↓ clean prompt 22.5" in text  # too far below DEL for a line


def test_each_method_has_its_own_look() -> None:
    found = drawing.styles(make_large_board())
    assert len(set(found.values())) == len(found) == 15
    assert found["del"].variable == "with"
    svg = plots.utility_curves(make_large_board(), "retained")
    for style in (found["del"], found["metric"], found["gaussian"]):
        assert f"var(--{style.variable})" in svg


def test_a_method_looks_the_same_whatever_else_a_page_shows() -> None:
    tested = [name for name in METHODS if name not in ("clean", "mean", "random", "projection")]
    everything = drawing.styles_of(tested)
    looks = {(style.colour, style.marker) for style in everything.values()}
    assert len(looks) == len(tested)
    for name in tested:
        alone = drawing.styles_of([name])[name]
        assert (alone.colour, alone.marker) == (everything[name].colour, everything[name].marker)
    assert [everything[name].variable for name in ("del", "del-plus")] == ["with", "hue-1"]


def test_bits_change_a_methods_marker_and_line_but_not_its_colour() -> None:
    style = drawing.styles_of(["del"])["del"]
    found = [drawing.at_bits(style, bits, f"m{bits}") for bits in (1, 2, 4, 8)]
    assert {one.colour for one in found} == {style.colour}
    assert len({one.marker for one in found}) == len({one.line for one in found}) == 4
    assert drawing.at_bits(style, None, style.tag) == style


@pytest.mark.parametrize("mean", [0.0, 0.5], ids=["line within the axes", "line outside"])
def test_names_of_controls_do_not_meet(mean: float) -> None:
    """Where every method is behind no text at all, both controls lie at or above the top of the axes."""
    controls = [row("mean", True, retained=estimate(mean)), row("clean", True, retained=estimate(1.0))]
    behind = [row(0.1, True, retained=estimate(-0.2)), row(0.02, True, retained=estimate(-0.1))]
    svg = plots.utility_curves(make_board(rows=[*behind, *controls]), "retained")
    found = re.findall(r'text-anchor: (\w+)[^>]*y="([\d.]+)"[^>]*>(?:↑ )?(?:mean embedding|clean prompt)', svg)
    assert len(found) == len(set(found)) == 2
    (one, upper), (other, lower) = found
    assert one != other or abs(float(upper) - float(lower)) >= 9


def test_curves_carry_their_methods_tag() -> None:
    board = make_large_board()
    svg = plots.utility_curves(board, "coherence")
    for style in drawing.styles(board).values():
        assert svg.count(f'id="coherence-{style.tag}-') >= 4  # the line and a point a setting


def test_settings_that_two_matchings_share_are_one_point() -> None:
    twice = [row(0.1, True), row(0.1, True, matching="worst", label="DEL, worst ASR 0.1"), row(0.02, True)]
    assert drawn_markers(plots.utility_curves(make_board(rows=twice), "retained"), "with") == 2


def test_text_only_method_is_drawn_where_it_has_a_number() -> None:
    board = make_board(rows=[other_row("inferdpt", "nearest", 0.1, False)])
    assert plots.utility_curves(board, "ppl-plain") == ""
    assert plots.utility_curves(board, "retained") == ""
    assert "<use" in plots.utility_curves(board, "coherence")


def test_bits_need_two_methods_and_keep_them_apart() -> None:
    assert plots.utility_bits(make_board()) == ""
    svg = plots.utility_bits(make_large_board())
    assert drawn_markers(svg, "with") == 1
    places = re.findall(r'<use [^>]*x="([\d.]+)" y="[\d.]+" style="fill: var\(--(?:with|hue)', svg)
    assert len(places) == len(set(places)) == 9


@pytest.mark.parametrize("name", plots.METRICS)
def test_figures_are_deterministic_and_share_no_id(name: str) -> None:
    board = make_board()
    svg = plots.utility_curves(board, name)
    assert svg == plots.utility_curves(board, name)
    ids = re.findall(r'\bid="([^"]*)"', svg)
    assert len(ids) == len(set(ids))
    assert all(item.startswith(f"{name}-") for item in ids)
    for used in re.findall(r'(?:url\(|href=")#([\w.-]+)', svg):
        assert used in ids


def test_figures_hold_no_address_style_sheet_or_placeholder_colour() -> None:
    board = make_large_board(curves=[])
    figures = [plots.utility_curves(board, "coherence"), plots.utility_bits(board), plots.communication(board)]
    for svg in [*figures, *(svg for _, svg in attack_plots.calibrations(board))]:
        assert "http" not in svg
        assert "<style" not in svg
        assert not re.search(r"#0[0-9a-f]0[0-9a-f]0[0-9a-f]", svg)
        assert "font-family" not in svg


def test_labels_are_escaped_and_not_read_as_formulas() -> None:
    item = row(0.1, True, target=None, label="<b>$x$</b>")
    svg = plots.communication(make_board(rows=[item]))
    assert "&lt;b&gt;$x$&lt;/b&gt;" in svg


def test_utility_curves_leave_out_what_they_cannot_place() -> None:
    infinite = row(0.02, False, perplexity=Estimate(value=math.inf, n=3))
    assert plots.utility_curves(make_board(rows=[infinite]), "ppl-plain") == ""
    assert plots.utility_curves(make_board(rows=[row(0.1, False, asr={})]), "coherence") == ""
    alone = row(0.1, False, perplexity=Estimate(value=40.0, n=3))
    assert "<use" in plots.utility_curves(make_board(rows=[infinite, alone]), "ppl-plain")


def test_shapes_are_outlines_in_a_unit_box() -> None:
    found = drawing.shapes()
    assert len(set(found.values())) == len(found)
    for outline in found.values():
        numbers = [float(number) for number in re.findall(r"-?[\d.]+", outline)]
        assert outline.startswith("M")
        assert max(map(abs, numbers)) <= math.sqrt(2) + 0.01


def test_payloads_are_sorted_and_name_the_references() -> None:
    names = {name: (bits, tested) for name, bits, tested in plots.payloads(make_board())}
    assert list(names) == [plots.TEXT, "DEL", "projection, fp32", "embedding, fp16", "embedding, fp32"]
    assert names["DEL"] == (72, True)
    assert names["embedding, fp32"] == (18432, False)
    assert names["embedding, fp16"] == (9216, False)


def test_methods_with_equal_payloads_share_a_bar() -> None:
    names = {name: bits for name, bits, _ in plots.payloads(make_large_board())}
    assert names["SANTEXT and 5 others"] == 16
    assert names["DEL and 1 other"] == 72


def test_communication_of_nothing_is_no_figure() -> None:
    assert plots.communication(make_board(rows=[row("mean", False)])) == ""


def test_curves_need_two_validations() -> None:
    short = TrainingCurve(name="short", history=[{"step": 0, "val/perplexity": 9.0}, {"step": 5, "train/loss": 1.0}])
    names = [name for name, _ in plots.training_curves(make_board())]
    assert len(names) == 6
    assert plots.training_curves(make_board(curves=[short])) == []


def test_curve_marks_the_best_validation() -> None:
    history = [{"step": step, "val/perplexity": value} for step, value in ((0, 80.0), (50, 31.7), (100, 33.0))]
    ((_, svg),) = plots.training_curves(make_board(curves=[TrainingCurve(name="a", history=history)]))
    assert ">31.7</text>" in svg
    assert ">100</text>" in svg


def test_every_calibrated_method_has_a_figure() -> None:
    board = make_large_board()
    figures = attack_plots.calibrations(board)
    assert [name for name, _ in figures] == [method.label for method in board.calibrations]
    assert ">η tried</text>" in dict(figures)["Metric-DP"]
    assert attack_plots.calibrations(make_board(calibrations=[])) == []


def test_only_reported_settings_are_marked() -> None:
    ((_, svg),) = attack_plots.calibrations(make_board())
    assert drawn_markers(svg, "with") == 2  # the worst-case matching was calibrated but is no part of this board


def test_attack_curves_draw_every_attack_with_its_band_and_the_bound() -> None:
    board = make_board(attack_curves=[attack_curve(), attack_curve("gaussian-code", "Gaussian mechanism")])
    figures = attack_plots.attack_curves(board)
    assert [name for name, _ in figures] == ["DEL", "Gaussian mechanism"]
    for _, svg in figures:
        ElementTree.fromstring(svg)
        text = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
        assert {*map(words.attack_name, STRENGTH), "certified, one token"} <= set(text)
        assert svg.count("FillBetweenPolyCollection") == len(STRENGTH)
    assert attack_plots.attack_curves(make_board()) == []


def test_attack_that_was_not_run_on_a_method_keeps_its_look_elsewhere() -> None:
    whole, part = attack_curve(), attack_curve("metric", "Metric privacy")
    for point in part.points:
        del point.asr["nearest neighbour (cosine)"]
    part.certified[:] = [None] * len(part.points)
    (_, one), (_, two) = attack_plots.attack_curves(make_board(attack_curves=[whole, part]))
    assert "nearest neighbour (cosine)" not in two
    assert "certified" not in two
    colour = re.compile(r'stroke: (var\(--[\w-]+\))[^"]*stroke-width: 1\.4')
    assert colour.findall(one)[1:] == colour.findall(two)


def test_end_labels_keep_their_distance() -> None:
    assert drawing.spread([1.0, 2.0, 50.0], 10.0, 100.0) == [1.0, 11.0, 50.0]
    assert drawing.spread([95.0, 96.0, 97.0], 10.0, 100.0) == [80.0, 90.0, 100.0]
    assert drawing.spread([], 10.0, 100.0) == []
