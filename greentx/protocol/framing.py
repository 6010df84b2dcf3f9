"""Where a request ends, what its headers are called, and the host: RFC 9112, sections 3.2, 5 and 6, against Mongrel2.

Mongrel2 reads a length as strtol(3) does, keeps the first of several, and reads the body of a coding that it does not
know as the next request; a header's name may hold control characters, line ends among them (probed). A client could so
have one request read as two, or two as one. Mongrel2 also passes on two Host fields, or none.

Of the lines of one name Mongrel2 hands on the first five, and drops the others (probed). A client that sends five could
so remove the one that a proxy adds, and with it who the client is; or have a length dropped that differs.

What may be read in two ways is refused with 400, and its connection is closed, before an application sees it: what
comes behind it may be made up.
"""

from __future__ import annotations

import re

from ..errors import RemoteProtocolError
from .headers import MAX_LINES, NEVER_PLAIN, RawHeaders, plain_names, text_lines, text_value
from .kinds import Kind
from .request import Request

__all__ = ["MAX_LENGTH", "FramingError", "check_framing"]

#: Mongrel2 keeps a length in an int, and reads a longer one as no body at all (probed).
MAX_LENGTH = 2**31 - 1

# Bounded: int() of thousands of digits is slow, and an error of its own.
_MAX_DIGITS = 19
_is_length = re.compile(r"[0-9]{1,19}", re.ASCII).fullmatch
_find_control = re.compile(r"[\x00-\x1f\x7f]").search

_LENGTH, _CODING = "content-length", "transfer-encoding"
_MAX_NAME_SIZE = 256


class FramingError(RemoteProtocolError, ValueError):
    """Where this request ends, or whom it is for, may be read in two ways: answer 400 and close."""


def check_framing(request: Request, *, apart: bool) -> None:
    """Check names and host, and that the headers say where the request ends as Mongrel2 has understood it.

    A body without any header that announces it is not looked at: only a stand-in for Mongrel2 can send it.

    Args:
        apart: Its body does not come with it, or not all of it, but as a stream, or in a file.

    Raises:
        FramingError: A control character in a name; a name with five lines or more; several Host fields, or none in
            HTTP/1.1; ``Transfer-Encoding`` next to ``Content-Length``, or in HTTP/1.0; a coding other than ``chunked``;
            a length that is not a number, is said to be two, is not the body's or above :data:`MAX_LENGTH`.

    Source: RFC 9110, section 5.1; RFC 9112, sections 3.2, 6.1 and 6.3; probed on 1.12.2.
    """
    # Mongrel2 adds a body of its own to a handshake, whose client has to send none.
    size = 0 if request.method == Kind.WEBSOCKET_HANDSHAKE else len(request.body)
    if not request.plain:
        _check_names(request.raw)
        _check_lines(request.raw)
        _check_host(request)
    elif not apart:
        # Nearly all requests with a body.
        known = request.raw.get(b"content-length")
        if known.__class__ is bytes and known.isdigit() and len(known) <= _MAX_DIGITS and int(known) == size:
            return
    length, coding = request.header(_LENGTH), request.header(_CODING)
    if coding is not None:
        # Mongrel2 knows this one coding, in this one spelling; the body of another one it reads as the next request
        # (probed), so a client could smuggle one in.
        if length is not None:
            raise FramingError(f"Transfer-Encoding {_shown(coding)} next to Content-Length {_shown(length)}")
        # Of a proxy in front that does not know it, HTTP/1.0 may have another idea of where the body ends.
        if coding != "chunked" or not apart or request.header("VERSION") == "HTTP/1.0":
            raise FramingError(f"Transfer-Encoding {_shown(coding)} cannot be read here")
    elif length is not None:
        # Equal ones count as one (RFC 9112, section 6.3). Mongrel2 passes on blanks behind a value.
        values = [one.rstrip(" \t") for one in text_lines(length)] or [""]
        if len(set(values)) > 1:
            raise FramingError(f"Content-Length is said to be {' and '.join(values)[:80]}")
        value = values[0]
        if not _is_length(value) or (not size <= int(value) <= MAX_LENGTH if apart else int(value) != size):
            raise FramingError(f"Content-Length {value[:40]!r} of a body of {size} bytes")


def _check_names(raw: RawHeaders) -> None:
    for name in raw.keys() - plain_names:
        text = text_value(name)
        if _find_control(text):
            raise FramingError(f"the name {text[:40]!r} of a header has a control character in it")
        # A number has the text of another name.
        if text not in NEVER_PLAIN and len(text) <= _MAX_NAME_SIZE and isinstance(name, (bytes, str)):
            plain_names.keep(name)


def _check_lines(raw: RawHeaders) -> None:
    for name, value in raw.items():
        # Five as well: whether there were more cannot be told.
        if value.__class__ is list and len(value) >= MAX_LINES:
            raise FramingError(f"{text_value(name)[:40]!r} comes {MAX_LINES} times or more: Mongrel2 drops the others")


def _check_host(request: Request) -> None:
    host = request.header("host")
    if isinstance(host, list) and len(host) != 1:
        raise FramingError(f"{len(host)} Host fields: {_shown(host)}")
    # Only Mongrel2 says who the client is: stand-ins for it, as mongrel2-transceiver's, have no browsers and no hosts.
    if host is None and request.header("VERSION") == "HTTP/1.1" and request.has("REMOTE_ADDR"):
        raise FramingError("HTTP/1.1 without Host")


def _shown(value: str | list[str]) -> str:
    return repr(value)[:60]
