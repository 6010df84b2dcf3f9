"""What clients can make a process hold: each bound is reached from outside, and the memory that it took is measured."""

from __future__ import annotations

import contextlib
import gc
import logging
import tracemalloc
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from free_ports import Server
from gevent.event import Event

from greentx import Transceiver
from greentx.errors import ConnectionClosed
from greentx.protocol.bounds import Queued, size_of
from greentx.protocol.request import parse_request
from greentx.protocol.requests import build_request

LOCAL = "127.0.0.1"
MIB = 1024 * 1024
BOMB = bytes(MIB)


class Measured:
    """Python's memory since the beginning of a test, in MiB."""

    @property
    def now(self) -> float:
        return tracemalloc.get_traced_memory()[0] / MIB

    @property
    def peak(self) -> float:
        return tracemalloc.get_traced_memory()[1] / MIB


@pytest.fixture
def memory() -> Iterator[Measured]:
    gc.collect()
    tracemalloc.start()
    try:
        yield Measured()
    finally:
        tracemalloc.stop()


@contextlib.contextmanager
def served(**options: Any) -> Iterator[tuple[Any, Transceiver]]:
    """A stand-in for Mongrel2, and a Transceiver behind it."""
    with Server("front", ip=LOCAL) as server:
        addresses = (LOCAL, server.push_port), (LOCAL, server.sub_port)
        with Transceiver("front", *addresses, rep_port=False, linger=0.2, ping_timeout=None, **options) as trans:
            trans.wait_ready(10)
            yield server, trans


def until(condition: Any, timeout: float = 20) -> None:
    """Let others run until *condition* holds."""
    with gevent.Timeout(timeout):
        while not condition():
            gevent.sleep(0.002)  # between two looks


def repeat(count: int, call: Any) -> None:
    for number in range(count):
        call(number)
        gevent.sleep(0)


@contextlib.contextmanager
def serving(trans: Transceiver, handler: Any = None, **options: Any) -> Iterator[None]:
    greenlet = gevent.spawn(trans.serve, handler, **options)
    try:
        yield
    finally:
        trans.stop(timeout=0)
        greenlet.join(5)


def warned_of(caplog: pytest.LogCaptureFixture, setting: str) -> bool:
    return any(record.levelno == logging.WARNING and setting in record.getMessage() for record in caplog.records)


def test_small_messages_that_inflate_wait_within_max_pending_bytes(memory, caplog):
    """Of 64 MiB, sent as 64 KB to an application that does not read, 8 MiB are in memory; all of it arrives later."""
    with served(max_pending_bytes=8 * MIB) as (server, trans):
        client = server.client("websocket")
        events = trans.recv()
        opened = gevent.spawn(lambda: next(events))
        client.handshake("/", deflate=True)
        assert opened.get()[2].method == "WEBSOCKET_CONNECT"
        sending = gevent.spawn(repeat, 64, lambda _: client.send(BOMB, timeout=20000))
        until(lambda: warned_of(caplog, "max_pending_bytes is 8388608"))
        gevent.sleep(0.1)  # nothing more must come
        assert 7 < memory.now < 16, f"{trans.pending} messages of 1 MiB wait, {memory.now:.1f} MiB"
        with gevent.Timeout(30):
            for _ in range(64):
                request = next(events)[2]
                assert request is not None and len(request.body) == MIB
        sending.get()
        assert memory.peak < 24, f"{memory.peak:.1f} MiB at the most"


def test_a_handler_that_does_not_receive_holds_max_queue_bytes(memory, caplog):
    """Its WebSocket is ended with 1013, and a WARNING names the setting."""
    done = Event()
    options = {"max_queue_bytes": 4 * MIB, "max_pending_bytes": 8 * MIB}
    with served(**options) as (server, trans), serving(trans, websocket=lambda ws: done.wait()):
        client = server.client("websocket")
        client.handshake("/", deflate=True)
        with contextlib.suppress(ConnectionClosed):
            for _ in range(64):
                client.send(BOMB, timeout=20000)
                gevent.sleep(0)
        until(lambda: client.closed)
        assert client.close_code == 1013
        assert warned_of(caplog, "max_queue_bytes is 4194304")
        assert memory.peak < 20, f"{memory.peak:.1f} MiB at the most"
        done.set()


def test_many_that_do_not_receive_hold_max_pending_bytes(memory, caplog):
    """Each within its own bound: then the next one that adds something is ended."""
    done = Event()
    options = {"max_queue_bytes": 4 * MIB, "max_pending_bytes": 16 * MIB}
    with served(**options) as (server, trans), serving(trans, websocket=lambda ws: done.wait()):
        clients = [server.client("websocket") for _ in range(20)]
        for client in clients:
            client.handshake("/", deflate=True)
        for client in clients:
            for _ in range(3):
                with contextlib.suppress(ConnectionClosed):
                    client.send(BOMB, timeout=20000)
                gevent.sleep(0)
        until(lambda: any(client.close_code == 1013 for client in clients))
        assert warned_of(caplog, "max_pending_bytes is 16777216")
        assert memory.peak < 40, f"{memory.peak:.1f} MiB at the most"
        done.set()


@pytest.mark.parametrize(
    ("size", "setting"), [(11 * MIB, "max_message_size is 1048576"), (MIB - 99, "max_queue_bytes is 4194304")]
)
def test_what_comes_before_the_101_is_bounded(memory, caplog, size, setting):
    """A client that does not wait for the decision is hung up on, by the limit of a message or by that of a queue."""
    done = Event()
    options = {"on_handshake": lambda request: done.wait() and None, "max_queue_bytes": 4 * MIB}
    with served(**options) as (server, trans), serving(trans, websocket=list):
        client = server.client("websocket")

        def shake_hands() -> None:
            with pytest.raises(ConnectionClosed):
                client.handshake("/", timeout=20000)

        shaking = gevent.spawn(shake_hands)
        until(lambda: trans.conn.sessions.connecting)
        headers = {"METHOD": "WEBSOCKET", "FLAGS": "0x82", "VERSION": "HTTP/1.1"}
        for _ in range(20):
            server.send(build_request("front", client.conn_id, "/", headers, bytes(size)), 20000)
        until(lambda: client.closed)
        assert warned_of(caplog, setting)
        assert memory.peak < 4 + 4 + 3 * size / MIB, f"{memory.peak:.1f} MiB at the most"
        shaking.get()
        done.set()


def test_a_client_that_pipelines_large_bodies_is_closed(memory, caplog):
    """Behind a request that waits for its answer the bodies of others have max_queue_bytes."""
    done = Event()
    with served(max_queue_bytes=4 * MIB) as (server, trans), serving(trans, lambda conn, req: done.wait()):
        client = server.client()
        with contextlib.suppress(ConnectionClosed):
            for _ in range(200):
                client.send("/", body=bytes(MIB // 4), timeout=20000)
                gevent.sleep(0)
        until(lambda: client.closed)
        assert warned_of(caplog, "max_queue_bytes is 4194304")
        assert memory.peak < 16, f"{memory.peak:.1f} MiB at the most"
        done.set()


def test_bodies_that_wait_for_the_pool_are_bounded(memory):
    """With a pool of one that is busy, and 200 clients: max_pending_bytes there, and as much for recv()."""
    done = Event()
    answered = []

    def handler(conn: Any, req: Any) -> None:
        done.wait()
        answered.append(req.conn_id)
        conn.reply_http(req, "done")

    with served(max_pending_bytes=4 * MIB) as (server, trans), serving(trans, handler, pool=1):
        clients = [server.client("http") for _ in range(200)]
        sending = gevent.spawn(repeat, 200, lambda at: clients[at].send("/", body=bytes(MIB // 4), timeout=20000))
        until(lambda: trans.pending)
        gevent.sleep(0.2)  # nothing more must come
        assert memory.now < 16, f"{memory.now:.1f} MiB wait"
        done.set()
        until(lambda: len(answered) == 200)
        sending.get()
        assert memory.peak < 24, f"{memory.peak:.1f} MiB at the most"


@pytest.mark.parametrize(
    "message",
    [
        build_request("u", 1, "/", {"METHOD": "GET", **{f"h{number}": "v" for number in range(2000)}}),
        build_request("u", 1, "/", {"METHOD": "POST"}, bytes(100_000)),
        build_request("u", 1, "@a", {"METHOD": "JSON"}, b"[" + b"[[]]," * 3000 + b"[]]"),
        build_request("u", 1, "@a", {"METHOD": "JSON"}, b"[" + b"{}," * 3000 + b"[]]"),
        build_request("u", 1, "/", {"METHOD": "GET", "many": ["v"] * 2000}),
    ],
    ids=["headers", "body", "lists", "dicts", "values"],
)
def test_a_request_is_counted_as_it_is_in_memory(memory, message):
    """No less than it takes, and not ten times as much."""
    before = memory.now
    request = parse_request(message)
    if request.method == "JSON":
        request.decode_data()
    taken = (memory.now - before) * MIB
    assert taken * 0.8 < size_of(request) < taken * 10
    assert size_of(request) < 64 * len(message)


def test_a_share_is_given_back_with_what_holds_it():
    """Nothing stays counted of a connection that is no more."""
    queued = Queued(per_connection=100, in_all=150)
    one, two = queued.share(), queued.share()
    assert one.add(1000) == ""  # the first has room, whatever its size
    assert "max_queue_bytes is 100" in one.add(1)
    one.remove(900)
    assert two.add(10) == ""
    assert "max_pending_bytes is 150" in two.add(50)
    assert queued.held == 110
    del one
    assert queued.held == 10


def test_the_bound_for_all_holds_for_many_that_hold_one_each():
    """Only the very first of all has room whatever its size, not the first of each connection."""
    queued = Queued(per_connection=100, in_all=150)
    shares = [queued.share() for _ in range(3)]
    assert not shares[0].add(120)
    assert "max_pending_bytes is 150" in shares[1].add(60)
    assert not shares[2].add(30)
    assert queued.held == 150


def test_what_an_ended_websocket_has_not_read_is_given_back_at_once():
    """Not when the collector of reference cycles runs: until then others would be ended for it."""

    def ignore(ws: Any) -> None:
        with contextlib.suppress(ConnectionClosed):
            ws.ping(timeout=0.1)
        over.wait()  # it does not receive, whatever comes

    over = Event()

    with served() as (server, trans):
        serving = gevent.spawn(trans.serve, lambda conn, req: None, websocket=ignore)
        gc.collect()
        gc.disable()
        try:
            client = server.client("websocket")
            client.handshake("/")
            client.send(bytes(100_000))
            queued = trans.shared().queued
            until(lambda: queued.held > 100_000)
            client.disconnect()
            until(lambda: not trans.websockets)
            over.set()
            until(lambda: not queued.held)
        finally:
            gc.enable()
            serving.kill()
