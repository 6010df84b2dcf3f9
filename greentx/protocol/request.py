"""Requests as a handler receives them.

A request travels from the server to a handler as one ZeroMQ message::

    SENDER SP CONN_ID SP PATH SP headers body

*headers* is a tnetstring dict (``LEN:...}``) or a netstring of JSON (``LEN:{...},``), whichever the server's
configuration says; the type byte behind it tells which. *body* is a netstring.

Source: Mongrel2's manual, "Message Format"; src/request.c; probed on 1.12.2.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, Protocol

import tnetstring

from ..errors import RemoteProtocolError
from .cache import MAX_KEY_SIZE, MAX_MISSES, Memo, SharedHeaders, SmallMap
from .fields import CONN_ID, CONTROL_ID, MAX_SHOWN, NOT_DECODED, shown
from .headers import Headers, all_plain, text_headers, text_lines, text_value
from .http1 import should_close
from .kinds import ENDS, Kind
from .life import Life
from .requests import build_request

__all__ = ["Request", "StoredFile", "parse_request"]

# The extra "speed": decodes JSON headers four times as fast as the standard library.
try:
    import msgspec.json

    decode_json: Callable[[bytes], Any] | None = msgspec.json.Decoder(dict[str, str | list[str]]).decode
except ImportError:
    decode_json = None

# A netstring's length; Mongrel2 never writes one beyond ten digits, and a longer one must not cost us memory.
_MAX_LENGTH_DIGITS = 10
_load = tnetstring.loads

# What came lately and was decoded: decoding headers, and freeing them, is more than half of a parse. Requests without a
# body, by all behind their path; whole headers, since every message of a WebSocket repeats those of its handshake
# (probed); and what clients sent, which mostly is the same request after request: see _decode_tnetstring().
known_requests: Memo[_KnownRequest] = Memo(512)
known_blocks: Memo[tuple[Any, str, SharedHeaders, bool]] = Memo(512)
known_clients: Memo[SharedHeaders] = Memo(1024)

# What persistence() made of a version and the value or values of Connection: few, from ordinary clients.
_known_persistences: SmallMap[tuple[Any, Any], tuple[bool, bool]] = SmallMap(256)
_MAX_PERSISTENCE_SIZE = 72

_MAX_ID_DIGITS = 20
_NO_BODY = b"0:,"

# What Mongrel2 itself says of a request, in front of what the client sent, in this order (probed).
_OWN_NAMES = (b"REMOTE_ADDR", b"METHOD", b"URL_SCHEME", b"PATTERN", b"URI", b"VERSION", b"PATH")
_OWN_NAMES_AND_QUERY = (*_OWN_NAMES[:4], b"QUERY", *_OWN_NAMES[4:])

# Words of ours for messages that Mongrel2 writes otherwise.
_NOT_OF_MONGREL2: dict[str, str] = {Kind.DISCONNECT: Kind.JSON, Kind.UPLOAD_STREAM: ""}

# The usual METHODs as text, so that requests share one object for each; all others are decoded.
_KINDS = (Kind.WEBSOCKET.value, Kind.JSON.value, Kind.XML.value)
_METHODS = {name.encode(): name for name in ("GET", "POST", "HEAD", "PUT", "DELETE", *_KINDS)}

# A name of its own, since looking it up in the enum would cost more than the comparison, for each request.
_HANDSHAKE = Kind.WEBSOCKET_HANDSHAKE.value
_UPLOAD_STREAM = Kind.UPLOAD_STREAM.value
_UPLOAD_HEADER = "UPLOAD_STREAM"


class _KnownRequest:
    """A request without a body, but for the connection that it came from."""

    __slots__ = ("method", "path", "path_field", "persistence", "plain", "raw", "sender", "sender_field", "shared")

    def __init__(self, sender_field: bytes, path_field: bytes, request: Request) -> None:
        self.sender_field = sender_field
        self.sender = request.sender
        self.path_field = path_field
        self.path = request.path
        self.method = request.method
        self.raw = request.raw
        self.persistence = request.persistence()
        self.plain = request.plain
        self.shared = SharedHeaders(request.raw)


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
        close_code, close_reason: Why a WebSocket ended, on ``WEBSOCKET_CLOSE``; else ``None`` and ``""``.
    """

    # What every request has is in slots, what few have in ``__dict__``, which is not made for the others: a request
    # is built for each message.
    __slots__ = (
        "__dict__",
        "answered",
        "body",
        "conn_id",
        "known_persistence",
        "life",
        "method",
        "path",
        "plain",
        "raw",
        "sender",
        "shared_headers",
    )

    opcode: int | None = None
    close_code: int | None = None
    close_reason: str = ""
    _headers: Headers | None = None
    # The registry's entry, on the event with which a WebSocket begins.
    entry: Any = None
    # A text message as text, where it was decoded already to see that it is UTF-8.
    text: str | None = None
    # The decoded JSON, once it was asked for.
    _data: Any = None
    # It came while another request of its connection was open.
    pipelined = False
    #: Bytes of a streamed body (``upload.stream``) that the server may still read: above 0 the browser is waited for.
    granted = 0
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
        # Those headers that other requests have, too, as far as the parser knows.
        self.shared_headers: SharedHeaders | None = None
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
        """The headers as a :class:`Headers` map, built at the first access. ``METHOD`` is always :attr:`method`."""
        # Built late: most handlers look at a few headers, or none, and header() reads those from what was decoded.
        headers = self._headers
        if headers is None:
            headers = self._headers = text_headers(self.raw)
            if self.method and headers.get("METHOD") != self.method:
                headers["METHOD"] = self.method
        return headers

    @property
    def sent_headers(self) -> Mapping[Any, Any]:
        """The headers as they were received, or changed where the application has looked at :attr:`headers`."""
        return self.raw if self._headers is None else self._headers

    def become(self, method: str) -> None:
        """Make it the event that *method* names: what Mongrel2 sent has been dealt with."""
        self.method = method
        if self._headers is not None:
            self._headers["METHOD"] = method

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

    def replace_headers(self, raw: Mapping[Any, Any], shared: SharedHeaders | None = None) -> None:
        """Have other headers. Those that were decoded may be other requests', too: a change of them is a new map.

        Args:
            raw: All of them, names and values of the kind that they were.
            shared: Those that the client sent, where they are the same as before and the others are Mongrel2's.
        """
        self.raw = raw
        self.shared_headers = shared
        self._headers = None

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
        A :class:`Request`. Its headers are decoded; the map of text that applications see is built when it is read.

    Raises:
        RemoteProtocolError: A field is missing, a length disagrees with its data, the headers are not a map with
            a ``METHOD`` (or ``UPLOAD_STREAM``), or bytes follow the body. Nothing is kept.

    Source: Mongrel2's manual, "Message Format"; src/request.c.
    """
    try:
        sender_field, number, path_field, rest = message.split(b" ", 3)
    except ValueError:
        raise _bad_start(message) from None
    if not ((number.isdigit() and len(number) <= _MAX_ID_DIGITS) or number == b"-1") or not (
        sender_field and path_field
    ):
        raise _bad_start(message)
    # Only a guess, from the end: a body may end so as well. It is settled by the lengths, below.
    no_body = rest.endswith(_NO_BODY)
    looked_up = False
    if no_body and len(rest) <= MAX_KEY_SIZE and (known_requests.misses < MAX_MISSES or known_requests.look_anyway()):
        looked_up = True
        known = known_requests.known.get(rest)
        # The path stands in front of the headers and so outside of the key: it is compared here.
        if known is not None and known.path_field == path_field:
            known_requests.misses = 0
            # As Request() does, without calling it.
            request = _new_request(Request)
            request.sender = known.sender if sender_field == known.sender_field else sender_field.decode("latin-1")
            request.conn_id = number.decode()
            request.path = known.path
            request.body = b""
            request.method = known.method
            request.raw = known.raw
            request.shared_headers = known.shared
            request.plain = known.plain
            request.known_persistence = known.persistence
            request.life = None
            request.answered = False
            return request
        known_requests.misses += 1
    colon = rest.find(b":", 0, _MAX_LENGTH_DIGITS + 1)
    size = rest[:colon]
    if colon < 0 or not size.isdigit():
        raise _bad_start(message)
    start = len(message) - len(rest)
    end = colon + 1 + int(size)
    sender, conn_id, path = sender_field.decode("latin-1"), number.decode(), path_field.decode("latin-1")
    if no_body and len(rest) == end + 1 + len(_NO_BODY):
        raw, method, shared, plain = _decode_headers(rest, colon + 1, end, path_field, start)
        # As Request() does, without calling it.
        request = _new_request(Request)
        request.sender = sender
        request.conn_id = conn_id
        request.path = path
        request.body = b""
        request.method = method
        request.raw = raw
        request.shared_headers = shared
        request.plain = plain
        request.known_persistence = None
        request.life = None
        request.answered = False
        if looked_up and known_requests.seen_before(rest):
            known_requests.known[rest] = _KnownRequest(sender_field, path_field, request)
        return request
    # With a body the whole message never comes twice; its headers do, as in each message of a WebSocket.
    block = rest[: end + 1]
    found = known_blocks.known.get(block)
    if found is None:
        raw, method, shared, plain = _decode_headers(rest, colon + 1, end, path_field, start)
        if known_blocks.seen_before(block):
            known_blocks.known[block] = raw, method, SharedHeaders(raw), plain
    else:
        raw, method, shared, plain = found
    request = Request(sender, conn_id, path, raw, _body(message, start + end + 1), method)
    request.shared_headers = shared
    request.plain = plain
    return request


def _decode_headers(
    rest: bytes, begin: int, end: int, path: bytes, start: int
) -> tuple[Any, str, SharedHeaders | None, bool]:
    """Decode headers.

    Args:
        rest: What stands behind the path of their message, from its byte *start* on.
        begin, end: Where the headers do in *rest*; at the end is the byte that says their kind.

    Returns:
        The headers; the METHOD; those of the headers that came before; whether they are plain.

    Raises ``RemoteProtocolError``.
    """
    kind = rest[end : end + 1]
    shared = None
    if kind == b"}":
        try:
            raw, shared = _decode_tnetstring(rest, begin, end, path)
        except NOT_DECODED as error:
            raise RemoteProtocolError(f"headers at byte {start} are not a tnetstring: {error}") from error
        if shared is None:
            plain = b"host" in raw and all_plain(raw) and not _repeats(raw, rest, begin, end)
        else:
            # In front of them are Mongrel2's usual ones, and nothing else.
            plain = shared.plain
            if not plain:
                found = shared.raw
                plain = b"host" in found and all_plain(found) and not _repeats(found, rest, begin, end)
                shared.plain = plain
        method = raw.get(b"METHOD")
        if method.__class__ is bytes:
            name = _METHODS.get(method) or method.decode("latin-1")
        elif _UPLOAD_HEADER.encode() in raw:
            name = _UPLOAD_STREAM
        else:
            raise RemoteProtocolError(f"no METHOD among the headers {shown(rest)} at byte {start}")
    elif kind == b",":
        raw = _json_headers(rest[begin:end], start)
        plain = "host" in raw and all_plain(raw) and not _repeats(raw, rest, begin, end)
        name = raw.get("METHOD")
        if name.__class__ is not str:
            if _UPLOAD_HEADER not in raw:
                raise RemoteProtocolError(f"no METHOD among the headers {shown(rest)} at byte {start}")
            name = _UPLOAD_STREAM
    else:
        raise RemoteProtocolError(
            f"headers at byte {start} should end after {end - begin} bytes with '}}' or ',', not {shown(rest[end:])}"
        )
    return raw, name, shared, plain


def _repeats(raw: Mapping[Any, Any], rest: bytes, begin: int, end: int) -> bool:
    """Return whether a name came more than once among the headers that *raw* was decoded from."""
    # In both encodings a list ends so, and few values have one: to look at each of them costs ten times as much.
    return rest.find(b"]", begin, end) >= 0 and list in map(type, raw.values())


def _decode_tnetstring(rest: bytes, begin: int, end: int, path: bytes) -> tuple[dict[bytes, Any], SharedHeaders | None]:
    """Decode a dict, the items of which are ``rest[begin:end]``.

    Mongrel2 writes what the client sent behind its own headers, of which PATH is the last one (probed). What was once
    decoded to whole items means the same behind any other whole items. So where the border is not what it looks like,
    but in the middle of a value, what stands before it is not whole, and all is decoded anew.

    Returns:
        The items; those from the client, if they came before and the others are Mongrel2's own and no more.
    """
    border = rest.find(b",4:PATH,", begin, end)
    clients = known_clients
    if border >= 0 and (clients.misses < MAX_MISSES or clients.look_anyway()):
        border += 10 + len(path) + (1 if len(path) < 10 else len(b"%d" % len(path)))
        client = rest[border:end]
        known = clients.known.get(client)
        if known is None:
            clients.misses += 1
            if clients.seen_before(client):
                # The border is in a value.
                with contextlib.suppress(*NOT_DECODED):
                    clients.known[client] = SharedHeaders(_load(b"%d:%b}" % (len(client), client)))
        # A length with a leading zero is none to tnetstring, and has to fail as it does without a cache.
        elif border <= end and not rest.startswith(b"0"):
            clients.misses = 0
            try:
                raw = _load(b"%d:%b}" % (border - begin, rest[begin:border]))
            except NOT_DECODED:
                return _load(rest[: end + 1]), None
            names = tuple(raw)
            raw.update(known.raw)
            return raw, known if names in (_OWN_NAMES_AND_QUERY, _OWN_NAMES) else None
    return _load(rest[: end + 1]), None


def _bad_start(message: bytes) -> RemoteProtocolError:
    """Find out why a message does not begin as one."""
    fields = message.split(b" ", 3)
    if len(fields) < 4 or not fields[0] or not fields[2]:
        return RemoteProtocolError(f"no 'sender conn_id path ' at the start of {shown(message)}")
    conn_id = fields[1].decode("latin-1")
    if not CONN_ID.fullmatch(conn_id) and conn_id != CONTROL_ID:
        return RemoteProtocolError(f"conn_id {shown(conn_id)} is not a decimal number in {shown(message)}")
    start = len(message) - len(fields[3])
    return RemoteProtocolError(f"no length before the headers, at byte {start} of {shown(message)}")


def _body(message: bytes, start: int) -> bytes:
    colon = message.find(b":", start, start + _MAX_LENGTH_DIGITS + 1)
    size = message[start:colon]
    if colon < 0 or not size.isdigit():
        raise RemoteProtocolError(f"no length before the body, at byte {start} of {shown(message)}")
    end = colon + 1 + int(size)
    if end + 1 != len(message) or not message.endswith(b","):
        left = len(message) - colon - 1
        raise RemoteProtocolError(
            f"body at byte {start} should be {int(size)} bytes, a ',' and the end; {left} bytes are left"
        )
    return message[colon + 1 : end]


def _json_headers(data: bytes, start: int) -> Any:
    # Mongrel2 escapes '"' and '\' only: a tab, a control byte or invalid UTF-8 comes raw (probed), which no strict
    # parser accepts. Plain ASCII, nearly every message, goes through the fast one.
    if decode_json is not None and data.isascii():
        try:
            return decode_json(data)
        except ValueError:
            # A control byte or another value than text: the lenient parser decides.
            pass
    try:
        raw = json.loads(data.decode("latin-1"), strict=False)
    except (ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"headers at byte {start} are not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise RemoteProtocolError(f"headers at byte {start} are not a JSON object")
    return raw
