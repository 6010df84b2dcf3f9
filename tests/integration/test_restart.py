"""A front end, killed and started again under load: ids dropped, served again, no stranger gets an answer."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import gevent
import pytest
from gevent import socket
from gevent.event import Event
from websocket_rig import RawClient, until

from greentx import Transceiver
from greentx.edge import Handler


@pytest.fixture(params=["ipc", "tcp"])
def server(front_end, request):
    """A server of its own for each test, over both kinds of sockets."""
    with front_end.started({"/": Handler("one")}, transport=request.param) as one:
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
                gevent.sleep(0.01)  # between two looks


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
    assert answered[-1] - restarted < 5
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
    gevent.sleep(0.1)  # what must not happen has no event
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


RESTARTS = 5
LARGE = 300_000


def say_whose(conn, req):
    """Answer with the letter of the path in each byte: at once, or in many parts for the lower-case ones."""
    letter = req.path[1:2].encode()
    if letter.islower():
        conn.reply(req, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (40 * LARGE))
        for _ in range(40):
            conn.reply(req, letter * LARGE)
    elif letter:
        conn.reply_http(req, letter * LARGE)


def strangers_answers(server, letter):
    """Have the first browsers of a server ask for *letter*; return what they got of others'."""
    wrong = b""
    for _ in range(6):
        with contextlib.closing(connect(server)) as sock:
            ask(sock, f"/{letter}")
            data = sock.recv(65536)
            head, _, body = data.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK"), data[:100]
            while len(body) < LARGE:
                data = sock.recv(65536)
                assert data, "the server closed"
                body += data
            wrong += body.replace(letter.encode(), b"")
    return wrong


@pytest.mark.parametrize("flow_control", [0, 1])
def test_no_stranger_gets_an_answer_that_waited_while_the_server_restarted(front_end, flow_control):
    """Large ones, for browsers that do not read; the first browsers of each next server have their numbers."""
    with front_end.started({"/": Handler("one")}, settings={"download.flow_control": flow_control}) as server:
        entry = server.handlers[0]
        with Transceiver(entry.sender, entry.send_spec, entry.recv_spec, rep_port=False, connect_timeout=5) as trans:
            serving = gevent.spawn(trans.serve, say_whose)
            for number in range(RESTARTS):
                old = [connect(server) for _ in range(4)]
                sent = trans.conn.link.writer.messages_sent
                for sock in old:
                    ask(sock, f"/{chr(ord('a') + number)}")
                until(lambda sent=sent: trans.conn.link.writer.messages_sent >= sent + 8)
                restart(server)
                assert strangers_answers(server, chr(ord("A") + number)) == b""
                for sock in old:
                    sock.close()
            trans.stop(1)
            serving.join(5)


@pytest.mark.parametrize("flow_control", [0, 1])
def test_no_stranger_gets_an_answer_of_a_handler_that_computed_while_the_server_restarted(front_end, flow_control):
    """Nobody here had a chance to hear of it, and ZeroMQ has connected to the next server already."""
    with front_end.started({"/": Handler("one")}, settings={"download.flow_control": flow_control}) as server:
        entry = server.handlers[0]
        with Transceiver(entry.sender, entry.send_spec, entry.recv_spec, rep_port=False, connect_timeout=5) as trans:
            old = connect(server)
            ask(old, "/x")
            events = trans.recv(timeout=5)
            _, conn, late = next(events)
            new = restart_while_nothing_runs(server)
            try:
                say_whose(conn, late)
                serving = gevent.spawn(trans.serve, say_whose)
                events.close()
                assert strangers_answers(server, "A") == b""
                trans.stop(1)
                serving.join(5)
            finally:
                os.kill(new, signal.SIGKILL)
                os.waitpid(new, 0)
            old.close()


def restart_while_nothing_runs(server):
    """Kill it and start it again, while no greenlet runs; return the number of the new process."""
    with open(f"/proc/{server.pid}/cmdline", "rb") as file:
        command = file.read().split(b"\0")[:-1]
    folder = os.readlink(f"/proc/{server.pid}/cwd")
    os.kill(server.pid, signal.SIGKILL)
    # Its port is free when it has ended; it is there, as a zombie, until a greenlet of ours waits for it.
    os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)
    shell = [b"sh", b"-c", b'cd "$0" && rm -f pid control; exec "$@" > /dev/null 2>&1', folder.encode(), *command]
    pid = os.posix_spawnp(b"sh", shell, os.environ)
    time.sleep(1.5)  # ZeroMQ connects again meanwhile, which can be asked for in a greenlet only
    return pid
