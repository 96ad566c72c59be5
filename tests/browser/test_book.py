"""The built book in a real browser: equations, figures, search, dark mode, a phone's width, and no request to outside."""

import re

import pytest
from browser_support import leave_out

pytestmark = pytest.mark.browser

CHAPTER = "chapters/01_spectral_bias.html"
WORD = "frequency"


@pytest.fixture(scope="session")
def chapter(book_folder) -> str:
    if not (book_folder / CHAPTER).is_file():
        leave_out(f"the book has no {CHAPTER}")
    return CHAPTER


def assert_readable(page) -> None:
    """Equations are set without an error and every picture is there, also those far down the page."""
    page.wait_for_selector("mjx-container", state="attached")
    page.wait_for_function("() => window.MathJax?.startup?.promise !== undefined")
    page.evaluate("() => window.MathJax.startup.promise")
    assert page.locator("mjx-merror").count() == 0
    left = page.locator("span.math, div.math").evaluate_all(
        "nodes => nodes.filter(n => !n.querySelector('mjx-container')).map(n => n.textContent)"
    )
    assert left == [], "formulas that were not set"
    widths = page.locator("article img").evaluate_all(
        "images => Promise.all(images.map(i => i.decode().then(() => i.naturalWidth, () => 0)))"
    )
    assert widths and min(widths) > 0


def test_chapter_is_readable(book, chapter, open_page):
    page, witness = open_page()
    page.goto(f"{book}/{chapter}")
    assert_readable(page)
    assert page.locator("article table").count() > 0
    assert page.locator("article a[href*='mybinder.org'], .article-header-buttons a[href*='mybinder.org']").count() > 0
    assert witness.errors == []
    assert witness.outside == []


def test_chapter_is_readable_from_the_disk(book_folder, chapter, open_page):
    page, witness = open_page()
    page.goto((book_folder / chapter).as_uri())
    assert_readable(page)
    assert witness.errors == []
    assert witness.outside == []


def test_home_page_leads_to_the_chapters(book, chapter, open_page):
    page, witness = open_page()
    page.goto(f"{book}/index.html")
    page.locator(".chapters .sd-card", has=page.locator(f"a[href='{chapter}']")).click()
    page.wait_for_url(f"**/{chapter}")
    assert witness.errors == [] and witness.outside == []


def test_search_finds_the_chapter(book, chapter, open_page):
    page, witness = open_page()
    page.goto(f"{book}/index.html")
    page.locator(".bd-sidebar-primary .search-button-field, .bd-sidebar-primary .search-button__button").first.click()
    field = page.locator("#pst-search-dialog input[type=search], .search-button__search-container input[type=search]")
    field.first.fill(WORD)
    field.first.press("Enter")
    page.wait_for_url("**/search.html?q=*")
    hit = page.locator(f"#search-results li a[href*='{chapter}']").first
    hit.wait_for()
    hit.click()
    page.wait_for_url(f"**/{chapter}*")
    assert re.search(WORD, page.locator("article").inner_text(), re.IGNORECASE)
    assert witness.errors == [] and witness.outside == []


def test_dark_mode_can_be_chosen(book, chapter, open_page):
    page, witness = open_page()
    page.goto(f"{book}/{chapter}")
    seen = {page.evaluate("() => getComputedStyle(document.body).backgroundColor")}
    page.locator("button.theme-switch-button").first.click()
    page.locator(".theme-change-button[data-mode=dark]").first.click()
    assert page.evaluate("() => document.documentElement.dataset.theme") == "dark"
    seen.add(page.evaluate("() => getComputedStyle(document.body).backgroundColor"))
    assert len(seen) == 2, "the background did not change"
    card = page.locator(".cell_output img").first
    assert card.evaluate("image => getComputedStyle(image).backgroundColor") == "rgb(255, 255, 255)"
    page.reload()
    assert page.evaluate("() => document.documentElement.dataset.theme") == "dark", "the choice is not kept"
    assert witness.errors == [] and witness.outside == []


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_no_page_is_wider_than_a_phone(book, book_folder, chapter, open_page, colours):
    page, witness = open_page(390, 844, colours)
    for path in sorted(book_folder.rglob("*.html")):
        name = path.relative_to(book_folder).as_posix()
        if name.startswith("_"):
            continue
        page.goto(f"{book}/{name}")
        if page.locator(".math").count():
            page.wait_for_selector("mjx-container", state="attached")
        width = page.evaluate("() => Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)")
        assert width <= 390, f"{name} is {width} pixels wide on a screen of 390"
    page.goto(f"{book}/{chapter}")
    assert_readable(page)
    assert witness.errors == [] and witness.outside == []


def test_hub_links_follow_the_address(book, chapter, open_page):
    page, witness = open_page()
    page.goto(f"{book}/launch.html")
    link = page.locator("a.hub").first
    assert link.get_attribute("href") is None
    page.locator("#hub").fill("https://hub.example.edu/")
    assert link.get_attribute("href").startswith("https://hub.example.edu/hub/user-redirect/git-pull?repo=https")
    page.locator("#hub").fill("javascript:alert(1)")
    assert link.get_attribute("href") is None
    assert witness.errors == [] and witness.outside == []
