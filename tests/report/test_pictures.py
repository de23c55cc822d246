import re
from xml.etree import ElementTree

import pytest

from del_lightning.report import arrange, pictures
from del_lightning.report.schema import Estimate
from tests.report.factory import make_large_board


def test_a_picture_stands_alone() -> None:
    board = make_large_board()
    picture = pictures.utility(board)
    root = ElementTree.fromstring(picture)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    used, defined = (set(re.findall(pattern, picture)) for pattern in (r"var\((--[\w-]+)\)", r"(--[\w-]+): #"))
    assert used
    assert used <= defined
    names = re.findall(r"(?<=href=\"#)[^\"]+|(?<=url\(#)[^)]+", picture)
    ids = re.findall(r"\bid=\"([^\"]+)", picture)
    assert set(names) <= set(ids)
    assert len(ids) == len(set(ids))
    assert "prefers-color-scheme: dark" in picture
    assert not re.search(r"https?://(?!www\.w3\.org)", picture)


def test_its_key_names_what_is_drawn_and_nothing_else() -> None:
    board = make_large_board()
    drawn = {entry.row.method for entry in arrange.tested(board) if entry.retained is not None}
    shown = {title: method in drawn for method, title in arrange.method_names(board).items()}
    picture = pictures.utility(board)
    assert set(shown.values()) == {True, False}  # the board has methods of either kind
    for title, expected in shown.items():
        assert (f">{title}</text>" in picture) is expected


def test_the_same_twice_and_nothing_without_points() -> None:
    board = make_large_board()
    assert pictures.utility(board) == pictures.utility(board)
    for row in board.rows:
        row.retained = None
    assert pictures.utility(board) == ""


def test_a_frontier_has_a_marker_a_setting_and_names_each_series() -> None:
    def at(value: float) -> Estimate:
        return Estimate(value=value, n=3, low=value - 0.01, high=value + 0.01)

    points = {"DEL": [(at(0.2), at(0.02)), (at(0.4), at(0.05))], "DEL+": [(at(0.19), at(0.3))], "unused": []}
    picture = pictures.frontier("PTB", points)
    ElementTree.fromstring(picture)
    assert [re.search(f">{name}</text>", picture) is not None for name in points] == [True, True, False]
    bars = {name: len(re.findall(f'id="frontier-{name}-\\d+-0"', picture)) for name in ("m0", "m1", "m2")}
    assert bars == {"m0": 2, "m1": 1, "m2": 0}
    assert pictures.frontier("PTB", {"DEL": []}) == ""


@pytest.mark.parametrize("rows", [0, 1])
def test_a_frontier_of_few_points(rows: int) -> None:
    whole = Estimate(value=0.0, n=1)
    assert bool(pictures.frontier("PTB", {"DEL": [(whole, whole)] * rows})) is bool(rows)
