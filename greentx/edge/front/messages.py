"""What the front end tells handlers, byte for byte as Mongrel2 does, without I/O.

Order and escapes were probed on 1.12.2. What the client sent stands in the order of its arrival, where Mongrel2 has
that of a hash; and all lines of a repeated name are there, where Mongrel2 drops the sixth and those behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ...protocol.kinds import Kind
from ...protocol.requests import build_disconnect_notice
from ...protocol.websocket.frames import Frame
from .events import Head, Message

__all__ = ["FrameMessages", "MessageBuilder", "Own"]

_HANDSHAKE = str(Kind.WEBSOCKET_HANDSHAKE).encode()
_WEBSOCKET = str(Kind.WEBSOCKET).encode()
_FORWARDED = b"x-forwarded-for"
# Replaced by the FLAGS of each frame; of the same length.
_NO_FLAGS = b"0x00"
_JSON_FLAGS = b'"FLAGS":"0x00'


class _Lengths(dict[int, bytes]):
    """How a tnetstring of so many bytes begins; those of usual headers are there."""

    def __missing__(self, length: int) -> bytes:
        return b"%d:" % length


class _Names(dict[bytes, bytes]):
    """Names of headers as tnetstrings; usual ones are there."""

    def __missing__(self, name: bytes) -> bytes:
        return b"%d:%b," % (len(name), name)


_LENGTHS = _Lengths((length, b"%d:" % length) for length in range(1024))
_USUAL = (
    "accept accept-encoding accept-language authorization cache-control connection content-length content-type cookie"
    " dnt host if-modified-since if-none-match origin pragma priority range referer sec-ch-ua sec-ch-ua-mobile"
    " sec-ch-ua-platform sec-fetch-dest sec-fetch-mode sec-fetch-site sec-fetch-user te upgrade"
    " upgrade-insecure-requests user-agent via x-forwarded-host x-forwarded-proto x-real-ip x-request-id"
    " x-requested-with"
)
_NAMES = _Names((name, b"%d:%b," % (len(name), name)) for name in _USUAL.encode().split())

_Pair = tuple[bytes, "bytes | list[bytes]"]
#: Fields of the server's own, next to those that every request has.
Own = Sequence[tuple[bytes, bytes]]


class MessageBuilder:
    """Builds the messages to one handler entry.

    Args:
        sender: The entry's ``send_ident``.
        protocol: How its headers are written: ``"tnetstring"`` or ``"json"``.
        scheme: ``b"http"`` or ``b"https"``.
        believes: With ``no_clobber_xff``: ``X-Forwarded-For`` is what the client says, or missing.
    """

    __slots__ = ("_believes", "_is_json", "_protocol", "_scheme", "_sender")

    def __init__(self, sender: str, protocol: str, scheme: bytes = b"http", *, believes: bool = False) -> None:
        self._sender = sender
        self._protocol = protocol
        self._is_json = protocol == "json"
        self._scheme = scheme
        self._believes = believes

    def believing(self) -> MessageBuilder:
        """Return one that differs only in that."""
        return MessageBuilder(self._sender, self._protocol, self._scheme, believes=True)

    def request(self, conn_id: int, head: Head, pattern: bytes, address: bytes, body: bytes, own: Own = ()) -> bytes:
        """Build a request that is whole.

        Args:
            conn_id: Of its browser connection.
            pattern: The route that it was found by.
            address: Of the client, as text.
        """
        return self._message(conn_id, head, head.method, pattern, address, own=own) + b"%d:%b," % (len(body), body)

    def stream(self, conn_id: int, head: Head, pattern: bytes, address: bytes, body: bytes, own: Own = ()) -> bytes:
        """Build the first message of a body that is streamed: as :meth:`request`, with what there is of it."""
        own = (*own, (b"UPLOAD_STREAM", b"0"))
        return self._message(conn_id, head, head.method, pattern, address, own=own) + b"%d:%b," % (len(body), body)

    def piece(self, conn_id: int, path: bytes, offset: int, body: bytes, *, last: bool) -> bytes:
        """Build one of the messages that follow it: so many bytes of the body were in those before.

        Args:
            path: Of the request.
            last: The body is whole with it.
        """
        at = b"%d" % offset
        if self._is_json:
            text = b'{"UPLOAD_STREAM":"%b"%b}' % (at, b',"UPLOAD_STREAM_DONE":"1"' if last else b"")
            headers = b"%d:%b," % (len(text), text)
        else:
            text = b"%b13:UPLOAD_STREAM,%d:%b," % (b"18:UPLOAD_STREAM_DONE,1:1," if last else b"", len(at), at)
            headers = b"%d:%b}" % (len(text), text)
        return b"%b %d %b %b%d:%b," % (self._sender.encode(), conn_id, path, headers, len(body), body)

    def message(self, conn_id: int, message: Message, pattern: bytes, address: bytes) -> bytes:
        """Build what a JSON or XML socket has sent."""
        forwarded = [] if self._believes else [(_FORWARDED, address)]
        remote, method = (b"REMOTE_ADDR", address), (b"METHOD", message.method)
        scheme, route, path = (b"URL_SCHEME", self._scheme), (b"PATTERN", pattern), (b"PATH", message.path)
        if self._is_json:
            pairs = [path, *forwarded, method, route, scheme, remote]
            text = b"{%b}" % b",".join([b"%b:%b" % (_quoted(name), _quoted(value)) for name, value in pairs])
            headers = b"%d:%b," % (len(text), text)
        else:
            pairs = [remote, method, scheme, route, path, *forwarded]
            text = b"".join([b"%d:%b,%d:%b," % (len(name), name, len(value), value) for name, value in pairs])
            headers = b"%d:%b}" % (len(text), text)
        body = message.body
        return b"%b %d %b %b%d:%b," % (self._sender.encode(), conn_id, message.path, headers, len(body), body)

    def handshake(
        self, conn_id: int, head: Head, pattern: bytes, address: bytes, accept: bytes, own: Own = ()
    ) -> bytes:
        """Build the opening handshake of a WebSocket; *accept* is what its answer says in ``Sec-WebSocket-Accept``."""
        message = self._message(conn_id, head, _HANDSHAKE, pattern, address, own=own)
        return message + b"%d:%b," % (len(accept), accept)

    def frames(self, conn_id: int, head: Head, pattern: bytes, address: bytes, own: Own = ()) -> FrameMessages:
        """Return what builds the messages of the WebSocket that *head* has opened; all repeat the fields of *head*."""
        message = self._message(conn_id, head, _WEBSOCKET, pattern, address, flags=_NO_FLAGS, own=own)
        return FrameMessages(message, is_json=self._is_json)

    def disconnect(self, conn_id: int) -> bytes:
        """Build the notice that a browser has gone."""
        return build_disconnect_notice(self._sender, conn_id, protocol=self._protocol)

    def credits(self, conn_id: int, written: int) -> bytes:
        """Build the notice that a message of so many bytes was written, with ``download.flow_control``."""
        sender = self._sender.encode()
        count = b"%d" % written
        if self._is_json:
            text = b'{"METHOD":"JSON","DOWNLOAD_CREDITS":"%b"}' % count
            return b'%b %d @* %d:%b,18:{"type":"credits"},' % (sender, conn_id, len(text), text)
        text = b"16:DOWNLOAD_CREDITS,%d:%b,6:METHOD,4:JSON," % (len(count), count)
        return b'%b %d @* %d:%b}18:{"type":"credits"},' % (sender, conn_id, len(text), text)

    def _message(
        self,
        conn_id: int,
        head: Head,
        method: bytes,
        pattern: bytes,
        address: bytes,
        flags: bytes | None = None,
        own: Own = (),
    ) -> bytes:
        path, mark, query = head.target.partition(b"?")
        fields: list[_Pair] = [*head.headers] if head.plain else _joined(head.headers, forwarded=self._believes)
        if flags is not None:
            fields.append((b"FLAGS", flags))
        # Mongrel2 writes JSON in the opposite direction, but for what the client has sent: that is in any order.
        if self._is_json:
            pairs: list[_Pair] = [
                (b"PATH", path),
                *own,
                *(() if self._believes else ((_FORWARDED, address),)),
                *fields,
                (b"METHOD", method),
                (b"VERSION", head.version),
                (b"URI", head.target),
            ]
            if mark:
                pairs.append((b"QUERY", query))
            pairs += [(b"PATTERN", pattern), (b"URL_SCHEME", self._scheme), (b"REMOTE_ADDR", address)]
            text = b",".join([b"%b:%b" % (_quoted(name), _json(value)) for name, value in pairs])
            return b"%b %d %b %d:{%b}," % (self._sender.encode(), conn_id, path, len(text) + 2, text)
        scheme = self._scheme
        parts = [
            b"11:REMOTE_ADDR,%d:%b,6:METHOD,%d:%b,10:URL_SCHEME,%d:%b,7:PATTERN,%d:%b,"
            % (len(address), address, len(method), method, len(scheme), scheme, len(pattern), pattern),
            b"5:QUERY,%d:%b," % (len(query), query) if mark else b"",
            b"3:URI,%d:%b,7:VERSION,%d:%b,4:PATH,%d:%b,"
            % (len(head.target), head.target, len(head.version), head.version, len(path), path),
        ]
        # Two thirds of the time of a format for each field.
        for name, value in fields:
            if isinstance(value, bytes):
                parts += (_NAMES[name], _LENGTHS[len(value)], value, b",")
            else:
                parts += (_NAMES[name], _tnetstring_list(value))
        if not self._believes:
            parts.append(b"15:x-forwarded-for,%d:%b," % (len(address), address))
        parts += [b"%d:%b,%d:%b," % (len(name), name, len(value), value) for name, value in own]
        text = b"".join(parts)
        return b"%b %d %b %d:%b}" % (self._sender.encode(), conn_id, path, len(text), text)


class FrameMessages:
    """Builds the messages of one WebSocket, from whole ones of its client."""

    __slots__ = ("_end", "_start")

    def __init__(self, head: bytes, *, is_json: bool) -> None:
        # What the client sent may hold the same text. In JSON it has no bare quotes; otherwise it stands in front.
        at = head.find(_JSON_FLAGS) + len(_JSON_FLAGS) - len(_NO_FLAGS) if is_json else head.rindex(_NO_FLAGS)
        self._start, self._end = head[:at], head[at + len(_NO_FLAGS) :]

    def build(self, message: Frame) -> bytes:
        """Build one message: its FLAGS say opcode and reserved bits, and that nothing follows."""
        payload = message.payload
        return b"%b0x%02X%b%d:%b," % (
            self._start,
            0x80 | message.rsvd << 4 | message.opcode,
            self._end,
            len(payload),
            payload,
        )


def _joined(headers: list[tuple[bytes, bytes]], *, forwarded: bool) -> list[_Pair]:
    """Make lists of names that are repeated; who the client says that it is stays where *forwarded*."""
    joined: dict[bytes, bytes | list[bytes]] = {}
    for name, value in headers:
        before = joined.get(name)
        if before is None:
            joined[name] = value
        elif isinstance(before, list):
            before.append(value)
        else:
            joined[name] = [before, value]
    if not forwarded:
        joined.pop(_FORWARDED, None)
    return list(joined.items())


def _tnetstring_list(values: Iterable[Any]) -> bytes:
    text = b"".join([b"%d:%b," % (len(one), one) for one in values])
    return b"%d:%b]" % (len(text), text)


def _json(value: bytes | list[bytes]) -> bytes:
    if isinstance(value, list):
        return b"[%b]" % b",".join(map(_quoted, value))
    return _quoted(value)


def _quoted(text: bytes) -> bytes:
    # Mongrel2 escapes these two, and leaves all other bytes as they came.
    return b'"%b"' % text.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
