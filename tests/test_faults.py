"""The build, broken on purpose: what an edit runs again, and what violations, crashes and warnings lead to.

Everything happens in a temporary copy of the tree with two stub chapters.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import chapters
import collect
import pytest
from building import build, copy_tree, only_chapters

from prompt_memory.book import claims

STUB = """---
kernelspec:
  display_name: Python 3
  language: python
  name: python3
prompt_memory:
  threads: 1
  core_seconds: {{smoke: 3, standard: 3, full: 3}}
  models: {models}
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
from prompt_memory import {module}
from prompt_memory.book import claims

record = claims.Recorder("{name}", profile=profile, seed=seed, path=claims_path)
record.theorem("k", theorem="Theorem 0", statement="the value", measured={module}.VALUE, bound=1, possible=9)
{extra}
glue("verdict", record.verdicts(), display=False)
```
"""


def write_stub(root: Path, name: str, module: str, extra: str = "", models: str = "{}") -> None:
    text = STUB.format(name=name, module=module, extra=extra, models=models)
    (root / "notebooks" / f"{name}.md").write_text(text)


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A copy of the tree with two stub chapters, built and published."""
    root = copy_tree(tmp_path_factory.mktemp("tree") / "copy", keep=())
    package = root / "src" / "prompt_memory"
    (package / "stub_deep.py").write_text("VALUE = 1\n")
    (package / "stub_one.py").write_text("from prompt_memory.stub_deep import VALUE\n")
    (package / "stub_two.py").write_text("VALUE = 1\n")
    for family, steps in (("bit_reader", 1000), ("recall", 400)):
        module = package / "pretrain" / f"{family}.py"
        module.write_text(module.read_text().replace(f"steps={steps}", "steps=9"))  # nobody looks at what they learn
    write_stub(root, "00_one", "stub_one", models="{smoke: [bit-reader-small, recall-small]}")
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
        ("src/prompt_memory/book/claims.py", {"notebook_00_one", "notebook_01_two"}),
        ("src/prompt_memory/book/figures.py", set()),
        ("notebooks/01_two.md", {"notebook_01_two"}),
    ],
)
def test_an_edit_runs_what_depends_on_it(tree, edited, runs):
    with (tree / edited).open("a") as file:
        file.write("\n# edited\n")
    assert {name for name in planned(tree) if name.startswith("notebook_")} == runs


@pytest.mark.parametrize(
    ("edited", "trained"),
    [
        ("network/recall.py", {"recall-small"}),
        ("pretrain/bit_reader.py", {"bit-reader-small"}),
        ("network/transformer.py", {"bit-reader-small", "recall-small"}),
        ("tasks/facts.py", set()),
    ],
)
def test_an_edit_trains_the_models_that_depend_on_it(tree, monkeypatch, edited, trained):
    monkeypatch.setattr(chapters, "ROOT", tree)

    def digests():
        models = ("bit-reader-small", "recall-small")
        return {(name, chapters.Chapter("00_x", 1, {}, {"smoke": (name,)}, "").digest) for name in models}

    before = digests()
    with (tree / "src" / "prompt_memory" / edited).open("a") as file:
        file.write("\n# edited\n")
    assert {name for name, _ in digests() - before} == trained
    planned_models = {name for name in planned(tree) if name.startswith("model_")}
    assert planned_models == {f"model_{name.replace('-', '_')}" for name in trained}


def test_results_of_other_seeds_outlive_an_edit_of_prose_only():
    text = "# Title\n\n```{code-cell} ipython3\nx = 1\n```\n"
    kept, prose, code = (
        chapters.Chapter("00_x", 1, {}, {}, each).digest
        for each in (text, text.replace("Title", "Other"), text.replace("x = 1", "x = 2"))
    )
    assert kept == prose != code


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


def test_a_cell_that_exits_with_zero_is_no_success(tree):
    write_stub(tree, "00_one", "stub_one", extra="import sys; sys.exit(0)")
    ended = build(tree, "00_one", "--profile", "smoke", step="execute.py")
    assert ended.returncode != 0
    assert "the run ended before the end: cell" in ended.stdout
    assert not (tree / "build" / "smoke" / "notebooks" / ".00_one.running.ipynb").exists()


def test_the_folder_may_have_any_name(tmp_path):
    root = copy_tree(tmp_path / "it's \t(a) & $b; ü#" / "copy", keep=())
    only_chapters(root, [])
    write_stub(root, "00_one", "files")
    path = root / "notebooks" / "00_one.md"
    path.write_text(path.read_text().replace("files.VALUE", "1"))
    only_chapters(root, ["00_one"])
    result = build(root, "--profile", "smoke", "--notebook", "00")
    assert result.returncode == 0, result.output


def test_habits_of_the_reader_change_nothing(tree, tmp_path, monkeypatch):
    """A cluster's Snakemake profile, LaTeX for every figure, and a home that cannot be written."""
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile" / "config.yaml").write_text("executor: slurm\njobs: 10\n")
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    monkeypatch.setenv("SNAKEMAKE_PROFILE", str(tmp_path / "profile"))
    monkeypatch.setenv("MATPLOTLIBRC", str(tmp_path / "matplotlibrc"))
    monkeypatch.setenv("HOME", "/proc/none")
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    drawing = "from prompt_memory.book.figures import show\nshow(lambda f: f.subplots().set_title('a_b'), alt='x')"
    write_stub(tree, "00_one", "stub_one", extra=drawing)
    result = build(tree, "--profile", "smoke", "--notebook", "00")
    assert result.returncode == 0, result.output


def test_a_killed_build_leaves_no_orphan_beside_the_next(tree):
    write_stub(tree, "00_one", "stub_one", extra="import time; time.sleep(4)")
    command = [sys.executable, "book/steps/build.py", "--profile", "smoke", "--cores", "2"]
    environment = os.environ | {"PYTHONPATH": str(tree / "src")}
    first = subprocess.Popen(command, cwd=tree, env=environment, stdout=subprocess.PIPE, text=True)
    for line in first.stdout:
        if "00_one: started" in line:
            break
    first.kill()
    first.wait()
    first.stdout.close()
    second = build(tree, "--profile", "smoke", "--cores", "2")
    assert second.returncode == 0, second.output
    assert "00_one: done" in second.stdout


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (
            lambda text: text.replace("  threads: 1", "\tthreads: 1", 1),
            "01_two.md, line 7: the front matter is not YAML",
        ),
        (lambda text: text.replace("threads: 1", "threads: all", 1), "01_two.md: threads must be a whole number"),
        (lambda text: text.replace("smoke: 3", "smoke: x", 1), "01_two.md: core_seconds must be positive numbers"),
        (lambda text: text.replace("models: {}", "models: 3", 1), "01_two.md: models must list names"),
        (lambda text: text.replace("models: {}", "models: {smoke: [huge]}", 1), "01_two.md: there is no recipe for"),
        (lambda text: text.encode("utf-16"), "01_two.md: not UTF-8"),
    ],
)
def test_a_damaged_notebook_is_named_in_one_sentence(tree, monkeypatch, damage, sentence):
    path = tree / "notebooks" / "01_two.md"
    text = damage(path.read_text())
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    monkeypatch.setattr(chapters, "ROOT", tree)
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        chapters.load("01_two")
    assert "\n" not in str(error.value)


def test_a_notebook_with_a_byte_order_mark_is_read(tree, monkeypatch):
    path = tree / "notebooks" / "01_two.md"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    monkeypatch.setattr(chapters, "ROOT", tree)
    assert chapters.load("01_two").title == "Stub 01_two"


def test_a_folder_where_a_file_must_be_and_the_other_way_round_get_one_sentence(tmp_path):
    root = copy_tree(tmp_path / "copy", keep=())
    shutil.rmtree(root / "build", ignore_errors=True)
    (root / "build").write_text("a file")
    result = build(root, "--profile", "smoke")
    assert result.returncode == 1
    assert re.fullmatch(r"FAILED (File exists|Not a directory): \S+build\S*", result.output.strip())
    (root / "build").unlink()
    (root / "build" / "smoke" / ".lock").mkdir(parents=True)
    result = build(root, "--profile", "smoke")
    assert re.fullmatch(r"FAILED Is a directory: \S+\.lock", result.output.strip())


def test_a_truncated_claims_file_is_named(tree):
    path = tree / "build" / "smoke" / "claims" / "00_one.json"
    path.write_text('{"chapter": "00_o')
    result = build(tree, "--profile", "smoke", step="collect.py")
    assert result.returncode == 1
    assert re.search(r"^FAILED \S+00_one\.json is damaged", result.output)


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
    record.predict("open", theorem="Theorem 0", statement="s", predicted=1, absolute=0, possible=(0, 9))
    with pytest.raises(ValueError, match="predicted but never measured: open"):
        collect.read_chapter(tmp_path, "01_test", "smoke")
    with pytest.raises(ValueError, match="10001 sampled comparisons; the level allows for 10000"):
        collect.check_family([{"comparisons": 10_000}, {"comparisons": 1}])
