"""The site of many runs: what it reads, what it says, and that it needs nothing but itself."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape

from del_lightning.config import Config, ReportConfig, StageConfig
from del_lightning.errors import ArtifactError, ConfigError
from del_lightning.report.schema import (
    Estimate,
    Leaderboard,
    NluLeaderboard,
    PairedDifference,
    Texts,
    TransferBoard,
    TransferCell,
)
from del_lightning.report.site import load, write_site
from del_lightning.report.site.claims import Comparison, minus, weigh
from del_lightning.report.site.overview import FEWEST, HEADINGS, WITH_PROMPT, covering
from del_lightning.report.site.pareto import front
from del_lightning.report.site.replication import ITEMS
from del_lightning.report.site.runs import Run
from del_lightning.stages import report
from del_lightning.stages.checks import check
from del_lightning.stages.workspace import Workspace
from tests.report.factory import (
    attack_curve,
    attacked,
    estimate,
    make_board,
    make_gallery,
    make_large_board,
    make_samples,
    rate,
)
from tests.report.test_nlu import board as glue

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
CELL: dict[str, Any] = {"perplexity": estimate(40.0), "coherence": estimate(0.2), "agreement": estimate(0.3)}


class Links(HTMLParser):
    """Every address and identifier of a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.names: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.links += [found[name] or "" for name in ("href", "src", "action") if name in found]
        if "id" in found:
            self.names.append(found["id"] or "")


def store(folder: Path, board: Leaderboard | NluLeaderboard | TransferBoard, name: str = "leaderboard.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(board.model_dump_json())
    return folder


def site(tmp_path: Path, *boards: Leaderboard | TransferBoard) -> Path:
    places = [store(tmp_path / "results" / str(number), board) for number, board in enumerate(boards)]
    return write_site(tmp_path / "site", load(places).runs)


def labels_of(board: Leaderboard) -> set[str]:
    return {row.label for row in board.rows}


def difference(value: float) -> PairedDifference:
    return PairedDifference(nll=Estimate(value=value, n=9, low=value - 0.05, high=value + 0.05, interval="bootstrap"))


def make_transfer(mu_cost: float = 0.1, c4_gain: float = 0.3) -> TransferBoard:
    """Uses at mu 40: none, matched, trained at 52, trained on C4."""
    board = make_board()
    uses: list[tuple[str | None, float | None, float | None, float | None]] = [
        (None, None, 1.0, None),
        ("ptb", 40.0, None, -1.0),
        ("ptb", 52.0, mu_cost, mu_cost - 1),
        ("c4", 40.0, 1 - c4_gain, -c4_gain),
    ]
    cells = [
        TransferCell(
            **CELL,
            trained_on=source,
            trained_at=trained_at,
            used_at=40.0,
            over_matched=None if matched is None else difference(matched),
            over_none=None if none is None else difference(none),
        )
        for source, trained_at, matched, none in uses
    ]
    same = {name: getattr(board, name) for name in ("model", "encoder", "prompts", "private_tokens", "config", "seeds")}
    return TransferBoard(
        title="Transfer on ptb",
        schedule="made up",
        dataset="ptb",
        bits=4,
        dim=18,
        virtual_tokens=20,
        seed=0,
        privacy={"40": next(row.privacy for row in board.rows if not row.is_control)},
        cells=cells,
        environment=board.environment,
        wall_seconds=12.0,
        generated=board.generated,
        **same,
    )


def finding(anchor: str, *boards: Leaderboard | TransferBoard) -> Any:
    runs = [Run(f"run-{number}", "made up", board) for number, board in enumerate(boards)]
    return next(item for item in ITEMS if item.anchor == anchor).rule(runs)


# --- the pages --------------------------------------------------------------------------------------------------------


def test_committed_results_make_a_site_whose_links_all_lead_somewhere(committed_site: Path) -> None:
    found, home = load([RESULTS]), committed_site
    assert found.runs
    pages = {path: Links(path) for path in home.parent.rglob("*.html")}
    assert len(pages) == 2 + len(found.runs)
    for page, parsed in pages.items():
        assert len(parsed.names) == len(set(parsed.names)), page.name
        for link in parsed.links:
            place, _, anchor = link.partition("#")
            if place.startswith("data:"):
                continue
            target = (page.parent / place).resolve() if place else page
            assert target in pages, f"{page.name} -> {link}"
            assert not anchor or anchor in pages[target].names, f"{page.name} -> {link}"
    assert {link for link in pages[home].links if link.startswith("runs/")} == {run.page for run in found.runs}


def test_pages_load_nothing_and_name_no_machine(committed_site: Path) -> None:
    for page in committed_site.parent.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert "default-src 'none'" in text
        assert not re.search(r"(src|href|action)=\"(https?:)?//", text)
        assert str(committed_site.parent) not in text


def test_a_second_site_has_the_same_bytes_and_replaces_the_first(tmp_path: Path) -> None:
    def content() -> dict[str, bytes]:
        home = site(tmp_path, make_large_board(), make_transfer())
        return {path.relative_to(home.parent).as_posix(): path.read_bytes() for path in home.parent.rglob("*.html")}

    first = content()
    (tmp_path / "site" / "runs" / "left.html").write_text("of an earlier site")
    assert content() == first
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_line_a_setting_and_what_is_compared(tmp_path: Path) -> None:
    board = make_large_board()
    text = site(tmp_path, board).read_text(encoding="utf-8")
    labels = {row.label for row in board.rows}
    for label in labels:
        assert text.count(f'data-sort="{escape(label)}"') == 1
    assert "◆" in text
    # Soft prompt, method and matching; one data set and one model leave no choice.
    assert re.findall(r'<select data-key="(\w+)"', text) == ["prompt", "method", "matching"]


def test_the_first_page_begins_with_soft_prompts_and_explains_its_columns(tmp_path: Path) -> None:
    text = site(tmp_path, make_large_board(), make_transfer()).read_text(encoding="utf-8")
    places = [text.index(f'id="{name}"') for name in ("glossary", "generation", "curves", "runs")]
    assert places == sorted(places)
    assert "<h2>Text generation with soft prompts</h2>" in text
    assert f"<option selected>{WITH_PROMPT}</option>" in text
    table = text[text.index('<section id="generation"') : text.index('<section id="curves"')]
    headings = re.findall(r'<th scope="col"[^>]*?( title="[^"]{20,}")?><button', table)
    assert len(headings) == len(HEADINGS)
    assert all(headings)
    listed = re.findall(r"<dt>([^<]*)</dt>", text[: text.index('<section id="generation"')])
    asked = {"R", "PPL", "COH", "ASR", "Strongest attack", "μ", "ε, δ", "n", "Soft prompt", "Certified bound"}
    assert asked | {"Bits a token", "◆"} <= set(listed)
    assert re.search(r'<details class="glossary" id="glossary">', text), "folded until somebody asks"


def test_a_figure_has_a_key_of_its_methods_beside_it(tmp_path: Path) -> None:
    text = site(tmp_path, make_large_board()).read_text(encoding="utf-8")
    (figure,) = re.findall(r"<figure>.*?</figure>", text, re.DOTALL)
    names = re.findall(r"</svg>([^<]+)</span>", figure[figure.rindex('<p class="key">') :])
    assert "DEL" in names
    assert "SANTEXT" not in names, "it has no soft prompt and so no R"


def test_pages_can_be_read_without_seeing_them(tmp_path: Path) -> None:
    board = make_large_board(attack_curves=[attack_curve()], attacked=[attacked("DEL, ASR 0.1", 0.1, 0.2, 0.3)])
    recovery = {one: {"top-1": rate(0.1)} for one in ("nearest neighbour (cosine)", "Bayes-optimal")}
    board = board.model_copy(update={"rows": [row.model_copy(update={"recovery": recovery}) for row in board.rows]})
    folder = store(tmp_path / "results" / "0", board)
    texts = Texts(title=board.title, generated=board.generated, samples=make_samples(board), gallery=make_gallery())
    (folder / "texts.json").write_text(texts.model_dump_json())
    store(tmp_path / "results" / "1", make_transfer())
    store(tmp_path / "results" / "2", glue())
    home = write_site(tmp_path / "site", load([tmp_path / "results"]).runs)
    pages = list(home.parent.rglob("*.html"))
    assert len(pages) == 5
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert '<html lang="en">' in text
        assert text.count("<h1") == text.count("<main") == 1
        assert text.count("<table") == len(re.findall(r"<table[^>]*>\s*<caption[^>]*>[^<]{5,}</caption>", text)), page
        assert text.count("<figure") == len(re.findall(r'role="img" aria-label="[^"]{10,}"', text)), page
        assert "<img" not in text
        names = Links(page).names
        assert len(names) == len(set(names))


def test_many_runs_open_with_the_fewest_that_have_every_method(tmp_path: Path) -> None:
    broad = make_large_board()
    of_del = {
        "rows": [row for row in broad.rows if row.method == "del"],
        "calibrations": [one for one in broad.calibrations if one.method == "del"],
    }
    narrow = broad.model_copy(update={"title": "narrow", **of_del})
    other = make_board().model_copy(update={"dataset": "wikitext2"})
    runs = load([store(tmp_path / "results" / str(n), one) for n, one in enumerate((narrow, broad, other))]).runs
    assert {run.board.title for run in runs if run.slug in covering(runs)} == {broad.title, other.title}
    text = write_site(tmp_path / "site", runs).read_text(encoding="utf-8")
    assert f"<option selected>{FEWEST}</option>" in text
    assert text.count('data-runs=""') == len(labels_of(narrow))
    assert text.count(f'data-runs="{FEWEST}"') == len(labels_of(broad)) + len(labels_of(other))
    assert "Drawn are the fewest" in text
    assert "Drawn are the fewest" not in site(tmp_path / "broad", broad).read_text(encoding="utf-8")
    assert not any("narrow" in caption for caption in re.findall("<figcaption.*?</figcaption>", text))


def test_of_equally_broad_runs_what_has_most_trainings_is_shown() -> None:
    large = make_large_board()
    rows = [row.model_copy(update={"nll_by_prompt": [1.0]}) for row in large.rows]
    broad = large.model_copy(update={"rows": rows})
    changes: list[dict[str, Any]] = [{"targets": [0.3]}, {"seed": 1}]
    alone, again = (broad.model_copy(update={"config": {**broad.config, **change}}) for change in changes)
    narrow = broad.model_copy(update={"rows": [row for row in broad.rows if row.method == "del"]})
    runs = [Run(f"run-{number}", "made up", one) for number, one in enumerate((alone, broad, again, narrow))]
    assert covering(runs) == {"run-1"}


def test_runs_of_a_sweep_are_all_shown() -> None:
    board = make_board()
    runs = [Run(f"run-{mu}", "made up", board.model_copy(update={"config": {"mu": mu}})) for mu in (1, 2)]
    assert covering(runs) == {"run-1", "run-2"}


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    text = site(tmp_path, make_board(title="<script>alert(1)</script>")).read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text


def test_a_run_page_shows_samples_only_where_they_lie_beside_the_results(tmp_path: Path) -> None:
    board = make_board()
    texts = Texts(title=board.title, generated=board.generated, samples=make_samples(board), gallery=make_gallery())
    folder = store(tmp_path / "with", board)
    (folder / "texts.json").write_text(texts.model_dump_json())
    bare = store(tmp_path / "without", make_board(title="Another"))
    found = load([folder, bare])
    with_texts, without = sorted(found.runs, key=lambda run: run.texts is None)
    home = write_site(tmp_path / "site", found.runs)
    sample = texts.samples[0].continuations
    assert next(iter(sample.values())) in (home.parent / with_texts.page).read_text(encoding="utf-8")
    assert without.texts is None
    assert 'href="../index.html"' in (home.parent / without.page).read_text(encoding="utf-8")


def test_a_transfer_has_a_page_of_its_own(tmp_path: Path) -> None:
    home = site(tmp_path, make_board(), make_transfer())
    (run,) = (run for run in load([tmp_path / "results"]).runs if isinstance(run.board, TransferBoard))
    text = (home.parent / run.page).read_text(encoding="utf-8")
    assert text.count("<tr><td>") >= 4
    assert "no soft prompt" in text
    assert run.page in home.read_text(encoding="utf-8")


# --- what is read -----------------------------------------------------------------------------------------------------


def test_other_files_are_left_alone_and_named(tmp_path: Path) -> None:
    folder = store(tmp_path / "results", make_board())
    store(folder / "copy", make_board())
    (folder / "timing.json").write_text('{"seconds": 1}')
    found = load([folder])
    assert len(found.runs) == 1
    reasons = dict(found.skipped)
    assert reasons["results/timing.json"] == "no leaderboard"
    assert any(reason.startswith("the same as") for reason in reasons.values())


def test_bad_places_are_refused_before_a_page_is_written(tmp_path: Path) -> None:
    folder = store(tmp_path / "results", make_board())
    with pytest.raises(ConfigError, match=r"existing folders or JSON files, got .*/nowhere"):
        load([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="found none in"):
        load([folder, tmp_path / "empty"])
    (folder / "broken.json").write_text('{"rows": [')
    with pytest.raises(ArtifactError, match=rf"^`report.results`: {folder}/broken.json must hold JSON"):
        load([folder])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("leaderboard.json", {"a": 1}, r"must hold the leaderboard of stage report or nlu .*, got an object with .a.$"),
        ("leaderboard.json", {}, r"must hold the leaderboard .*, got an empty object$"),
        ("leaderboard.json", [1, 2], r"must hold the leaderboard .*, got a list$"),
        ("leaderboard.json", None, r"must hold the leaderboard .*, got null$"),
        ("transfer.json", 3, r"must hold the table of stage transfer .*, got 3$"),
        ("leaderboard.json", {"schema_version": 1}, r"must have schema version \d, got 1$"),
        ("leaderboard.json", {"schema_version": 99, "rows": [], "config": {}}, r"must have schema version \d, got 99$"),
        ("leaderboard.json", {"rows": 3, "config": {}}, r"must fit the schema of a leaderboard, got: .*$"),
    ],
)
def test_a_file_with_a_leaderboards_name_must_hold_one(tmp_path: Path, name: str, content: Any, message: str) -> None:
    folder = store(tmp_path / "results", make_board())
    (folder / "more").mkdir()
    (folder / "more" / name).write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=rf"^`report.results`: {folder}/more/{name} {message}") as caught:
        load([folder])
    assert "\n" not in str(caught.value)
    with pytest.raises(ArtifactError):
        report.merge([str(folder)], tmp_path / "out" / "site")
    assert not (tmp_path / "out").exists()


def test_the_stage_writes_a_site_and_needs_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = store(tmp_path / "results", make_board())
    config = Config(
        stage=StageConfig(name="report"), out=str(tmp_path / "out"), report=ReportConfig(results=[str(results)])
    )
    workspace = Workspace(config)
    check(workspace)
    page = report.run(workspace)
    assert page == tmp_path / "out" / "site" / "index.html"
    assert "site of 1 run" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"`report.results` must be null unless stage=report"):
        check(Workspace(Config(stage=StageConfig(name="pipeline"), report=ReportConfig(results=["x"]))))
    with pytest.raises(ConfigError, match=r"`report.results` must be a non-empty list"):
        ReportConfig(results=[])


# --- verdicts ---------------------------------------------------------------------------------------------------------


def test_pareto_front_keeps_what_nobody_beats() -> None:
    points = [(1, 5), (2, 2), (2, 2), (3, 1), (3, 3), (1, math.inf)]
    assert front(points) == [True, True, True, True, False, False]
    assert front([]) == []


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.3, 0.2], "agrees"),
        ([-0.3, -0.2], "disagrees"),
        ([0.3, -0.2], "mixed"),
        ([0.3, 0.01], "partly"),
        ([0.01], "undecided"),
        ([-0.3, 0.01], "disagrees"),
        ([], "not run"),
    ],
)
def test_a_verdict_goes_as_far_as_the_intervals(values: list[float], verdict: str) -> None:
    numbers = ("a", estimate(1.0)), ("b", estimate(1.0))
    comparisons = [Comparison((), "x", *numbers, difference(value).nll or estimate(0.0)) for value in values]
    assert weigh(comparisons, "nothing").verdict == verdict


def test_difference_of_independent_estimates_adds_their_variances() -> None:
    first = Estimate(value=3.0, n=5, low=2.7, high=3.3, interval="bootstrap")
    second = Estimate(value=1.0, n=7, low=0.6, high=1.4, interval="bootstrap")
    found = minus(first, second)
    assert (found.value, found.n) == (2.0, 5)
    assert (found.low, found.high) == (pytest.approx(1.5), pytest.approx(2.5))


def test_without_runs_every_item_says_what_it_lacks() -> None:
    for item in ITEMS:
        found = item.rule([])
        assert found.verdict == "not run"
        assert len(found.reason) > 20


@pytest.mark.parametrize(("mu_cost", "verdict"), [(0.1, "agrees"), (0.01, "partly"), (-0.2, "mixed")])
def test_transfer_over_mu_must_help_and_cost(mu_cost: float, verdict: str) -> None:
    assert finding("mu-transfer", make_transfer(mu_cost=mu_cost)).verdict == verdict


@pytest.mark.parametrize(("gain", "verdict"), [(0.3, "agrees"), (0.0, "undecided"), (-0.3, "disagrees")])
def test_transfer_over_data_must_help(gain: float, verdict: str) -> None:
    found = finding("data-transfer", make_transfer(c4_gain=gain))
    assert found.verdict == verdict
    assert len(found.comparisons) == 1


def retrained(board: TransferBoard, seed: int, gain: float) -> TransferBoard:
    """The same, every part trained under another seed; a soft prompt of C4 is worth so much."""
    cells = [
        cell.model_copy(update={"over_none": difference(-gain)}) if cell.trained_on == "c4" else cell
        for cell in board.cells
    ]
    return board.model_copy(update={"seed": seed, "cells": cells, "config": {**board.config, "seed": seed}})


@pytest.mark.parametrize(
    ("gains", "verdict"), [((0.3, 0.31, 0.29), "agrees"), ((0.9, 0.1, 0.2), "undecided"), ((0.3, 0.3), "agrees")]
)
def test_trainings_of_a_transfer_are_compared_as_one(gains: tuple[float, ...], verdict: str) -> None:
    found = finding("data-transfer", *(retrained(make_transfer(), seed, gain) for seed, gain in enumerate(gains)))
    (one,) = found.comparisons
    assert (found.verdict, len(one.runs)) == (verdict, len(gains))
    assert one.difference.value == pytest.approx(sum(gains) / len(gains))
    assert f"mean of {len(gains)} trainings" in one.what
    assert one.difference.low is not None
    assert one.difference.low <= one.difference.value - 0.05 + 1e-9, "narrower than over prompts alone"


def test_transfers_of_other_settings_stay_apart() -> None:
    first, second = make_transfer(), retrained(make_transfer(), 1, 0.2)
    longer = {**second.config, "prompt": {**second.config.get("prompt", {}), "virtual_tokens": 50}}
    assert len(finding("data-transfer", first, second).comparisons) == 1
    assert len(finding("data-transfer", first, second.model_copy(update={"config": longer})).comparisons) == 2
    data = {name: value for name, value in first.config["data"].items() if name != "first_prompt"}
    older = first.model_copy(update={"config": {**first.config, "data": data}})
    assert len(finding("data-transfer", older, second).comparisons) == 1, "a setting of today had its default then"


def test_gaussian_verdict_follows_the_paired_difference() -> None:
    assert finding("gaussian", make_board()).verdict == "not run"
    anchors = {item.anchor: item.rule([Run("large", "made up", make_large_board())]) for item in ITEMS}
    assert any(found.verdict != "not run" for found in anchors.values())
    for found in anchors.values():
        assert (found.verdict == "not run") == (not found.comparisons)


@pytest.mark.parametrize("name", ["thesis.tex", "CNAME", ".git/HEAD", "runs/notes.txt", "runs/old/a.html"])
@pytest.mark.parametrize("earlier", [False, True], ids=["alone", "in an earlier site"])
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, name: str, earlier: bool) -> None:
    folder = site(tmp_path, make_board()) if earlier else tmp_path / "site" / "index.html"
    foreign = folder.parent / name
    foreign.parent.mkdir(parents=True, exist_ok=True)
    foreign.write_text("years of work")
    before = sorted(tmp_path.rglob("*"))
    first = re.escape(name.partition("/")[0])
    with pytest.raises(ArtifactError, match=rf"must be free for the site or hold an earlier one, got \S*/{first}"):
        write_site(tmp_path / "site", [Run("mine", "made up", make_board())])
    assert sorted(tmp_path.rglob("*")) == before
    assert foreign.read_text() == "years of work"


def test_a_page_of_somebody_else_is_no_earlier_site(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("years of work")
    with pytest.raises(ArtifactError, match=r"must be free for the site or hold an earlier one, got \S*/index.html"):
        write_site(tmp_path / "site", [Run("mine", "made up", make_board())])


def test_a_file_is_no_folder_for_a_site(tmp_path: Path) -> None:
    (tmp_path / "site").write_text("years of work")
    with pytest.raises(ArtifactError, match=r"must be free for the site or hold an earlier one, got \S*/site: move it"):
        write_site(tmp_path / "site", [Run("mine", "made up", make_board())])


def test_an_earlier_site_is_replaced_as_a_whole(tmp_path: Path) -> None:
    first = site(tmp_path, make_board(), make_transfer())
    assert len(list(first.parent.glob("runs/*.html"))) == 2
    again = write_site(tmp_path / "site", load([tmp_path / "results" / "0"]).runs)
    assert len(list(again.parent.glob("runs/*.html"))) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"results", "site"}
