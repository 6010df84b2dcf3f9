"""``greentx demo``."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

from . import arguments as read
from .arguments import errors_as_one_line

__all__ = ["add_parser"]


def add_parser(commands: Any) -> None:
    """Add ``demo`` to the subcommands."""
    demo = commands.add_parser(
        "demo",
        help="run a chat, to look at in a browser",
        description=_demo.__doc__,
        epilog="Example: `greentx demo --port 8000`, and then http://127.0.0.1:8000/ in two windows.",
    )
    demo.add_argument("--host", default="127.0.0.1", help="the address to listen on (%(default)s)")
    demo.add_argument("--port", type=read.port, default=0, help="the port to listen on (a free one)")
    demo.add_argument(
        "--mongrel2", action="store_true", help="behind the real mongrel2 (behind the embedded front end)"
    )
    demo.set_defaults(function=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    """Run a chat until SIGTERM or Ctrl-C, and say where: its page and its WebSockets are served by greentx."""
    # They import much, which the other commands do not need.
    from ..demo.chat import run

    with contextlib.suppress(KeyboardInterrupt), errors_as_one_line():
        run(arguments.host, arguments.port, front_end="mongrel2" if arguments.mongrel2 else "edge")
    return 0
