"""Clients that mean harm, or are broken: ``python hostile_clients.py PORT SECONDS [NAME=NUMBER ...]``.

So many greenlets of each kind of :data:`KINDS` do what its docstring says, again and again, at a bounded rate: what is
looked for is what they make the front end do, not what a machine can bear. The last line of output is JSON: how often
each kind did it, and how the front end ended that (``answered STATUS``, ``closed``, ``reset``, ``refused``).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable

import gevent
from gevent import socket

HOST = "127.0.0.1"
HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
MASK = b"abcd"
#: Seconds within which an answer, or the end, is waited for.
PATIENCE = 5.0


class Hostile:
    """What all of them need.

    Attributes:
        port: Of the front end.
        counts: What came of it, by kind and in words.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.counts: dict[str, Counter[str]] = {}
        self._counting: Counter[str] = Counter()

    def connect(self, *, receive_buffer: int = 0) -> socket.socket:
        """Return a connection."""
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(PATIENCE)
        sock.connect((HOST, self.port))
        return sock

    def websocket(self, **options: int) -> socket.socket:
        """Return a connection with an open WebSocket."""
        sock = self.connect(**options)
        sock.sendall(HANDSHAKE)
        answer = b""
        while b"\r\n\r\n" not in answer:
            data = sock.recv(4096)
            if not data:
                raise ConnectionResetError("refused")
            answer += data
        return sock

    def run(self, kind: str) -> None:
        """Do it again and again."""
        self._counting = self.counts.setdefault(kind, Counter())
        counting = self._counting
        work = KINDS[kind]
        while True:
            try:
                counting[work(self)] += 1
            except TimeoutError:
                counting["no end"] += 1
            except ConnectionRefusedError:
                counting["refused"] += 1
                gevent.sleep(0.1)
            except OSError:
                counting["reset"] += 1
            # One comes after the other; at least so long, so that nobody is starved of the machine itself.
            gevent.sleep(random.uniform(0.1, 0.3))


def ended(sock: socket.socket) -> str:
    """Read to the end; return how it was."""
    got = b""
    while data := sock.recv(65536):
        got = got or data[:16]
    sock.close()
    return f"answered {got[9:12].decode('latin-1')}" if got.startswith(b"HTTP/1.") else "closed"


def random_bytes(one: Hostile) -> str:
    """Bytes of any kind, some behind the beginning of a request."""
    with one.connect() as sock:
        beginnings = (b"", b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nHost: a\r\n", b"\x16\x03\x01", b"@chat ", b"<a ")
        sock.sendall(random.choice(beginnings) + os.urandom(random.randrange(1, 5000)))
        sock.shutdown(socket.SHUT_WR)
        return ended(sock)


def random_frames(one: Hostile) -> str:
    """Bytes of any kind in place of frames."""
    with one.websocket() as sock:
        sock.sendall(os.urandom(random.randrange(1, 5000)))
        return ended(sock)


def slow_head(one: Hostile) -> str:
    """A head, a few bytes a second."""
    with one.connect() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n")
        while True:
            sock.sendall(b"X-A: b\r\n"[random.randrange(8) :] or b"X")
            gevent.sleep(random.uniform(1, 4))  # this is how slow it is


def slow_body(one: Hostile) -> str:
    """A body, a few bytes a second."""
    with one.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
        while True:
            sock.sendall(b"x")
            gevent.sleep(random.uniform(1, 4))  # this is how slow it is


def reset(one: Hostile) -> str:
    """A request, a part of one, or a WebSocket; and a reset at any moment."""
    with one.connect() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.sendall(
            random.choice(
                (
                    b"",
                    b"GET / HT",
                    b"GET /echo/a?size=300000 HTTP/1.1\r\nHost: a\r\n\r\n",
                    b"GET /echo/a?wait=0.05 HTTP/1.1\r\nHost: a\r\n\r\n",
                    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc",
                    HANDSHAKE,
                )
            )
        )
        gevent.sleep(random.random() * 0.05)  # at any moment
    return "left"


def pings(one: Hostile) -> str:
    """Thousands of pings at once, whose pongs it does not read."""
    with one.websocket(receive_buffer=4096) as sock:
        return flood(sock, b"\x89\x80" + MASK, 8000)


def small_frames(one: Hostile) -> str:
    """Thousands of messages of one byte."""
    with one.websocket() as sock:
        return flood(sock, b"\x81\x81" + MASK + b"a", 4000)


def fragments(one: Hostile) -> str:
    """A message of thousands of fragments that never ends."""
    with one.websocket() as sock:
        sock.sendall(b"\x01\x80" + MASK)
        return flood(sock, b"\x00\x80" + MASK, 20000)


def large_frames(one: Hostile) -> str:
    """A frame that announces more than may be sent."""
    with one.websocket() as sock:
        sock.sendall(b"\x82\xff" + struct.pack("!Q", random.choice((1 << 21, 1 << 31, (1 << 63) - 1))) + MASK)
        return flood(sock, bytes(1000), 1000)


def bad_frames(one: Hostile) -> str:
    """A frame that breaks the rules, behind a good one."""
    with one.websocket() as sock:
        bad = (
            b"\x81\x01a",
            b"\x83\x80abcd",
            b"\x80\x80abcd",
            b"\x09\x80abcd",
            b"\x88\x81abcd\x00",
            b"\x81\xfe\x00\x01",
        )
        sock.sendall(b"\x81\x81" + MASK + b"\x00" + random.choice(bad))
        return ended(sock)


def flood(sock: socket.socket, data: bytes, count: int) -> str:
    """Send it so often as fast as it is read, and wait for the end for a moment."""
    left = data * count
    while left:
        left = left[sock.send(left[:65536]) :]
    sock.settimeout(0.5)
    with contextlib.suppress(TimeoutError):
        return ended(sock)
    return "goes on"


def large_head(one: Hostile) -> str:
    """A head that never ends."""
    with one.connect() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n")
        for _ in range(100):
            sock.sendall(b"X-%d: %s\r\n" % (random.randrange(1000), b"a" * random.choice((1, 4000))))
        return ended(sock)


def many_fields(one: Hostile) -> str:
    """A head of as many fields as fit."""
    with one.connect() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a:\r\n" * 15000 + b"\r\n")
        return ended(sock)


def chunks(one: Hostile) -> str:
    """A body in chunks of one byte."""
    with one.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        return flood(sock, b"1\r\na\r\n", 20000)


def extensions(one: Hostile) -> str:
    """Chunks whose extensions are longer than they are."""
    with one.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        return flood(sock, b"1;" + b"a" * 200 + b"\r\na\r\n", 500)


def pipelined(one: Hostile) -> str:
    """Thousands of requests at once, whose answers it does not read."""
    with one.connect(receive_buffer=4096) as sock:
        return flood(sock, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 3000)


def never_reads(one: Hostile) -> str:
    """Asks for much, and reads nothing."""
    with one.connect(receive_buffer=4096) as sock:
        sock.sendall(b"GET /echo/a?size=2000000 HTTP/1.1\r\nHost: a\r\n\r\n")
        gevent.sleep(random.uniform(3, 7))  # and then it has gone; not all at once
    return "left"


def never_speaks(one: Hostile) -> str:
    """Connects, and says nothing."""
    with one.connect() as sock:
        sock.settimeout(120)
        return ended(sock)


def half_close(one: Hostile) -> str:
    """Asks, says that it sends nothing more, and waits."""
    with one.connect() as sock:
        sock.sendall(b"GET /echo/a?wait=0.02 HTTP/1.1\r\nHost: a\r\n\r\n")
        sock.shutdown(socket.SHUT_WR)
        return ended(sock)


def comes_and_goes(one: Hostile) -> str:
    """Connects, and ends at once."""
    one.connect().close()
    return "left"


#: Their names, and what one of them does once.
KINDS: dict[str, Callable[[Hostile], str]] = {
    function.__name__: function
    for function in (
        random_bytes,
        random_frames,
        slow_head,
        slow_body,
        reset,
        pings,
        small_frames,
        fragments,
        large_frames,
        bad_frames,
        large_head,
        many_fields,
        chunks,
        extensions,
        pipelined,
        never_reads,
        never_speaks,
        half_close,
        comes_and_goes,
    )
}


def main() -> None:
    """Do what the command line says."""
    port, seconds = int(sys.argv[1]), float(sys.argv[2])
    numbers = dict(word.split("=") for word in sys.argv[3:])
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    one = Hostile(port)
    greenlets = []
    for kind, number in numbers.items():
        for _ in range(int(number)):
            greenlets.append(gevent.spawn(one.run, kind))
            gevent.sleep(0.002)  # not all at once
    gevent.sleep(seconds)
    gevent.killall(greenlets)
    cpu = time.process_time()
    print(json.dumps({"cpu": round(cpu, 1), **one.counts}))


if __name__ == "__main__":
    main()
