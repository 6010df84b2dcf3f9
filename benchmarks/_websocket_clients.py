"""Cheap WebSocket clients: raw sockets of one process, which send frames that were built before the clock runs.

They do as little as they can: what they need is not needed by the server, on a machine with few processors. What comes
back is compared with what was sent, byte by byte; where the server compresses it, each connection's first message is.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import struct
import time
import zlib
from array import array
from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import NamedTuple

import _traffic

from greentx.protocol.websocket.handshake import new_key, request_headers

_DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate"
_TIMEOUT = 30.0
_TEXT, _RSV1 = 0x81, 0x40

# What is in memory of different messages at the most.
_MESSAGES = 16384
_BYTES = 8_000_000


class Failed(Exception):
    """A server did not do what it should."""


class Frame(NamedTuple):
    """One message on the wire.

    Attributes:
        payload: What it says.
        sent: The client's frame, masked.
        echo: The server's frame with the same payload, not compressed.
    """

    payload: bytes
    sent: bytes
    echo: bytes


def _head(first: int, size: int, mask: int) -> bytes:
    if size < 126:
        return struct.pack("!BB", first, mask | size)
    if size < 65536:
        return struct.pack("!BBH", first, mask | 126, size)
    return struct.pack("!BBQ", first, mask | 127, size)


def _masked(first: int, payload: bytes, key: bytes) -> bytes:
    size = len(payload)
    keys = (key * (size // 4 + 1))[:size]
    data = (int.from_bytes(payload, "big") ^ int.from_bytes(keys, "big")).to_bytes(size, "big")
    return _head(first, size, 0x80) + key + data


def handshakes(traffic: str, count: int) -> list[list[str]]:
    """Return the lines of *count* handshakes, each with a path, query, cookie and headers of its own, or of one."""
    return list(map(_handshake, _traffic.requests(traffic, count)))


def _handshake(one: _traffic.HttpRequest) -> list[str]:
    lines = [f"GET {one.target} HTTP/1.1", "Host: www.example.org"]
    for name, values in {**one.handshake_headers(), **request_headers(new_key())}.items():
        lines += [f"{name}: {value}" for value in ([values] if isinstance(values, str) else values)]
    return lines


def frames(traffic: str, size: int, *, deflate: bool = False) -> list[Frame]:
    """Return text messages of *size* bytes: many different ones, or one."""
    rng = random.Random(size)
    found = []
    for text in _traffic.texts(traffic, size, max(64, min(_MESSAGES, _BYTES // size)), exact=True):
        payload = data = text.encode()
        first = _TEXT
        if deflate:
            # Each on its own, which any window allows.
            packer = zlib.compressobj(6, zlib.DEFLATED, -15)
            data = (packer.compress(payload) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]
            first |= _RSV1
        sent = _masked(first, data, rng.getrandbits(32).to_bytes(4, "big"))
        found.append(Frame(payload, sent, _head(_TEXT, size, 0) + payload))
    return found


_CLOSE = _masked(0x88, struct.pack("!H", 1000), b"\1\2\3\4")


class Clients:
    """Connections to one server.

    Args:
        port: Where it listens on this host.
        opening: What they open with, in turn: of :func:`handshakes`.
        count: How many.
        deflate: Ask for permessage-deflate.
        first: The number of the first one: it opens with that of *opening*.

    Attributes:
        count: As given.
    """

    def __init__(
        self, port: int, opening: Sequence[list[str]], count: int, *, deflate: bool = False, first: int = 0
    ) -> None:
        self.count = count
        self._sockets: list[socket.socket] = []
        self._poll = select.epoll()
        self._deflate = deflate
        self._verified: set[int] = set()
        self._sent: Iterator[Frame] = iter(())
        try:
            for number in range(first, first + count):
                self._sockets.append(self._open(port, opening[number % len(opening)]))
        except OSError as error:
            self.close()
            raise Failed(f"connection {len(self._sockets) + 1} of {count}: {error}") from error
        self._by_number = {sock.fileno(): sock for sock in self._sockets}

    def _open(self, port: int, lines: list[str]) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", port), _TIMEOUT)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        lines = [*lines, *([_DEFLATE] if self._deflate else []), "", ""]
        sock.sendall("\r\n".join(lines).encode("latin-1"))
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            data = sock.recv(65536)
            if not data:
                break
            head += data
        if b" 101 " not in head.partition(b"\r\n")[0]:
            raise OSError(f"the handshake was answered {head[:80]!r}")
        if self._deflate and b"permessage-deflate" not in head:
            raise OSError("the server does not compress")
        self._poll.register(sock, select.EPOLLIN)
        return sock

    def use(self, messages: list[Frame]) -> None:
        """Send these from now on, one after the other."""
        self._sent = cycle(messages)

    def lockstep(self, rounds: int) -> array[float]:
        """Send a message over each connection, wait for all echoes, and again; return the seconds that each took.

        Raises ``Failed`` for an answer that is wrong or does not come, ``OSError`` for a connection that broke.
        """
        latencies = array("d")
        now, number = time.perf_counter, socket.socket.fileno
        for _ in range(rounds):
            waiting: dict[int, tuple[Frame, float]] = {}
            for sock in self._sockets:
                frame = next(self._sent)
                waiting[number(sock)] = frame, now()
                sock.sendall(frame.sent)
            self._collect(waiting, latencies)
        return latencies

    def told(self, frame: Frame) -> None:
        """Send a message over the first connection and wait until all have got it."""
        self._sockets[0].sendall(frame.sent)
        self._collect({sock.fileno(): (frame, 0.0) for sock in self._sockets}, array("d"))

    def _collect(self, waiting: dict[int, tuple[Frame, float]], latencies: array[float]) -> None:
        """Read until each connection has got its message."""
        now = time.perf_counter
        partial: dict[int, bytes] = {}
        while waiting:
            ready = self._poll.poll(_TIMEOUT)
            if not ready:
                raise Failed(f"{len(waiting)} connections got no answer within {_TIMEOUT:g} s")
            for number, _ in ready:
                data = self._by_number[number].recv(262144)
                if number not in waiting:
                    raise Failed(f"a connection got {data[:40]!r}, which nobody asked for")
                frame, sent_at = waiting[number]
                if data != frame.echo:
                    data = partial.pop(number, b"") + data
                    if not data or not self._is_echo(number, data, frame):
                        partial[number] = self._beginning(data)
                        continue
                latencies.append(now() - sent_at)
                del waiting[number]

    @staticmethod
    def _beginning(data: bytes) -> bytes:
        if not data:
            raise Failed("the server closed a connection")
        return data

    def _is_echo(self, number: int, data: bytes, frame: Frame) -> bool:
        """Whether *data* is the whole answer. Raises ``Failed`` where it is another one."""
        if len(data) < 2 or len(data) < (offset := 2 + {126: 2, 127: 8}.get(data[1], 0)):
            return False
        size = data[1] if offset == 2 else int.from_bytes(data[2:offset], "big")
        if len(data) < offset + size:
            return False
        if not data[0] & _RSV1:
            if data != frame.echo:
                raise Failed(f"a connection got {data[:40]!r} for {frame.payload[:40]!r}")
        elif number not in self._verified:
            self._verified.add(number)
            # The first message refers to nothing before it.
            if zlib.decompressobj(-15).decompress(data[offset:] + b"\0\0\xff\xff") != frame.payload:
                raise Failed(f"a compressed echo is not {frame.payload[:40]!r}")
        return True

    def close(self) -> None:
        """Close all, with a close frame."""
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.sendall(_CLOSE)
            sock.close()
        self._poll.close()
