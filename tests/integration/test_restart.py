"""A real mongrel2, killed and started again under load: ids dropped, served again, no stranger gets an answer."""

from __future__ import annotations

import time

import gevent
import pytest
from gevent import socket
from gevent.event import Event
from websocket_rig import RawClient, until

from greentx import Transceiver
from greentx.edge import Handler, Mongrel2

pytestmark = pytest.mark.mongrel2


@pytest.fixture(params=["ipc", "tcp"])
def server(request):
    """A server of its own for each test, over both kinds of sockets."""
    with Mongrel2({"/": Handler("one")}, transport=request.param) as one:
        yield one


@pytest.fixture
def trans(server):
    """A Transceiver behind it."""
    entry = server.handlers[0]
    with Transceiver(entry.sender, entry.send_spec, entry.recv_spec, rep_port=False, ping_timeout=None) as one:
        one.wait_ready(5)
        yield one


def connect(server):
    """A connection to the server, retried while it is away."""
    with gevent.Timeout(10):
        while True:
            try:
                return socket.create_connection(("127.0.0.1", server.port), timeout=5)
            except OSError:
                gevent.sleep(0.01)


def ask(sock, path="/"):
    sock.sendall(b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode())


def restart(server):
    """With kill -9, so that it tells nobody."""
    server.kill()
    server.start()


def test_a_restart_under_load_drops_all_ids_and_is_served_again(server, trans):
    """One WEBSOCKET_CLOSE 1006 for each WebSocket, one DISCONNECT for an open request, answers within two seconds."""
    events = []
    answered = []
    ending = Event()

    def serve():
        for sid, conn, req in trans.recv():
            events.append((req.method, sid[1], req.close_code))
            if req.method == "GET" and req.path != "/open":
                conn.reply_http(req, "answer")

    def load():
        while not ending.is_set():
            sock = connect(server)
            try:
                while not ending.is_set():
                    ask(sock)
                    if not sock.recv(4096).endswith(b"answer"):
                        break
                    answered.append(time.monotonic())
            except OSError:
                continue
            finally:
                sock.close()

    serving = gevent.spawn(serve)
    loading = [gevent.spawn(load) for _ in range(5)]
    sockets = [RawClient(server.port) for _ in range(20)]
    opened = connect(server)
    ask(opened, "/open")
    until(lambda: len(trans.websockets) == 20 and len(answered) > 50)
    until(lambda: trans.status()["connections"][0]["open_requests"] >= 1)
    events.clear()
    restart(server)
    restarted = time.monotonic()
    until(lambda: answered and answered[-1] > restarted)
    # Mongrel2 itself takes its first request half a second after its start.
    assert answered[-1] - restarted < 2
    closes = [(conn_id, code) for method, conn_id, code in events if method == "WEBSOCKET_CLOSE"]
    assert len(closes) == len(set(closes)) == 20
    assert {code for _, code in closes} == {1006}
    assert "DISCONNECT" in [method for method, _, _ in events]
    assert len(trans.websockets) == 0
    again = RawClient(server.port)
    until(lambda: len(trans.websockets) == 1)
    ending.set()
    gevent.joinall(loading, timeout=10)
    trans.stop()
    serving.join(5)
    for client in (*sockets, again):
        client.close()
    opened.close()


def test_an_answer_to_the_old_server_reaches_nobody(server, trans):
    """Numbers begin at 1 again: connection 1 of the new server is a stranger."""
    old = connect(server)
    ask(old)
    events = trans.recv(timeout=5)
    _sid, conn, late = next(events)
    assert late.conn_id == "1"
    server.kill()
    conn.reply_http(late, "in between")
    server.start()
    stranger = connect(server)
    ask(stranger)
    for _sid, _conn, req in events:
        if req is not None and req.method == "GET":
            break
    assert req.conn_id == "1"
    for call in (
        lambda: conn.reply_http(late, "late"),
        lambda: conn.reply(late, "late"),
        lambda: conn.reply_json(late, "late"),
        lambda: conn.reply_websocket(late, "late"),
        lambda: conn.close(late),
    ):
        call()
    gevent.sleep(0.1)
    conn.reply_http(req, "right")
    answer = stranger.recv(4096)
    assert answer.endswith(b"\r\n\r\nright")
    assert b"late" not in answer
    assert b"in between" not in answer
    assert conn.stale_replies >= 2
    old.close()
    stranger.close()


def test_a_websocket_that_was_open_cannot_be_written_to_after_a_restart(server, trans):
    """Neither by its id, nor by a broadcast, nor by a greenlet that was waiting with it."""
    old = RawClient(server.port)
    events = trans.recv(timeout=5)
    sid, _conn, _ = next(events)
    restart(server)
    assert next(events)[2].close_code == 1006
    new = RawClient(server.port)
    new_sid, _conn, req = next(events)
    assert new_sid == sid  # the same number, somebody else
    assert req.method == "WEBSOCKET_CONNECT"
    trans.broadcast("for the new one")
    frame = new.recv()
    assert frame.payload == b"for the new one"
    old.close()
    new.close()


def test_restarts_in_a_row_are_survived(server, trans):
    """Each time all is dropped and taken up again."""

    def serve():
        for _sid, conn, req in trans.recv():
            if req.method == "GET":
                conn.reply_http(req, req.path)

    serving = gevent.spawn(serve)
    for number in range(4):
        sock = connect(server)
        ask(sock, f"/{number}")
        assert sock.recv(4096).endswith(b"/%d" % number)
        restart(server)
        sock.close()
    trans.stop()
    serving.join(5)
