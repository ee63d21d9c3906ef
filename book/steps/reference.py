"""The reference of the book: a page a room, from the docstrings, with the chapters that use each function.

Read from the source, so nothing is imported. A chapter uses what its cells name, or the experiment that it shows.
"""

import ast
import re
import textwrap
from functools import cache
from pathlib import Path

import chapters

WIDTH = 76


def page(room: str) -> str:
    """The page of one room as MyST Markdown."""
    package = chapters.module_file(room)
    parts = [f"# `{room}`", prose(ast.get_docstring(ast.parse(package.read_text(encoding="utf-8"))) or "")]
    used = users()
    files = [package, *(file for file in sorted(package.parent.rglob("*.py")) if file != package)]
    for file in files:
        module = ".".join(file.relative_to(package.parents[1]).with_suffix("").parts).removesuffix(".__init__")
        private = any(part.startswith("_") for part in module.split("."))
        tree = ast.parse(source := file.read_text(encoding="utf-8"))
        found = [node for node in tree.body if documented(node)]
        if private or not found:
            continue
        if file != package:
            parts += [f"## `{module}`", prose(ast.get_docstring(tree) or "")]
        for node in found:
            # A class of a room's own file stands under the page, all others under their module.
            parts += [f"{'##' if file == package else '###'} `{node.name}`", entry(node, source)]
            if numbers := used.get((module, node.name)):
                links = ", ".join(f"[{chapters.number(name)}](/notebooks/{name}.ipynb)" for name in numbers)
                parts.append(f"Used in {'chapter' if len(numbers) == 1 else 'chapters'} {links}.")
    return "\n\n".join(filter(None, parts)) + "\n"


def documented(node: ast.stmt) -> bool:
    """Whether this is a public function or class that says what it does."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return isinstance(node, kinds) and not node.name.startswith("_") and bool(ast.get_docstring(node))


def entry(node: ast.FunctionDef | ast.ClassDef, source: str) -> str:
    """Signature or fields, and the docstring; of a class its public methods, too."""
    if isinstance(node, ast.FunctionDef):
        return f"```python\n{signature(node)}\n```\n\n{prose(ast.get_docstring(node))}"
    lines = source.splitlines()
    bases = f"({', '.join(map(ast.unparse, node.bases))})" if node.bases else ""
    fields = [lines[i] for field in node.body if isinstance(field, ast.AnnAssign)
              for i in range(field.lineno - 1, field.end_lineno)]  # fmt: skip
    parts = ["\n".join(["```python", f"class {node.name}{bases}:", *(fields or ["    ..."]), "```"])]
    parts.append(prose(ast.get_docstring(node)))
    for method in filter(documented, node.body):
        parts.append(f"```python\n{signature(method)}\n```\n\n{prose(ast.get_docstring(method))}")
    return "\n\n".join(parts)


def signature(node: ast.FunctionDef) -> str:
    """`name(arguments) -> result`, an argument a line if it is long."""
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{node.name}({ast.unparse(node.args)}){result}"
    if len(line) <= WIDTH:
        return line
    # Commas between arguments are those outside of brackets and strings, which a parsed copy tells apart.
    each, depth, text = [""], 0, ast.unparse(node.args)
    for quoted in re.split(r"('[^']*'|\"[^\"]*\")", text):
        for letter in [quoted] if quoted[:1] in ("'", '"') else quoted:
            depth += (letter in tuple("([{")) - (letter in tuple(")]}"))
            if letter == "," and not depth:
                each.append("")
            else:
                each[-1] += letter
    return "\n".join([f"{node.name}(", *(f"    {argument.strip()}," for argument in each), f"){result}"])


def prose(docstring: str) -> str:
    """A docstring as Markdown: its words as they are, code as code, and what is indented or listed line by line."""
    parts = []
    for paragraph in re.split(r"\n\s*\n", docstring.strip()):
        if any(line.startswith(("    ", "- ")) for line in paragraph.splitlines()):
            parts.append(f"```text\n{textwrap.dedent(paragraph)}\n```")
            continue
        pieces = re.split(r"(`[^`]+`|(?<!\w)\*\w[\w ]*\*(?!\w))", " ".join(paragraph.split()))
        parts.append("".join(re.sub(r"([\\*_$<>\[\]{}#|~`^])", r"\\\1", piece) if index % 2 == 0 else piece
                             for index, piece in enumerate(pieces)))  # fmt: skip
    return "\n\n".join(parts)


@cache
def users() -> dict[tuple[str, str], list[str]]:
    """The chapters, in their order, that use each (module, name) of the package."""
    found = {}
    for chapter in chapters.all_chapters():
        lines = [line for cell in chapter.cells for line in cell.source.splitlines()]
        named = uses("\n".join(line for line in lines if not re.match(r"\s*[%!]", line)))
        shown = set().union(*map(experiments, chapter.imports()))
        for use in sorted(named.union(*map(uses_of_file, shown))):
            found.setdefault(use, []).append(chapter.name)
    return found


def uses(source: str) -> set[tuple[str, str]]:
    """What of the package this source names, each by the module that defines it."""
    tree, known, found = ast.parse(source), {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == chapters.PACKAGE:
            inside = node.module.partition(".")[2]
            for alias in node.names:
                whole = f"{inside}.{alias.name}".lstrip(".")
                if chapters.module_file(whole):
                    known[alias.asname or alias.name] = whole
                else:
                    found.add(defined(inside, alias.name))
        elif isinstance(node, ast.Import):
            known |= {alias.asname: alias.name.partition(".")[2] for alias in node.names
                      if alias.asname and alias.name.startswith(chapters.PACKAGE)}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in known:
            found.add(defined(known[node.value.id], node.attr))
    return found


@cache
def defined(module: str, name: str) -> tuple[str, str]:
    """Where a name that a room passes on is defined: ("bounds", "rate") is ("bounds.counting", "rate")."""
    return defined(*passed[name]) if name in (passed := passed_on(module)) else (module, name)


@cache
def passed_on(module: str) -> dict[str, tuple[str, str]]:
    """The names that a module imports from others of the package, with these modules and the names there."""
    file = chapters.module_file(module) if module else None
    nodes = ast.parse(file.read_text(encoding="utf-8")).body if file else ()
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)
               and (node.module or "").startswith(f"{chapters.PACKAGE}.")]  # fmt: skip
    return {alias.asname or alias.name: (node.module.partition(".")[2], alias.name)
            for node in imports for alias in node.names}  # fmt: skip


@cache
def experiments(module: str) -> frozenset[Path]:
    """The file of an experiment and those of the experiments that it imports; nothing for another module."""
    if not module.startswith("experiments."):
        return frozenset()
    file = chapters.module_file(module)
    imported = chapters.direct_imports(file.read_text(encoding="utf-8"), file.name)
    return frozenset({file}).union(*map(experiments, imported))


@cache
def uses_of_file(file: Path) -> set[tuple[str, str]]:
    return uses(file.read_text(encoding="utf-8"))


def write(folder: Path) -> None:
    """Write every page that the contents of the book list as reference/ROOM."""
    for name in chapters.pages():
        if name.startswith("reference/"):
            (folder / "reference").mkdir(exist_ok=True)
            (folder / f"{name}.md").write_text(page(name.removeprefix("reference/")), encoding="utf-8")
