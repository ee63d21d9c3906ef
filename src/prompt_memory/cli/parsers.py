"""Parsers of command lines that answer bad input in one sentence."""

import argparse
from collections.abc import Callable


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors are one line, without the usage."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}\n")


def add_command(subparsers, name: str, run: Callable, *, help: str, examples: str) -> Parser:
    """A command with its examples in the help; `arguments.run(arguments)` runs it and returns the exit status."""
    parser = subparsers.add_parser(
        name, help=help, description=help, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(run=run)
    return parser
