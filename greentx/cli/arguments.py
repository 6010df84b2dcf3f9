"""What arguments of the command are checked by, and how it fails."""

from __future__ import annotations

import argparse
import contextlib
import errno
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from ..errors import BindError, GreentxError
from ..protocol.proxies import TrustedProxies
from ..protocol.websocket.origins import parse_origins
from ..transport.endpoints import bind_endpoint, connect_endpoint

__all__ = [
    "Failure",
    "address",
    "count",
    "endpoint",
    "errors_as_one_line",
    "handler",
    "listen_address",
    "methods",
    "origins",
    "peer",
    "port",
    "proxies",
    "route",
    "seconds",
    "setting",
    "size",
    "url",
]

_LAST_PORT = 65535

# What the system's words for an address that cannot be bound mean to somebody who meets them for the first time.
_HINTS = {
    errno.EADDRINUSE: "another program listens there: end it, or choose another port with --bind (0: a free one)",
    errno.EADDRNOTAVAIL: "this machine has no such address: 0.0.0.0 and [::] stand for all that it has",
}


class Failure(Exception):
    """Ends the program with one line on stderr, and this exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


# argparse calls these with the text of one option. It prints an ArgumentTypeError as it is, and of a ValueError only
# that the value is invalid, without the reason.


def count(text: str) -> int:
    """Read a number of things, of which there has to be one."""
    return number(text, 1)


def size(text: str) -> int:
    """Read a number of bytes, where 0 has a meaning of its own."""
    return number(text, 0)


def number(text: str, least: int) -> int:
    """Read a whole number, *least* or more."""
    with contextlib.suppress(ValueError):
        if (value := int(text)) >= least:
            return value
    raise argparse.ArgumentTypeError(f"{text} is not a whole number, or too small: the minimum is {least}")


def port(text: str) -> int:
    """Read a port, where 0 means a free one."""
    if (value := number(text, 0)) > _LAST_PORT:
        raise argparse.ArgumentTypeError(f"{text} is not a port: the last one is {_LAST_PORT}")
    return value


def seconds(text: str) -> float:
    """Read a time, which may be 0 and has to end."""
    with contextlib.suppress(ValueError):
        # Not inf, nor nan, which float() reads too: a timeout with either would never come.
        if 0 <= (value := float(text)) < float("inf"):
            return value
    raise argparse.ArgumentTypeError(f"{text} is not a number of seconds")


def address(text: str) -> str:
    """Return *text*, which has to be an address to listen on: ``HOST:PORT``, a port, or ``unix:/path``."""
    if text.startswith("unix:"):
        return listen_address(text)
    if "/" in text.partition("://")[0]:
        raise argparse.ArgumentTypeError(f"{text} is not HOST:PORT; write unix:{text} for a Unix socket")
    if "://" in text:
        parts = urlsplit(text)
        meant = f"; write {parts.netloc}" if parts.scheme.startswith("http") and ":" in parts.netloc else ""
        raise argparse.ArgumentTypeError(f"{text} is not HOST:PORT{meant or '; URLs are for --connect'}")
    host, colon, port = text.rpartition(":")
    if not (port.isascii() and port.isdecimal()):
        # What has no port at all: "localhost", "[::1]".
        missing = not colon or port.endswith("]")
        why = f"has no port; write {text}:8000" if missing else f"is not HOST:PORT: {port!r} is not a port"
        raise argparse.ArgumentTypeError(f"{text} {why}")
    if int(port) > _LAST_PORT:
        raise argparse.ArgumentTypeError(f"{text} is not HOST:PORT: a port is 0 to {_LAST_PORT}")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise argparse.ArgumentTypeError(f"{text} can be read in two ways; write [{host}]:{port}")
    return text


def endpoint(text: str) -> str:
    """Return *text*, which has to be where ZeroMQ may bind: ``HOST:PORT``, ``*:PORT``, ``ipc://PATH``."""
    return _checked(text, bind_endpoint)


def peer(text: str) -> str:
    """Return *text*, which has to be where ZeroMQ may connect: ``HOST:PORT``, ``ipc://PATH``."""
    return _checked(text, connect_endpoint)


def handler(text: str) -> Any:
    """Return the ``Handler`` that ``NAME=PUSH,SUB`` or ``NAME=PUSH,SUB,json`` means."""
    from ..edge import Handler  # it imports much, which only a server needs

    name, _, rest = text.partition("=")
    specs = rest.split(",")
    protocol = specs.pop() if len(specs) == 3 else "tnetstring"
    if not name or len(specs) != 2:
        raise argparse.ArgumentTypeError(f"{text} is not NAME=PUSH,SUB, such as echo=127.0.0.1:9999,127.0.0.1:9998")
    try:
        return Handler(name, bind_endpoint(specs[0]), bind_endpoint(specs[1]), protocol=protocol)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def listen_address(text: str) -> str:
    """Return *text*, which has to be where the embedded front end may listen."""
    from ..edge.listen_address import ListenAddress  # it imports much, which only a server needs

    return _checked(text, ListenAddress.parse)


def route(text: str) -> tuple[str, str, str]:
    """Return host, path and name of ``PATH=NAME`` or ``HOST/PATH=NAME``; the host may be ``""``."""
    where, _, name = text.rpartition("=")
    found = re.fullmatch(r"([^/@<*]*)([/@<].*|\*)", where)
    if not (found and name):
        raise argparse.ArgumentTypeError(f"{text} is not PATH=NAME, such as /chat=chat: a path begins with / @ or <")
    return found[1], found[2], name


def methods(text: str) -> list[str]:
    """Read the methods of HTTP requests, with commas in between."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        # Mongrel2 knows no other, and none that were in small letters.
        if not re.fullmatch(r"[A-Z]+", name):
            raise argparse.ArgumentTypeError(f"{name} is not a method, such as GET or PUT")
    return names


def url(text: str) -> str:
    """Return *text*, which has to name a handler entry of a Mongrel2."""
    from ..wsgi.listeners import parse_url  # it imports much, which only a server needs

    return _checked(text, parse_url)


def setting(text: str) -> tuple[str, int | str]:
    """Return the name and the value of ``NAME=VALUE``, a number where it is one."""
    name, equals, value = text.partition("=")
    if not (equals and value and re.fullmatch(r"[a-z][a-z0-9_.]*", name)):
        raise argparse.ArgumentTypeError(f"{text} is not NAME=VALUE, such as limits.content_length=1000000")
    return name, int(value) if value.isascii() and value.isdecimal() else value


def origins(text: str) -> str:
    """Return *text*, which has to be a list of origins; as text, as a server is told it."""
    return _checked(text, parse_origins)


def proxies(text: str) -> str:
    """Return *text*, which has to be a list of proxies; as text, as above."""
    return _checked(text, TrustedProxies)


def _checked(text: str, check: Callable[[str], object]) -> str:
    try:
        check(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


@contextlib.contextmanager
def errors_as_one_line() -> Iterator[None]:
    """Errors of what we were told to use, as against those of the application, need no traceback."""
    try:
        yield
    # A ValueError is a wrong argument, exit code 2 as for argparse's own; the others are the machine's.
    except (GreentxError, OSError, ValueError) as error:
        raise Failure(_in_words(error), 2 if isinstance(error, ValueError) else 1) from error


def _in_words(error: Exception) -> str:
    if isinstance(error, BindError):
        hint = None if error.errno is None else _HINTS.get(error.errno)
        return f"{error}; {hint}" if hint else str(error)
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)
