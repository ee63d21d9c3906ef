"""Chapters as a person reads them: what is visible, how long, said where; on the pages of the built book."""

import json
import re

import pytest
from bs4 import BeautifulSoup, Tag
from building import NAMES, ROOT

# Chapters that have not taken the shape yet; the list may only shrink, and each entry must still be needed.
WAITING: set[str] = set()

CELLS, LINES, COLUMNS = 6, 12, 80  # visible code of a chapter
PROSE, STATEMENT, LIMITS = 2000, 120, 6  # words before the exercises; words of a statement; bullets
STATEMENTS = ".proof.theorem, .proof.lemma, .proof.proposition, .proof.corollary, .proof.definition"
FOLDED = "details, .dropdown"


def words(tag: Tag) -> int:
    """Words of a piece of a page; a formula counts as one."""
    copy = BeautifulSoup(str(tag), "html.parser")
    for formula in copy.select(".math"):
        formula.replace_with(" formula ")
    return len(re.findall(r"\w[\w'’–-]*", copy.get_text(" ")))


def visible_code(page: BeautifulSoup) -> list[list[str]]:
    """The lines of each code cell that a reader sees without opening anything."""
    shown = [cell for cell in page.select("article .cell_input pre") if not cell.find_parent("details")]
    return [cell.get_text().rstrip().splitlines() for cell in shown]


def prose(page: BeautifulSoup) -> BeautifulSoup:
    """What is read before the exercises: no code, outputs, captions or folded parts."""
    copy = BeautifulSoup(str(page.select_one("article")), "html.parser")
    for section in copy.select("#exercises, #re-run-this-page"):
        section.decompose()
    for part in copy.select(f"{FOLDED}, .cell_input, .cell_output .output, figure, .verdict-box, .claim-lines"):
        if not part.decomposed:
            part.decompose()
    return copy


def problems(name: str, page: BeautifulSoup, keys: list[str]) -> list[str]:
    """Everything that keeps this page from having the shape; [] if it has it."""
    found = []

    def check(good: bool, sentence: str) -> None:
        if not good:
            found.append(sentence)

    code, text = visible_code(page), prose(page)
    check(len(code) <= CELLS, f"{len(code)} visible code cells")
    for cell in code:
        check(len(cell) <= LINES, f"a visible cell of {len(cell)} lines: {cell[0]}")
        check(max(map(len, cell)) <= COLUMNS, f"a line of {max(map(len, cell))} characters: {max(cell, key=len)[:40]}")
    check(words(text) <= PROSE, f"{words(text)} words before the exercises")
    for box in page.select(STATEMENTS):
        check(words(box) <= STATEMENT, f"a statement of {words(box)} words: {box.get_text()[:40].strip()!r}")
    for proof in page.select("div.proof:not(.theorem, .lemma, .proposition, .corollary, .definition, .remark)"):
        check(bool(proof.find_parent(class_="dropdown")), "a proof that is not folded (use a dropdown admonition)")
    limits = page.select("section#limits > ul > li")
    check(len(limits) <= LIMITS, f"{len(limits)} bullets under Limits")

    glance = page.select_one(".admonition.glance")
    check(glance is not None, "no box At a glance")
    if glance:
        bullets = [item.get_text(" ", strip=True) for item in glance.select(":scope > ul > li")]
        starts = [bullet.split(":")[0] for bullet in bullets]
        check(starts == ["Proved", "Measured", "New or known"], f"At a glance says {starts}")
        check(len(bullets) > 1 and bool(re.search(r"\d", bullets[1])), "no number was measured")
        check(bool(glance.select("li a[href*='references.html']")), "nothing is cited for what is known")
        check(glance.select_one(".verdict-box") is not None, "At a glance has no checks")

    for image in page.select("article img"):
        figure = image.find_parent("figure")
        check(bool(figure and figure.get("id", "").startswith("fig-")), f"an image without number: {image['alt'][:40]}")
    for figure in page.select("figure.picture"):
        check(bool(re.match(r"Figure \d+[a-z]?\.\d+", figure.figcaption.get_text())), f"{figure['id']} has no number")
        check(bool(figure.figcaption.strong.get_text(strip=True)), f"{figure['id']} has no finding")
    first, drawing = page.select_one(STATEMENTS), page.select_one(".drawing")
    check(drawing is not None, "no drawing of an idea")
    if first and drawing:
        check(drawing.sourceline < first.sourceline, "the drawing comes after the statement")

    for sentence in page.select("article p, article li"):
        plain = BeautifulSoup(str(sentence), "html.parser")
        for link in plain.select("a, code"):
            link.decompose()
        mention = re.search(r"\b[Cc]hapters? \d+\w?", plain.get_text())
        check(mention is None, f"{mention and mention[0]} is not a link")
    for literal in text.select("code"):
        check(literal.get_text() not in ("smoke", "standard", "full"), "a profile's name in the prose")
    for key in keys:
        check(page.find(id=f"claim-{key}") is not None, f"the claim {key} has no line at its experiment")
    return found


def keys_of(name: str, html) -> list[str]:
    content = json.loads((html.parent / "claims" / f"{name}.json").read_text())
    return [claim["key"] for claim in content["claims"]]


@pytest.mark.parametrize("name", NAMES)
def test_a_chapter_has_its_shape(html, pages, name):
    found = problems(name, pages[f"notebooks/{name}"], keys_of(name, html))
    if name in WAITING:
        assert found, f"{name} has the shape: take it from WAITING"
        return
    assert found == []


def test_the_search_for_problems_finds_them():
    page = BeautifulSoup(
        "<article><p>see chapter 9</p><img alt='x'><div class='proof theorem'>" + "word " * 200 + "</div>"
        "<div class='cell_input'><pre>" + "x" * 90 + "</pre></div></article>", "html.parser",
    )  # fmt: skip
    found = " ".join(problems("x", page, ["k"]))
    for sentence in ("chapter 9 is not a link", "without number", "a statement of 200 words", "a line of 90 characters",
                     "the claim k has no line", "no box At a glance", "no drawing"):  # fmt: skip
        assert sentence in found


CODE_HEIGHT = """() => {
  const seen = [...document.querySelectorAll('article .cell_input')].filter(e => !e.closest('details'));
  const code = seen.reduce((sum, e) => sum + e.getBoundingClientRect().height, 0);
  const tables = [...document.querySelectorAll('article .pst-scrollable-table-container')];
  const boxes = [...seen.flatMap(e => [...e.querySelectorAll('pre')]), ...tables.filter(e => !e.closest('details'))];
  const wide = boxes.filter(e => e.scrollWidth > e.clientWidth + 1);
  return [code / document.querySelector('article').getBoundingClientRect().height, wide.map(e => e.innerText)];
}"""


def test_visible_code_is_a_tenth_of_a_page_and_it_and_tables_fit_their_column(page, html):
    for name in [name for name in NAMES if name not in WAITING]:
        page.set_viewport_size({"width": 1280, "height": 900})
        page.goto((html / "notebooks" / f"{name}.html").as_uri())
        share, wide = page.evaluate(CODE_HEIGHT)
        assert share <= 0.1, f"{name}: {100 * share:.0f} % of the page's height is code"
        assert wide == [], f"{name}: wider than the column"


def test_visible_cells_of_the_text_notebooks_are_short_too():
    """The same rule without a build: for authors who have not built the book."""
    import chapters

    hidden = {"remove-cell", "remove-input", "hide-input", "hide-cell"}
    for name in [name for name in NAMES if name not in WAITING]:
        for cell in chapters.load(name).cells:
            if not hidden & set(cell.tags):
                lines = cell.source.splitlines()
                assert len(lines) <= LINES, f"{ROOT}/notebooks/{name}.md, line {cell.line}"
                assert max(map(len, lines)) <= COLUMNS, f"{ROOT}/notebooks/{name}.md, line {cell.line}"
