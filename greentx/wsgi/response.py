"""Parts of a response: its head, pieces joined on their way out, ``wsgi.file_wrapper``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any

from gevent.hub import get_hub

from ..errors import GreentxError

if TYPE_CHECKING:
    from .exchange import Exchange

__all__ = ["JOIN_BYTES", "FileWrapper", "PieceWriter", "build_head", "encode_headers", "without_body"]

#: Pieces of a streamed response are joined up to this many bytes.
JOIN_BYTES = 65536

# A piece goes out at once where the last one went out at least so many seconds ago: a server may not hold back what
# the application gave it (PEP 3333, "Buffering and Streaming"), a message each for a thousand small ones is too much.
_JOIN_SECONDS = 0.002

_SPECIAL = frozenset({"connection", "content-length", "date", "transfer-encoding"})

# Names are few, but an application may make them up without end.
_MAX_NAMES = 1024
_names: dict[str, tuple[bytes, str]] = {}


def build_head(status: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the bytes of a head. *status* and *headers* were checked by :func:`encode_headers` or are our own."""
    return b"HTTP/1.1 %b\r\n%b\r\n" % (status, b"".join([b"%b: %b\r\n" % header for header in headers]))


def encode_headers(headers: Iterable[tuple[str, str]]) -> tuple[list[tuple[bytes, bytes]], dict[str, str]]:
    """Return the application's headers as bytes, and those that matter to the server, by lower-case name.

    Raises:
        ValueError: A CR or LF in one, which would begin another header or the body.
        UnicodeError: One is no native string of latin-1 characters (PEP 3333, "Unicode Issues").
    """
    encoded = []
    special: dict[str, str] = {}
    for name, value in headers:
        known = _names.get(name) or _new_name(name)
        if not isinstance(value, str):
            raise UnicodeError(f"the value of header {name!r} is no native string: {value!r}")
        try:
            data = value.encode("latin-1")
        except UnicodeEncodeError as error:
            raise UnicodeError(f"header {name!r}: {value!r} has a character that latin-1 does not have") from error
        if b"\n" in data or b"\r" in data:
            raise ValueError(f"carriage return or newline in the value of header {name!r}: {value!r}")
        encoded.append((known[0], data))
        if known[1]:
            special[known[1]] = value
    return encoded, special


def _new_name(name: str) -> tuple[bytes, str]:
    """Return a header's name as bytes and, where it matters to the server, in lower case; else ``""``."""
    if not isinstance(name, str):
        raise UnicodeError(f"the header name {name!r} is no native string")
    try:
        data = name.encode("latin-1")
    except UnicodeEncodeError as error:
        raise UnicodeError(f"header name {name!r} has a character that latin-1 does not have") from error
    if b"\n" in data or b"\r" in data:
        raise ValueError(f"carriage return or newline in header name {name!r}")
    lower = name.lower()
    result = data, lower if lower in _SPECIAL else ""
    if len(_names) < _MAX_NAMES:
        _names[name] = result
    return result


def without_body(code: int) -> bool:
    """True for the codes whose responses end with their head, among those that an application may answer with."""
    return code == 204 or code == 304


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
