"""The built book, looked at as a reader would, and the build, broken on purpose.

The smoke book is built once in build/smoke (what has not changed is not run again) and never published. Everything
that breaks something happens in a temporary copy of the tree.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import chapters
import collect
import pytest
from bs4 import BeautifulSoup
from test_budget import check_page

from prompt_memory import claims

ROOT = chapters.ROOT
NAMES = [chapter.name for chapter in chapters.all_chapters()]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# A browser that looks for updates or telemetry would be mistaken for a page that does.
CHROMIUM_FLAGS = [
    f"--{flag}"
    for flag in ("no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
                 "disable-component-update", "disable-sync")
]  # fmt: skip


def build(root: Path, *arguments: str, step: str = "build.py") -> subprocess.CompletedProcess:
    """Run a step of the build of the tree at `root`, whose own source wins over the installed package."""
    environment = os.environ | {"PYTHONPATH": str(root / "src")}
    command = [sys.executable, str(root / "book" / "steps" / step), *arguments]
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    result.output = result.stdout + result.stderr
    return result


# --- The book as it is ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def html() -> Path:
    result = build(ROOT, "--profile", "smoke", "--cores", "2")
    assert result.returncode == 0, result.output
    return ROOT / "build" / "smoke" / "html"


@pytest.fixture(scope="session")
def pages(html) -> dict[str, BeautifulSoup]:
    """Every page of the book that a reader reads, parsed, by its path."""
    names = ["index", "notation", "scoreboard", "references", *(f"notebooks/{name}" for name in NAMES)]
    return {name: BeautifulSoup((html / f"{name}.html").read_text(), "html.parser") for name in names}


def test_no_page_shows_an_error_of_the_build(pages):
    for name, page in pages.items():
        assert not page.select(".problematic, .system-message, .traceback"), name
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


def test_the_scoreboard_lists_every_claim(html, pages):
    content = json.loads((html.parent / "claims.json").read_text())
    text = pages["scoreboard"].get_text()
    assert content["claims"]
    for claim in content["claims"]:
        assert claim["key"] in text
        assert claim["verdict"] in ("holds", "not refuted", "hit", "missed")
    links = {link["href"].split("#")[0] for link in pages["scoreboard"].select("article a[href]")}
    assert {f"notebooks/{name}.html" for name in NAMES} <= links


@pytest.fixture(scope="session")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


# Formulas may be wider than a phone only inside something that scrolls.
CLIPPED = """() => [...document.querySelectorAll('article mjx-container, article img, article table')].filter(e => {
  if (!e.getClientRects().length || e.getBoundingClientRect().right <= innerWidth + 1) return false;
  for (let up = e; up && up !== document.body; up = up.parentElement)
    if (['auto', 'scroll'].includes(getComputedStyle(up).overflowX)) return false;
  return true;
}).map(e => e.outerHTML.slice(0, 200))"""


@pytest.mark.parametrize(("width", "mode"), [(1280, "light"), (390, "dark")])
def test_pages_in_a_browser(browser, html, pages, width, mode):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=mode)
    page = context.new_page()
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    other = {"light": "dark", "dark": "light"}[mode]
    for name in pages:
        page.goto((html / f"{name}.html").as_uri())
        page.evaluate("window.MathJax?.startup?.promise")
        mathematics = page.locator("span.math, div.math").count()
        assert page.locator("mjx-merror").count() == 0, name
        assert page.locator("mjx-container").count() >= mathematics, name
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow <= 0, f"{name} is {overflow} pixels too wide"
        assert page.evaluate(CLIPPED) == [], name
        shown = page.locator(f"article img.only-{mode}")
        assert all(image.is_visible() for image in shown.all()), name
        assert not any(image.is_visible() for image in page.locator(f"article img.only-{other}").all()), name
    context.close()
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert errors == []


def test_the_calculator_of_the_book_agrees_with_python(browser, html):
    page = browser.new_page()
    name = html / "notebooks" / "14_budget.html"
    check_page(page, name.as_uri())
    for link in page.locator("#budget-calculator a").all():
        file, _, place = link.get_attribute("href").partition("#")
        assert f'id="{place}"' in (name.parent / file).read_text(), link.get_attribute("href")
    page.close()


# --- The build, broken on purpose -------------------------------------------------------------------------------------

STUB = """---
kernelspec:
  display_name: Python 3
  language: python
  name: python3
prompt_memory:
  threads: 1
  core_seconds: {{smoke: 3, standard: 3, full: 3}}
  models: {{}}
---

# Stub {name}

```{{glue}} verdict
```

```{{code-cell}} ipython3
:tags: [parameters]

profile, seed, threads = "smoke", 0, 1
seed = 0
profile = "smoke"
threads = 1
claims_path = None
models_dir = None
```

```{{code-cell}} ipython3
from myst_nb import glue
from prompt_memory import claims, {module}

record = claims.Recorder("{name}", profile=profile, seed=seed, path=claims_path)
record.theorem("k", theorem="Theorem 0", statement="the value", measured={module}.VALUE, bound=1)
{extra}
glue("verdict", record.verdicts(), display=False)
```
"""


def copy_tree(target: Path, *, keep=("models",)) -> Path:
    """A copy of the tree without what was built, except trained models."""

    def ignore(folder, names):
        if Path(folder) == ROOT:
            return {name for name in names if name.startswith(".") or name == "tests"}
        if Path(folder) == ROOT / "build":
            return set(names) - {"smoke"}
        if Path(folder) == ROOT / "build" / "smoke":
            return set(names) - set(keep)
        return {name for name in names if name in ("_build", "__pycache__") or name.endswith(".egg-info")}

    return Path(shutil.copytree(ROOT, target, ignore=ignore))


def only_chapters(root: Path, names: list[str]) -> None:
    entries = "".join(f"  - file: notebooks/{name}\n" for name in names)
    toc = f"format: jb-book\nroot: index\nchapters:\n{entries}  - file: scoreboard\n"
    (root / "book" / "_toc.yml").write_text(toc)
    for path in (root / "notebooks").glob("*.md"):
        if path.stem not in names:
            path.unlink()
    (root / "book" / "index.md").write_text("# Stub\n")


def write_stub(root: Path, name: str, module: str, extra: str = "") -> None:
    (root / "notebooks" / f"{name}.md").write_text(STUB.format(name=name, module=module, extra=extra))


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A copy of the tree with two stub chapters, built and published."""
    root = copy_tree(tmp_path_factory.mktemp("tree") / "copy")
    package = root / "src" / "prompt_memory"
    (package / "stub_deep.py").write_text("VALUE = 1\n")
    (package / "stub_one.py").write_text("from prompt_memory.stub_deep import VALUE\n")
    (package / "stub_two.py").write_text("VALUE = 1\n")
    write_stub(root, "00_one", "stub_one")
    write_stub(root, "01_two", "stub_two")
    only_chapters(root, ["00_one", "01_two"])
    result = build(root, "--profile", "smoke", "--cores", "2", "--publish")
    assert result.returncode == 0, result.output
    assert re.search(r"\[\d+:\d\d  2/2\]  0\d_\w+: done in", result.output)
    assert re.search(r"^sum +\d+\.\d +6$", result.output, re.MULTILINE)  # used and declared
    assert str(root / "book" / "_build" / "html" / "index.html") in result.output
    return root


@pytest.fixture
def tree(published):
    """The published tree; sources are put back afterwards, as they were."""
    sources = [path for folder in ("src", "notebooks") for path in (published / folder).rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in sources}
    yield published
    for path, content in before.items():
        if path.read_bytes() != content:
            path.write_bytes(content)


def planned(root: Path) -> set[str]:
    """Names of the jobs that a build would run now."""
    command = [sys.executable, "-m", "snakemake", "-s", "book/Snakefile", "--cores", "1", "-n", "all"]
    command += ["--max-checksum-file-size", str(2**40), "--config", "profile=smoke"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return set(re.findall(r"^(\w+) +1\b", result.stdout + result.stderr, re.MULTILINE))


def book_as_it_is(root: Path) -> dict[str, bytes]:
    html = root / "book" / "_build" / "html"
    return {str(path): path.read_bytes() for path in html.rglob("*.html")}


def test_touched_files_run_nothing(tree):
    for path in [*(tree / "notebooks").iterdir(), *(tree / "src").rglob("*.py"), tree / "book" / "_config.yml"]:
        path.touch()
    assert planned(tree) == set()


@pytest.mark.parametrize(
    ("edited", "runs"),
    [
        ("src/prompt_memory/stub_two.py", {"notebook_01_two"}),
        ("src/prompt_memory/stub_deep.py", {"notebook_00_one"}),
        ("src/prompt_memory/claims.py", {"notebook_00_one", "notebook_01_two"}),
        ("src/prompt_memory/figures.py", set()),
        ("notebooks/01_two.md", {"notebook_01_two"}),
    ],
)
def test_an_edit_runs_what_depends_on_it(tree, edited, runs):
    with (tree / edited).open("a") as file:
        file.write("\n# edited\n")
    assert {name for name in planned(tree) if name.startswith("notebook_")} == runs


def test_a_violated_theorem_stops_the_book_and_shows_on_the_scoreboard(tree):
    before = book_as_it_is(tree)
    (tree / "src" / "prompt_memory" / "stub_two.py").write_text("VALUE = 2\n")
    result = build(tree, "--profile", "smoke", "--cores", "2", "--publish")
    assert result.returncode != 0
    assert "Violated: 01_two/k" in result.stdout
    assert "must be ≤ 1, measured 2" in result.stdout
    assert "The last good book is untouched" in result.stdout
    scoreboard = (tree / "build" / "smoke" / "scoreboard.md").read_text()
    assert "| 01_two | k | violated | Theorem 0: the value | ≤ 1 | 2 |" in scoreboard
    assert "verdict-violated" in (tree / "build" / "smoke" / "scoreboard.html").read_text()
    assert book_as_it_is(tree) == before


def test_a_crash_names_notebook_cell_and_error_and_the_others_finish(tree):
    before = book_as_it_is(tree)
    write_stub(tree, "00_one", "stub_one", extra="raise KeyError('no such thing')")
    write_stub(tree, "01_two", "stub_two", extra="# edited")
    result = build(tree, "--profile", "smoke", "--cores", "2", "--publish")
    assert result.returncode != 0
    line = (tree / "notebooks" / "00_one.md").read_text().splitlines().index("from myst_nb import glue") + 1
    where = f"code cell 2 of 2 (notebooks/00_one.md, line {line}: from myst_nb import glue)"
    assert f"FAILED 00_one, {where}: KeyError: 'no such thing'" in result.stdout
    assert "01_two: done in" in result.stdout
    failed = tree / "build" / "smoke" / "failed"
    assert "no such thing" in (failed / "00_one.ipynb").read_text()
    assert '"key": "k"' in (failed / "00_one.claims.json").read_text()  # nothing that was computed is lost
    scoreboard = (tree / "build" / "smoke" / "scoreboard.md").read_text()
    assert "No claims from: 00_one" in scoreboard
    assert "(01_two)" in scoreboard
    assert book_as_it_is(tree) == before


def test_a_dead_kernel_and_an_endless_cell_are_named(tree):
    write_stub(tree, "00_one", "stub_one", extra="import os; os._exit(9)")
    dead = build(tree, "00_one", "--profile", "smoke", step="execute.py")
    assert dead.returncode != 0
    assert re.search(r"FAILED 00_one, code cell 2 of 2 \(.*\): the kernel died", dead.stdout)
    write_stub(tree, "00_one", "stub_one", extra="import time; time.sleep(60)")
    endless = build(tree, "00_one", "--profile", "smoke", "--timeout", "3", step="execute.py")
    assert endless.returncode != 0
    assert re.search(r"FAILED 00_one, code cell 2 of 2 \(.*\): the cell ran longer than 3 s", endless.stdout)


def test_unknown_parameters_and_profiles_get_one_sentence(tree):
    result = build(tree, "00_one", "--profile", "smoke", "--set", "sead=3", step="execute.py")
    assert result.returncode != 0
    assert "FAILED 00_one: unknown parameter sead; it declares claims_path, models_dir, profile, seed" in result.stdout
    result = build(tree, "--profile", "fast")
    assert result.returncode != 0
    assert result.output.strip() == "Unknown PROFILE=fast: choose one of smoke, standard, full."
    result = build(tree, "--notebook", "77")
    assert result.output.strip() == "NAME=77 is not one notebook; there are: 00_one, 01_two."


def test_a_warning_of_the_pages_is_an_error(tree):
    before = book_as_it_is(tree)
    index = tree / "book" / "index.md"
    index.write_text("# Stub\n\n{doc}`nowhere`\n")
    result = build(tree, "--profile", "smoke", "--publish")
    index.write_text("# Stub\n")
    assert result.returncode != 0
    assert "FAILED book: the book has warnings" in result.stdout
    assert "nowhere" in result.stdout
    assert book_as_it_is(tree) == before


def test_collection_refuses_what_would_mislead(tmp_path):
    path = tmp_path / "claims" / "01_test.json"
    record = claims.Recorder("01_test", profile="smoke", seed=0, path=path)
    assert collect.read_chapter(tmp_path, "01_test", "smoke")["claims"] == []
    with pytest.raises(ValueError, match="the Recorder must get '01_test'"):
        collect.read_chapter(tmp_path, "01_test", "full")
    record.predict("open", theorem="Theorem 0", statement="s", predicted=1, absolute=0)
    with pytest.raises(ValueError, match="predicted but never measured: open"):
        collect.read_chapter(tmp_path, "01_test", "smoke")
    with pytest.raises(ValueError, match="10001 sampled comparisons; the level allows for 10000"):
        collect.check_family([{"comparisons": 10_000}, {"comparisons": 1}])


# --- The done-when tests ----------------------------------------------------------------------------------------------


def test_a_cold_build_gives_the_same_claims(html, tmp_path):
    """Models trained anew, another folder, other jobs beside: the same bytes (two chapters, for time)."""
    root = copy_tree(tmp_path / "copy", keep=())
    names = ["00_how_to_read", "04_accessible_strings"]
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
    with (root / "src" / "prompt_memory" / "bounds.py").open("a") as file:
        file.write("\n\n_whole = counting_bits\n\n\ndef counting_bits(*args, **named):\n")
        file.write("    return _whole(*args, **named) / 2\n")
    result = build(root, "--profile", "smoke", "--cores", "2", "--publish")
    assert result.returncode != 0
    assert "FAILED verdict" in result.stdout, result.output
    assert "Violated: 01_counting/" in result.stdout
    assert "| 01_counting |" in (root / "build" / "smoke" / "scoreboard.md").read_text()
    assert "verdict-violated" in (root / "build" / "smoke" / "scoreboard.html").read_text()
    assert not (root / "book" / "_build" / "html").exists()
