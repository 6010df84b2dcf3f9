"""What a handler is told of the bytes of a browser, and what the front end answers by itself: one table for both.

Each row is sent over a connection of its own. The handler answers each message ``200``; what it was told comes as
``METHOD PATH 'body'``, with what is not in nearly every message.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from front_ends import Differs, FrontEnd
from wire_rig import SENDER, RawBrowser, RawHandler, raw_handler

from greentx.edge import Handler

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
HOST = b"Host: h\r\n"


class Told(NamedTuple):
    """What comes of a row: messages to the handler, and the statuses that the browser sees; 0 is the end."""

    messages: list[str]
    statuses: list[int]


def passes(*messages: str) -> Told:
    return Told(list(messages), [200] * len(messages))


def refused(status: int) -> Told:
    return Told([], [status, 0])


def get(*fields: bytes, line: bytes = b"GET / HTTP/1.1", body: bytes = b"") -> bytes:
    return b"\r\n".join([line, HOST + b"\r\n".join(fields), b"", body] if fields else [line, HOST, body])


def post(*fields: bytes, body: bytes = b"") -> bytes:
    return get(*fields, line=b"POST / HTTP/1.1", body=body)


def line(text: bytes) -> bytes:
    return get(line=text)


ROWS: dict[str, tuple[bytes, Told | Differs]] = {
    # -- the first line
    "a query": (line(b"GET /a?b=1 HTTP/1.1"), passes("GET /a QUERY=b=1")),
    "nothing is decoded": (line(b"GET //a/../%00%2f HTTP/1.1"), passes("GET //a/../%00%2f")),
    "all of the server": (line(b"OPTIONS * HTTP/1.1"), passes("OPTIONS *")),
    "a method that nobody knows": (line(b"FOO / HTTP/1.1"), passes("FOO /")),
    "TRACE": (line(b"TRACE / HTTP/1.1"), passes("TRACE /")),
    "a path without a route": (line(b"GET /only/x HTTP/1.1"), refused(404)),
    "UTF-8 in a path": (line(b"GET /\xc3\xa9 HTTP/1.1"), refused(400)),
    "a quote in a path": (line(b'GET /" HTTP/1.1'), refused(400)),
    "a bar in a path": (line(b"GET /| HTTP/1.1"), refused(400)),
    "braces in a path": (line(b"GET /{a} HTTP/1.1"), refused(400)),
    "brackets in a path": (line(b"GET /a[1] HTTP/1.1"), refused(400)),
    "an escape that is none": (line(b"GET /%zz HTTP/1.1"), refused(400)),
    "no version": (b"GET /\r\n\r\n", refused(400)),
    "two blanks": (line(b"GET  / HTTP/1.1"), refused(400)),
    "a fragment": (
        line(b"GET /a#f HTTP/1.1"),
        Differs("A fragment in the target", passes("GET /a FRAGMENT=f"), refused(400)),
    ),
    "the absolute form": (
        line(b"GET http://other/a?q HTTP/1.1"),
        Differs("The absolute form", passes("GET //other/a QUERY=q"), passes("GET /a QUERY=q host=other")),
    ),
    "a method in small letters": (
        line(b"get / HTTP/1.1"),
        Differs("Methods that are tokens", refused(400), passes("get /")),
    ),
    "a method with a hyphen": (
        line(b"M-SEARCH / HTTP/1.1"),
        Differs("Methods that are tokens", refused(400), passes("M-SEARCH /")),
    ),
    "a method with an underscore": (
        line(b"A_B / HTTP/1.1"),
        Differs("Methods that are tokens", refused(400), passes("A_B /")),
    ),
    "JSON as a method": (
        line(b"JSON / HTTP/1.1"),
        Differs("The protocol's own words as methods", passes("JSON /"), refused(501)),
    ),
    "WEBSOCKET as a method": (
        line(b"WEBSOCKET / HTTP/1.1"),
        Differs("The protocol's own words as methods", passes("WEBSOCKET /"), refused(501)),
    ),
    "CONNECT": (line(b"CONNECT h:1 HTTP/1.1"), Differs("CONNECT", refused(404), refused(501))),
    "HTTP/1.0": (b"GET / HTTP/1.0\r\n\r\n", passes("GET / VERSION=HTTP/1.0")),
    "a later minor version": (line(b"GET / HTTP/1.2"), Differs("Other versions", refused(400), passes("GET /"))),
    "a later major version": (line(b"GET / HTTP/2.0"), Differs("Other versions", refused(400), refused(505))),
    "the beginning of HTTP/2": (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        Differs("Other versions", refused(400), refused(505)),
    ),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100), refused(400)),
    "bytes that mean nothing": (b"\0\1\2\3\r\n\r\n", refused(400)),
    "an empty line in front": (
        b"\r\n" + get(),
        Differs("An empty line in front of a request", refused(400), passes("GET /")),
    ),
    "an empty line behind a body": (
        post(b"Content-Length: 2", body=b"ab") + b"\r\n" + line(b"GET /next HTTP/1.1"),
        Differs(
            "An empty line in front of a request",
            # Its answer overtakes the handler's.
            Told(["POST / 'ab' content-length=2"], [400, 0]),
            passes("POST / 'ab' content-length=2", "GET /next"),
        ),
    ),
    # -- fields
    "an empty value": (get(b"X:"), passes("GET / x=")),
    "a value of other bytes": (get(b"X: \xff\xc3\xa9\ta"), passes("GET / x=\xff\xc3\xa9\ta")),
    "names of the front end": (get(b"METHOD: JSON", b"PATH: @*"), passes("GET / method=JSON path=@*")),
    "who the client says that it is": (get(b"X-Forwarded-For: 9.9.9.9"), passes("GET /")),
    "a host that nobody knows": (b"GET / HTTP/1.1\r\nHost: a.b:99\r\n\r\n", passes("GET / host=a.b:99")),
    "a value in two lines": (get(b"X: a", b" b"), refused(400)),
    "a blank in a name": (get(b"X y: 1"), refused(400)),
    "a blank behind a name": (get(b"X : 1"), refused(400)),
    "NUL in a value": (get(b"X: a\0b"), refused(400)),
    "DEL in a value": (get(b"X: a\x7fb"), refused(400)),
    "a control byte in a value": (
        get(b"X: a\x01b"),
        Differs("Control characters in a field", passes("GET / x=a\x01b"), refused(400)),
    ),
    "a line break in a name": (
        get(b"foo", b"X: 1"),
        Differs("Control characters in a field", passes("GET / foo\r\nx=1"), refused(400)),
    ),
    "lines that end with LF": (
        b"GET / HTTP/1.1\nHost: h\n\n",
        Differs("Lines that end with LF alone", passes("GET /"), refused(400)),
    ),
    "no host": (
        b"GET / HTTP/1.1\r\n\r\n",
        Differs("Two Host fields, none, or one that is not a host", passes("GET /"), refused(400)),
    ),
    "two hosts": (
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        Differs("Two Host fields, none, or one that is not a host", passes("GET / host=['a', 'b']"), refused(400)),
    ),
    "a host that is not one": (
        b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        Differs("Two Host fields, none, or one that is not a host", passes("GET / host=a b"), refused(400)),
    ),
    "a name twice": (get(b"C: 1", b"c: 2"), passes("GET / c=['1', '2']")),
    "a name six times": (
        get(*[b"C: %d" % number for number in range(6)]),
        Differs(
            "A field that is repeated more than five times",
            passes("GET / c=['0', '1', '2', '3', '4']"),
            passes("GET / c=['0', '1', '2', '3', '4', '5']"),
        ),
    ),
    "30 KB of cookies": (get(b"Cookie: " + b"c" * 30_000), passes("GET / cookie=" + "c" * 30_000)),
    "a head that is too large": (
        get(*[b"X: " + b"x" * 30_000] * 3),
        Differs("Heads that are too large", refused(400), refused(431)),
    ),
    "a first line that is too large": (
        line(b"GET /" + b"x" * 70_000 + b" HTTP/1.1"),
        Differs("Heads that are too large", refused(400), refused(414)),
    ),
    # -- bodies
    "a body": (post(b"Content-Length: 3", body=b"a\0b"), passes("POST / 'a\\x00b' content-length=3")),
    "a length of 0": (post(b"Content-Length: 0"), passes("POST / content-length=0")),
    "a body that is too large": (post(b"Content-Length: 1048577"), refused(413)),
    "a length that is a word": (
        post(b"Content-Length: abc"),
        Differs("A length that can be read in two ways", passes("POST / content-length=abc"), refused(400)),
    ),
    "a negative length": (
        post(b"Content-Length: -1"),
        Differs("A length that can be read in two ways", passes("POST / content-length=-1"), refused(400)),
    ),
    "a length with a sign": (
        post(b"Content-Length: +2", body=b"ab"),
        Differs("A length that can be read in two ways", passes("POST / 'ab' content-length=+2"), refused(400)),
    ),
    "two lengths": (
        post(b"Content-Length: 2", b"Content-Length: 2", body=b"ab"),
        Differs("A length that can be read in two ways", passes("POST / 'ab' content-length=['2', '2']"), refused(400)),
    ),
    "a length and chunks": (
        post(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
        Differs(
            "A length that can be read in two ways",
            passes("POST / '0\\r\\n\\r\\n' content-length=5 transfer-encoding=chunked"),
            refused(400),
        ),
    ),
    "chunks": (
        post(b"Transfer-Encoding: chunked", body=b"2;x=y\r\nab\r\n1\r\nc\r\n0\r\nTrailer: z\r\n\r\n"),
        Differs("Bodies in chunks", refused(413), passes("POST / 'abc' content-length=3")),
    ),
    "chunks in another case": (
        post(b"Transfer-Encoding: Chunked", body=b"0\r\n\r\n"),
        Differs(
            "Bodies in chunks",
            Told(["POST / transfer-encoding=Chunked"], [400, 0]),
            passes("POST / content-length=0"),
        ),
    ),
    "chunks in HTTP/1.0": (
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        Differs("Bodies in chunks", refused(413), refused(400)),
    ),
    "100-continue": (
        post(b"Expect: 100-continue", b"Content-Length: 2", body=b"ab"),
        Told(["POST / 'ab' content-length=2 expect=100-continue"], [100, 200]),
    ),
    "100-continue in another case": (
        post(b"Expect: 100-Continue", b"Content-Length: 2", body=b"ab"),
        Differs(
            "100-continue in any case",
            refused(417),
            Told(["POST / 'ab' content-length=2 expect=100-Continue"], [100, 200]),
        ),
    ),
    "another expectation": (post(b"Expect: 200-ok", b"Content-Length: 2", body=b"ab"), refused(417)),
    # -- several
    "two at once": (
        line(b"GET /1 HTTP/1.1") + post(b"Content-Length: 1", body=b"x") + line(b"GET /3 HTTP/1.1"),
        passes("GET /1", "POST / 'x' content-length=1", "GET /3"),
    ),
}


@pytest.fixture(scope="module")
def server(front_end: FrontEnd) -> Iterator[Any]:
    """One for all rows."""
    entry = Handler(SENDER)
    with front_end.started({"/": entry, "/only(y)": entry, "*": entry}) as one:
        # A Mongrel2 hands on its first reply half a second after its start (probed).
        with raw_handler(one) as handler, RawBrowser(one) as browser:
            browser.send(get())
            handler.reply(handler.request().conn_id, ANSWER)
            browser.read(ANSWER)
        yield one


@pytest.fixture(scope="module")
def handler(server: Any) -> Iterator[RawHandler]:
    """One for all rows."""
    with raw_handler(server) as one:
        yield one


@pytest.mark.parametrize(("sent", "outcome"), ROWS.values(), ids=ROWS)
def test_what_comes_of_a_request(
    front_end: FrontEnd, server: Any, handler: RawHandler, sent: bytes, outcome: Told | Differs
) -> None:
    """The messages to the handler, all of them, and the answers to the browser."""
    told: Told = front_end.truth(outcome)
    with RawBrowser(server) as browser, RawBrowser(server) as next_one:
        browser.send(sent)
        for expected in told.messages:
            message = handler.request()
            assert str(message) == expected
            handler.reply(message.conn_id, ANSWER)
        if told.statuses[-1] == 0:
            browser.read_to_end()
        else:
            browser.read(b"ok", len(told.messages))
        assert browser.statuses == [status for status in told.statuses if status]
        # All that comes of this row has come, when something of another connection has.
        next_one.send(line(b"GET /next-row HTTP/1.1"))
        message = handler.request()
        assert str(message) == "GET /next-row"
        # A client that leaves without its answer is waited for.
        handler.reply(message.conn_id, ANSWER)
        next_one.read(ANSWER)
