"""Run the Snakefile and show a reader what happens: which notebook, how many of how many, and what it cost.

python book/steps/build.py --profile standard --cores 2 [--notebook 01_counting [--set "seed=3"]] [--publish]
"""

import argparse
import contextlib
import fcntl
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import assemble
import chapters

FLAGS = (
    "--keep-going",  # one notebook that fails does not take the others with it
    "--rerun-incomplete",
    "--nolock",  # we hold a lock of our own, which no killed build can leave behind
    "--max-checksum-file-size", str(2**40),  # compare contents, not dates, whatever a file's size
    "--quiet", "host", "reason",
    "--nocolor",
)  # fmt: skip


def command(profile: str, cores: int, targets: list[str], force: list[str]) -> list[str]:
    forced = ["--forcerun", *force] if force else []
    snakefile = str(chapters.ROOT / "book" / "Snakefile")
    return [
        sys.executable, "-m", "snakemake", "-s", snakefile, "--cores", str(cores), *FLAGS,
        "--config", f"profile={profile}", *forced, "--", *targets,
    ]  # fmt: skip


def environment(build: Path) -> dict[str, str]:
    """What Snakemake and its jobs see: no profile of the reader's, and caches in a folder that can be written."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SNAKEMAKE_")}
    cache = build.parent / ".cache"
    return kept | {"XDG_CACHE_HOME": str(cache), "MPLCONFIGDIR": str(cache / "matplotlib")}


def end_with_parent() -> None:
    """In the child, on Linux: a build that is killed takes Snakemake with it, which then ends its jobs."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def run(arguments: list[str], log: Path, lock: int) -> tuple[int, list[str], int]:
    """Run Snakemake; its own words go to `log`, those of the steps to the screen.

    It inherits the file descriptor `lock`: while it lives, even without us, no other build of the profile starts.
    Returns the exit status, the steps' failure messages and how many notebooks were executed.
    """
    start, done, failures, running = time.monotonic(), 0, [], False
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=stream, text=True, cwd=chapters.ROOT, env=environment(log.parent),
            pass_fds=(lock,), preexec_fn=end_with_parent,
        )  # fmt: skip
        try:
            for line in process.stdout:
                line = line.rstrip()
                notebook_ended = ": done in " in line or (line.startswith("FAILED") and ", code cell" in line)
                done += notebook_ended
                if line.startswith("FAILED") or (failures and line.startswith("  ")):  # details are indented
                    failures.append(line)
                running = running or notebook_ended or ": started" in line
                count = f"{done}/{planned(log)}" if running else "-"
                print(f"[{clock(time.monotonic() - start)}  {count}]  {line}", flush=True)
        finally:
            # An interrupt reaches Snakemake too; it needs a moment to end its jobs and to unlock the folder.
            process.wait()
    return process.returncode, failures, done


def planned(log: Path) -> int | str:
    """How many notebooks this run executes, from Snakemake's table of jobs."""
    with contextlib.suppress(OSError):
        count = len(re.findall(r"^notebook_\S+ +1\b", log.read_text(encoding="utf-8"), re.MULTILINE))
        if count:
            return count
    return "?"


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60:d}:{int(seconds) % 60:02d}"


def costs(profile: str) -> str:
    """Declared against used core-seconds of every chapter."""
    lines = [f"{'chapter':32}{'threads':>8}{'seconds':>10}{'core-seconds':>14}{'declared':>10}"]
    declared = used = 0.0
    for chapter in chapters.all_chapters():
        path = chapters.ROOT / "build" / profile / "timings" / f"{chapter.name}.json"
        if not path.exists():
            lines.append(f"{chapter.name:32}{chapter.threads:8}{'not finished':>24}")
            continue
        timing = chapters.read_json(path)
        over = "  <- more than declared" if timing["core_seconds"] > timing["declared_core_seconds"] else ""
        lines.append(
            f"{chapter.name:32}{timing['threads']:8}{timing['wall_seconds']:10.1f}{timing['core_seconds']:14.1f}"
            f"{timing['declared_core_seconds']:10g}{over}"
        )
        declared, used = declared + timing["declared_core_seconds"], used + timing["core_seconds"]
    lines.append(f"{'sum':32}{'':8}{'':10}{used:14.1f}{declared:10g}")
    return "\n".join(lines)


def summary_of_failure(profile: str, failures: list[str], log: Path) -> str:
    """What went wrong, and where the remains are."""
    build = chapters.ROOT / "build" / profile
    subprocess.run(
        [sys.executable, str(chapters.ROOT / "book/steps/collect.py"), "--profile", profile, "--partial"], check=False
    )
    lines = ["", "The book was NOT built."]
    lines += [f"  {failure}" for failure in failures]
    if not failures:
        lines += ["  " + line for line in log.read_text(encoding="utf-8").strip().splitlines()[-12:]]
    if list((build / "failed").glob("*.ipynb")):
        lines.append(f"Half-executed notebooks and tracebacks: {build / 'failed'}")
    if (build / "scoreboard.md").exists():
        lines.append(f"Scoreboard of the chapters that finished: {build / 'scoreboard.md'}")
    last = chapters.ROOT / "book" / "_build" / "html" / "index.html"
    lines.append(f"The last good book is untouched: {last}" if last.exists() else "There is no earlier book.")
    return "\n".join(lines)


def settings(text: str) -> tuple[str | None, list[str]]:
    """The profile that SET="seed=3 profile=full" names, or None, and the other settings."""
    each = shlex.split(text)
    profiles = [setting.partition("=")[2] for setting in each if setting.startswith("profile=")]
    return (profiles[-1] if profiles else None), [setting for setting in each if not setting.startswith("profile=")]


def run_with(name: str, profile: str, given: list[str], build: Path) -> int:
    """Execute a notebook with other parameters than the book's, beside it: its models are there."""
    step = [sys.executable, str(chapters.ROOT / "book/steps/execute.py"), name, "--profile", profile]
    each = [part for setting in given for part in ("--set", setting)]
    status = subprocess.run([*step, *each], cwd=chapters.ROOT, env=environment(build), check=False).returncode
    if not status:
        print(f"Executed notebook, which the book does not use: {build / 'set' / 'notebooks' / (name + '.ipynb')}")
        print(f"Its claims: {build / 'set' / 'claims' / (name + '.json')}")
    return status


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the book, or one notebook of it.")
    parser.add_argument("--profile", default="standard")
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--notebook", help="execute only this one, even if nothing changed")
    parser.add_argument("--set", default="", help='other parameters for it: "seed=3 profile=full"')
    parser.add_argument("--publish", action="store_true", help="make the result the book in book/_build/html")
    options = parser.parse_args()
    named, given = settings(options.set)
    options.profile = named or options.profile
    if options.notebook is None and options.set:
        print('SET is for one notebook: make notebook NAME=01 SET="seed=3".')
        return 2
    if options.profile not in chapters.PROFILES:
        print(f"Unknown PROFILE={options.profile}: choose one of {', '.join(chapters.PROFILES)}.")
        return 2
    if options.cores < 1:
        print(f"CORES must be at least 1, not {options.cores}.")
        return 2
    profile, build = options.profile, chapters.ROOT / "build" / options.profile
    targets, force = ["all"], []
    try:
        chapters.all_chapters()
        if options.notebook is not None:
            name = chapters.find(options.notebook)
            targets = force = [f"notebook_{name}"]
            if given:
                rules = [model.replace("-", "_") for model in chapters.load(name).models[options.profile]]
                targets, force = [f"model_{rule}" for rule in rules], []
    except ValueError as error:
        print(error)
        return 2
    build.mkdir(parents=True, exist_ok=True)
    lock = (build / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when this process ends, however it ends
    except BlockingIOError:
        print(f"Another build of the profile {profile} is running; waiting for it.", flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)
    log = build / "snakemake.log"
    status, failures, executed = 0, [], 0
    if targets:
        status, failures, executed = run(command(profile, options.cores, targets, force), log, lock.fileno())
    if status:
        print(summary_of_failure(profile, failures, log))
        return 1
    if given:
        return run_with(name, profile, given, build)
    if options.notebook is not None:
        print(f"Executed notebook: {build / 'notebooks' / (name + '.ipynb')}")
        print(f"Its claims: {build / 'claims' / (name + '.json')}; `make book` puts it into the book.")
        return 0
    html = assemble.publish(profile) if options.publish else build / "html"
    if executed:
        print("\n" + costs(profile))
    verdict = (build / "verdict.txt").read_text(encoding="utf-8").strip()
    print(f"\n{verdict}. Executed {executed} of {len(chapters.all_chapters())} notebooks; the others had not changed.")
    print(f"The book (profile {profile}) is ready: open {html / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(chapters.guard(main))
