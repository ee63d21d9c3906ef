"""The package by itself: built, installed where the book's tools are not, and used."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import chapters
import pytest
from packaging.requirements import Requirement

ROOT = chapters.ROOT


def run(*command, **options) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        list(map(str, command)), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=False, **options,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
    return result.stdout


def needed(requirements: list[str]) -> set[str]:
    """The distributions that these ask for, and those ask for, without extras, by name."""
    found, todo = set(), list(requirements)
    while todo:
        requirement = Requirement(todo.pop())
        if requirement.name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        try:
            todo += importlib.metadata.requires(requirement.name) or []
        except importlib.metadata.PackageNotFoundError:  # of another platform
            continue
        found.add(requirement.name)
    return found


def link(names: set[str], site: Path) -> None:
    """Links to all that these distributions installed, and to nothing else."""
    for name in names:
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(distribution.locate_file(top))


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """What `make wheel` makes, in a copy of what it reads."""
    root = tmp_path_factory.mktemp("wheel")
    for name in ("Makefile", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root)
    shutil.copytree(ROOT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    run("make", "wheel", f"RUN={sys.executable}", "STAMP=pyproject.toml", cwd=root)
    return root / "dist"


@pytest.fixture(scope="module")
def python(dist, tmp_path_factory) -> Path:
    """A fresh environment with the wheel and what it declares to need."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    (wheel,) = dist.glob("*.whl")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    core = [line for line in importlib.metadata.requires("prompt-memory") if "extra ==" not in line]
    link(needed(core), site)
    return python


def test_the_sdist_holds_what_it_needs(dist):
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    package = [path.relative_to(ROOT) for path in (ROOT / "src").rglob("*") if path.suffix in (".py", ".svg")]
    assert {"LICENSE", "README.md", "pyproject.toml", *map(str, package)} <= names


def test_every_room_but_the_books_imports_without_its_tools(python):
    rooms = ["bounds", "network", "tasks", "measure", "tune", "compress", "pretrain", "real", "cli"]
    tools = ("matplotlib", "sphinx", "papermill", "IPython", "transformers")
    code = f"from importlib.util import find_spec\nassert not any(map(find_spec, {tools}))\n"
    said = run(python, "-c", code + "".join(f"import prompt_memory.{room}\n" for room in rooms) + "print('all')")
    assert said == "all\n"


def test_the_command_line_works(python, tmp_path):
    config = {
        "model_type": "gpt2",
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = python.with_name("prompt-memory")
    said = run(command, "budget", "--model", "config.json", "--prompt-length", "20", cwd=tmp_path)
    assert "width 768" in said
    assert "Theorem 1" in said
    for name in ("cram", "compress"):
        assert "usage: prompt-memory" in run(command, name, "--help")
