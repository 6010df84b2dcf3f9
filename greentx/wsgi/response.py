"""Parts of a response: its head, pieces joined on their way out, ``wsgi.file_wrapper``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any

from gevent.hub import get_hub

from ..errors import GreentxError
from ..protocol.cache import SmallMap
from ..protocol.http1 import build_chunk, build_field

if TYPE_CHECKING:
    from .exchange import Exchange

__all__ = [
    "CLOSE",
    "JOIN_BYTES",
    "Body",
    "FileWrapper",
    "build_head",
    "encode_headers",
    "parse_status",
    "say_close",
]

#: The field of an answer behind which the connection ends.
CLOSE = (b"Connection", b"close")

#: Pieces of a streamed response are joined up to this many bytes.
JOIN_BYTES = 65536

# A piece goes out at once where the last one went out at least so many seconds ago: a server may not hold back what
# the application gave it (PEP 3333, "Buffering and Streaming"), a message each for a thousand small ones is too much.
_JOIN_SECONDS = 0.002

_SPECIAL = frozenset({"connection", "content-length", "date", "transfer-encoding"})

# A code, and a phrase. 1xx are interim (RFC 9110, section 15.2): a client would take what follows for the answer.
_parse_status = re.compile(r"([2-9][0-9]{2})(?: .*)?", re.ASCII | re.DOTALL).fullmatch
_find_control = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]").search
_parse_length = re.compile(r"[0-9]{1,19}", re.ASCII).fullmatch

# Applications mostly give the same headers again and again: what they became is kept, of short ones, with a bound.
_MAX_KNOWN_SIZE = 64
_known_headers: SmallMap[tuple[str, str], tuple[tuple[bytes, bytes], str, str]] = SmallMap(1024)
_known_lines: SmallMap[tuple[bytes, bytes], bytes] = SmallMap(1024)
_known_statuses: SmallMap[str, tuple[bytes, int]] = SmallMap(1024)


def build_head(status: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the bytes of a head.

    Args:
        status: From :func:`parse_status`, or our own.
        headers: Pairs of bytes. They are checked here as well: hooks of a handler may have changed them.

    Raises:
        LocalProtocolError: As :func:`greentx.protocol.http1.build_head`.
    """
    get = _known_lines.get
    try:
        # Applications send the same few headers, so most lines are found, not built.
        lines = [get(header) or _new_line(header) for header in headers]
    except TypeError:  # one that cannot be looked up, such as a bytearray
        lines = [build_field(*header) for header in headers]
    return b"HTTP/1.1 %b\r\n%b\r\n" % (status, b"".join(lines))


def _new_line(header: tuple[bytes, bytes]) -> bytes:
    line = build_field(*header)
    if len(line) <= _MAX_KNOWN_SIZE:
        _known_lines.keep(header, line)
    return line


def encode_headers(headers: Iterable[tuple[str, str]]) -> tuple[list[tuple[bytes, bytes]], dict[str, str]]:
    """Return the application's headers as bytes, and those that matter to the server, by lower-case name.

    A ``Content-Length`` that is said twice alike goes out once.

    Raises:
        ValueError: A name that is not a token, a control character in a value: another header, the body or a second
            answer could begin there. A ``Content-Length`` that is not a number, or is said to be two.
        UnicodeError: One is not a native string of latin-1 characters (PEP 3333, "Unicode Issues").
    """
    encoded = []
    special: dict[str, str] = {}
    for header in headers:
        try:
            known = _known_headers.get(header) or _new_header(header)
        except TypeError:  # a list where PEP 3333 wants a tuple
            known = _new_header(header)
        pair, name, value = known
        if name:
            if name not in special:
                special[name] = value
            elif name != "content-length":
                # Several fields are one, joined by commas (RFC 9110, section 5.3).
                special[name] = f"{special[name]}, {value}"
            elif special[name] != value:
                raise ValueError(f"Content-Length is said to be {special[name]} and {value}")
            else:
                continue
        encoded.append(pair)
    return encoded, special


def _new_header(header: tuple[str, str]) -> tuple[tuple[bytes, bytes], str, str]:
    """Return a header as bytes; where it matters to the server, its name in lower case, else ``""``; and its value."""
    name, value = header
    if not isinstance(name, str):
        raise UnicodeError(f"the header name {name!r} is not a native string")
    if not isinstance(value, str):
        raise UnicodeError(f"the value of header {name!r} is not a native string: {value!r}")
    try:
        pair = name.encode("latin-1"), value.encode("latin-1")
    except UnicodeEncodeError as error:
        raise UnicodeError(f"header {name!r}: {value!r} has a character that latin-1 does not have") from error
    # Now, so that the application hears of it, and of the bytes: what a subclass of str becomes is its choice.
    _new_line(pair)
    lower = name.lower()
    if lower == "content-length" and not _parse_length(value):
        raise ValueError(f"Content-Length {value[:40]!r} is not a number")
    # Only plain str are remembered: a subclass may be equal to one and encode to something else.
    result = pair, lower if lower in _SPECIAL else "", value
    if name.__class__ is str and value.__class__ is str and len(name) + len(value) <= _MAX_KNOWN_SIZE:
        _known_headers.keep((name, value), result)
    return result


def parse_status(status: str) -> tuple[bytes, int]:
    """Return the status line of an application, ``"200 OK"``, as bytes and its number.

    Raises:
        ValueError: It is not three digits, with a phrase behind a space; it has a control character, or an interim
            code, 101 among them.
        UnicodeError: It is not a native string of latin-1 characters.
    """
    if not isinstance(status, str):
        raise UnicodeError(f"the status {status!r} is not a native string")
    is_plain = status.__class__ is str
    known = _known_statuses.get(status) if is_plain else None
    if known is None:
        encoded = status.encode("latin-1")
        # Mongrel2 would read what the client sends behind it as requests, and the client our answers to these as bytes
        # of the other protocol.
        if encoded.startswith(b"101"):
            raise ValueError(
                f"status {status[:80]!r}: a connection can be switched to a WebSocket only, and by what sends the 101 "
                "itself: environ['wsgi.websocket'] or environ['werkzeug.socket']"
            )
        match = _parse_status(status)
        if match is None or _find_control(encoded):
            raise ValueError(f"status {status[:80]!r} is not a final status, such as '200 OK'")
        # The space behind the code is part of the line, with or without a phrase (RFC 9112, section 4).
        known = encoded if len(encoded) > 3 else b"%b " % encoded, int(match[1])
        if is_plain and len(status) <= _MAX_KNOWN_SIZE:
            _known_statuses.keep(status, known)
    return known


def say_close(headers: list[tuple[bytes, bytes]]) -> None:
    """Put :data:`CLOSE` among *headers*, in the place of ``Connection: keep-alive``, which would be untrue."""
    headers[:] = [one for one in headers if (one[0].lower(), one[1].lower()) != (b"connection", b"keep-alive")]
    headers.append(CLOSE)


class Body:
    """Sends a response piece by piece, several small ones in one message.

    What was put goes out at once, or when the greenlet lets the hub run, or when :data:`JOIN_BYTES` are together.

    Args:
        exchange: Where to.
        left: The ``Content-Length``, if there is one.
        chunked: It has none, and goes out in chunks.
        dropped: A HEAD's, or another that may not be sent.

    Attributes:
        left: How many bytes are still to come; ``None`` where that is not known.
        dropped: What comes is dropped without a word.
    """

    __slots__ = ("_chunked", "_exchange", "_last_sent", "_pieces", "_scheduled", "_size", "dropped", "left")

    def __init__(
        self, exchange: Exchange, left: int | None = None, *, chunked: bool = False, dropped: bool = False
    ) -> None:
        self.left = None if dropped else left
        self.dropped = dropped
        self._exchange = exchange
        self._chunked = chunked
        self._pieces: list[bytes] = []
        self._size = 0
        self._last_sent = 0.0
        self._scheduled = False

    def is_too_long(self, data: bytes) -> bool:
        """Return whether :meth:`framed` will cut *data*; nothing but that is sent then."""
        return self.left is not None and not self.dropped and len(data) > self.left

    def framed(self, data: bytes) -> bytes:
        """Return what is to be put for a piece of the body: no more than its length allows, and as a chunk."""
        if self.dropped:
            return b""
        if self.left is not None:
            # The client would read the rest as its next response.
            self.dropped = len(data) > self.left
            data = data[: self.left]
            self.left -= len(data)
        return build_chunk(data) if data and self._chunked else data

    def put(self, data: bytes) -> None:
        """Send bytes of the response, framed already, now or soon.

        Blocks this greenlet while too much waits for this browser.

        Raises as :meth:`greentx.wsgi.exchange.Exchange.send`.
        """
        # Joined later, once: to join with each piece would copy the first ones again and again.
        self._pieces.append(data)
        self._size += len(data)
        if self._size >= JOIN_BYTES or monotonic() - self._last_sent >= _JOIN_SECONDS:
            self._send(False, False)
            self._last_sent = monotonic()
        else:
            # What is only kept cannot find out that the client has gone, so the application is told here.
            self._exchange.check()
            if not self._scheduled:
                self._scheduled = True
                get_hub().loop.run_callback(self._send_from_hub)

    def end(self, data: bytes = b"", *, last: bool = True, close: bool = False) -> None:
        """Send what waits, and *data*; arguments and errors as :meth:`greentx.wsgi.exchange.Exchange.send`."""
        self._pieces.append(data)
        self._send(last, close)

    def _send(self, last: bool, close: bool) -> None:
        pieces = self._pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._size = 0
        self._exchange.send(data, last=last, close=close)

    def _send_from_hub(self) -> None:
        # The hub cannot be made to wait for a slow browser. The application's greenlet can, and is, in put(): what goes
        # out here does not put that off.
        self._scheduled = False
        exchange = self._exchange
        if self._pieces and not exchange.ended and not exchange.disconnected.is_set():
            try:
                self._send(False, False)
            except GreentxError:
                exchange.lose()  # the application's greenlet finds out with its next piece


class FileWrapper:
    """The class behind ``environ['wsgi.file_wrapper']``: iterates over a file (PEP 3333).

    Args:
        filelike: Anything with ``read(size)``.
        blksize: What the application suggests to read at a time.

    Attributes:
        filelike, blksize: As given.
    """

    def __init__(self, filelike: Any, blksize: int = 8192) -> None:
        self.filelike = filelike
        self.blksize = blksize
        # Only where the file has one: servers call close() of whatever they are given.
        if hasattr(filelike, "close"):
            self.close = filelike.close

    def __iter__(self) -> Iterator[bytes]:
        # The suggestion is that of a server with a socket; larger pieces cost less here.
        size = max(self.blksize, JOIN_BYTES)
        while data := self.filelike.read(size):
            yield data
