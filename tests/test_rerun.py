"""A chapter run again with other parameters: the commands of the README, in a copy of the tree.

There the chapter is cut after its recorder is made, because its experiment is tested elsewhere.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from building import ROOT, build, copy_tree, only_chapters

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = copy_tree(tmp_path_factory.mktemp("rerun") / "copy", keep=())
    only_chapters(root, ["00_how_to_read"])
    path = root / "notebooks" / "00_how_to_read.md"
    start, recorder, _ = re.split(r"(\nrecord = .*\n)", path.read_text(), maxsplit=1)
    start = re.sub(r"^(import torch|from prompt_memory (?!.*claims).*|from prompt_memory\.(?!book).*|torch\..*)$", "",
                   start, flags=re.MULTILINE)  # fmt: skip
    path.write_text(f"{start}{recorder}record.verdicts()\n```\n")
    return root


def run(root: Path, *command: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


def in_readme(start: str) -> list[str]:
    """The command of the README that starts so."""
    (line,) = re.findall(rf"^{re.escape(start)}.*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    return shlex.split(line)


def test_make_notebook_takes_parameters_and_leaves_the_book_alone(tree):
    command = in_readme("make notebook NAME=00 SET=")
    result = run(tree, *command, f"RUN={sys.executable}", "STAMP=pyproject.toml", "CORES=1")
    assert result.returncode == 0, result.stdout + result.stderr
    folder = tree / "build" / "smoke"
    content = json.loads((folder / "set" / "claims" / "00_how_to_read.json").read_text())
    assert (content["seed"], content["profile"]) == (3, "smoke")
    assert (folder / "set" / "notebooks" / "00_how_to_read.ipynb").exists()
    assert not (folder / "claims").exists()


def test_papermill_takes_the_converted_notebook(tree):
    for start in (".venv/bin/jupytext --to ipynb", ".venv/bin/papermill"):
        tool, *arguments = in_readme(start)
        (tree / "build").mkdir(exist_ok=True)
        result = run(tree, str(BIN / Path(tool).name), *arguments)
        assert result.returncode == 0, result.stdout + result.stderr
    notebook = json.loads((tree / "build" / "00_seed_3.ipynb").read_text())
    assert notebook["metadata"]["papermill"]["parameters"]["seed"] == 3
    assert notebook["metadata"]["papermill"]["exception"] is None


def test_settings_without_a_notebook_are_refused(tree):
    result = build(tree, "--profile", "smoke", "--set", "seed=3")
    assert (result.returncode, result.stdout) == (2, 'SET is for one notebook: make notebook NAME=01 SET="seed=3".\n')


def test_an_interrupt_ends_a_build_with_one_sentence(tree):
    """As a terminal sends it: to the build, to Snakemake and to the step, all at once."""
    command = [sys.executable, "book/steps/build.py", "--profile", "smoke", "--notebook", "00"]
    process = subprocess.Popen(
        command, cwd=tree, env=os.environ | {"PYTHONPATH": str(tree / "src")}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where the tests run in background
    )  # fmt: skip
    assert "00_how_to_read: started" in process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert said == "\nInterrupted; what was finished is kept, and the next run goes on from there.\n"
