"""The built book, looked at as a reader would; built cold; and built with a wrong bound.

The smoke book is built once in build/smoke (what has not changed is not run again) and never published. Everything
that breaks something happens in a temporary copy of the tree.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup
from building import NAMES, ROOT, build, copy_tree, only_chapters

# --- The book as it is ------------------------------------------------------------------------------------------------


def test_no_page_shows_an_error_of_the_build(pages):
    for name, page in pages.items():
        assert not page.select(".problematic, .system-message, .traceback"), name
        assert not page.select(".output.stderr"), f"{name} shows what a library wrote to the standard error"
        assert "unpkg.com" not in str(page), name
        assert "Traceback (most recent call last)" not in page.get_text(), name


def test_links_inside_the_book_lead_somewhere(html, pages):
    ids = {}
    for name, page in pages.items():
        for tag in page.select("a[href], img[src], link[href], script[src]"):
            link = urlsplit(tag.get("href") or tag.get("src"))
            if link.scheme or link.netloc:
                continue
            target = (html / f"{name}.html").parent / unquote(link.path) if link.path else html / f"{name}.html"
            assert target.exists(), f"{name}: {tag}"
            if link.fragment and target.suffix == ".html":
                if target not in ids:
                    soup = BeautifulSoup(target.read_text(), "html.parser")
                    ids[target] = {element["id"] for element in soup.select("[id]")}
                assert unquote(link.fragment) in ids[target], f"{name}: {tag}"


def test_every_chapter_begins_with_its_verdict(pages):
    for name in NAMES:
        article = pages[f"notebooks/{name}"].select_one("article")
        first = article.select_one(".verdict-box, h2")
        assert "verdict-box" in first.get("class", []), name


def test_every_chapter_gives_its_source_and_command(html, pages):
    for name in NAMES:
        page = pages[f"notebooks/{name}"]
        assert f"make notebook NAME={name} PROFILE=smoke" in page.get_text()
        source = page.select_one(f'a.download[href$="{name}.md.txt"]')
        assert (html / "notebooks" / source["href"]).read_text() == (ROOT / "notebooks" / f"{name}.md").read_text()


def test_images_are_described(pages):
    for name, page in pages.items():
        for image in page.select("article img"):
            assert image.get("alt", "").strip(), f"{name}: an image has no alt text"


def test_every_page_says_its_profile(pages):
    for name, page in pages.items():
        assert "Built from the profile smoke" in " ".join(
            page.select_one("footer.bd-footer-content").get_text().split()
        )
        assert not page.select(".injected-parameters, .tag_injected-parameters"), name


def test_norms_of_the_notation_table_are_norms(pages):
    """Inside a Markdown table a backslash before a bar is lost, so a norm needs lVert."""
    assert r"\lVert P - P' \rVert" in pages["notation"].get_text()


def test_the_scoreboard_lists_every_claim(html, pages):
    content = json.loads((html.parent / "claims.json").read_text())
    text = pages["scoreboard"].get_text()
    assert content["claims"]
    for claim in content["claims"]:
        assert claim["key"] in text
        assert claim["verdict"] in ("holds", "not refuted", "hit", "missed", "undecided")
    links = {link["href"].split("#")[0] for link in pages["scoreboard"].select("article a[href]")}
    assert {f"notebooks/{name}.html" for name in NAMES} <= links


# --- The whole build, cold and broken ---------------------------------------------------------------------------------


def test_a_cold_build_gives_the_same_claims(html, tmp_path):
    """A model trained anew, another folder: the same bytes (one chapter, for time)."""
    root = copy_tree(tmp_path / "copy", keep=())
    names = ["10_long_contexts"]
    only_chapters(root, names)
    command = [sys.executable, "-m", "snakemake", "-s", "book/Snakefile", "--cores", "2", "--keep-going"]
    environment = os.environ | {"PYTHONPATH": str(root / "src")}
    result = subprocess.run(
        [*command, "--config", "profile=smoke", "--", "collect"], cwd=root, env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    for name in names:
        claims = Path("claims", f"{name}.json")
        assert (root / "build/smoke" / claims).read_bytes() == (html.parent / claims).read_bytes(), name


def test_halving_counting_bits_fails_the_build(html, tmp_path):
    root = copy_tree(tmp_path / "copy")
    only_chapters(root, ["01_counting"])
    with (root / "src" / "prompt_memory" / "bounds" / "__init__.py").open("a") as file:
        file.write("\n\n_whole = counting_bits\n\n\ndef counting_bits(*args, **named):\n")
        file.write("    return _whole(*args, **named) / 2\n")
    result = build(root, "--profile", "smoke", "--cores", "2", "--publish")
    assert result.returncode != 0
    assert "FAILED verdict" in result.stdout, result.output
    assert "Violated: 01_counting/" in result.stdout
    assert "| 01_counting |" in (root / "build" / "smoke" / "scoreboard.md").read_text()
    assert "verdict-violated" in (root / "build" / "smoke" / "scoreboard.html").read_text()
    assert not (root / "book" / "_build" / "html").exists()
