"""Heads of requests: the first line read here, the fields by httptools, and what both mean, checked.

Source: RFC 9112, sections 2 to 7; RFC 9110, sections 5, 7.2, 7.8 and 10.1.1; what is said of Mongrel2 was probed on
1.12.2.
"""

from __future__ import annotations

import re

import httptools

from ...errors import RemoteProtocolError
from ...protocol.http1 import connection_options
from ...protocol.kinds import HTTP_FORGERIES
from .events import DONE, START, Head
from .limits import Limits

__all__ = ["HeadParser", "check_part_of_line", "line_too_long", "parse_line"]

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
# What a path and a query may have in them: RFC 3986, sections 3.3 and 3.4, which is what Mongrel2 accepts, but for the
# fragment, which no client has to send (RFC 9112, section 3.2.1).
_PATH, _QUERY = rb"/[!$%&-;=@A-Z_a-z~]*", rb"\?[!$%&-;=?-Z_a-z~]*"
# Nearly every request of a browser.
_PLAIN_LINE = re.compile(rb"(%b) (%b(?:%b)?) (HTTP/1\.[01])" % (_TOKEN, _PATH, _QUERY))
_ANY_LINE = re.compile(rb"(%b) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])" % _TOKEN)
_ORIGIN = re.compile(rb"%b(?:%b)?" % (_PATH, _QUERY))
# With `request.relaxed` of Mongrel2 (probed), for browsers, which send these as they are.
_RELAXED = re.compile(rb"/[!$%&-;=?-Z^_a-{}~]*")
_ABSOLUTE = re.compile(rb"[Hh][Tt][Tt][Pp][Ss]?://([^/?]+)(.*)")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
# RFC 3986, section 3.2.2, without user information, which RFC 9110, section 4.2.4, has treated as an error.
_HOST = re.compile(rb"(?:[!$%&-.0-9;=A-Z_a-z~]*|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{0,5})?")
_LENGTH = re.compile(rb"[0-9]{1,19}")
# What no request line has in it. A CR may be the last byte so far.
_UNREADABLE = re.compile(rb"[^\x20-\x7e\r]|\r[^\n]")

# Methods that a client makes up pass, but for words that mean something else to handlers: Mongrel2 hands on `JSON`.
_NOT_SERVED = frozenset({b"CONNECT", b"MONGREL2", *(str(word).encode() for word in HTTP_FORGERIES)})
_MAX_METHOD_SIZE = 32

# llhttp is given this in place of the client's line: it knows few methods, and has rules of its own for some of them.
_LLHTTP_LINE = b"POST / HTTP/1.1\r\n"

_HTTP11, _HTTP10 = b"HTTP/1.1", b"HTTP/1.0"
_HOST_NAME, _CONNECTION, _UPGRADE, _EXPECT = b"host", b"connection", b"upgrade", b"expect"
_CODING, _CONTENT_LENGTH = b"transfer-encoding", b"content-length"
_KEY, _WEBSOCKET_VERSION = b"sec-websocket-key", b"sec-websocket-version"
# What a client says of it is not handed on.
_FORWARDED = b"x-forwarded-for"
# llhttp takes it for another name of `Connection`.
_PROXY_CONNECTION = b"proxy-connection"
# Lists of values: several lines are one (RFC 9110, section 5.3). A length is not a list, and two are not a number then.
_LISTS = (_CONNECTION, _UPGRADE, _EXPECT, _CODING, _CONTENT_LENGTH)


def parse_line(line: bytes, *, relaxed: bool = False) -> tuple[bytes, bytes, bytes, bytes]:
    """Parse a request line without its CRLF.

    Args:
        relaxed: A target may have braces and carets, which no URI has.

    Returns:
        The method; the target in origin form, or ``*``; the version, 1.1 or 1.0; of the absolute form the host, else
        ``b""``.

    Raises:
        RemoteProtocolError: 400, 501 or 505 is the answer.
    """
    host = b""
    found = _PLAIN_LINE.fullmatch(line)
    if found is not None:
        method, target, version = found.groups()
    else:
        found = _ANY_LINE.fullmatch(line)
        if found is None:
            raise RemoteProtocolError("the first line is not a request line")
        method, target, major, minor = found.groups()
        if major != b"1":
            raise RemoteProtocolError("the version is not HTTP/1.1 or HTTP/1.0", status=505)
        # A later minor version is read as the highest one known (RFC 9110, section 2.5).
        version = _HTTP10 if minor == b"0" else _HTTP11
    if method in _NOT_SERVED or len(method) > _MAX_METHOD_SIZE:
        raise RemoteProtocolError("the method is not served here", status=501)
    if target[0] != 0x2F:
        target, host = _from_other_form(method, target)
    if target != b"*" and _ORIGIN.fullmatch(target) is None and not (relaxed and _RELAXED.fullmatch(target)):
        raise RemoteProtocolError("the target has characters that a URI may not have")
    if b"%" in target and _BAD_ESCAPE.search(target):
        raise RemoteProtocolError("the target has a % without two hexadecimal digits behind it")
    return method, target, version, host


def _from_other_form(method: bytes, target: bytes) -> tuple[bytes, bytes]:
    """Return the origin form of a target that does not begin with a slash, and its host."""
    if target == b"*" and method == b"OPTIONS":
        return target, b""
    found = _ABSOLUTE.fullmatch(target)
    if found is None:
        raise RemoteProtocolError("the target is neither a path nor a URI of http or https")
    host, rest = found.groups()
    # A URI of http has to have a host (RFC 9110, section 4.2.1).
    if host.startswith(b":") or not _is_host(host):
        raise RemoteProtocolError("the host of the target is not a host")
    if not rest:
        # RFC 9112, section 3.2.4.
        return (b"*" if method == b"OPTIONS" else b"/"), host
    return (b"/" + rest if rest.startswith(b"?") else rest), host


def check_part_of_line(data: bytes | bytearray, start: int, end: int) -> None:
    """Look at a part of a request line that is not whole.

    Raises:
        RemoteProtocolError: 400: it never becomes one.
    """
    if _UNREADABLE.search(data, start, end):
        raise RemoteProtocolError("the first line is not a request line")


def line_too_long(beginning: bytes | bytearray) -> RemoteProtocolError:
    """Return how to refuse a request line that goes on behind *beginning*, all of it that is looked at.

    Raises:
        RemoteProtocolError: 400, as for a line that is not too long.
    """
    check_part_of_line(beginning, 0, len(beginning))
    return RemoteProtocolError("the first line is too long", status=414)


class _Fields:
    """What httptools calls. Not the parser's owner, whom it would keep alive, and be kept by."""

    __slots__ = ("complete", "pairs")

    def __init__(self) -> None:
        self.pairs: list[tuple[bytes, bytes]] = []
        self.complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        # llhttp leaves blanks behind a value, and of what else is stripped here it lets nothing pass.
        self.pairs.append((name.lower(), value.rstrip()))

    def on_headers_complete(self) -> None:
        # What llhttp finds wrong from here on is about the body.
        self.complete = True


class HeadParser:
    """Parses the heads of one connection, each of them whole."""

    __slots__ = ("_fields", "_known_host", "_limits", "_parser")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._fields = _Fields()
        # Serves one request after the other. Where it may expect something else than another request, a new one does.
        self._parser: httptools.HttpRequestParser | None = None
        # Which was checked: of a connection it is nearly always the same.
        self._known_host = b""

    def parse(self, head: bytes) -> Head:
        """Parse one head: everything up to its empty line, and that.

        Raises:
            RemoteProtocolError: What is wrong, with the status of the answer.
        """
        end = head.index(b"\r\n")
        if end > self._limits.line_size:
            raise line_too_long(head[: self._limits.line_size])
        method, target, version, absolute = parse_line(head[:end], relaxed=self._limits.relaxed)
        fields = self._parse_fields(head[end + 2 :])
        # Of a repeated name the last one.
        known = dict(fields)
        plain = len(known) == len(fields) and _FORWARDED not in known
        if not plain:
            _join_lists(fields, known)
        if _PROXY_CONNECTION in known:
            self._parser = None
        self._check_host(known.get(_HOST_NAME), version)
        # Mongrel2 lets them pass (probed), and a handler that believes them reads and deletes any file.
        if START in known or DONE in known:
            fields = [field for field in fields if field[0] != START and field[0] != DONE]
        if absolute:
            # Whatever the field says (RFC 9112, section 3.2.2).
            fields = [field for field in fields if field[0] != _HOST_NAME]
            fields.append((_HOST_NAME, absolute))
        request = Head(method, target, version, fields, plain=plain)
        if _CODING in known or _CONTENT_LENGTH in known:
            self._parser = None
            self._set_framing(request, known.get(_CODING), known.get(_CONTENT_LENGTH))
        if _EXPECT in known:
            _set_expect(request, known[_EXPECT])
        connection = known.get(_CONNECTION)
        # Two that nearly all browsers and proxies send, and which change nothing.
        if version == _HTTP11 and (connection is None or connection == b"keep-alive"):
            return request
        if connection is None:
            request.keep_alive = False
        else:
            self._set_connection(request, connection, known)
        return request

    def check_trailers(self, lines: bytes) -> None:
        """Check the lines behind a chunked body, each with its CRLF, and the empty line.

        Raises:
            RemoteProtocolError: 400 or 431 is the answer.
        """
        self._parse_fields(lines)
        # Whatever they say of a body and of the connection, which nobody obeys (RFC 9110, section 6.5.1).
        self._parser = None

    def _parse_fields(self, lines: bytes) -> list[tuple[bytes, bytes]]:
        fields = self._fields
        limits = self._limits
        # Before any of them is kept; a field is four bytes at the least.
        if len(lines) > 4 * limits.header_count and (count := lines.count(b"\r\n")) > limits.header_count + 1:
            # Of a head that comes in pieces this is seen before.
            if lines.count(b"\n") > count:
                raise RemoteProtocolError("a line of the head ends without CR")
            raise RemoteProtocolError(f"there are over {limits.header_count} header fields", status=431)
        pairs: list[tuple[bytes, bytes]] = []
        fields.pairs = pairs
        fields.complete = False
        if self._parser is None:
            self._parser = httptools.HttpRequestParser(fields)
        fault = "it has no end"
        try:
            self._parser.feed_data(_LLHTTP_LINE + lines)
        except httptools.HttpParserUpgrade:
            self._parser = None
        except httptools.HttpParserError as error:
            self._parser = None
            fault = str(error)
        if not fields.complete:
            raise RemoteProtocolError(f"a header field is wrong: {fault}")
        if len(lines) > limits.line_size and max(map(len, lines.split(b"\r\n"))) > limits.line_size:
            raise RemoteProtocolError(f"a header field is over {limits.line_size} bytes", status=431)
        return pairs

    def _check_host(self, host: bytes | None, version: bytes) -> None:
        if host is None:
            if version == _HTTP11:
                raise RemoteProtocolError("HTTP/1.1 needs a Host field")
        elif host != self._known_host:
            if not _is_host(host):
                raise RemoteProtocolError("the Host field is not a host")
            self._known_host = host

    def _set_framing(self, request: Head, coding: bytes | None, length: bytes | None) -> None:
        # llhttp refuses some of this as well, and lets it pass when it is told to be lenient: too much depends on it.
        if coding is None:
            if length is None or _LENGTH.fullmatch(length) is None:
                raise RemoteProtocolError("Content-Length is not a number")
            request.content_length = int(length)
            if request.content_length > self._limits.body_size:
                raise RemoteProtocolError(f"the body is over {self._limits.body_size} bytes", status=413)
            return
        # What somebody in front may read in another way: RFC 9112, section 6.1.
        if length is not None:
            raise RemoteProtocolError("Transfer-Encoding and Content-Length exclude each other")
        if request.version == _HTTP10:
            raise RemoteProtocolError("HTTP/1.0 has no Transfer-Encoding")
        codings = [one.strip(b" \t").lower() for one in coding.split(b",")]
        if codings[-1] != b"chunked" or b"chunked" in codings[:-1]:
            raise RemoteProtocolError("the last Transfer-Encoding, and only that one, has to be chunked")
        if len(codings) > 1:
            raise RemoteProtocolError("the only Transfer-Encoding that is served here is chunked", status=501)
        request.chunked = True
        if coding != b"chunked":
            # As handlers of streamed bodies know it: Mongrel2 hands on no other spelling of it as chunked.
            request.headers = [(name, b"chunked" if name == _CODING else value) for name, value in request.headers]

    def _set_connection(self, request: Head, connection: bytes, known: dict[bytes, bytes]) -> None:
        options = connection_options(connection)
        close = "close" in options
        # llhttp reads nothing behind a close.
        if close:
            self._parser = None
        request.keep_alive = not close and (request.version == _HTTP11 or "keep-alive" in options)
        if "upgrade" in options and _UPGRADE in known:
            # By what Mongrel2 knows one by. What is not one is an ordinary request, as anybody may answer who does not
            # upgrade (RFC 9110, section 7.8), and HTTP/1.0 has no upgrades.
            request.upgrade = (
                request.version == _HTTP11
                and "websocket" in connection_options(known[_UPGRADE])
                and _KEY in known
                and _WEBSOCKET_VERSION in known
            )
        if request.upgrade:
            # Mongrel2 takes the bytes of a body for frames, and does not tell the method (probed).
            if request.method != b"GET":
                raise RemoteProtocolError("the opening handshake of a WebSocket is a GET request")
            if request.content_length or request.chunked:
                raise RemoteProtocolError("the opening handshake of a WebSocket has no body")


def _is_host(host: bytes) -> bool:
    return _HOST.fullmatch(host) is not None and _BAD_ESCAPE.search(host) is None


def _join_lists(fields: list[tuple[bytes, bytes]], known: dict[bytes, bytes]) -> None:
    """Some names are repeated: join those that are lists, and refuse a second Host."""
    if sum(name == _HOST_NAME for name, _ in fields) > 1:
        raise RemoteProtocolError("there is more than one Host field")
    for wanted in _LISTS:
        if wanted in known:
            known[wanted] = b",".join([value for name, value in fields if name == wanted])


def _set_expect(request: Head, expect: bytes) -> None:
    # HTTP/1.0 has none (RFC 9110, section 10.1.1).
    if request.version == _HTTP10:
        return
    if any(one.strip(b" \t").lower() != b"100-continue" for one in expect.split(b",")):
        raise RemoteProtocolError("the only expectation that is known here is 100-continue", status=417)
    # Nobody waits before a body that is empty.
    request.expect_continue = request.chunked or bool(request.content_length)
