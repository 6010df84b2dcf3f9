"""What is written keeps its place and its life: behind what was written before, never for browsers of the next server.

All of it at a full pipe, where whoever writes waits: what is written at once has no time to be wrong.
"""

from __future__ import annotations

import contextlib
import threading
import time
import zlib

import gevent
import pytest
import zmq
from plain_server import PlainServer, until
from stand_in import HTTP

from greentx import Transceiver
from greentx.errors import GreentxError
from greentx.protocol.requests import build_request
from greentx.protocol.websocket.frames import FrameParser

SENDER = "plain"
UPGRADE = {
    "VERSION": "HTTP/1.1",
    "METHOD": "WEBSOCKET_HANDSHAKE",
    "host": "x",
    "upgrade": "websocket",
    "connection": "upgrade",
    "sec-websocket-version": "13",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
}
DEFLATE = {"sec-websocket-extensions": "permessage-deflate"}


@pytest.fixture
def server():
    """One that reads nothing before it is told to."""
    with PlainServer(reads=False) as one:
        yield one


@pytest.fixture
def trans(server):
    """A Transceiver that serves it, and waits as long as it takes."""
    with transceiver(server) as one:
        yield one


def transceiver(server, **options):
    options = {"rep_port": False, "ping_timeout": None, "linger": 0, "send_timeout": None, **options}
    return Transceiver(SENDER, server.push_endpoint, server.sub_endpoint, connect_timeout=5, **options)


def ask(server, conn_id, **headers):
    """A browser asks."""
    server.push.send(build_request(SENDER, conn_id, "/", {**HTTP, **headers}))


def open_websockets(server, trans, *conn_ids, deflate=()):
    """Browsers open WebSockets; those in *deflate* compress."""
    known = len(trans.websockets)
    for conn_id in conn_ids:
        headers = {**UPGRADE, **(DEFLATE if conn_id in deflate else {})}
        server.push.send(build_request(SENDER, conn_id, "/", headers, b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="))
    until(lambda: len(trans.websockets) == known + len(conn_ids))


@contextlib.contextmanager
def full_pipe(trans):
    """Fill the pipe to the server; who fills it has gone at the end."""
    writer = trans.conn.link.writer

    def fill():
        with contextlib.suppress(GreentxError):
            for number in range(20_000):
                writer.write(SENDER, str(1_000_000 + number), bytes(20_000))

    filling = gevent.spawn(fill)
    until(lambda: writer.pipe_full)
    gevent.sleep(0.2)  # ZeroMQ and the kernel may have some room yet, of which nobody is told
    try:
        yield
    finally:
        filling.kill()


def messages(server, conn_id):
    """The WebSocket messages that a browser got, inflated in their order, and closes as their payload."""
    data = server.bodies(str(conn_id).encode())
    data = data[data.index(b"\r\n\r\n") + 4 :] if data.startswith(b"HTTP/") else data
    inflate, found = zlib.decompressobj(-15), []
    for frame in FrameParser(require_mask=False).feed(data):
        found.append(inflate.decompress(frame.payload + b"\0\0\xff\xff") if frame.rsvd else frame.payload)
    return found


def restart(server):
    """End the server and start the next one at its endpoints, while no greenlet runs: it is there when they do."""
    endpoints = server.push_endpoint, server.sub_endpoint
    gevent.killall(server.greenlets)
    server.context.destroy(0)
    new = PlainServer(endpoints=endpoints, reads=False, sender=SENDER.encode())
    for _ in range(40):
        time.sleep(0.02)  # between two looks
        new.sub.getsockopt(zmq.EVENTS)  # a socket that nobody asks does not send its subscription
    return new


def blocked(*calls):
    """Begin each call in a greenlet, one after the other; all of them wait."""
    waiting = []
    for call in calls:
        waiting.append(gevent.spawn(call))
        gevent.sleep(0.01)  # until it waits in there, which nobody is told
    assert not any(greenlet.dead for greenlet in waiting)
    return waiting


def test_broadcasts_and_messages_to_one_keep_the_order_of_the_calls(server, trans):
    """Though a broadcast is several messages, one for each way to compress: a window would be garbled for good."""
    open_websockets(server, trans, 1, 2, 3, deflate=(2, 3))
    conn = trans.conn
    texts = [b"%d " % number + b"the same words again and again " * 20 for number in range(6)]
    with full_pipe(trans):
        waiting = blocked(
            lambda: trans.broadcast(texts[0].decode()),
            lambda: conn.deliver_websocket(SENDER, [2], texts[1]),
            lambda: trans.broadcast(texts[2].decode()),
            lambda: conn.deliver_websocket(SENDER, [2], texts[3]),
            lambda: conn.deliver_websocket(SENDER, [2, 3], texts[4]),
        )
    server.read()
    gevent.joinall(waiting, timeout=20, raise_error=True)
    conn.deliver_websocket(SENDER, [2], texts[5])
    until(lambda: len(messages(server, 2)) == 6, 20)
    assert messages(server, 2) == texts
    until(lambda: len(messages(server, 1)) == 2, 20)
    assert messages(server, 1) == [texts[0], texts[2]]


def test_nothing_goes_out_behind_our_own_close_frame(server, trans):
    """A broadcast that was called before keeps its place before it; one that is called later does not go there."""
    open_websockets(server, trans, 1, 2, 3, deflate=(2,))
    entry = trans.websockets.get((SENDER, "2"))
    with full_pipe(trans):
        waiting = blocked(lambda: trans.broadcast("before"))
        trans.conn.sessions.close(entry, 1000)
        waiting += blocked(lambda: trans.broadcast("behind"))
    server.read()
    gevent.joinall(waiting, timeout=20, raise_error=True)
    until(lambda: messages(server, 3) == [b"before", b"behind"], 20)
    assert messages(server, 2) == [b"before", b"\x03\xe8"]


@pytest.mark.parametrize("what", ["broadcast", "end", "deliver", "json", "http"])
def test_what_waits_while_the_server_restarts_reaches_nobody_of_the_next_one(server, trans, what):
    """The numbers are given away again: to WebSockets, to requests, to streams."""
    open_websockets(server, trans, 1, 2, 3, deflate=(2,))
    events = trans.recv(timeout=5)
    ask(server, 4)
    ask(server, 5)
    until(lambda: len(trans.conn.link.life.requests.heads) == 2)
    many = [4, 5, 1, 2, 3, 6]
    calls = {
        "broadcast": lambda: trans.broadcast("old"),
        "end": lambda: trans.conn.sessions.close_all(1001),
        "deliver": lambda: trans.conn.deliver(SENDER, many, b"old"),
        "json": lambda: trans.conn.deliver_json(SENDER, many, "old"),
        "http": lambda: trans.conn.deliver_http(SENDER, many, "old"),
    }
    with full_pipe(trans):
        waiting = blocked(calls[what])
        new = restart(server)
        # Strangers, before the one that waited runs.
        for conn_id in (4, 5):
            ask(new, conn_id)
        gevent.joinall(waiting, timeout=5, raise_error=True)
    with new:
        if what != "end":  # after which nobody is let in
            open_websockets(new, trans, 1, 2, 3)
        until(lambda: len(trans.conn.link.life.requests.heads) == 2)
        new.read()
        trans.conn.deliver_http(SENDER, [4, 5], "new")
        until(lambda: new.bodies(b"5").endswith(b"new"))
        gevent.sleep(0.1)  # what must not happen has no event
        assert not any(b"old" in reply or reply.endswith(b", ") for reply in new.replies)
        assert len(trans.websockets) == (0 if what == "end" else 3)
        events.close()
        trans.stop()


def test_deliveries_keep_the_order_of_the_calls(server, trans):
    """Though the first of the numbers has an open request, whose answer is another message, which waits."""
    events = trans.recv(timeout=5)
    ask(server, 1)
    next(events)
    with full_pipe(trans):
        waiting = blocked(
            lambda: trans.conn.deliver(SENDER, [1, 2, 3], b"first "),
            lambda: trans.conn.deliver(SENDER, [2, 3], b"second "),
            lambda: trans.conn.deliver(SENDER, [1, 3], b"third"),
        )
    server.read()
    gevent.joinall(waiting, timeout=20, raise_error=True)
    until(lambda: server.bodies(b"3") == b"first second third", 20)
    assert server.bodies(b"2") == b"first second "
    assert server.bodies(b"1") == b"first third"
    events.close()


def test_a_server_whose_pipe_is_full_holds_up_no_other(server, trans):
    """A broadcast to both goes out to the second one at once; what is for the first one waits without its caller."""
    with PlainServer(sender=b"other") as other:
        trans.add_connection("other", other.push_endpoint, other.sub_endpoint).wait_ready(5)
        open_websockets(server, trans, 1)
        other.push.send(build_request("other", 1, "/", UPGRADE, b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="))
        until(lambda: len(trans.websockets) == 2)
        with full_pipe(trans):
            with gevent.Timeout(20):
                assert trans.broadcast("both") == 2
            until(lambda: b"both" in other.bodies())
        trans.remove_connection("other")


def test_a_thread_that_answers_an_old_request_reaches_no_stranger(server, trans):
    """Its call is carried out in the hub's thread, by when the server may have restarted."""
    events = trans.recv(timeout=5)
    ask(server, 1)
    old = next(events)[2]
    open_websockets(server, trans, 2)
    frame = build_request(SENDER, 2, "/", {"METHOD": "WEBSOCKET", "FLAGS": "0x81"}, b"hello")
    server.push.send(frame)
    message = next(req for _, _, req in events if req.method == "WEBSOCKET")
    conn = trans.conn
    handed_over = threading.Event()
    ended = threading.Event()

    def answer():
        handed_over.set()
        conn.reply_websocket(message, "old")
        conn.reply_xrep(old, b"26:3:ctl,16:6:cancel,4:true!}]")
        conn.grant(old, 1000)
        conn.reply_http(old, "old")
        ended.set()

    endpoints = server.push_endpoint, server.sub_endpoint
    server.context.destroy(0)
    thread = threading.Thread(target=answer)
    thread.start()
    handed_over.wait(5)
    time.sleep(0.2)  # so that the first call waits for this thread, in which nothing has heard of the end yet
    with PlainServer(endpoints=endpoints, sender=SENDER.encode()) as new:
        until(lambda: conn.ready and ended.is_set())
        thread.join(5)
        ask(new, 1)
        until(lambda: conn.link.life.requests.heads)
        conn.deliver_http(SENDER, [1], "new")
        until(lambda: new.bodies().endswith(b"new"))
        assert not any(b"old" in reply or b":X 1," in reply for reply in new.replies)
        events.close()
        trans.stop()


def test_a_grant_for_a_request_of_the_old_server_is_not_sent(server, trans):
    """It would let another browser's upload go on, past its limit."""
    events = trans.recv(timeout=5)
    ask(server, 1)
    old = next(events)[2]
    life = trans.conn.link.life
    with restart(server) as new:
        until(lambda: trans.conn.link.life is not life and trans.conn.ready)
        new.read()
        trans.conn.grant(old, 1000)
        trans.conn.reply_xrep(old, b"27:3:ctl,17:10:keep-alive,0:,}]")
        ask(new, 1)
        until(lambda: trans.conn.link.life.requests.heads)
        trans.conn.deliver_http(SENDER, [1], "new")
        until(lambda: new.bodies().endswith(b"new"))
        assert len(new.replies) == 1
        events.close()
        trans.stop()
