"""Fail the build if a theorem claim is violated, and show which; write the summary line otherwise."""

import argparse
import sys

import chapters

from prompt_memory.book import verdicts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", required=True, choices=chapters.PROFILES)
    options = parser.parse_args()
    build = chapters.ROOT / "build" / options.profile
    box = verdicts.Verdicts(chapters.read_json(build / "claims.json")["claims"])
    violated = [claim for claim in box.claims if claim["verdict"] == "violated"]
    if not violated:
        (build / "verdict.txt").write_text(box.summary() + "\n", encoding="utf-8")
        return 0
    keys = ", ".join(f"{claim['chapter']}/{claim['key']}" for claim in violated)
    print(f"FAILED verdict: {len(violated)} of {box.summary()}. Violated: {keys}", flush=True)
    for claim in violated:
        _, text, bound, measured, interval, *_, points = box.row(claim)
        print(f"  {claim['chapter']}/{claim['key']}: {text}")
        print(f"      must be {bound}, measured {measured}, interval {interval}, points: {points}", flush=True)
    print(f"  The whole scoreboard: {build / 'scoreboard.md'} and {build / 'scoreboard.html'}", flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(chapters.guard(main))
