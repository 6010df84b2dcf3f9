"""Clients of ``wsgi_node``'s applications: of Socket.IO, of WebSockets that count, and browsers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import gevent
from gevent.event import Event
from http_rig import Browser, wait_until
from websocket_peer import HEAD, Peer

#: Twenty clients of Socket.IO, each with a room; prints the processes that served them.
SOCKETIO_CLIENTS = """
import queue, socketio
from concurrent.futures import ThreadPoolExecutor

def run(number):
    sio, heard, room = socketio.Client(reconnection=False), queue.Queue(), f"room-{number}"
    sio.on("said", heard.put)
    url = "http://127.0.0.1:%(port)d"
    sio.connect(url, transports=%(transports)r, socketio_path="rooms/socket.io", wait_timeout=30)
    node = sio.call("enter", room, timeout=30)
    for count in range(5):
        assert sio.call("say", (room, f"{number} {count}"), timeout=30) == node
        assert heard.get(timeout=30) == f"{number} {count}"
    assert sio.transport() == %(transports)r[-1], sio.transport()
    sio.disconnect()
    return node

with ThreadPoolExecutor(20) as pool:
    print(*sorted(set(pool.map(run, range(20)))))
"""


class Conversation:
    """A client that sends numbers, one after the other, and reads the answers.

    Attributes:
        answers: Of each: the Node, whether it had adopted the WebSocket, its count, the number.
    """

    def __init__(self, port: int, path: str) -> None:
        self.peer = Peer(port, path)
        assert self.peer.head() == HEAD
        self.answers: list[list[str]] = []
        self._stop = False
        self._greenlet = gevent.spawn(self._run)

    def _run(self) -> None:
        while not self._stop:
            self.peer.send(str(len(self.answers) + 1))
            self.answers.append(str(self.peer.message()).split())
            gevent.sleep(0.005)  # between two messages of a person in a hurry

    def finish(self) -> None:
        """Have it read the answer to what it sent last."""
        self._stop = True
        self._greenlet.join(20)
        self._greenlet.get(block=False)

    def close(self) -> None:
        self._greenlet.kill()
        self.peer.sock.close()


@contextlib.contextmanager
def talking(server: Any, count: int, *paths: str) -> Iterator[list[Conversation]]:
    """So many conversations, once each has begun; they have finished behind it."""
    with contextlib.ExitStack() as stack:
        talks = []
        for number in range(count):
            talks.append(Conversation(server.port, paths[number % len(paths)]))
            stack.callback(talks[-1].close)
        wait_until(lambda: all(talk.answers for talk in talks), 30)
        yield talks
        for talk in talks:
            talk.finish()


@contextlib.contextmanager
def browsing(server: Any, count: int) -> Iterator[list[str]]:
    """So many browsers that ask again at once, also by POST: yields who answered. All of their requests succeed."""
    answers: list[str] = []
    stopping = Event()

    def browse(number: int) -> None:
        with Browser(server, timeout=30) as browser:
            while not stopping.is_set():
                method, body = (("GET", None), ("POST", b"x" * 1000))[number % 2]
                answer = browser.get("/who", method=method, body=body)
                assert answer.status == 200
                answers.append(answer.body.decode())

    browsers = [gevent.spawn(browse, number) for number in range(count)]
    try:
        yield answers
    finally:
        stopping.set()
        gevent.joinall(browsers, timeout=30, raise_error=True)
