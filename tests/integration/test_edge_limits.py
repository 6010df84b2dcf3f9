"""Connections that hold a place in our own mongrel2 for nothing end; those that wait, or move slowly, live."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import gevent
import pytest
from http_rig import Browser, only_connection, routes, serving, transceiver, wait_until
from websocket_peer import HEAD, Peer
from wsgi_rig import serving as wsgi_serving

from greentx.edge.config import DEFAULT_SETTINGS
from greentx.errors import RemoteProtocolError
from greentx.protocol.replies import credits_body
from greentx.protocol.websocket.frames import Opcode

# The defaults but for the times: two minutes become two seconds.
QUICK: dict[str, int | str] = {"limits.min_ping": 2, "limits.tick_timer": 1}
# Longer than what is silent lives, which is 2 to 4 s.
LIVES_SECONDS = 5.0

BOTH = "a length and a coding, and less than the length"
HOLDS_A_PLACE = {
    "nothing sent": b"",
    "half a head": b"GET / HTTP/1.1\r\nHost: x\r\nX-",
    "half a body": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf",
    # Mongrel2 reads as much as the length says, and hands on nothing before: nobody here can refuse it. The edge does.
    BOTH: (
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    ),
    "idle behind an answer": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
}


def answer(conn: Any, req: Any) -> None:
    if req.method == "GET":
        if req.path == "/poll":
            gevent.sleep(LIVES_SECONDS)  # it is the time that counts here
        conn.reply_http(req, bytes(5_000_000) if req.path == "/large" else "answer")
    elif req.method == "POST" and req.has("UPLOAD_STREAM"):
        conn.grant(req, 10_000_000)


def test_the_limits_are_on_by_default():
    """The number of connections has one, too, and all can be set as others."""
    for name in ("limits.min_ping", "limits.min_read_rate", "limits.min_write_rate", "superpoll.max_fd"):
        assert int(DEFAULT_SETTINGS[name]) > 0


@pytest.mark.parametrize(
    ("ping_timeout", "settings", "warned"),
    [
        (None, {}, ["ping_timeout=None", "limits.min_ping of 120 s", "60 s at most", "to 0"]),
        (60.5, {}, ["ping_timeout=60.5", "limits.min_ping of 120 s", "60 s at most", "121 s at least"]),
        (60, {}, []),
        (None, {"limits.min_ping": 0}, []),
        (None, {"limits.min_write_rate": 0}, []),  # all three limits have to be passed
    ],
)
@pytest.mark.parametrize(("transport", "first"), [("ipc", "server"), ("tcp", "server"), ("ipc", "transceiver")])
def test_a_ping_timeout_that_is_too_long_for_our_own_server_is_named_in_a_warning(
    front_end, caplog, ping_timeout, settings, warned, transport, first
):
    """Which one is started first does not matter, where the endpoints are known before."""
    server = front_end.make(routes(), settings=settings, transport=transport)
    with contextlib.ExitStack() as stack:
        if first == "server":
            stack.enter_context(server)
        stack.enter_context(transceiver(server, ping_timeout=ping_timeout, connect_timeout=None))
    lines = [record.getMessage() for record in caplog.records if "min_ping" in record.getMessage()]
    assert len(lines) == bool(warned)
    assert all(words in lines[0] for words in [*warned, "long polls", "WebSockets"] if warned)


def test_the_wsgi_server_keeps_alive_what_waits_whatever_its_limit(caplog):
    """Its Transceiver is its own, so nobody has to choose a ping_timeout; it is not longer than by default."""
    for settings, ping_timeout in ((QUICK, 1), ({"limits.min_ping": 0}, 30), ({"limits.min_ping": 600}, 30)):
        with wsgi_serving("greentx", lambda environ, start: [], mongrel2_settings=settings) as running:
            assert running.server.transceiver.ping_timeout == ping_timeout
    assert "min_ping" not in caplog.text


def test_a_connection_that_sends_nothing_more_loses_its_place(front_end, start_front_end):
    """In whatever state: no head, half of it, half a body, or idle behind an answer. Nothing else is answered."""
    server = start_front_end(routes(), settings={**QUICK, "upload.stream": 1})
    with transceiver(server, ping_timeout=0.5) as trans, serving(trans, answer):
        browsers = {name: Browser(server, timeout=20) for name in HOLDS_A_PLACE}
        for name, data in HOLDS_A_PLACE.items():
            browsers[name].send(data)
        for name, browser in browsers.items():
            with browser:
                if name.startswith("idle"):
                    assert browser.receive().status == 200
                elif front_end.is_edge and name == BOTH:
                    assert browser.receive().status == 400
                assert browser.at_end(), name


def test_a_connection_that_waits_or_moves_lives(start_front_end):
    """A long poll, a WebSocket that only listens, a slow download and a slow upload."""
    server = start_front_end(routes(), settings={**QUICK, "upload.stream": 1})
    ends = []

    def listen(ws):
        for _ in ws:
            pass
        ends.append(ws)

    with transceiver(server, ping_timeout=0.5) as trans, serving(trans, answer, websocket=listen):
        peer = Peer(server.port)
        assert peer.head() == HEAD

        def answer_pings():
            while (frame := peer.frame()).opcode == Opcode.PING:
                peer.send(frame.payload, Opcode.PONG)

        pongs = gevent.spawn(answer_pings)
        with Browser(server) as poll, Browser(server, receive_buffer=4096) as slow, Browser(server) as upload:
            poll.ask("/poll")
            slow.ask("/large")
            upload.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n")
            until = time.monotonic() + LIVES_SECONDS
            read = 0
            while time.monotonic() < until:
                read += len(slow.socket.recv(20_000))
                upload.send(bytes(10_000))
                gevent.sleep(0.1)  # slowly
            assert read and poll.receive().body == b"answer"
            upload.send(bytes(10))
            slow.read(5_000_000 - read)
            assert len(trans.websockets) == 1 and not ends
            pongs.kill()
            peer.sock.close()
        wait_until(lambda: ends)


def test_a_half_sent_streamed_upload_loses_its_place_and_the_handler_hears_of_it(start_front_end):
    """Whether its length is known or it comes in chunks, and in whichever way more was granted than was sent."""
    server = start_front_end(routes(), settings={**QUICK, "upload.stream": 1})
    gone = []

    def grant_or_note(conn, req):
        if req.has("transfer-encoding"):
            conn.deliver(req.sender, ["X", req.conn_id], credits_body(10_000_000))
        elif req.method == "POST":
            conn.grant(req, 10_000_000)
        elif req.method == "DISCONNECT":
            gone.append(req.conn_id)

    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n"
    chunked = b"POST / HTTP/1.1\r\nHost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"
    with transceiver(server, ping_timeout=0.5) as trans, serving(trans, grant_or_note):
        with Browser(server, timeout=20) as half, Browser(server, timeout=20) as in_chunks:
            half.send(head)
            half.send(bytes(10))
            in_chunks.send(chunked)
            assert half.at_end() and in_chunks.at_end()
        wait_until(lambda: len(gone) == 2)


def test_a_half_stored_upload_loses_its_place_and_is_forgotten(start_front_end, tmp_path):
    """Its file, which Mongrel2 deletes, is not waited for any longer."""
    settings = {**QUICK, "upload.temp_store": str(tmp_path / "upload.XXXXXX")}
    server = start_front_end(routes(), settings=settings)
    with transceiver(server, ping_timeout=0.5) as trans, serving(trans, answer), Browser(server, timeout=20) as browser:
        browser.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n")
        browser.send(bytes(10))
        begun = only_connection(trans).link.life.uploads.begun
        wait_until(lambda: begun and list(tmp_path.iterdir()))
        assert browser.at_end()
        wait_until(lambda: not begun)
        assert not list(tmp_path.iterdir())


def test_an_upload_that_the_application_does_not_read_yet_lives(start_front_end):
    """It waits for us: for what it may send next, and for the answer once all was sent."""
    server = start_front_end(routes(), settings={**QUICK, "upload.stream": 1, "limits.content_length": 16384})
    waits = []

    def answer_late(conn, req):
        if req.method == "POST":
            waits.append((conn, req))
            gevent.sleep(LIVES_SECONDS / 2)  # it is the time that counts here
            conn.grant(req, 20_000)
        elif req.has("UPLOAD_STREAM_DONE"):
            gevent.sleep(LIVES_SECONDS / 2)  # as above
            conn.reply_http(waits[0][1], "read")

    with transceiver(server, ping_timeout=0.5) as trans, serving(trans, answer_late), Browser(server) as browser:
        browser.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 20000\r\n\r\n")
        wait_until(lambda: waits)
        browser.send(bytes(20_000))
        assert browser.receive().body == b"read"


def test_a_slow_upload_above_the_rate_lives(start_front_end):
    """With pauses of a second, half of what would end it."""
    server = start_front_end(routes(), settings={**QUICK, "upload.stream": 1, "limits.content_length": 16384})
    got = []

    def take(conn, req):
        if req.method == "POST":
            got.append(req)
            conn.grant(req, 50_000)
        elif req.has("UPLOAD_STREAM_DONE"):
            conn.reply_http(got[0], "read")

    with transceiver(server, ping_timeout=0.5) as trans, serving(trans, take), Browser(server) as browser:
        browser.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 50000\r\n\r\n")
        for _ in range(10):
            gevent.sleep(LIVES_SECONDS / 10)  # slowly
            browser.send(bytes(5000))
        assert browser.receive().body == b"read"


def test_idle_connections_do_not_keep_others_out(front_end, start_front_end):
    """With all places taken, they are freed for those that ask for something."""
    if front_end.is_edge:
        server = start_front_end(routes(), settings=QUICK, max_connections=64)
    else:
        server = start_front_end(routes(), settings={**QUICK, "superpoll.max_fd": 64})
    with transceiver(server, ping_timeout=0.5) as trans, serving(trans, answer), contextlib.ExitStack() as idle:
        for _ in range(80):
            idle.enter_context(Browser(server))
        # The first ones that come then may be refused themselves.
        with gevent.Timeout(30):
            while not _answered(server):
                gevent.sleep(0.1)


def _answered(server):
    with Browser(server) as browser, contextlib.suppress(OSError, RemoteProtocolError):
        return browser.get().status == 200
    return False
