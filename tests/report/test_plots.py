import math
import re
from xml.etree import ElementTree

import pytest

from del_lightning.report import plots
from del_lightning.report.schema import Estimate, TrainingCurve
from tests.report.factory import make_board, row


def test_utility_plot_marks_every_row_in_its_colour_and_shape() -> None:
    svg = plots.privacy_utility(make_board(), "perplexity")
    ElementTree.fromstring(svg)
    text = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    for label in ("clean", "mean", "projection", "DEL 0.02", "DEL 0.1"):
        assert text.count(label) == 2
    # Filled nearest-neighbour and hollow Bayes-optimal markers, in both colours.
    for colour in ("with", "without"):
        assert len(re.findall(rf"<use [^>]*fill: var\(--{colour}\)", svg)) == 5
        assert len(re.findall(rf"<use [^>]*fill: var\(--paper\); stroke: var\(--{colour}\)", svg)) == 5


@pytest.mark.parametrize("metric", ["perplexity", "coherence"])
def test_figures_are_deterministic_and_share_no_id(metric: str) -> None:
    board = make_board()
    svg = plots.privacy_utility(board, metric)
    assert svg == plots.privacy_utility(board, metric)
    ids = re.findall(r'\bid="([^"]*)"', svg)
    assert len(ids) == len(set(ids))
    assert all(name.startswith(f"{metric}-") for name in ids)
    for used in re.findall(r'(?:url\(|href=")#([\w.-]+)', svg):
        assert used in ids


def test_figures_hold_no_address_style_sheet_or_placeholder_colour() -> None:
    board = make_board()
    for svg in (plots.privacy_utility(board, "coherence"), plots.communication(board), plots.calibration(board)):
        assert "http" not in svg
        assert "<style" not in svg
        assert not re.search(r"#0[1-6]0[1-6]0[1-6]", svg)
        assert "font-family" not in svg


def test_labels_are_escaped_and_not_read_as_formulas() -> None:
    item = row(0.1, True, target=None, label="<b>$x$</b>")
    svg = plots.privacy_utility(make_board(rows=[item]), "perplexity")
    assert "&lt;b&gt;$x$&lt;/b&gt;" in svg


def test_utility_plot_leaves_out_what_it_cannot_place() -> None:
    infinite = row("mean", False, perplexity=Estimate(value=math.inf, n=3))
    assert plots.privacy_utility(make_board(rows=[infinite]), "perplexity") == ""
    assert plots.privacy_utility(make_board(rows=[row("clean", False, asr={})]), "coherence") == ""
    alone = row("clean", False, coherence=Estimate(value=0.4, n=3))
    assert "clean" in plots.privacy_utility(make_board(rows=[infinite, alone]), "coherence")


def test_payloads_are_sorted_and_name_the_references() -> None:
    names = {name: (bits, tested) for name, bits, tested in plots.payloads(make_board())}
    assert list(names) == [plots.TEXT, "DEL", "projection, fp32", "embedding, fp16", "embedding, fp32"]
    assert names["DEL"] == (72, True)
    assert names["embedding, fp32"] == (18432, False)
    assert names["embedding, fp16"] == (9216, False)


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


def test_calibration_shows_targets() -> None:
    svg = plots.calibration(make_board())
    assert ">target 0.02</text>" in svg
    assert ">target 0.1</text>" in svg
    assert plots.calibration(make_board(calibrations=[])) == ""


def test_settings_that_targets_share_are_drawn_once() -> None:
    board = make_board()
    board.calibrations[1].evidence = board.calibrations[0].evidence
    shared = plots.calibration(board)
    board.calibrations[1].evidence = []
    assert plots.calibration(board) == shared
