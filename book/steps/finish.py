"""What the build writes into finished pages: numbers of figures, previews of what links lead to, descriptions."""

import html
import json
import re
from pathlib import Path
from urllib.parse import urldefrag, urljoin, urlsplit

import chapters
from bs4 import BeautifulSoup, Tag

# Jupyter Book puts its live-code helper on every page, twice, with the address of a foreign script. We do not use it.
_THEBE = re.compile(
    r"\s*<script(?:>const THEBE_JS_URL[^<]*|[^>]*sphinx-thebe\.js[^>]*>|[^>]*x-thebe-config[^>]*>[^<]*)</script>"
)
_FIGURE = re.compile(r'<figure class="picture[^"]*" id="fig-([\w-]+)">')
_LINK = re.compile(r'<a class="figure-ref" href="([^"#]*)#fig-([\w-]+)">Figure</a>')
_DESCRIPTION = 200  # letters, about what a search engine shows


def pages(folder: Path) -> None:
    """Finish every page below `folder`. ValueError for a figure that is named twice or linked and not there."""
    texts = {
        str(path.relative_to(folder)): _THEBE.sub("", path.read_text(encoding="utf-8"))
        for path in sorted(folder.rglob("*.html"))
    }
    numbers = {name: figure_numbers(text, name) for name, text in texts.items()}
    questions = {f"notebooks/{chapter.name}.html": chapter.question for chapter in chapters.all_chapters()}
    shown = {}
    for name, text in texts.items():
        text = lone_ids(number_figures(text, name, numbers))
        text = described(text, questions.get(name, ""))
        (folder / name).write_text(text, encoding="utf-8")
        shown |= previews(BeautifulSoup(text, "html.parser"), name)
    content = json.dumps(shown, ensure_ascii=False, indent=0, sort_keys=True)
    (folder / "_static" / "previews-data.js").write_text(f"window.previews = {content};\n", encoding="utf-8")


def figure_numbers(text: str, page: str) -> dict[str, str]:
    """Names of a page's figures with their numbers: Figure 4b.2 is the second of chapter 4b, Figure 2 of another page.

    Figures are numbered in the order of the page, which only the finished page knows.
    """
    place = f"{chapters.number(Path(page).stem)}." if page.startswith("notebooks/") else ""
    names = _FIGURE.findall(text)
    numbers = {name: f"Figure {place}{index}" for index, name in enumerate(names, 1)}
    if len(numbers) < len(names):
        raise ValueError(f"{page}: two figures have the same name.")
    return numbers


def number_figures(text: str, page: str, numbers: dict[str, dict[str, str]]) -> str:
    """Write the number into each figure of a page and into its links to figures, of this page or another.

    `numbers` holds those of every page, as `figure_numbers` gives them.
    """
    parts = text.split('<span class="figure-number">Figure</span>')
    text = parts[0] + "".join(
        f'<span class="figure-number">{number}</span>{part}'
        for number, part in zip(numbers[page].values(), parts[1:], strict=True)
    )

    def link(found: re.Match) -> str:
        target = urljoin(page, found[1]) if found[1] else page
        if found[2] not in numbers.get(target, {}):
            raise ValueError(f"{page}: a link leads to the figure {found[2]!r}, which is not on {target}.")
        return f'<a class="figure-ref" href="{found[1]}#fig-{found[2]}">{numbers[target][found[2]]}</a>'

    return _LINK.sub(link, text)


def lone_ids(text: str) -> str:
    """Drop the ids that boxes of theorems share: of every proof, and a box's own a second time in its title."""
    text = text.replace(' id="proof-content"', "").replace(' id="proof"', "")
    return re.sub(r'<p class="admonition-title" id="[\w-]+">', '<p class="admonition-title">', text)


def described(text: str, question: str) -> str:
    """Put a description into the head of a page: its question, if it has one, and how its first paragraph begins."""
    soup = BeautifulSoup(text, "html.parser")
    article = soup.find("article")
    first = article and article.find("p", class_=False)
    if not first:
        return text
    beginning = re.sub(r"\\[()]", "", first.get_text())
    words = f"{question} {beginning}".split()
    while len(" ".join(words)) > _DESCRIPTION:
        words.pop()
    title, _, book = soup.title.get_text().partition(" — ")
    content = {
        "og:title": title.strip(),
        "og:type": "article" if question else "website",
        "og:site_name": book or title,
    }
    content["og:description"] = description = " ".join(words)
    tags = f'<meta name="description" content="{html.escape(description)}" />\n'
    tags += "".join(f'<meta property="{key}" content="{html.escape(value)}" />\n' for key, value in content.items())
    return text.replace("</head>", f"{tags}</head>", 1)


def previews(page: BeautifulSoup, name: str) -> dict[str, str]:
    """What can be shown where a link leads: {"notation.html#term-recall": HTML, …}; links in it begin at the root."""
    found = {}
    for box in page.select("div.proof.admonition[id], div.math[id^=equation-]"):
        found[f"{name}#{box['id']}"] = box
    for term in page.select("dl.glossary > dt[id^=term-]"):
        box = page.new_tag("div", attrs={"class": "term"})
        meaning = term.find_next_sibling("dd")
        box.append(BeautifulSoup(f"<strong>{term.get_text().rstrip('#').strip()}</strong>", "html.parser"))
        box.append(BeautifulSoup(meaning.decode_contents(), "html.parser"))
        found[f"{name}#{term['id']}"] = box
    return {key: preview(box, name) for key, box in found.items()}


def preview(box: Tag, page: str) -> str:
    """A copy of a box without ids and marks of links, its links written from the root of the book."""
    copy = BeautifulSoup(str(box), "html.parser")
    for mark in copy.select(".headerlink"):
        mark.decompose()
    for tag in copy.select("[id]"):
        del tag["id"]
    for link in copy.select("a[href]"):
        if not urlsplit(link["href"]).scheme:
            path, fragment = urldefrag(link["href"])
            link["href"] = f"{urljoin(page, path) if path else page}#{fragment}".rstrip("#")
    return str(copy)
