"""All figures of one model, and as rows of text."""

import contextlib
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

from prompt_memory.bench.comparison import equal_steps, equal_success, scaling, strings_of
from prompt_memory.bench.settings import Settings
from prompt_memory.bench.timing import geometric_mean, peak_memory_gib
from prompt_memory.book.verdicts import number
from prompt_memory.network.interop import export_error
from prompt_memory.pretrain import FrozenModel


def compare(frozen: FrozenModel, settings: Settings, *, seed: int = 0, say: Callable[[str], None] = lambda _: None):
    """All figures of one model, as a dictionary; `say` is told what is being measured.

    Torch's number of threads is used as it is, and one thread besides.
    """
    model = frozen.transformer.require_finite()
    device, threads = model.embedding.device, torch.get_num_threads()
    start = time.perf_counter()
    sample = strings_of(frozen, 32, min(64, model.config.context), generator=torch.Generator().manual_seed(seed))
    report = {"settings": asdict(settings), "seed": seed} | surroundings(device)
    report["export_error"] = export_error(model, sample)
    say("steps per second")
    report["equal_steps"] = equal_steps(frozen, 4, 12, settings, seed=seed)
    if device.type == "cpu" and threads > 1:
        say("steps per second on one thread")
        with _threads(1):
            report["equal_steps_one_thread"] = equal_steps(frozen, 4, 12, settings, seed=seed)
    report["equal_success"] = []
    for m in settings.lengths:
        say(f"time to equal success, m = {m}")
        report["equal_success"].append(equal_success(frozen, m, settings, seed=seed))
    for key in ("ratio", "full_batch_ratio"):
        report[f"equal_success_{key}"] = geometric_mean([result[key] for result in report["equal_success"]])
    say("strings per second")
    report["strings_per_second"] = scaling(frozen, settings, seed=seed)
    report["peak_memory_gib"] = peak_memory_gib()
    if device.type == "cuda":
        report["peak_device_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    report["seconds"] = time.perf_counter() - start
    return report


def quick(frozen: FrozenModel, *, m: int = 2, seed: int = 0) -> dict:
    """A small comparison for a page: `surroundings`, `equal_steps` at m = 4, n = 12 and `equal_success` at m.

    Thirty to sixty core-seconds with the model "natural"; `rows` turns it into a table.
    """
    settings = Settings(repetitions=3, strings=6, trials=8, longest=12, matrices=(1024,))
    return surroundings(frozen.transformer.embedding.device) | {
        "equal_steps": equal_steps(frozen, 4, 12, settings, seed=seed),
        "equal_success": [equal_success(frozen, m, settings, seed=seed)],
    }


def surroundings(device: torch.device) -> dict:
    """Where the times were taken: machine, versions, device, threads."""
    names = ("torch", "transformers", "peft", "numpy")
    return {
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "system": platform.platform()},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in names},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
    }


def rows(report: Mapping) -> list[tuple[str, str]]:
    """A report of `compare` or `quick` as rows of text: what, and how much."""
    machine = report["machine"]
    threads = _threads_of(report)
    table = [
        ("device", f"{report['device']}, {threads}; {machine['processor']} with {machine['cores']} cores"),
        ("versions", ", ".join(f"{name} {text}" for name, text in report["versions"].items())),
    ]
    if "export_error" in report:
        table.append(("largest difference of the two models' logits", f"{report['export_error']:.2g}"))
    for key in ("equal_steps", "equal_steps_one_thread"):
        if key not in report:
            continue
        steps = report[key]
        at = f" (m = {steps['m']}, n = {steps['n']}, {_threads_of(steps)})"
        low, high = steps["ratio_range"]
        table += [
            (f"steps of a string per second, one at a time{at}", f"{steps['single_steps_per_second']:.0f}"),
            (f"steps of a string per second, batched{at}", f"{steps['batched_steps_per_second']:.0f}"),
            (f"ratio at equal steps{at}", f"{steps['ratio']:.1f}, repetitions from {low:.1f} to {high:.1f}"),
            (f"matrix products in GFLOP/s{at}", f"{steps['matmul_flops_per_second'] / 1e9:.1f}"),
            (f"part of it that the batch uses{at}", f"{100 * steps['matmul_fraction']:.0f} %"),
        ]
    for result in report["equal_success"]:
        at = f" (m = {result['m']}, n = {result['n']})"
        solved = f"{{}} of {result['strings']} solved in {{:.2f}} s"
        full = f"a string in a batch of {result['full_batch_strings']}"
        table += [
            (f"strings one at a time{at}", solved.format(result["single_solved"], result["single_seconds"])),
            (f"the same strings batched{at}", solved.format(result["batched_solved"], result["batched_seconds"])),
            (f"ratio of time, batched solving at least as many{at}", _ratio(result["ratio"])),
            (f"ratio of time for {full}{at}", _ratio(result["full_batch_ratio"])),
            (f"solved, {full}{at}", f"{100 * result['full_batch_solved_share']:.0f} %"),
            (f"n50 one at a time, batched (m = {result['m']})", f"{result['n']}, {number(result['batched_n50'])}"),
        ]
    if "strings_per_second" in report:
        table += [
            ("geometric mean over m of the ratio of time at equal success", _ratio(report["equal_success_ratio"])),
            ("the same for a string in a full batch", _ratio(report["equal_success_full_batch_ratio"])),
        ]
        table += [(f"strings per second, {count} strings (m = 2, n = 6)", f"{rate:.0f}")
                  for count, rate in report["strings_per_second"]]  # fmt: skip
        table.append(("peak memory", f"{report['peak_memory_gib']:.2f} GiB"))
        table.append(("time of all measurements", f"{report['seconds']:.0f} s"))
    return table


def _threads_of(report: Mapping) -> str:
    return f"{report['threads']} thread{'s' if report['threads'] > 1 else ''}"


def _ratio(value: float | None) -> str:
    return "none: fewer solved" if value is None else f"{value:.1f}"


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@contextlib.contextmanager
def _threads(count: int):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
