"""Execute one chapter: text notebook in, executed notebook, claims and timings out.

    python book/steps/execute.py 01_counting --profile smoke [--set seed=3]

Everything is written under temporary names and renamed on success, so a file that is there is complete. A notebook
that fails is kept, half executed, under build/<profile>/failed/ together with the claims it had recorded, and one
message names the notebook, the cell and the error. With other parameters all of this lies in build/<profile>/set,
which no book reads.
"""

import argparse
import ast
import json
import os
import re
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import chapters
import yaml

ESSENTIAL = ("profile", "seed", "threads", "claims_path", "models_dir")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def declared_parameters(chapter: chapters.Chapter) -> set[str]:
    """Names assigned in the first cell tagged `parameters`."""
    cell = next((cell for cell in chapter.cells if "parameters" in cell.tags), None)
    if cell is None:
        raise ValueError(f"{chapter.name}: no cell is tagged `parameters`.")
    names = set()
    for statement in ast.parse(cell.source).body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def check_parameters(chapter: chapters.Chapter, given: dict) -> None:
    """ValueError if the notebook lacks an essential parameter or is given one that it does not declare."""
    declared = declared_parameters(chapter)
    if missing := [name for name in ESSENTIAL if name not in declared]:
        raise ValueError(f"{chapter.name}: the parameters cell does not declare {', '.join(missing)}.")
    if unknown := [name for name in given if name not in declared]:
        raise ValueError(
            f"{chapter.name}: unknown parameter {', '.join(unknown)}; it declares {', '.join(sorted(declared))}."
        )


def run_kernel(chapter: chapters.Chapter, parameters: dict, output: Path, timeout: int) -> None:
    """Run the notebook through papermill in a kernel of this Python, with the chapter's number of threads."""
    # jsonschema would build a grammar of IRIs at import, a second of each notebook; no format of a notebook is an IRI.
    sys.modules.setdefault("rfc3987_syntax", None)
    import jupytext
    import papermill

    os.environ |= dict.fromkeys(THREAD_VARIABLES, str(chapter.threads))
    os.environ |= {"PYTHONHASHSEED": "0", "JUPYTER_PREFER_ENV_PATH": "1"}
    for name in ("MATPLOTLIBRC", "MPLBACKEND", "PYTHONSTARTUP"):  # a reader's habits must not change a result
        os.environ.pop(name, None)
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # progress bars want a widget that is not used
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["IPYTHONDIR"] = scratch  # a user's start-up files must not change a result
        papermill.execute_notebook(
            jupytext.reads(chapter.text, fmt="md:myst"), str(output), parameters=parameters, kernel_name="python3",
            cwd=str(chapters.ROOT), progress_bar=False, execution_timeout=timeout,
        )  # fmt: skip


def check_every_cell_ran(path: Path) -> None:
    """RuntimeError unless every code cell was completed: papermill takes `sys.exit(0)` in a cell for a good end."""
    for number, cell in enumerate(cell for cell in chapters.read_json(path)["cells"] if cell["cell_type"] == "code"):
        status = cell["metadata"].get("papermill", {}).get("status")
        if "".join(cell["source"]).strip() and (status != "completed" or cell["execution_count"] is None):
            raise RuntimeError(
                f"the run ended before the end: cell {number + 1} was not executed (sys.exit in a cell?)"
            )


def hide_injected(path: Path) -> None:
    """Hide the cell that papermill adds: the reader sees the declared parameters, the page's end tells the values."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in filter(is_injected, notebook["cells"]):
        cell["metadata"]["tags"].append("remove-cell")
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False), encoding="utf-8")


def failed_cell(chapter: chapters.Chapter, output: Path) -> str:
    """Where a half-executed notebook stopped: number, line and first statement of the cell."""
    if not output.exists():
        return "before the first cell"
    # papermill adds a cell of its own, the injected parameters; with those the notebook cannot fail by itself.
    cells = [cell for cell in json.loads(output.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    states = [cell["metadata"].get("papermill", {}).get("status") for cell in cells if not is_injected(cell)]
    started = [index for index, state in enumerate(states) if state not in (None, "pending")]
    if not started:
        return "before the first cell"
    # An error marks its cell `failed`. If the kernel dies, papermill says `completed`: then it is the last one.
    stopped = states.index("failed") if "failed" in states else started[-1]
    source = chapter.cells[stopped]
    first = next((line for line in source.source.splitlines() if line.strip()), "")
    return f"code cell {stopped + 1} of {len(chapter.cells)} (notebooks/{chapter.name}.md, line {source.line}: {first})"


def is_injected(cell: dict) -> bool:
    return "injected-parameters" in cell["metadata"].get("tags", [])


def describe(error: Exception, timeout: int) -> tuple[str, str]:
    """The error in one line, and the whole traceback."""
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    if isinstance(error, PapermillExecutionError):
        value = (error.evalue.strip().splitlines() or [""])[0]
        return f"{error.ename}: {value}".rstrip(": ")[:400], _ANSI.sub("", "\n".join(error.traceback))
    if isinstance(error, DeadKernelError):
        return "the kernel died (out of memory, or a crash in compiled code)", str(error)
    if isinstance(error, CellTimeoutError):
        return f"the cell ran longer than {timeout} s", str(error)
    return f"{type(error).__name__}: {error}"[:400], repr(error)


def keep_failure(chapter, build: Path, running: dict[str, Path], message: str, details: str) -> None:
    """Move what a failed run left into build/<profile>/failed/, beside its message."""
    failed = build / "failed"
    failed.mkdir(parents=True, exist_ok=True)
    (failed / f"{chapter.name}.txt").write_text(f"{message}\n\n{details}\n", encoding="utf-8")
    for suffix, path in running.items():
        if path.exists():
            shutil.move(path, failed / f"{chapter.name}.{suffix}")


def execute(chapter: chapters.Chapter, profile: str, extra: dict, timeout: int) -> str | None:
    """Execute one chapter; None on success, the message on failure.

    With other parameters (`extra`) everything is written to build/<profile>/set, of which the book knows nothing.
    """
    build = chapters.ROOT / "build" / profile
    models = build / "models"
    build = build / "set" if extra else build
    running = {
        "ipynb": build / "notebooks" / f".{chapter.name}.running.ipynb",
        "claims.json": build / "claims" / f".{chapter.name}.running.json",
        "timings.json": build / "claims" / f".{chapter.name}.running.timings.json",
    }
    for path in running.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
    parameters = {
        "profile": profile,
        "threads": chapter.threads,
        "claims_path": str(running["claims.json"]),
        "models_dir": str(models),
    } | extra
    check_parameters(chapter, parameters)
    start, used = time.monotonic(), core_seconds()
    try:
        run_kernel(chapter, parameters, running["ipynb"], timeout)
        check_every_cell_ran(running["ipynb"])
        if not running["claims.json"].exists():
            raise RuntimeError("it recorded no claims: make a Recorder with path=claims_path")
    except Exception as error:  # whatever it was, the reader gets one message and the half-executed notebook
        what, details = describe(error, timeout)
        message = f"FAILED {chapter.name}, {failed_cell(chapter, running['ipynb'])}: {what}"
        keep_failure(chapter, build, running, message, details)
        return message
    timings = {
        "chapter": chapter.name,
        "threads": chapter.threads,
        "declared_core_seconds": chapter.core_seconds[profile],
        "core_seconds": round(core_seconds() - used, 2),
        "wall_seconds": round(time.monotonic() - start, 2),
        "timings": json.loads(running["timings.json"].read_text(encoding="utf-8")),
    }
    hide_injected(running["ipynb"])
    for old in (build / "failed").glob(f"{chapter.name}.*"):
        old.unlink()
    timings_path = build / "timings" / f"{chapter.name}.json"
    timings_path.parent.mkdir(parents=True, exist_ok=True)
    timings_path.write_text(json.dumps(timings, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    running["timings.json"].unlink()
    os.replace(running["claims.json"], build / "claims" / f"{chapter.name}.json")
    os.replace(running["ipynb"], build / "notebooks" / f"{chapter.name}.ipynb")
    seconds, cores = timings["wall_seconds"], timings["core_seconds"]
    chapters.say(f"{chapter.name}: done in {seconds:.1f} s ({cores:.1f} core-seconds)")
    return None


def core_seconds() -> float:
    """Processor time of all children that have ended: the kernel and what it started."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def parse_setting(text: str) -> tuple[str, object]:
    """`seed=3` as ("seed", 3)."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set takes name=value; got {text!r}.")
    return name, yaml.safe_load(value)


def main() -> int:
    parser = argparse.ArgumentParser(description="Execute one chapter.")
    parser.add_argument("name")
    parser.add_argument("--profile", default="standard", choices=chapters.PROFILES)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another notebook parameter")
    parser.add_argument("--timeout", type=int, help="seconds that one cell may take (default: from what it declares)")
    options = parser.parse_args()
    try:
        chapter = chapters.load(options.name)
        # Generous: it ends a cell that hangs and must not end one on a slow machine.
        timeout = options.timeout or int(300 + 20 * chapter.core_seconds[options.profile])
        plural = "thread" if chapter.threads == 1 else "threads"
        declared = f"{chapter.core_seconds[options.profile]:g} core-seconds declared"
        chapters.say(f"{chapter.name}: started ({chapter.threads} {plural}, {declared})")
        message = execute(chapter, options.profile, dict(map(parse_setting, options.set)), timeout)
    except ValueError as error:
        message = f"FAILED {error}"
    if message:
        chapters.say(message)
    return 1 if message else 0


if __name__ == "__main__":
    sys.exit(chapters.guard(main))
