"""What the embedded front end reads as requests, in whatever pieces they come."""

from __future__ import annotations

import pytest
from front_rig import WAYS, read, request, shown

from greentx.edge.front.events import Body, End, Head, Upgraded
from greentx.edge.front.limits import Limits
from greentx.edge.front.requests import RequestReader
from greentx.errors import LocalProtocolError

CHUNKED = b"Transfer-Encoding: chunked"
WEBSOCKET = (b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Key: k", b"Sec-WebSocket-Version: 13")

VALID: dict[str, tuple[bytes, list[str]]] = {
    "a GET": (request(), ["GET /", "end"]),
    "a path and a query": (request(line=b"GET /a%20b;c=d/?e=f&g?/h HTTP/1.1"), ["GET /a%20b;c=d/?e=f&g?/h", "end"]),
    "an empty query": (request(line=b"GET /? HTTP/1.1"), ["GET /?", "end"]),
    "two slashes": (request(line=b"GET //a/../b HTTP/1.1"), ["GET //a/../b", "end"]),
    "all characters of a path": (
        request(line=b"GET /!$&'()*+,-./09:;=@AZ_az~ HTTP/1.1"),
        ["GET /!$&'()*+,-./09:;=@AZ_az~", "end"],
    ),
    "HTTP/1.0 without Host": (b"GET / HTTP/1.0\r\n\r\n", ["GET /", "end"]),
    "a later minor version": (request(line=b"GET / HTTP/1.7"), ["GET /", "end"]),
    "an empty Host": (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", ["GET /", "end"]),
    "a Host with a port": (b"GET / HTTP/1.1\r\nHost: a.b-c_d:8000\r\n\r\n", ["GET /", "end"]),
    "a Host of IPv6": (b"GET / HTTP/1.1\r\nHost: [::1]:8000\r\n\r\n", ["GET /", "end"]),
    "OPTIONS *": (request(line=b"OPTIONS * HTTP/1.1"), ["OPTIONS *", "end"]),
    "the absolute form": (request(line=b"GET http://h:80/b?c HTTP/1.1"), ["GET /b?c", "end"]),
    "the absolute form of https": (request(line=b"GET HTTPS://h/b HTTP/1.1"), ["GET /b", "end"]),
    "the absolute form without path": (request(line=b"GET http://h HTTP/1.1"), ["GET /", "end"]),
    "the absolute form with a query only": (request(line=b"GET http://h?a HTTP/1.1"), ["GET /?a", "end"]),
    "the absolute form of OPTIONS": (request(line=b"OPTIONS http://h HTTP/1.1"), ["OPTIONS *", "end"]),
    "an absolute form with a query of slashes": (request(line=b"GET http://h?a/b HTTP/1.1"), ["GET /?a/b", "end"]),
    "a method with hyphen": (request(line=b"M-SEARCH / HTTP/1.1"), ["M-SEARCH /", "end"]),
    "a method in lower case": (request(line=b"get / HTTP/1.1"), ["get /", "end"]),
    "a method of all token characters": (
        request(line=b"!#$%&'*+-.^_`|~aZ0 / HTTP/1.1"),
        ["!#$%&'*+-.^_`|~aZ0 /", "end"],
    ),
    "a method of RTSP": (request(line=b"DESCRIBE / HTTP/1.1"), ["DESCRIBE /", "end"]),
    "a body": (request(b"Content-Length: 3", body=b"abc"), ["GET /", "body abc", "end"]),
    "a body of length 0": (request(b"Content-Length: 0"), ["GET /", "end"]),
    "a length with zeros in front": (request(b"Content-Length: 003", body=b"abc"), ["GET /", "body abc", "end"]),
    "a body like a request": (
        request(b"Content-Length: 18", body=b"GET /x HTTP/1.1\r\n\nGET /y HTTP/1.0\r\n\r\n"),
        ["GET /", "body GET /x HTTP/1.1\r\n\n", "end", "GET /y", "end"],
    ),
    "HEAD": (request(line=b"HEAD / HTTP/1.1"), ["HEAD /", "end"]),
    "DELETE with a body": (
        request(b"Content-Length: 1", line=b"DELETE / HTTP/1.1", body=b"a"),
        ["DELETE /", "body a", "end"],
    ),
    "chunks": (request(CHUNKED, body=b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"), ["GET /", "body abcde", "end"]),
    "no chunk": (request(CHUNKED, body=b"0\r\n\r\n"), ["GET /", "end"]),
    "a last chunk of many zeros": (request(CHUNKED, body=b"0000\r\n\r\n"), ["GET /", "end"]),
    "hexadecimal sizes": (
        request(CHUNKED, body=b"0a\r\n0123456789\r\nB\r\n0123456789a\r\n0\r\n\r\n"),
        ["GET /", "body 01234567890123456789a", "end"],
    ),
    "chunks with line ends in them": (
        request(CHUNKED, body=b"4\r\n\r\n\r\n\r\n5\r\n0\r\n\r\n\r\n0\r\n\r\n"),
        ["GET /", "body \r\n\r\n0\r\n\r\n", "end"],
    ),
    "chunk extensions": (
        request(CHUNKED, body=b'1;a;b=c ; d = "e\\"f;\xe9"\r\nx\r\n0;z\r\n\r\n'),
        ["GET /", "body x", "end"],
    ),
    "trailers": (request(CHUNKED, body=b"1\r\na\r\n0\r\nA: b\r\nC: d\r\n\r\n"), ["GET /", "body a", "end"]),
    "trailers that say a length": (
        request(CHUNKED, body=b"0\r\nContent-Length: 5\r\nConnection: close\r\n\r\n") + request(),
        ["GET /", "end", "GET /", "end"],
    ),
    "chunked in another case": (request(b"transfer-encoding:  ChUnKeD ", body=b"0\r\n\r\n"), ["GET /", "end"]),
    "blanks around a value": (request(b"A: \t b \t "), ["GET /", "end"]),
    "an empty value": (request(b"A:"), ["GET /", "end"]),
    "a name of all token characters": (request(b"!#$%&'*+-.^_`|~aZ0: b"), ["GET /", "end"]),
    "bytes above ASCII in a value": (request(b"A: \x80\xe9\xff"), ["GET /", "end"]),
    "empty lines in front": (b"\r\n\r\n" + request(), ["GET /", "end"]),
    "a CRLF behind a body": (
        request(b"Content-Length: 1", body=b"a") + b"\r\n" + request(),
        ["GET /", "body a", "end", "GET /", "end"],
    ),
    "three at once": (request() + request(b"Content-Length: 1", body=b"a") + request(CHUNKED, body=b"0\r\n\r\n"),
        ["GET /", "end", "GET /", "body a", "end", "GET /", "end"],
    ),
    "Proxy-Connection, which says nothing": (
        request(b"Proxy-Connection: close") + request(), ["GET /", "end", "GET /", "end"],
    ),
    "an upgrade to what is not known": (
        request(b"Upgrade: h2c, foo/2", b"Connection: upgrade", b"Content-Length: 1", body=b"a") + request(),
        ["GET /", "body a", "end", "GET /", "end"],
    ),
    "Expect without a body": (request(b"Expect: 100-continue"), ["GET /", "end"]),
    "an unknown expectation of HTTP/1.0": (b"GET / HTTP/1.0\r\nExpect: x\r\n\r\n", ["GET /", "end"]),
    "nothing behind a close": (request(b"Connection: close") + request(), ["GET /", "end"]),
    "nothing behind a close, though it is wrong": (request(b"Connection: close") + b"\0", ["GET /", "end"]),
    "nothing behind HTTP/1.0": (b"GET / HTTP/1.0\r\n\r\n" + request(), ["GET /", "end"]),
    "HTTP/1.0 with keep-alive": (
        b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n" + request(), ["GET /", "end", "GET /", "end"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", VALID)
def test_what_http_allows_is_read(case):
    """The same in whatever pieces it comes."""
    data, expected = VALID[case]
    for way in WAYS.values():
        assert shown(read(way(data))) == expected


@pytest.mark.parametrize("case", VALID)
def test_requests_that_are_held_are_the_same(case):
    """One after the other, each when it is asked for."""
    data, _ = VALID[case]
    assert read([data], hold=True) == read([data])


@pytest.mark.parametrize("way", WAYS)
def test_all_requests_of_one_connection_are_read_by_one_reader(way):
    """Whatever one has, the next one is read as if it were the first."""
    cases = [(data, events) for data, events in VALID.values() if all(one.keep_alive for one in heads(data))]
    assert len(cases) > 40
    data = b"".join(data for data, _ in cases)
    assert shown(read(WAYS[way](data))) == [event for _, events in cases for event in events]


def heads(data):
    """The heads of what is read."""
    return [event for event in read([data]) if isinstance(event, Head)]


def head(*fields, line=b"GET / HTTP/1.1"):
    """The head of one request."""
    return heads(request(*fields, line=line))[0]


def test_fields_keep_their_order_and_have_lower_case_names():
    """Values lose the blanks around them, and nothing else."""
    assert head(b"Cookie: a=b", b"X-Y:\t c d ,\x80 \t", b"cookie: e", b"Empty: ").headers == [
        (b"host", b"a"),
        (b"cookie", b"a=b"),
        (b"x-y", b"c d ,\x80"),
        (b"cookie", b"e"),
        (b"empty", b""),
    ]


def test_the_host_of_an_absolute_target_is_the_host():
    """Whatever the field says; HTTP/1.0 need not have one."""
    assert head(b"A: b", line=b"GET http://H:80/ HTTP/1.1").headers == [(b"a", b"b"), (b"host", b"H:80")]
    assert heads(b"GET http://h/ HTTP/1.0\r\n\r\n")[0].headers == [(b"host", b"h")]


@pytest.mark.parametrize(
    ("line", "version"), [(b"HTTP/1.0", b"HTTP/1.0"), (b"HTTP/1.1", b"HTTP/1.1"), (b"HTTP/1.9", b"HTTP/1.1")]
)
def test_a_version_is_one_of_two(line, version):
    """A later one is the latest that is known."""
    assert head(line=b"GET / " + line).version == version


@pytest.mark.parametrize(
    ("line", "fields", "keep_alive"),
    [
        (b"GET / HTTP/1.1", [], True),
        (b"GET / HTTP/1.0", [], False),
        (b"GET / HTTP/1.1", [b"Connection: close"], False),
        (b"GET / HTTP/1.1", [b"Connection: x, CLOSE ,"], False),
        (b"GET / HTTP/1.1", [b"Connection: keep-alive", b"Connection: close"], False),
        (b"GET / HTTP/1.1", [b"Connection: close", b"Connection: keep-alive"], False),
        (b"GET / HTTP/1.1", [b"Connection: closed"], True),
        (b"GET / HTTP/1.0", [b"Connection: Keep-Alive"], True),
        (b"GET / HTTP/1.0", [b"Connection: keep-alive, close"], False),
        (b"GET / HTTP/1.0", [b"Connection: upgrade"], False),
    ],
)
def test_a_connection_lasts_as_its_options_say(line, fields, keep_alive):
    """Close wins; HTTP/1.0 has to ask."""
    assert head(*fields, line=line).keep_alive is keep_alive


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([], (None, False, False)),
        ([b"Content-Length: 0"], (0, False, False)),
        ([b"Content-Length: 5"], (5, False, False)),
        ([CHUNKED], (None, True, False)),
        ([CHUNKED, b"Expect: 100-CONTINUE"], (None, True, True)),
        ([b"Content-Length: 5", b"Expect: 100-continue"], (5, False, True)),
        ([b"Content-Length: 5", b"Expect: 100-Continue", b"Expect: 100-continue"], (5, False, True)),
        ([b"Content-Length: 0", b"Expect: 100-continue"], (0, False, False)),
    ],
)
def test_a_head_says_what_body_follows(fields, expected):
    """And whether the client waits before it sends it."""
    found = head(*fields)
    assert (found.content_length, found.chunked, found.expect_continue) == expected


def test_a_body_comes_as_it_arrives():
    """A piece for each piece."""
    reader = RequestReader()
    assert shown(reader.feed(request(b"Content-Length: 5", body=b"ab"))) == ["GET /", "body ab"]
    assert reader.feed(b"cd") == [Body(b"cd")]
    assert reader.feed(b"efgh"[:1]) == [Body(b"e"), End()]


def test_chunks_come_as_they_arrive_and_together():
    """One piece for all that one feed completes."""
    reader = RequestReader()
    assert shown(reader.feed(request(CHUNKED, body=b"3\r\na"))) == ["GET /", "body a"]
    assert reader.feed(b"bc\r\n2\r\nde\r\n1") == [Body(b"bcde")]
    assert reader.feed(b"\r\nf\r\n0\r\n\r\n") == [Body(b"f"), End()]


# -- WebSockets --------------------------------------------------------------------------------------------------------


def test_what_follows_an_upgrade_is_not_http():
    """It is handed over when the caller upgrades."""
    reader = RequestReader()
    events = reader.feed(request(*WEBSOCKET, body=b"\x81\x80abcd"))
    assert shown(events) == ["GET /"] and isinstance(events[0], Head) and events[0].upgrade and reader.held
    assert reader.feed(b"ef") == []
    assert reader.upgrade() == [Upgraded(b"\x81\x80abcdef")]
    assert reader.over and not reader.held and reader.feed(b"g") == []


def test_an_upgrade_may_be_the_second_request():
    """Of a connection that has served others."""
    reader = RequestReader()
    assert shown(reader.feed(request() + request(*WEBSOCKET))) == ["GET /", "end", "GET /"]
    assert reader.upgrade() == [Upgraded(b"")]


def test_a_request_that_is_not_upgraded_is_one():
    """The next one follows it."""
    reader = RequestReader()
    assert shown(reader.feed(request(*WEBSOCKET) + request(line=b"GET /b HTTP/1.1"))) == ["GET /"]
    assert shown(reader.resume()) == ["end", "GET /b", "end"]
    reader = RequestReader(hold=True)
    reader.feed(request(*WEBSOCKET) + request(line=b"GET /b HTTP/1.1"))
    assert reader.resume() == [End()] and reader.held
    assert shown(reader.resume()) == ["GET /b", "end"]


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        (b"GET / HTTP/1.0", (*WEBSOCKET, b"Connection: keep-alive")),
        (b"GET / HTTP/1.1", (*WEBSOCKET[1:], b"Upgrade: h2c")),
        (b"GET / HTTP/1.1", (WEBSOCKET[0], b"Connection: no-upgrade", *WEBSOCKET[2:])),
        (b"GET / HTTP/1.1", WEBSOCKET[1:]),
        (b"GET / HTTP/1.1", WEBSOCKET[:3]),
        (b"GET / HTTP/1.1", (*WEBSOCKET[:2], WEBSOCKET[3])),
        (b"POST / HTTP/1.1", (*WEBSOCKET[:3], b"Content-Length: 5")),
        (b"POST / HTTP/1.1", (*WEBSOCKET[1:], CHUNKED)),
    ],
)
def test_what_is_not_a_handshake_is_an_ordinary_request(line, fields):
    """Its method, its body and what follows it are not lost."""
    body = b"0\r\n\r\n" if CHUNKED in fields else b"abcde" if b"Content-Length: 5" in fields else b""
    events = read([request(*fields, line=line, body=body) + request(line=b"GET /b HTTP/1.1")])
    assert [event.upgrade for event in events if isinstance(event, Head)] == [False, False]
    assert shown(events)[-2:] == ["GET /b", "end"]


def test_options_of_an_upgrade_may_be_in_any_case_and_in_several_lines():
    """As Firefox and proxies write them."""
    fields = (b"Connection: keep-alive", b"CONNECTION: UPGRADE", b"upgrade: WebSocket", *WEBSOCKET[2:])
    assert head(*fields).upgrade


# -- holding -----------------------------------------------------------------------------------------------------------


def test_a_held_reader_keeps_what_follows():
    """Up to the size of a head; then it has to be resumed."""
    reader = RequestReader(Limits(buffer_size=100), hold=True)
    assert shown(reader.feed(request() * 2)) == ["GET /", "end"]
    assert reader.held and not reader.full and not reader.idle
    assert reader.feed(request() * 3) == []
    assert reader.full
    with pytest.raises(LocalProtocolError, match="resume"):
        reader.feed(b"a")
    for left in (3, 2, 1, 0):
        assert shown(reader.resume()) == ["GET /", "end"]
        assert reader.idle is (left == 0)
    assert reader.resume() == [] and not reader.held and reader.idle


def test_holding_may_begin_and_end_at_any_time():
    """It takes effect behind the next request."""
    reader = RequestReader()
    assert shown(reader.feed(request()[:-1])) == []
    reader.hold = True
    assert shown(reader.feed(b"\n" + request() * 2)) == ["GET /", "end"]
    reader.hold = False
    assert shown(reader.resume()) == ["GET /", "end"] * 2
    assert not reader.held


def test_there_is_nothing_to_resume_nor_to_upgrade_elsewhere():
    """A mistake of the caller is told."""
    reader = RequestReader()
    with pytest.raises(LocalProtocolError):
        reader.resume()
    reader.hold = True
    reader.feed(request())
    with pytest.raises(LocalProtocolError):
        reader.upgrade()


# -- the last byte -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"\r\n", request(), request(CHUNKED, body=b"0\r\n\r\n"), request() * 2])
def test_a_client_that_sends_no_more_has_sent_whole_requests(data):
    """It still may read answers."""
    reader = RequestReader()
    before = reader.feed(data)
    assert reader.eof() == [] and reader.over
    assert shown(before) == ["GET /", "end"] * (len(before) // 2)


@pytest.mark.parametrize(
    "data",
    [
        b"G",
        b"GET / HTTP/1.1\r\n",
        request()[:-1],
        request(b"Content-Length: 5", body=b"abcd"),
        request(CHUNKED),
        request(CHUNKED, body=b"2\r\na"),
        request(CHUNKED, body=b"0\r\n"),
        request(CHUNKED, body=b"0\r\nA: b\r\n"),
    ],
)
def test_what_ends_in_the_middle_is_refused(data):
    """A part of it is not a request."""
    reader = RequestReader()
    reader.feed(data)
    assert shown(reader.eof()) == ["400"] and reader.over


def test_the_last_byte_waits_for_held_requests():
    """What is held is read, and then what is cut off is refused."""
    reader = RequestReader(hold=True)
    reader.feed(request() * 2 + b"GET")
    assert reader.eof() == [] and not reader.over
    assert shown(reader.resume()) == ["GET /", "end"]
    assert shown(reader.resume()) == ["400"] and reader.over
    reader = RequestReader()
    reader.feed(request(*WEBSOCKET, body=b"ab"))
    assert reader.eof() == []
    assert reader.upgrade() == [Upgraded(b"ab")]


def test_a_reader_shows_where_it_is():
    """And how much it keeps."""
    reader = RequestReader()
    reader.feed(b"GET")
    assert repr(reader) == "<RequestReader in a head, 3 bytes kept>"
