"""Collect the chapters' claims and timings and write the scoreboard. Succeeds whatever the verdicts are.

It refuses (one sentence, exit status 1) what would make the scoreboard wrong: a prediction that was never measured,
claims of another profile, more sampled comparisons than the error probability was divided by. With --partial it takes
the chapters that finished, writes no claims.json, and says which chapters are missing: for the summary of a failure.
"""

import argparse
import sys
from pathlib import Path

import chapters
import scoreboard

from prompt_memory import files
from prompt_memory.book import claims


def read_chapter(build: Path, name: str, profile: str) -> dict:
    """One chapter's claims file, checked."""
    content = chapters.read_json(build / "claims" / f"{name}.json")
    if (content["chapter"], content["profile"]) != (name, profile):
        raise ValueError(
            f"{name}: its claims say chapter {content['chapter']!r}, profile {content['profile']!r};"
            f" the Recorder must get {name!r} and the parameter `profile`."
        )
    if pending := [claim["key"] for claim in content["claims"] if claim["verdict"] == "pending"]:
        raise ValueError(f"{name}: predicted but never measured: {', '.join(pending)}.")
    return content


def check_family(contents: list[dict]) -> int:
    """Sampled comparisons of the whole book; ValueError if the error probability was not divided by as many."""
    comparisons = sum(content["comparisons"] for content in contents)
    if comparisons > claims.FAMILY:
        raise ValueError(f"The book makes {comparisons} sampled comparisons; the level allows for {claims.FAMILY}.")
    return comparisons


def claims_file(contents: list[dict], profile: str) -> dict:
    """All claims, sorted, without anything that depends on the machine or on time."""
    threads = {content["chapter"]: chapters.load(content["chapter"]).threads for content in contents}
    return {
        "profile": profile,
        "level": claims.LEVEL,
        "family": claims.FAMILY,
        "comparisons": check_family(contents),
        "chapters": {
            content["chapter"]: {"seed": content["seed"], "threads": threads[content["chapter"]]}
            for content in contents
        },
        "claims": sorted(
            (claim for content in contents for claim in content["claims"]),
            key=lambda claim: (claim["chapter"], claim["key"]),
        ),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Collect claims and timings.")
    parser.add_argument("--profile", required=True, choices=chapters.PROFILES)
    parser.add_argument("--partial", action="store_true", help="take what there is, for the summary of a failed build")
    options = parser.parse_args()
    build = chapters.ROOT / "build" / options.profile
    names = [chapter.name for chapter in chapters.all_chapters()]
    missing = [name for name in names if not (build / "claims" / f"{name}.json").exists()] if options.partial else []
    finished = [name for name in names if name not in missing]
    if options.partial and not missing:
        return 0  # the full collection has left its scoreboard
    try:
        contents = [read_chapter(build, name, options.profile) for name in finished]
        everything = claims_file(contents, options.profile)
    except ValueError as error:
        print(f"FAILED {error}", flush=True)
        return 1
    build.mkdir(parents=True, exist_ok=True)
    for name, write in (("scoreboard.md", scoreboard.plain), ("scoreboard.html", scoreboard.standalone)):
        (build / name).write_text(write(contents, options.profile, missing), encoding="utf-8")
    if options.partial:
        (build / "claims.json").unlink(missing_ok=True)  # of an earlier build; the next one collects anew
        return 0
    timings = {
        "profile": options.profile,
        "chapters": [chapters.read_json(build / "timings" / f"{name}.json") for name in names],
    }
    files.write_json(build / "claims.json", everything)
    files.write_json(build / "timings.json", timings)
    kept = (chapters.ROOT / "book" / name for name in ("seeds.json", "trust.json"))  # what other commands measured
    seeds, errors = (chapters.read_json(file) if file.exists() else {} for file in kept)
    notebooks = {name: (build / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8") for name in names}
    page = scoreboard.page(contents, options.profile, notebooks, seeds, errors, timings)
    (build / "book-pages").mkdir(exist_ok=True)
    (build / "book-pages" / "scoreboard.md").write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(chapters.guard(main))
