"""What did a change do to the science? Compare a profile's claims with the committed reference.

Claims are matched by chapter and key. The reference says on which processor it was made. Numbers are equal if they
differ by at most 1e-6 relative or 1e-9 absolute: far above the rounding noise of another processor, far below anything
a sentence of the book says. A claim that is marked `searched` comes out of an iterative search, whose path another
processor changes: there, *on another processor only*, it is the same if its intervals overlap or its numbers differ by
at most 35 % or 0.05, and its verdict moves by no more than one step of hit, undecided, missed. Exit status 1 if
anything differs, so that a reviewer sees it; `--accept` makes the present claims the reference.
"""

import argparse
import math
import sys
from pathlib import Path

import chapters

from prompt_memory import files

RELATIVE, ABSOLUTE = 1e-6, 1e-9
SEARCHED_RELATIVE, SEARCHED_ABSOLUTE = 0.35, 0.05
STEPS = ("hit", "undecided", "missed")
REFERENCE = chapters.ROOT / "book" / "reference_claims.json"
# What a search moves: these follow from the measurement, and the point that came closest may be another one.
MEASURED = {"measured", "interval", "margin", "limit", "closest", "tightest", "violated_points", "undecided_points"}
AT_THE_POINT = {"bound", "predicted", "detectable", "samples"}


def same(old, new, relative: float = RELATIVE, absolute: float = ABSOLUTE) -> bool:
    """Equal, up to the tolerance for numbers."""
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(same(old[key], new[key], relative, absolute) for key in old)
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(same(a, b, relative, absolute) for a, b in zip(old, new, strict=True))
    numbers = isinstance(old, int | float) and isinstance(new, int | float)
    if numbers and not isinstance(old, bool) and not isinstance(new, bool):
        return math.isclose(old, new, rel_tol=relative, abs_tol=absolute)
    return old == new


def same_search(old: dict, new: dict) -> bool:
    """Whether two records of a searched claim, of two processors, agree within what is stated above."""
    verdicts = old["verdict"], new["verdict"]
    if verdicts[0] != verdicts[1] and not (
        set(verdicts) <= set(STEPS) and abs(STEPS.index(verdicts[0]) - STEPS.index(verdicts[1])) == 1
    ):
        return False
    rest = (old.keys() | new.keys()) - MEASURED - AT_THE_POINT - {"verdict"}
    if not all(same(old.get(field), new.get(field)) for field in rest):
        return False
    if old["tightest"] != new["tightest"]:
        return True  # another point came closest: what is shown belongs to it
    if not all(same(old.get(field), new.get(field)) for field in AT_THE_POINT):
        return False
    ends = [record.get("interval") for record in (old, new)]
    if all(ends) and ends[0][0] <= ends[1][1] and ends[1][0] <= ends[0][1]:
        return True
    return same(old["measured"], new["measured"], SEARCHED_RELATIVE, SEARCHED_ABSOLUTE)


def differences(old: dict, new: dict, *, same_processor: bool = True) -> list[str]:
    """One line for each claim that was added, removed or changed, and for each field of a changed one."""
    before = {f"{claim['chapter']}/{claim['key']}": claim for claim in old["claims"]}
    after = {f"{claim['chapter']}/{claim['key']}": claim for claim in new["claims"]}
    lines = []
    heads = [content | content["chapters"] for content in (old, new)]  # seeds and threads chapter by chapter
    follow = {"claims", "chapters", "comparisons", "processor"}  # below; just now; counted from the claims; allowed for
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
            a, b = before[name], after[name]
            if not same_processor and a.get("searched") and b.get("searched") and same_search(a, b):
                continue
            fields = sorted(a.keys() | b.keys())
            pairs = [(field, a.get(field), b.get(field)) for field in fields]
            lines += [f"changed  {name}: {f}: {a} -> {b}" for f, a, b in pairs if not same(a, b)]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare claims with the committed reference.")
    parser.add_argument("--profile", default="standard", choices=chapters.PROFILES)
    parser.add_argument("--accept", action="store_true", help="make the present claims the reference")
    options = parser.parse_args()
    path: Path = chapters.ROOT / "build" / options.profile / "claims.json"
    if not path.exists():
        print(f"No claims to compare: run `make book PROFILE={options.profile}` first.")
        return 2
    if options.accept and options.profile != "standard":
        print(f"The reference holds the claims of profile standard: those of {options.profile} are not accepted.")
        return 2
    if options.accept:
        files.write_json(REFERENCE, chapters.read_json(path) | {"processor": chapters.processor()})
        print(f"{REFERENCE.relative_to(chapters.ROOT)} now holds the claims of profile {options.profile}.")
        return 0
    if not REFERENCE.exists():
        print("There is no reference yet: `make compare ACCEPT=1` makes the present claims the reference.")
        return 2
    reference, content = (chapters.read_json(file) for file in (REFERENCE, path))
    here, there = chapters.processor(), reference.get("processor")
    lines = differences(reference, content, same_processor=here == there)
    allowed = f"relative {RELATIVE:g}, absolute {ABSOLUTE:g}"
    if here != there:
        print(f"The reference was made on {there}; this is {here}.")
        allowed += f"; searched claims: overlapping intervals, or {SEARCHED_RELATIVE:g} and {SEARCHED_ABSOLUTE:g}"
    print("\n".join(lines) or f"All claims agree with the reference ({allowed}).")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(chapters.guard(main))
