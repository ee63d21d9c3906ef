"""What did a change do to the science? Compare a profile's claims with the committed reference.

Claims are matched by chapter and key. Numbers are equal if they differ by at most 1e-6 relative or 1e-9 absolute: far
above the rounding noise of another processor, far below anything a sentence of the book says. Exit status 1 if
anything differs, so that a reviewer sees it; `--accept` makes the present claims the reference.
"""

import argparse
import json
import math
import shutil
import sys
from pathlib import Path

import chapters

RELATIVE, ABSOLUTE = 1e-6, 1e-9
REFERENCE = chapters.ROOT / "book" / "reference_claims.json"


def same(old, new) -> bool:
    """Equal, up to the tolerance for numbers."""
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(same(old[key], new[key]) for key in old)
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(same, old, new))
    numbers = isinstance(old, int | float) and isinstance(new, int | float)
    if numbers and not isinstance(old, bool) and not isinstance(new, bool):
        return math.isclose(old, new, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    return old == new


def differences(old: dict, new: dict) -> list[str]:
    """One line for each claim that was added, removed or changed, and for each field of a changed one."""
    before = {f"{claim['chapter']}/{claim['key']}": claim for claim in old["claims"]}
    after = {f"{claim['chapter']}/{claim['key']}": claim for claim in new["claims"]}
    lines = []
    heads = [content | content["chapters"] for content in (old, new)]  # seeds and threads chapter by chapter
    follow = {"claims", "chapters", "comparisons"}  # below; just now; counted from the claims
    for field in sorted((heads[0].keys() | heads[1].keys()) - follow):
        a, b = (head.get(field) for head in heads)
        if not same(a, b):
            lines.append(f"{field}: {a} -> {b}")
    for name in sorted(before.keys() | after.keys()):
        if name not in after:
            lines.append(f"removed  {name}: {before[name]['statement']}")
        elif name not in before:
            lines.append(f"added    {name}: {after[name]['statement']} ({after[name]['verdict']})")
        else:
            fields = sorted(before[name].keys() | after[name].keys())
            pairs = [(field, before[name].get(field), after[name].get(field)) for field in fields]
            lines += [f"changed  {name}: {f}: {a} -> {b}" for f, a, b in pairs if not same(a, b)]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare claims with the committed reference.")
    parser.add_argument("--profile", default="standard", choices=chapters.PROFILES)
    parser.add_argument("--accept", action="store_true", help="make the present claims the reference")
    options = parser.parse_args()
    claims: Path = chapters.ROOT / "build" / options.profile / "claims.json"
    if not claims.exists():
        print(f"No claims to compare: run `make book PROFILE={options.profile}` first.")
        return 2
    if options.accept and options.profile != "standard":
        print(f"The reference holds the claims of profile standard: those of {options.profile} are not accepted.")
        return 2
    if options.accept:
        shutil.copy(claims, REFERENCE)
        print(f"{REFERENCE.relative_to(chapters.ROOT)} now holds the claims of profile {options.profile}.")
        return 0
    if not REFERENCE.exists():
        print("There is no reference yet: `make compare ACCEPT=1` makes the present claims the reference.")
        return 2
    lines = differences(*(json.loads(path.read_text(encoding="utf-8")) for path in (REFERENCE, claims)))
    print("\n".join(lines) or f"All claims agree with the reference (relative {RELATIVE:g}, absolute {ABSOLUTE:g}).")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
