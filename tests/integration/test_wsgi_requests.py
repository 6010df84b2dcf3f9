"""Raw requests, valid and not, by both front ends: what an application is given, and what it never sees."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from front_ends import Differs, FrontEnd
from http_rig import Browser
from wsgi_rig import Server, serving, talk

KEYS = (
    "REQUEST_METHOD",
    "PATH_INFO",
    "QUERY_STRING",
    "SERVER_PROTOCOL",
    "SERVER_NAME",
    "SERVER_PORT",
    "CONTENT_TYPE",
    "CONTENT_LENGTH",
)


@pytest.fixture(scope="module")
def running(front_end: FrontEnd) -> Iterator[Server]:
    """One server for all; it keeps what its application saw in ``seen``."""
    seen: list[dict[str, Any]] = []

    def application(environ: Any, start_response: Any) -> Any:
        found = {name: environ[name] for name in environ if name in KEYS or name.startswith("HTTP_")}
        seen.append({**found, "body": environ["wsgi.input"].read()})
        start_response("200 OK", [])
        return [b"ok"]

    with serving(front_end.name, application) as server:
        server.seen = seen
        talk(server.port, b"GET / HTTP/1.0\r\n\r\n")
        yield server


@pytest.fixture
def server(running: Server) -> Iterator[Server]:
    """The server, which has seen nothing, and keeps no greenlets from the requests of another test."""
    running.seen.clear()
    yield running
    running.server.intake.schedule.jobs.stop()
    running.server.start_accepting()


def request(target: str = "/", *lines: str, method: str = "GET", version: str = "HTTP/1.1", host: str = "h") -> bytes:
    """A request whose connection ends with it."""
    fields = [f"{method} {target} {version}", f"Host: {host}", *lines, "Connection: close", "", ""]
    return "\r\n".join(fields).encode("latin-1")


def body(data: bytes, *lines: str, **options: str) -> bytes:
    return request("/", *lines, method="POST", **options) + data


CHUNKED = "Transfer-Encoding: chunked"
HELLO = b"5\r\nhello\r\n0\r\n\r\n"

VALID: dict[str, tuple[bytes, dict[str, Any]]] = {
    "nothing but a host": (
        request(),
        {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "QUERY_STRING": "", "SERVER_NAME": "h", "SERVER_PORT": "80"},
    ),
    "a method that nobody knows": (request(method="BREW"), {"REQUEST_METHOD": "BREW"}),
    "line feeds alone": (b"GET /p HTTP/1.1\nHost: h\nX-A: b\nConnection: close\n\n", {"HTTP_X_A": "b"}),
    "no blank behind the colon": (request("/", "X-A:b"), {"HTTP_X_A": "b"}),
    "blanks around a value": (request("/", "X-A: \t b \t "), {"HTTP_X_A": "b"}),
    "an empty value": (request("/", "X-A:"), {"HTTP_X_A": ""}),
    "names in any case": (request("/", "x-A: b", "COOKIE: c=d"), {"HTTP_X_A": "b", "HTTP_COOKIE": "c=d"}),
    "a name of odd characters": (request("/", "!#$%&'*+-.^`|~0: b"), {"HTTP_!#$%&'*+_.^`|~0": "b"}),
    "a name with an underscore is left out": (request("/", "X_A: b"), {"HTTP_X_A": None}),
    "bytes above 127 in a value": (request("/", "X-A: caf\xc3\xa9"), {"HTTP_X_A": "caf\xc3\xa9"}),
    "a name twice": (request("/", "X-A: 1", "X-B: 2", "X-A: 3"), {"HTTP_X_A": "1,3"}),
    "cookies twice": (request("/", "Cookie: a=1", "Cookie: b=2"), {"HTTP_COOKIE": "a=1; b=2"}),
    "an escaped path": (request("/a%20b/%c3%a9?q=%20"), {"PATH_INFO": "/a b/\xc3\xa9", "QUERY_STRING": "q=%20"}),
    "an escaped slash": (request("/a%2fb"), {"PATH_INFO": "/a/b"}),
    "an escaped NUL": (request("/a%00b"), {"PATH_INFO": "/a\x00b"}),
    "an escaped line end": (request("/a%0d%0ab"), {"PATH_INFO": "/a\r\nb"}),
    "a question mark alone": (request("/?"), {"PATH_INFO": "/", "QUERY_STRING": ""}),
    "two question marks": (request("/?a?b"), {"QUERY_STRING": "a?b"}),
    "a fragment": (request("/p#there"), {"PATH_INFO": "/p", "QUERY_STRING": ""}),
    "dots": (request("/a/../b/./c"), {"PATH_INFO": "/a/../b/./c"}),
    "slashes": (request("//a//b/"), {"PATH_INFO": "//a//b/"}),
    "slashes and nothing else": (request("///"), {"PATH_INFO": "///"}),
    "braces": (request("/{a}"), {"PATH_INFO": "/{a}"}),
    "a star": (request("*", method="OPTIONS"), {"REQUEST_METHOD": "OPTIONS", "PATH_INFO": "*"}),
    "HTTP/1.0 without a host": (b"GET / HTTP/1.0\r\n\r\n", {"SERVER_PROTOCOL": "HTTP/1.0", "HTTP_HOST": None}),
    "an empty host": (request(host=""), {"HTTP_HOST": "", "SERVER_NAME": "127.0.0.1"}),
    "a host with a port": (request(host="example.org:81"), {"SERVER_NAME": "example.org", "SERVER_PORT": "81"}),
    "an IPv6 host": (request(host="[::1]:81"), {"SERVER_NAME": "::1", "SERVER_PORT": "81"}),
    "a host with an underscore": (request(host="a_b.example"), {"SERVER_NAME": "a_b.example"}),
    # Mongrel2 removes a scheme, so that a target with a host (RFC 9112, section 3.2.2) cannot be told from a path. So
    # neither Host nor the path changes.
    "a target with its host": (
        request("http://other:81/p?q", host="mine"),
        {
            "PATH_INFO": "//other:81/p",
            "QUERY_STRING": "q",
            "HTTP_HOST": "mine",
            "SERVER_NAME": "mine",
            "SERVER_PORT": "80",
        },
    ),
    "a target with its host and no path": (
        request("http://other:81", host="mine"),
        {"PATH_INFO": "//other:81", "HTTP_HOST": "mine"},
    ),
    "a target with an address of IPv6": (
        request("http://[::1]:81/p", host="mine"),
        {"PATH_INFO": "//[::1]:81/p", "HTTP_HOST": "mine"},
    ),
    "a target with the same host": (
        request("https://mine/a%20b/", host="mine"),
        {"PATH_INFO": "//mine/a b/", "HTTP_HOST": "mine"},
    ),
    "a path that begins like a host": (
        request("//other/p", host="mine"),
        {"PATH_INFO": "//other/p", "HTTP_HOST": "mine"},
    ),
    "a path that begins like a host with a port": (
        request("//other:81/p", host="mine"),
        {"PATH_INFO": "//other:81/p", "HTTP_HOST": "mine", "SERVER_NAME": "mine", "SERVER_PORT": "80"},
    ),
    "a path that begins with the host": (
        request("//mine/admin", host="mine"),
        {"PATH_INFO": "//mine/admin", "HTTP_HOST": "mine"},
    ),
    # Bodies.
    "a body": (body(b"hello", "Content-Length: 5"), {"CONTENT_LENGTH": "5", "body": b"hello"}),
    "an empty body": (body(b"", "Content-Length: 0"), {"CONTENT_LENGTH": "0", "body": b""}),
    "a length with zeros in front": (body(b"hello", "Content-Length: 005"), {"body": b"hello"}),
    "a length twice alike": (body(b"hello", "Content-Length: 5", "Content-Length: 5"), {"body": b"hello"}),
    "a body of a GET": (request("/", "Content-Length: 5") + b"hello", {"REQUEST_METHOD": "GET", "body": b"hello"}),
    "a type twice": (
        body(b"hello", "Content-Length: 5", "Content-Type: a/b", "Content-Type: c/d"),
        {"CONTENT_TYPE": "a/b"},
    ),
    "chunks": (body(HELLO, CHUNKED), {"CONTENT_LENGTH": None, "body": b"hello"}),
    "chunks in capitals": (body(b"A\r\n0123456789\r\n0\r\n\r\n", CHUNKED), {"body": b"0123456789"}),
    "a chunk with an extension": (body(b"5;a=b\r\nhello\r\n0\r\n\r\n", CHUNKED), {"body": b"hello"}),
    "chunks with a trailer": (
        body(b"5\r\nhello\r\n0\r\nX-A: b\r\n\r\n", CHUNKED),
        {"body": b"hello", "HTTP_X_A": None},
    ),
    "no chunk": (body(b"0\r\n\r\n", CHUNKED), {"body": b""}),
}


# What the edge makes of some of them: it refuses them, or has a target's host.
OF_EDGE: dict[str, Differs] = {
    "line feeds alone": Differs("Lines that end with LF alone", 200, 400),
    "a fragment": Differs("A fragment in the target", 200, 400),
    "a length twice alike": Differs("A length that can be read in two ways", 200, 400),
    "a target with its host": Differs(
        "The absolute form",
        None,
        {"PATH_INFO": "/p", "QUERY_STRING": "q", "HTTP_HOST": "other:81", "SERVER_NAME": "other", "SERVER_PORT": "81"},
    ),
    "a target with its host and no path": Differs(
        "The absolute form", None, {"PATH_INFO": "/", "HTTP_HOST": "other:81"}
    ),
    "a target with an address of IPv6": Differs(
        "The absolute form", None, {"PATH_INFO": "/p", "HTTP_HOST": "[::1]:81"}
    ),
    "a target with the same host": Differs("The absolute form", None, {"PATH_INFO": "/a b/", "HTTP_HOST": "mine"}),
}


@pytest.mark.parametrize("name", VALID)
def test_an_application_is_given_what_a_client_said(front_end: FrontEnd, server: Server, name: str) -> None:
    """Whatever way the client chose to write it."""
    data, expected = VALID[name]
    other = front_end.truth(OF_EDGE.get(name))
    status = other if isinstance(other, int) else 200
    assert talk(server.port, data).startswith(b"HTTP/1.1 %d " % status), name
    if status != 200:
        assert not server.seen
        return
    expected = other if isinstance(other, dict) else expected
    (found,) = server.seen
    assert {key: found.get(key) for key in expected} == expected


HANDSHAKE = (
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


def handshake(*lines: str, version: str = "HTTP/1.1") -> bytes:
    return "\r\n".join([f"GET / {version}", "Host: h", *HANDSHAKE, *lines, "", ""]).encode()


# The first ones are refused by Mongrel2, those behind "ours" by greentx; most of these by the edge.
INVALID: dict[str, tuple[int | Differs, bytes]] = {
    "no version": (400, b"GET /\r\nHost: h\r\n\r\n"),
    "another version": (Differs("Other versions", 400, 200), request(version="HTTP/1.2")),
    "HTTP/2.0": (Differs("Other versions", 400, 505), request(version="HTTP/2.0")),
    "a version in small letters": (400, request(version="http/1.1")),
    "two blanks in the request line": (400, b"GET  / HTTP/1.1\r\nHost: h\r\n\r\n"),
    "a blank behind the request line": (400, b"GET / HTTP/1.1 \r\nHost: h\r\n\r\n"),
    "a blank in the target": (400, request("/a b")),
    "a line in front": (Differs("An empty line in front of a request", 400, 200), b"\r\n" + request()),
    "a method in small letters": (Differs("Methods that are tokens", 400, 200), request(method="get")),
    "a method with a hyphen": (Differs("Methods that are tokens", 400, 200), request(method="M-SEARCH")),
    "half an escape": (400, request("/%zz")),
    "bytes above 127 in the target": (400, request("/caf\xe9")),
    "a relative target": (Differs("Targets that are not paths", 404, 400), request("p")),
    "an authority": (Differs("CONNECT", 404, 501), request("h:80", method="CONNECT")),
    "a folded value": (400, request("/", "X-A: b\r\n c")),
    "a blank in front of the first name": (400, request("/", " X-A: b")),
    "a blank behind a name": (400, request("/", "X-A : b")),
    "a blank in a name": (400, request("/", "X A: b")),
    "a bracket in a name": (400, request("/", "X(A): b")),
    "a byte above 127 in a name": (400, request("/", "X\xe9: b")),
    "no name": (400, request("/", ": b")),
    "a NUL in a value": (400, request("/", "X-A: b\x00c")),
    "a DEL in a value": (400, request("/", "X-A: b\x7fc")),
    "a carriage return in a value": (400, request("/", "X-A: b\rc")),
    "another expectation": (417, request("/", "Expect: 200-ok")),
    "another spelling of 100-continue": (
        Differs("100-continue in any case", 417, 200),
        request("/", "Expect: 100-Continue"),
    ),
    # ours
    "a name without a colon": (400, request("/", "nocolon")),
    "a line end in a name": (400, request("/", "foo\r\nX-A: b")),
    "a control character in a name": (400, request("/", "X\x01A: b")),
    "two hosts": (400, request("/", "Host: other")),
    "a host twice": (400, request("/", "Host: h")),
    "two hosts in HTTP/1.0": (400, request("/", "Host: other", version="HTTP/1.0")),
    "no host": (400, b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n"),
    "no host of a body": (400, b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"),
    "a blank in the host": (400, request(host="a b")),
    "a path in the host": (400, request(host="a/b")),
    "a user in the host": (400, request(host="a@b")),
    "two hosts in one": (400, request(host="a, b")),
    "a byte above 127 in the host": (400, request(host="caf\xe9")),
    "a length and a coding": (400, body(HELLO[:5], "Content-Length: 5", CHUNKED)),
    # What Mongrel2 streams comes with its head. What it reads whole: below, and in test_edge_limits.
    "a length and a coding, of a body that is streamed": (400, body(b"5", "Content-Length: 300000", CHUNKED)),
    "no length and a coding": (400, body(HELLO, "Content-Length: 0", CHUNKED)),
    "a coding of HTTP/1.0": (400, body(HELLO, CHUNKED, version="HTTP/1.0")),
    "another coding": (Differs("Bodies in chunks", 400, 501), body(HELLO, "Transfer-Encoding: gzip, chunked")),
    "another spelling of chunked": (Differs("Bodies in chunks", 400, 200), body(HELLO, "Transfer-Encoding: Chunked")),
    "a coding twice": (400, body(HELLO, CHUNKED, CHUNKED)),
    "two lengths": (400, body(b"hello", "Content-Length: 5", "Content-Length: 6")),
    "a length that Mongrel2 drops": (400, body(b"hello", *["Content-Length: 5"] * 5, "Content-Length: 6")),
    "a coding that Mongrel2 drops": (400, body(HELLO, *[CHUNKED] * 5, "Transfer-Encoding: gzip")),
    "a host that Mongrel2 drops": (400, request("/", *["Host: h"] * 4, "Host: other")),
    "an option that Mongrel2 drops": (400, request("/", *["Connection: keep-alive"] * 5)),
    "a cookie that Mongrel2 drops": (400, request("/", *["Cookie: a=b"] * 5, "Cookie: c=d")),
    "an origin that Mongrel2 drops": (400, handshake("Connection: Upgrade", *["Origin: http://h"] * 6)),
    "a subprotocol that Mongrel2 drops": (400, handshake("Connection: Upgrade", *["Sec-WebSocket-Protocol: a"] * 6)),
    "a list of lengths": (400, body(b"hello", "Content-Length: 5, 5")),
    "a length with a sign": (400, body(b"hello", "Content-Length: +5")),
    "a length with an underscore": (400, body(b"hello", "Content-Length: 0_5")),
    "a hexadecimal length": (400, body(b"hello", "Content-Length: 0x5")),
    "a word for a length": (400, body(b"", "Content-Length: five")),
    "an empty length": (400, body(b"", "Content-Length:")),
    "an upgrade that says no-upgrade": (
        Differs("Handshakes that are not quite ones", 400, 200),
        handshake("Connection: no-upgrade, close"),
    ),
    "an upgrade that says upgraded": (
        Differs("Handshakes that are not quite ones", 400, 200),
        handshake("Connection: upgraded, close"),
    ),
    "an upgrade of HTTP/1.0": (
        Differs("Handshakes that are not quite ones", 400, 200),
        handshake("Connection: Upgrade", version="HTTP/1.0"),
    ),
    "an upgrade to two hosts": (400, handshake("Connection: Upgrade", "Host: other")),
}


@pytest.mark.parametrize("name", INVALID)
def test_no_application_sees_a_request_that_may_be_read_in_two_ways(
    front_end: FrontEnd, server: Server, name: str
) -> None:
    """One answer comes, and the connection ends; the edge reads some of them as RFC 9112 does, in one way."""
    status, data = INVALID[name]
    expected = front_end.truth(status)
    assert re.findall(rb"HTTP/1.1 (\d+) ", talk(server.port, data)) == [b"%d" % expected]
    assert len(server.seen) == (expected == 200)


def test_an_upgrade_says_so_among_other_options(server: Server) -> None:
    """In any case of letters."""
    for value in ("upgrade", "keep-alive, UPGRADE", "Upgrade,keep-alive"):
        with Browser(server) as browser:
            browser.send(handshake(f"Connection: {value}"))
            # The application is asked, as it may refuse.
            assert browser.receive().status == 200
    assert [one["HTTP_UPGRADE"] for one in server.seen] == ["websocket"] * 3


def test_a_length_and_a_coding_are_refused_as_soon_as_mongrel2_has_the_body(server: Server) -> None:
    """It waits for a body that it does not stream, and so does the client that has sent less of it."""
    with Browser(server) as browser:
        browser.send(body(HELLO, "Content-Length: 50", CHUNKED))
        browser.send(b"x" * (50 - len(HELLO)))
        assert browser.receive().status == 400 and browser.at_end()
    assert not server.seen
