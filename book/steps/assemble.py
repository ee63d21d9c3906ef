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
import finish
import front
import reference
import yaml

BOOK = chapters.ROOT / "book"
NOT_COPIED = ("_build", "steps", "vendor", "Snakefile", "reference_claims.json", "seeds.json", "trust.json")


def gather(source: Path, build: Path, profile: str) -> None:
    """Put everything that Sphinx reads into `source`."""
    shutil.copytree(BOOK, source, ignore=lambda folder, names: NOT_COPIED if Path(folder) == BOOK else ())
    shutil.copy(build / "book-pages" / "scoreboard.md", source / "scoreboard.md")
    reference.write(source)
    results = front.Results(build)
    made = ("notebooks/", "reference/")
    for page in (source / f"{page}.md" for page in chapters.pages() if not page.startswith(made)):
        page.write_text(front.fill(page.read_text(encoding="utf-8"), results), encoding="utf-8")
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
    """The end of every chapter: how to run it again, its parameters and the values that made this page."""
    used = notebook["metadata"]["papermill"]["parameters"]
    source = next(cell.source for cell in chapter.cells if "parameters" in cell.tags)
    declared = re.findall(r"^(\w+)\s*=\s*([^#\n]*?)\s*(?:#\s*(.*))?$", source, re.MULTILINE)
    rows = "".join(f"| `{name}` | {what or ''} | `{used[name]!r}` |\n" if name in used else
                   f"| `{name}` | {what or ''} | `{value}` |\n"
                   for name, value, what in declared if name not in ("claims_path", "models_dir"))  # fmt: skip
    text = (
        "## Re-run this page\n\n"
        f"```bash\nmake notebook NAME={chapter.name} PROFILE={profile}\n```\n\n"
        f"| parameter | what it is | on this page |\n|---|---|---|\n{rows}\n"
        f"It took {timing['wall_seconds']:.0f} seconds ({timing['core_seconds']:.0f} core-seconds). To download:"
        f" {{download}}`the text notebook <{chapter.name}.md.txt>` that is the source of this page, and"
        f" {{download}}`the executed notebook <{chapter.name}.ipynb>` with every cell that is not shown here."
    )
    return {"cell_type": "markdown", "metadata": {}, "source": text, "id": "re-run-this-page"}


def sphinx(source: Path, output: Path, log: Path) -> None:
    """Run jupyter-book, warnings as errors; never Sphinx's -j: sphinx-proof hangs under it."""
    # The package cannot be run with -m; the grammar of IRIs is left out as in execute.py.
    start = "import sys; sys.modules['rfc3987_syntax'] = None; from jupyter_book.cli.main import main; main()"
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
    finish.pages(html)
    for page in ["index", "scoreboard", *chapters.pages()]:
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
