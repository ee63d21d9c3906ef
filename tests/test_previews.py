"""What links show before they are followed; the glossary and the table of symbols that they lead to."""

import importlib
import json
import re

import finish
import pytest
from bs4 import BeautifulSoup
from building import ROOT

TERMS = {
    "soft prompt", "hard prompt", "prompt length", "behaviour", "recall", "labeling", "margin", "bits", "rate function",
    "critical size", "covering number", "Lipschitz constant", "effective dimension", "accessible string", "n50",
    "moments", "exact compression", "mean field", "retained bits", "context length", "theorem claim", "sampled claim",
    "forecast", "verdict", "power", "bound",
}  # fmt: skip


@pytest.fixture(scope="module")
def previews(html) -> dict[str, str]:
    text = (html / "_static" / "previews-data.js").read_text()
    return json.loads(text.removeprefix("window.previews = ").removesuffix(";\n"))


def test_every_term_is_explained_with_a_link_to_its_chapter(pages, previews):
    found = {term.get_text().rstrip("#").strip() for term in pages["notation"].select("dl.glossary dt")}
    assert found >= TERMS
    for key in (key for key in previews if "#term-" in key):
        assert re.search(r'href="(notebooks/\d\d|scoreboard)', previews[key]), key


def test_every_symbol_says_where_it_is_defined_and_names_code_that_exists(pages):
    tables = pages["notation"].select("article table")
    assert len(tables) == 4
    for row in (row for table in tables for row in table.select("tbody tr")):
        symbol, meaning, defined = row.select("td")
        assert defined.select_one("a[href^='notebooks/']"), symbol.get_text()
        for name in re.findall(r"(\w+)\.(\w+)", " ".join(code.get_text() for code in meaning.select("code"))):
            assert hasattr(importlib.import_module(f"prompt_memory.{name[0]}"), name[1]), name


def test_links_to_statements_equations_and_terms_have_previews(pages, previews):
    asked = 0
    for name, page in pages.items():
        for link in page.select("article a.reference.internal[href*='#']"):
            path, fragment = link["href"].split("#")
            kind = re.match(r"(thm|lem|prop|cor|equation|term)-", fragment)
            if kind:
                target = finish.urljoin(f"{name}.html", path) if path else f"{name}.html"
                assert f"{target}#{fragment}" in previews
                asked += 1
    assert asked > 100
    kinds = {key.split("#")[1].split("-")[0] for key in previews}
    assert {"thm", "lem", "prop", "equation", "term"} <= kinds


def test_previews_repeat_no_id_and_lead_on_from_the_root(html, previews):
    for key, text in previews.items():
        box = BeautifulSoup(text, "html.parser")
        assert not box.select("[id], .headerlink"), key
        for link in box.select("a[href]"):
            path = link["href"].split("#")[0]
            assert path.startswith("http") or (html / path).exists(), (key, link)


def test_a_theorem_is_shown_where_a_link_to_it_is_touched(page, html):
    page.goto((html / "notebooks" / "01_counting.html").as_uri())
    page.evaluate("window.MathJax.startup.promise")
    box = page.locator(".preview")
    assert not box.is_visible()
    link = page.locator(".glance a[href='#thm-counting']").first
    link.hover()
    box.wait_for(state="visible")
    assert "Counting" in box.inner_text()
    assert "Retained bits" in box.inner_text()
    assert box.locator("mjx-container").count() > 5
    assert box.locator("mjx-merror").count() == 0
    assert r"\(" not in box.inner_text()
    place = box.bounding_box()
    assert place["x"] >= 0
    assert place["x"] + place["width"] <= 1000
    box.hover()  # what is shown can be pointed at
    page.wait_for_timeout(400)
    assert box.is_visible()
    page.keyboard.press("Escape")
    assert not box.is_visible()


def test_the_keyboard_shows_a_term_of_another_page_and_leaves_it(page, html):
    page.goto((html / "notebooks" / "01_counting.html").as_uri())
    box, link = page.locator(".preview"), page.locator("article a[href*='notation.html#term-behaviour']").first
    page.keyboard.press("Tab")
    link.focus()
    box.wait_for(state="visible")
    assert "table of answers" in box.inner_text()
    page.keyboard.press("Tab")
    page.wait_for_function("document.activeElement !== document.body")
    assert "table of answers" not in (box.inner_text() if box.is_visible() else "")
    assert box.locator("a").first.evaluate("a => a.href").startswith(html.as_uri())


def test_a_touch_screen_follows_the_link(browser, html):
    context = browser.new_context(has_touch=True, viewport={"width": 390, "height": 800})
    page = context.new_page()
    page.goto((html / "notebooks" / "01_counting.html").as_uri())
    page.locator(".glance a[href='#thm-counting']").first.tap()
    page.wait_for_url("**#thm-counting")
    page.wait_for_timeout(600)  # longer than a preview takes to show
    assert not page.locator(".preview").is_visible()
    context.close()


def test_there_is_one_glossary():
    assert (ROOT / "book" / "notation.md").read_text().count("{glossary}") == 1
