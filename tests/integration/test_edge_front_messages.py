"""The messages that the embedded front end makes, beside those of the real Mongrel2 for the same bytes of a browser.

What is compared: the prefix, the names and values of all headers, the order of the server's own ones, and the body. The
client's come in the order of a hash from Mongrel2, and in that of their arrival from the embedded one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
import zmq.green as zmq
from gevent import socket

from greentx.edge import Edge, Handler, Mongrel2
from greentx.protocol.headers import text_value
from greentx.protocol.message import read_message
from greentx.protocol.websocket.frames import Opcode, build_frame

pytestmark = pytest.mark.mongrel2

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
UPGRADE = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n"
MASK = b"abcd"


def frame(payload: bytes, opcode: int, rsvd: int = 0, *, fin: bool = True) -> bytes:
    return build_frame(payload, opcode, rsvd, fin=fin, mask=MASK)


SAME: dict[str, tuple[bytes, int]] = {
    "a browser's": (
        b"GET /a/b?x=1&y HTTP/1.1\r\nHost: LocalHost:80\r\nCookie: a=b\r\nCookie: c=d\r\nX-Forwarded-For: 9.9\r\n\r\n",
        1,
    ),
    "a query that is empty": (b"GET /? HTTP/1.1\r\nHost: h\r\n\r\n", 1),
    "a route with a slash": (b"GET /two HTTP/1.1\r\nHost: h\r\nMETHOD: x\r\nURI: /z\r\n\r\n", 1),
    "a route with a pattern": (b"GET /pat/abc.xyz HTTP/1.1\r\nHost: h\r\n\r\n", 1),
    "no path is decoded": (b"GET //a/../%20%2f?%41 HTTP/1.1\r\nHost: h\r\n\r\n", 1),
    "a body": (
        b'POST /form HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nX-T: a\tb "q" \\ \xff\r\nEmpty:\r\n\r\na\0b',
        1,
    ),
    "an empty body": (b"PUT /form HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n", 1),
    "all of the server": (b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", 1),
    "HTTP/1.0 without a host": (b"GET /x HTTP/1.0\r\n\r\n", 1),
    "a name five times": (b"GET /c HTTP/1.1\r\nHost: h\r\n" + b"M: 1\r\nm: 2\r\n" * 2 + b"M: 5\r\n\r\n", 1),
    "two of one connection": (b"GET /1 HTTP/1.1\r\nHost: h\r\n\r\nGET /2 HTTP/1.1\r\nHost: h\r\n\r\n", 2),
    "a WebSocket": (
        f"GET /ws?q=1 HTTP/1.1\r\nHost: h\r\n{UPGRADE}Origin: o\r\nX-0x00: 0x00\r\n\r\n".encode()
        + frame(b"hi", Opcode.TEXT)
        + frame(b"a", Opcode.BINARY, 4, fin=False)
        + frame(b"ping", Opcode.PING)
        + frame(b"b", Opcode.CONT)
        + frame(b"", Opcode.PONG)
        + frame(b"\x03\xe8", Opcode.CLOSE),
        6,
    ),
}

Ask = Callable[[bytes, int], list[bytes]]


@contextlib.contextmanager
def _server(server: Edge | Mongrel2) -> Iterator[Ask]:
    context = zmq.Context()
    try:
        with server, context.socket(zmq.PULL) as pull:
            (only,) = server.handlers
            pull.connect(str(only.send_spec))

            def ask(request: bytes, count: int) -> list[bytes]:
                messages: list[bytes] = []
                with socket.create_connection(("127.0.0.1", server.port), 10) as sock:
                    sock.sendall(request)
                    while len(messages) < count:
                        assert pull.poll(10_000)
                        messages.append(pull.recv())
                assert pull.poll(10_000)
                return [*messages, pull.recv()]

            yield ask
    finally:
        context.destroy(0)


@pytest.fixture(params=["tnetstring", "json"])
def both(request: pytest.FixtureRequest) -> Iterator[tuple[Ask, Ask]]:
    """The embedded front end and Mongrel2, with the same routes."""
    handler = Handler("side-by-side", protocol=request.param)
    routes = dict.fromkeys(["/", "/two/", "/pat/([a-z]+).x", "*"], handler)
    with _server(Edge(routes, half_close_timeout=0.0)) as edge, _server(Mongrel2(routes)) as mongrel2:
        yield edge, mongrel2


def own_order(message: bytes) -> list[str]:
    """The server's own names in the order of the message; those of the client are one place."""
    names = [text_value(name) for name in read_message(message)[3]]
    made: list[str] = []
    for name in names:
        is_own = name.isupper() and name != "FLAGS"
        if is_own or made[-1:] != ["..."]:
            made.append(name if is_own else "...")
    return made


def test_handlers_get_what_mongrel2_sends_them(both):
    """The notice behind each, too."""
    edge, mongrel2 = both
    for name, (request, count) in SAME.items():
        for ours, theirs in zip(edge(request, count), mongrel2(request, count), strict=True):
            assert own_order(ours) == own_order(theirs), name
            assert read_message(ours) == read_message(theirs), name
            assert len(ours) == len(theirs), name
