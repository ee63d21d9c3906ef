"""Builds of this tree and of copies of it, for the tests of the book."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import chapters

ROOT = chapters.ROOT
NAMES = [chapter.name for chapter in chapters.all_chapters()]


def build(root: Path, *arguments: str, step: str = "build.py") -> subprocess.CompletedProcess:
    """Run a step of the build of the tree at `root`, whose own source wins over the installed package."""
    environment = os.environ | {"PYTHONPATH": str(root / "src")}
    command = [sys.executable, str(root / "book" / "steps" / step), *arguments]
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    result.output = result.stdout + result.stderr
    return result


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
