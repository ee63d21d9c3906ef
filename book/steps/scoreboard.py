"""The scoreboard page: legend, one picture, a matrix of theorems and evidence, every claim, other seeds, run times.

`plain` and `standalone` show the claims where there is no book: beside a build, and after one that failed.
"""

import html
import math
import re

import chapters

from prompt_memory.book import claims, figures, verdicts
from prompt_memory.book.figures import COLOURS

# The name of a statement as readers cite it: "Theorem 4b" in "Search against Theorem 4b, part 2".
_NAME = re.compile(r"\b(Theorem|Lemma|Proposition|Corollary)(?:s|\b) ?(\d+[a-z]?)")
_LABEL = re.compile(r"\{prf:(\w+)\} *(\d+[a-z]?)\b[^\n]*\n:label: *(\S+)")
_PROFILE = "Profile **{}**: {}.\n"
OTHERS = "no theorem"  # forecasts of heuristics and of published work
LEFT, RIGHT = 0.02, 4.0  # of the picture's axis; what is smaller is drawn at its left edge

LEGEND = f"""
- A check of a theorem **holds** (exact: no sampling error), is **not refuted** (a sampled mean, or a single run against
  what it passes with probability $10^{{-10}}$ only) or is **violated**. One violated claim, and there is no book.
- A **forecast** was written down before the measurement: **hit**, **missed**, or **undecided** where the interval does
  not tell. A miss is a finding, and does not fail the build.
- *Closest* is the largest measured value over its bound: a bound smaller by that factor would have been refuted.

:::{{admonition}} The columns, exactly
:class: dropdown
- *points that can fail*: how many comparisons stand behind a line, and of how many: where the experiment could not
  have shown a violation whatever the theorem says, it is not counted. The numbers shown belong to the point that came
  closest.
- *reported from* is the measured value from which on a violation would have been reported there: an experiment cannot
  see a smaller one.
- A sampled mean is *violated* only if its one-sided confidence limit passes the bound at an error probability of
  {claims.LEVEL:g} for all sampled comparisons of the book together. It may lie a little above its bound by chance; then
  *closest* is above 100 % and still nothing is refuted. Intervals are at 95 %, for the eye only.
- A measurement with an interval hits if the whole interval lies within the tolerance, misses if all of it lies outside,
  and leaves the forecast undecided otherwise.
:::
"""


def statements() -> dict[str, str]:
    """Names of the numbered statements of the book with the labels of their boxes: {"Theorem 1": "thm-counting", …}."""
    found = {}
    for chapter in chapters.all_chapters():
        for kind, number, label in _LABEL.findall(chapter.text):
            found.setdefault(f"{kind.capitalize()} {number}", label)
    return found


def group(claim: dict) -> str:
    """What a claim is about: a numbered statement, else its chapter, else (a forecast) no theorem."""
    if name := _NAME.search(claim["theorem"]):
        return f"{name[1]} {name[2]}"
    return f"Chapter {chapters.number(claim['chapter'])}" if claim["kind"] == "theorem" else OTHERS


def groups(everything: list[dict]) -> dict[str, list[dict]]:
    """Claims by what they are about, in the order of the book."""
    found = {}
    for claim in everything:
        found.setdefault(group(claim), []).append(claim)

    def place(name: str) -> tuple:
        number = re.search(r"(\d+)([a-z]?)$", name)
        return (int(number[1]), not name.startswith("Theorem"), number[2]) if number else (math.inf,)

    return {name: found[name] for name in sorted(found, key=place)}


def named(name: str, labels: dict[str, str]) -> str:
    """The name of a group as a link to its statement or chapter."""
    if name in labels:
        return f"{{prf:ref}}`{name} <{labels[name]}>`"
    numbers = {f"Chapter {chapters.number(chapter.name)}": chapter.name for chapter in chapters.all_chapters()}
    return f"{{doc}}`{name} <notebooks/{numbers[name]}>`" if name in numbers else name


def matrix(found: dict[str, list[dict]]) -> str:
    """The table of statements and evidence."""
    labels, columns = statements(), ("exact", "sampled", "tail", "violated", "hit", "missed", "undecided")

    def counts(of: list[dict]) -> list[int]:
        kinds = [claim.get("evidence") for claim in of] + [claim["verdict"] for claim in of]
        return [kinds.count(column) for column in columns]

    def row(name: str, of: list[dict]) -> list:
        checks, against, forecasts = counts(of)[:3], counts(of)[3], counts(of)[4:]
        return [
            name,
            *(n or "" for n in checks),
            against or ("none" if any(checks) else ""),
            *(n or "" for n in forecasts),
        ]

    rows = [row(named(name, labels), of) for name, of in found.items()]
    rows.append(row("**all**", [claim for of in found.values() for claim in of]))
    header = (
        "statement",
        "exact",
        "sampled means",
        "single runs",
        "against it",
        "forecasts hit",
        "missed",
        "undecided",
    )
    return f":::{{container}} matrix\n{verdicts.markdown_table(header, rows)}\n:::\n"


def closest_figure(found: dict[str, list[dict]]) -> figures.Picture:
    """Every claim with a ratio of measurement and bound, one row for each statement."""
    ratios = {name: [claim for claim in of if claim.get("closest") is not None] for name, of in found.items()}
    ratios = {name: of for name, of in ratios.items() if of}
    theorems = [claim for of in found.values() for claim in of if claim["kind"] == "theorem"]
    exact = [claim["closest"] for of in ratios.values() for claim in of if claim["evidence"] == "exact"]
    attained = sum(ratio >= 0.99 for ratio in exact)
    against = sum(claim["verdict"] == "violated" for claim in theorems)
    bare = len(theorems) - sum(map(len, ratios.values()))

    def draw(figure):
        ax = figure.subplots()
        ax.axvline(1, color=COLOURS["bound"])
        for place, of in enumerate(ratios.values()):
            for filled in (True, False):
                some = sorted(min(max(claim["closest"], LEFT), RIGHT) for claim in of
                              if (claim["evidence"] == "exact") == filled)  # fmt: skip
                near = [sum(other > 0.97 * x for other in some[:i]) for i, x in enumerate(some)]
                heights = [place + 0.16 * (-1) ** k * ((k + 1) // 2 % 3) for k in near]  # equal ones side by side
                ax.scatter(some, heights, s=22, facecolor=COLOURS["measured"] if filled else "none",
                           edgecolor=COLOURS["measured"], zorder=3)  # fmt: skip
        ax.set_xscale("log")
        ax.set_xlim(LEFT / 1.15, RIGHT)
        ticks = (LEFT, 0.1, 1) if figures.narrow(figure) else (LEFT, 0.1, 0.5, 1, 2)
        ax.set_xticks(ticks, [f"{'≤ ' if tick == LEFT else ''}{100 * tick:.0f} %" for tick in ticks])
        ax.set_xticks([], minor=True)
        ax.set_yticks(range(len(ratios)), list(ratios))
        ax.set_ylim(len(ratios) - 0.4, -0.6)
        ax.set_xlabel("measured over bound")

    finding = f"{attained} of {len(exact)} exact bounds are attained to one per cent, {against or 'none'} "
    finding += "is passed." if against < 2 else "are passed."
    return figures.show(
        draw, name="closest", finding=finding, size=(7, 0.6 + 0.24 * len(ratios)), panels=2,
        caption="Each dot is one claim: its largest measured value over the bound (bound over measured where that is a"
        " lower one). Filled: exact. Open: sampled, where chance may carry a dot over the line and a confidence limit"
        f" judges. {bare} claims have no ratio: equalities, and bounds of zero.",
        alt=f"A row of dots for each of {len(ratios)} statements on a logarithmic axis of measured over bound, with a"
        f" line at 100 %. {finding}",
    )  # fmt: skip


def measured_at(claim: dict, lines: set[str]) -> str:
    """Where a claim was measured: its line on the chapter's page (`lines`: keys that have one), else the page."""
    place = f"#claim-{claim['key']}" if claim["key"] in lines else ""
    return html.escape(f"notebooks/{claim['chapter']}.html{place}")


def lines_of(name: str, notebook: str) -> set[str]:
    """Keys of the claims that the executed notebook (its JSON text) shows a line of."""
    return {html.unescape(key) for key in re.findall(r'<li id=\\"claim-(.+?)\\">', notebook)}


EVIDENCE = {"exact": "exact", "sampled": "sampled mean", "tail": "single run", None: "forecast"}
HEADER = ("verdict", "claim", "bound or forecast", "measured", "reported from", "closest", "points that can fail")


def row(claim: dict, lines: set[str]) -> str:
    """One claim as a row of the page's table."""
    verdict, text, bound, measured, interval, detectable, closest, points = verdicts.Verdicts.row(claim)
    measured += "" if interval == "–" else f" {interval}"
    theorem, statement = text[: len(claim["theorem"])], text[len(claim["theorem"]) :]
    link = f'<a href="{measured_at(claim, lines)}">{verdicts.mathjax(html.escape(theorem))}</a>'
    words = f"{link}{verdicts.mathjax(html.escape(statement))} <code>{html.escape(claim['key'])}</code>"
    cells = [verdicts.mark(verdict), words, *map(html.escape, (bound, measured, detectable, closest, points))]
    body = "".join(f'<td data-label="{label}">{cell}</td>' for label, cell in zip(HEADER, cells, strict=True))
    return (
        f'<tr id="{html.escape(claim["chapter"])}--{html.escape(claim["key"])}" data-verdict="{verdict}"'
        f' data-kind="{EVIDENCE[claim.get("evidence")]}">{body}</tr>\n'
    )


def claims_table(contents: list[dict], notebooks: dict[str, str]) -> str:
    """Every claim, by chapter; a script of the book adds a filter to it."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in HEADER)
    text = f'<div class="claims wide mathjax_process"><table id="claims"><thead><tr>{head}</tr></thead>\n'
    for content in contents:
        chapter = chapters.load(content["chapter"])
        lines = lines_of(chapter.name, notebooks.get(chapter.name, ""))
        summary = verdicts.Verdicts(content["claims"]).summary()
        text += (
            f'<tbody data-chapter="{chapter.name}"><tr class="chapter"><th scope="rowgroup" colspan="{len(HEADER)}">'
            f'<a href="notebooks/{chapter.name}.html">{verdicts.mathjax(html.escape(chapter.title))}</a>'
            f" <span>{summary}</span></th></tr>\n"
        )
        ordered = sorted(content["claims"], key=lambda claim: verdicts.VERDICTS.index(claim["verdict"]))
        text += "".join(row(claim, lines) for claim in ordered) + "</tbody>\n"
    return f"{text}</table></div>"


def raw(text: str) -> str:
    """HTML as it is, in a Markdown page."""
    return f"```{{raw}} html\n{text}\n```\n"


def page(
    contents: list[dict], profile: str, notebooks: dict[str, str], seeds: dict, errors: dict, timings: dict
) -> str:  # fmt: skip
    """The scoreboard as a page of the book; `notebooks` holds the text of each executed notebook."""
    everything = [claim for content in contents for claim in content["claims"]]
    found = groups(everything)
    text = "---\nhtml_theme.sidebar_secondary.remove: true\n---\n\n# Scoreboard\n\n"
    text += _PROFILE.format(profile, verdicts.Verdicts(everything).summary()) + LEGEND
    if any(claim.get("closest") is not None for claim in everything):
        text += "\n## How close the bounds are\n\n" + raw(closest_figure(found)._repr_html_())
    text += "\n## Statements and evidence\n\n" + matrix(found)
    text += "\n## Every claim\n\nThe name of a theorem leads to the place where the claim was measured.\n\n"
    text += raw(claims_table(contents, notebooks))
    return text + seeds_tables(seeds) + errors_table(errors) + timings_table(timings)


def plain(contents: list[dict], profile: str, missing: list[str]) -> str:
    """The scoreboard as Markdown without links, for a terminal; `missing` names the chapters that did not finish."""
    everything = verdicts.Verdicts([claim for content in contents for claim in content["claims"]])
    text = "# Scoreboard\n\n" + _PROFILE.format(profile, everything.summary())
    violated = [claim for claim in everything.claims if claim["verdict"] == "violated"]
    if violated:
        text += "\n## Violated\n\nA proved bound was passed: the proof, the code or the experiment is wrong.\n\n"
        header = ("chapter", "key", *verdicts.Verdicts.HEADER)
        text += verdicts.markdown_table(header, [(c["chapter"], c["key"], *everything.row(c)) for c in violated]) + "\n"
    if missing:
        text += f"\n## Not finished\n\nNo claims from: {', '.join(missing)}.\n"
    for content in contents:
        box = verdicts.Verdicts(content["claims"])
        text += f"\n## {chapters.load(content['chapter']).title} ({content['chapter']})\n\n{box.summary()}.\n\n"
        if content["claims"]:
            rows = [(*box.row(claim), f"`{claim['key']}`") for claim in content["claims"]]
            text += verdicts.markdown_table((*verdicts.Verdicts.HEADER, "key"), rows) + "\n"
    return text


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
            ends = {key: {v: n for v, n in counts.items() if n} for key, counts in row["forecasts"].items()}
            flips = "; ".join(
                f"`{key}` " + ", ".join(f"{n} {verdict}" for verdict, n in counts.items())
                for key, counts in ends.items() if len(counts) > 1
            )  # fmt: skip
            steady = sum(len(counts) == 1 for counts in ends.values())
            state = "" if row["digest"] == chapter.digest else ", earlier state"
            rows.append((
                f"[{chapter.title}](notebooks/{name})", row["seeds"], row["theorem_claims"], count or "none",
                failed or "none", steady, flips or "none",
                f"{row['date']}, commit {row['commit']}{state}",
            ))  # fmt: skip
        header = ("chapter", "seeds", "theorem claims", "violated (seeds)", "runs that failed",
                  "forecasts that always end the same", "forecasts that do not", "measured")  # fmt: skip
        table = verdicts.markdown_table(header, rows)
        runs = sum(row["seeds"] for row in summary[profile].values())
        bad = sum(bool(row["violated"] or row["failed"]) for row in summary[profile].values())
        processors = sorted({row["processor"] for row in summary[profile].values()})
        text += f"\nSettings of `{profile}`: {runs} runs, {bad} of {len(rows)} chapters with a violation or a failure."
        text += f" Measured on {'; '.join(processors)}.\n\n:::{{container}} seeds\n{table}\n:::\n"
    return text


def errors_table(summary: dict) -> str:
    """Which deliberate errors tests noticed (book/trust.json) as a section of the scoreboard page."""
    text = "\n## Deliberate errors\n\n"
    if not summary:
        return text + "No error has been tried yet: `make trust`.\n"
    noticed = [row["noticed"].rpartition("::")[2] for row in summary["rows"]]
    text += (
        "Would a wrong constant be seen? `make trust` puts errors into a copy of the project, one at a time, and runs"
        f" tests of the room: {sum(map(bool, noticed))} of {len(noticed)} were noticed. Not measured by this build, but"
        f" on {summary['date']}, commit {summary['commit']}. They were chosen by hand: no estimate of a rate.\n\n"
    )
    rows = [
        (row["says"], f"`{row['file']}`", f"`{test}`" if test else "**nothing**")
        for row, test in zip(summary["rows"], noticed, strict=True)
    ]
    table = verdicts.markdown_table(("error", "in", "the first test that failed"), rows)
    return f"{text}::::{{admonition}} Every error\n:class: dropdown\n\n:::{{container}} seeds\n{table}\n:::\n::::\n"


def timings_table(timings: dict) -> str:
    """Run times as a section of the scoreboard page."""
    rows = [(t["chapter"], t["threads"], f"{t['wall_seconds']:.1f}", f"{t['core_seconds']:.1f}",
             f"{t['declared_core_seconds']:g}") for t in timings["chapters"]]  # fmt: skip
    text = "\n## Run times on the machine that built this book\n\nShown, never judged.\n\n"
    header = ("chapter", "threads", "seconds", "core-seconds", "declared core-seconds")
    text += verdicts.markdown_table(header, rows) + "\n"
    measured = [(t["chapter"], timing["statement"], f"{verdicts.number(timing['value'])} {timing['unit']}")
                for t in timings["chapters"] for timing in t["timings"]]  # fmt: skip
    return text + ("\n" + verdicts.markdown_table(("chapter", "what", "value"), measured) + "\n" if measured else "")


def standalone(contents: list[dict], profile: str, missing: list[str]) -> str:
    """The scoreboard as one HTML file that needs nothing beside it."""
    body = f"<h1>Scoreboard</h1><p>Profile <b>{profile}</b>.</p>"
    if missing:
        body += f"<h2>Not finished</h2><p>{html.escape(', '.join(missing))}</p>"
    for content in contents:
        box = verdicts.Verdicts(content["claims"])._repr_html_().replace("<details>", "<details open>")
        body += f"<h2>{html.escape(chapters.load(content['chapter']).title)}</h2>{box}"
    css = (chapters.ROOT / "book" / "_static" / "custom.css").read_text(encoding="utf-8")
    plain = "body{font-family:sans-serif;max-width:90rem;margin:2rem auto;padding:0 1rem}"
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Scoreboard ({profile})</title><style>{plain}{css}</style>{body}</html>\n"
    )
