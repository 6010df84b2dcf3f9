"""``greentx node``: a process that runs an application for a relay."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import IO, Any

from gevent import monkey

from . import arguments as read
from . import groups, site
from .arguments import Failure
from .loading import check_name
from .logs import log_to_stderr
from .options import Options
from .worker import Worker

__all__ = ["add_parser"]


def add_parser(commands: Any) -> None:
    """Add ``node`` to the subcommands."""
    node = commands.add_parser(
        "node",
        help="run a WSGI application for a relay",
        usage="%(prog)s [OPTIONS] MODULE[:APP] --relay HOST:PORT",
        description=_node.__doc__,
        epilog="A variable GREENTX_... stands for each option: GREENTX_RELAY for --relay.",
    )
    options = Options(node)
    groups.application(options)
    group = options.group("the relay, `greentx relay`")
    group.add("--relay", metavar="ADDRESS", type=read.peer, help="where it listens for Nodes: HOST:PORT, or ipc://PATH")
    group.add("--name", metavar="NAME", help="what the relay knows this process by, other than all others (random)")
    group.add("--curve-relay", metavar="FILE", help="the relay's public CURVE key, where it demands one")
    group.add("--upload-store", metavar="PATH", help="Mongrel2's upload.temp_store, as this process sees it")
    groups.process(options)
    groups.limits(options, websockets=False)
    groups.control_socket(options)
    node.set_defaults(function=_node, fill_in=options.fill_in)


def _node(arguments: argparse.Namespace) -> int:
    """Run a WSGI application for `greentx relay`, monkey-patched by gevent, until SIGTERM, SIGHUP or Ctrl-C: then it
    leaves between two messages of each WebSocket, which goes on in another Node. A second one ends it at once.
    """
    variables = arguments.fill_in(arguments, os.environ)
    check_name(arguments.app, "node")
    if not arguments.relay:
        raise Failure("which relay? Write --relay HOST:PORT, or set GREENTX_RELAY", 2)
    log_to_stderr(arguments.log_level)
    os.environ.update(variables)
    # As in `greentx serve`.
    monkey.patch_all()
    return Worker(arguments, _Relay(arguments)).run()


class _Relay:
    """The relay that it serves for."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments

    def make(self, application: Callable[..., Any], access_log: IO[str] | None) -> Any:
        from ..relay import Node
        from ..wsgi import WSGIServer
        from ..wsgi.listeners import SEND_TIMEOUT

        arguments = self._arguments
        options = site.node_bounds(arguments) | (site.control(arguments) or {"rep_port": False})
        if arguments.curve_secret:
            options["curve_secret"] = arguments.curve_secret
        if arguments.pool is not None:
            options["capacity"] = arguments.pool
        node = Node(
            arguments.relay,
            name=arguments.name,
            curve_relay=arguments.curve_relay,
            send_timeout=SEND_TIMEOUT,
            **options,
        )
        return WSGIServer(
            node,
            application,
            spawn=site.spawn(arguments),
            log=access_log,
            error_log=sys.stderr,
            environ={"wsgi.multiprocess": True},
            trusted_proxies=site.proxies(arguments),
        )

    def start(self, server: Any) -> None:
        server.start()

    def where(self, server: Any) -> str:
        return f"for the relay at {self._arguments.relay}"
