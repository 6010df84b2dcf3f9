"""A real Mongrel2, a Transceiver behind it, and browsers made of plain sockets."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import gevent
from gevent import socket

from greentx import Connection, Transceiver
from greentx.edge import Edge, Handler, Mongrel2
from greentx.protocol.http1_parser import ResponseParser

SENDER = "http-rig-1"

StartMongrel2 = Callable[..., Mongrel2]


class Browser:
    """One TCP connection to a server with a ``port``, and a ``host`` where it has one; calls wait *timeout* seconds."""

    def __init__(self, server: Any, *, timeout: float = 10.0, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(timeout)
        self.socket.connect((getattr(server, "host", "127.0.0.1"), server.port))
        self.buffer = b""

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *parts: str | bytes) -> None:
        self.socket.sendall(b"".join(part.encode("latin-1") if isinstance(part, str) else part for part in parts))

    def ask(
        self, path: str = "/", *lines: str, method: str = "GET", version: str = "HTTP/1.1", body: bytes | None = None
    ) -> None:
        """Send one request; *lines* are header fields."""
        fields = [f"{method} {path} {version}", "Host: localhost", *lines]
        if body is not None:
            fields.append(f"Content-Length: {len(body)}")
        self.send("".join(f"{field}\r\n" for field in fields), "\r\n", body or b"")

    def receive(self, method: str = "GET", parser: ResponseParser | None = None) -> ResponseParser:
        """Read one response, with *parser* where the caller wants to look at a part of it, too."""
        parser = parser or ResponseParser(method)
        data, self.buffer = self.buffer, b""
        if data:
            parser.feed(data)
        while not parser.complete:
            data = self.socket.recv(65536)
            if data:
                parser.feed(data)
            else:
                parser.close()
        self.buffer = parser.trailing
        return parser

    def get(self, path: str = "/", *lines: str, method: str = "GET", **options: Any) -> ResponseParser:
        """Ask, and read the answer."""
        self.ask(path, *lines, method=method, **options)
        return self.receive(method)

    def read(self, count: int) -> bytes:
        """Read exactly so many bytes, fewer only at the end of the connection."""
        while len(self.buffer) < count:
            data = self.socket.recv(65536)
            if not data:
                break
            self.buffer += data
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data

    def at_end(self) -> bool:
        """Wait for the next byte, or for the end; True for the end."""
        return not self.buffer and self.socket.recv(1) == b""


@contextlib.contextmanager
def transceiver(server: Mongrel2 | Edge, **options: Any) -> Iterator[Transceiver]:
    """A Transceiver for the first handler of *server*, which has subscribed."""
    handler = server.handlers[0]
    options = {"rep_port": False, "connect_timeout": 5.0, "linger": 0.5, **options}
    with Transceiver(handler.sender, handler.send_spec, handler.recv_spec, **options) as trans:
        yield trans


@contextlib.contextmanager
def serving(trans: Transceiver, handler: Any = None, **options: Any) -> Iterator[gevent.Greenlet]:
    """Run ``serve()`` in a greenlet; an exception of it fails the test."""
    greenlet = gevent.spawn(trans.serve, handler, **options)
    gevent.sleep(0)  # or it would begin after the end
    try:
        yield greenlet
    finally:
        trans.stop(5)
        greenlet.join(5)
        assert greenlet.dead
        if not isinstance(greenlet.value, gevent.GreenletExit):
            greenlet.get()


def routes(protocol: str = "tnetstring", **options: Any) -> dict[str, Handler]:
    """All of HTTP, JSON sockets under ``@chat`` and XML ones under ``<chat``."""
    handler = Handler(SENDER, protocol=protocol, **options)
    return {"/": handler, "@chat": handler, "<chat": handler, "@*": handler}


def only_connection(trans: Transceiver) -> Connection:
    """Its one connection set."""
    (connection,) = trans.connections.values()
    return connection


def wait_until(condition: Callable[[], object], timeout: float = 5.0) -> None:
    """Let others run until *condition* holds."""
    with gevent.Timeout(timeout):
        while not condition():
            gevent.sleep(0.002)
