"""Collect the chapters' claims and timings and write the scoreboard. Succeeds whatever the verdicts are.

It refuses (one sentence, exit status 1) what would make the scoreboard wrong: a prediction that was never measured,
claims of another profile, more sampled comparisons than the error probability was divided by. With --partial it takes
the chapters that finished, writes no claims.json, and says which chapters are missing: for the summary of a failure.
"""

import argparse
import sys
from pathlib import Path

import chapters

from prompt_memory import claims


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


def scoreboard(contents: list[dict], profile: str, missing: list[str], *, links: bool) -> str:
    """The scoreboard as Markdown; with `links` as a page of the book."""
    everything = claims.Verdicts([claim for content in contents for claim in content["claims"]])
    wide = "---\nhtml_theme.sidebar_secondary.remove: true\n---\n\n" if links else ""
    text = f"{wide}# Scoreboard\n\nProfile **{profile}**: {everything.summary()}.\n"
    violated = [claim for claim in everything.claims if claim["verdict"] == "violated"]
    if violated:
        text += "\n## Violated\n\nA proved bound was passed: the proof, the code or the experiment is wrong.\n\n"
        header = ("chapter", "key", *claims.Verdicts.HEADER)
        text += claims.markdown_table(header, [(c["chapter"], c["key"], *everything.row(c)) for c in violated]) + "\n"
    if missing:
        text += f"\n## Not finished\n\nNo claims from: {', '.join(missing)}.\n"
    for content in contents:
        chapter = chapters.load(content["chapter"])
        title = f"[{chapter.title}](notebooks/{chapter.name})" if links else f"{chapter.title} ({chapter.name})"
        verdicts = claims.Verdicts(content["claims"])
        text += f"\n## {chapter.title if links else title}\n\n"
        text += f"Chapter {title}: {verdicts.summary()}.\n\n" if links else f"{verdicts.summary()}.\n\n"
        if content["claims"]:
            rows = [(*verdicts.row(claim), f"`{claim['key']}`") for claim in content["claims"]]
            table = claims.markdown_table((*claims.Verdicts.HEADER, "key"), rows)
            text += f":::{{container}} claims\n{table}\n:::\n" if links else f"{table}\n"
    return text


LEGEND = f"""
## How to read this page

- **holds**, **violated**: a proved bound against an exact count or a deterministic computation, at every point.
- **not refuted**: a proved bound against a sampled mean. It is *violated* only if the one-sided confidence limit passes
  the bound at an error probability of {claims.LEVEL:g} for all sampled comparisons of the book together. Bounds on
  single runs hold with probability $1 - 10^{{-10}}$ each; they have no mean and are *violated* if one run passes them.
- **hit**, **missed**, **undecided**: a prediction that was written down before the measurement, with its tolerance. A
  measurement with an interval hits if the whole interval lies within the tolerance, misses if all of it lies outside,
  and leaves the prediction undecided otherwise. A miss does not fail the build; it is a finding.
- *points that can fail*: how many comparisons stand behind a line, and of how many: where the experiment could not
  have shown a violation whatever the theorem says, it is not counted. The numbers shown belong to the point that came
  closest.
- *reported from* is the measured value from which on a violation would have been reported there: an experiment cannot
  see a smaller one. *closest* is the largest measured value over its bound, of all points that can fail: a bound
  smaller by that factor would have been refuted. A sampled mean may lie a little above its bound by chance, then
  *closest* is above 100 % and still nothing is refuted.
- Intervals of sampled claims are at 95 %, for the eye only.
"""


def seeds_tables(summary: dict) -> str:
    """What became of the chapters under other seeds (book/seeds.json) as a section of the scoreboard page."""
    text = "\n## Under other seeds\n\n"
    if not summary:
        return text + "No chapter has been run under other seeds yet: `make seeds`.\n"
    text += (
        "Chapters that `make seeds` has run again and again, each time with another seed: how often was a theorem claim"
        " violated, or did the chapter fail, and which forecasts do not always end the same way? Not measured by this"
        " build; the row says when and where. *Earlier state* means that the chapter has changed since.\n"
    )
    for profile in (profile for profile in chapters.PROFILES if profile in summary):
        rows = []
        for name, row in summary[profile].items():
            path = chapters.ROOT / "notebooks" / f"{name}.md"
            if not path.exists():
                continue
            chapter = chapters.load(name)
            count = "; ".join(f"`{key}` ({', '.join(map(str, found))})" for key, found in row["violated"].items())
            failed = "; ".join(f"seed {seed}: {message}" for seed, message in row["failed"].items())
            verdicts = {key: {v: n for v, n in counts.items() if n} for key, counts in row["forecasts"].items()}
            flips = "; ".join(
                f"`{key}` " + ", ".join(f"{n} {verdict}" for verdict, n in counts.items())
                for key, counts in verdicts.items() if len(counts) > 1
            )  # fmt: skip
            steady = sum(len(counts) == 1 for counts in verdicts.values())
            state = "" if row["digest"] == chapter.digest() else ", earlier state"
            rows.append((
                f"[{chapter.title}](notebooks/{name})", row["seeds"], row["theorem_claims"], count or "none",
                failed or "none", steady, flips or "none",
                f"{row['date']}, commit {row['commit']}{state}",
            ))  # fmt: skip
        header = ("chapter", "seeds", "theorem claims", "violated (seeds)", "runs that failed",
                  "forecasts that always end the same", "forecasts that do not", "measured")  # fmt: skip
        table = claims.markdown_table(header, rows)
        runs = sum(row["seeds"] for row in summary[profile].values())
        bad = sum(bool(row["violated"] or row["failed"]) for row in summary[profile].values())
        processors = sorted({row["processor"] for row in summary[profile].values()})
        text += f"\nSettings of `{profile}`: {runs} runs, {bad} of {len(rows)} chapters with a violation or a failure."
        text += f" Measured on {'; '.join(processors)}.\n\n:::{{container}} seeds\n{table}\n:::\n"
    return text


def timings_table(timings: dict) -> str:
    """Run times as a section of the scoreboard page."""
    rows = [(t["chapter"], t["threads"], f"{t['wall_seconds']:.1f}", f"{t['core_seconds']:.1f}",
             f"{t['declared_core_seconds']:g}") for t in timings["chapters"]]  # fmt: skip
    text = "\n## Run times on the machine that built this book\n\nShown, never judged.\n\n"
    header = ("chapter", "threads", "seconds", "core-seconds", "declared core-seconds")
    text += claims.markdown_table(header, rows) + "\n"
    measured = [(t["chapter"], timing["statement"], f"{claims.number(timing['value'])} {timing['unit']}")
                for t in timings["chapters"] for timing in t["timings"]]  # fmt: skip
    return text + ("\n" + claims.markdown_table(("chapter", "what", "value"), measured) + "\n" if measured else "")


def standalone(contents: list[dict], profile: str, missing: list[str]) -> str:
    """The scoreboard as one HTML file that needs nothing beside it."""
    import html

    body = f"<h1>Scoreboard</h1><p>Profile <b>{profile}</b>.</p>"
    if missing:
        body += f"<h2>Not finished</h2><p>{html.escape(', '.join(missing))}</p>"
    for content in contents:
        box = claims.Verdicts(content["claims"])._repr_html_().replace("<details>", "<details open>")
        body += f"<h2>{html.escape(chapters.load(content['chapter']).title)}</h2>{box}"
    css = (chapters.ROOT / "book" / "_static" / "custom.css").read_text(encoding="utf-8")
    plain = "body{font-family:sans-serif;max-width:90rem;margin:2rem auto;padding:0 1rem}"
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Scoreboard ({profile})</title><style>{plain}{css}</style>{body}</html>\n"
    )


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
    text = scoreboard(contents, options.profile, missing, links=False)
    (build / "scoreboard.md").write_text(text, encoding="utf-8")
    (build / "scoreboard.html").write_text(standalone(contents, options.profile, missing), encoding="utf-8")
    if options.partial:
        (build / "claims.json").unlink(missing_ok=True)  # of an earlier build; the next one collects anew
        return 0
    timings = {
        "profile": options.profile,
        "chapters": [chapters.read_json(build / "timings" / f"{name}.json") for name in names],
    }
    claims.write_json(build / "claims.json", everything)
    claims.write_json(build / "timings.json", timings)
    page = scoreboard(contents, options.profile, [], links=True) + LEGEND
    seeds = chapters.ROOT / "book" / "seeds.json"
    page += seeds_tables(chapters.read_json(seeds) if seeds.exists() else {})
    page += timings_table(timings)
    (build / "book-pages").mkdir(exist_ok=True)
    (build / "book-pages" / "scoreboard.md").write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(chapters.guard(main))
