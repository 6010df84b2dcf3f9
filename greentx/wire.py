"""Mongrel2's messages to and from handlers: parse and build, in both directions.

A request travels from the server to a handler as one ZeroMQ message::

    SENDER SP CONN_ID SP PATH SP headers body

*headers* is a tnetstring dict (``LEN:...}``) or a netstring of JSON (``LEN:{...},``), whichever the server's
configuration says; the type byte behind it tells which. *body* is a netstring. A reply travels back as::

    SENDER SP LEN:IDS, SP body

*IDS* are decimal connection ids, one space between two of them, 128 at most. An empty body closes the connections. An
extended reply has ``X `` before the ids, counted by LEN, and a tnetstring list of a key and a value as its body.

Source: Mongrel2's manual, "Writing A Handler"; src/handler.c and src/handler_parser.rl; probed on 1.12.2.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Protocol

import tnetstring

from .errors import LocalProtocolError, RemoteProtocolError
from .headers import Headers, text_headers
from .http1 import should_close
from .memo import MAX_KEY_SIZE, MAX_MISSES, Memo, SharedHeaders

__all__ = [
    "CANCEL",
    "CONTROL_ID",
    "KEEP_ALIVE",
    "MAX_CONN_IDS",
    "Request",
    "Response",
    "batch_conn_ids",
    "build_control_reply",
    "build_credits_notice",
    "build_disconnect_notice",
    "build_extended_reply",
    "build_reply",
    "build_request",
    "check_sender",
    "credits_body",
    "parse_reply",
    "parse_request",
]

try:  # the extra "speed": decodes JSON headers four times as fast as the standard library
    import msgspec.json

    _decode_json: Callable[[bytes], Any] | None = msgspec.json.Decoder(dict[str, str | list[str]]).decode
except ImportError:
    _decode_json = None

#: Ids in one reply. Mongrel2 drops a message with more of them whole (``limits.handler_targets``, probed).
MAX_CONN_IDS = 128

#: The connection id in messages of the control socket and their answers: no browser has it.
CONTROL_ID = "-1"

_SENDER = re.compile(r"[A-Za-z0-9-]+", re.ASCII)
# Mongrel2's ids and credits are 32-bit numbers; int() of thousands of digits would raise.
_CONN_ID = re.compile(r"[0-9]{1,20}", re.ASCII)
_REPLY = re.compile(rb"([A-Za-z0-9-]+) ([0-9]{1,9}):")
_IDS = re.compile(rb"(X )?[0-9]+(?: [0-9]+)* ?|-1")
# A netstring's length; Mongrel2 never writes one beyond ten digits, and a longer one must not cost us memory.
_MAX_LENGTH_DIGITS = 10

_load = tnetstring.loads
# What it raises: a name that is a list is a TypeError.
_NOT_DECODED = (ValueError, TypeError, RecursionError)

# What came lately and was decoded: decoding headers, and freeing them, is more than half of a parse. Requests without a
# body, by all behind their path; whole headers, since every message of a WebSocket repeats those of its handshake
# (probed); and what clients sent, which mostly is the same request after request: see _decode_tnetstring().
_known_requests: Memo[_KnownRequest] = Memo(512)
_known_blocks: Memo[tuple[Any, str, SharedHeaders]] = Memo(512)
_known_clients: Memo[SharedHeaders] = Memo(1024)

_MAX_ID_DIGITS = 20
_NO_BODY = b"0:,"

# What Mongrel2 itself says of a request, in front of what the client sent, in this order (probed).
_OWN_NAMES = (b"REMOTE_ADDR", b"METHOD", b"URL_SCHEME", b"PATTERN", b"URI", b"VERSION", b"PATH")
_OWN_NAMES_AND_QUERY = (*_OWN_NAMES[:4], b"QUERY", *_OWN_NAMES[4:])

_METHODS = {name.encode(): name for name in ("GET", "POST", "HEAD", "PUT", "DELETE", "WEBSOCKET", "JSON", "XML")}


class _KnownRequest:
    """A request without a body, but for the connection that it came from."""

    __slots__ = ("method", "path", "path_field", "persistence", "raw", "sender", "sender_field", "shared")

    def __init__(self, sender_field: bytes, path_field: bytes, request: Request) -> None:
        self.sender_field = sender_field
        self.sender = request.sender
        self.path_field = path_field
        self.path = request.path
        self.method = request.method
        self.raw = request._raw
        self.persistence = request.persistence()
        self.shared = SharedHeaders(request._raw)


class _Sender(Protocol):
    def send(self, data: bytes, /) -> object: ...


def check_sender(sender: str | bytes) -> str:
    """Return *sender* as text, if Mongrel2 can parse it back in a reply.

    Raises:
        LocalProtocolError: *sender* is empty, or has other characters than letters, digits and ``-``. Mongrel2 takes
            such a ``send_ident``, but rejects every reply that begins with it, with a stall of 0.5 s each (probed).
    """
    text = sender.decode("latin-1") if isinstance(sender, bytes) else sender
    if not isinstance(text, str) or not _SENDER.fullmatch(text):
        raise LocalProtocolError(
            f"sender {sender!r} cannot be answered: Mongrel2 takes letters, digits and '-' only; change its send_ident"
        )
    return text


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
        opcode: The RFC 6455 opcode of a WebSocket message, else ``None``.
        close_code, close_reason: Why a WebSocket ended, on ``WEBSOCKET_CLOSE``; else ``None`` and ``""``.
    """

    # What every request has is in slots, what few have in ``__dict__``, which is not made for the others: a request
    # is built for each message.
    __slots__ = (
        "__dict__",
        "_answered",
        "_books",
        "_persistence",
        "_raw",
        "_shared",
        "body",
        "conn_id",
        "method",
        "path",
        "sender",
    )

    opcode: int | None = None
    close_code: int | None = None
    close_reason: str = ""
    _headers: Headers | None = None
    # The registry's entry, on the event with which a WebSocket begins.
    _entry: Any = None
    # A text message as text, where it was decoded already to see that it is UTF-8.
    _text: str | None = None
    # The decoded JSON, once it was asked for.
    _data: Any = None
    # It came while another request of its connection was open.
    _pipelined = False

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
            found = headers.get("METHOD", headers.get(b"METHOD", ""))
            method = found.decode("latin-1") if isinstance(found, bytes) else str(found)
        self.sender = sender
        self.conn_id = conn_id
        self.path = path
        self.body = body
        self.method = method
        self._raw = headers
        # Those headers that other requests have, too, as far as the parser knows.
        self._shared: SharedHeaders | None = None
        # What persistence() returned.
        self._persistence: tuple[bool, bool] | None = None
        # What greentx.pipeline keeps: which open requests this one belongs to, and so to which life of the server (None
        # where no connection set took it in), and whether it was answered, whole.
        self._books: Any = None
        self._answered = False

    @classmethod
    def parse(cls, message: bytes) -> Request:
        """Parse one message; the same as :func:`parse_request`."""
        return parse_request(message)

    @property
    def headers(self) -> Headers:
        """The headers as a :class:`Headers` map, built at the first access."""
        if self._headers is None:
            self._headers = text_headers(self._raw)
        return self._headers

    @property
    def sid(self) -> tuple[str, str]:
        """``(sender, conn_id)``: what names a browser's connection over all servers."""
        return (self.sender, self.conn_id)

    @property
    def query(self) -> dict[str, list[str]]:
        """The query string as ``parse_qs`` makes it: a list of values for each key, empty values kept."""
        return self.headers.query

    @property
    def data(self) -> Any:
        """The decoded JSON of a message with METHOD ``JSON``, else ``{}``.

        Raises:
            RemoteProtocolError: The body is no JSON. Mongrel2 does not validate it (probed).
        """
        if self._data is None:
            self._data = self.json() if self.method in ("JSON", "DISCONNECT") else {}
        return self._data

    def json(self) -> Any:
        """Decode the body as JSON, whatever the METHOD. Raises ``RemoteProtocolError`` where it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise RemoteProtocolError(f"the body of {self.method} {self.path!r} is no JSON: {error}") from error

    def header(self, name: str) -> str | list[str] | None:
        """Return the value of one header as it was sent, without building the whole map; ``None`` where absent."""
        raw = self._raw
        value = raw.get(name)
        if value is None:
            value = raw.get(name.encode("latin-1"))
        if isinstance(value, bytes):
            return value.decode("latin-1")
        if isinstance(value, list):
            return [one.decode("latin-1") if isinstance(one, bytes) else str(one) for one in value]
        return None if value is None else str(value)

    def is_notice(self) -> bool:
        """True for a message that the server itself made: a disconnect or credits notice.

        A notice has no header but ``METHOD`` (and ``DOWNLOAD_CREDITS``). Path and body do not tell: the client of a
        JSON socket can send ``@* {"type":"disconnect"}`` itself, but then ``PATH`` and others are there (probed).
        """
        raw = self._raw
        if self.method != "JSON" or len(raw) > 2:
            return False
        return len(raw) == 1 or "DOWNLOAD_CREDITS" in raw or b"DOWNLOAD_CREDITS" in raw

    def is_disconnect(self) -> bool:
        """True when the browser has gone: the server's notice, or the event ``DISCONNECT`` or ``WEBSOCKET_CLOSE``."""
        if self.method in ("DISCONNECT", "WEBSOCKET_CLOSE"):
            return True
        return len(self._raw) == 1 and self.is_notice() and _notice_type(self.body) == "disconnect"

    def credits(self) -> int | None:
        """Return the bytes that the server says it wrote, for a credits notice; else ``None``."""
        if len(self._raw) != 2 or not self.is_notice():
            return None
        value = self.header("DOWNLOAD_CREDITS")
        return int(value) if isinstance(value, str) and _CONN_ID.fullmatch(value) else None

    def should_close(self) -> bool:
        """True when the connection has to be closed after the reply.

        Mongrel2 keeps every connection open until the handler closes it, also for HTTP/1.0 and ``Connection: close``
        (probed), so the handler has to decide: RFC 9112, section 9.3.
        """
        return self.persistence()[0]

    def persistence(self) -> tuple[bool, bool]:
        """Return :meth:`should_close`, and whether ``Connection: keep-alive`` has to be said, to an HTTP/1.0 client."""
        known = self._persistence
        if known is None:
            if self.method == "WEBSOCKET_HANDSHAKE":
                known = True, False  # the server reads frames from then on, whatever was answered (probed)
            else:
                raw = self._raw
                connection = raw.get(b"connection") or raw.get("connection")
                known = _persistence(
                    raw.get(b"VERSION") or raw.get("VERSION"),
                    tuple(connection) if connection.__class__ is list else connection,
                )
            self._persistence = known
        return known

    def encode(self, protocol: str = "tnetstring") -> bytes:
        """Build the message again, with the headers as they were received or changed."""
        headers = self._raw if self._headers is None else self._headers
        return build_request(self.sender, self.conn_id, self.path, headers, self.body, protocol=protocol)

    def forward(self, socket: _Sender) -> None:
        """Send the request on over a PUSH or PUB *socket* of the caller's, as one part; blocks as its ``send`` does.

        Who receives it answers it: later requests of its connection do not wait for an answer from here.
        """
        socket.send(self.encode())
        if self._books is not None and self._books.forwarded is not None:
            self._books.forwarded(self)

    def __repr__(self) -> str:
        where = f"sender={self.sender} conn_id={self.conn_id}"
        return f"<Request {self.method} {self.path} {where} body={len(self.body)} bytes>"


_new_request = Request.__new__


@lru_cache(maxsize=256)
def _persistence(
    version: str | bytes | None, connection: str | bytes | tuple[str | bytes, ...] | None
) -> tuple[bool, bool]:
    if version is None:  # no HTTP
        return False, False
    if isinstance(connection, tuple):
        connection = ",".join(one.decode("latin-1") if isinstance(one, bytes) else one for one in connection)
    close = should_close(version, connection)
    return close, not close and version in ("HTTP/1.0", b"HTTP/1.0")


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
        RemoteProtocolError: A field is missing, a length disagrees with its data, the headers are no map with a
            ``METHOD`` (or ``UPLOAD_STREAM``), or bytes follow the body. Nothing is kept.

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
    no_body = rest.endswith(_NO_BODY)
    looked_up = False
    if no_body and len(rest) <= MAX_KEY_SIZE and (_known_requests.misses < MAX_MISSES or _known_requests.still_tried()):
        looked_up = True
        known = _known_requests.known.get(rest)
        if known is not None and known.path_field == path_field:
            _known_requests.misses = 0
            # As Request() does, without calling it.
            request = _new_request(Request)
            request.sender = known.sender if sender_field == known.sender_field else sender_field.decode("latin-1")
            request.conn_id = number.decode()
            request.path = known.path
            request.body = b""
            request.method = known.method
            request._raw = known.raw
            request._shared = known.shared
            request._persistence = known.persistence
            request._books = None
            request._answered = False
            return request
        _known_requests.misses += 1
    colon = rest.find(b":", 0, _MAX_LENGTH_DIGITS + 1)
    size = rest[:colon]
    if colon < 0 or not size.isdigit():
        raise _bad_start(message)
    start = len(message) - len(rest)
    end = colon + 1 + int(size)
    sender, conn_id, path = sender_field.decode("latin-1"), number.decode(), path_field.decode("latin-1")
    if no_body and len(rest) == end + 1 + len(_NO_BODY):
        raw, method, shared = _decode_headers(rest, colon + 1, end, path_field, start)
        request = Request(sender, conn_id, path, raw, b"", method)
        request._shared = shared
        if looked_up and _known_requests.comes_again(rest):
            _known_requests.known[rest] = _KnownRequest(sender_field, path_field, request)
        return request
    block = rest[: end + 1]
    found = _known_blocks.known.get(block)
    if found is None:
        raw, method, shared = _decode_headers(rest, colon + 1, end, path_field, start)
        if _known_blocks.comes_again(block):
            _known_blocks.known[block] = raw, method, SharedHeaders(raw)
    else:
        raw, method, shared = found
    request = Request(sender, conn_id, path, raw, _body(message, start + end + 1), method)
    request._shared = shared
    return request


def _decode_headers(
    rest: bytes, begin: int, end: int, path: bytes, start: int
) -> tuple[Any, str, SharedHeaders | None]:
    """Decode headers.

    Args:
        rest: What stands behind the path of their message, from its byte *start* on.
        begin, end: Where the headers do in *rest*; at the end is the byte that says their kind.

    Returns:
        The headers; the METHOD; those of the headers that came before.

    Raises ``RemoteProtocolError``.
    """
    kind = rest[end : end + 1]
    shared = None
    if kind == b"}":
        try:
            raw, shared = _decode_tnetstring(rest, begin, end, path)
        except _NOT_DECODED as error:
            raise RemoteProtocolError(f"headers at byte {start} are no tnetstring: {error}") from error
        method = raw.get(b"METHOD")
        if method.__class__ is bytes:
            name = _METHODS.get(method) or method.decode("latin-1")
        elif b"UPLOAD_STREAM" in raw:
            name = "UPLOAD_STREAM"
        else:
            raise RemoteProtocolError(f"no METHOD among the headers {_shown(rest)} at byte {start}")
    elif kind == b",":
        raw = _json_headers(rest[begin:end], start)
        name = raw.get("METHOD")
        if name.__class__ is not str:
            if "UPLOAD_STREAM" not in raw:
                raise RemoteProtocolError(f"no METHOD among the headers {_shown(rest)} at byte {start}")
            name = "UPLOAD_STREAM"
    else:
        raise RemoteProtocolError(
            f"headers at byte {start} should end after {end - begin} bytes with '}}' or ',', not {rest[end:]!r}"
        )
    return raw, name, shared


def _decode_tnetstring(rest: bytes, begin: int, end: int, path: bytes) -> tuple[dict[bytes, Any], SharedHeaders | None]:
    """Decode a dict, the items of which are ``rest[begin:end]``.

    Mongrel2 writes what the client sent behind its own headers, of which PATH is the last one (probed). What was once
    decoded to whole items means the same behind any other whole items. So where the border is not what it looks like,
    but in the middle of a value, what stands before it is not whole, and all is decoded anew.

    Returns:
        The items; those from the client, if they came before and the others are Mongrel2's own and no more.
    """
    border = rest.find(b",4:PATH,", begin, end)
    clients = _known_clients
    if border >= 0 and (clients.misses < MAX_MISSES or clients.still_tried()):
        border += 10 + len(path) + (1 if len(path) < 10 else len(b"%d" % len(path)))
        client = rest[border:end]
        known = clients.known.get(client)
        if known is None:
            clients.misses += 1
            if clients.comes_again(client):
                with contextlib.suppress(*_NOT_DECODED):  # the border is in a value
                    clients.known[client] = SharedHeaders(_load(b"%d:%b}" % (len(client), client)))
        elif border <= end and not rest.startswith(b"0"):
            clients.misses = 0
            try:
                raw = _load(b"%d:%b}" % (border - begin, rest[begin:border]))
            except _NOT_DECODED:
                return _load(rest[: end + 1]), None
            names = tuple(raw)
            raw.update(known.raw)
            return raw, known if names in (_OWN_NAMES_AND_QUERY, _OWN_NAMES) else None
    return _load(rest[: end + 1]), None


def _bad_start(message: bytes) -> RemoteProtocolError:
    """Find out why a message does not begin as one."""
    fields = message.split(b" ", 3)
    if len(fields) < 4 or not fields[0] or not fields[2]:
        return RemoteProtocolError(f"no 'sender conn_id path ' at the start of {_shown(message)}")
    conn_id = fields[1].decode("latin-1")
    if not _CONN_ID.fullmatch(conn_id) and conn_id != CONTROL_ID:
        return RemoteProtocolError(f"conn_id {conn_id!r} is no decimal number in {_shown(message)}")
    start = len(message) - len(fields[3])
    return RemoteProtocolError(f"no length before the headers, at byte {start} of {_shown(message)}")


def _body(message: bytes, start: int) -> bytes:
    colon = message.find(b":", start, start + _MAX_LENGTH_DIGITS + 1)
    size = message[start:colon]
    if colon < 0 or not size.isdigit():
        raise RemoteProtocolError(f"no length before the body, at byte {start} of {_shown(message)}")
    end = colon + 1 + int(size)
    if end + 1 != len(message) or not message.endswith(b","):
        left = len(message) - colon - 1
        raise RemoteProtocolError(
            f"body at byte {start} should be {int(size)} bytes, a ',' and the end; {left} bytes are left"
        )
    return message[colon + 1 : end]


def _json_headers(data: bytes, start: int) -> Any:
    # Mongrel2 escapes '"' and '\' only: a tab, a control byte or invalid UTF-8 comes raw (probed), which no strict
    # parser takes. Plain ASCII, nearly every message, goes through the fast one.
    if _decode_json is not None and data.isascii():
        try:
            return _decode_json(data)
        except ValueError:
            pass  # a control byte or another value than text: the lenient parser decides
    try:
        raw = json.loads(data.decode("latin-1"), strict=False)
    except (ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"headers at byte {start} are no JSON: {error}") from error
    if not isinstance(raw, dict):
        raise RemoteProtocolError(f"headers at byte {start} are no JSON object")
    return raw


def build_request(
    sender: str,
    conn_id: str | int,
    path: str,
    headers: Mapping[Any, Any],
    body: bytes = b"",
    *,
    protocol: str = "tnetstring",
) -> bytes:
    """Build a request as Mongrel2 does: what a handler receives.

    Args:
        sender: The ``send_ident``; letters, digits and ``-``.
        conn_id: A decimal number, or ``-1`` for the messages of the control socket.
        path: Without a space.
        headers: Names to ``str``, ``bytes`` or lists of them; of a ``Headers`` map, ``QUERY_STR`` is taken for QUERY.
        body: Bytes, sent as they are.
        protocol: ``"tnetstring"`` or ``"json"``, as in the server's configuration.

    Raises:
        LocalProtocolError: A field cannot be written so that the other side reads it back.
    """
    number = str(conn_id)
    if not _CONN_ID.fullmatch(number) and number != CONTROL_ID:
        raise LocalProtocolError(f"conn_id {conn_id!r} is no decimal number")
    if " " in path or not path:
        raise LocalProtocolError(f"path {path!r} is empty or has a space: percent-encode it")
    if isinstance(headers.get("QUERY"), dict) and "QUERY_STR" not in headers:
        raise LocalProtocolError("header 'QUERY' is a dict: give the query string, as str, or as 'QUERY_STR' beside it")
    raw = {_encode(name): _encode_value(name, value) for name, value in headers.items()}
    if b"QUERY_STR" in raw:
        query = raw.pop(b"QUERY_STR")
        raw.pop(b"QUERY", None)
        if query:
            raw[b"QUERY"] = query
    if protocol == "tnetstring":
        head = tnetstring.dumps(raw)
    elif protocol == "json":
        # Escape what Mongrel2 escapes and leave all other bytes as they are, as it does.
        fields = b",".join(b"%s:%s" % (_json_string(name), _json_value(value)) for name, value in raw.items())
        head = b"%d:{%s}," % (len(fields) + 2, fields)
    else:
        raise LocalProtocolError(f"protocol is 'tnetstring' or 'json', not {protocol!r}")
    return b"%s %s %s %s%d:%s," % (
        check_sender(sender).encode(),
        number.encode(),
        _encode(path),
        head,
        len(body),
        _checked_body(body),
    )


def _encode(text: str | bytes) -> bytes:
    if isinstance(text, bytes):
        return text
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return _encode_utf8(text)


def _encode_utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise LocalProtocolError(f"{text!r} cannot be written as UTF-8: {error.reason}") from error


def _encode_value(name: str | bytes, value: object) -> bytes | list[bytes]:
    if isinstance(value, (str, bytes)):
        return _encode(value)
    if isinstance(value, list):
        return [_encode(one) for one in value]
    if isinstance(value, int):
        return b"%d" % value
    if isinstance(value, dict) and name in ("QUERY", b"QUERY"):
        return b""  # the parsed form of a Headers map; QUERY_STR beside it is what goes out
    raise LocalProtocolError(f"header {name!r} has a {type(value).__name__}; give a str, bytes or a list of them")


def _json_string(text: bytes) -> bytes:
    return b'"%s"' % text.replace(b"\\", b"\\\\").replace(b'"', b'\\"')


def _json_value(value: bytes | list[bytes]) -> bytes:
    if isinstance(value, list):
        return b"[%s]" % b",".join(_json_string(one) for one in value)
    return _json_string(value)


def build_disconnect_notice(sender: str, conn_id: str | int, *, protocol: str = "tnetstring") -> bytes:
    """Build what Mongrel2 sends when a browser has gone; ``METHOD`` is its only header (probed)."""
    return build_request(sender, conn_id, "@*", {"METHOD": "JSON"}, b'{"type":"disconnect"}', protocol=protocol)


def build_credits_notice(sender: str, conn_id: str | int, written: int, *, protocol: str = "tnetstring") -> bytes:
    """Build what Mongrel2 sends once it wrote *written* bytes of a message, with ``download.flow_control`` (probed)."""
    headers = {"METHOD": "JSON", "DOWNLOAD_CREDITS": str(written)}
    return build_request(sender, conn_id, "@*", headers, b'{"type":"credits"}', protocol=protocol)


# -- replies -----------------------------------------------------------------------------------------------------------


def build_reply(sender: str, conn_ids: str | int | Iterable[str | int], body: bytes) -> bytes:
    """Build one reply: *body* goes to the browsers as it is; an empty one closes their connections.

    Args:
        sender: The request's sender, or what the server subscribed to.
        conn_ids: One id, or up to 128 of them (see :func:`batch_conn_ids` for more).
        body: Bytes.

    Raises:
        LocalProtocolError: Mongrel2 would reject it: a sender it cannot parse, no id, more than 128, one that is no
            decimal number, a body that is no bytes.
    """
    return _head(sender, conn_ids, "") + _checked_body(body)


def build_extended_reply(sender: str, conn_ids: str | int | Iterable[str | int], key: str, value: object) -> bytes:
    """Build an extended reply, for what only the server can do: *key* ``ctl`` or the name of a loaded request module.

    Args:
        value: What tnetstrings hold: bytes, int, lists, dicts of bytes. For ``ctl`` a dict.

    Raises:
        LocalProtocolError: As for :func:`build_reply`; or ``ctl`` without a dict, which would kill the connection.
    """
    if key == "ctl" and not isinstance(value, dict):
        raise LocalProtocolError(
            f"the value of 'ctl' is a dict, not {value!r}: Mongrel2 kills the connection otherwise"
        )
    try:
        body: bytes = tnetstring.dumps([key.encode(), value])
    except (TypeError, ValueError, RecursionError) as error:
        raise LocalProtocolError(f"the value of {key!r} cannot be written as a tnetstring: {error}") from error
    return _head(sender, conn_ids, "X ") + body


def build_control_reply(sender: str, body: bytes) -> bytes:
    """Build the proof that a handler's replies arrive: *body* to :data:`CONTROL_ID`.

    Only a :class:`~greentx.Server` reads it. Mongrel2 would reject it as invalid, so it goes only to a server that
    asked for it on the control socket.
    """
    return b"%s %d:%s, %s" % (check_sender(sender).encode(), len(CONTROL_ID), CONTROL_ID.encode(), _checked_body(body))


#: Bodies of extended replies (``X``): reset the idle timer; close at once and drop what is queued.
KEEP_ALIVE: bytes = tnetstring.dumps([b"ctl", {b"keep-alive": b""}])
CANCEL: bytes = tnetstring.dumps([b"ctl", {b"cancel": b""}])


def credits_body(count: int) -> bytes:
    """Return the body of an extended reply that lets the server read *count* more bytes of an upload."""
    if count < 0:
        raise LocalProtocolError(f"credits are a number of bytes, not {count}")
    return bytes(tnetstring.dumps([b"ctl", {b"credits": count}]))


def batch_conn_ids(conn_ids: Iterable[str | int]) -> Iterator[list[str]]:
    """Yield *conn_ids* as text in lists of at most 128."""
    batch: list[str] = []
    for conn_id in conn_ids:
        batch.append(conn_id if isinstance(conn_id, str) else str(conn_id))
        if len(batch) == MAX_CONN_IDS:
            yield batch
            batch = []
    if batch:
        yield batch


def _head(sender: str, conn_ids: str | int | Iterable[str | int], kind: str) -> bytes:
    ids = [str(conn_ids)] if isinstance(conn_ids, (str, int)) else [str(conn_id) for conn_id in conn_ids]
    if not ids or len(ids) > MAX_CONN_IDS:
        raise LocalProtocolError(f"a reply goes to 1 to {MAX_CONN_IDS} ids, not {len(ids)}")
    for one in ids:
        if not (one.isascii() and one.isdecimal()):
            raise LocalProtocolError(f"conn_id {one!r} is no decimal number")
    text = kind + " ".join(ids)
    return f"{check_sender(sender)} {len(text)}:{text}, ".encode()


def _checked_body(body: bytes) -> bytes:
    if not isinstance(body, (bytes, bytearray, memoryview)):
        raise LocalProtocolError(f"a body is bytes, not {type(body).__name__}")
    return bytes(body)


class Response:
    """One reply as the server receives it.

    Attributes:
        sender: The first token.
        conn_ids: The ids it is for, decimal strings, in their order.
        body: What the browsers get; ``b""`` closes them.
        extended: ``(key, value)`` of an extended reply, else ``None``; *body* is then the raw tnetstring.
    """

    __slots__ = ("body", "conn_ids", "extended", "sender")

    def __init__(
        self, sender: str, conn_ids: list[str], body: bytes, extended: tuple[bytes, object] | None = None
    ) -> None:
        self.sender = sender
        self.conn_ids = conn_ids
        self.body = body
        self.extended = extended

    @classmethod
    def parse(cls, message: bytes) -> Response:
        """Parse one message; the same as :func:`parse_reply`."""
        return parse_reply(message)

    @property
    def is_close(self) -> bool:
        """True when it closes the connections it is for."""
        return not self.body and self.extended is None

    def encode(self) -> bytes:
        """Build the message again."""
        if self.conn_ids == [CONTROL_ID]:
            return build_control_reply(self.sender, self.body)
        return _head(self.sender, self.conn_ids, "" if self.extended is None else "X ") + self.body

    def __repr__(self) -> str:
        what = f"extended={self.extended!r}" if self.extended else f"body={len(self.body)} bytes"
        return f"<Response sender={self.sender} conn_ids={self.conn_ids} {what}>"


def parse_reply(message: bytes) -> Response:
    """Parse one reply as Mongrel2 does, with the same limits; or what :func:`build_control_reply` builds.

    Raises:
        RemoteProtocolError: Mongrel2 would reject it, and stall this handler's replies for 0.5 s (probed).

    Source: src/handler_parser.rl; probed.
    """
    match = _REPLY.match(message)
    if not match:
        raise RemoteProtocolError(f"no 'sender LEN:' at the start of {_shown(message)}")
    start = match.end()
    end = start + int(match[2])
    ids = message[start:end]
    if message[end : end + 2] != b", " or not _IDS.fullmatch(ids):
        raise RemoteProtocolError(f"no {int(match[2])} bytes of ids and ', ' at byte {start} of {_shown(message)}")
    body = message[end + 2 :]
    extended = ids.startswith(b"X ")
    conn_ids = ids[2 if extended else 0 :].decode().split()
    if len(conn_ids) > MAX_CONN_IDS:
        raise RemoteProtocolError(f"{len(conn_ids)} ids, limit {MAX_CONN_IDS}")
    pair: tuple[bytes, object] | None = None
    if extended:
        try:
            value = tnetstring.loads(body)
        except (ValueError, RecursionError) as error:
            raise RemoteProtocolError(f"the body of an extended reply is no tnetstring: {error}") from error
        if not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], bytes)):
            raise RemoteProtocolError("the body of an extended reply is no list of a key and a value")
        pair = (value[0], value[1])
    return Response(match[1].decode(), conn_ids, body, pair)


def _shown(message: bytes) -> str:
    return repr(message[:60]) + ("..." if len(message) > 60 else "")
