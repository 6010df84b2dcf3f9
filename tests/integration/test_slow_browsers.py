"""Browsers that do not read: nobody else waits, and they are ended."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import gevent
import pytest
from gevent.hub import get_hub
from http_rig import Browser, only_connection, routes, serving, transceiver, wait_until
from websocket_rig import RawClient

from greentx.errors import ConnectionClosed
from greentx.wsgi import WSGIServer

STUCK = 10
PAGE = bytes(250_000)
ASKED = 300
# Nobody is to be delayed by more: longer than a busy machine needs, shorter than any wait for those who do not read.
LATE_SECONDS = 0.5


@pytest.fixture(params=[0, 1], ids=["no flow control", "flow control"])
def server(front_end, request):
    """One of each kind."""
    with front_end.started(routes(), settings={"download.flow_control": request.param}) as one:
        yield one


def page(conn, req):
    """A large answer, in the parts in which an application would write it; or a small one."""
    if req.path == "/large":
        conn.reply(req, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (20 * len(PAGE)))
        for _ in range(20):
            conn.reply(req, PAGE)
    elif req.method == "GET":
        conn.reply_http(req, "small")


def application(environ, start_response):
    """The same for WSGI."""
    if environ["PATH_INFO"] != "/large":
        start_response("200 OK", [("Content-Length", "5")])
        return [b"small"]
    start_response("200 OK", [("Content-Length", str(20 * len(PAGE)))])
    return (PAGE for _ in range(20))


@contextlib.contextmanager
def by_loop(server):
    """The loop of the README."""
    with transceiver(server) as trans:

        def loop():
            for _sid, conn, req in trans.recv():
                page(conn, req)

        looping = gevent.spawn(loop)
        yield
        assert not looping.dead
        trans.stop(1)
        looping.get(timeout=5)


@contextlib.contextmanager
def by_serve(server):
    """Ten handlers at once."""
    with transceiver(server) as trans, serving(trans, page, pool=10):
        yield


@contextlib.contextmanager
def by_wsgi(server):
    """Ten exchanges at once."""
    handler = server.handlers[0]
    listener = (handler.sender, handler.send_spec, handler.recv_spec)
    wsgi = WSGIServer(listener, application, spawn=10, log=None)
    wsgi.start()
    try:
        yield
    finally:
        wsgi.stop(1)


def p99(browser):
    """Ask many times; return the seconds within which 99 of 100 answers came."""
    took = []
    for _ in range(ASKED):
        began = time.monotonic()
        assert browser.get().body == b"small"
        took.append(time.monotonic() - began)
        gevent.sleep(0.005)  # between two requests of a browser
    return sorted(took)[ASKED * 99 // 100 - 1]


@pytest.mark.parametrize("serve", [by_loop, by_serve, by_wsgi])
def test_ten_browsers_that_never_read_delay_nobody(server, serve):
    """All ask for more than the kernel takes; one that reads is answered at once, hundreds of times."""
    with serve(server), contextlib.ExitStack() as stack:
        stuck = [stack.enter_context(Browser(server, receive_buffer=4096)) for _ in range(STUCK)]
        reading = stack.enter_context(Browser(server))
        assert reading.get().body == b"small"
        for browser in stuck:
            browser.ask("/large")
        # Once of three times: the machine may have others to serve.
        assert any(p99(reading) < LATE_SECONDS for _ in range(3))


def test_a_browser_that_does_not_read_is_ended_and_whoever_waits_for_it_hears_of_it(front_end):
    """Within twice send_timeout; one that reads slowly, but fast enough, gets all."""
    ended = []

    def handle(conn, req):
        try:
            page(conn, req)
        except ConnectionClosed as error:
            ended.append(str(error))
            raise

    with (
        front_end.started(routes(), settings={"download.flow_control": 1}) as server,
        transceiver(server, send_timeout=1.0, min_rate=50_000) as trans,
        serving(trans, handle, pool=2),
        Browser(server, receive_buffer=4096) as stuck,
        Browser(server, receive_buffer=65536) as slow,
    ):
        stuck.ask("/large")
        began = time.monotonic()
        stuck_ended = gevent.spawn(wait_until, lambda: ended, 10)
        slow.ask("/large")
        total = len(b"HTTP/1.1 200 OK\r\nContent-Length: 5000000\r\n\r\n") + 20 * len(PAGE)
        read = 0
        while read < total:
            read += len(slow.read(min(100_000, total - read)))
            gevent.sleep(0.02)  # it reads slowly: 5 MB a second at the most
        stuck_ended.get()
        assert time.monotonic() - began < 10
        assert len(ended) == 1 and "min_rate" in ended[0]
        assert only_connection(trans).status()["open_requests"] == 0


@pytest.mark.parametrize("flow_control", [0, 1])
def test_a_loop_that_answers_too_much_to_one_browser_ends_that_one(front_end, flow_control):
    """It is told so by an event, and goes on."""
    with (
        front_end.started(routes(), settings={"download.flow_control": flow_control}) as server,
        transceiver(server, max_outbox=1_000_000) as trans,
        Browser(server, receive_buffer=4096) as stuck,
        Browser(server) as other,
    ):
        events: Any = trans.recv(timeout=5)
        stuck.ask("/large")
        _, conn, req = next(events)
        page(conn, req)
        assert next(events)[2].method == "DISCONNECT"
        other.ask("/")
        page(*next(events)[1:])
        assert other.receive().body == b"small"
        events.close()


@pytest.mark.parametrize("sizes", [[400_000, 1], [20_000] * 30], ids=["400,000 and 1", "30 of 20,000"])
@pytest.mark.parametrize("flow_control", [0, 1])
def test_a_burst_of_broadcasts_ends_no_browser_that_reads(front_end, flow_control, sizes):
    """All of it comes, in its order."""
    with (
        front_end.started(routes(), settings={"download.flow_control": flow_control}) as server,
        transceiver(server) as trans,
        contextlib.closing(RawClient(server.port)) as client,
    ):
        wait_until(lambda: len(trans.websockets) == 1)
        for number, size in enumerate(sizes):
            assert trans.broadcast(bytes([number]) * size) == 1
        for number, size in enumerate(sizes):
            frame: Any = client.recv()
            assert frame.payload == bytes([number]) * size
        assert len(trans.websockets) == 1


def test_a_loop_in_another_thread_does_not_wait_for_a_browser_either(front_end):
    """Its answers are handed over to greenlets of the hub's thread, which stand for it."""
    with (
        front_end.started(routes(), settings={"download.flow_control": 1}) as server,
        transceiver(server) as trans,
        Browser(server, receive_buffer=4096) as stuck,
        Browser(server) as other,
    ):

        def loop():
            for _sid, conn, req in trans.recv():
                page(conn, req)

        thread = get_hub().threadpool.spawn(loop)
        stuck.ask("/large")
        assert other.get().body == b"small"
        trans.stop(1)
        thread.get(timeout=5)
