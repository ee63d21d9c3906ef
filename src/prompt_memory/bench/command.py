"""The command `python -m prompt_memory.bench`, which `make bench` runs."""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from prompt_memory import pretrain
from prompt_memory.bench.report import compare, rows
from prompt_memory.bench.settings import QUICK, Settings
from prompt_memory.files import plain, write_json


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m prompt_memory.bench",
        description="Speed of the tuner beside prompt tuning of one string at a time, on the same frozen weights.",
    )
    parser.add_argument("--model", default="natural", help="a language model of the book; default: natural")
    parser.add_argument("--models", type=Path, help="folder of trained models; one that is missing is trained")
    parser.add_argument("--output", type=Path, required=True, help="folder for bench.json and a model trained here")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="seconds: shows that it runs, measures little")
    options = parser.parse_args(arguments)
    models = [name for name, recipe in pretrain.RECIPES.items() if isinstance(recipe, pretrain.LanguageModel)]
    if options.model not in models:
        parser.error(f"unknown language model {options.model!r}: choose one of {', '.join(models)}")
    if options.threads < 1:
        parser.error(f"--threads must be at least 1, not {options.threads}")
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that torch can use, and there is none")
    torch.set_num_threads(options.threads)
    try:
        frozen = pretrain.load(options.model, _folder(options.model, options.models, options.output)).to(device)
    except ValueError as error:
        parser.error(str(error))
    settings = QUICK if options.quick else Settings()
    report = {"model": options.model} | compare(frozen, settings, seed=options.seed, say=_say)
    write_json(options.output / "bench.json", plain(report))
    width = max(len(what) for what, _ in rows(report))
    print()
    for what, how_much in rows(report):
        print(f"{what:{width}}  {how_much}")
    print(f"\nAll figures: {options.output / 'bench.json'}")
    print(f"ratio {report['equal_steps']['ratio']:.1f}x")


def _say(text: str) -> None:
    print(f"measuring: {text}", flush=True)


def _folder(name: str, models: Path | None, output: Path) -> Path:
    """The folder that holds the trained model; if there is none yet, it is trained into `output`, as the book does."""
    for folder in (models, output):
        if folder is not None and (folder / f"{name}.safetensors").exists():
            return folder
    print(f"training the model {name}, once", flush=True)
    command = [sys.executable, "-m", "prompt_memory.pretrain", name, "--output", str(output / f"{name}.safetensors")]
    subprocess.run(command, check=True)
    return output
