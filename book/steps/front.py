"""What the front page and the page for builders take from this build: answers, numbers, minutes, a citation.

Their sources hold places such as {book}`measured 01_counting`; `fill` puts text there. A number is never typed.
"""

import ast
import math
import re
from functools import cache, cached_property
from pathlib import Path
from types import SimpleNamespace

import chapters
import yaml

from prompt_memory.book import figures, verdicts
from prompt_memory.bounds import coverage

MAIN = ("01_counting", "04_accessible_strings", "08_degradation", "12_other_tunings")  # answered on the first screen
WORDS_A_MINUTE = 180
TOKENS = 1000  # the string of the builders' first question

KINDS = {  # networks that readers have, with what theorems ask of them
    "one layer": SimpleNamespace(depth=1, causal=True, positions="none", context_scaling="none"),
    "decoder, rotary positions (Llama, Qwen)": SimpleNamespace(
        depth=9, causal=True, positions="rotary", context_scaling="none"),
    "decoder, added positions (GPT-2)": SimpleNamespace(
        depth=9, causal=True, positions="learned", context_scaling="none"),
    "encoder, added positions (BERT)": SimpleNamespace(
        depth=9, causal=False, positions="learned", context_scaling="none"),
}  # fmt: skip

_PLACE = re.compile(r"\{book\}`([^`]+)`")
_GLUE = re.compile(r"\{glue:text\}`([^`:]+)(?::([^`]+))?`")
_MEASURED = re.compile(r"^- \*\*Measured:\*\* +(.+(?:\n +\S.*)*)", re.MULTILINE)


class Results:
    """The executed notebooks and the claims of one build. Methods without a leading underscore fill places."""

    def __init__(self, build: Path):
        self.build = build

    @cached_property
    def _chapters(self) -> dict[str, chapters.Chapter]:
        return {chapter.name: chapter for chapter in chapters.all_chapters()}

    @cached_property
    def _claims(self) -> dict[tuple[str, str], dict]:
        listed = chapters.read_json(self.build / "claims.json")["claims"]
        return {(claim["chapter"], claim["key"]): claim for claim in listed}

    @cache  # noqa: B019  one object a build
    def measured(self, name: str) -> str:
        """What the chapter says it measured, under At a glance; "" for a chapter that does not say it."""
        cells = chapters.read_json(self.build / "notebooks" / f"{name}.ipynb")["cells"]
        for text in ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"):
            if "{admonition} At a glance" in text and (found := _MEASURED.search(text)):
                sentence = _GLUE.sub(lambda place: glued(cells, place), " ".join(found[1].split()))
                return from_root(sentence[:1].upper() + sentence[1:], name)
        return ""

    def claim(self, name: str, key: str, field: str, spec: str = "") -> str:
        """A field of a claim as text: `measured`, `predicted`, `bound`, `verdict`, …; `spec` as in Python's format."""
        if (name, key) not in self._claims:
            raise ValueError(f"there is no claim {key} of {name}")
        value = self._claims[name, key][field]
        return format(value, spec) if spec else verdicts.number(value)

    def answers(self) -> str:
        """The main questions, each with its answer."""
        listed = "\n".join(self._answer(self._chapters[name]) for name in MAIN)
        return f":::{{container}} answers\n{listed}\n:::"

    def _answer(self, chapter: chapters.Chapter) -> str:
        link = f"{{doc}}`chapter {chapters.number(chapter.name)} </notebooks/{chapter.name}>`"
        return f"- **{question(chapter)}** {self.measured(chapter.name)} ({link})"

    def chapters(self) -> str:
        """Every chapter with its question and its answer."""
        rows = [
            (f"{{doc}}`/notebooks/{chapter.name}`", question(chapter), self.measured(chapter.name))
            for chapter in self._chapters.values()
        ]
        table = verdicts.markdown_table(("chapter", "question", "measured here"), rows)
        return f":::{{container}} chapters\n{table}\n:::"

    def minutes(self, *names: str) -> str:
        """How long these pages take to read (all chapters, if none is named), without folded parts and exercises."""
        texts = [
            self._chapters[name].text if name in self._chapters
            else (chapters.ROOT / "book" / f"{name}.md").read_text(encoding="utf-8")
            for name in names or self._chapters
        ]  # fmt: skip
        return reading_time(sum(map(words, texts)))

    def tuning(self) -> str:
        """Soft prompt or LoRA, by what became of the forecast about them."""
        return {
            "hit": "LoRA, if you may change weights. With equally many trained numbers it was found to hold more than a"
            " soft prompt, as forecast.",
            "missed": "No rule. That LoRA holds more than a prefix, and a prefix more than a soft prompt of equally"
            " many trained numbers, was forecast and missed.",
            "undecided": "Not settled by this build. That LoRA holds more than a prefix, and a prefix more than a soft"
            " prompt of equally many trained numbers, was forecast and stayed undecided.",
        }[self._claims["12_other_tunings", "order"]["verdict"]]

    def lengths(self) -> str:
        """Prompt lengths for a string of `TOKENS` tokens: what the bounds ask for, what searches have found."""
        from prompt_memory.real.architectures import PUBLISHED
        from prompt_memory.real.budget import least_length

        rows = []
        for name, published in PUBLISHED.items():
            least = least_length(published.architecture, tokens=TOKENS)
            rows.append((name, f"{least.length:,}", f"{least.found.length:,}", f"{least.found.tokens:.3g}"))
        header = ("model", "vectors, at least", "vectors, as searches go", "tokens a vector")
        return f":::{{container}} lengths\n{verdicts.markdown_table(header, rows)}\n:::"

    def tokens(self) -> str:
        return f"{TOKENS:,}"

    def cache(self, model: str) -> str:
        """What one query reads of a model's cache, in numbers, beside the length of its context."""
        from prompt_memory import bounds
        from prompt_memory.real.architectures import PUBLISHED

        a = PUBLISHED[model].architecture
        count = bounds.caratheodory_count(a.layers, a.heads, a.value_dim, own=True)
        text = f"In {model} one query reads {count:,} numbers, and the context has {a.context:,} positions"
        return text + (": nothing to gain there." if count >= a.context else ".")

    def coverage(self) -> str:
        """Which theorem covers which kind of network, by what it bounds."""
        rows = [(text, *(", ".join(map(statement, covering(topic, kind))) or "no theorem" for kind in KINDS.values()))
                for topic, text in coverage.TOPICS.items()]  # fmt: skip
        return f":::{{container}} coverage\n{verdicts.markdown_table(('proved is', *KINDS), rows)}\n:::"

    def open(self) -> str:
        """For builders: of each kind of deep network what is not proved, and what the theorems that are ask for."""
        lines = []
        for name, kind in list(KINDS.items())[1:]:
            missing = [text for topic, text in coverage.TOPICS.items() if not covering(topic, kind)]
            lines.append(f"- *{name[:1].upper() + name[1:]}:* not proved is {'; '.join(missing)}.")
        return "\n".join(lines)

    def picture(self) -> str:
        """The drawing of the two claims."""
        drawing = figures.drawing(
            "two_claims", finding="What a prompt keeps grows at most linearly; what a context keeps is bounded.",
            caption="A sketch of Theorems 1 to 4, and of 5 to 8.",
            alt="Two sketches of bits kept, each with a forbidden region. On the left the limit rises in a straight"
            " line with the length of a tuned prompt; on the right it is level, however long the context. What is found"
            " lies below both.",
        )  # fmt: skip
        return f"```{{raw}} html\n{drawing._repr_html_()}\n```"

    def bibtex(self) -> str:
        """The book and the paper that it accompanies, from CITATION.cff."""
        cited = citation()
        return "```bibtex\n" + "\n\n".join(map(bibtex, (cited, *cited["references"]))) + "\n```"

    def code(self) -> str:
        """Where the code is."""
        address = citation().get("repository-code")
        return f"The code is at <{address}>; there" if address else "In the folder of the code"


def covering(topic: str, kind) -> list[coverage.Coverage]:
    """The theorems about the topic that cover this kind of network."""
    return [each for each in coverage.THEOREMS if topic in each.topics and not each.refusal(kind)]


def statement(entry: coverage.Coverage) -> str:
    """A link to the statement of a theorem, by its number."""
    return f"{{prf:ref}}`{entry.theorem.removeprefix('Theorem ')} <{entry.label}>`"


def citation() -> dict:
    return yaml.safe_load((chapters.ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def bibtex(entry: dict) -> str:
    """One entry of CITATION.cff in the language of BibTeX."""
    authors = entry["authors"]
    # The name of a group must not be taken apart.
    people = [
        f"{{{who['name']}}}" if "name" in who else f"{who['family-names']}, {who['given-names']}" for who in authors
    ]
    fields = {"title": f"{{{entry['title']}}}", "author": " and ".join(people), "year": entry.get("year")}
    for prefix, number in (identifier["value"].split(":") for identifier in entry.get("identifiers", ())):
        fields |= {"eprint": number, "archivePrefix": prefix}
    fields["url"] = entry.get("repository-code") or entry.get("url")
    first = authors[0].get("family-names", "book").lower()
    key = f"{first}{entry.get('year', '')}{entry['title'].split()[0].lower()}"
    lines = [f"  {name} = {{{value}}}" for name, value in fields.items() if value]
    return f"@misc{{{key},\n" + ",\n".join(lines) + "\n}"


def glued(cells: list[dict], place: re.Match) -> str:
    """The text that a notebook has glued for a place; ValueError if there is none."""
    for output in (output for cell in cells for output in cell.get("outputs", ())):
        record = output.get("metadata", {}).get("scrapbook", {})
        if record.get("name") == place[1]:
            value = ast.literal_eval(output["data"][f"{record['mime_prefix']}text/plain"])
            return format(value, place[2] or "")
    raise ValueError(f"nothing is glued under {place[1]!r}")


def from_root(text: str, name: str) -> str:
    """The Markdown of a chapter as another page can show it: its links begin at the root of the book."""
    text = text.replace('<a class="figure-ref" href="#', f'<a class="figure-ref" href="notebooks/{name}.html#')
    text = re.sub(r"(\{doc\}`[^`<]*<)(?!/)([^`>]+>`)", r"\1/notebooks/\2", text)
    return re.sub(r"(\{doc\}`)(?!/)([^`<>]+`)", r"\1/notebooks/\2", text)


def question(chapter: chapters.Chapter) -> str:
    """The question of a chapter; of one that has none its title."""
    return chapter.question or chapter.title


def words(text: str) -> int:
    """Words of a chapter that are read: no code, folded parts or exercises; a formula counts as one."""
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL).split("\n## Exercises")[0]
    text = re.sub(r"^(`{3,}|~{3,}) *\{code-cell\}.*?^\1 *$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^(:{3,})(?=\{prf:proof\}|.*\n:class: dropdown).*?^\1 *$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^:.*$", "", text, flags=re.MULTILINE)  # fences and options of boxes
    text = re.sub(r"\$\$.*?\$\$|\$[^$]*\$", " formula ", text, flags=re.DOTALL)
    return len(re.findall(r"\w[\w'’–-]*", text))


def reading_time(count: int) -> str:
    """The time for so many words, in steps of five minutes; in hours from two hours on."""
    minutes = max(5, 5 * math.ceil(count / WORDS_A_MINUTE / 5))
    return f"{minutes} minutes" if minutes < 120 else f"{round(minutes / 60)} hours"


def fill(text: str, results: Results) -> str:
    """Fill every place {book}`name argument …` of a page; ValueError for one that cannot be filled."""

    def value(place: re.Match) -> str:
        name, *arguments = place[1].split()
        method = getattr(results, name, None)
        if name.startswith("_") or not callable(method):
            raise ValueError(f"nothing fills {place[0]}")
        try:
            return method(*arguments)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{place[0]} cannot be filled: {error}") from None

    return _PLACE.sub(value, text)
