"""Build the HTML book of one profile from the book's sources, the executed notebooks and the generated pages.

Warnings are errors. The pages are built in a fresh folder and take the place of the last ones only when complete.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import chapters
import yaml

BOOK = chapters.ROOT / "book"
NOT_COPIED = ("_build", "steps", "vendor", "Snakefile", "reference_claims.json", "seeds.json")

# Jupyter Book puts its live-code helper on every page, twice, with the address of a foreign script. We do not use it.
_THEBE = re.compile(
    r"\s*<script(?:>const THEBE_JS_URL[^<]*|[^>]*sphinx-thebe\.js[^>]*>|[^>]*x-thebe-config[^>]*>[^<]*)</script>"
)


def gather(source: Path, build: Path, profile: str) -> None:
    """Put everything that Sphinx reads into `source`."""
    shutil.copytree(BOOK, source, ignore=lambda folder, names: NOT_COPIED if Path(folder) == BOOK else ())
    shutil.copy(build / "book-pages" / "scoreboard.md", source / "scoreboard.md")
    (source / "notebooks").mkdir()
    timings = chapters.read_json(build / "timings.json")
    by_name = {timing["chapter"]: timing for timing in timings["chapters"]}
    for chapter in chapters.all_chapters():
        notebook = chapters.read_json(build / "notebooks" / f"{chapter.name}.ipynb")
        notebook["cells"].append(rerun_cell(chapter, profile, notebook, by_name[chapter.name]))
        target = source / "notebooks" / f"{chapter.name}.ipynb"
        target.write_text(json.dumps(notebook, ensure_ascii=False), encoding="utf-8")
        # Sphinx would take a second .md for a page of its own.
        shutil.copy(chapter.path, source / "notebooks" / f"{chapter.name}.md.txt")
    config = yaml.safe_load((source / "_config.yml").read_text(encoding="utf-8"))
    config["html"]["extra_footer"] = f"<p>Built from the profile <strong>{profile}</strong>.</p>"
    (source / "_config.yml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")


def rerun_cell(chapter: chapters.Chapter, profile: str, notebook: dict, timing: dict) -> dict:
    """The end of every chapter: how to run it again, and with which parameters this page was made."""
    used = notebook["metadata"]["papermill"]["parameters"]
    shown = {name: value for name, value in used.items() if name not in ("claims_path", "models_dir")}
    text = (
        "## Re-run this page\n\n"
        f"```bash\nmake notebook NAME={chapter.name} PROFILE={profile}\n```\n\n"
        f"Source: {{download}}`{chapter.name}.md <{chapter.name}.md.txt>`. This page was made with "
        + ", ".join(f"`{name} = {value!r}`" for name, value in shown.items())
        + f" in {timing['wall_seconds']:.1f} seconds ({timing['core_seconds']:.1f} core-seconds of"
        f" {timing['declared_core_seconds']:g} declared); everything else is in its parameters cell."
    )
    return {"cell_type": "markdown", "metadata": {}, "source": text, "id": "re-run-this-page"}


def sphinx(source: Path, output: Path, log: Path) -> None:
    """Run jupyter-book, warnings as errors; never Sphinx's -j: sphinx-proof hangs under it."""
    start = "from jupyter_book.cli.main import main; main()"  # the package cannot be run with -m
    command = [sys.executable, "-c", start, "build", "-W", "-n", "--keep-going", "--path-output", str(output)]
    environment = os.environ | {"NO_COLOR": "1"}
    with log.open("w", encoding="utf-8") as stream:
        result = subprocess.run(
            [*command, str(source)], stdout=stream, stderr=subprocess.STDOUT, env=environment, check=False
        )
    if result.returncode:
        text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(encoding="utf-8"))
        found = [line for line in text.splitlines() if re.search(r"\b(WARNING|ERROR)\b|[Ee]xception", line)]
        tail = [line.replace(str(source), "book") for line in found[:20] or text.splitlines()[-15:]]
        raise ValueError("the book has warnings (they are errors here):\n  " + "\n  ".join(tail) + f"\n  log: {log}")


def complete(html: Path, profile: str) -> None:
    """Add what Sphinx must not touch, and check that no page is missing."""
    # After the build, because the theme loads every script it finds under _static on every page.
    shutil.copytree(BOOK / "vendor" / "mathjax", html / "_static" / "mathjax")
    for page in html.rglob("*.html"):
        page.write_text(_THEBE.sub("", page.read_text(encoding="utf-8")), encoding="utf-8")
    for page in ["index", "scoreboard", *(f"notebooks/{chapter.name}" for chapter in chapters.all_chapters())]:
        if not (html / f"{page}.html").exists():
            raise ValueError(f"the book lacks the page {page}.html.")
    digest = hashlib.sha256()
    for path in sorted(path for path in html.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(html)).encode() + path.read_bytes())
    content = json.dumps({"profile": profile, "sha256": digest.hexdigest()}, indent=1)
    (html / "build.json").write_text(content + "\n", encoding="utf-8")


def swap(new: Path, target: Path) -> None:
    """Put the folder `new` in the place of `target` by renaming."""
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def publish(profile: str) -> Path:
    """Make the finished book of a profile the one that a reader opens: book/_build/html. Nothing to do if it is."""
    html, target = chapters.ROOT / "build" / profile / "html", BOOK / "_build" / "html"
    stamp = target / "build.json"
    if not stamp.exists() or stamp.read_bytes() != (html / "build.json").read_bytes():
        new = target.with_name("html.new")
        shutil.rmtree(new, ignore_errors=True)
        shutil.copytree(html, new)
        swap(new, target)
    return target


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", required=True, choices=chapters.PROFILES)
    options = parser.parse_args()
    build = chapters.ROOT / "build" / options.profile
    print("book: building the pages", flush=True)
    source, output = build / "book-source", build / "book-output"
    for folder in (source, output):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        gather(source, build, options.profile)
        sphinx(source, output, build / "sphinx.log")
        html = output / "_build" / "html"
        complete(html, options.profile)
    except ValueError as error:
        print(f"FAILED book: {error}", flush=True)
        return 1
    swap(html, build / "html")
    shutil.rmtree(output)
    return 0


if __name__ == "__main__":
    sys.exit(chapters.guard(main))
