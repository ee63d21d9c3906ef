"""`prompt-memory cram`: the longest strings that prompts are found for, on a model."""

import hashlib
import json
import math
import os
import sys
from functools import partial
from pathlib import Path

from prompt_memory.cli.cram_report import Report
from prompt_memory.cli.parsers import add_command
from prompt_memory.cli.streams import drop_output, sentence, silence
from prompt_memory.files import write_bytes
from prompt_memory.real import budget

EXAMPLES = """\
examples:
  prompt-memory cram --model path/to/checkpoint --text book.txt --m 1 2 4 --output out
  prompt-memory cram --model path/to/checkpoint --random --m 1 2 --strings 50 --longest 16

Interrupted? The same command goes on where it was: finished chunks lie in OUTPUT/chunks. More values of m may be
added; other settings, another text and other weights need another OUTPUT. With another number of threads numbers differ
in the last digits, so chunks are computed again.
What comes out: OUTPUT/cram.csv (a line for each string), OUTPUT/summary.csv (a line for each m) and OUTPUT/cram.svg.
"""
# Default length of strings: more than was ever found for a model of the table `PUBLISHED`.  Long strings cost nothing:
# a search aims one token beyond what it has found.
TOKENS_A_VECTOR = 400
MOST = 10**6  # strings, tokens, prompt vectors, steps: more is a slip of the hand


def add_parser(subparsers) -> None:
    """The options of `prompt-memory cram`."""
    help = "The longest strings that prompts of m vectors are found for, on a model."
    parser = add_command(subparsers, "cram", run, help=help, examples=EXAMPLES)
    add = parser.add_argument
    add("--model", required=True, help="a folder with config.json and safetensors weights, or a hub name")
    strings = parser.add_mutually_exclusive_group(required=True)
    strings.add_argument("--text", type=Path, help="a text file, from which strings are cut")
    strings.add_argument("--random", action="store_true", help="uniformly random tokens instead of text")
    add("--m", type=int, nargs="+", required=True, metavar="M", help="prompt lengths")
    add("--strings", type=int, default=24, help="how many strings (default: 24)")
    default = f"as many as prompts could hold, up to {TOKENS_A_VECTOR} for each vector, and positions and text allow"
    add("--longest", type=int, help=f"tokens in each string (default: {default})")
    add("--restarts", type=int, default=4, help="runs that a string may have (default: 4)")
    add("--steps", type=int, default=400, help="steps of a run for one token more (default: 400)")
    add("--learning-rate", type=float, help="of Adam (default: from the size of the embeddings)")
    add("--scale", type=float, help="of the starting prompts (default: from the size of the embeddings)")
    add("--dtype", default="float32", help="number format of the network (default: float32)")
    add("--device", help="cpu, cuda, … (default: cuda if there is one)")
    add("--seed", type=int, default=0)
    add("--chunk", type=int, default=8, help="strings worked on, and saved, together (default: 8)")
    add("--output", type=Path, default=Path("cram"), help="folder for the results (default: cram)")
    add("--quiet", action="store_true", help="no progress bar")


def run(arguments) -> int:
    """Search for prompts, save every chunk, and report what was found even if something fails on the way."""
    _check(arguments)
    text = None if arguments.text is None else _text(arguments.text)
    if arguments.output.exists() and not arguments.output.is_dir():
        raise ValueError(f"the output {arguments.output} is not a folder")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch

    from prompt_memory import measure, tune

    model, ids = _model(arguments, text)
    bits = budget.number_format(model.config.dtype)[1].bits
    strings, places = _strings(arguments, model.config, bits, ids)
    tune.check_strings(model, strings, max(arguments.m))  # before the first search, not after the last but one
    search = _search(arguments, model)
    _claim_folder(arguments, strings_digest=hashlib.sha256(strings.numpy().tobytes()).hexdigest()[:32],
                  weights_digest=model.fingerprint(), threads=torch.get_num_threads())  # fmt: skip
    report = Report(arguments.output, places, arguments.longest, model.config.d, model.config.q, bits, arguments.seed)
    lengths, failure = {}, None
    try:
        _sweep(arguments, model, strings, search, report, lengths)
    except BrokenPipeError:  # who reads the bar has left, and nothing more can be said; what was finished is saved
        drop_output(sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:  # what was found until then is reported first
        failure = error
    lengths = {m: found for m, found in lengths.items() if found}
    if lengths:
        rows = report.summary(lengths, measure.n50)
        print(report.table(rows), flush=True)
        print(report.files(lengths, rows, f"{arguments.model}, {'text' if text else 'random tokens'}"))
    if failure is not None:
        raise failure
    report.raise_for_lost()
    return 0


def _check(arguments) -> None:
    """ValueError for numbers out of range; a prompt length that is named twice is taken once."""
    for name in ("strings", "longest", "chunk", "restarts"):
        if getattr(arguments, name) is not None and not 1 <= getattr(arguments, name) <= MOST:
            raise ValueError(f"--{name} must lie between 1 and {MOST}, not {getattr(arguments, name)}")
    if not 0 <= arguments.steps <= MOST:
        raise ValueError(f"--steps must lie between 0 and {MOST}, not {arguments.steps}")
    for name in ("learning_rate", "scale"):
        value = getattr(arguments, name)
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"--{name.replace('_', '-')} must be a finite number >= 0, not {value}")
    for m in arguments.m:
        if not 1 <= m <= MOST:
            raise ValueError(f"--m must lie between 1 and {MOST}, not {m}")
    if not 0 <= arguments.seed < 2**32:
        raise ValueError(f"--seed must lie between 0 and 2^32 - 1, not {arguments.seed}")
    arguments.m = list(dict.fromkeys(arguments.m))


def _model(arguments, text: str | None):
    """The network, and the text as its token ids."""
    import torch

    from prompt_memory.real import models

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    with silence():
        model = models.load(arguments.model, arguments.dtype, device)
        if text is None:
            return model, None
        return model, models.tokenizer(arguments.model)(text, add_special_tokens=False)["input_ids"]


def _strings(arguments, config, bits: int, ids: list[int] | None):
    """The strings, [S, longest], and where each begins in the text; sets `longest` if it was not given."""
    import torch

    from prompt_memory.tasks import language

    if arguments.longest is None:
        default = _longest(config, max(arguments.m), bits, arguments.strings, ids)
        arguments.longest = _stored_longest(arguments.output) or default
    if ids is None:
        generator = torch.Generator().manual_seed(arguments.seed)
        strings = language.random_strings(arguments.strings, arguments.longest, config.q, generator=generator)
        return strings, [""] * arguments.strings
    places = _places(len(ids), arguments.strings, arguments.longest, arguments.text)
    return torch.tensor([ids[place : place + arguments.longest] for place in places]), places


def _search(arguments, model) -> dict:
    """What `tune.longest_prefix` is told."""
    from prompt_memory.real import models

    given = {name: getattr(arguments, name) for name in ("learning_rate", "scale")}
    return models.search_settings(model) | {name: value for name, value in given.items() if value is not None} | {
        "restarts": arguments.restarts, "steps": arguments.steps, "seed": arguments.seed, "chunk": arguments.chunk,
        "directory": arguments.output / "chunks",
    }  # fmt: skip


def _sweep(arguments, model, strings, search: dict, report: Report, lengths: dict[int, list[int]]) -> None:
    """Search for every prompt length; what is found goes into `lengths` and, chunk by chunk, to disk."""
    from tqdm import tqdm  # comes with transformers, which `load` asked for

    from prompt_memory import tune

    with tqdm(total=len(arguments.m) * len(strings), disable=arguments.quiet, unit="string", file=sys.stderr) as bar:
        for m in arguments.m:
            lengths[m] = []
            bar.set_description(f"m = {m}")
            finished = partial(_finished, m=m, lengths=lengths, report=report, bar=bar)
            try:
                tune.longest_prefix(model, strings, m, progress=finished, **search)
            except tune.NonFiniteLoss as error:
                report.lost |= {(m, string) for string, _ in error.runs}
                report.write(lengths)


def _finished(part, *, m: int, lengths: dict[int, list[int]], report: Report, bar) -> None:
    """Note the lengths of one chunk, and say so if the first strings end too early to tell anything."""
    found, first = lengths[m], not lengths[m]
    found += part.tolist()
    report.write(lengths)
    bar.update(len(part))
    ended = sum(length == report.longest for length in found)
    if first and 2 * ended > len(found):
        bar.write(
            f"m = {m}: {ended} of the first {len(found)} strings were found to their end, so n50 will "
            "be cut there: stop and take longer ones (--longest, another --output)",
            file=sys.stderr,
        )


def _longest(config, m: int, bits: int, strings: int, ids) -> int:
    """The default length of strings: what m vectors of that many bits a coordinate may decide, and what there is of."""
    from prompt_memory import bounds

    most = math.ceil(bounds.critical_length(bounds.counting_bits(config.d, m, bits), config.q))
    most = min(most, TOKENS_A_VECTOR * m, MOST)
    most = min(most, config.context - m + 1) if config.positions == "learned" else most
    return max(1, most if ids is None else min(most, len(ids) // strings))


def _stored_longest(folder: Path) -> int | None:
    """The length of strings of the sweep in a folder, if it holds one."""
    try:
        longest = json.loads((folder / "settings.json").read_text(encoding="utf-8"))["longest"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return longest if isinstance(longest, int) and 1 <= longest <= MOST else None


def _claim_folder(arguments, **found) -> None:
    """Make the output folder, or check that what it holds was found with the same settings, m and threads apart.

    `found` are digests of the strings and of the network, and the number of threads.
    """
    names = ("strings", "longest", "restarts", "steps", "learning_rate", "scale", "dtype", "seed", "chunk")
    ours = {name: getattr(arguments, name) for name in names}
    ours |= {
        "model": str(arguments.model),
        "text": None if arguments.text is None else str(arguments.text),
        "m": arguments.m,
    }
    ours |= found
    path = arguments.output / "settings.json"
    if path.exists():
        try:
            theirs = json.loads(path.read_text(encoding="utf-8"))
            other = [name for name in ours if name not in ("m", "threads") and theirs[name] != ours[name]]
            other += ["m"] * (not set(theirs["m"]) <= set(ours["m"]))  # more prompt lengths may be added
            threads = theirs["threads"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({sentence(error)}): choose another --output") from error
        changed = {"strings_digest": f"another text than {arguments.text} now has", "weights_digest":
                   f"other weights than {arguments.model} now has"}  # fmt: skip
        if other:
            what = changed.get(other[0]) or (f"{other[0].replace('_', '-')} = {theirs[other[0]]}, not {ours[other[0]]}")
            raise ValueError(f"{arguments.output} holds the results of a sweep with {what}: choose another --output")
        if threads != ours["threads"] and not arguments.quiet:
            print(
                f"prompt-memory cram: the chunks in {arguments.output} were found with {threads} threads and are "
                f"computed again with {ours['threads']} (set OMP_NUM_THREADS={threads} to go on)",
                file=sys.stderr,
            )
    write_bytes(path, json.dumps(ours, indent=1).encode())


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")  # the mark at the beginning of some files is no text
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file in UTF-8") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    if not text.strip():
        raise ValueError(f"{path} is empty")
    return text


def _places(tokens: int, strings: int, longest: int, path) -> list[int]:
    """Where strings begin: evenly spaced over the text, none overlapping another."""
    if strings * longest > tokens:
        raise ValueError(
            f"{path} has {tokens} tokens, too few for {strings} strings of {longest}: take fewer (--strings) or "
            "shorter ones (--longest)"
        )
    gap = tokens / strings
    return [int(gap * index) for index in range(strings)]
