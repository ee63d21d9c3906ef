"""The package gives every formula of its chapters under one name."""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import chapters

from prompt_memory import bounds

MODULES = [name for _, name, _ in pkgutil.iter_modules(bounds.__path__) if not name.startswith("_")]
NO_CHAPTER = {"coverage"}  # the table of which theorem covers which network


def formulas(name):
    """Public functions that are defined in a module of the package, by name."""
    module = importlib.import_module(f"prompt_memory.bounds.{name}")
    functions = inspect.getmembers(module, inspect.isfunction)
    return {key: value for key, value in functions if value.__module__ == module.__name__ and key[0] != "_"}


def test_every_formula_is_exported_and_no_name_is_given_twice():
    owners = {}
    for name in MODULES:
        for key, function in formulas(name).items():
            assert key not in owners, f"{key} is defined in {owners[key]} and in {name}"
            owners[key] = name
            assert getattr(bounds, key) is function, f"{name}.{key}"
    exported = {key for key, value in vars(bounds).items() if inspect.isfunction(value) and key[0] != "_"}
    assert exported == owners.keys()


def test_every_module_is_named_like_its_chapter_and_has_a_formula():
    stems = {chapter.name.partition("_")[2] for chapter in chapters.all_chapters()}
    assert set(MODULES) - NO_CHAPTER <= stems
    assert all(formulas(name) for name in MODULES)


def test_every_name_that_chapters_read_exists():
    sources = {chapter.name: "\n".join(cell.source for cell in chapter.cells) for chapter in chapters.all_chapters()}
    sources |= {path.name: path.read_text() for path in (chapters.ROOT / "src/prompt_memory/experiments").glob("*.py")}
    read = [(name, key) for name, source in sources.items() for key in re.findall(r"\bbounds\.(\w+)", source)]
    assert len({key for _, key in read}) > 50
    assert [each for each in read if not hasattr(bounds, each[1])] == []


def test_later_chapters_import_earlier_ones_only():
    names = [chapter.name for chapter in chapters.all_chapters()]
    order = {name.partition("_")[2]: place for place, name in enumerate(names)}
    for name in set(MODULES) - NO_CHAPTER:
        source = Path(bounds.__path__[0], f"{name}.py").read_text()
        for other in re.findall(r"from prompt_memory\.bounds\.([a-z]\w*) import", source):
            assert other in NO_CHAPTER or order[other] < order[name], f"{name} imports {other}"
