"""A handler and a browser that say, byte for byte, what a test tells them, with either front end between them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import zmq.green as zmq
from gevent import socket

from greentx.protocol.headers import text_value
from greentx.protocol.message import read_message

__all__ = ["SENDER", "Message", "RawBrowser", "RawHandler", "raw_handler"]

SENDER = "wire-1"

# Seconds for what comes within milliseconds, unless the machine is very busy.
PATIENCE = 20.0

_STATUS = re.compile(rb"HTTP/1\.1 (\d\d\d) ")

# What nearly every message has in it.
_USUAL = {"VERSION": "HTTP/1.1", "host": "h", "x-forwarded-for": "127.0.0.1"}
_SAID_ELSEWHERE = {"METHOD", "PATH", "URI", "PATTERN", "URL_SCHEME", "REMOTE_ADDR"}


class Message:
    """One that a handler got.

    Attributes:
        conn_id: As a number.
        path: ``@*`` for a notice.
        headers: By name; values are text, or lists of it.
    """

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        sender, conn_id, path, headers, body = read_message(raw)[:5]
        assert text_value(sender) == SENDER
        self.conn_id = int(conn_id)
        self.path = text_value(path)
        self.headers: dict[str, Any] = {text_value(name): _value(value) for name, value in headers.items()}
        self.body = bytes(body)

    def __str__(self) -> str:
        """What it says, without what nearly every message says: ``POST /a 'body' name=value``."""
        told = [str(self.headers["METHOD"]), self.path]
        if self.body:
            told.append(repr(self.body.decode("latin-1")))
        for name, value in sorted(self.headers.items()):
            if name not in _SAID_ELSEWHERE and _USUAL.get(name) != value:
                told.append(f"{name}={value}")
        return " ".join(told)


def _value(value: Any) -> Any:
    return [text_value(one) for one in value] if isinstance(value, list) else text_value(value)


class RawHandler:
    """PULL and XPUB of one handler entry, the first one."""

    def __init__(self, context: Any, server: Any) -> None:
        self.pull, self.publisher = context.socket(zmq.PULL), context.socket(zmq.XPUB)
        entry = server.handlers[0]
        self.pull.connect(entry.send_spec)
        self.publisher.connect(entry.recv_spec)
        assert self.publisher.poll(PATIENCE * 1000)
        assert self.publisher.recv().startswith(b"\x01")

    def receive(self) -> Message:
        """The next message, also a notice."""
        assert self.pull.poll(PATIENCE * 1000), "no message came"
        return Message(self.pull.recv())

    def request(self) -> Message:
        """The next message that is not a notice."""
        while (message := self.receive()).path == "@*":
            pass
        return message

    def send(self, raw: bytes) -> None:
        """Say it as it is."""
        self.publisher.send(raw)

    def reply(self, conn_id: int, body: bytes) -> None:
        """Say it to one connection; nothing closes it."""
        ids = b"%d" % conn_id
        self.send(b"%b %d:%b, %b" % (SENDER.encode(), len(ids), ids, body))


@contextlib.contextmanager
def raw_handler(server: Any) -> Iterator[RawHandler]:
    """A handler that is connected both ways."""
    context = zmq.Context()
    try:
        yield RawHandler(context, server)
    finally:
        context.destroy(0)


class RawBrowser:
    """One TCP connection."""

    def __init__(self, server: Any, *, receive_buffer: int | None = None) -> None:
        self.sock = socket.socket()
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(("127.0.0.1", server.port))
        self.data = b""

    def __enter__(self) -> RawBrowser:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        """Say it; it may be refused in the middle."""
        with contextlib.suppress(ConnectionError):
            self.sock.sendall(data)

    def read(self, text: bytes, count: int = 1) -> bytes:
        """Read until *text* has come so often, and return all that came."""
        while self.data.count(text) < count:
            piece = self.sock.recv(65536)
            assert piece, f"closed behind {self.data[-1000:]!r}"
            self.data += piece
        return self.data

    def read_to_end(self) -> bytes:
        """Read until the connection ends, in whatever way, and return all that came."""
        with contextlib.suppress(ConnectionError):
            while piece := self.sock.recv(65536):
                self.data += piece
        return self.data

    @property
    def statuses(self) -> list[int]:
        """Of the answers that have begun."""
        return [int(status) for status in _STATUS.findall(self.data)]
