"""What waits for handlers of the embedded front end, and what becomes of its connections at its end."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from functools import partial
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.event import Event
from http_rig import SENDER, Browser, serving, transceiver, wait_until

from greentx.edge import Edge, Handler
from greentx.errors import ForkError, ThreadError

WEBSOCKET = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
)


def edge(**options: Any) -> Edge:
    return Edge({"/": Handler(SENDER)}, **options)


def hello(conn: Any, req: Any) -> None:
    conn.reply_http(req, "hello")


def test_a_client_is_told_when_to_come_again():
    """By Retry-After, where no handler came in time."""
    with edge(no_handler_timeout=0.1) as front, Browser(front) as browser:
        answer = browser.get("/")
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        assert browser.at_end()


def test_what_waits_for_a_handler_is_bounded_in_bytes():
    """What is too much is answered 503 at once, and the others wait on."""
    size = 4_000_000
    with edge(settings={"limits.content_length": size}) as front, contextlib.ExitStack() as stack:
        browsers = [stack.enter_context(Browser(front, timeout=30)) for _ in range(17)]
        # 64 MiB are the most, so there is one too many.
        for one in browsers:
            one.ask("/", method="POST", body=bytes(size))
        asking = [gevent.spawn(one.receive) for one in browsers]
        with gevent.Timeout(20):
            refused = gevent.wait(asking, count=1)[0].get()
        assert (refused.status, refused.headers["retry-after"]) == (503, "5")
        with transceiver(front) as trans, serving(trans, hello):
            statuses = sorted(one.get(timeout=20).status for one in asking)
    assert statuses == [200] * 16 + [503]


def test_a_restart_of_a_handler_under_load_loses_nothing():
    """What comes meanwhile waits for the next one."""
    with edge() as front:
        going, may_ask = True, Event()
        may_ask.set()
        answers: list[int] = []
        asking: set[object] = set()

        def ask() -> None:
            with Browser(front, timeout=30) as browser:
                while going:
                    may_ask.wait()
                    asking.add(browser)
                    answers.append(browser.get("/").status)
                    asking.discard(browser)

        def enough(wanted: int) -> bool:
            return len(answers) >= wanted

        clients = [gevent.spawn(ask) for _ in range(10)]
        for _ in range(4):
            wanted = len(answers) + 100
            with transceiver(front) as trans, serving(trans, hello):
                wait_until(partial(enough, wanted), 20)
                # What is sent to one that goes, until it is seen to go, is lost as with any PUSH socket.
                may_ask.clear()
                wait_until(lambda: not asking, 20)
            gevent.sleep(0.1)  # the front end sees that it has gone, and nobody tells us
            may_ask.set()
            wait_until(lambda: len(asking) == len(clients), 20)
        going = False
        with transceiver(front) as trans, serving(trans, hello):
            gevent.joinall(clients, timeout=20, raise_error=True)
        assert all(one.dead for one in clients)
        assert set(answers) == {200}


def test_answers_that_are_due_are_waited_for_and_nothing_new_is_accepted():
    """However slowly a client reads; idle connections end at once."""
    begun, go_on = Event(), Event()

    def slow(conn: Any, req: Any) -> None:
        begun.set()
        go_on.wait(10)
        conn.reply_http(req, bytes(5_000_000))

    front = edge()
    with front, transceiver(front) as trans, serving(trans, slow):
        with Browser(front) as idle, Browser(front, receive_buffer=4096) as browser:
            browser.ask("/")
            assert begun.wait(10)
            stopping = gevent.spawn(front.stop, 20)
            assert idle.at_end()
            with socket.socket() as late:
                assert late.connect_ex(("127.0.0.1", front.port)) == errno.ECONNREFUSED
            go_on.set()
            assert len(browser.receive().body) == 5_000_000
            assert browser.at_end()
            stopping.get(timeout=10)
    assert not front.started


def test_websockets_are_told_that_the_server_goes():
    """With close code 1001."""
    opened = Event()

    def wait(ws: Any) -> None:
        opened.set()
        ws.receive()

    front = edge()
    with front, transceiver(front) as trans, serving(trans, hello, websocket=wait), Browser(front) as browser:
        browser.ask("/", *WEBSOCKET)
        assert opened.wait(10)
        while not browser.buffer.endswith(b"\r\n\r\n"):
            browser.buffer += browser.socket.recv(1)
        front.stop()
        assert browser.read(100_000).endswith(b"\x88\x12\x03\xe9the server stops")


def test_a_forked_child_lets_go_of_everything():
    """The parent serves on, also the connection that was there; and ends what it has, though the child lives on."""
    front = edge()
    with front, transceiver(front) as trans, serving(trans, hello), Browser(front) as browser:
        assert browser.get("/").status == 200
        mine, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                said = b"wrong"
                with pytest.raises(ForkError):
                    front.start()
                front.stop()
                gevent.sleep(0.05)
                said = b"quiet"
            finally:
                os.write(theirs, said)
                signal.pause()
        try:
            os.close(theirs)
            assert gevent.get_hub().threadpool.apply(os.read, (mine, 100)) == b"quiet"
            assert browser.get("/").status == 200
            with Browser(front) as second:
                assert second.get("/").status == 200
                front.stop()
                assert browser.at_end()
                assert second.at_end()
        finally:
            os.close(mine)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    # Its port is free, which the child would hold.
    again = edge(port=front.port)
    with again:
        pass


def test_another_thread_is_told_that_it_is_the_wrong_one():
    """Its greenlets belong to the thread that started it."""
    with edge() as front:

        def refused() -> bool:
            # In there, since the pool prints what is raised.
            for call in (front.start, front.stop):
                with pytest.raises(ThreadError):
                    call()
            return True

        assert gevent.get_hub().threadpool.apply(refused)
        assert front.started
