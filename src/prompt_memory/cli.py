"""The command line: `prompt-memory budget`, `prompt-memory cram` and `prompt-memory compress`.

Exit status: 0, all went well; 1, something went wrong on the way (what was computed until then is on disk); 2, bad
input.  Bad input is answered by one sentence on stderr, before anything is computed.
"""

import argparse
import contextlib
import csv
import errno
import hashlib
import io
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from prompt_memory import budget as budgets
from prompt_memory.claims import write_bytes

BUDGET_EXAMPLES = """\
examples:
  prompt-memory budget --model config.json --prompt-length 20 --precision bf16
  prompt-memory budget --model path/to/checkpoint --prompt-length 100 --radius 60 --eps 0.001
  prompt-memory budget --model Pythia-160M --prompt-length 20 --eps 0.001 --json
"""
CRAM_EXAMPLES = """\
examples:
  prompt-memory cram --model path/to/checkpoint --text book.txt --m 1 2 4 --output out
  prompt-memory cram --model path/to/checkpoint --random --m 1 2 --strings 50 --longest 16

Interrupted? The same command goes on where it was: finished chunks lie in OUTPUT/chunks. More values of m may be
added; other settings, another text and other weights need another OUTPUT. With another number of threads numbers differ
in the last digits, so chunks are computed again.
What comes out: OUTPUT/cram.csv (a line for each string), OUTPUT/summary.csv (a line for each m) and OUTPUT/cram.svg.
"""
COMPRESS_EXAMPLES = """\
examples:
  prompt-memory compress --tokens tokens.npy --degree 3
      the means of all polynomials of degree 3 are kept: every query is served, approximately (Theorem 6)
  prompt-memory compress --tokens tokens.npy --queries q.npy --A A.npy --V V.npy --output short.safetensors
      these queries are served exactly (Theorem 5); softmax logits are <A x, z>, A = K'Q/sqrt(d_k)
  prompt-memory compress --tokens adapter_model.safetensors:prompt_embeddings --degree 1
      tokens that span r dimensions are saved beyond r + 1 of them: a tuned prompt of m <= d vectors hardly is

What comes out: `indices` of the tokens that are kept, their `weights`, and with --own the query's weight `own`.
How a weight w is used: ln w is added to the softmax logits of its token, in every head and for every query.
"""


# Default length of strings: more than was ever found for a model of the table `PUBLISHED`.  Long strings cost nothing:
# a search aims one token beyond what it has found.
TOKENS_A_VECTOR = 400
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # what a disk answers that is full or broken


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: {message}\n")


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    main_parser = _Parser(
        prog="prompt-memory",
        description="How much a prompt can hold: bounds for a model, a measurement on it, and prompts made shorter.",
        epilog=BUDGET_EXAMPLES + "\nprompt-memory COMMAND --help tells more about a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = main_parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name, run, help, epilog):
        part = commands.add_parser(
            name, help=help, description=help, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        part.set_defaults(run=run)
        return part

    known = ", ".join(budgets.PUBLISHED)
    one = add(
        "budget", _budget, "Bounds that a model's configuration determines, in bits and in tokens.", BUDGET_EXAMPLES
    )
    one.add_argument("--model", required=True, help=f"a config.json, a folder with one, or one of: {known}")
    one.add_argument("--prompt-length", type=int, required=True, metavar="M", help="vectors in the prompt")
    one.add_argument("--precision", default="bf16", help=f"of the prompt: {', '.join(budgets.FORMATS)} (default: bf16)")
    one.add_argument("--radius", type=float, help="largest norm of a prompt vector")
    told_apart = "count strings only if prompts for them can be chosen at least this far apart (with --radius)"
    one.add_argument("--eps", type=float, help=told_apart)
    one.add_argument("--lipschitz", type=float, help="Lipschitz constant of the logits in the prompt (with --margin)")
    one.add_argument("--margin", type=float, help="by which the right logit must exceed all others")
    one.add_argument("--logit-range", type=float, help="length of an interval that holds all softmax logits")
    one.add_argument("--queries", type=int, default=1, help="queries that an exact compression serves (default: 1)")
    one.add_argument("--degree", type=int, default=1, help="degree k of the moments (default: 1)")
    one.add_argument("--length", type=int, help="random tokens to be recalled")
    one.add_argument("--vocabulary", type=int, help="tokens that can occur, if fewer than the configuration says")
    one.add_argument("--json", action="store_true", help="write JSON instead of a table")

    two = add("cram", _cram, "The longest strings that prompts of m vectors are found for, on a model.", CRAM_EXAMPLES)
    two.add_argument("--model", required=True, help="a folder with config.json and safetensors weights, or a hub name")
    strings = two.add_mutually_exclusive_group(required=True)
    strings.add_argument("--text", type=Path, help="a text file, from which strings are cut")
    strings.add_argument("--random", action="store_true", help="uniformly random tokens instead of text")
    two.add_argument("--m", type=int, nargs="+", required=True, metavar="M", help="prompt lengths")
    two.add_argument("--strings", type=int, default=24, help="how many strings (default: 24)")
    default = f"as many as prompts could hold, up to {TOKENS_A_VECTOR} for each vector, and positions and text allow"
    two.add_argument("--longest", type=int, help=f"tokens in each string (default: {default})")
    two.add_argument("--restarts", type=int, default=4, help="runs that a string may have (default: 4)")
    two.add_argument("--steps", type=int, default=400, help="steps of a run for one token more (default: 400)")
    two.add_argument("--learning-rate", type=float, help="of Adam (default: from the size of the embeddings)")
    two.add_argument("--scale", type=float, help="of the starting prompts (default: from the size of the embeddings)")
    two.add_argument("--dtype", default="float32", help="number format of the network (default: float32)")
    two.add_argument("--device", help="cpu, cuda, … (default: cuda if there is one)")
    two.add_argument("--seed", type=int, default=0)
    two.add_argument("--chunk", type=int, default=8, help="strings worked on, and saved, together (default: 8)")
    two.add_argument("--output", type=Path, default=Path("cram"), help="folder for the results (default: cram)")
    two.add_argument("--quiet", action="store_true", help="no progress bar")

    three = add("compress", _compress, "A long prompt as few weighted tokens, verified before it is written.",
                COMPRESS_EXAMPLES)  # fmt: skip
    three.add_argument("--tokens", required=True, metavar="FILE", help="[m, d]: .npy, or .safetensors (FILE:NAME)")
    three.add_argument("--degree", type=int, metavar="K", help="keep the means of polynomials of degree at most K")
    three.add_argument("--queries", metavar="FILE", help="[n, d]: serve these queries exactly (with --A and --V)")
    three.add_argument("--A", metavar="FILE", help="[d, d] or [H, d, d], K'Q/sqrt(d_k) of each head")
    three.add_argument("--V", metavar="FILE", help="[d_v, d] or [H, d_v, d], values of each head")
    three.add_argument("--own", type=float, default=0.0, help="weight with which a query attends itself (default: 0)")
    three.add_argument("--weights", metavar="FILE", help="[m]: weights of the tokens (default: equal)")
    three.add_argument("--output", type=Path, default=Path("compressed.npz"),
                       help=".npz or .safetensors (default: compressed.npz)")  # fmt: skip
    three.add_argument("--force", action="store_true", help="overwrite the output")
    return main_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # it was closed before we began
            setattr(sys, stream, io.StringIO())
        elif hasattr(getattr(sys, stream), "reconfigure"):  # a name that the terminal cannot show is no bad input
            getattr(sys, stream).reconfigure(errors="backslashreplace")
    options = parser().parse_args(arguments)
    name = f"prompt-memory {options.command}"
    try:
        status = options.run(options)
        sys.stdout.flush()  # here, where a failure has an answer
        return status
    except BrokenPipeError:  # `| head` has read enough
        _drop_output(sys.stdout)
        return 0
    except OverflowError as error:
        print(f"{name}: a number is too large ({_sentence(error)})", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"{name}: {_sentence(error)}", file=sys.stderr)
        if getattr(error, "errno", None) in NO_ROOM:  # no fault of the input
            _drop_output(sys.stdout)
            return 1
        return 2
    except KeyboardInterrupt:
        saved = "; finished chunks are saved, and the same command goes on from there"
        print(f"{name}: stopped{saved if options.command == 'cram' else ''}", file=sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:
        print(f"{name}: {_sentence(error)}", file=sys.stderr)
        return 1
    except Exception as error:  # from the inside of some network: no traceback for what no user can mend
        print(f"{name}: failed with {type(error).__name__}: {_sentence(error)}", file=sys.stderr)
        return 1


def _drop_output(stream) -> None:
    """What is left in the buffer of a stream goes nowhere, or Python would fail once more when it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _sentence(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


# --- budget --------------------------------------------------------------------------------------------------------


def _budget(options) -> int:
    from dataclasses import replace

    architecture = budgets.load(options.model)
    if options.vocabulary is not None:
        if not 2 <= options.vocabulary <= architecture.vocabulary:
            raise ValueError(f"--vocabulary must lie between 2 and {architecture.vocabulary}, not {options.vocabulary}")
        architecture = replace(architecture, vocabulary=options.vocabulary)
    if options.radius is None and options.eps is not None and not Path(options.model).exists():
        options.radius = budgets.PUBLISHED[architecture.name].radius  # eps alone has no meaning, and the table has it
    names = ("radius", "eps", "lipschitz", "margin", "logit_range", "queries", "degree", "length")
    given = {name: getattr(options, name) for name in names}
    result = budgets.budget(architecture, options.prompt_length, options.precision, **given)
    if options.json:
        print(json.dumps(result.as_dict(), indent=1, ensure_ascii=False, allow_nan=False))
    else:
        print(budgets.table(result))
    return 0


# --- cram ----------------------------------------------------------------------------------------------------------


def _cram(options) -> int:
    for name in ("strings", "longest", "chunk", "restarts"):
        if getattr(options, name) is not None and not 1 <= getattr(options, name) <= MOST:
            raise ValueError(f"--{name} must lie between 1 and {MOST}, not {getattr(options, name)}")
    if not 0 <= options.steps <= MOST:
        raise ValueError(f"--steps must lie between 0 and {MOST}, not {options.steps}")
    for name in ("learning_rate", "scale"):
        value = getattr(options, name)
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"--{name.replace('_', '-')} must be a finite number >= 0, not {value}")
    for m in options.m:
        if not 1 <= m <= MOST:
            raise ValueError(f"--m must lie between 1 and {MOST}, not {m}")
    if not 0 <= options.seed < 2**32:
        raise ValueError(f"--seed must lie between 0 and 2^32 - 1, not {options.seed}")
    options.m = list(dict.fromkeys(options.m))
    text = None if options.text is None else _text(options.text)
    if options.output.exists() and not options.output.is_dir():
        raise ValueError(f"the output {options.output} is not a folder")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch

    from prompt_memory import hf, language, measure, tune

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    with _silence():
        model = hf.load(options.model, options.dtype, device)
    from tqdm import tqdm  # comes with transformers, which `load` asked for

    q, d, m = model.config.q, model.config.d, max(options.m)
    bits = budgets.number_format(model.config.dtype)[1].bits
    ids = None
    if text is not None:
        with _silence():
            ids = hf.tokenizer(options.model)(text, add_special_tokens=False)["input_ids"]
    if options.longest is None:
        options.longest = _stored_longest(options.output) or _longest(model.config, m, bits, options.strings, ids)
    if text is None:
        generator = torch.Generator().manual_seed(options.seed)
        strings = language.random_strings(options.strings, options.longest, q, generator=generator)
        places = [""] * options.strings
    else:
        places = _places(len(ids), options.strings, options.longest, options.text)
        strings = torch.tensor([ids[place : place + options.longest] for place in places])
    search = hf.search_settings(model) | {"restarts": options.restarts, "steps": options.steps, "seed": options.seed}
    for name in ("learning_rate", "scale"):
        if getattr(options, name) is not None:
            search[name] = getattr(options, name)
    tune.check_strings(model, strings, max(options.m))  # before the first search, not after the last but one

    _claim_folder(options, strings_digest=hashlib.sha256(strings.numpy().tobytes()).hexdigest()[:32],
                  weights_digest=model.fingerprint(), threads=torch.get_num_threads())  # fmt: skip
    lengths, failure = {}, None
    report = _Report(options.output, places, options.longest, d, q, bits, options.seed)
    search |= {"chunk": options.chunk, "directory": options.output / "chunks"}
    try:
        with tqdm(total=len(options.m) * len(strings), disable=options.quiet, unit="string", file=sys.stderr) as bar:
            for m in options.m:
                found = lengths[m] = []
                bar.set_description(f"m = {m}")

                def finished(part, found=found, m=m):
                    first = not found
                    found += part.tolist()
                    report.write(lengths)
                    bar.update(len(part))
                    ended = sum(length == options.longest for length in found)
                    if first and 2 * ended > len(found):
                        bar.write(
                            f"m = {m}: {ended} of the first {len(found)} strings were found to their end, so n50 will "
                            "be cut there: stop and take longer ones (--longest, another --output)",
                            file=sys.stderr,
                        )

                try:
                    tune.longest_prefix(model, strings, m, progress=finished, **search)
                except tune.NonFiniteLoss as error:
                    report.lost |= {(m, string) for string, _ in error.runs}
                    report.write(lengths)
    except BrokenPipeError:  # who reads the bar has left, and nothing more can be said; what was finished is saved
        _drop_output(sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:  # what was found until then is reported first
        failure = error
    lengths = {m: found for m, found in lengths.items() if found}
    if lengths:
        rows = report.summary(lengths, measure.n50)
        print(report.table(rows), flush=True)
        print(report.files(lengths, rows, f"{options.model}, {'text' if text else 'random tokens'}"))
    if failure is not None:
        raise failure
    if report.lost:
        (m, string), count = min(report.lost), len(report.lost)
        raise RuntimeError(
            f"the loss was not finite in runs of {count} searches, string {string} at m = {m} first (not_finite in "
            "cram.csv): lower --learning-rate or --scale"
        )
    return 0


MOST = 10**6  # strings, tokens, prompt vectors, steps: more is a slip of the hand


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


def _claim_folder(options, **found) -> None:
    """Make the output folder, or check that what it holds was found with the same settings, m and threads apart.

    `found` are digests of the strings and of the network, and the number of threads.
    """
    names = ("strings", "longest", "restarts", "steps", "learning_rate", "scale", "dtype", "seed", "chunk")
    ours = {name: getattr(options, name) for name in names}
    ours |= {"model": str(options.model), "text": None if options.text is None else str(options.text), "m": options.m}
    ours |= found
    path = options.output / "settings.json"
    if path.exists():
        try:
            theirs = json.loads(path.read_text(encoding="utf-8"))
            other = [name for name in ours if name not in ("m", "threads") and theirs[name] != ours[name]]
            other += ["m"] * (not set(theirs["m"]) <= set(ours["m"]))  # more prompt lengths may be added
            threads = theirs["threads"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({_sentence(error)}): choose another --output") from error
        changed = {"strings_digest": f"another text than {options.text} now has", "weights_digest":
                   f"other weights than {options.model} now has"}  # fmt: skip
        if other:
            what = changed.get(other[0]) or (f"{other[0].replace('_', '-')} = {theirs[other[0]]}, not {ours[other[0]]}")
            raise ValueError(f"{options.output} holds the results of a sweep with {what}: choose another --output")
        if threads != ours["threads"] and not options.quiet:
            print(
                f"prompt-memory cram: the chunks in {options.output} were found with {threads} threads and are "
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


class _Report:
    """The tables and the figure of a cramming sweep; `cram.csv` is on disk after every chunk."""

    def __init__(self, folder: Path, places, longest: int, d: int, q: int, bits: int, seed: int):
        self.folder, self.places, self.longest, self.d, self.q = folder, places, longest, d, q
        self.bits, self.seed, self.lost = bits, seed, set()  # (m, string) of searches with runs that were lost

    def write(self, lengths: dict[int, list[int]]) -> None:
        rows = [
            (m, index, self.places[index], length, int(length == self.longest), int((m, index) in self.lost))
            for m, found in lengths.items()
            for index, length in enumerate(found)
        ]
        header = ("m", "string", "first_token", "longest_found", "ended", "not_finite")
        _write_csv(self.folder / "cram.csv", header, rows)

    def summary(self, lengths, n50) -> list[tuple]:
        """A row for each m, written to `summary.csv`."""
        import numpy as np

        from prompt_memory import bounds, intervals

        def inside(found) -> float:
            return min(n50(np.asarray(found), self.longest), float(self.longest))

        random, rows = np.random.default_rng(self.seed), []
        for m, found in sorted(lengths.items()):
            centre = inside(found)
            low, high = intervals.bootstrap(found, inside, random, resamples=200)
            bound = bounds.critical_length(bounds.counting_bits(self.d, m, self.bits), self.q)
            ended = sum(length == self.longest for length in found)
            rows.append((m, len(found), centre, low, high, ended, bound))
        header = ("m", "strings", "n50", "low", "high", "ended", "bound")
        _write_csv(self.folder / "summary.csv", header, rows)
        return rows

    def table(self, rows) -> str:
        lines = [f"{'m':>5} {'strings':>8} {'n50':>8} {'95 % interval':>18} {'ended':>6} {'bound':>10}"]
        for m, strings, centre, low, high, ended, bound in rows:
            lines.append(f"{m:5} {strings:8} {centre:8.2f} {f'{low:.2f} to {high:.2f}':>18} {ended:6} {bound:10.1f}")
        lines.append(
            "n50: tokens at which half of the strings were still found; ended: strings found to their end, so that"
        )
        lines.append("n50 may be larger; bound: Theorem 4 with all bits of the prompt, for random strings")
        return "\n".join(lines)

    def files(self, lengths, rows, what: str) -> str:
        """The figure is drawn; what lies in the folder, in words."""
        written, lines = [self.folder / "cram.csv", self.folder / "summary.csv"], []
        try:
            from prompt_memory import figures
        except ImportError as error:
            lines.append(f"no figure: {error}")
        else:
            written.append(self._figure(figures, lengths, rows, what))
        return "\n".join([*lines, "written: " + ", ".join(map(str, written))])

    def _figure(self, figures, lengths, rows, what: str) -> Path:
        m, centre, low, high = ([row[column] for row in rows] for column in (0, 2, 3, 4))

        def draw(figure):
            ax = figure.subplots()
            grey = figures.COLOURS["neutral"]
            for length, found in lengths.items():
                ax.plot([length] * len(found), found, "_", color=grey, alpha=0.5)
            error = [[max(0.0, c - x) for c, x in zip(centre, low, strict=True)],
                     [max(0.0, x - c) for c, x in zip(centre, high, strict=True)]]  # fmt: skip
            ax.errorbar(m, centre, error, fmt="o-", color=figures.COLOURS["measured"])
            ax.axhline(self.longest, color=grey, linestyle=":", linewidth=1)
            ax.set_ylim(0, 1.2 * self.longest)
            ax.text(min(m), 1.02 * self.longest, "strings end here", fontsize=9, color=grey, va="bottom")
            name = what.replace("$", r"\$")  # which would begin a formula
            ax.set_title(f"Longest strings found, and n50 with 95 % intervals: {name}")
            ax.set_xlabel("prompt vectors m")
            ax.set_ylabel("tokens")
            ax.set_xticks(m)

        return write_bytes(self.folder / "cram.svg", figures.drawn(draw))


@contextlib.contextmanager
def _silence():
    """No bars and remarks of other packages: what we have to say is one sentence."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


# --- compress ------------------------------------------------------------------------------------------------------


def _compress(options) -> int:
    exact = [name for name in ("queries", "A", "V") if getattr(options, name) is not None]
    if (options.degree is None) == (not exact):
        raise ValueError("give either --degree, or --queries with --A and --V")
    if exact and len(exact) < 3:
        raise ValueError(f"an exact compression needs --queries, --A and --V; only {' and '.join(exact)} given")
    if options.own and not exact:
        raise ValueError("--own belongs to --queries")
    if options.output.suffix not in (".npz", ".safetensors"):
        raise ValueError(f"the output must end in .npz or .safetensors, not {options.output}")
    if options.output.exists() and not options.force:
        raise ValueError(f"{options.output} exists: choose another --output, or --force")
    if options.output.is_dir():
        raise ValueError(f"the output {options.output} is a folder")
    if not options.output.parent.is_dir():
        raise ValueError(f"the folder {options.output.parent} of the output does not exist")
    if not os.access(options.output.parent, os.W_OK):
        raise ValueError(f"the folder {options.output.parent} of the output cannot be written to")
    tokens = _array(options.tokens)
    tokens = tokens[0] if tokens.ndim == 3 and len(tokens) == 1 else tokens
    weights = None if options.weights is None else _array(options.weights)
    queries, A, V = (_array(getattr(options, name)) for name in exact) if exact else (None, None, None)

    from prompt_memory import compress

    if exact:
        short = compress.caratheodory(tokens, queries, A, V, weights=weights, own=options.own)
    else:
        if prospect := _nothing_to_save(len(tokens), compress.spanned(tokens, options.degree), options.degree):
            print(f"prompt-memory compress: {prospect}", file=sys.stderr, flush=True)
        short = compress.moments(tokens, options.degree, weights=weights)
    _save(options.output, short._asdict())
    served = f"{len(queries)} queries exactly" if exact else f"all moments of degree at most {options.degree}"
    print(f"{len(short.indices)} of {len(tokens)} tokens keep {served}; verified and written to {options.output}")
    print("A weight w is used by adding ln w to the softmax logits of its token.")
    return 0


def _nothing_to_save(m: int, r: int, degree: int) -> str | None:
    """What to say beforehand of m tokens that span r dimensions, if no or hardly any token can be saved."""
    needed = math.comb(r + degree, degree)
    if m > needed:
        return None
    if r == m - 1:
        return f"nothing can be saved: none of the {m} tokens is an affine combination of the others"
    return f"{m} tokens span {r} dimensions; at degree {degree} up to {needed} are needed, so few or none will be saved"


def _array(place: str):
    """A float64 array from FILE.npy, FILE.safetensors or FILE.safetensors:NAME."""
    import numpy as np

    file, colon, name = place.rpartition(":")
    if not colon or Path(place).exists():
        file, name = place, ""
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    if path.suffix == ".npy":
        if name:
            raise ValueError(f"{path} holds one array without a name: leave out :{name}")
        try:
            array = np.load(path, allow_pickle=False)
            if not isinstance(array, np.ndarray):
                raise ValueError("it is an archive of several")
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{path} is not an array of numbers: {_sentence(error)}") from None
    elif path.suffix == ".safetensors":
        array = _tensor(path, name)
    else:
        raise ValueError(f"{path} must be .npy or .safetensors")
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{place} must hold real numbers, not {array.dtype}")
    return array.astype(np.float64)


def _tensor(path: Path, name: str):
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if not name and len(names) != 1:
                raise ValueError(f"{path} holds {len(names)} arrays: name one of {', '.join(names[:5])} as FILE:NAME")
            if name and name not in names:
                raise ValueError(f"{path} holds no {name}: there are {', '.join(names[:5])}")
            tensor = file.get_tensor(name or names[0])
            return (tensor.double() if tensor.is_floating_point() else tensor).numpy()  # numpy has no bfloat16
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {_sentence(error)}") from None


def _save(path: Path, arrays: dict) -> None:
    import numpy as np

    buffer = io.BytesIO()
    arrays = {name: np.asarray(value) for name, value in arrays.items()}
    if path.suffix == ".npz":
        np.savez(buffer, **arrays)
        write_bytes(path, buffer.getvalue())
    else:
        from safetensors.numpy import save

        write_bytes(path, save({name: np.atleast_1d(value) for name, value in arrays.items()}))


# --- files ---------------------------------------------------------------------------------------------------------


def _write_csv(path: Path, header, rows) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([header, *rows])
    write_bytes(path, buffer.getvalue().encode())


if __name__ == "__main__":
    sys.exit(main())
