"""The entry of ``greentx``: its arguments, and the exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from ..version import __version__
from . import demo, edge, keys, node, relay, serve
from .arguments import Failure

__all__ = ["build_parser", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with *argv* (default: the program's arguments) and return its exit code.

    Raises ``SystemExit`` for arguments that cannot be parsed, and after ``--help`` and ``--version``.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    # It exits by itself for --help and wrong arguments, with the codes that the package's docstring promises.
    arguments = build_parser().parse_args(words)
    arguments.argv = words
    try:
        return int(arguments.function(arguments))
    # Before a command has said what a signal does: there is nothing to be ended in order.
    except KeyboardInterrupt:
        return 0
    # What the user can put right needs one line; anything else is a fault, and keeps its traceback.
    except Failure as failure:
        print(f"greentx: {failure}", file=sys.stderr)  # noqa: T201 - what the user is told
        return failure.code


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of ``greentx`` and of its commands."""
    parser = _Parser(prog="greentx", description="Serve applications behind Mongrel2.")
    parser.add_argument("--version", action="version", version=f"greentx {__version__}")
    # Required: without a command argparse would go on with no function to call.
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    serve.add_parser(commands)
    relay.add_parser(commands)
    node.add_parser(commands)
    edge.add_parser(commands)
    keys.add_parser(commands)
    demo.add_parser(commands)
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # Without the usage, of which there is so much that it would hide what is wrong.
        self.exit(2, f"{self.prog}: {message}; `{self.prog} --help` lists what there is\n")
