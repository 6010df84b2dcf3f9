"""Tests of greentx.protocol.http1: what is built, byte for byte, and what is refused."""

from __future__ import annotations

import io
from email.utils import formatdate
from http.client import HTTPResponse
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greentx.errors import LocalProtocolError
from greentx.protocol.http1 import (
    LAST_CHUNK,
    HeaderFields,
    build_chunk,
    build_head,
    build_response,
    connection_options,
    format_date,
    has_no_body,
    should_close,
)

DATE = b"Sun, 06 Nov 1994 08:49:37 GMT"
TOKEN_CHARACTERS = "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

HEADS: list[tuple[tuple[Any, ...], dict[str, Any], bytes]] = [
    ((200, None, {}), {}, b"HTTP/1.1 200 OK\r\n\r\n"),
    ((200, "Fine", {}), {}, b"HTTP/1.1 200 Fine\r\n\r\n"),
    ((200, "", {}), {}, b"HTTP/1.1 200 \r\n\r\n"),
    ((299, None, {}), {}, b"HTTP/1.1 299 \r\n\r\n"),
    ((100, None, ()), {}, b"HTTP/1.1 100 Continue\r\n\r\n"),
    ((999, "\tTr\xe8s bien", ()), {}, b"HTTP/1.1 999 \tTr\xe8s bien\r\n\r\n"),
    ((404, None, {}), {"version": "HTTP/1.0"}, b"HTTP/1.0 404 Not Found\r\n\r\n"),
    ((200, None, {"A": "1", "B": ["2", "3"]}), {}, b"HTTP/1.1 200 OK\r\nA: 1\r\nB: 2\r\nB: 3\r\n\r\n"),
    ((200, None, {"A": ("1", "2"), "B": []}), {}, b"HTTP/1.1 200 OK\r\nA: 1\r\nA: 2\r\n\r\n"),
    ((200, None, [("A", "1"), ("B", "2"), ("A", "3")]), {}, b"HTTP/1.1 200 OK\r\nA: 1\r\nB: 2\r\nA: 3\r\n\r\n"),
    ((200, None, [(b"A", b"\xff"), (b"B", [b"2"])]), {}, b"HTTP/1.1 200 OK\r\nA: \xff\r\nB: 2\r\n\r\n"),
    ((200, None, {"A": "\xe9\t\xa0: x", "B": ""}), {}, b"HTTP/1.1 200 OK\r\nA: \xe9\t\xa0: x\r\nB: \r\n\r\n"),
    ((200, None, {"Age": 60}), {}, b"HTTP/1.1 200 OK\r\nAge: 60\r\n\r\n"),
    ((200, None, {TOKEN_CHARACTERS: "1"}), {}, f"HTTP/1.1 200 OK\r\n{TOKEN_CHARACTERS}: 1\r\n\r\n".encode()),
]


@pytest.mark.parametrize(("arguments", "options", "expected"), HEADS)
def test_a_head_is_written_byte_for_byte(arguments: tuple[Any, ...], options: dict[str, Any], expected: bytes) -> None:
    """Each form of headers, each phrase and each version gives the expected bytes."""
    assert build_head(*arguments, **options) == expected


class Text(str):
    """A str of an own class, as frameworks hand in."""


def test_a_subclass_of_str_is_text() -> None:
    """Names and values of a str subclass are written like any other."""
    headers: dict[str, str] = {Text("A"): Text("1")}
    assert build_head(200, None, headers) == b"HTTP/1.1 200 OK\r\nA: 1\r\n\r\n"


BAD_HEADS: list[tuple[Any, Any, Any, str]] = [
    (99, None, {}, "status code 99"),
    (1000, None, {}, "status code 1000"),
    (-1, None, {}, "status code -1"),
    ("200 OK", None, {}, "status code '200 OK'"),
    (200.5, None, {}, "status code 200.5"),
    (None, None, {}, "status code None"),
    (200, "a\rb", {}, r"reason phrase of status 200 holds a control character, '\\r' at index 1"),
    (200, "a\nb", {}, "reason phrase"),
    (200, "a\0b", {}, "reason phrase"),
    (200, "\u20ac", {}, "reason phrase of status 200 holds a character that latin-1 does not have"),
    (200, None, {"X-A": "b\r\nSet-Cookie: c"}, "header 'X-A' holds a control character"),
    (200, None, {"A": "1", "X-A": "\n"}, "header 'X-A' holds a control character"),
    (200, None, {"X-A": "\r"}, "header 'X-A'"),
    (200, None, {"X-A": "\0"}, "header 'X-A'"),
    (200, None, {"X-A": "\x1f"}, "header 'X-A'"),
    (200, None, {"X-A": "\x7f"}, "header 'X-A'"),
    (200, None, {"X-A": ["1", "\n"]}, "header 'X-A'"),
    (200, None, [(b"X-A", b"\n")], "header 'X-A'"),
    (200, None, {"X-A": "\u20ac"}, "header 'X-A' holds a character that latin-1 does not have"),
    (200, None, {"X-A": "\udcff"}, "header 'X-A' holds a character that latin-1 does not have"),
    (200, None, {"": "1"}, "header name ''"),
    (200, None, {"X A": "1"}, "header name 'X A'"),
    (200, None, {"X-A:": "1"}, "header name 'X-A:'"),
    (200, None, {"X-A: b": "1"}, "header name 'X-A: b'"),
    (200, None, {"X\nA": "1"}, r"header name 'X\\nA'"),
    (200, None, {"X-A\n": "1"}, r"header name 'X-A\\n'"),
    (200, None, {"X\r\nA": "1"}, "header name"),
    (200, None, {"X\xe9": "1"}, "header name"),
    (200, None, {"X\u20ac": "1"}, "header name"),
    (200, None, {"X-A": None}, "header 'X-A': None is a NoneType"),
    (200, None, {"X-A": True}, "header 'X-A': True is a bool"),
    (200, None, {"X-A": ["1", 2.5]}, "header 'X-A': 2.5 is a float"),
    (200, None, {None: "1"}, "header None: None is a NoneType"),
]


@pytest.mark.parametrize(("code", "reason", "headers", "message"), BAD_HEADS)
def test_a_head_that_would_break_the_stream_is_refused_by_name(
    code: Any, reason: Any, headers: Any, message: str
) -> None:
    """The error names what cannot be sent, from both builders."""
    with pytest.raises(LocalProtocolError, match=message):
        build_head(code, reason, headers)
    with pytest.raises(LocalProtocolError, match=message):
        build_response(b"", code, reason, headers)


def test_an_unknown_version_is_refused() -> None:
    """Only the two versions that have this form of a head can be asked for."""
    with pytest.raises(LocalProtocolError, match=r"version 'HTTP/2\\r\\nA'"):
        build_head(200, None, {}, version="HTTP/2\r\nA")


OK = b"HTTP/1.1 200 OK\r\n"
RESPONSES: list[tuple[tuple[Any, ...], dict[str, Any], bytes]] = [
    ((b"hi",), {}, OK + b"Content-Length: 2\r\n\r\nhi"),
    ((b"",), {}, OK + b"Content-Length: 0\r\n\r\n"),
    ((b"hi", 404), {}, b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nhi"),
    ((b"hi", 200, "Yes"), {}, b"HTTP/1.1 200 Yes\r\nContent-Length: 2\r\n\r\nhi"),
    ((b"hi",), {"date": DATE}, OK + b"Date: " + DATE + b"\r\nContent-Length: 2\r\n\r\nhi"),
    ((b"hi",), {"close": True}, OK + b"Content-Length: 2\r\nConnection: close\r\n\r\nhi"),
    ((b"hi",), {"keep_alive": True}, OK + b"Content-Length: 2\r\nConnection: keep-alive\r\n\r\nhi"),
    ((b"hi",), {"keep_alive": True, "close": True}, OK + b"Content-Length: 2\r\nConnection: close\r\n\r\nhi"),
    ((b"hi",), {"headers": {}}, OK + b"Content-Length: 2\r\n\r\nhi"),
    ((b"hi",), {"headers": {"A": "1"}}, OK + b"A: 1\r\nContent-Length: 2\r\n\r\nhi"),
    # The caller's own fields are kept, in any case, and not doubled.
    ((b"hi",), {"headers": {"content-length": "2"}}, OK + b"content-length: 2\r\n\r\nhi"),
    ((b"hi",), {"headers": {"Content-Length": 2}}, OK + b"Content-Length: 2\r\n\r\nhi"),
    ((b"hi",), {"headers": {"Content-Length": "02"}}, OK + b"Content-Length: 02\r\n\r\nhi"),
    ((b"hi",), {"headers": {"DATE": "x"}, "date": DATE}, OK + b"DATE: x\r\nContent-Length: 2\r\n\r\nhi"),
    ((b"",), {"headers": {"X-Content-Length": "7"}}, OK + b"X-Content-Length: 7\r\nContent-Length: 0\r\n\r\n"),
    # Connection: close wins over keep-alive and leaves other options alone.
    (
        (b"",),
        {"headers": [("connection", "Keep-Alive"), ("A", "1")], "close": True},
        OK + b"A: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
    ),
    (
        (b"",),
        {"headers": {"Connection": ["X-B, close", "keep-alive"]}, "close": True},
        OK + b"Connection: close, x-b\r\nContent-Length: 0\r\n\r\n",
    ),
    (
        (b"",),
        {"headers": {"Connection": "x-b"}, "keep_alive": True},
        OK + b"Connection: x-b\r\nContent-Length: 0\r\n\r\n",
    ),
    ((b"",), {"headers": {"Connection": "x-b"}}, OK + b"Connection: x-b\r\nContent-Length: 0\r\n\r\n"),
    # HEAD: the length that a GET would have, and no body.
    ((b"hi",), {"head_only": True}, OK + b"Content-Length: 2\r\n\r\n"),
    ((b"hi",), {"head_only": True, "headers": {"A": "1"}}, OK + b"A: 1\r\nContent-Length: 2\r\n\r\n"),
    ((b"hi",), {"head_only": True, "headers": {"Content-Length": "2"}}, OK + b"Content-Length: 2\r\n\r\n"),
    ((b"",), {"head_only": True, "headers": {"Content-Length": "9"}}, OK + b"Content-Length: 9\r\n\r\n"),
    (
        (b"",),
        {"head_only": True, "headers": {"Transfer-Encoding": "chunked"}},
        OK + b"Transfer-Encoding: chunked\r\n\r\n",
    ),
    # No body at all: 1xx, 204, 304.
    ((b"hi", 204), {}, b"HTTP/1.1 204 No Content\r\n\r\n"),
    (
        (b"hi", 204),
        {"close": True, "date": DATE},
        b"HTTP/1.1 204 No Content\r\nDate: " + DATE + b"\r\nConnection: close\r\n\r\n",
    ),
    ((b"", 204), {"headers": {"content-length": "0", "A": "1"}}, b"HTTP/1.1 204 No Content\r\nA: 1\r\n\r\n"),
    ((b"", 204), {"headers": {"Transfer-Encoding": "chunked"}}, b"HTTP/1.1 204 No Content\r\n\r\n"),
    ((b"hi", 204), {"headers": {"A": "1"}, "head_only": True}, b"HTTP/1.1 204 No Content\r\nA: 1\r\n\r\n"),
    ((b"hi", 304), {}, b"HTTP/1.1 304 Not Modified\r\n\r\n"),
    ((b"", 304), {"headers": {"Content-Length": "9"}}, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n"),
    (
        (b"", 304),
        {"headers": {"Transfer-Encoding": "chunked"}},
        b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n",
    ),
    ((b"hi", 100), {"close": True}, b"HTTP/1.1 100 Continue\r\n\r\n"),
    (
        (b"", 101),
        {"headers": {"Connection": "Upgrade"}, "close": True},
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\n",
    ),
]


@pytest.mark.parametrize(("arguments", "options", "expected"), RESPONSES)
def test_a_response_is_written_byte_for_byte(
    arguments: tuple[Any, ...], options: dict[str, Any], expected: bytes
) -> None:
    """Length, date, connection and the answers without a body give the expected bytes."""
    assert build_response(*arguments, **options) == expected


BAD_RESPONSES: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
    ((b"hi",), {"headers": {"Content-Length": "1"}}, "'Content-Length' says 1, the body is 2 bytes"),
    ((b"hi",), {"headers": {"Content-Length": "3"}}, "'Content-Length' says 3, the body is 2 bytes"),
    ((b"",), {"headers": {"content-length": "1"}}, "'Content-Length' says 1, the body is 0 bytes"),
    ((b"hi",), {"headers": {"Content-Length": "3"}, "head_only": True}, "'Content-Length' says 3"),
    ((b"hi",), {"headers": {"Content-Length": ["2", "2"]}}, "'Content-Length' must be given once"),
    ((b"hi",), {"headers": {"Content-Length": "two"}}, "'Content-Length' must be given once, as digits"),
    ((b"hi",), {"headers": {"Content-Length": "+2"}}, "as digits"),
    ((b"hi",), {"headers": {"Content-Length": "2" * 20}}, "as digits"),
    ((b"hi",), {"headers": {"Content-Length": ""}}, "as digits"),
    ((b"", 304), {"headers": {"Content-Length": "-1"}}, "as digits"),
    ((b"hi",), {"headers": {"Transfer-Encoding": "chunked"}}, "'Transfer-Encoding'"),
    ((b"",), {"headers": {"transfer-encoding": "chunked"}}, "'Transfer-Encoding'"),
    ((b"",), {"headers": {"Transfer-Encoding": "chunked", "Content-Length": "0"}}, "'Transfer-Encoding'"),
    (
        (b"",),
        {"headers": {"Transfer-Encoding": "chunked", "Content-Length": "0"}, "head_only": True},
        "'Transfer-Encoding'",
    ),
    ((b"", 204), {"headers": {"Content-Length": "\n"}}, "'Content-Length' holds a control character"),
]


@pytest.mark.parametrize(("arguments", "options", "message"), BAD_RESPONSES)
def test_a_response_that_lies_about_its_length_is_refused(
    arguments: tuple[Any, ...], options: dict[str, Any], message: str
) -> None:
    """What would leave the client waiting or out of step is refused where it is built."""
    with pytest.raises(LocalProtocolError, match=message):
        build_response(*arguments, **options)


def test_headers_of_the_caller_are_not_changed() -> None:
    """Fields that are left out or replaced stay in the caller's own objects."""
    headers: dict[str, str | list[str]] = {"Content-Length": "0", "Connection": ["keep-alive"]}
    build_response(b"", 204, headers=headers, close=True)
    assert headers == {"Content-Length": "0", "Connection": ["keep-alive"]}


class FakeSocket(io.BytesIO):
    """As much of a socket as http.client reads from; it stays open, to look at what was left unread."""

    def makefile(self, mode: str) -> FakeSocket:
        """The bytes as a file."""
        return self

    def close(self) -> None:
        """Stay open."""


header_names = st.text(TOKEN_CHARACTERS, min_size=1, max_size=20).map("X-".__add__)
header_values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=40).map(str.strip)


@given(
    body=st.binary(max_size=200),
    code=st.integers(200, 999),
    headers=st.lists(st.tuples(header_names, header_values), max_size=5),
    method=st.sampled_from(["GET", "HEAD"]),
    close=st.booleans(),
)
def test_the_parser_of_the_standard_library_reads_what_was_built(
    body: bytes, code: int, headers: list[tuple[str, str]], method: str, close: bool
) -> None:
    """An independent parser sees the same status, fields, body and end of the response."""
    built = build_response(body, code, "Phrase", headers, date=DATE, head_only=method == "HEAD", close=close)
    socket = FakeSocket(built + b"next")
    response = HTTPResponse(socket, method=method)  # type: ignore[arg-type]
    response.begin()
    without_body = method == "HEAD" or has_no_body(code)
    assert response.read() == (b"" if without_body else body)
    assert (response.status, response.reason, response.version) == (code, "Phrase", 11)
    assert [pair for pair in response.getheaders() if pair[0].startswith("X-")] == headers
    assert response.getheader("Date") == DATE.decode()
    assert response.getheader("Content-Length") == (None if has_no_body(code) else str(len(body)))
    assert response.will_close is close or without_body
    assert socket.read() == b"next"


@given(pieces=st.lists(st.binary(min_size=1, max_size=100), max_size=5))
def test_the_parser_of_the_standard_library_reads_the_chunks_that_were_built(pieces: list[bytes]) -> None:
    """An independent parser joins the chunks and finds their end."""
    head = build_head(200, None, {"Transfer-Encoding": "chunked"})
    socket = FakeSocket(head + b"".join(map(build_chunk, pieces)) + LAST_CHUNK + b"next")
    response = HTTPResponse(socket)  # type: ignore[arg-type]
    response.begin()
    assert response.read() == b"".join(pieces)
    assert socket.read() == b"next"


@given(
    name=st.text(max_size=5),
    value=st.text(max_size=5),
    other=st.tuples(header_names, header_values),
    in_reason=st.booleans(),
)
def test_no_text_can_add_a_line_to_a_head(name: str, value: str, other: tuple[str, str], in_reason: bool) -> None:
    """Whatever is put in, a head is refused or has exactly the lines that were asked for."""
    try:
        head = build_head(200, value if in_reason else None, [(name, value), other])
    except LocalProtocolError:
        return
    lines = head.split(b"\r\n")
    assert len(lines) == 5
    assert lines[1] == f"{name}: {value}".encode("latin-1")
    assert lines[1].split(b": ", 1)[0] == name.encode()
    assert b"\r" not in b"".join(lines)
    assert b"\n" not in b"".join(lines)


CHUNKS = [
    (b"a", b"1\r\na\r\n"),
    (b"\r\n", b"2\r\n\r\n\r\n"),
    (b"x" * 15, b"f\r\n" + b"x" * 15 + b"\r\n"),
    (b"x" * 16, b"10\r\n" + b"x" * 16 + b"\r\n"),
]


@pytest.mark.parametrize(("data", "expected"), CHUNKS)
def test_a_chunk_is_written_byte_for_byte(data: bytes, expected: bytes) -> None:
    """The size is in hexadecimal and counts the data alone."""
    assert build_chunk(data) == expected


def test_an_empty_chunk_is_refused() -> None:
    """An empty piece in the middle of a stream must not become its end."""
    with pytest.raises(LocalProtocolError, match="end with LAST_CHUNK"):
        build_chunk(b"")


@pytest.mark.parametrize(("code", "expected"), [(199, True), (200, False), (204, True), (205, False), (304, True)])
def test_the_codes_without_a_body_are_known(code: int, expected: bool) -> None:
    """1xx, 204 and 304 end with their head, others do not."""
    assert has_no_body(code) is expected


CLOSING = [
    ("HTTP/1.1", None, False),
    ("HTTP/1.1", "", False),
    ("HTTP/1.1", "keep-alive", False),
    ("HTTP/1.1", "close", True),
    ("HTTP/1.1", "CLOSE", True),
    ("HTTP/1.1", "upgrade,\tClose ,x", True),
    ("HTTP/1.1", "closed", False),
    ("HTTP/1.1", "not close", False),
    ("HTTP/1.1", ["upgrade", "x, close"], True),
    ("HTTP/1.1", ["upgrade", "keep-alive"], False),
    ("HTTP/1.1", [], False),
    ("HTTP/1.1", "keep-alive, close", True),
    ("HTTP/1.0", None, True),
    ("HTTP/1.0", "keep-alive", False),
    ("HTTP/1.0", "Keep-Alive", False),
    ("HTTP/1.0", ["x", "y,keep-alive"], False),
    ("HTTP/1.0", "close", True),
    ("HTTP/1.0", "keep-alive, close", True),
    ("HTTP/1.0", [], True),
    ("HTTP/0.9", None, True),
    ("HTTP/1.2", None, False),
    ("HTTP/2", None, False),
    ("", None, True),
    ("http/1.1", None, True),
]


@pytest.mark.parametrize(("version", "connection", "expected"), CLOSING)
def test_the_end_of_a_connection_follows_version_and_connection_field(
    version: str, connection: str | list[str] | None, expected: bool
) -> None:
    """Text and bytes, one value and several give the same answer."""
    assert should_close(version, connection) is expected
    as_bytes: bytes | list[bytes] | None
    if isinstance(connection, list):
        as_bytes = [value.encode() for value in connection]
    else:
        as_bytes = None if connection is None else connection.encode()
    assert should_close(version.encode(), as_bytes) is expected


def test_the_connection_field_is_optional() -> None:
    """A request without the field needs no second argument."""
    assert not should_close("HTTP/1.1")


def test_connection_options_are_split_and_lowered() -> None:
    """Empty members and white space are no options."""
    assert connection_options(["Upgrade , ,", ",X-A", ""]) == ["upgrade", "x-a"]


@pytest.mark.parametrize(
    ("timestamp", "expected"),
    [
        (784111777, "Sun, 06 Nov 1994 08:49:37 GMT"),
        (784111777.999, "Sun, 06 Nov 1994 08:49:37 GMT"),
        (784111777.9999999, "Sun, 06 Nov 1994 08:49:37 GMT"),
        (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
        (-0.5, "Wed, 31 Dec 1969 23:59:59 GMT"),
        (951782400, "Tue, 29 Feb 2000 00:00:00 GMT"),
        (253402300799, "Fri, 31 Dec 9999 23:59:59 GMT"),
        (-62135596800, "Mon, 01 Jan 0001 00:00:00 GMT"),
    ],
)
def test_a_date_has_the_fixed_form(timestamp: float, expected: str) -> None:
    """The example of RFC 9110, cut fractions, and the ends of the calendar."""
    assert format_date(timestamp) == expected


@given(st.integers(0, 253402300799))
def test_a_date_is_what_the_standard_library_writes(timestamp: int) -> None:
    """Every second up to the year 9999 has the form that email.utils gives it."""
    assert format_date(timestamp) == formatdate(timestamp, usegmt=True)


@pytest.mark.parametrize("timestamp", [253402300800, -62135596801, float("inf"), float("nan"), 1e300])
def test_a_timestamp_outside_the_calendar_is_refused(timestamp: float) -> None:
    """The error names the timestamp."""
    with pytest.raises(LocalProtocolError, match="no date for the timestamp"):
        format_date(timestamp)


def test_mappings_and_pairs_of_any_kind_are_headers_to_the_type_checker() -> None:
    """The declared type takes what callers have at hand."""
    forms: list[HeaderFields] = [{"A": "1"}, {"A": ["1"]}, [("A", "1")], (("A", b"1"),), iter([("A", 1)])]
    assert {build_head(200, None, form) for form in forms} == {b"HTTP/1.1 200 OK\r\nA: 1\r\n\r\n"}
