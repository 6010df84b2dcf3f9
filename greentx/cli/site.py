"""Where ``greentx serve`` serves, and what options mean to the objects that serve."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from typing import IO, Any

from ..protocol.websocket.origins import parse_origins
from . import front_end

__all__ = ["FrontEnd", "bounds", "check", "control", "node_bounds", "proxies", "spawn"]

# Options that are arguments by the same name, where something was said; of them what may wait on a Node for the
# application, while all else belongs to its relay; those for which 0 means none.
_BOUNDS = ("max_message_size", "max_queue_bytes", "max_pending_bytes", "ping_timeout", "upload_store")
_NODE_BOUNDS = ("max_queue_bytes", "max_pending_bytes", "upload_store")
_NONE_BY_ZERO = ("max_message_size", "ping_timeout")


def bounds(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the bounds that were said, and ``origins``, as arguments of a ``WSGIServer`` or a Transceiver."""
    options = _said(arguments, _BOUNDS)
    if arguments.origins is not None:
        options["origins"] = parse_origins(arguments.origins)
    return options


def node_bounds(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return those that were said, as arguments of a ``Node``."""
    return _said(arguments, _NODE_BOUNDS)


def _said(arguments: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    return {name: None if value == 0 and name in _NONE_BY_ZERO else value for name, value in given.items()}


def control(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Return what the control socket is told; ``None`` where there is none. Raises ``ValueError``."""
    from ..wsgi.listeners import control_options

    return control_options(arguments.control, arguments.control_allow, arguments.curve_secret, arguments.curve_allow)


def check(arguments: argparse.Namespace) -> None:
    """Refuse now what another process would refuse later, whose exit code nobody sees. Raises ``ValueError``."""
    from ..edge.choice import make_front_end
    from ..handler.uploads import check_store
    from ..protocol.fields import check_sender
    from ..transport.endpoints import connect_endpoint
    from ..transport.keys import load_keys, public_keys
    from ..wsgi.listeners import SETTINGS, parse_url

    control(arguments)
    if arguments.curve_secret:
        load_keys(arguments.curve_secret)
    if arguments.curve_allow:
        keys = arguments.curve_allow
        public_keys(keys[0] if len(keys) == 1 else keys)
    check_store(arguments.upload_store)
    if not arguments.connect:
        make_front_end(arguments.front_end, settings={**SETTINGS, **front_end.settings(arguments)})
    senders = set()
    for url in arguments.connect:
        sender, *endpoints = parse_url(url)
        for endpoint in endpoints:
            if endpoint is not None:
                connect_endpoint(endpoint)
        if check_sender(sender) in senders:
            raise ValueError(f"sender {sender!r} is in use for two handler entries: each has its own send_ident")
        senders.add(sender)


def proxies(arguments: argparse.Namespace) -> str:
    """Return whom to believe where requests come from."""
    if arguments.forwarded_allow_ips is None:
        # The variable and the default of gunicorn and uvicorn.
        return os.environ.get("FORWARDED_ALLOW_IPS", "127.0.0.1,::1")
    return str(arguments.forwarded_allow_ips)


def spawn(arguments: argparse.Namespace) -> Any:
    """Return how requests run, as a ``WSGIServer`` is told it."""
    return "default" if arguments.pool is None else arguments.pool


class FrontEnd:
    """A front end of our own, or one that runs.

    Args:
        arguments: Those of ``greentx serve``. ``entry`` in them: another process owns the front end.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._urls: list[str] = arguments.entry or arguments.connect

    def make(self, application: Callable[..., Any], access_log: IO[str] | None) -> Any:
        from ..wsgi import WSGIServer
        from ..wsgi.listeners import parse_url

        arguments = self._arguments
        # All of them before anything starts: a typing error in the last one must not show as a half-started server.
        for url in self._urls:
            parse_url(url)
        options = bounds(arguments) | {"spawn": spawn(arguments), "trusted_proxies": proxies(arguments)}
        options["control"] = control(arguments)
        if arguments.shared:
            options |= {"shared": True, "environ": {"wsgi.multiprocess": True}}
        listener = self._urls[0] if self._urls else arguments.bind
        if not self._urls:
            options |= front_end.tls(arguments) | {"mongrel2_settings": front_end.settings(arguments)}
            options["front_end"] = arguments.front_end
        return WSGIServer(listener, application, log=access_log, error_log=sys.stderr, **options)

    def start(self, server: Any) -> None:
        from ..wsgi.listeners import parse_url

        server.start()
        try:
            for url in self._urls[1:]:
                parse_url(url).add_to(server.transceiver)
        except BaseException:  # raised again: the started server is nobody else's to stop
            server.stop(0)
            raise

    def where(self, server: Any) -> str:
        if server.listener.owns_front_end:
            return f"on {front_end.shown(server.listener)}"
        return "over " + ", ".join(connection.pull_endpoint for connection in server.transceiver.connections.values())
