"""The scoreboard: what a claim is about, and the page as a reader uses it, with and without scripts."""

import json

import chapters
import pytest
import scoreboard
from bs4 import BeautifulSoup
from test_shape import WAITING

from prompt_memory.book import claims


@pytest.fixture
def contents():
    """Two claims of chapter 1: a theorem that is exceeded and a forecast that is hit."""
    record = claims.Recorder("01_counting", profile="smoke", seed=0)
    record.theorem("a<b", theorem="Theorem 1, part 1", statement="$x|y$ is small", measured=3, bound=2, possible=9)
    record.predict("guess", theorem="Heuristic", statement="s", predicted=1, possible=(0, 9), absolute=0.5)
    record.measure("guess", 1)
    return [record.content()]


@pytest.mark.parametrize(
    ("theorem", "kind", "name"),
    [
        ("Theorem 4b, part 2", "theorem", "Theorem 4b"),
        ("Search against Theorem 11, part 2", "prediction", "Theorem 11"),
        ("Theorems 1 and 4b", "theorem", "Theorem 1"),
        ("Propositions 9b to 9d", "prediction", "Proposition 9b"),
        ("Lemma 2a, sharpness", "prediction", "Lemma 2a"),
        ("Any tuning, part 1", "theorem", "Chapter 4b"),
        ("Heuristic: normal votes", "prediction", scoreboard.OTHERS),
    ],
)
def test_a_claim_is_about_the_statement_that_it_names(theorem, kind, name):
    assert scoreboard.group({"theorem": theorem, "kind": kind, "chapter": "04b_construction"}) == name


def test_statements_come_in_the_order_of_the_book():
    names = ["Theorem 11", "Theorem 2", "Lemma 2b", "Lemma 2a", "Theorem 4b", "Theorem 4", "Heuristic"]
    everything = [{"theorem": name, "kind": "prediction", "chapter": "x"} for name in names]
    order = ["Theorem 2", "Lemma 2a", "Lemma 2b", "Theorem 4", "Theorem 4b", "Theorem 11", scoreboard.OTHERS]
    assert list(scoreboard.groups(everything)) == order


def test_the_matrix_counts_what_is_for_and_against(contents):
    lines = scoreboard.matrix(scoreboard.groups(contents[0]["claims"])).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    assert cells[0][1:4] == ["exact", "sampled means", "single runs"]
    assert cells[2] == ["{prf:ref}`Theorem 1 <thm-counting>`", "1", "", "", "1", "", "", ""]
    assert cells[3] == [scoreboard.OTHERS, "", "", "", "", "1", "", ""]
    assert cells[4] == ["**all**", "1", "", "", "1", "1", "", ""]


def test_a_row_is_an_anchor_and_leads_to_its_line_where_there_is_one(contents):
    executed = json.dumps({"outputs": ['<li id="claim-a&lt;b">', "<td>claim-guess</td>"]})
    table = BeautifulSoup(scoreboard.claims_table(contents, {"01_counting": executed}), "html.parser")
    first, second = table.select("tr[id]")  # what is violated comes first
    assert first["id"] == "01_counting--a<b"
    assert first.a["href"] == "notebooks/01_counting.html#claim-a<b"
    assert r"\(x|y\) is small" in first.get_text()
    assert second.a["href"] == "notebooks/01_counting.html"
    assert second["data-kind"] == "forecast"


def test_the_picture_says_what_was_passed(contents):
    picture = scoreboard.closest_figure(scoreboard.groups(contents[0]["claims"]))
    assert picture.finding == "1 of 1 exact bounds are attained to one per cent, 1 is passed."


# --- The page of the built book ---------------------------------------------------------------------------------------


def test_every_claim_has_a_row_that_leads_to_its_line(html, pages):
    content = json.loads((html.parent / "claims.json").read_text())
    page = pages["scoreboard"]
    assert len(page.select("#claims tr[id]")) == len(content["claims"]) > 100
    for claim in content["claims"]:
        row = page.find(id=f"{claim['chapter']}--{claim['key']}")
        path, _, fragment = row.a["href"].partition("#")
        assert path == f"notebooks/{claim['chapter']}.html"
        if claim["chapter"] not in WAITING:
            assert fragment == f"claim-{claim['key']}"
        if fragment:
            assert pages[path.removesuffix(".html")].find(id=fragment) is not None
        assert claim["key"] in row.get_text()


def test_chapters_lead_to_rows_that_exist(pages):
    links = [link for page in pages.values() for link in page.select("article a[href*='scoreboard.html#']")]
    rows = {row["id"] for row in pages["scoreboard"].select("[id]")}
    assert links
    assert {link["href"].split("#")[1] for link in links} <= rows


def test_the_scoreboard_opens_with_its_legend_and_numbers_its_picture(pages):
    article = pages["scoreboard"].select_one("article")
    order = [article.find(string="not refuted"), article.select_one("figure"), *article.select(".matrix, #claims")]
    assert None not in order
    places = [getattr(each, "sourceline", None) or each.parent.sourceline for each in order]
    assert places == sorted(places)
    assert article.figure.figcaption.get_text().startswith("Figure 1.")
    linked = {link.get_text() for link in article.select(".matrix a")}
    assert {f"Theorem {n}" for n in range(1, 9)} <= linked


def test_the_filter_shows_what_is_asked_for(page, html, pages):
    page.goto((html / "scoreboard.html").as_uri())
    rows, shown = page.locator("#claims tr[id]"), page.locator("#claims tr[id]:visible")
    total = rows.count()
    assert shown.count() == total
    page.get_by_label("verdict").select_option("missed")
    missed = len(pages["scoreboard"].select("#claims tr[data-verdict='missed']"))
    assert 0 < shown.count() == missed < total
    assert page.locator(".claims-filter output").inner_text() == f"{missed} of {total} claims"
    page.get_by_label("verdict").select_option("all")
    page.get_by_label("evidence").select_option("forecast")
    page.get_by_label("chapter").select_option("01_counting")
    keys = pages["scoreboard"].select("[data-chapter='01_counting'] [data-kind='forecast']")
    assert shown.count() == len(keys) > 0
    assert page.locator("#claims tr.chapter:visible").count() == 1
    page.get_by_label("words").fill("random-code independent")
    assert shown.evaluate_all("rows => rows.map(row => row.id)") == ["01_counting--random-code"]
    page.evaluate("location.hash = '02_metric_entropy--channel'")  # a link to a row that is hidden
    page.locator("[id='02_metric_entropy--channel']").wait_for(state="visible")
    assert shown.count() == total


def test_without_scripts_every_row_is_there_and_no_filter(browser, html):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((html / "scoreboard.html").as_uri())
    assert page.locator("#claims tr[id]:visible").count() == page.locator("#claims tr[id]").count() > 100
    assert page.locator(".claims-filter").count() == 0
    context.close()


def test_every_numbered_statement_is_known():
    labels = scoreboard.statements()
    assert {f"Theorem {n}" for n in range(1, 9)} | {"Lemma 2a", "Theorem 4b", "Proposition 9f"} <= set(labels)
    texts = "".join(chapter.text for chapter in chapters.all_chapters())
    assert all(f":label: {label}\n" in texts for label in labels.values())
