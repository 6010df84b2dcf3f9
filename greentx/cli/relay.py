"""``greentx relay``: a process that hands requests on to Nodes, and loads no application."""

from __future__ import annotations

import argparse
import os
from typing import Any

from . import arguments as read
from . import front_end, groups
from .logs import log_to_stderr
from .options import Options

__all__ = ["add_parser"]

DEFAULT_LISTEN = "127.0.0.1:9996"


def add_parser(commands: Any) -> None:
    """Add ``relay`` to the subcommands."""
    relay = commands.add_parser(
        "relay",
        help="hand requests on to Nodes, which run the application",
        usage="%(prog)s [OPTIONS]",
        description=_relay.__doc__,
        epilog="A variable GREENTX_... stands for each option: GREENTX_LISTEN for --listen.",
    )
    options = Options(relay, exclusive=("bind", "connect"))
    _add_nodes(options)
    groups.front_end(options)
    groups.process(options)
    groups.limits(options)
    groups.control_socket(options)
    _add_parent(relay)
    relay.set_defaults(function=_relay, fill_in=options.fill_in)


def _add_nodes(options: Options) -> None:
    group = options.group("its Nodes")
    group.add(
        "--listen",
        metavar="ADDRESS",
        type=read.endpoint,
        default=DEFAULT_LISTEN,
        help=f"where Nodes connect, `greentx node --relay ADDRESS`: HOST:PORT or ipc://PATH ({DEFAULT_LISTEN})",
    )
    group.add(
        "--push", metavar="ADDRESS", type=read.endpoint, help="where plain handlers pull, which are not Nodes (none)"
    )
    group.add("--pub", metavar="ADDRESS", type=read.endpoint, help="where subscribers of topics connect (none)")
    groups.retry(group)
    group.add(
        "--send-timeout",
        metavar="SECONDS",
        type=read.seconds,
        default=30.0,
        help="how long a request waits while no Node is there; then it gets 503 (30)",
    )


def _add_parent(parser: argparse.ArgumentParser) -> None:
    """For the process that starts this one; no variables stand for these."""
    # It ends when its stdin does.
    parser.add_argument("--until-eof", action="store_true", help=argparse.SUPPRESS)
    # A descriptor that a line is written to once it serves, and that stays open to its end.
    parser.add_argument("--notify-fd", type=int, help=argparse.SUPPRESS)
    # A folder that is removed at the end.
    parser.add_argument("--private-folder", help=argparse.SUPPRESS)
    # Whom to become.
    parser.add_argument("--uid", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--gid", type=int, help=argparse.SUPPRESS)
    # What its Nodes serve, in words: said once the first one is there.
    parser.add_argument("--serves", help=argparse.SUPPRESS)


def _relay(arguments: argparse.Namespace) -> int:
    """Hand the requests of a Mongrel2 on to Nodes, and keep its WebSockets while Nodes come and go, until SIGTERM,
    SIGHUP or Ctrl-C. No application is loaded here.
    """
    arguments.fill_in(arguments, os.environ)
    front_end.check(arguments)
    log_to_stderr(arguments.log_level)
    from .relaying import Program  # it imports much, which the other commands do not need

    return Program(arguments).run()
