import html
import json
import math
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import pytest

from del_lightning.report import arrange, words
from del_lightning.report.page import command, render_html, write_report
from del_lightning.report.schema import Leaderboard, Texts
from del_lightning.report.stored import rounded
from tests.report.factory import make_board, make_large_board, make_samples, other_row, row

VOID = {"meta", "link", "br", "img", "use", "path", "circle", "input"}


class Page(HTMLParser):
    """Collects ids, references, tags and text; checks that tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name in ("src", "href", "xlink:href", "action", "srcset", "data"):
                self.links.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def board() -> Leaderboard:
    return make_board()


@pytest.fixture(scope="module")
def page(board: Leaderboard) -> str:
    return render_html(board, make_samples(board))


@pytest.fixture(scope="module")
def large_page() -> str:
    return render_html(make_large_board(curves=[]), [])


def test_every_row_is_there_with_intervals(board: Leaderboard, page: str) -> None:
    table = page[page.index('<section id="leaderboard"') : page.index('<section id="privacy-utility"')]
    assert table.count('<th scope="row"') == len(arrange.entries(board.rows))
    for item in board.rows:
        assert item.label in table
        assert words.interval(item.perplexity) in table
        assert words.per_cent_interval(item.asr["Bayes-optimal"]) in table
    assert words.interval(board.rows[-1].retained) in table
    assert "COH[all-minilm-l6-v2]" in table
    assert table.count("<details") == table.count(" open>") == 2


def test_large_leaderboard_opens_what_the_summary_quotes(large_page: str) -> None:
    opened = re.findall(r'<details class="group" id="([^"]*)" open>', large_page)
    assert opened == ["controls", "nearest-0.1", "worst-0.1", "guarantee-0.1"]
    assert len(re.findall(r'<details class="group"', large_page)) == 10
    assert Page(large_page).open == []
    assert "inside the noise" in large_page


def test_every_column_of_a_group_has_its_cells(large_page: str) -> None:
    for table in re.findall(r'<table class="leaderboard">(.*?)</table>', large_page, flags=re.DOTALL):
        head, body = table.split("</thead>")
        columns = head.count('<th scope="col"')
        assert head.count('class="extra"') > 4
        for line in body.split("<tr")[1:]:
            assert line.count("<td") == columns - 1
            assert line.count('class="extra"') == head.count('class="extra"')


def test_notes_of_the_table_are_listed_once(large_page: str) -> None:
    marks = set(re.findall(r"<td[^>]*>[^<]*<sup>(\w)</sup>", large_page))
    notes = re.findall(r"<li><sup>(\w)</sup>", large_page)
    assert sorted(marks) == notes == list("abcdefgh")


def test_page_is_self_contained(page: str) -> None:
    parsed = Page(page)
    assert parsed.open == []
    assert len(parsed.ids) == len(set(parsed.ids))
    for link in parsed.links:
        assert link in ("data:,", "report.md", "leaderboard.json") or link.removeprefix("#") in parsed.ids
    assert parsed.tags.count("script") == 1
    assert "img" not in parsed.tags
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_sections_stand_in_order(page: str) -> None:
    wanted = (
        "caution leaderboard privacy-utility communication device training calibration samples guarantees "
        "configuration environment reproduce glossary"
    )
    places = [page.index(f'id="{name}"') for name in wanted.split()]
    assert places == sorted(places)


def test_hostile_text_stays_text(board: Leaderboard, page: str) -> None:
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(&#39;read me&#39;)&lt;/script&gt;" in page
    assert "<b>second</b>" not in page
    evil = '"><script>x</script>'
    changed = make_board(title=evil, notes=[evil], rows=[row(0.1, True, label=evil)], model=evil)
    text = render_html(changed, [])
    assert "<script>x" not in text
    assert Page(text).tags.count("script") == 1


def test_mu_never_stands_alone(page: str) -> None:
    cells = re.findall(r"<(?:td|li|p|figcaption)\b[^>]*>(.*?)</(?:td|li|p|figcaption)>", page, flags=re.DOTALL)
    shown = [html.unescape(cell) for cell in cells if re.search(r"μ\s*(eff)?\s*=?\s*\d", html.unescape(cell))]
    assert len(shown) > 4
    assert all("ε" in cell for cell in shown)


def test_output_is_deterministic(board: Leaderboard, page: str) -> None:
    assert render_html(board, make_samples(board)) == page


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": [row(0.1, True, retained=None)]},
        {"rows": [row("clean", False)], "curves": [], "calibrations": [], "notes": []},
        {"rows": [], "curves": [], "calibrations": []},
        {"rows": [row(0.1, False, asr={}, target=None)]},
        {"rows": [other_row("inferdpt", "worst", 0.1, False)]},
        {"rows": [other_row("metric", "guarantee", 0.1, True, label="no setting")]},
    ],
)
def test_thin_results_still_make_a_page(changes: dict[str, object]) -> None:
    text = render_html(make_board(**changes), [])
    assert Page(text).open == []
    assert 'id="samples"' not in text


def test_sections_without_content_are_left_out() -> None:
    text = render_html(make_board(curves=[], calibrations=[]), [])
    for name in ("training", "calibration", "samples"):
        assert f'id="{name}"' not in text
        assert f'href="#{name}"' not in text


def test_continuations_follow_the_table_and_none_is_lost(board: Leaderboard) -> None:
    sample = make_samples(board)[0]
    sample.continuations = {"stray": "zzz", **dict(reversed(sample.continuations.items()))}
    text = render_html(board, [sample])
    articles = re.findall(r"<article[^>]*><h4>(.*?)</h4>", text)
    assert articles == [*(words.row_name(item) for item in board.rows), "stray"]


def test_continuations_at_other_settings_are_folded_away() -> None:
    board = make_large_board(curves=[], calibrations=[])
    board.rows = [item for item in board.rows if item.method in ("clean", "del", "metric", "custext")]
    sample = make_samples(board)[0]
    shown = render_html(board, [sample])
    quoted, _, rest = shown[shown.index('id="samples"') :].partition("continuations at other settings</summary>")
    assert "<h4>DEL, ASR 0.1 + soft prompt</h4>" in quoted
    assert "<h4>DEL, ASR 0.02 + soft prompt</h4>" in rest
    assert (quoted + rest).count("<article") == len(board.rows)


def test_half_a_surrogate_pair_does_not_break_the_file(board: Leaderboard, tmp_path: Path) -> None:
    sample = make_samples(board)[0]
    sample.prompt = "broken \ud83d emoji"
    path = write_report(tmp_path, board, [sample])
    assert "broken ? emoji" in path.read_text(encoding="utf-8")


def test_write_report_leaves_whole_files_and_texts_apart_from_numbers(board: Leaderboard, tmp_path: Path) -> None:
    path = write_report(tmp_path / "a" / "b", board, make_samples(board))
    assert path == tmp_path / "a" / "b" / "index.html"
    names = ["index.html", "leaderboard.json", "report.md", "texts.json"]
    assert sorted(file.name for file in path.parent.iterdir()) == names
    text = (path.parent / "leaderboard.json").read_text(encoding="utf-8")
    assert "NaN" not in text
    json.loads(text, parse_constant=lambda name: pytest.fail(f"not JSON: {name}"))
    again = Leaderboard.model_validate_json(text)
    assert again == Leaderboard.model_validate(rounded(board.model_dump()))
    assert any(math.isinf(item.communication.ratio_fp32) for item in again.rows)
    assert "made-up harbour" not in text + (path.parent / "report.md").read_text(encoding="utf-8")
    texts = Texts.model_validate_json((path.parent / "texts.json").read_text(encoding="utf-8"))
    assert (texts.title, texts.generated) == (board.title, board.generated)
    assert texts.samples == make_samples(board)


def test_command_is_the_one_that_was_typed() -> None:
    overrides = ["experiment=quickstart", "title=a 'quoted' title", "data.root=DIR"]
    words = shlex.split(command(make_board(overrides=overrides)))
    assert words == ["python", "-m", "del_lightning", *overrides, "model.dtype=float32"]  # another machine may choose
    assert command(make_board(overrides=["model.dtype=bfloat16"])).endswith("del_lightning model.dtype=bfloat16")
    assert command(make_board(overrides=[])) == "python -m del_lightning stage=pipeline model.dtype=float32"
