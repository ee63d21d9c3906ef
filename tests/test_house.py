"""The house: which room may import which, and how large its modules, functions and tests may grow."""

import ast
from pathlib import Path

import chapters
import pytest

ROOT = chapters.ROOT
SOURCE = ROOT / "src" / chapters.PACKAGE
BOTTOM = {"checks", "files", "intervals"}
# Arrows only downwards: a room may import itself and what its line names, all of which stands above.
MAY_IMPORT = {
    "checks": set(),
    "files": set(),
    "intervals": set(),
    "bounds": {"checks"},
    "network": {"checks", "files"},
    "tasks": BOTTOM | {"network"},
    "measure": BOTTOM | {"bounds", "network", "tasks"},
    "tune": BOTTOM | {"bounds", "network", "tasks", "measure"},
    "compress": BOTTOM | {"bounds", "network", "measure"},
    "pretrain": BOTTOM | {"network", "tasks"},
    "real": BOTTOM | {"bounds", "network", "tasks", "measure", "tune", "compress", "pretrain"},
    "book": {"files", "intervals"},
    "experiments": BOTTOM | {"bounds", "network", "tasks", "measure", "tune", "compress", "pretrain", "real", "book"},
    "bench": BOTTOM | {"bounds", "network", "tasks", "measure", "tune", "compress", "pretrain", "real", "book"},
    "cli": BOTTOM
    | {"bounds", "network", "tasks", "measure", "tune", "compress", "pretrain", "real", "book", "experiments", "bench"},
}
# A notebook shows protocols, theorems and what a reader would use; checks, files and the programs on top are not that.
NOTEBOOKS_MAY_IMPORT = set(MAY_IMPORT) - {"checks", "files", "bench", "cli"}
MODULE_LINES, FUNCTION_LINES, TEST_LINES = 500, 60, 700

# What still breaks a rule, to be mended: an entry that is not needed any more fails the test.
UNFINISHED: dict[str, set[str]] = {
    "imports": set(),
    "notebooks": set(),
    "cycles": set(),
    "modules": set(),
    "functions": set(),
    "tests": set(),
}


def check(rule: str, found: set[str]) -> None:
    """No violation but those that are known, and none of them gone."""
    known = UNFINISHED[rule]
    new, gone = sorted(found - known), sorted(known - found)
    assert not new, f"new violations of {rule}: {'; '.join(new)}"
    assert not gone, f"no longer needed in UNFINISHED[{rule!r}]: {'; '.join(gone)}"


def modules() -> dict[str, Path]:
    """Every module of the package by its name without the package's, rooms by their `__init__`."""
    paths = sorted(SOURCE.rglob("*.py"))
    names = [".".join(path.relative_to(SOURCE).with_suffix("").parts) for path in paths]
    return {name.removesuffix("__init__").removesuffix("."): path for name, path in zip(names, paths, strict=True)}


MODULES = modules()
IMPORTS = {name: chapters.direct_imports(path.read_text(), path.name) for name, path in MODULES.items()}


def forbidden(where: str, imported: set[str], allowed: set[str]) -> set[str]:
    """One sentence for each import of a room that is not allowed."""
    return {f"{where} imports {name}" for name in imported if name.partition(".")[0] not in allowed}


def test_the_table_has_every_room_and_only_arrows_downwards():
    above = set()
    for room, allowed in MAY_IMPORT.items():
        assert allowed <= above, room
        above.add(room)
    assert {name.partition(".")[0] for name in MODULES} - {""} == above


def test_rooms_import_what_they_may():
    found = set()
    for name, imported in IMPORTS.items():
        room = name.partition(".")[0]
        allowed = MAY_IMPORT[room] | {room} if room else set()
        found |= forbidden(str(MODULES[name].relative_to(SOURCE)), imported, allowed)
    check("imports", found)


def test_notebooks_import_what_a_reader_would_use():
    each = [forbidden(chapter.name, chapter.imports(), NOTEBOOKS_MAY_IMPORT) for chapter in chapters.all_chapters()]
    check("notebooks", set().union(*each))


def test_a_forbidden_import_would_be_named():
    source = "def f():\n    from prompt_memory.tune import capacity\n    import prompt_memory.network.transformer as t"
    imported = chapters.direct_imports(source, "x.py")
    assert forbidden("bounds/x.py", imported, {"bounds", "network"}) == {"bounds/x.py imports tune.capacity"}


def test_imports_are_absolute():
    """A relative import means another module in every room; chapters.direct_imports does not follow it there."""
    for path in MODULES.values():
        nodes = ast.walk(ast.parse(path.read_text()))
        assert [node.lineno for node in nodes if isinstance(node, ast.ImportFrom) and node.level] == [], path


def cyclic(imports: dict[str, set[str]]) -> set[str]:
    """The modules that import themselves, through however many others."""

    def reached(name: str) -> set[str]:
        found, todo = set(), set(imports[name])
        while todo:
            found.add(next_ := todo.pop())
            todo |= imports[next_] - found
        return found

    return {name for name in imports if name in reached(name)}


def test_no_module_imports_itself_through_others():
    assert cyclic({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == {"b", "c"}
    check("cycles", cyclic(IMPORTS))


def test_modules_are_short():
    lengths = {str(path.relative_to(SOURCE)): len(path.read_text().splitlines()) for path in MODULES.values()}
    check("modules", {name for name, length in lengths.items() if length > MODULE_LINES})


def test_functions_are_short():
    found = set()
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > FUNCTION_LINES:
                found.add(f"{path.relative_to(SOURCE)}: {node.name}")
    check("functions", found)


def test_tests_are_short():
    files = (ROOT / "tests").rglob("*.py")
    check("tests", {path.name for path in files if len(path.read_text().splitlines()) > TEST_LINES})


@pytest.mark.parametrize("rule", UNFINISHED)
def test_an_entry_that_is_not_needed_fails(monkeypatch, rule):
    monkeypatch.setitem(UNFINISHED, rule, {"x"})
    check(rule, {"x"})
    for found in (set(), {"x", "y"}):
        with pytest.raises(AssertionError):
            check(rule, found)
