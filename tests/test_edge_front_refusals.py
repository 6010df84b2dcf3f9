"""What the embedded front end refuses, and with which status: RFC 9112 and its own limits."""

from __future__ import annotations

import pytest
from front_rig import WAYS, read, request, shown

from greentx.edge.config import DEFAULT_SETTINGS
from greentx.edge.front.events import Refused
from greentx.edge.front.limits import Limits
from greentx.edge.front.requests import RequestReader
from greentx.errors import LocalProtocolError

CHUNKED = b"Transfer-Encoding: chunked"
# What would be read behind a request that is refused, if it were.
NEXT = request(line=b"GET /next HTTP/1.1")


def line(text):
    """A request with this first line."""
    return request(line=text)


def chunks(text):
    """A request with this chunked body, and one behind it."""
    return request(CHUNKED, line=b"POST / HTTP/1.1", body=text) + NEXT


LINES: dict[str, tuple[bytes, int]] = {
    "no version": (line(b"GET /"), 400),
    "HTTP/0.9": (line(b"GET / HTTP/0.9"), 505),
    "HTTP/2.0": (line(b"GET / HTTP/2.0"), 505),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "HTTP/1.10": (line(b"GET / HTTP/1.10"), 400),
    "HTTP/11": (line(b"GET / HTTP/11"), 400),
    "HTTP/1.": (line(b"GET / HTTP/1."), 400),
    "http/1.1": (line(b"GET / http/1.1"), 400),
    "ICY/1.1": (line(b"GET / ICY/1.1"), 400),
    "two blanks in front of the target": (line(b"GET  / HTTP/1.1"), 400),
    "two blanks in front of the version": (line(b"GET /  HTTP/1.1"), 400),
    "a tab": (line(b"GET\t/ HTTP/1.1"), 400),
    "a blank in front": (line(b" GET / HTTP/1.1"), 400),
    "a blank behind": (line(b"GET / HTTP/1.1 "), 400),
    "a blank in the target": (line(b"GET /a b HTTP/1.1"), 400),
    "no method": (line(b" / HTTP/1.1"), 400),
    "no target": (line(b"GET HTTP/1.1"), 400),
    "an empty target": (line(b"GET  HTTP/1.1"), 400),
    "a method that is not a token": (line(b"GE(T / HTTP/1.1"), 400),
    "a method with a colon": (line(b"GET: / HTTP/1.1"), 400),
    "a method above ASCII": (line(b"G\xc9T / HTTP/1.1"), 400),
    "a method with NUL": (line(b"GET\0 / HTTP/1.1"), 400),
    "a method of 33 bytes": (line(b"A" * 33 + b" / HTTP/1.1"), 501),
    "CONNECT": (line(b"CONNECT a:443 HTTP/1.1"), 501),
    "a method that is Mongrel2's word": (line(b"JSON / HTTP/1.1"), 501),
    "a method that is another one": (line(b"WEBSOCKET / HTTP/1.1"), 501),
    "a method that is one of ours": (line(b"DISCONNECT / HTTP/1.1"), 501),
    "a target above ASCII": (line(b"GET /\xc3\xa9 HTTP/1.1"), 400),
    "a control character in the target": (line(b"GET /a\x01 HTTP/1.1"), 400),
    "DEL in the target": (line(b"GET /a\x7f HTTP/1.1"), 400),
    "NUL in the target": (line(b"GET /a\0 HTTP/1.1"), 400),
    **{f"{byte:c} in the path": (line(b"GET /a%cb HTTP/1.1" % byte), 400) for byte in b'"#<>[\\]^`{|}'},
    **{f"{byte:c} in the query": (line(b"GET /a?b%cc HTTP/1.1" % byte), 400) for byte in b'"#<>[\\]^`{|}'},
    "half an escape": (line(b"GET /%4 HTTP/1.1"), 400),
    "an escape that is none": (line(b"GET /?a=%4g HTTP/1.1"), 400),
    "a percent at the end": (line(b"GET /a% HTTP/1.1"), 400),
    "a target without slash": (line(b"GET a HTTP/1.1"), 400),
    "a target that is a query": (line(b"GET ?a HTTP/1.1"), 400),
    "the authority form of GET": (line(b"GET a:80 HTTP/1.1"), 400),
    "* of GET": (line(b"GET * HTTP/1.1"), 400),
    "*a of OPTIONS": (line(b"OPTIONS *a HTTP/1.1"), 400),
    "an absolute target of another scheme": (line(b"GET ftp://a/ HTTP/1.1"), 400),
    "an absolute target without host": (line(b"GET http:///a HTTP/1.1"), 400),
    "an absolute target with a port only": (line(b"GET http://:80/ HTTP/1.1"), 400),
    "an absolute target with a user": (line(b"GET http://u@a/ HTTP/1.1"), 400),
    "an absolute target with a wrong host": (line(b"GET http://a[/ HTTP/1.1"), 400),
    "an absolute target with a wrong path": (line(b"GET http://a/{ HTTP/1.1"), 400),
    "a first line that ends with LF": (b"GET / HTTP/1.1\nHost: a\r\n\r\n", 400),
    "a first line that ends with CR": (b"GET / HTTP/1.1\rHost: a\r\n\r\n", 400),
    "a CR in the first line": (b"GET /\r HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a CR more": (b"GET / HTTP/1.1\r\r\nHost: a\r\n\r\n", 400),
    "an LF in front": (b"\n" + request(), 400),
    "a CR in front": (b"\r" + request(), 400),
    "many empty lines": (b"\r\n" * 9 + request(), 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "a response": (b"HTTP/1.1 200 OK\r\n\r\n", 400),
}

FIELDS: dict[str, tuple[bytes, int]] = {
    "no Host": (b"GET / HTTP/1.1\r\nA: b\r\n\r\n", 400),
    "no field": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "no Host next to an absolute target": (b"GET http://a/ HTTP/1.1\r\n\r\n", 400),
    "two Hosts": (request(b"Host: b"), 400),
    "two Hosts that are one": (request(b"host: a"), 400),
    "two Hosts of HTTP/1.0": (request(b"Host: b", line=b"GET / HTTP/1.0"), 400),
    "two hosts in one line": (b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400),
    "a Host with a path": (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    "a Host with a user": (b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
    "a Host with a wrong port": (b"GET / HTTP/1.1\r\nHost: a:8x\r\n\r\n", 400),
    "a Host with a wrong escape": (b"GET / HTTP/1.1\r\nHost: a%4\r\n\r\n", 400),
    "a Host above ASCII": (b"GET / HTTP/1.1\r\nHost: \xc3\xa9\r\n\r\n", 400),
    "a Host of IPv6 without brackets": (b"GET / HTTP/1.1\r\nHost: ::1\r\n\r\n", 400),
    "a folded value": (request(b"A: b", b" c"), 400),
    "a value folded with a tab": (request(b"A: b", b"\tc"), 400),
    "an empty value that is folded": (request(b"A:", b" c"), 400),
    "a folded first field": (b"GET / HTTP/1.1\r\n A: b\r\nHost: a\r\n\r\n", 400),
    "a blank in front of the colon": (request(b"A : b"), 400),
    "a tab in front of the colon": (request(b"A\t: b"), 400),
    "a blank in a name": (request(b"A B: c"), 400),
    "no name": (request(b": b"), 400),
    "no colon": (request(b"A"), 400),
    "a field that ends with LF": (b"GET / HTTP/1.1\r\nHost: a\nA: b\r\n\r\n", 400),
    "a head that ends with LF": (b"GET / HTTP/1.1\r\nHost: a\n\n", 400),
    "an empty line that ends with LF": (b"GET / HTTP/1.1\r\nHost: a\r\n\n", 400),
    "an LF in front of the first field": (b"GET / HTTP/1.1\r\n\nHost: a\r\n\r\n", 400),
    "a field that ends with CR": (request(b"A: b\rC: d"), 400),
    "a value that ends with CR CR LF": (request(b"A: b\r"), 400),
    "a name with CR LF in it, as Mongrel2 reads it": (request(b"foo", b"Content-Length: 31"), 400),
    **{f"{byte:#x} in a name": (request(b"A%cB: c" % byte), 400) for byte in (*range(9), 11, 12, 14, 31, 127, 128)},
    **{f"{byte:#x} in a value": (request(b"A: b%cc" % byte), 400) for byte in (*range(9), 11, 12, 14, 31, 127)},
    **{f"{byte:c} in a name": (request(b"A%cB: c" % byte), 400) for byte in b'"(),/;<=>?@[\\]{}'},
    "an unknown expectation": (request(b"Expect: 200-ok"), 417),
    "an unknown expectation of a last request": (request(b"Expect: 200-ok", b"Connection: close"), 417),
    "an unknown expectation among others": (request(b"Expect: 100-continue, x", b"Content-Length: 1"), 417),
    "an unknown expectation in another line": (request(b"Expect: 100-continue", b"Expect: x"), 417),
    "an empty expectation": (request(b"Expect:"), 417),
}

BODIES: dict[str, tuple[bytes, int]] = {
    "both lengths": (request(CHUNKED, b"Content-Length: 5", body=b"0\r\n\r\n"), 400),
    "both lengths, the other way round": (request(b"Content-Length: 5", CHUNKED, body=b"0\r\n\r\n"), 400),
    "two lengths": (request(b"Content-Length: 1", b"Content-Length: 2", body=b"ab"), 400),
    "two lengths that are one": (request(b"Content-Length: 1", b"content-length: 1", body=b"a"), 400),
    "two lengths in one line": (request(b"Content-Length: 1, 1", body=b"a"), 400),
    **{
        f"a length of {text!r}": (request(b"Content-Length: " + text, body=b"a"), 400)
        for text in (b"", b"+1", b"-1", b"1x", b"0x1", b"1.0", b"1 1", b"1_0", b"\xb2", b"9" * 20, b"9" * 400)
    },
    "a coding that is not chunked": (request(b"Transfer-Encoding: gzip"), 400),
    "identity": (request(b"Transfer-Encoding: identity"), 400),
    "no coding": (request(b"Transfer-Encoding:"), 400),
    "a coding behind chunked": (request(b"Transfer-Encoding: chunked, gzip"), 400),
    "chunked twice": (request(b"Transfer-Encoding: chunked, chunked"), 400),
    "chunked in two lines": (request(CHUNKED, CHUNKED), 400),
    "another line behind chunked": (request(CHUNKED, b"Transfer-Encoding: identity"), 400),
    "an empty line behind chunked": (request(CHUNKED, b"Transfer-Encoding:"), 400),
    "chunked with a parameter": (request(b"Transfer-Encoding: chunked;a=b"), 400),
    "xchunked": (request(b"Transfer-Encoding: xchunked"), 400),
    "a vertical tab in front of chunked": (request(b"Transfer-Encoding: \x0bchunked"), 400),
    "chunked of HTTP/1.0": (request(CHUNKED, line=b"POST / HTTP/1.0", body=b"0\r\n\r\n"), 400),
    "gzip in front of chunked": (request(b"Transfer-Encoding: gzip, chunked"), 501),
    "gzip in a line in front of chunked": (request(b"Transfer-Encoding: gzip", CHUNKED), 501),
    **{
        f"a chunk size of {text!r}": (chunks(text + b"\r\na\r\n0\r\n\r\n"), 400)
        for text in (b"", b"g", b"+1", b"-1", b"0x1", b" 1", b"1 ", b"1\t", b"1 1", b"1_1", b"0" * 16 + b"1", b"\xb2")
    },
    **{
        f"a chunk extension of {text!r}": (chunks(b"1" + text + b"\r\na\r\n0\r\n\r\n"), 400)
        for text in (b";", b"; ", b";=a", b";a=", b";a b", b';a="', b';a="b"c', b";a\0", b";a\xe9", b';a="\x7f"', b",a")
    },
    "a chunk extension with LF": (chunks(b"1;a\nb\r\na\r\n0\r\n\r\n"), 400),
    "a chunk extension with CR": (chunks(b"1;a\rb\r\na\r\n0\r\n\r\n"), 400),
    "a size line of 2000 bytes": (chunks(b"1;" + b"a" * 2000 + b"\r\na\r\n0\r\n\r\n"), 400),
    "a size line without end": (chunks(b"1;" + b"a" * 2000), 400),
    "a size that ends with LF": (chunks(b"1\na\r\n0\r\n\r\n"), 400),
    "a chunk that ends with LF": (chunks(b"1\r\na\n0\r\n\r\n"), 400),
    "a chunk that ends with CR": (chunks(b"1\r\na\r0\r\n\r\n"), 400),
    "a chunk that is longer": (chunks(b"1\r\nab\r\n0\r\n\r\n"), 400),
    "a chunk without an end": (chunks(b"1\r\na0\r\n\r\n"), 400),
    "a last chunk that ends with LF": (chunks(b"0\n\r\n"), 400),
    "an empty line behind the last chunk that ends with LF": (chunks(b"0\r\n\n"), 400),
    "a trailer without colon": (chunks(b"0\r\nA\r\n\r\n"), 400),
    "a trailer with NUL": (chunks(b"0\r\nA: \0\r\n\r\n"), 400),
    "a trailer that is folded": (chunks(b"0\r\nA: b\r\n c\r\n\r\n"), 400),
    "a trailer that ends with LF": (chunks(b"0\r\nA: b\nC: d\r\n\r\n"), 400),
}

WEBSOCKET = (b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Key: k", b"Sec-WebSocket-Version: 13")

HANDSHAKES: dict[str, tuple[bytes, int]] = {
    **{
        f"a handshake by {method.decode()}": (request(*WEBSOCKET, line=method + b" / HTTP/1.1"), 400)
        for method in (b"POST", b"HEAD", b"DELETE")
    },
    "a handshake with a body": (request(*WEBSOCKET, b"Content-Length: 1", body=b"a"), 400),
    "a handshake with a chunked body": (request(*WEBSOCKET, CHUNKED, body=b"0\r\n\r\n"), 400),
}

INVALID = {**LINES, **FIELDS, **BODIES, **HANDSHAKES}


@pytest.mark.parametrize("case", INVALID)
def test_what_http_forbids_is_refused(case):
    """With the same status in whatever pieces it comes, first or second, and nothing behind it is read."""
    data, status = INVALID[case]
    for way in WAYS.values():
        events = shown(read(way(data)))
        assert events[-1] == str(status), events
        assert not {"end", "GET /next"} & set(events)
        assert events == shown(read([data]))
        second = shown(read(way(request(b"Content-Length: 1", body=b"x") + data)))
        assert second == ["GET /", "body x", "end", *events]


@pytest.mark.parametrize(
    "data",
    [
        b"\x16",
        b"GET / HTTP/1.1\n",
        b"GET /\0",
        b"GET / HTTP/3.0\r\n",
        b"BAD\r\n",
        b"GET / HTTP/1.1\r\nA: b\n",
        b"CONNECT a:1 HTTP/1.1\r\n",
        request(CHUNKED, body=b"1\n"),
        request(CHUNKED, body=b"1\r\nab"),
    ],
)
@pytest.mark.parametrize("way", WAYS)
def test_nobody_waits_for_the_rest_of_what_is_wrong(data, way):
    """It is refused at the byte that makes it so."""
    assert isinstance(read(WAYS[way](data))[-1], Refused)


def test_nothing_is_read_behind_a_refusal():
    """However much comes."""
    reader = RequestReader()
    assert shown(reader.feed(b"\0")) == ["400"]
    assert reader.over and reader.feed(request()) == [] and reader.eof() == []


def test_a_refusal_says_whether_it_was_a_head_request():
    """Its answer has no body then."""
    for data in (b"HEAD / HTTP/2.0\r\n\r\n", request(b"Content-Length: x", line=b"HEAD / HTTP/1.1"), b"HEAD /\0"):
        refused = read([data])[-1]
        assert isinstance(refused, Refused) and refused.head_only
    events = read([request(line=b"HEAD / HTTP/1.1") + b"\0"])
    assert isinstance(events[-1], Refused) and not events[-1].head_only


def test_a_reason_has_nothing_of_what_the_client_sent():
    """So that no answer, and no log line, is written by it."""
    for data, _ in INVALID.values():
        refused = read([data.replace(b"next", b"zqzqz")])[-1]
        assert isinstance(refused, Refused)
        assert refused.reason.isascii() and refused.reason.isprintable()
        assert len(refused.reason) < 200 and "zqzq" not in refused.reason


@pytest.mark.parametrize("target", ["/a{b}c^d", "/?a={b}^"])
def test_braces_and_carets_pass_where_mongrel2_lets_them(target):
    """With ``request.relaxed``, as browsers send them so; nothing else does, in whatever pieces it comes."""
    data = request(line=f"GET {target} HTTP/1.1".encode())
    for split in WAYS.values():
        assert shown(read(split(data), Limits.of({"request.relaxed": 1}))) == [f"GET {target}", "end"]
        assert shown(read(split(data), Limits.of({"request.relaxed": 0}))) == ["400"]
        for byte in '"#<>[\\]`|':
            data_with = request(line=f"GET {target}{byte} HTTP/1.1".encode())
            assert shown(read(split(data_with), Limits(relaxed=True))) == ["400"]


# -- limits ------------------------------------------------------------------------------------------------------------

SMALL = Limits(buffer_size=200, line_size=50, header_count=6, content_length=10)


def sized(size, line=b"GET / HTTP/1.1"):
    """A head of so many bytes, in lines of at most 50."""
    fields = []
    left = size - len(request(line=line))
    while left:
        take = left if left <= 50 else min(45, left - 8)
        fields.append(b"A: " + b"x" * (take - 5))
        left -= take
    return request(*fields, line=line)


LIMITS: dict[str, tuple[bytes, list[str]]] = {
    "a whole head": (sized(200), ["GET /", "end"]),
    "a head that is larger by a byte": (sized(201), ["431"]),
    "a head that is far larger": (sized(2000), ["431"]),
    "a head without end": (sized(2000)[:-2], ["431"]),
    "a head that is wrong before it is too large": (sized(100)[:-4] + b"\n" + sized(2000), ["400"]),
    "a head that is too large before it is wrong": (sized(2000)[:-4] + b"\n\r\n", ["431"]),
    "a whole first line": (line(b"GET /%b HTTP/1.1" % (b"x" * 36)), [f"GET /{'x' * 36}", "end"]),
    "a first line that is longer by a byte": (line(b"GET /%b HTTP/1.1" % (b"x" * 37)), ["414"]),
    "a first line that is far longer": (line(b"GET /%b HTTP/1.1" % (b"x" * 999)), ["414"]),
    "a first line without end": (b"x" * 999, ["414"]),
    "a first line that is wrong before it is too long": (line(b"GET /\0%b HTTP/1.1" % (b"x" * 99)), ["400"]),
    "a first line that is too long before it is wrong": (line(b"GET /%b\0 HTTP/1.1" % (b"x" * 99)), ["414"]),
    "a whole field": (request(b"A: " + b"x" * 47), ["GET /", "end"]),
    "a field that is longer by a byte": (request(b"A: " + b"x" * 48), ["431"]),
    "a name that is longer by a byte": (request(b"x" * 50 + b":"), ["431"]),
    "all fields": (request(*[b"A:b"] * 5), ["GET /", "end"]),
    "a field more": (request(*[b"A:b"] * 6), ["431"]),
    "fields that are wrong before they are too many": (request(b"A:b\n" * 8, *[b"A:b"] * 8), ["400"]),
    "lines that are too many and wrong": (request(b"A:" + b"\n" * 20), ["400"]),
    "a whole body": (request(b"Content-Length: 10", body=b"x" * 10), ["GET /", "body xxxxxxxxxx", "end"]),
    "a body that is larger by a byte": (request(b"Content-Length: 11", body=b"x" * 11), ["413"]),
    "a body whose client waits": (request(b"Content-Length: 11", b"Expect: 100-continue"), ["413"]),
    "a body of 2 ** 60 bytes": (request(b"Content-Length: 1152921504606846976"), ["413"]),
    "whole chunks": (
        request(CHUNKED, body=b"5\r\nxxxxx\r\n5\r\nxxxxx\r\n0\r\n\r\n"),
        ["GET /", "body xxxxxxxxxx", "end"],
    ),
    "chunks that are larger by a byte": (
        request(CHUNKED, body=b"5\r\nxxxxx\r\n6\r\nxxxxxx\r\n0\r\n\r\n"),
        ["GET /", "body xxxxx", "413"],
    ),
    "a chunk of 2 ** 64 - 1 bytes": (request(CHUNKED, body=b"ffffffffffffffff\r\n"), ["GET /", "413"]),
    "chunk extensions in all": (
        request(CHUNKED, body=b"1;%b\r\nx\r\n" % (b"a" * 99) * 2 + b"0\r\n\r\n"),
        ["GET /", "body xx", "end"],
    ),
    "chunk extensions, a byte more": (
        request(CHUNKED, body=b"1;%b\r\nx\r\n" % (b"a" * 99) * 2 + b"0;a\r\n\r\n"),
        ["GET /", "body xx", "400"],
    ),
    "whole trailers": (
        request(CHUNKED, body=b"0\r\n" + (b"A:%b\r\n" % (b"x" * 45)) * 4 + b"\r\n"),
        ["GET /", "end"],
    ),
    "trailers that are larger": (
        request(CHUNKED, body=b"0\r\n" + (b"A:%b\r\n" % (b"x" * 46)) * 4 + b"\r\n"),
        ["GET /", "431"],
    ),
    "trailers without end": (request(CHUNKED, body=b"0\r\n" + b"A:b\r\n" * 99), ["GET /", "431"]),
    "a trailer more": (request(CHUNKED, body=b"0\r\n" + b"A:b\r\n" * 7 + b"\r\n"), ["GET /", "431"]),
    "a long trailer": (request(CHUNKED, body=b"0\r\nA:" + b"x" * 49 + b"\r\n\r\n"), ["GET /", "431"]),
}


@pytest.mark.parametrize("case", LIMITS)
def test_what_a_client_sends_has_bounds(case):
    """Each to the byte, in whatever pieces it comes."""
    data, expected = LIMITS[case]
    for way in WAYS.values():
        assert shown(read(way(data), SMALL)) == expected


@pytest.mark.parametrize("way", WAYS)
def test_a_head_may_have_less_room_than_a_line(way):
    """The first line is too long then, and other lines make the head too large."""
    limits = Limits(buffer_size=30, line_size=50)
    assert shown(read(WAYS[way](b"GET /" + b"x" * 40), limits)) == ["414"]
    assert shown(read(WAYS[way](b"GET / HTTP/1.1\r\nA: " + b"x" * 40), limits)) == ["431"]


@pytest.mark.parametrize("way", ["byte by byte", "whole"])
def test_the_default_limits_are_those_of_mongrel2_in_a_program(way):
    """A head of 64 KiB, a body of 1 MiB."""
    limits = Limits()
    assert limits == Limits.of({**DEFAULT_SETTINGS, "limits.header_count": limits.header_count})
    fields = [b"A: " + b"x" * 16000] * 4
    assert shown(read(WAYS[way](request(*fields)))) == ["GET /", "end"]
    assert shown(read(WAYS[way](request(*fields, b"A: " + b"x" * 2000)))) == ["431"]
    assert shown(read([request(b"Content-Length: 1048577")])) == ["413"]


def test_limits_come_out_of_settings():
    """Which may be text, and have other names among them."""
    settings: dict[str, int | str] = {"limits.buffer_size": "4096", "limits.content_length": 20480, "ssl_ciphers": "x"}
    assert Limits.of(settings) == Limits(buffer_size=4096, content_length=20480)
    assert Limits.of({}) == Limits()


@pytest.mark.parametrize("settings", [{"limits.buffer_size": "a"}, {"limits.content_length": -1}])
def test_settings_that_are_not_numbers_are_told(settings):
    """By their names."""
    with pytest.raises(LocalProtocolError, match=r"limits\."):
        Limits.of(settings)


@pytest.mark.parametrize(
    "bad", [{"buffer_size": 15}, {"line_size": 0}, {"header_count": 0}, {"content_length": -1}, {"line_size": 1.5}]
)
def test_limits_that_nobody_could_keep_are_told(bad):
    """With the minimum."""
    with pytest.raises(LocalProtocolError, match=next(iter(bad))):
        Limits(**bad)
