"""``greentx edge``: the embedded front end in the foreground, with handlers that come and go behind it."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
from functools import partial
from typing import Any

import gevent

from . import arguments as read
from . import front_end, groups
from .arguments import Failure, errors_as_one_line
from .logs import log_to_stderr, open_access_log
from .options import Options
from .signals import Signals

__all__ = ["add_parser"]

log = logging.getLogger("greentx.cli")

# Where there is one handler only; "*" is for OPTIONS, which asks about the server itself.
_EVERYTHING = ("/", "*")

# Options that are arguments of an Edge by the same name, where they were said.
_OPTIONS = ("no_handler_timeout", "request_timeout", "max_connections", "max_per_address", "max_upload", "max_kept")


def add_parser(commands: Any) -> None:
    """Add ``edge`` to the subcommands."""
    edge = commands.add_parser(
        "edge",
        help="run the embedded front end, a Mongrel2 to handlers",
        usage="%(prog)s [OPTIONS] --handler NAME=PUSH,SUB",
        description=_edge.__doc__,
        epilog="Example: `greentx edge --bind :8000 --handler echo=tcp://127.0.0.1:9999,tcp://127.0.0.1:9998`, and for "
        "two handlers `--handler shop=ipc:///run/shop.push,ipc:///run/shop.sub --handler chat=*:9997,*:9996 "
        "--route /=shop --route /chat=chat --route @chat=chat`. A variable GREENTX_... stands for each option: "
        "GREENTX_HANDLER for --handler, with spaces between several.",
    )
    options = Options(edge)
    _add_handlers(options)
    _add_browsers(options)
    groups.process(options)
    edge.set_defaults(function=_edge, fill_in=options.fill_in)


def _add_handlers(options: Options) -> None:
    group = options.group("handlers, which connect")
    group.add_repeated(
        "--handler",
        metavar="NAME=PUSH,SUB",
        type=read.handler,
        help="an entry for handlers: its send_ident, and where its PUSH and its SUB socket bind, as HOST:PORT or "
        "ipc://PATH; ',json' behind them has headers written as JSON (tnetstrings); may be repeated",
    )
    group.add_repeated(
        "--route",
        metavar="[HOST]PATH=NAME",
        type=read.route,
        help="where requests go, by the beginning of their path or a pattern of Mongrel2's; @NAME is for JSON sockets, "
        "<NAME for XML, '*' for OPTIONS *; example.org/=NAME is for one host; may be repeated (one handler gets / and "
        "*)",
    )
    group.add(
        "--no-handler-timeout",
        metavar="SECONDS",
        type=read.seconds,
        help="how long a request waits while no handler is there; then it gets 503 (30)",
    )


def _add_browsers(options: Options) -> None:
    group = options.group("browsers")
    group.add_repeated(
        "--bind",
        metavar="ADDRESS",
        type=read.listen_address,
        help="where it listens: HOST:PORT, or a port of every address of this machine, unix:/path, or fd://3; may be "
        f"repeated ({groups.DEFAULT_BIND})",
    )
    group.add("--certfile", metavar="FILE", help="serve HTTPS with this certificate (PEM)")
    group.add("--keyfile", metavar="FILE", help="the certificate's key (in the same file)")
    group.add_repeated(
        "--set",
        metavar="NAME=VALUE",
        type=read.setting,
        help="a setting by Mongrel2's name, such as limits.content_length=1000000; may be repeated",
    )
    group.add("--access-log", metavar="FILE", nargs="?", const="-", help="log requests to FILE, or to stderr (no log)")
    group.add(
        "--request-timeout",
        metavar="SECONDS",
        type=read.seconds,
        help="what a client has for the head of a request, and for each next piece of its body; then it gets 408 (30)",
    )
    group.add("--max-connections", metavar="N", type=read.count, help="in all; those beyond it get 503 at once (10000)")
    group.add("--max-per-address", metavar="N", type=read.count, help="of one client address (no other limit)")
    group.add(
        "--max-message-size",
        metavar="BYTES",
        type=read.size,
        help="the largest message that a WebSocket may bring, as it travels; 0 means unlimited (16 MiB)",
    )
    group.add(
        "--max-kept",
        metavar="BYTES",
        type=read.count,
        help="what all clients together may send of bodies and messages that are not whole (256 MiB)",
    )
    group.add(
        "--max-upload",
        metavar="BYTES",
        type=read.count,
        help="the largest body, where upload.temp_store or upload.stream is set (2 GiB)",
    )


def _edge(arguments: argparse.Namespace) -> int:
    """Serve browsers, and handlers by Mongrel2's protocol, without a Mongrel2, until SIGTERM, SIGHUP or Ctrl-C. A
    second one ends it at once. Handlers may come and go: requests wait for them. No application is loaded here.
    """
    arguments.fill_in(arguments, os.environ)
    log_to_stderr(arguments.log_level)
    routes, hosts = _routes(arguments)
    if arguments.keyfile and not arguments.certfile:
        raise Failure("--keyfile needs --certfile", 2)
    # They import much, which the other commands do not need.
    from ..edge.embedded import check_installed

    options = {name: getattr(arguments, name) for name in _OPTIONS if getattr(arguments, name) is not None}
    if arguments.max_message_size is not None:
        options["max_message_size"] = arguments.max_message_size or None
    signals = Signals()
    with signals.watched(), contextlib.ExitStack() as stack:
        with errors_as_one_line():
            access_log = stack.enter_context(open_access_log(arguments.access_log))
            if access_log is not None:
                options["access_log"] = partial(print, file=access_log)
            check_installed()
            from ..edge import Edge
            from ..edge.front.collecting import collect_seldom
            from ..edge.front.descriptors import make_room

            edge = Edge(
                routes,
                hosts=hosts,
                listeners=arguments.bind or [groups.DEFAULT_BIND],
                settings=front_end.settings(arguments),
                **options,
                **front_end.tls(arguments),
            )
            make_room(edge.max_connections)
            edge.start()
            collect_seldom()
        try:
            handlers = "; ".join(f"{one.sender} at {one.send_spec} and {one.recv_spec}" for one in edge.handlers)
            where = " and ".join(_shown(one, tls=bool(arguments.certfile)) for one in edge.addresses)
            log.info("listening on %s (embedded front end), for %s", where, handlers)
            signals.stop.wait()
            log.info("ending")
            # In a greenlet, so that a second signal can cut it short.
            ending = gevent.spawn(edge.stop, arguments.graceful_timeout)
            gevent.wait([ending, signals.hurry], count=1)
            ending.kill()
        finally:
            edge.stop(0)
    return 0


def _shown(address: str, *, tls: bool) -> str:
    from ..edge.listen_address import ListenAddress

    parsed = ListenAddress.parse(address)
    return address if parsed.host is None else front_end.url((parsed.host, parsed.port), tls=tls)


def _routes(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the handlers by route, those of any host and those of one."""
    handlers = {one.sender: one for one in arguments.handler}
    if not handlers:
        raise Failure("say where handlers connect: --handler NAME=PUSH,SUB", 2)
    if len(handlers) < len(arguments.handler):
        raise Failure("--handler: two have the same name", 2)
    routes = {(host, path): name for host, path, name in arguments.route}
    if len(routes) < len(arguments.route):
        raise Failure("--route: two have the same path", 2)
    if not routes and len(handlers) == 1:
        routes = {("", path): name for path in _EVERYTHING for name in handlers}
    found: dict[str, dict[str, Any]] = {"": {}}
    for (host, path), name in routes.items():
        if name not in handlers:
            raise Failure(f"--route {host}{path}={name}: there is no --handler {name}=...", 2)
        found.setdefault(host, {})[path] = handlers[name]
    for name in handlers:
        if name not in routes.values():
            raise Failure(f"--handler {name}: no --route leads to it; say --route PATH={name}", 2)
    if not found[""]:
        raise Failure("say where requests of other hosts go: --route PATH=NAME", 2)
    return found.pop(""), found
