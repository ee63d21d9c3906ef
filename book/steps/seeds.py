"""Run chapters again and again with other seeds: is a theorem claim ever violated, how often does a forecast flip?

    python book/steps/seeds.py --profile smoke --seeds 100 [--chapter 03_dimension ...] [--cores 2] [--minutes 60]

Each run is a fresh process that executes the chapter's code cells in order, without drawing; the libraries are loaded
once. Every result is a file under build/seeds/, named after a digest of all that decides it. The summary,
book/seeds.json, is committed and becomes a table of the scoreboard. The command goes on where either of them ends, so
on another machine, too; a chapter that changes starts anew. Exit status 1 if a theorem claim is violated or a chapter
fails under one of the seeds.
"""

import argparse
import contextlib
import datetime
import importlib
import io
import multiprocessing
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

import chapters

SUMMARY = chapters.ROOT / "book" / "seeds.json"
RESULTS = chapters.ROOT / "build" / "seeds"


def run_cells(chapter: chapters.Chapter, parameters: dict) -> None:
    """Execute the chapter's code cells in one namespace, with these parameters after its own."""
    namespace = {"__name__": "__main__"}
    for number, cell in enumerate(chapter.cells):
        where = f"notebooks/{chapter.name}.md, line {cell.line}, cell {number + 1}"
        exec(compile(cell.source, where, "exec"), namespace)
        if "parameters" in cell.tags:
            namespace |= parameters


def draw_without_rendering(draw, *, size=(7, 4), **_):
    """Stands for `figures.show`: a drawing that fails under another seed is found; its picture is not needed."""
    from matplotlib.figure import Figure

    from prompt_memory.book import figures

    with figures.style("light"):
        draw(Figure(figsize=size))


def run_seed(name: str, profile: str, seed: int, path: Path) -> None:
    """One run, in a process of its own: writes its verdicts, or where it failed, to `path`."""
    import torch

    from prompt_memory import files
    from prompt_memory.book import claims, figures

    chapter = chapters.load(name)
    torch.set_num_threads(chapter.threads)
    figures.show = draw_without_rendering
    recorders, start, error = [], time.process_time(), None
    make = claims.Recorder.__init__

    def remember(self, *arguments, **options):
        make(self, *arguments, **options)
        recorders.append(self)

    claims.Recorder.__init__ = remember
    parameters = {"profile": profile, "seed": seed, "threads": chapter.threads,
                  "models_dir": str(chapters.ROOT / "build" / profile / "models")}  # fmt: skip
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            run_cells(chapter, parameters)
    except Exception as problem:  # whatever it is, it belongs into the table
        place = next((f"line {frame.lineno} of {frame.filename}" for frame in reversed(traceback.extract_tb(
            problem.__traceback__)) if frame.filename.startswith("notebooks/")), "outside the cells")  # fmt: skip
        error = f"{type(problem).__name__}: {problem} ({place})"[:600]
    records = recorders[0].content()["claims"] if recorders else []  # others only show what a violation is
    content = {
        "seed": seed,
        "core_seconds": round(time.process_time() - start, 2),
        "error": error,
        "claims": {record["key"]: [record["kind"], record["verdict"]] for record in records},
    }
    files.write_json(path, content)


def folder(chapter: chapters.Chapter, profile: str) -> Path:
    return RESULTS / profile / chapter.name / chapter.digest


def finished(chapter: chapters.Chapter, profile: str, seeds: range) -> list[dict]:
    """The results there are, in the order of their seeds."""
    files = (folder(chapter, profile) / f"{seed}.json" for seed in seeds)
    return [chapters.read_json(file) for file in files if file.exists()]


def recorded(chapter: chapters.Chapter, profile: str) -> dict:
    """The row of book/seeds.json about the chapter as it is now; {} if there is none."""
    summary = chapters.read_json(SUMMARY) if SUMMARY.exists() else {}
    row = summary.get(profile, {}).get(chapter.name, {})
    return row if row.get("digest") == chapter.digest else {}


def summarise(results: list[dict], earlier: dict) -> dict:
    """How many runs, which claims were violated or runs failed with which seeds, and the verdicts of each forecast.

    `earlier` is a row of the same chapter about the seeds 0 to `seeds` − 1, or {}; results of those are in it already.
    """
    count = earlier.get("seeds", 0)
    results = [result for result in results if result["seed"] >= count]
    violated = {key: list(found) for key, found in earlier.get("violated", {}).items()}
    forecasts = {key: dict(counts) for key, counts in earlier.get("forecasts", {}).items()}
    failed = earlier.get("failed", {}) | {str(result["seed"]): result["error"] for result in results if result["error"]}
    for result in results:
        for key, (kind, verdict) in result["claims"].items():
            if verdict == "violated":
                violated.setdefault(key, []).append(result["seed"])
            if kind == "prediction":
                counts = forecasts.setdefault(key, dict.fromkeys(("hit", "undecided", "missed"), 0))
                counts[verdict] = counts.get(verdict, 0) + 1
    theorems = [sum(kind == "theorem" for kind, _ in result["claims"].values()) for result in results]
    seconds = sum(result["core_seconds"] for result in results)
    return {
        "seeds": count + len(results),
        "theorem_claims": max([*theorems, earlier.get("theorem_claims", 0)]),
        "violated": violated,
        "failed": failed,
        "forecasts": forecasts,
        "core_seconds": round(earlier.get("core_seconds", 0) + seconds, 1),
    }


def gapless(results: list[dict], count: int) -> list[dict]:
    """The results of the seeds from `count` on without a gap, so that a row says all with "seeds 0 to k − 1"."""
    by_seed = {result["seed"]: result for result in results}
    found = []
    while count in by_seed:
        found.append(by_seed[count])
        count += 1
    return found


def commit() -> str:
    result = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=chapters.ROOT, capture_output=True, text=True,
                            check=False)  # fmt: skip
    return result.stdout.strip() or "unknown"


def write_summary(profile: str, seeds: range) -> None:
    """Put what is finished for the present chapters into book/seeds.json; older rows stay until theirs is replaced."""
    from prompt_memory import files

    summary = chapters.read_json(SUMMARY) if SUMMARY.exists() else {}
    rows = summary.setdefault(profile, {})
    for chapter in chapters.all_chapters():
        old = recorded(chapter, profile)
        results = gapless(finished(chapter, profile, seeds), old.get("seeds", 0))
        if results:
            rows[chapter.name] = summarise(results, old) | {
                "digest": chapter.digest,
                "commit": commit(),
                "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
                "processor": chapters.processor(),
            }
    names = [chapter.name for chapter in chapters.all_chapters()]
    summary[profile] = {name: rows[name] for name in names if name in rows}
    files.write_json(SUMMARY, summary)


def run_all(jobs: list[tuple[chapters.Chapter, int]], profile: str, cores: int, deadline: float) -> list[str]:
    """Run the jobs, some at a time, until the deadline; returns one line for each run that went wrong."""
    context, running, troubles, waiting = multiprocessing.get_context("fork"), {}, [], list(reversed(jobs))
    done = 0
    try:
        while running or (waiting and time.monotonic() < deadline):
            while waiting and len(running) < cores and time.monotonic() < deadline:
                chapter, seed = waiting.pop()
                path = folder(chapter, profile) / f"{seed}.json"
                process = context.Process(target=run_seed, args=(chapter.name, profile, seed, path))
                process.start()
                running[process] = chapter.name, seed, path
            time.sleep(0.05)
            for process in [process for process in running if process.exitcode is not None]:
                name, seed, path = running.pop(process)
                done += 1
                if not path.exists():
                    troubles.append(f"{name}, seed {seed}: its process died (exit status {process.exitcode})")
                    chapters.say("FAILED " + troubles[-1])
                    continue
                result = chapters.read_json(path)
                violated = [key for key, (_, verdict) in result["claims"].items() if verdict == "violated"]
                if violated or result["error"]:
                    troubles.append(f"{name}, seed {seed}: {result['error'] or 'violated: ' + ', '.join(violated)}")
                    chapters.say("FAILED " + troubles[-1])
                elif done % 50 == 0:
                    chapters.say(f"{done} of {len(jobs)} runs")
    finally:
        for process in running:
            process.terminate()
    return troubles


def train_models(profile: str, wanted: list[chapters.Chapter]) -> int:
    """The frozen models of these chapters, where they are missing."""
    status = 0
    for model in sorted({model for chapter in wanted for model in chapter.models[profile]}):
        path = chapters.ROOT / "build" / profile / "models" / f"{model}.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            step = [sys.executable, str(Path(__file__).parent / "model.py"), model, "--output", str(path)]
            status |= subprocess.run(step, cwd=chapters.ROOT, check=False).returncode
    return status


def main() -> int:
    parser = argparse.ArgumentParser(description="Run chapters with many seeds.")
    parser.add_argument("--profile", default="smoke", choices=chapters.PROFILES)
    parser.add_argument("--seeds", type=int, default=100, help="how many seeds, from 0 on (default 100)")
    parser.add_argument("--chapter", action="append", default=[], help="only this one (may be repeated)")
    parser.add_argument("--cheap", type=float, help="only chapters that declare at most as many core-seconds")
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no run after so many")
    parser.add_argument("--no-summary", action="store_true", help="leave book/seeds.json as it is")
    options = parser.parse_args()
    if options.seeds < 1 or options.cores < 1:
        print("SEEDS and CORES must be at least 1.")
        return 2
    try:
        names = [chapters.find(name) for name in options.chapter] or chapters.table_of_contents()
    except ValueError as error:
        print(error)
        return 2
    profile, seeds = options.profile, range(options.seeds)
    wanted = [chapters.load(name) for name in names]
    wanted = [chapter for chapter in wanted
              if options.cheap is None or chapter.core_seconds[profile] <= options.cheap]  # fmt: skip
    if train_models(profile, wanted):
        return 1
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "HF_HUB_OFFLINE": "1"}
    os.chdir(chapters.ROOT)
    for module in ("torch", "scipy.stats", "scipy.optimize", "matplotlib.figure", "myst_nb", "prompt_memory.measure",
                   "prompt_memory.tune", "prompt_memory.book.figures", "prompt_memory.book.claims"):  # fmt: skip
        importlib.import_module(module)
    # Seed by seed: whenever it stops, every chapter has had about as many.
    jobs = [(chapter, seed) for seed in seeds for chapter in wanted
            if seed >= recorded(chapter, profile).get("seeds", 0)
            and not (folder(chapter, profile) / f"{seed}.json").exists()]  # fmt: skip
    known = len(wanted) * len(seeds) - len(jobs)
    chapters.say(f"{len(jobs)} runs of {len(wanted)} chapters in {profile} ({known} are known)")
    run_all(jobs, profile, options.cores, time.monotonic() + 60 * options.minutes)
    if not options.no_summary:
        write_summary(profile, seeds)
    rows = [(chapter, summarise(finished(chapter, profile, seeds), recorded(chapter, profile))) for chapter in wanted]
    rows = [(chapter, row) for chapter, row in rows if row["seeds"]]
    bad = [(chapter, row) for chapter, row in rows if row["violated"] or row["failed"]]
    for chapter, row in bad:
        for key, found in row["violated"].items():
            print(f"  {chapter.name}/{key} is violated with seed {', '.join(map(str, found))}")
        for seed, message in row["failed"].items():
            print(f"  {chapter.name} fails with seed {seed}: {message}")
    runs = sum(row["seeds"] for _, row in rows)
    print(f"{runs} runs, {sum(row['core_seconds'] for _, row in rows):.0f} core-seconds: "
          f"{len(bad)} of {len(rows)} chapters with a violation or a failure.")  # fmt: skip
    return 1 if bad or not rows else 0


if __name__ == "__main__":
    sys.exit(chapters.guard(main))
