"""What Mongrel2 decides in front of a WSGI application: the list in README, and what our own front end does better."""

from __future__ import annotations

import socket as system_socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest
from gevent import socket
from gevent.event import Event
from wsgi_rig import Server, serving, talk

pytestmark = pytest.mark.mongrel2

CERTIFICATE = Path(__file__).parents[1] / "data" / "localhost.pem"

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\n%b\r\n"
CHUNKED = POST % b"Transfer-Encoding: chunked\r\n"

slow_began = Event()


def application(environ, start_response):
    """Say what came; /slow answers never, unless its client has gone."""
    body = environ["wsgi.input"].read()
    if environ["PATH_INFO"] == "/slow":
        slow_began.set()
        environ["greentx.disconnected"].wait(10)
    text = b"%b %b %b" % (environ["REQUEST_METHOD"].encode(), environ["PATH_INFO"][:8].encode(), body)
    start_response("200 OK", [("Content-Length", str(len(text)))])
    return [text]


@pytest.fixture(scope="module")
def front() -> Iterator[Server]:
    """One front end for all tests."""
    with serving("greentx", application) as server:
        talk(server.port, LAST)  # the first answer takes half a second
        yield server


def answers(server: Server, *data: bytes) -> list[tuple[int, bytes]]:
    """Return the code and the body of each answer until the server closes."""
    seen = []
    for one in talk(server.port, b"".join(data)).split(b"HTTP/1.1 ")[1:]:
        head, _, body = one.partition(b"\r\n\r\n")
        seen.append((int(head[:3]), body))
    return seen


def head(size: int) -> bytes:
    """Return a head of that many bytes."""
    start = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: "
    return start + b"a" * (size - len(start) - 4) + b"\r\n\r\n"


#: What a client sends, and the answer: of the application, or of Mongrel2 (400 and the end; b"" is the end alone).
CASES: dict[str, tuple[bytes, list[tuple[int, bytes]]]] = {
    "a chunk extension that fits into 8 characters": (
        CHUNKED + b"5;abcdef\r\nhello\r\n0\r\n\r\n" + LAST,
        [(200, b"POST / hello"), (200, b"GET /last ")],
    ),
    "trailers": (
        CHUNKED + b"5\r\nhello\r\n0\r\nX-A: b\r\n\r\n" + LAST,
        [(200, b"POST / hello"), (200, b"GET /last ")],
    ),
    "a chunk extension that does not": (CHUNKED + b"5;abcdefg\r\nhello\r\n0\r\n\r\n", []),
    "zeros in front of a chunk's size": (CHUNKED + b"000000005\r\nhello\r\n0\r\n\r\n", []),
    "a chunk without its CRLF": (CHUNKED + b"5\r\nhelloX0\r\n\r\n", []),
    "Chunked in another case": (
        POST % b"Transfer-Encoding: Chunked\r\n" + b"5\r\nhello\r\n0\r\n\r\n",
        [(400, b"Bad Request")],
    ),
    "another coding": (
        POST % b"Transfer-Encoding: gzip, chunked\r\n" + b"5\r\nhello\r\n0\r\n\r\n",
        [(400, b"Bad Request")],
    ),
    "a method of lower-case letters": (GET.replace(b"GET", b"patch"), [(400, b"Bad Request")]),
    "a method with a hyphen": (GET.replace(b"GET", b"M-SEARCH"), [(400, b"Bad Request")]),
    "a method of upper-case letters": (LAST.replace(b"GET", b"PROPFIND"), [(200, b"PROPFIND /last ")]),
    "a version that is neither 1.0 nor 1.1": (GET.replace(b"1.1", b"2.0"), [(400, b"Bad Request")]),
    "a folded header": (b"GET / HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n", [(400, b"Bad Request")]),
    "a space in front of the colon": (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", [(400, b"Bad Request")]),
    "a CRLF in front of a request": (b"\r\n" + GET, [(400, b"Bad Request")]),
    "100-Continue in another case": (
        POST % b"Expect: 100-Continue\r\nContent-Length: 1\r\n",
        [(417, b"Expectation Failed")],
    ),
    "OPTIONS *": (LAST.replace(b"GET /last", b"OPTIONS *"), [(200, b"OPTIONS * ")]),
    "CONNECT": (LAST.replace(b"GET /last", b"CONNECT x:443"), [(404, b"Not Found")]),
    "a head of nearly 64 KiB": (head(65000), [(200, b"GET / ")]),
    "a head above 64 KiB": (head(66000), [(400, b"Bad Request")]),
    "a path of 60,000 characters": (
        b"GET /" + b"a" * 60000 + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        [(200, b"GET /aaaaaaa ")],
    ),
    "7,000 headers": (
        LAST[:-2] + b"".join(b"a%d:\r\n" % number for number in range(7000)) + b"\r\n",
        [(200, b"GET /last ")],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_mongrel2_makes_of_what_clients_send(front, case):
    """Each line of the list in README, and what is just inside of it."""
    data, expected = CASES[case]
    assert answers(front, data) == expected


@pytest.mark.parametrize(
    ("behind", "answer"),
    [
        (b"\r\n", (400, b"Bad Request")),
        (GET.replace(b"GET /", b"GET /[x]"), (400, b"Bad Request")),
        (POST % b"Expect: x\r\n", (417, b"Expectation Failed")),
        (LAST.replace(b"GET /last", b"CONNECT x:443"), (404, b"Not Found")),
    ],
    ids=["a CRLF behind a body", "a URL", "an Expect", "a path without a route"],
)
def test_what_mongrel2_refuses_behind_a_request_ends_that_one_too(front, behind, answer):
    """Its own answer is the first one, and the last."""
    slow_began.clear()
    data = POST.replace(b"/", b"/slow", 1) % b"Content-Length: 5\r\n" + b"hello"
    with socket.create_connection(("127.0.0.1", front.port), 10) as sock:
        sock.sendall(data)
        assert slow_began.wait(10)
        sock.sendall(behind)
        received = b"".join(iter(lambda: sock.recv(65536), b""))
    assert int(received[9:12]) == answer[0] and received.endswith(answer[1])
    assert received.count(b"HTTP/1.1") == 1


def test_a_client_that_half_closes_gets_no_answer_that_takes_time(front):
    """Mongrel2 takes it for gone, and so is the application told."""
    slow_began.clear()
    with socket.create_connection(("127.0.0.1", front.port), 10) as sock:
        sock.sendall(GET.replace(b"/", b"/slow", 1))
        assert slow_began.wait(10)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(65536) == b""


@pytest.fixture(scope="module")
def tls() -> Iterator[Server]:
    """One front end for all versions."""
    with serving("greentx", application, certfile=CERTIFICATE, keyfile=CERTIFICATE) as server:
        yield server


@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1", "TLSv1_2", "TLSv1_3"])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_our_own_front_end_talks_tls_1_2_and_no_older_version(tls, version):
    """Mongrel2's library knows no 1.3. A name without a certificate of its own is no ERROR of the log."""
    context = ssl.create_default_context(cafile=CERTIFICATE)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = getattr(ssl.TLSVersion, version)

    def shake_hands() -> str | None:
        with system_socket.create_connection(("127.0.0.1", tls.port), 10) as raw:
            try:
                with context.wrap_socket(raw, server_hostname="localhost") as sock:
                    return sock.version()
            except ssl.SSLError:
                return None

    # In a thread: the standard library's TLS blocks.
    assert gevent.get_hub().threadpool.apply(shake_hands) == ("TLSv1.2" if version == "TLSv1_2" else None)
