"""Deliberate errors of science, one at a time: does a test notice?  `make trust` runs it, resumes, and keeps the table.

    PYTHONPATH=book/steps python tests/mutate.py [--only WORDS] [--minutes 60]

Each error of tests/mutations.toml is put into a copy of the tree, in which the tests that it names are run until one
fails.  A result is kept under build/trust/ with a digest of the error, its file and these tests; the summary,
book/trust.json, is committed and becomes a table of the scoreboard.  Exit status 1 if an error is not noticed.
"""

import argparse
import datetime
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import chapters

from prompt_memory import files

ROOT = chapters.ROOT
RESULTS, SUMMARY = ROOT / "build" / "trust", ROOT / "book" / "trust.json"


def mutations() -> list[dict]:
    return tomllib.loads((ROOT / "tests" / "mutations.toml").read_text(encoding="utf-8"))["mutation"]


def digest(mutation: dict) -> str:
    """Of the error, the file it is put into and the tests; edits elsewhere are taken to change nothing."""
    read = [ROOT / "src" / "prompt_memory" / mutation["file"], *(ROOT / "tests" / test for test in mutation["tests"])]
    content = repr(sorted(mutation.items())) + "".join(file.read_text(encoding="utf-8") for file in read)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def apply(mutation: dict, package: Path) -> None:
    path = package / mutation["file"]
    text = path.read_text(encoding="utf-8")
    if text.count(mutation["old"]) != 1:
        raise ValueError(f"{mutation['says']!r}: the text to change does not occur exactly once in {mutation['file']}")
    path.write_text(text.replace(mutation["old"], mutation["new"]), encoding="utf-8")


def noticed_by(mutation: dict | None, tests: list[str]) -> str:
    """The first test that fails with the error in place, "" if none does."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        for name in ("src", "tests", "book", "notebooks"):
            hidden = shutil.ignore_patterns("_build", "__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, tree / name, ignore=hidden)
        shutil.copy(ROOT / "pyproject.toml", tree)
        if mutation:
            apply(mutation, tree / "src" / "prompt_memory")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--durations=0"]
        environment = os.environ | {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
        result = subprocess.run(
            [*command, *(f"tests/{test}" for test in tests)], cwd=tree, env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
    if result.returncode == 0:
        return ""
    found = re.search(r"^(?:FAILED|ERROR) (?:tests/)?(.+?)(?: - .*)?$", result.stdout, re.MULTILINE)
    if result.returncode > 2 or not found:
        raise RuntimeError(f"{' '.join(tests)} could not be run:\n{result.stdout[-2000:]}{result.stderr[-2000:]}")
    return found[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="only errors whose description has these words")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no run after so many")
    options = parser.parse_args()
    end, rows, sound = time.monotonic() + 60 * options.minutes, [], set()
    chosen = [each for each in mutations() if options.only in each["says"]]
    for number, mutation in enumerate(chosen, 1):
        path = RESULTS / f"{digest(mutation)}.json"
        if not path.exists():
            if time.monotonic() > end:
                print(f"{len(chosen) - number + 1} errors are left: run it again.")
                break
            for test in {*mutation["tests"]} - sound:  # a test that fails anyway notices nothing
                if failed := noticed_by(None, [test]):
                    print(f"{failed} fails without any error: mend that first.")
                    return 1
                sound.add(test)
            files.write_json(path, {"noticed": noticed_by(mutation, mutation["tests"])})
        noticed = chapters.read_json(path)["noticed"]
        rows.append({"says": mutation["says"], "file": mutation["file"], "noticed": noticed})
        print(f"[{number}/{len(chosen)}] {mutation['says']}: {noticed or 'NOT NOTICED'}", flush=True)
    if len(rows) == len(mutations()):
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True,
                                check=False).stdout.strip()  # fmt: skip
        files.write_json(SUMMARY, {"date": f"{datetime.date.today()}", "commit": commit or "unknown",
                                   "processor": chapters.processor(), "rows": rows})  # fmt: skip
    missed = sum(not row["noticed"] for row in rows)
    print(f"{len(rows)} errors, {missed} not noticed.")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(chapters.guard(main))
