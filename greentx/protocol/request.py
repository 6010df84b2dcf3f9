"""Requests as a handler receives them.

A request travels from the server to a handler as one ZeroMQ message::

    SENDER SP CONN_ID SP PATH SP headers body

*headers* is a tnetstring dict (``LEN:...}``) or a netstring of JSON (``LEN:{...},``), whichever the server's
configuration says; the type byte behind it tells which. *body* is a netstring.

Source: Mongrel2's manual, "Message Format"; src/request.c; probed on 1.12.2.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any, BinaryIO, Protocol

from ..errors import RemoteProtocolError
from .cache import SmallMap
from .carrier import Carrier, Receipt
from .fields import CONN_ID, MAX_SHOWN, shown
from .headers import Headers, LateHeaders, text_headers, text_lines, text_value
from .http1 import should_close
from .kinds import ENDS, Kind
from .life import Life
from .message import read_message
from .requests import build_request

__all__ = ["Request", "StoredFile", "parse_request"]

# What persistence() made of a version and the value or values of Connection: few, from ordinary clients.
_known_persistences: SmallMap[tuple[Any, Any], tuple[bool, bool]] = SmallMap(256)
_MAX_PERSISTENCE_SIZE = 72

# Words of ours for messages that Mongrel2 writes otherwise.
_NOT_OF_MONGREL2: dict[str, str] = {Kind.DISCONNECT: Kind.JSON, Kind.UPLOAD_STREAM: ""}

# A name of its own, since looking it up in the enum would cost more than the comparison, for each request.
_HANDSHAKE = Kind.WEBSOCKET_HANDSHAKE.value


class _Sender(Protocol):
    def send(self, data: bytes, /) -> object: ...


class StoredFile(Protocol):
    """The file of a stored body, as a request has it."""

    @property
    def path(self) -> str:
        """Where it is."""

    def open(self) -> BinaryIO:
        """Open it for reading."""

    def delete(self) -> None:
        """Delete it now."""

    def give_away(self) -> None:
        """Somebody else deletes it."""


class Request:
    """One message from Mongrel2: an HTTP request, a WebSocket frame, a JSON or XML message, or a notice.

    Attributes:
        sender: The server's ``send_ident``, the first token of the message.
        conn_id: The server's number for the browser's connection, a decimal string.
        path: What the route was matched against, percent-encoded, never with a space; ``@*`` for a notice.
        body: Bytes. For a WebSocket message the payload, unmasked and whole.
        method: Mongrel2's ``METHOD`` (``GET``, ``JSON``, ``XML``, ...); the events that ``Transceiver.recv`` makes
            have ``WEBSOCKET_CONNECT``, ``WEBSOCKET``, ``WEBSOCKET_CLOSE`` or ``DISCONNECT``. A further piece of a body
            that is streamed (``upload.stream``), which the server sends without a METHOD, has ``UPLOAD_STREAM``.
        life: The life of the server that it came in: where ``life.over``, no answer goes out. ``None`` for one that
            came no such way.
        opcode: The RFC 6455 opcode of a WebSocket message, else ``None``.
        adopted: Behind a relay, of the event with which a WebSocket begins: another Node's application had it before.
        moved: Behind a relay, of ``WEBSOCKET_CLOSE``: it has not ended, but goes on at another Node.
        redelivered: Behind a relay: a Node that ended was given this before, and may have done some of it.
        close_code, close_reason: Why a WebSocket ended, on ``WEBSOCKET_CLOSE``; else ``None`` and ``""``.
    """

    # What every request has is in slots, what few have in ``__dict__``, which is not made for the others: a request
    # is built for each message.
    __slots__ = (
        "__dict__",
        "answered",
        "body",
        "conn_id",
        "known_headers",
        "known_persistence",
        "life",
        "method",
        "path",
        "plain",
        "raw",
        "sender",
    )

    opcode: int | None = None
    close_code: int | None = None
    close_reason: str = ""
    adopted = False
    moved = False
    # The registry's entry, on the event with which a WebSocket begins.
    entry: Any = None
    #: Where another process has received it, an opening handshake or an event of a WebSocket, what carries the answer
    #: there.
    carrier: Carrier | None = None
    #: Behind a relay: who is to be told that this message of a WebSocket is handled.
    receipt: Receipt | None = None
    # A text message as text, where it was decoded already to see that it is UTF-8.
    text: str | None = None
    # The decoded JSON, once it was asked for.
    _data: Any = None
    # It came while another request of its connection was open.
    pipelined = False
    #: Bytes of a streamed body (``upload.stream``) that the server may still read: above 0 the browser is waited for.
    granted = 0
    #: Another process was given it before, and did not answer it; see :mod:`greentx.relay`.
    redelivered = False
    #: The file that Mongrel2 wrote the body to (``upload.temp_store``); else ``None``.
    stored: StoredFile | None = None
    _body_file: BinaryIO | None = None

    def __init__(
        self,
        sender: str,
        conn_id: str,
        path: str,
        headers: Mapping[Any, Any],
        body: bytes = b"",
        method: str | None = None,
    ) -> None:
        if method is None:
            method = _method_of(headers)
        self.sender = sender
        self.conn_id = conn_id
        self.path = path
        self.body = body
        self.method = method
        self.life: Life | None = None
        self.raw = headers
        # The map of text, once it was asked for.
        self.known_headers: Headers | None = None
        # All names of its headers are among plain_names, none comes twice, and there is a Host: the parser asks, where
        # it costs least.
        self.plain = False
        # What persistence() returned.
        self.known_persistence: tuple[bool, bool] | None = None
        # Whether it was answered, whole; kept by the pipeline.
        self.answered = False

    @classmethod
    def parse(cls, message: bytes) -> Request:
        """Parse one message; the same as :func:`parse_request`."""
        return parse_request(message)

    @property
    def headers(self) -> Headers:
        """The headers as a :class:`Headers` map, the same one each time. ``METHOD`` is always :attr:`method`."""
        # Made late: most handlers look at a few headers, or none. Headers that are not plain are rare; those that are
        # packed would be unpacked for each name.
        headers = self.known_headers
        if headers is None:
            if self.plain and self.method and self.raw.__class__ is dict:
                headers = LateHeaders(self.raw, self.method)
            else:
                headers = text_headers(self.raw)
                if self.method and headers.get("METHOD") != self.method:
                    headers["METHOD"] = self.method
            self.known_headers = headers
        return headers

    @property
    def sent_headers(self) -> Mapping[Any, Any]:
        """The headers as they were received, or changed where the application has looked at :attr:`headers`."""
        return self.raw if self.known_headers is None else self.known_headers

    def become(self, method: str) -> None:
        """Make it the event that *method* names: what Mongrel2 sent has been dealt with."""
        self.method = method
        if self.known_headers is not None:
            self.known_headers["METHOD"] = method

    @property
    def sid(self) -> tuple[str, str]:
        """``(sender, conn_id)``: what names a browser's connection over all servers."""
        return (self.sender, self.conn_id)

    @property
    def query(self) -> dict[str, list[str]]:
        """The query string as ``parse_qs`` makes it: a list of values for each key, empty values kept."""
        return self.headers.query

    @property
    def body_file(self) -> BinaryIO:
        """The body as a binary file, the same one each time: :attr:`body`, or what Mongrel2 stored in a file.

        With ``upload.temp_store`` a large body comes in a file (``body`` is then ``b""``), which is deleted when nobody
        holds the request any more; move it, or read it, to keep it. Its path is ``headers["x-mongrel2-upload-done"]``.

        Raises:
            OSError: The file cannot be opened, as where Mongrel2 runs on another host or in a chroot.
        """
        # Kept, so that reading goes on where it was.
        file = self._body_file
        if file is None:
            file = self._body_file = io.BytesIO(self.body) if self.stored is None else self.stored.open()
        return file

    def replace_headers(self, raw: Mapping[Any, Any]) -> None:
        """Have other headers. Those that were decoded may be other requests', too: a change of them is a new map.

        Args:
            raw: All of them, names and values of the kind that they were.
        """
        self.raw = raw
        self.known_headers = None

    @property
    def data(self) -> Any:
        """The decoded JSON of a message with METHOD ``JSON``, else ``{}``.

        Raises:
            RemoteProtocolError: The body is not JSON. Mongrel2 does not validate it (probed).
        """
        if self._data is None:
            self._data = self.json() if self.method in (Kind.JSON, Kind.DISCONNECT) else {}
        return self._data

    @property
    def decoded(self) -> bool:
        """Whether the body was decoded as JSON, so that it is in memory twice."""
        return self._data is not None

    def decode_data(self) -> None:
        """Decode the body as JSON into :attr:`data`, whatever the METHOD. Raises ``RemoteProtocolError`` as that."""
        self._data = self.json()

    def json(self) -> Any:
        """Decode the body as JSON, whatever the METHOD. Raises ``RemoteProtocolError`` where it is not."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise RemoteProtocolError(f"the body of {self.method} {shown(self.path)} is not JSON: {error}") from error

    def header(self, name: str) -> str | list[str] | None:
        """Return the value of one header as it was sent, without building the whole map; ``None`` where absent.

        For ``METHOD`` that is what Mongrel2 wrote; :attr:`method` and :attr:`headers` have the event's.
        """
        # tnetstring headers have names and values of bytes, JSON headers of text; nobody outside has to know which.
        raw = self.raw
        value = raw.get(name)
        if value is None:
            value = raw.get(name.encode("latin-1"))
        if isinstance(value, bytes):
            return value.decode("latin-1")
        if isinstance(value, list):
            return text_lines(value)
        return None if value is None else text_value(value)

    def _one(self, name: str) -> str | None:
        """Return a header's values as one, as RFC 9110, section 5.3, joins them; ``None`` without any."""
        value = self.header(name)
        return ",".join(value) if isinstance(value, list) else value

    def has(self, name: str) -> bool:
        """True where there is a header of that name, as it was sent."""
        raw = self.raw
        return name.encode("latin-1") in raw or name in raw

    def is_notice(self) -> bool:
        """True for a message that the server itself made: a disconnect or credits notice.

        A notice has no header but ``METHOD`` (and ``DOWNLOAD_CREDITS``). Path and body do not tell: the client of a
        JSON socket can send ``@* {"type":"disconnect"}`` itself, but then ``PATH`` and others are there (probed).
        """
        raw = self.raw
        # The length first: it alone tells nearly every message.
        if len(raw) > 2 or self.method != Kind.JSON:
            return False
        return len(raw) == 1 or self.has("DOWNLOAD_CREDITS")

    def is_disconnect(self) -> bool:
        """True when the browser has gone: the server's notice, or the event ``DISCONNECT`` or ``WEBSOCKET_CLOSE``."""
        if self.method in ENDS:
            return True
        return len(self.raw) == 1 and self.is_notice() and _notice_type(self.body) == "disconnect"

    def credits(self) -> int | None:
        """Return the bytes that the server says it wrote, for a credits notice; else ``None``."""
        if len(self.raw) != 2 or not self.is_notice():
            return None
        # The pattern bounds the digits: int() of thousands of them raises.
        value = self.header("DOWNLOAD_CREDITS")
        return int(value) if isinstance(value, str) and CONN_ID.fullmatch(value) else None

    def should_close(self) -> bool:
        """True when the connection has to be closed after the reply.

        Mongrel2 keeps every connection open until the handler closes it, also for HTTP/1.0 and ``Connection: close``
        (probed), so the handler has to decide: RFC 9112, section 9.3.
        """
        return self.persistence()[0]

    def persistence(self) -> tuple[bool, bool]:
        """Return :meth:`should_close`, and whether ``Connection: keep-alive`` has to be said, to an HTTP/1.0 client."""
        known = self.known_persistence
        if known is None:
            if self.method == _HANDSHAKE:
                # The server reads frames from then on, whatever was answered (probed).
                known = True, False
            else:
                raw = self.raw
                connection = raw.get(b"connection") or raw.get("connection")
                if connection.__class__ is list:
                    connection = tuple(connection)
                version = raw.get(b"VERSION") or raw.get("VERSION")
                try:
                    known = _known_persistences.get((version, connection)) or _persistence(version, connection)
                except (TypeError, AttributeError):
                    # Not text, which no Mongrel2 sends: as the application is shown it.
                    known = _persistence(self._one("VERSION"), self._one("connection"))
            self.known_persistence = known
        return known

    def encode(self, protocol: str = "tnetstring") -> bytes:
        """Build the message again, with the headers as they were received or changed.

        The event ``DISCONNECT`` becomes the notice that Mongrel2 sends, ``UPLOAD_STREAM`` the message without METHOD.
        """
        # Changed headers go out changed: relays add to them. The METHOD is what Mongrel2 would have written.
        headers = self.sent_headers
        if self.method != _method_of(headers) or self.method in _NOT_OF_MONGREL2:
            headers = {name: value for name, value in headers.items() if name not in ("METHOD", b"METHOD")}
            if self.method != Kind.UPLOAD_STREAM:
                headers["METHOD"] = _NOT_OF_MONGREL2.get(self.method, self.method)
        return build_request(self.sender, self.conn_id, self.path, headers, self.body, protocol=protocol)

    @property
    def msg(self) -> bytes:
        """The whole message, as Mongrel2 sent it: mongrel2-transceiver's name for :meth:`encode`."""
        is_json = any(isinstance(name, str) for name in self.raw)
        return self.encode("json" if is_json else "tnetstring")

    def forward(self, socket: _Sender) -> None:
        """Send the request on over a PUSH or PUB *socket* of the caller's, as one part; blocks as its ``send`` does.

        The receiver answers it: later requests of its connection do not wait for an answer from here.
        """
        # First, as it may raise: then the request is still this process's to answer, file and all.
        socket.send(self.encode())
        if self.stored is not None:
            self.stored.give_away()
        if self.life is not None and self.life.forwarded is not None:
            self.life.forwarded(self)

    def __repr__(self) -> str:
        where = f"sender={self.sender[:MAX_SHOWN]} conn_id={self.conn_id}"
        return f"<Request {self.method[:MAX_SHOWN]} {self.path[:MAX_SHOWN]} {where} body={len(self.body)} bytes>"


_new_request = Request.__new__


def _method_of(headers: Mapping[Any, Any]) -> str:
    found = headers.get("METHOD", headers.get(b"METHOD", ""))
    return found.decode("latin-1") if isinstance(found, bytes) else str(found)


def _persistence(
    version: str | bytes | None, connection: str | bytes | tuple[str | bytes, ...] | None
) -> tuple[bool, bool]:
    # Not HTTP.
    if version is None:
        return False, False
    values = ",".join(map(_latin1, connection)) if isinstance(connection, tuple) else connection
    close = should_close(version, values)
    result = close, not close and version in ("HTTP/1.0", b"HTTP/1.0")
    # A client chooses the value, so a large one is not worth the room; a stand-in for Mongrel2 the version, too.
    if len(values or "") + len(version) <= _MAX_PERSISTENCE_SIZE:
        _known_persistences.keep((version, connection), result)
    return result


def _latin1(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _notice_type(body: bytes) -> object:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return value.get("type") if isinstance(value, dict) else None


def parse_request(message: bytes) -> Request:
    """Parse one request as Mongrel2 pushes it to a handler.

    Layout: see the module. Which of the two header encodings it is, is read off the message.

    Args:
        message: One whole ZeroMQ message, never part of one.

    Returns:
        A :class:`Request`. Its headers are decoded; the text that applications see is made when it is read.

    Raises:
        RemoteProtocolError: A field is missing, a length disagrees with its data, the headers are not a map with
            a ``METHOD`` (or ``UPLOAD_STREAM``), or bytes follow the body. Nothing is kept.

    Source: Mongrel2's manual, "Message Format"; src/request.c.
    """
    # As Request() does, without calling it.
    request = _new_request(Request)
    (
        request.sender,
        request.conn_id,
        request.path,
        request.raw,
        request.body,
        request.method,
        request.plain,
    ) = read_message(message)
    request.known_headers = None
    request.known_persistence = None
    request.life = None
    request.answered = False
    return request
