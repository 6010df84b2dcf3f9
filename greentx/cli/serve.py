"""``greentx serve``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from typing import Any

from gevent import monkey

from . import arguments as read
from . import front_end, groups
from .arguments import Failure
from .loading import check_name
from .logs import log_to_stderr
from .options import Options
from .reload import supervise
from .site import FrontEnd
from .worker import Worker

__all__ = ["add_parser"]


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
    groups.application(options, reload=True)
    groups.process(options)
    _add_workers(options)
    groups.front_end(options, shared=True)
    groups.limits(options)
    groups.control_socket(options)
    # For the process that --reload starts: the front end is its parent's. No variable stands for it.
    serve.add_argument("--entry", action="append", default=[], help=argparse.SUPPRESS)
    serve.set_defaults(function=_serve, fill_in=options.fill_in)


def _add_workers(options: Options) -> None:
    group = options.group("several processes, which gunicorn keeps: pip install 'greentx[gunicorn]'")
    group.add(
        "--workers",
        metavar="N",
        type=read.count,
        help="so many processes run the application, and one more is the relay in front of them; SIGHUP replaces them "
        "one by one, and no WebSocket is closed for it (this process alone)",
    )
    group.add(
        "--max-requests", metavar="N", type=read.size, help="each is replaced after so many requests, 0: never (0)"
    )
    group.add("--max-requests-jitter", metavar="N", type=read.size, help="and up to so many more, by chance (0)")
    group.add(
        "--worker-timeout",
        metavar="SECONDS",
        type=read.count,
        help="each is replaced that has blocked its hub for so long (30)",
    )
    group.add_switch(
        "--preload",
        help="import the application once, before the workers are forked; SIGHUP does not read it again then",
    )
    groups.retry(group)
    group.add("--pid", metavar="FILE", help="a file for the process id to signal (none)")


def _serve(arguments: argparse.Namespace) -> int:
    """Serve a WSGI application, monkey-patched by gevent, until SIGTERM, SIGHUP or Ctrl-C. A second one ends it at
    once. With --workers it is gunicorn that gets the signals: SIGHUP replaces the workers.
    """
    variables: dict[str, str] = {}
    wrong = None
    try:
        variables = arguments.fill_in(arguments, os.environ)
        _check(arguments)
    except Failure as failure:
        # With --reload they were right when the front end was started: the file of --env-file has changed since.
        if not arguments.entry:
            raise
        wrong = failure
    log_to_stderr(arguments.log_level)
    # The supervisor is not patched: it runs no application, and only what does may be changed.
    if arguments.reload and not arguments.entry:
        return supervise(arguments)
    # Read anew by each worker, so that a change of the file counts.
    os.environ.update(variables)
    if arguments.workers is not None:
        return _serve_by_workers(arguments, variables)
    # Before the application is imported, so that it binds the patched names; after logging was set up, whose locks
    # gevent replaces.
    monkey.patch_all()
    return Worker(arguments, FrontEnd(arguments), watches=bool(arguments.entry)).run(wrong)


def _serve_by_workers(arguments: argparse.Namespace, variables: Iterable[str]) -> int:
    try:
        from .workers import serve_by_workers
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "gunicorn":
            raise
        raise Failure("--workers needs gunicorn: pip install 'greentx[gunicorn]'", 1) from error
    return serve_by_workers(arguments, variables)


# What only several processes have.
_OF_WORKERS = ("max_requests", "max_requests_jitter", "worker_timeout", "preload", "pid", "retry")


def _check(arguments: argparse.Namespace) -> None:
    """Refuse, before anything starts, what no change of a file would fix."""
    check_name(arguments.app, "serve")
    front_end.check(arguments)
    if arguments.shared and not arguments.connect:
        raise Failure("--shared: for an entry of another Mongrel2 (--connect), which several processes may serve", 2)
    if arguments.workers is None:
        for name in _OF_WORKERS:
            if getattr(arguments, name):
                raise Failure(f"--{name.replace('_', '-')} needs --workers", 2)
        return
    if arguments.reload:
        raise Failure("--reload and --workers exclude each other: send SIGHUP to replace the workers", 2)
    if arguments.shared:
        raise Failure("--shared and --workers exclude each other: the relay of the workers serves the entry alone", 2)
