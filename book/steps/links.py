"""Ask every address outside the book whether it still answers: `make links`, weekly in CI.

Not a part of the build, which needs no network. An address is broken if nobody answers or the answer is 404 or 410;
who refuses a program (401, 403, 429, an error of the server) is named, and does not fail.
"""

import argparse
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import chapters
from bs4 import BeautifulSoup

GONE = (404, 410)
HEADERS = {"User-Agent": "Mozilla/5.0 (compatible; links of a book)"}


def external(folder: Path) -> dict[str, str]:
    """Every address that a link of a page leads to, without its fragment, and the first page that has it."""
    found = {}
    for path in sorted(folder.rglob("*.html")):
        for link in BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser").select("a[href^=http]"):
            found.setdefault(link["href"].partition("#")[0], str(path.relative_to(folder)))
    return found


def ask(address: str, tries: int = 3, pause: float = 5.0) -> int | str:
    """The status that an address answers, or why it does not; a network that stumbles is asked again."""
    for attempt in range(tries):
        try:
            request = urllib.request.Request(address, headers=HEADERS)
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except (OSError, ValueError) as error:
            reason = str(getattr(error, "reason", error))
        if attempt + 1 < tries:
            time.sleep(pause)
    return reason


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    if not (options.folder / "index.html").exists():
        print("There is no book yet: run make book.")
        return 2
    found = external(options.folder)
    with ThreadPoolExecutor(8) as pool:
        answers = dict(zip(found, pool.map(ask, found), strict=True))
    broken = {address for address, answer in answers.items() if isinstance(answer, str) or answer in GONE}
    for address, answer in answers.items():
        if address in broken:
            print(f"FAILED {address} on {found[address]}: {answer}")
        elif answer >= 400:
            print(f"not known: {address} on {found[address]} answers {answer}")
    print(f"{len(found)} addresses, {len(broken)} broken")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(chapters.guard(main))
