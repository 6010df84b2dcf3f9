"""JSON and XML sockets: messages that are not HTTP on the port of HTTP, read without I/O.

``@path {...}`` or ``<path ...>...</path>``, and a NUL. They may come between the requests of one connection.

Source: Mongrel2's src/http11/http11_parser.rl and src/connection.c; probed on 1.12.2. As there nothing is known of JSON
and XML but where a message ends: at the first NUL behind a ``}`` or a ``>``.
"""

from __future__ import annotations

import base64
import re

from ...errors import RemoteProtocolError
from .events import Message

__all__ = ["POLICY", "STARTS", "MessageReader", "asks_for_policy", "in_base64", "is_ping"]

#: The first byte of a message; no request begins with one.
STARTS = (b"@", b"<")

#: What ``<policy-file-request/>`` is answered, byte for byte as Mongrel2 does it.
POLICY = (
    b'<?xml version="1.0"?><!DOCTYPE cross-domain-policy SYSTEM'
    b' "http://www.macromedia.com/xml/dtds/cross-domain-policy.dtd"><cross-domain-policy>'
    b' <allow-access-from domain="*" to-ports="*" /></cross-domain-policy>\0'
)

# What ends a path, and a path: RFC 3986, section 3.3, "path-noscheme", or nothing. No query follows (probed).
_BEHIND_PATH = re.compile(rb"[^!$%&-;=@A-Z_a-z~]")
_PATH = re.compile(rb"@(?:[!$&-.0-9;=@A-Z_a-z~]|%[0-9A-Fa-f]{2})*(?:/(?:[!$&-;=@A-Z_a-z~]|%[0-9A-Fa-f]{2})*)?")
_BEHIND_NAME = re.compile(rb"[^0-9A-Za-z.\-]")
_NAME_ENDS = frozenset(b"/> \t\n\v\f\r")
# src/connection.c, PING_PATTERN, but for what is behind it.
_PING_PATH = re.compile(rb"@[a-z/]*")
_PING = re.compile(rb'\{"type":[ \t\n\v\f\r]*"ping"\}')
_POLICY_PATH = b"<policy-file-request"


class MessageReader:
    """Reads the messages of one connection.

    It keeps no bytes: those that it has not consumed have to come again, with more behind them.

    Args:
        max_size: Of one message with its NUL.
    """

    __slots__ = ("_max_size", "_path_size", "_scanned")

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        # Of the message in hand: its path, with the "@" or "<", once all of it is there; and how much was looked at.
        self._path_size = 0
        self._scanned = 1

    def read(self, data: bytes | bytearray, at: int) -> tuple[int, Message | None]:
        """Read the message that begins at ``data[at]``.

        Returns:
            Up to where *data* is consumed, and the message once it is whole.

        Raises:
            RemoteProtocolError: 400: it never becomes one, or it is too large.
        """
        is_json = data[at] == 0x40
        limit = at + self._max_size
        end = -1
        if self._path_size or self._begin(data, at, is_json):
            end = data.find(b"}\0" if is_json else b">\0", at + self._scanned, limit)
        if end < 0:
            if len(data) >= limit:
                raise RemoteProtocolError(f"the message is over {self._max_size} bytes")
            if self._path_size:
                # The last byte may be the one before the NUL.
                self._scanned = max(self._scanned, len(data) - at - 1)
            return at, None
        behind_path = at + self._path_size
        path = bytes(data[at:behind_path])
        body = bytes(data[behind_path + 1 if is_json else at : end + 1])
        self._path_size = 0
        self._scanned = 1
        return end + 2, Message(b"JSON" if is_json else b"XML", path, body)

    def _begin(self, data: bytes | bytearray, at: int, is_json: bool) -> bool:
        """Look for the end of the path; return whether it is there, with what has to follow it."""
        limit = min(len(data), at + self._max_size)
        found = (_BEHIND_PATH if is_json else _BEHIND_NAME).search(data, at + self._scanned, limit)
        if found is None:
            self._scanned = limit - at
            return False
        end = found.start()
        self._scanned = end - at
        if is_json:
            if data[end] != 0x20 or not _PATH.fullmatch(data, at, end):
                raise RemoteProtocolError("a JSON message begins with a path and one blank")
            if limit == end + 1:
                return False
            if data[end + 1] != 0x7B:
                raise RemoteProtocolError("a JSON message is not enclosed by braces")
        elif end == at + 1 or data[end] not in _NAME_ENDS:
            raise RemoteProtocolError("an XML message does not begin with a tag")
        self._path_size = end - at
        # Behind " {", or what ends the name, it may end at once.
        self._scanned += 2 if is_json else 1
        return True


def in_base64(text: bytes) -> bytes:
    """Return what a client gets of a reply *text* without ``raw_payload``; of a NUL alone nothing is left: a close.

    Neither has a terminator (probed).
    """
    return base64.b64encode(text.removesuffix(b"\0"))


def is_ping(message: Message) -> bool:
    """Tell whether its client only says that it is there: no handler is told, and the connection is not idle."""
    return _PING.fullmatch(message.body) is not None and _PING_PATH.fullmatch(message.path) is not None


def asks_for_policy(message: Message) -> bool:
    """Tell whether it is answered :data:`POLICY`, whatever the routes are; then the connection ends."""
    return message.path == _POLICY_PATH
