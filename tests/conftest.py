"""The smoke book, built once for all tests, and a browser to look at it."""

import os
import shutil
from pathlib import Path

import chapters
import pytest
from bs4 import BeautifulSoup
from building import ROOT, build

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: no test asks a hub

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# A browser that looks for updates or telemetry would be mistaken for a page that does.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


# What builds comes first, the longest at the front: with two workers the others fill what is left, and none waits at
# the end. pytest sorts what the command line names (since its version 9 "a/b a" means "a"), so it is done here.
FIRST = ("test_book.py", "test_faults.py", "test_seeds.py", "test_pages.py", "test_processors.py", "test_front.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))


@pytest.fixture(scope="session")
def html() -> Path:
    """The folder of the pages.  Of tests that run side by side the second waits for the build and finds it done."""
    result = build(ROOT, "--profile", "smoke", "--cores", "2")
    assert result.returncode == 0, result.output
    return ROOT / "build" / "smoke" / "html"


@pytest.fixture(scope="session")
def pages(html) -> dict[str, BeautifulSoup]:
    """Every page of the book that a reader reads, parsed, by its path."""
    names = chapters.pages()
    return {name: BeautifulSoup((html / f"{name}.html").read_text(), "html.parser") for name in names}


@pytest.fixture(scope="session")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A page that must not complain, nor ask a network for anything."""
    context = browser.new_context(viewport={"width": 1000, "height": 900})
    page = context.new_page()
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else page.problems.append(r.url))
    yield page
    assert page.problems == []
    context.close()
