"""Heads of requests: the first line read here, the fields by httptools, and what both mean, checked.

Source: RFC 9112, sections 2 to 7; RFC 9110, sections 5, 7.2, 7.8 and 10.1.1.
"""

from __future__ import annotations

import re

import httptools

from ...errors import RemoteProtocolError
from ...protocol.kinds import HTTP_FORGERIES, Kind
from .events import Head
from .limits import Limits

__all__ = ["HeadParser", "parse_line"]

_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])")
# RFC 3986, and brackets in a query, where forms with lists have them. What else there is, Mongrel2 refuses as well.
_ORIGIN = re.compile(rb"/(?:[!$&-;=@A-Z_a-z~]|%[0-9A-Fa-f]{2})*(?:\?(?:[!$&-;=?-\[\]_a-z~]|%[0-9A-Fa-f]{2})*)?")
_ABSOLUTE = re.compile(rb"[Hh][Tt][Tt][Pp][Ss]?://([^/?]+)(.*)")
_HOST = re.compile(
    rb"(?:[!$&-.0-9;=A-Z_a-z~]|%[0-9A-Fa-f]{2})*(?::[0-9]{0,5})?|\[[0-9A-Fa-f:.]{2,45}\](?::[0-9]{0,5})?"
)
_LENGTH = re.compile(rb"[0-9]{1,19}")

_FORGERIES = frozenset(word.encode() for word in {*map(str, HTTP_FORGERIES), str(Kind.MONGREL2)})
_MAX_METHOD = 32

# What llhttp is given in place of the client's line: it knows few methods, and has its own rules for some of them.
_PLAIN_LINE = b"POST / HTTP/1.1\r\n"

_HOST_NAME, _CONNECTION, _UPGRADE, _EXPECT = b"host", b"connection", b"upgrade", b"expect"
_CODING, _CONTENT_LENGTH = b"transfer-encoding", b"content-length"
_KEY, _WEBSOCKET_VERSION = b"sec-websocket-key", b"sec-websocket-version"
# A list of values each (RFC 9110, section 5.3): several lines are one.
_LISTS = (_CONNECTION, _UPGRADE, _EXPECT, _CODING)


def parse_line(line: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Parse a request line without its CRLF.

    Returns:
        The method; the target in origin form, or ``*``; the version, 1.0 or 1.1; of the absolute form the host,
        else ``b""``.

    Raises:
        RemoteProtocolError: With the status of the answer: 400, 501 or 505.
    """
    found = _LINE.fullmatch(line)
    if found is None:
        raise RemoteProtocolError("the first line is not a request line")
    method, target, major, minor = found.groups()
    if major != b"1":
        raise RemoteProtocolError("the version is not HTTP/1.1 or HTTP/1.0", status=505)
    if method == b"CONNECT" or method in _FORGERIES or len(method) > _MAX_METHOD:
        raise RemoteProtocolError("the method is not served here", status=501)
    host = b""
    if target[0] != 0x2F:
        if target == b"*":
            if method != b"OPTIONS":
                raise RemoteProtocolError("only OPTIONS may have the target *")
            return method, target, b"HTTP/1.1" if minor != b"0" else b"HTTP/1.0", b""
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is None or _HOST.fullmatch(absolute[1]) is None or absolute[1][:1] == b":":
            raise RemoteProtocolError("the target is neither a path nor a URI of http or https")
        host, target = absolute.groups()
        if not target:
            target = b"*" if method == b"OPTIONS" else b"/"
        elif target[0] == 0x3F:
            target = b"/" + target
    if target != b"*" and _ORIGIN.fullmatch(target) is None:
        raise RemoteProtocolError("the target has characters that a URI may not have")
    return method, target, b"HTTP/1.1" if minor != b"0" else b"HTTP/1.0", host


class HeadParser:
    """Parses whole heads, those of one connection."""

    __slots__ = ("_fields", "_known_host", "_limits", "_parsed", "_parser")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._fields: list[tuple[bytes, bytes]] = []
        self._parsed = False
        self._parser: httptools.HttpRequestParser | None = None
        # Of a connection nearly always the same.
        self._known_host = b""

    # What httptools calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field was read."""
        self._fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """All fields were read: what llhttp finds wrong from here on is not in them."""
        self._parsed = True

    def parse(self, head: bytes) -> Head:
        """Parse one head: everything up to its empty line, and that.

        Raises:
            RemoteProtocolError: What is wrong, with the status of the answer.
        """
        end = head.index(b"\r\n")
        line_size = self._limits.line_size
        if end > line_size:
            raise RemoteProtocolError(f"the first line is over {line_size} bytes", status=414)
        method, target, version, host = parse_line(head[:end])
        fields = self.parse_fields(head[end + 2 :])
        known = dict(fields)
        if len(known) != len(fields):
            _join_lists(fields, known)
        if self._check_host(known.get(_HOST_NAME), version) and host:
            known[_HOST_NAME] = host
            fields = [(name, host if name == _HOST_NAME else value) for name, value in fields]
        elif host:
            fields.append((_HOST_NAME, host))
        request = Head(method, target, version, fields)
        if _CODING in known or _CONTENT_LENGTH in known:
            self._parser = None
            self._set_framing(request, known.get(_CODING), known.get(_CONTENT_LENGTH))
        if _EXPECT in known:
            _set_expect(request, known[_EXPECT])
        connection = known.get(_CONNECTION)
        if connection is None:
            request.keep_alive = version == b"HTTP/1.1"
        else:
            self._set_connection(request, connection, known)
        return request

    def parse_fields(self, lines: bytes) -> list[tuple[bytes, bytes]]:
        """Parse field lines and the empty line behind them; names get lower case.

        Raises:
            RemoteProtocolError: With the status of the answer: 400 or 431.
        """
        parser = self._parser
        if parser is None:
            parser = self._parser = httptools.HttpRequestParser(self)
        self._fields = []
        self._parsed = False
        try:
            parser.feed_data(_PLAIN_LINE + lines)
        except httptools.HttpParserUpgrade:
            self._parser = None
        except httptools.HttpParserError as error:
            self._parser = None
            if not self._parsed:
                raise RemoteProtocolError(f"a header field is wrong: {error}") from error
        fields = self._fields
        if len(fields) > self._limits.header_count:
            raise RemoteProtocolError(f"there are over {self._limits.header_count} header fields", status=431)
        if len(lines) > self._limits.line_size and max(map(len, lines.split(b"\r\n"))) > self._limits.line_size:
            raise RemoteProtocolError(f"a header field is over {self._limits.line_size} bytes", status=431)
        if b" \r\n" in lines or b"\t\r\n" in lines:
            fields = [(name, value.rstrip(b" \t")) for name, value in fields]
        return fields

    def forget_fields(self) -> None:
        """The fields were trailers: llhttp may think that a body follows."""
        self._parser = None

    def _check_host(self, host: bytes | None, version: bytes) -> bool:
        """Return whether there is one, checked."""
        if host is None:
            if version == b"HTTP/1.1":
                raise RemoteProtocolError("HTTP/1.1 needs a Host field")
            return False
        if host != self._known_host:
            if _HOST.fullmatch(host) is None:
                raise RemoteProtocolError("the Host field is not a host")
            self._known_host = host
        return True

    def _set_framing(self, request: Head, coding: bytes | None, length: bytes | None) -> None:
        if coding is not None:
            if length is not None:
                raise RemoteProtocolError("Transfer-Encoding and Content-Length exclude each other")
            if request.version == b"HTTP/1.0":
                raise RemoteProtocolError("HTTP/1.0 has no Transfer-Encoding")
            codings = [one.strip(b" \t").lower() for one in coding.split(b",")]
            if codings[-1] != b"chunked" or b"chunked" in codings[:-1]:
                raise RemoteProtocolError("the last Transfer-Encoding, and only that one, has to be chunked")
            if len(codings) > 1:
                raise RemoteProtocolError("the only Transfer-Encoding that is served here is chunked", status=501)
            request.chunked = True
        elif length is not None:
            if _LENGTH.fullmatch(length) is None:
                raise RemoteProtocolError("Content-Length is not a number")
            request.content_length = int(length)
            if request.content_length > self._limits.content_length:
                raise RemoteProtocolError(f"the body is over {self._limits.content_length} bytes", status=413)

    def _set_connection(self, request: Head, connection: bytes, known: dict[bytes, bytes]) -> None:
        options = [one.strip(b" \t") for one in connection.lower().split(b",")]
        if request.version == b"HTTP/1.1":
            request.keep_alive = b"close" not in options
        else:
            request.keep_alive = b"keep-alive" in options and b"close" not in options
        # With it llhttp reads nothing more.
        if not request.keep_alive or b"close" in options:
            self._parser = None
        if b"upgrade" in options:
            request.upgrade = (
                request.method == b"GET"
                and request.version == b"HTTP/1.1"
                and not request.content_length
                and not request.chunked
                and b"websocket" in [one.strip(b" \t") for one in known.get(_UPGRADE, b"").lower().split(b",")]
                and _KEY in known
                and _WEBSOCKET_VERSION in known
            )


def _join_lists(fields: list[tuple[bytes, bytes]], known: dict[bytes, bytes]) -> None:
    """Some names are repeated: join what is a list, and refuse a second Host."""
    if sum(name == _HOST_NAME for name, _ in fields) > 1:
        raise RemoteProtocolError("there is more than one Host field")
    for wanted in _LISTS:
        if wanted in known:
            known[wanted] = b",".join([value for name, value in fields if name == wanted])


def _set_expect(request: Head, expect: bytes) -> None:
    # Not known in HTTP/1.0 (RFC 9110, section 10.1.1).
    if request.version == b"HTTP/1.0":
        return
    if any(one.strip(b" \t").lower() != b"100-continue" for one in expect.split(b",")):
        raise RemoteProtocolError("the only expectation that is known here is 100-continue", status=417)
    request.expect_continue = request.chunked or bool(request.content_length)
