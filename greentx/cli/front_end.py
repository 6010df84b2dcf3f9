"""A front end of our own: what it is told, and how its address is shown."""

from __future__ import annotations

import argparse
from typing import Any

from .arguments import Failure
from .groups import DEFAULT_BIND

__all__ = ["check", "settings", "shown", "tls", "url"]

# What listens on every address of the machine.
_EVERYWHERE = ("", "0.0.0.0", "::")


def check(arguments: argparse.Namespace) -> None:
    """Fill in where it listens, and refuse what does not go together."""
    if not arguments.connect and not arguments.bind:
        arguments.bind = DEFAULT_BIND
    own = {"--set": arguments.set, "--certfile": arguments.certfile, "--keyfile": arguments.keyfile}
    own["--front-end"] = arguments.front_end != "auto"
    given = [name for name, value in own.items() if value]
    if arguments.connect and given:
        raise Failure(
            f"{', '.join(given)}: for a front end of our own (--bind); configure the one of --connect there", 2
        )
    if arguments.keyfile and not arguments.certfile:
        raise Failure("--keyfile needs --certfile", 2)


def settings(arguments: argparse.Namespace) -> dict[str, int | str]:
    """Return the settings that it is started with, over the defaults."""
    return dict(arguments.set)


def tls(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the files of its certificate, as arguments of a ``WSGIServer``."""
    files = {"certfile": arguments.certfile, "keyfile": arguments.keyfile}
    return {name: value for name, value in files.items() if value is not None}


def url(address: Any, *, tls: bool) -> str:
    """Return the URL of an *address* that a front end listens on."""
    everywhere = address[0] in _EVERYWHERE
    host, port = "localhost" if everywhere else address[0], address[1]
    shown = f"http{'s' if tls else ''}://{f'[{host}]' if ':' in host else host}:{port}/"
    return f"{shown} and every other address of this machine" if everywhere else shown


def shown(listener: Any) -> str:
    """Return where a listener of our own is reached, and which front end that is."""
    kind = {"mongrel2": "mongrel2", "edge": "embedded front end"}[listener.front_end]
    if isinstance(listener.address, str):
        return f"unix:{listener.address} ({kind})"
    return f"{url(listener.address, tls=listener.ssl_enabled)} ({kind})"
