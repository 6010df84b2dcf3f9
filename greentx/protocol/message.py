"""One message of Mongrel2's taken apart: its fields, its headers as they are decoded, its body.

::

    message -+- small -> the short way -+-> fields
             |                          | anything odd, or a WebSocket's that is not known
             +- large -> by lengths <---+
                              +-> fields, or what is wrong with it

All headers of each message are decoded, by a library in C: a message whose headers are malformed has to be refused when
it comes. For 16 headers that takes 1.2 us. To search a message in Python for the few headers that are always asked for
would take longer. Making text of all headers takes longer than both, and is done when they are read
(:mod:`greentx.protocol.headers`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import tnetstring

from ..errors import RemoteProtocolError
from .cache import Memo
from .fields import CONN_ID, CONTROL_ID, NOT_DECODED, shown
from .headers import all_plain
from .kinds import Kind

__all__ = ["Fields", "read_message"]

#: Sender, connection id, path, headers, body, METHOD, and whether the headers are plain: what a Request is made of.
Fields = tuple[str, str, str, Mapping[Any, Any], bytes, str, bool]

# The extra "speed": decodes JSON headers four times as fast as the standard library.
try:
    import msgspec.json

    decode_json: Callable[[bytes], Any] | None = msgspec.json.Decoder(dict[str, str | list[str]]).decode
except ImportError:
    decode_json = None

_pop = tnetstring.pop
_load = tnetstring.loads

# Each message of a WebSocket repeats all headers of its handshake (probed), so what stands in front of the body is
# looked up before it is decoded. Kept is what was found in it: all fields but the body. In 32 MiB is room for about
# 8,000 WebSockets of browsers. Requests are not kept: nearly each of them differs from all others.
known_starts: Memo[tuple[str, str, str, Mapping[Any, Any], str, bool]] = Memo(32 << 20)
# Stands in the headers of each of them, and, where it stands in others, does no harm.
_OF_A_WEBSOCKET = b"WEBSOCKET"

# The short way copies a body twice.
MAX_SMALL = 4096
# Sender, id and path of most messages are shorter.
_START_SIZE = 512

# A netstring's length; Mongrel2 never writes one beyond ten digits, and a longer one must not cost us memory.
_MAX_LENGTH_DIGITS = 10
_MAX_ID_DIGITS = 20
_NO_BODY = b"0:,"
_CONTROL_ID = CONTROL_ID.encode()

# The usual METHODs as text, so that requests share one object for each; all others are decoded.
_KINDS = (Kind.WEBSOCKET.value, Kind.JSON.value, Kind.XML.value)
_METHODS: dict[Any, str] = {name.encode(): name for name in ("GET", "POST", "HEAD", "PUT", "DELETE", *_KINDS)}
_UPLOAD_STREAM = Kind.UPLOAD_STREAM.value
_WEBSOCKET = Kind.WEBSOCKET.value


def read_message(message: bytes) -> Fields:
    """Take a message apart. Raises ``RemoteProtocolError`` as :func:`greentx.protocol.request.parse_request` says."""
    has_body = not message.endswith(_NO_BODY)
    if has_body and known_starts.known:
        # The first colon stands behind the headers' length, unless the path has one.
        colon = message.find(b":", 0, _START_SIZE)
        size = message[message.rfind(b" ", 0, colon) + 1 : colon]
        if not size.isdigit():
            size, colon = _headers_length(message)
        if size.isdigit() and len(size) <= _MAX_LENGTH_DIGITS:
            end = colon + 2 + int(size)
            known = known_starts.known.get(message[:end])
            if known is not None:
                sender_text, conn_id, path_text, raw, word, plain = known
                return sender_text, conn_id, path_text, raw, _body(message, end), word, plain
    if len(message) <= MAX_SMALL and not (has_body and _OF_A_WEBSOCKET in message):
        try:
            sender, number, path, rest = message.split(b" ", 3)
            headers, left = _pop(rest)
            if headers.__class__ is bytes:
                headers = _load_json(headers)
            if (
                headers.__class__ is dict
                and sender
                and path
                and number.isdigit()
                and len(number) <= _MAX_ID_DIGITS
                and (method := _METHODS.get(headers.get(b"METHOD")) or _method(headers)) is not None
            ):
                no_body = left == _NO_BODY
                body = b"" if no_body else left[left.find(b":") + 1 : -1]
                if no_body or left == b"%d:%b," % (len(body), body):
                    return (
                        sender.decode("latin-1"),
                        number.decode(),
                        path.decode("latin-1"),
                        headers,
                        body,
                        method,
                        _is_plain(headers, rest),
                    )
        except NOT_DECODED:
            pass
    return _read_by_lengths(message)


def _headers_length(message: bytes) -> tuple[bytes, int]:
    """Return what stands where the headers' length should be, behind the third blank, and where it ends."""
    start = message.find(b" ", message.find(b" ", message.find(b" ") + 1) + 1) + 1
    size = message[start : start + _MAX_LENGTH_DIGITS + 1].partition(b":")[0]
    return size, start + len(size)


def _read_by_lengths(message: bytes) -> Fields:
    """As :func:`read_message`, for any message: with one copy of the body, and an error that says what is wrong."""
    fields = message[:_START_SIZE].split(b" ", 3)
    if len(fields) < 4:
        fields = message.split(b" ", 3)
    if len(fields) < 4 or not fields[0] or not fields[2] or not _is_id(fields[1]):
        raise _bad_start(message)
    start = sum(map(len, fields[:3])) + 3
    sender, conn_id, path = (field.decode("latin-1") for field in fields[:3])
    colon = message.find(b":", start, start + _MAX_LENGTH_DIGITS + 1)
    size = message[start:colon]
    if colon < 0 or not size.isdigit():
        raise _bad_start(message)
    end = colon + 1 + int(size)
    headers = _decode(message, start, colon + 1, end)
    method = _method(headers)
    if method is None:
        raise RemoteProtocolError(f"no METHOD among the headers {shown(message[start:])} at byte {start}")
    begin = message[: end + 1]
    plain = _is_plain(headers, begin)
    body = _body(message, end + 1)
    if method == _WEBSOCKET:
        known_starts.keep(begin, (sender, conn_id, path, headers, method, plain))
    return sender, conn_id, path, headers, body, method, plain


def _is_id(number: bytes) -> bool:
    return (number.isdigit() and len(number) <= _MAX_ID_DIGITS) or number == _CONTROL_ID


def _method(headers: Mapping[Any, Any]) -> str | None:
    """Return METHOD; of a further piece of a body, which has none, our word for it; ``None`` where it is missing."""
    method = headers.get(b"METHOD")
    if method.__class__ is bytes:
        return _METHODS.get(method) or method.decode("latin-1")
    method = headers.get("METHOD")
    if method.__class__ is str:
        return method
    return _UPLOAD_STREAM if b"UPLOAD_STREAM" in headers or "UPLOAD_STREAM" in headers else None


def _is_plain(headers: Mapping[Any, Any], block: bytes) -> bool:
    """Return whether all names are among ``plain_names``, none came twice, and there is a Host.

    Args:
        headers: What was decoded.
        block: What it was decoded from, or more than that.
    """
    if not all_plain(headers) or not (b"host" in headers or "host" in headers):
        return False
    # In both encodings the list of a repeated name ends so, and few values have one: to look at each of them costs ten
    # times as much.
    return b"]" not in block or list not in map(type, headers.values())


def _decode(message: bytes, start: int, begin: int, end: int) -> Mapping[Any, Any]:
    """Decode the headers ``message[begin:end]``, whose length is written from *start* on, and their kind at *end*."""
    kind = message[end : end + 1]
    if kind == b"}":
        try:
            headers: Mapping[Any, Any] = _load(message[start : end + 1])
        except NOT_DECODED as error:
            raise RemoteProtocolError(f"headers at byte {start} are not a tnetstring: {error}") from error
    elif kind == b",":
        try:
            headers = _load_json(message[begin:end])
        except (ValueError, RecursionError) as error:
            raise RemoteProtocolError(f"headers at byte {start} are not JSON: {error}") from error
        if not isinstance(headers, dict):
            raise RemoteProtocolError(f"headers at byte {start} are not a JSON object")
    else:
        raise RemoteProtocolError(
            f"headers at byte {start} should end after {end - begin} bytes with '}}' or ',', not {shown(message[end:])}"
        )
    return headers


def _load_json(data: bytes) -> Any:
    # Mongrel2 escapes '"' and '\' only: a tab, a control byte or invalid UTF-8 comes raw (probed), which no strict
    # parser accepts. Plain ASCII, nearly every message, goes through the fast one.
    if decode_json is not None and data.isascii():
        try:
            return decode_json(data)
        except ValueError:
            # A control byte or another value than text: the lenient parser decides.
            pass
    return json.loads(data.decode("latin-1"), strict=False)


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
