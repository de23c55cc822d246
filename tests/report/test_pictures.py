import re
from xml.etree import ElementTree

from del_lightning.report import arrange, pictures
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
