"""The command line: `prompt-memory budget`, `prompt-memory cram` and `prompt-memory compress`, one module each.

Exit status: 0, all went well; 1, something went wrong on the way (what was computed until then is on disk); 2, bad
input.  Bad input is answered by one sentence on stderr, before anything is computed.
"""

import argparse
import errno
import io
import sys
from collections.abc import Sequence

from prompt_memory.cli import budget, compress, cram
from prompt_memory.cli.parsers import Parser
from prompt_memory.cli.streams import drop_output, sentence

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # what a disk answers that is full or broken


def parser() -> Parser:
    """The commands and their options."""
    main_parser = Parser(
        prog="prompt-memory",
        description="How much a prompt can hold: bounds for a model, a measurement on it, and prompts made shorter.",
        epilog=budget.EXAMPLES + "\nprompt-memory COMMAND --help tells more about a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = main_parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in (budget, cram, compress):
        command.add_parser(subparsers)
    return main_parser


def main(line: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # it was closed before we began
            setattr(sys, stream, io.StringIO())
        elif hasattr(getattr(sys, stream), "reconfigure"):  # a name that the terminal cannot show is no bad input
            getattr(sys, stream).reconfigure(errors="backslashreplace")
    arguments = parser().parse_args(line)
    name = f"prompt-memory {arguments.command}"
    try:
        status = arguments.run(arguments)
        sys.stdout.flush()  # here, where a failure has an answer
        return status
    except BrokenPipeError:  # `| head` has read enough
        drop_output(sys.stdout)
        return 0
    except OverflowError as error:
        print(f"{name}: a number is too large ({sentence(error)})", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"{name}: {sentence(error)}", file=sys.stderr)
        if getattr(error, "errno", None) in NO_ROOM:  # no fault of the input
            drop_output(sys.stdout)
            return 1
        return 2
    except KeyboardInterrupt:
        saved = "; finished chunks are saved, and the same command goes on from there"
        print(f"{name}: stopped{saved if arguments.command == 'cram' else ''}", file=sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:
        print(f"{name}: {sentence(error)}", file=sys.stderr)
        return 1
    except Exception as error:  # from the inside of some network: no traceback for what no user can mend
        print(f"{name}: failed with {type(error).__name__}: {sentence(error)}", file=sys.stderr)
        return 1
