"""What must stay true of the repository as a whole."""

import re
import subprocess
import sys
import tomllib

import chapters
import compare
import jupytext
import pytest
import yaml
from building import build

ROOT = chapters.ROOT
CHAPTERS = chapters.all_chapters()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_environment_yml_has_the_pins_of_pyproject():
    extras = [pin for extra in ("book", "test") for pin in PROJECT["optional-dependencies"][extra]]
    wanted = [*PROJECT["dependencies"], *extras]
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = (entry["pip"] for entry in dependencies if isinstance(entry, dict))
    assert sorted(pip) == sorted(wanted)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+==[\w.]+", pin) for pin in wanted)
    assert "python=3.11" in dependencies


def test_no_executed_notebook_is_committed():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert [file for file in listed.stdout.splitlines() if file.endswith(".ipynb")] == []


def test_the_declared_times_fit():
    cores = {profile: sum(chapter.core_seconds[profile] for chapter in CHAPTERS) for profile in chapters.PROFILES}
    assert cores["standard"] <= 3000  # 25 minutes on two cores
    assert cores["smoke"] <= 2 * 200  # three and a half minutes on two cores


def test_chapters_are_numbered_as_the_book_orders_them():
    names = [chapter.name for chapter in CHAPTERS]
    assert names == sorted(names)
    assert names[0].startswith("00_")


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.name)
def test_cells_are_those_that_jupytext_reads(chapter):
    notebook = jupytext.reads(chapter.text, fmt="md:myst")
    read = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.source for cell in read] == [cell.source for cell in chapter.cells]
    assert [tuple(cell.metadata.get("tags", ())) for cell in read] == [cell.tags for cell in chapter.cells]
    lines = chapter.text.splitlines()
    assert all(lines[cell.line - 1] == cell.source.splitlines()[0] for cell in chapter.cells)


def prose(text: str) -> str:
    """A notebook without its front matter, code, mathematics, roles and link targets."""
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    text = re.sub(r"^(`{3,})[ \t]*(\{code-cell\}|\{math\}|\w*)[^\n]*\n.*?^\1[ \t]*$", "", text, flags=re.M | re.S)
    text = re.sub(r"\$\$.*?\$\$|\$[^$\n]*(\n[^$\n]+)?\$", "", text, flags=re.DOTALL)
    text = re.sub(r"(`+).*?\1", "", text, flags=re.DOTALL)
    text = re.sub(r"\]\([^)]*\)|https?://\S+", "]", text)
    return re.sub(r"\barXiv[: ]\d{4}\.\d{5}", "", text)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.name)
def test_no_measured_number_is_typed_in_prose(chapter):
    assert re.findall(r".{0,30}\d\.\d.{0,10}", prose(chapter.text)) == []


def test_no_norm_of_a_table_loses_its_bars():
    """In a Markdown table a backslash before a bar is taken for an escaped bar: a norm must be written lVert."""
    files = [*(ROOT / "notebooks").glob("*.md"), *(ROOT / "book").glob("*.md")]
    rows = [line for file in files for line in file.read_text().splitlines() if line.startswith("|")]
    assert len(rows) > 30
    assert [row for row in rows if re.search(r"\$[^$]*\\\|[^$]*\$", row)] == []


def test_every_reference_is_whole_and_cited():
    from pybtex.database import parse_file

    entries = parse_file(str(ROOT / "book" / "references.bib")).entries
    files = [*(ROOT / "notebooks").glob("*.md"), *(ROOT / "book").glob("*.md")]
    roles = [re.findall(r"\{cite(?::\w+)?\}`([^`]*)`", file.read_text()) for file in files]
    cited = {key.strip() for found in roles for keys in found for key in keys.split(",")}
    assert cited == set(entries)
    for key, entry in entries.items():
        assert {"title", "year"} <= set(entry.fields), key
        assert entry.persons["author"], key


def test_the_search_for_typed_numbers_would_find_one():
    text = (
        "---\na: 0.1\n---\nrecall $0.5$ and `0.7` of {glue:text}`x:.3f`\n```{code-cell}\n0.9\n```\nbut also 0.83 here"
    )
    assert re.findall(r"\d\.\d+", prose(text)) == ["0.83"]


def test_the_code_of_chapters_has_nothing_unused_or_undefined(tmp_path):
    for chapter in CHAPTERS:
        jupytext.write(jupytext.reads(chapter.text, fmt="md:myst"), tmp_path / f"{chapter.name}.ipynb")
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F", str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_imports_are_followed_transitively(monkeypatch, tmp_path):
    package = tmp_path / "src" / "prompt_memory"
    package.mkdir(parents=True)
    sources = {
        "__init__": "",
        "a": "from prompt_memory import b",
        "b": "def f():\n    from . import c",
        "c": "import numpy",
        "d": "import prompt_memory.a as a\nfrom .c import thing",
    }
    for name, source in sources.items():
        (package / f"{name}.py").write_text(source)
    monkeypatch.setattr(chapters, "ROOT", tmp_path)

    def names(modules):
        return [path.rsplit("/", 1)[1].removesuffix(".py") for path in chapters.closure(modules)]

    assert names({"a"}) == ["__init__", "a", "b", "c"]
    assert names({"d"}) == ["__init__", "a", "b", "c", "d"]
    text = "```{code-cell} python\n%matplotlib inline\nfrom prompt_memory.b import f\n```\n"
    chapter = chapters.Chapter("00_x", 1, {}, (), text)
    assert chapter.modules() == [f"src/prompt_memory/{name}.py" for name in ("__init__", "b", "c")]


def test_a_name_may_be_given_in_short():
    assert chapters.find("00") == chapters.find("notebooks/00_how_to_read.md") == "00_how_to_read"
    with pytest.raises(ValueError, match="is not one notebook; there are: 00_how_to_read"):
        chapters.find("99")


def test_make_answers_mistakes_with_one_sentence():
    for arguments, sentence in (
        (["book", "PROFILE=fast"], "Unknown PROFILE=fast: choose one of smoke standard full"),
        (["notebook"], "Say which notebook: make notebook NAME=00_how_to_read"),
        (["env", "ENV=poetry"], "Unknown ENV=poetry: choose venv or conda"),
    ):
        result = subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        assert result.returncode != 0
        assert sentence in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1


def test_make_alone_lists_the_targets():
    result = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    targets = "env book notebook test bench compare seeds trust links wheel lab serve clean"
    for target in targets.split():
        assert re.search(rf"^  {target} +\S", result.stdout, re.MULTILINE), target


def test_compare_sees_what_changed_and_ignores_rounding():
    def content(**claims):
        seeds = {"x": {"seed": 1, "threads": 1}}
        listed = [{"chapter": "x", "key": key} | rest for key, rest in claims.items()]
        return {"profile": "smoke", "level": 1e-6, "chapters": seeds, "claims": listed}

    old = content(a={"measured": 1.0, "statement": "s"}, b={"measured": 2.0, "statement": "s"})
    rounded = content(a={"measured": 1.0 + 1e-8, "statement": "s"}, b={"measured": 2.0, "statement": "s"})
    assert compare.differences(old, rounded) == []
    new = content(a={"measured": 1.1, "statement": "s"}, c={"statement": "t", "verdict": "holds"})
    lines = compare.differences(old, new)
    assert [line.split()[0] for line in lines] == ["changed", "removed", "added"]
    assert "measured: 1.0 -> 1.1" in lines[0]
    other = old | {"level": 1e-3, "chapters": {"x": {"seed": 2, "threads": 1}}}
    assert compare.differences(old, other) == [
        "level: 1e-06 -> 0.001",
        "x: {'seed': 1, 'threads': 1} -> {'seed': 2, 'threads': 1}",
    ]


def test_another_processor_may_move_what_was_searched_and_nothing_else():
    def content(**rest):
        claim = {"chapter": "x", "key": "a", "statement": "s", "kind": "prediction", "verdict": "hit", "searched": True}
        claim |= {"measured": 0.8493, "interval": [0.73, 0.98], "margin": -0.0007, "tightest": 0, "predicted": 1.0}
        return {"profile": "standard", "chapters": {}, "claims": [claim | rest]}

    def changed(**rest):
        return compare.differences(content(), content(**rest), same_processor=False) != []

    moved = {"measured": 0.8529, "interval": [0.74, 0.99], "margin": 0.0029}
    assert compare.differences(content(), content(**moved)) != []  # on the same processor nothing moves
    assert not changed(**moved)
    assert not changed(**moved, verdict="undecided")
    assert changed(**moved, verdict="missed")
    assert changed(measured=0.5, interval=[0.4, 0.6])
    assert not changed(measured=0.6, interval=[0.5, 0.7])  # apart, but within 35 %
    assert changed(statement="t")
    assert changed(predicted=0.9)
    assert not changed(predicted=0.9, tightest=1)
    plain = content(searched=False)
    assert compare.differences(plain, content(searched=False, **moved), same_processor=False) != []


def test_the_processor_is_named(monkeypatch):
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    name = chapters.processor()
    assert len(name) > 3
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    assert chapters.processor() != name


def test_the_reference_is_of_one_profile(monkeypatch, tmp_path, capsys):
    claims = tmp_path / "build" / "smoke" / "claims.json"
    claims.parent.mkdir(parents=True)
    claims.write_text("{}")
    monkeypatch.setattr(chapters, "ROOT", tmp_path)
    monkeypatch.setattr(compare, "REFERENCE", tmp_path / "reference.json")
    monkeypatch.setattr("sys.argv", ["compare.py", "--profile", "smoke", "--accept"])
    assert compare.main() == 2
    assert capsys.readouterr().out.startswith("The reference holds the claims of profile standard")
    assert not (tmp_path / "reference.json").exists()


def test_no_cores_are_refused_at_once():
    result = build(ROOT, "--profile", "smoke", "--cores", "0")
    assert (result.returncode, result.stdout) == (2, "CORES must be at least 1, not 0.\n")


def commands_of(text: str) -> set[str]:
    """TeX commands in the prose of a page, and those in strings of its code, where backslashes are doubled."""
    cells = re.compile(r"^(`{3,})\{code-cell\}.*?^\1[ \t]*$", flags=re.M | re.S)
    code = "".join(cell[0] for cell in cells.finditer(text))
    return {*re.findall(r"\\([a-zA-Z]+)", cells.sub("", text)), *re.findall(r"\\\\([a-zA-Z]+)", code)}


def test_every_tex_command_is_defined():
    mathjax = (ROOT / "book" / "vendor" / "mathjax" / "tex-chtml.js").read_text()
    known = set(re.findall(r"""[{,]"?(?:\\\\)?([A-Za-z]+)"?:[\["']""", mathjax))
    known |= set(
        yaml.safe_load((ROOT / "book" / "_config.yml").read_text())["sphinx"]["config"]["mathjax3_config"]["tex"][
            "macros"
        ]
    )
    pages = {chapter.name: chapter.text for chapter in CHAPTERS}
    pages |= {path.name: path.read_text() for path in (ROOT / "book").glob("*.md")}
    assert {name: commands_of(text) - known for name, text in pages.items() if commands_of(text) - known} == {}
    assert not {"Zz", "mathbbb", "undefined"} & known
    assert commands_of('a $\\Zz$\n```{code-cell}\n"\\nand $\\\\rho$"\n```\n') == {"Zz", "rho"}
