"""``greentx serve``."""

from __future__ import annotations

import argparse
import os
from typing import Any

from gevent import monkey

from . import arguments as read
from .arguments import Failure
from .loading import split_name
from .logs import LEVELS, log_to_stderr
from .options import Options
from .reload import supervise
from .worker import Worker

__all__ = ["add_parser"]

DEFAULT_BIND = "127.0.0.1:8000"


def add_parser(commands: Any) -> None:
    """Add ``serve`` to the subcommands."""
    serve = commands.add_parser(
        "serve",
        help="serve a WSGI application",
        usage="%(prog)s [OPTIONS] MODULE[:APP]",
        description=_serve.__doc__,
        epilog="A variable GREENTX_... stands for each option: GREENTX_BIND for --bind, GREENTX_MAX_QUEUE_BYTES for "
        "--max-queue-bytes, GREENTX_RELOAD=1 for --reload; several values have spaces in between. The command line "
        "comes first, then the environment, then --env-file.",
    )
    options = Options(serve, exclusive=("bind", "connect"))
    _add_application(options)
    _add_front_end(options)
    _add_limits(options)
    _add_control_socket(options)
    # For the process that --reload starts: the front end is its parent's. No variable stands for it.
    serve.add_argument("--front-end", action="append", default=[], help=argparse.SUPPRESS)
    serve.set_defaults(function=_serve, fill_in=options.fill_in)


def _add_application(options: Options) -> None:
    group = options.group("the application")
    group.add(
        "app",
        metavar="MODULE[:APP]",
        nargs="?",
        help="where it is: a module and a name in it (application or app), or a call that makes it: "
        "'shop:create_app()'",
    )
    group.add("--app-dir", metavar="FOLDER", default="", help="where the module is looked for first (here)")
    group.add(
        "--env-file", metavar="FILE", help="variables, as lines NAME=VALUE, for the application and for this command"
    )
    group.add("--reload", action=argparse.BooleanOptionalAction, default=False, help="start anew when a file changes")
    group.add("--pool", metavar="N", type=read.count, help="how many requests at once; others wait (no limit)")
    group.add(
        "--graceful-timeout",
        metavar="SECONDS",
        type=read.seconds,
        default=30.0,
        help="what requests may take when the server ends, by SIGTERM or Ctrl-C (30)",
    )
    group.add("--access-log", metavar="FILE", nargs="?", const="-", help="log requests to FILE, or to stderr (no log)")
    group.add("--log-level", choices=LEVELS, default="info", help="what the server logs to stderr (info)")


def _add_front_end(options: Options) -> None:
    group = options.group("the front end: a mongrel2 of our own (--bind), or one that runs (--connect)")
    group.add(
        "--bind",
        metavar="ADDRESS",
        type=read.address,
        help=f"where it listens: HOST:PORT, or a port of every address of this machine ({DEFAULT_BIND})",
    )
    group.add("--certfile", metavar="FILE", help="serve HTTPS with this certificate (PEM)")
    group.add("--keyfile", metavar="FILE", help="the certificate's key (in the same file)")
    group.add(
        "--set",
        metavar="NAME=VALUE",
        type=read.setting,
        action="append",
        default=[],
        help="a setting of Mongrel2's, such as limits.content_length=1000000; may be repeated",
    )
    group.add(
        "--connect",
        metavar="URL",
        type=read.url,
        action="append",
        default=[],
        help="a handler entry: mongrel2://SENDER@HOST?pull=9999&pub=9998, and control=ENDPOINT for its control port; "
        "may be repeated",
    )
    group.add(
        "--shared",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="other processes serve the same handler entry (--connect); WebSockets are refused then",
    )
    group.add("--upload-store", metavar="PATH", help="its upload.temp_store, as this process sees it")
    group.add(
        "--origins",
        metavar="LIST",
        type=read.origins,
        help="which pages may open a WebSocket: 'same', https://example.org, 'none' for programs, with commas in "
        "between; others get 403 (any page of the web)",
    )
    group.add(
        "--forwarded-allow-ips",
        metavar="LIST",
        type=read.proxies,
        help="proxies in front whose X-Forwarded-For and X-Forwarded-Proto are believed: addresses and networks with "
        "commas in between, or '*' ($FORWARDED_ALLOW_IPS, else 127.0.0.1,::1)",
    )


def _add_limits(options: Options) -> None:
    group = options.group("limits")
    group.add(
        "--max-message-size",
        metavar="BYTES",
        type=read.size,
        help="the largest message that a WebSocket may bring; 0 means unlimited (16 MiB)",
    )
    group.add(
        "--max-queue-bytes",
        metavar="BYTES",
        type=read.count,
        help="what may wait for one connection, WebSocket messages and pipelined requests (16 MiB)",
    )
    group.add("--max-pending-bytes", metavar="BYTES", type=read.count, help="the same for all connections (128 MiB)")
    group.add(
        "--ping-timeout",
        metavar="SECONDS",
        type=read.seconds,
        help="how often WebSockets are pinged, and how long a pong may take; 0 means never (30)",
    )


def _add_control_socket(options: Options) -> None:
    group = options.group("the control socket")
    group.add("--control", metavar="HOST:PORT", default="", help="where it binds; port 0: a free one (none)")
    group.add(
        "--control-allow",
        metavar="NETWORK",
        action="append",
        default=[],
        help="whom it answers, as 10.0.0.0/8; may be repeated (loopback, private and link-local addresses)",
    )
    group.add("--curve-secret", metavar="FILE", default="", help="our CURVE keys, NAME.key_secret of `greentx keys`")
    group.add(
        "--curve-allow",
        metavar="PATH",
        action="append",
        default=[],
        help="public keys of those that it answers then: a folder of *.key files, or one file; may be repeated",
    )


def _serve(arguments: argparse.Namespace) -> int:
    """Serve a WSGI application, monkey-patched by gevent, until SIGTERM, SIGHUP or Ctrl-C. A second one ends it at
    once.
    """
    variables: dict[str, str] = {}
    wrong = None
    try:
        variables = arguments.fill_in(arguments, os.environ)
        _check(arguments)
    except Failure as failure:
        # With --reload they were right when the front end was started: the file of --env-file has changed since.
        if not arguments.front_end:
            raise
        wrong = failure
    log_to_stderr(arguments.log_level)
    # The supervisor is not patched: it runs no application, and only what does may be changed.
    if arguments.reload and not arguments.front_end:
        return supervise(arguments)
    # Read anew by each worker, so that a change of the file counts.
    os.environ.update(variables)
    # Before the application is imported, so that it binds the patched names; after logging was set up, whose locks
    # gevent replaces.
    monkey.patch_all()
    return Worker(arguments).run(wrong)


def _check(arguments: argparse.Namespace) -> None:
    """Refuse, before anything starts, what no change of a file would fix."""
    if not arguments.app:
        raise Failure("which application? Write greentx serve MODULE:APP, or set GREENTX_APP", 2)
    split_name(arguments.app)
    if not arguments.connect and not arguments.bind:
        arguments.bind = DEFAULT_BIND
    own = {"--set": arguments.set, "--certfile": arguments.certfile, "--keyfile": arguments.keyfile}
    given = [name for name, value in own.items() if value]
    if arguments.connect and given:
        raise Failure(
            f"{', '.join(given)}: for a mongrel2 of our own (--bind); configure the one of --connect there", 2
        )
    if arguments.shared and not arguments.connect:
        raise Failure("--shared: for an entry of another Mongrel2 (--connect), which several processes may serve", 2)
    if arguments.keyfile and not arguments.certfile:
        raise Failure("--keyfile needs --certfile", 2)
