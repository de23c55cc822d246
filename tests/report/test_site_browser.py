"""The site in a browser, from a folder and without a server: it sorts, filters and leads on, and nothing is blocked."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import ConsoleMessage, Page, sync_playwright

from tests.report.factory import make_board, make_large_board
from tests.report.test_site import site

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = ("--no-sandbox", "--disable-sync", "--disable-gpu", "--disable-background-networking", "--no-first-run")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason=f"no browser here, none of {', '.join(BROWSERS)}"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    other = make_board().model_copy(update={"dataset": "wikitext2"})
    index = site(tmp_path_factory.mktemp("site"), make_large_board(), other)
    with sync_playwright() as playwright:
        path = next(filter(None, map(shutil.which, BROWSERS)))
        browser = playwright.chromium.launch(executable_path=path, args=list(QUIET))
        page = browser.new_page()
        page.trouble = []  # type: ignore[attr-defined]
        page.on("console", lambda message: complain(page, message))
        page.on("pageerror", lambda error: page.trouble.append(str(error)))  # type: ignore[attr-defined]
        page.on("requestfailed", lambda request: page.trouble.append(request.url))  # type: ignore[attr-defined]
        page.goto(Path(index).resolve().as_uri())
        yield page
        browser.close()


def complain(page: Page, message: ConsoleMessage) -> None:
    if message.type in ("error", "warning"):
        page.trouble.append(message.text)  # type: ignore[attr-defined]


def names(page: Page) -> list[str]:
    return page.locator(".leaderboard tbody tr:visible th").all_inner_texts()


def test_a_column_sorts_both_ways(page: Page) -> None:
    before = names(page)
    assert len(before) > 10
    heading = page.locator(".leaderboard thead th").first
    orders = set()
    for _ in range(2):
        heading.get_by_role("button").click()
        orders.add(heading.get_attribute("aria-sort"))
        assert sorted(names(page)) == sorted(before)
    assert orders == {"ascending", "descending"}


def test_a_filter_leaves_the_rows_that_it_names(page: Page) -> None:
    everything = len(names(page))
    choice = page.locator('.filters select[data-key="data"]')
    choice.select_option(index=1)
    assert 0 < len(names(page)) < everything
    choice.select_option(index=0)
    assert len(names(page)) == everything


def test_links_lead_to_runs_and_back(page: Page) -> None:
    home = page.url
    page.locator(".leaderboard tbody tr:visible td a").first.click()
    assert "/runs/" in page.url
    assert page.locator("h1").first.inner_text()
    page.go_back()
    assert page.url == home


def test_nothing_is_blocked_or_missing(page: Page) -> None:
    page.reload()
    assert page.trouble == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [1300, 800])
def test_no_column_is_cut_off_unsaid(page: Page, committed_site: Path, width: int) -> None:
    home, size = page.url, page.viewport_size
    page.set_viewport_size({"width": width, "height": 900})
    for name in ("index.html", "replication.html", "runs/ptb-attacks.html", "runs/mrpc-leaderboard.html"):
        page.goto((committed_site.resolve().parent / name).as_uri())
        page.evaluate("document.querySelectorAll('details').forEach((item) => { item.open = true; })")
        page.wait_for_timeout(300)
        frames = page.evaluate(
            "[...document.querySelectorAll('.scroll')]"
            ".map((one) => [one.scrollWidth > one.clientWidth + 1, one.classList.contains('cut')])"
        )
        assert frames
        assert all(wide == said for wide, said in frames), name
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), name
        if name == "index.html":
            assert [wide for wide, _ in frames[:2]] == [width < 1000] * 2
    page.set_viewport_size(size or {"width": 1280, "height": 720})
    page.goto(home)


def test_a_link_to_a_folded_section_opens_it(page: Page, committed_site: Path) -> None:
    home = page.url
    page.goto(committed_site.resolve().as_uri())
    for name in ("classification", "glossary"):
        folded = page.locator(f"details#{name}, #{name} > details").first
        assert not folded.evaluate("(item) => item.open")
        page.locator(f"nav a[href='#{name}']").click()
        page.wait_for_function("(item) => item.open", arg=folded.element_handle())
    page.goto(home)


def test_committed_results_are_shown_without_trouble(page: Page, committed_site: Path) -> None:
    home, index = page.url, committed_site.resolve()
    for name in ("index.html", "replication.html"):
        page.goto((index.parent / name).as_uri())
        assert page.locator("h1").first.inner_text()
        assert page.locator("table tbody tr:visible").count() > 5
        # The page itself does not scroll sideways; wide tables do within their frames.
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.trouble == []  # type: ignore[attr-defined]
    page.goto(index.as_uri())
    few = len(names(page))
    page.locator('.filters select[data-key="runs"]').select_option("")
    assert 0 < few < len(names(page))
    page.goto(home)
