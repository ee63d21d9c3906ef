"""What the build knows about chapters: which there are, what they declare, and what they import.

Read by the Snakefile (so nothing heavy is imported here), by the other steps and by the tests.
"""

import ast
import hashlib
import json
import os
import platform
import re
import sys
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "prompt_memory"
PROFILES = ("smoke", "standard", "full")
_FENCE = re.compile(r"^(`{3,}|~{3,})\s*\{code-cell\}[^\n]*$")
_MAGIC = re.compile(r"^\s*[%!]")


@dataclass(frozen=True)
class Cell:
    """One code cell of a text notebook: its tags, its source, and the line of its first statement (from 1)."""

    source: str
    tags: tuple[str, ...]
    line: int


@dataclass(frozen=True)
class Chapter:
    """One notebook `notebooks/NN_name.md` (`04b_…` for what follows chapter 4) and what its front matter declares."""

    name: str
    threads: int
    core_seconds: dict[str, float]
    models: dict[str, tuple[str, ...]]
    text: str
    question: str = ""

    @cached_property
    def cells(self) -> list[Cell]:
        return code_cells(self.text)

    @property
    def path(self) -> Path:
        return ROOT / "notebooks" / f"{self.name}.md"

    @property
    def title(self) -> str:
        """The first heading."""
        return next((line[2:].strip() for line in self.text.splitlines() if line.startswith("# ")), self.name)

    def imports(self) -> set[str]:
        """Modules of the package that the code cells import."""
        found = set()
        for cell in self.cells:
            lines = ("pass" if _MAGIC.match(line) else line for line in cell.source.splitlines())
            found |= direct_imports("\n".join(lines), f"{self.path.name}, line {cell.line}")
        return found

    def modules(self) -> list[str]:
        """Files of the package that the code cells import, transitively, relative to the root, sorted."""
        return closure(self.imports())

    @cached_property
    def digest(self) -> str:
        """Of all that decides what this chapter computes: its code cells, its modules, those of its models, pins."""
        models = {model for names in self.models.values() for model in names}
        files = {*self.modules(), *(file for model in models for file in pretrain_modules(model))}
        code = f"{self.threads}\n" + "\n".join(cell.source for cell in self.cells) + "\n"
        content = code + "".join((ROOT / file).read_text(encoding="utf-8") for file in sorted(files)) + pins()
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def pins() -> str:
    """The versions on which results depend, as pyproject.toml gives them."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return re.search(r"^dependencies = \[(.*?)^\]", text, re.DOTALL | re.MULTILINE)[1]


def processor() -> str:
    """The processor and its vector instructions: the last digits of a result are promised for the same one only."""
    name, flags = platform.processor() or platform.machine(), ()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = dict(line.split(":", 1) for line in cpuinfo.read_text(encoding="utf-8").splitlines() if ":" in line)
        lines = {key.strip(): value.strip() for key, value in lines.items()}
        name = " ".join(filter(None, (lines.get("model name", name), lines.get("cpu family"), lines.get("model"))))
        flags = lines.get("flags", "").split()
    widest = next((flag for flag in ("avx512f", "avx2", "avx") if flag in flags), "no avx")
    forced = [os.environ[key] for key in ("ATEN_CPU_CAPABILITY", "OPENBLAS_CORETYPE") if os.environ.get(key)]
    return ", ".join([name, widest, *(f"forced to {value}" for value in forced)])


def guard(main) -> int:
    """Run a step's `main`: what it meets outside (folders, files, an interrupt) ends it with one sentence, status 1."""
    try:
        return main()
    except KeyboardInterrupt:
        print("\nInterrupted; what was finished is kept, and the next run goes on from there.", flush=True)
        return 130
    except BrokenPipeError:  # nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, ValueError) as error:
        sentence = f"{error.strerror}: {error.filename}" if getattr(error, "filename", None) else str(error)
        say(f"FAILED {' '.join(sentence.split())}")
        return 1


def read_json(path: Path) -> dict:
    """A JSON file that another step wrote; ValueError that names the file if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it and run the build again.") from None


def say(line: str) -> None:
    """Print a line in one piece: jobs that run side by side share one standard output."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def code_cells(text: str) -> list[Cell]:
    """The code cells of a MyST text notebook, in order."""
    cells, lines, index = [], text.splitlines(), 0
    while index < len(lines):
        fence = _FENCE.match(lines[index])
        index += 1
        if not fence:
            continue
        end = next((i for i in range(index, len(lines)) if lines[i].strip() == fence[1]), len(lines))
        options, start = _cell_options(lines, index, end)
        tags = tuple(options.get("tags") or ())
        cells.append(Cell("\n".join(lines[start:end]), tags, start + 1))
        index = end + 1
    return cells


def _cell_options(lines: list[str], start: int, end: int) -> tuple[dict, int]:
    """Options of a cell (`:tags: [..]` lines or a `---` block) and the line at which its code starts."""
    index = start
    if index < end and lines[index].strip() == "---":
        close = next(i for i in range(index + 1, end) if lines[i].strip() == "---")
        return yaml.safe_load("\n".join(lines[index + 1 : close])) or {}, close + 1
    while index < end and re.match(r"^:[\w-]+:", lines[index]):
        index += 1
    options = "\n".join(line[1:] for line in lines[start:index])
    while index < end and not lines[index].strip():
        index += 1
    return yaml.safe_load(options) or {}, index


def direct_imports(source: str, where: str) -> set[str]:
    """Modules of the package that this source imports: {"claims", "bounds", …}."""
    found = set()
    for inside, names in _import_statements(source, where):
        # `from prompt_memory.book import claims` names a module of the room, `… import Recorder` the room itself.
        found |= {name if inside is None or module_file(name) else inside for name in names}
    return {name for name in found if name and module_file(name)}


@cache
def _import_statements(source: str, where: str) -> list[tuple[str | None, set[str]]]:
    """(what `from` names or None, what is imported) of each import from the package; kept, since all chapters ask."""
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise ValueError(f"{where}: not valid Python ({error.msg}).") from None
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == PACKAGE]
            found.append((None, {name.partition(".")[2] for name in names}))
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level == 0 and base.split(".")[0] != PACKAGE:
                continue
            inside = base if node.level else base.partition(".")[2]
            found.append((inside, {f"{inside}.{alias.name}".lstrip(".") for alias in node.names}))
    return found


def module_file(name: str) -> Path | None:
    """The file of a module or of a room's `__init__`, given without the package's name; None if there is none."""
    path = ROOT / "src" / PACKAGE / name.replace(".", "/")
    files = (path.with_name(path.name + ".py"), path / "__init__.py")
    return next((file for file in files if file.exists()), None)


def closure(modules: set[str], *, rooms: bool = True) -> list[str]:
    """These modules and everything of the package that they import, as sorted paths from the root.

    The `__init__` of a module's room runs before it, and belongs to it unless `rooms` is false.
    """
    found, todo = set(), set(modules)
    while todo:
        name = todo.pop()
        found.add(name)
        if rooms and (room := name.rpartition(".")[0]):
            todo |= {room} - found
        todo |= direct_imports(module_file(name).read_text(encoding="utf-8"), f"{name}.py") - found
    files = {module_file(name) for name in found} | {ROOT / "src" / PACKAGE / "__init__.py"}
    return sorted(str(file.relative_to(ROOT)) for file in files)


def pretrain_modules(model: str) -> list[str]:
    """What the weights of a frozen model depend on: the module of its family and what that imports.

    Rooms are left out: their `__init__` only names what is elsewhere, and would make every family depend on all others.
    """
    return closure({recipe_module(model)}, rooms=False)


def recipe_module(model: str) -> str:
    """The module whose `RECIPES` list this model; read, not imported.  ValueError if there is none."""
    for path in sorted((ROOT / "src" / PACKAGE / "pretrain").glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            named = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "RECIPES"
            if named and isinstance(node.value, ast.Dict) and model in map(ast.literal_eval, node.value.keys):
                return f"pretrain.{path.stem}"
    raise ValueError(f"there is no recipe for a model {model!r}.")


def pages() -> list[str]:
    """Every page of the book in its order, from book/_toc.yml: index, notebooks/01_counting, …"""
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text(encoding="utf-8"))
    files = []

    def visit(node):
        if isinstance(node, dict):
            files.extend(node[key] for key in ("root", "file") if key in node)
            for value in node.values():
                visit(value)
        elif isinstance(node, list):
            for item in node:
                visit(item)

    visit(toc)
    return files


def table_of_contents() -> list[str]:
    """Names of the chapters in the order of the book."""
    return [page.removeprefix("notebooks/") for page in pages() if page.startswith("notebooks/")]


def load(name: str) -> Chapter:
    """Read one chapter; ValueError with one sentence if it is missing or declares too little."""
    path = ROOT / "notebooks" / f"{name}.md"
    if not path.exists():
        raise ValueError(f"There is no notebook notebooks/{name}.md.")
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors write a byte-order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name}: not UTF-8 ({error.reason} at byte {error.start}).") from None
    front = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    try:
        head = yaml.safe_load(front[1]) if front else None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 2}" if mark else ""
        raise ValueError(
            f"{path.name}{line}: the front matter is not YAML ({getattr(error, 'problem', error)})."
        ) from None
    declared = head.get(PACKAGE) if isinstance(head, dict) else None
    needed = {"threads", "core_seconds", "models"}
    if not isinstance(declared, dict) or set(declared) - {"question"} != needed:
        raise ValueError(f"{path.name}: the front matter must declare prompt_memory: threads, core_seconds, models.")
    threads, seconds, models = declared["threads"], declared["core_seconds"], declared["models"] or {}
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise ValueError(f"{path.name}: threads must be a whole number from 1 on; got {threads!r}.")
    if not isinstance(seconds, dict) or set(seconds) != set(PROFILES):
        raise ValueError(f"{path.name}: core_seconds must be declared for {', '.join(PROFILES)}.")
    if not all(isinstance(value, int | float) and 0 < value < 1e9 for value in seconds.values()):
        raise ValueError(f"{path.name}: core_seconds must be positive numbers; got {seconds}.")
    if not isinstance(models, dict) or not all(isinstance(names or [], list) for names in models.values()):
        raise ValueError(f"{path.name}: models must list names for each profile; got {models!r}.")
    try:
        for model in [model for names in models.values() for model in names or []]:
            recipe_module(model)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None
    named = {profile: tuple(models.get(profile) or ()) for profile in PROFILES}
    return Chapter(name, threads, seconds, named, text, str(declared.get("question", "")))


def all_chapters() -> list[Chapter]:
    """Every chapter of the book in its order; ValueError if the contents and the folder disagree."""
    listed = table_of_contents()
    on_disk = {path.stem for path in (ROOT / "notebooks").glob("[0-9][0-9]*.md")}
    if missing := on_disk.symmetric_difference(listed):
        raise ValueError(f"book/_toc.yml and notebooks/ disagree about: {', '.join(sorted(missing))}.")
    return [load(name) for name in listed]


def number(name: str) -> str:
    """The number of a chapter for readers: 4b for `04b_construction`."""
    return name.split("_")[0].removeprefix("0")


def find(name: str) -> str:
    """The chapter that a reader means by `01`, `01_counting`, `01_counting.md` or `notebooks/01_counting.md`."""
    wanted = Path(name).name.removesuffix(".md").removesuffix(".ipynb")
    matches = [chapter for chapter in table_of_contents() if chapter.startswith(wanted)]
    exact = [chapter for chapter in matches if chapter == wanted or chapter.startswith(f"{wanted}_")]
    if len(exact) == 1:  # `04` is chapter 4, although `04b_…` starts the same way
        return exact[0]
    if not wanted or len(matches) != 1:
        raise ValueError(f"NAME={name} is not one notebook; there are: {', '.join(table_of_contents())}.")
    return matches[0]
