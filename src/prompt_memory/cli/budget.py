"""`prompt-memory budget`: what a prompt can hold, or how long it must be, by a model's configuration."""

import json
from dataclasses import replace
from pathlib import Path

from prompt_memory.cli.parsers import add_command
from prompt_memory.real import architectures, budget

EXAMPLES = """\
examples:
  prompt-memory budget --model config.json --prompt-length 20 --precision bf16
  prompt-memory budget --model path/to/checkpoint --prompt-length 100 --radius 60 --eps 0.001
  prompt-memory budget --model Pythia-160M --prompt-length 20 --eps 0.001 --json
  prompt-memory budget --model Pythia-160M --tokens 1000
  prompt-memory budget --model config.json --facts 5000 --labels 10 --precision int8

With --prompt-length the bounds on what such a prompt can hold; with --facts or --tokens the least prompt length at
which the bounds allow that all of them are held.
"""


FORWARD = {"logit_range": None, "queries": 1, "degree": 1, "length": None}  # options of --prompt-length, by default


def add_parser(subparsers) -> None:
    """The options of `prompt-memory budget`."""
    help = "Bounds that a model's configuration determines, in bits, in tokens and in prompt vectors."
    parser = add_command(subparsers, "budget", run, help=help, examples=EXAMPLES)
    add, known = parser.add_argument, ", ".join(architectures.PUBLISHED)
    add("--model", required=True, help=f"a config.json, a folder with one, or one of: {known}")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt-length", type=int, metavar="M", help="vectors in the prompt")
    what.add_argument("--facts", type=int, metavar="N", help="random labels to be held: how long must a prompt be?")
    what.add_argument("--tokens", type=int, metavar="N", help="random tokens to be held: how long must a prompt be?")
    add("--labels", type=int, metavar="Q", help="values that the label of a fact may have (with --facts; default: 2)")
    add("--precision", default="bf16", help=f"of the prompt: {', '.join(budget.FORMATS)} (default: bf16)")
    add("--radius", type=float, help="largest norm of a prompt vector")
    told_apart = "count strings only if prompts for them can be chosen at least this far apart (with --radius)"
    add("--eps", type=float, help=told_apart)
    add("--lipschitz", type=float, help="Lipschitz constant of the logits in the prompt (with --margin)")
    add("--margin", type=float, help="by which the right logit must exceed all others")
    add("--logit-range", type=float, help="length of an interval that holds all softmax logits")
    add("--queries", type=int, default=1, help="queries that an exact compression serves (default: 1)")
    add("--degree", type=int, default=1, help="degree k of the moments (default: 1)")
    add("--length", type=int, help="random tokens to be recalled")
    add("--vocabulary", type=int, help="tokens that can occur, if fewer than the configuration says")
    add("--json", action="store_true", help="write JSON instead of a table")


def run(arguments) -> int:
    """Print the budget of a prompt length, or the least prompt length for an amount."""
    architecture = architectures.load(arguments.model)
    if arguments.vocabulary is not None:
        most = architecture.vocabulary
        if not 2 <= arguments.vocabulary <= most:
            raise ValueError(f"--vocabulary must lie between 2 and {most}, not {arguments.vocabulary}")
        architecture = replace(architecture, vocabulary=arguments.vocabulary)
    if arguments.radius is None and arguments.eps is not None and not Path(arguments.model).exists():
        arguments.radius = architectures.PUBLISHED[architecture.name].radius  # eps alone has no meaning
    given = {name: getattr(arguments, name) for name in ("radius", "eps", "lipschitz", "margin")}
    if arguments.labels is not None and arguments.facts is None:
        raise ValueError("--labels belongs to --facts")
    if arguments.prompt_length is not None:
        given |= {name: getattr(arguments, name) for name in FORWARD}
        result = budget.budget(architecture, arguments.prompt_length, arguments.precision, **given)
        text = budget.table
    else:
        for name, default in FORWARD.items():
            if getattr(arguments, name) != default:
                raise ValueError(f"--{name.replace('_', '-')} belongs to --prompt-length")
        given |= {"facts": arguments.facts, "tokens": arguments.tokens}
        given |= {} if arguments.labels is None else {"labels": arguments.labels}
        result = budget.least_length(architecture, precision=arguments.precision, **given)
        text = budget.least_table
    if arguments.json:
        print(json.dumps(result.as_dict(), indent=1, ensure_ascii=False, allow_nan=False))
    else:
        print(text(result))
    return 0
