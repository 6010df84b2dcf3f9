"""Parts of a response: its head, pieces joined on their way out, ``wsgi.file_wrapper``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from gevent.hub import get_hub

from ..errors import GreentxError

if TYPE_CHECKING:
    from .exchange import Exchange

__all__ = ["JOIN_BYTES", "FileWrapper", "PieceWriter", "build_head", "encode_headers", "parse_status"]

K = TypeVar("K")
V = TypeVar("V")

#: Pieces of a streamed response are joined up to this many bytes.
JOIN_BYTES = 65536

# A piece goes out at once where the last one went out at least so many seconds ago: a server may not hold back what
# the application gave it (PEP 3333, "Buffering and Streaming"), a message each for a thousand small ones is too much.
_JOIN_SECONDS = 0.002

_SPECIAL = frozenset({"connection", "content-length", "date", "transfer-encoding"})

# Applications mostly give the same headers again and again: what they became is kept, of short ones, with a bound.
_MAX_KNOWN = 1024
_MAX_KNOWN_SIZE = 64
_known_headers: dict[tuple[str, str], tuple[tuple[bytes, bytes], str, str]] = {}
_known_lines: dict[tuple[bytes, bytes], bytes] = {}
_known_statuses: dict[str, tuple[bytes, int]] = {}


def build_head(status: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the bytes of a head. *status* and *headers* were checked by :func:`encode_headers` or are our own."""
    get = _known_lines.get
    try:
        lines = [get(header) or _new_line(header) for header in headers]
    except TypeError:  # one that cannot be looked up, such as a bytearray
        lines = [b"%b: %b\r\n" % tuple(header) for header in headers]
    return b"HTTP/1.1 %b\r\n%b\r\n" % (status, b"".join(lines))


def _new_line(header: tuple[bytes, bytes]) -> bytes:
    line = b"%b: %b\r\n" % header
    if len(line) <= _MAX_KNOWN_SIZE:
        _keep(_known_lines, header, line)
    return line


def encode_headers(headers: Iterable[tuple[str, str]]) -> tuple[list[tuple[bytes, bytes]], dict[str, str]]:
    """Return the application's headers as bytes, and those that matter to the server, by lower-case name.

    Raises:
        ValueError: A CR or LF in one, which would begin another header or the body.
        UnicodeError: One is no native string of latin-1 characters (PEP 3333, "Unicode Issues").
    """
    encoded = []
    special: dict[str, str] = {}
    for header in headers:
        try:
            known = _known_headers.get(header) or _new_header(header)
        except TypeError:  # a list where PEP 3333 wants a tuple
            known = _new_header(header)
        encoded.append(known[0])
        if known[1]:
            special[known[1]] = known[2]
    return encoded, special


def _new_header(header: tuple[str, str]) -> tuple[tuple[bytes, bytes], str, str]:
    """Return a header as bytes; where it matters to the server, its name in lower case, else ``""``; and its value."""
    name, value = header
    if not isinstance(name, str):
        raise UnicodeError(f"the header name {name!r} is no native string")
    if not isinstance(value, str):
        raise UnicodeError(f"the value of header {name!r} is no native string: {value!r}")
    try:
        pair = name.encode("latin-1"), value.encode("latin-1")
    except UnicodeEncodeError as error:
        raise UnicodeError(f"header {name!r}: {value!r} has a character that latin-1 does not have") from error
    if "\n" in name or "\r" in name:
        raise ValueError(f"carriage return or newline in header name {name!r}")
    if "\n" in value or "\r" in value:
        raise ValueError(f"carriage return or newline in the value of header {name!r}: {value!r}")
    lower = name.lower()
    result = pair, lower if lower in _SPECIAL else "", value
    if name.__class__ is str and value.__class__ is str and len(name) + len(value) <= _MAX_KNOWN_SIZE:
        _keep(_known_headers, (name, value), result)
    return result


def parse_status(status: str) -> tuple[bytes, int]:
    """Return the status line of an application, ``"200 OK"``, as bytes and its number.

    Raises:
        ValueError: A CR or LF in it; it does not begin with a number.
        UnicodeError: It is no native string of latin-1 characters.
    """
    if not isinstance(status, str):
        raise UnicodeError(f"the status {status!r} is no native string")
    is_plain = status.__class__ is str
    known = _known_statuses.get(status) if is_plain else None
    if known is None:
        if "\r" in status or "\n" in status:
            raise ValueError(f"carriage return or newline in status {status!r}")
        known = status.encode("latin-1"), int(status.split(" ", 1)[0])
        if is_plain and len(status) <= _MAX_KNOWN_SIZE:
            _keep(_known_statuses, status, known)
    return known


def _keep(known: dict[K, V], key: K, value: V) -> None:
    if len(known) >= _MAX_KNOWN:
        known.clear()
    known[key] = value


class PieceWriter:
    """Sends the pieces of a streamed response, several small ones in one message.

    What was put goes out at once, or when the greenlet lets the hub run, or when :data:`JOIN_BYTES` are together.
    """

    __slots__ = ("_exchange", "_last_sent", "_pieces", "_scheduled", "_size")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._pieces: list[bytes] = []
        self._size = 0
        self._last_sent = 0.0
        self._scheduled = False

    def put(self, data: bytes) -> None:
        """Send a piece, now or soon. Blocks this greenlet while too much waits for this browser.

        Raises as :meth:`greentx.wsgi.exchange.Exchange.send`.
        """
        self._pieces.append(data)
        self._size += len(data)
        if self._size >= JOIN_BYTES or monotonic() - self._last_sent >= _JOIN_SECONDS:
            self._send(False, False)
            self._last_sent = monotonic()
        else:
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
        if hasattr(filelike, "close"):
            self.close = filelike.close

    def __iter__(self) -> Iterator[bytes]:
        # The suggestion is that of a server with a socket; larger pieces cost less here.
        size = max(self.blksize, JOIN_BYTES)
        while data := self.filelike.read(size):
            yield data
