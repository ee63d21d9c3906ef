"""The front page, the page for builders, and what the build takes from notebooks and claims to fill them."""

import json
import re

import chapters
import finish
import front
import pytest
import yaml
from building import NAMES, ROOT
from test_project import prose
from test_shape import WAITING

GLANCE = """:::{admonition} At a glance
:class: glance

- **Proved:** a bound.
- **Measured:** of {glue:text}`count` prompts
  {glue:text}`share:.1f` hold (<a class="figure-ref" href="#fig-x">Figure</a>, {doc}`chapter 2 <02_metric_entropy>`,
  {doc}`/notation`, {doc}`03_dimension`).
- **New or known:** known.
:::"""


def record(name, value):
    key = "application/papermill.record/"
    return {"metadata": {"scrapbook": {"mime_prefix": key, "name": name}}, "data": {f"{key}text/plain": repr(value)}}


@pytest.fixture
def results(tmp_path):
    """A build of one chapter whose notebook says what it measured."""
    cells = [
        {"cell_type": "markdown", "source": GLANCE.splitlines(keepends=True)},
        {"cell_type": "code", "source": [], "outputs": [record("count", "65,536"), record("share", 0.25)]},
    ]
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_counting.ipynb").write_text(json.dumps({"cells": cells}))
    (tmp_path / "notebooks" / "03_dimension.ipynb").write_text(json.dumps({"cells": cells[1:]}))
    claim = {"chapter": "01_counting", "key": "k", "measured": 0.123456, "verdict": "hit"}
    order = claim | {"chapter": "12_other_tunings", "key": "order"}
    (tmp_path / "claims.json").write_text(json.dumps({"claims": [claim, order]}))
    return front.Results(tmp_path)


def test_what_a_chapter_measured_is_its_own_sentence_with_its_numbers(results):
    assert results.measured("01_counting") == (
        'Of 65,536 prompts 0.2 hold (<a class="figure-ref" href="notebooks/01_counting.html#fig-x">Figure</a>,'
        " {doc}`chapter 2 </notebooks/02_metric_entropy>`, {doc}`/notation`, {doc}`/notebooks/03_dimension`)."
    )
    assert results.measured("03_dimension") == ""


def test_places_are_filled_or_refused(results):
    assert front.fill("a {book}`claim 01_counting k measured .2f` {book}`claim 01_counting k verdict`", results) == (
        "a 0.12 hit"
    )
    for place in ("nothing", "_answer x", "build", "claim 01_counting other measured", "claim 01_counting k other",
                  "claim 01_counting", "measured 99_none"):  # fmt: skip
        with pytest.raises((ValueError, OSError)):
            front.fill(f"{{book}}`{place}`", results)
    place = front._GLUE.search("{glue:text}`missing`")
    with pytest.raises(ValueError, match="nothing is glued under 'missing'"):
        front.glued([], place)


def test_the_advice_on_tunings_follows_the_verdict(results):
    assert results.tuning().startswith("LoRA")
    for verdict, start in (("missed", "No rule"), ("undecided", "Not settled")):
        results._claims["12_other_tunings", "order"] = {"verdict": verdict}
        assert results.tuning().startswith(start)


def test_reading_time_counts_what_is_read():
    text = "---\na: b c d\n---\n# One two $x + y$\n```{code-cell}\nthree = 4\n```\n"
    text += ":::{admonition} Proof\n:class: dropdown\nfive six\n:::\n:::{note}\nseven\n:::\n## Exercises\neight"
    assert front.words(text) == 4  # one, two, a formula, seven
    times = [front.reading_time(count) for count in (0, 900, 901, front.WORDS_A_MINUTE * 150)]
    assert times == ["5 minutes", "5 minutes", "10 minutes", "2 hours"]


def test_bibtex_keeps_the_name_of_a_group_whole():
    paper = {"title": "On it", "authors": [{"family-names": "Tan", "given-names": "V. Y. F."}], "year": 2025}
    paper["identifiers"] = [{"type": "other", "value": "arXiv:2509.00421"}]
    assert front.bibtex(paper) == (
        "@misc{tan2025on,\n  title = {{On it}},\n  author = {Tan, V. Y. F.},\n  year = {2025},\n"
        "  eprint = {2509.00421},\n  archivePrefix = {arXiv}\n}"
    )
    assert "author = {{the authors}}" in front.bibtex(paper | {"authors": [{"name": "the authors"}]})


def test_figures_are_numbered_and_cited_from_other_pages():
    figure = '<figure class="picture" id="fig-{0}"><span class="figure-number">Figure</span></figure>'
    link = '<a class="figure-ref" href="{0}">Figure</a>'
    texts = {"index.html": figure.format("a") + link.format("notebooks/04b_x.html#fig-c"),
             "notebooks/04b_x.html": figure.format("b") + figure.format("c") + link.format("#fig-b")}  # fmt: skip
    numbers = {name: finish.figure_numbers(text, name) for name, text in texts.items()}
    assert numbers == {
        "index.html": {"a": "Figure 1"},
        "notebooks/04b_x.html": {"b": "Figure 4b.1", "c": "Figure 4b.2"},
    }
    shown = {name: finish.number_figures(text, name, numbers) for name, text in texts.items()}
    assert '<span class="figure-number">Figure 1</span>' in shown["index.html"]
    assert link.format("notebooks/04b_x.html#fig-c").replace(">Figure", ">Figure 4b.2") in shown["index.html"]
    assert link.format("#fig-b").replace(">Figure", ">Figure 4b.1") in shown["notebooks/04b_x.html"]
    with pytest.raises(ValueError, match="the figure 'z', which is not on notebooks/04b_x"):
        finish.number_figures(
            texts["notebooks/04b_x.html"].replace("#fig-b", "#fig-z"), "notebooks/04b_x.html", numbers
        )
    with pytest.raises(ValueError, match="same name"):
        finish.figure_numbers(figure.format("b") * 2, "index.html")


# --- The pages of the built book --------------------------------------------------------------------------------------


def plain(tag) -> str:
    return " ".join(tag.get_text().split())


def test_every_chapter_is_listed_with_its_question_and_what_it_measured(pages):
    rows = pages["index"].select("#all-chapters tbody tr")
    assert [row.a["href"] for row in rows] == [f"notebooks/{name}.html" for name in NAMES]
    for name, row in zip(NAMES, rows, strict=True):
        question, measured = map(plain, row.select("td")[1:])
        if name in WAITING:
            continue
        assert question == chapters.load(name).question
        assert question
        bullet = pages[f"notebooks/{name}"].select(".glance > ul > li")[1]
        assert measured[1:] == plain(bullet).removeprefix("Measured: ")[1:]


def test_main_questions_are_chapters(pages):
    assert set(front.MAIN) <= set(NAMES)
    answers = pages["index"].select(".answers li")
    assert len(answers) == len(front.MAIN)
    assert all(answer.select_one("a[href^='notebooks/']") for answer in answers)


def test_the_front_page_is_one_screen_of_a_desk(page, html):
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto((html / "index.html").as_uri())
    page.evaluate("window.MathJax?.startup?.promise")
    for part in ("h1", ".front .drawing svg", ".front li >> nth=2", ".answers li >> nth=-1"):
        box = page.locator(f"article {part}").first.bounding_box()
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= 900, part


def test_the_doors_say_how_long_they_take(pages):
    doors = pages["index"].select(".front li")
    assert len(doors) == 3
    assert all(re.search(r"\d+ (minutes|hours)", door.get_text()) and door.a["href"] for door in doors)


def test_the_citation_is_that_of_the_repository(pages):
    text = pages["index"].select_one("#cite").get_text()
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    for entry in (cited, *cited["references"]):
        assert f"{{{entry['title']}}}" in text
    assert "2509.00421" in text
    assert "Meyer, M. and" in text


def test_builders_get_an_answer_a_number_and_how_sure_it_is(html, pages):
    page = pages["builders"]
    sections = page.select("article section section")
    *sections, proved = sections
    assert len(sections) == 4
    assert len(proved.select("li")) == 5
    assert all("not proved is" in plain(item) for item in proved.select("li")[:3])
    assert proved.select_one("a[href='index.html#coverage']")
    listed = {(c["chapter"], c["key"]): c for c in json.loads((html.parent / "claims.json").read_text())["claims"]}
    for section in sections:
        assert section.h2.get_text().rstrip("#").endswith("?")
        assert section.select_one(":scope > p > strong").get_text(strip=True)
        items = {plain(item).split(":")[0]: item for item in section.select("li")}
        assert list(items) == ["Number", "How sure", "Next"]
        assert items["Next"].a["href"].startswith("notebooks/")
    assert f"at {listed['08_degradation', 'critical-length']['measured']:.0f} facts" in plain(sections[1])
    rows = sections[0].select("tbody tr")
    assert len(rows) > 5
    for row in rows:
        least, found = (int(cell.get_text().replace(",", "")) for cell in row.select("td")[1:3])
        assert 1 <= least <= found


def test_no_number_is_typed_on_pages_that_are_filled():
    for name in ("index", "builders"):
        text = re.sub(r"\{book\}`[^`]*`", "", (ROOT / "book" / f"{name}.md").read_text())
        assert re.findall(r".{0,20}\d\.\d.{0,10}", prose(text)) == []


def test_no_place_is_left_open(pages):
    for name in ("index", "builders", "notation", "scoreboard"):
        assert "{book}" not in pages[name].get_text()


def test_the_sidebar_begins_with_the_page_for_builders(pages):
    links = pages["index"].select("nav.bd-links a.reference.internal")
    assert [link["href"] for link in links[:3]] == ["#", "builders.html", "notebooks/00_how_to_read.html"]
    assert [page for page in chapters.pages() if page.startswith("notebooks/")] == [
        f"notebooks/{name}" for name in NAMES
    ]


def test_every_page_describes_itself_and_there_is_no_page_that_nobody_links(html, pages):
    found = set()
    for name, page in pages.items():
        description = page.select_one("head meta[name=description]")["content"]
        assert 20 < len(description) <= 200, name
        assert page.select_one("head meta[property='og:description']")["content"] == description
        assert page.select_one("head meta[property='og:title']")["content"] in page.title.get_text()
        found.add(description)
    assert len(found) == len(pages)
    assert not (html / "prf-prf.html").exists()


def test_ids_are_used_once(pages):
    for name, page in pages.items():
        ids = [tag["id"] for tag in page.select("[id]")]
        assert {tag for tag in ids if ids.count(tag) > 1} <= {"__search"}, name


def test_the_table_of_networks_names_a_theorem_or_none(results):
    """What holds at any depth, what for one layer only, and what only where the prompt does not see the query."""
    lines = [line.strip("| ").split(" | ") for line in results.coverage().splitlines()[1:-1]]
    table = {line[0]: line[1:] for line in lines}
    for kind, labels in zip(table["how much a prompt of any length holds"],
                            (("moments", "caches", "mean-field-causal"), ("caches",), ("caches", "mean-field-causal"),
                             ("mean-field",)), strict=True):  # fmt: skip
        assert re.findall("<thm-(.*?)>", kind) == list(labels)
    assert table["that few positions do for all queries"][3] == "no theorem"
    assert results.open().count("not proved is") == 3
