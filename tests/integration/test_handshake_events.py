"""Opening handshakes that the application answers itself, behind a real mongrel2."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import gevent
import gevent.queue
import pytest
from websocket_peer import HEAD, Peer

from greentx import Connection, Request, Transceiver
from greentx.errors import ConnectionClosed, RemoteProtocolError
from greentx.protocol.websocket.frames import Frame, Opcode, build_close, parse_close
from greentx.protocol.websocket.handshake import Handshake
from greentx.protocol.websocket.registry import Entry


@contextmanager
def running(start_front_end, **options) -> Iterator[tuple[Transceiver, int]]:
    """A Transceiver that yields handshakes, behind a mongrel2."""
    mongrel2 = start_front_end()
    handler = mongrel2.handlers[0]
    options = {"rep_port": False, "connect_timeout": 10, "handshake_events": True, **options}
    with Transceiver(handler.sender, handler.send_spec, handler.recv_spec, **options) as trans:
        yield trans, mongrel2.port


@pytest.fixture
def connect() -> Iterator[Callable[..., Peer]]:
    """Makes a Peer; they are closed after the test."""
    with ExitStack() as stack:

        def make(port: int, **options: int) -> Peer:
            peer = Peer(port, **options)
            stack.callback(peer.sock.close)
            return peer

        yield make


def accept_raw(conn: Connection, request: Request, receive: Callable[[Request], None], head: bytes = HEAD) -> Entry:
    """Let a client in whose frames a library of the application's reads and writes."""
    conn.answers.take_out(request)
    return conn.sessions.accept_raw(request, head, receive)


def take(trans: Transceiver, timeout: float = 10) -> tuple[object, Request]:
    """Return the next event."""
    for _sid, conn, request in trans.recv(timeout):
        assert conn is not None and request is not None, "nothing came"
        return conn, request
    raise AssertionError("the Transceiver has ended")


def test_the_application_lets_a_client_in(start_front_end, connect):
    """The 101 goes out when it says so; what came before is kept, events go to the WebSocket and not to recv()."""
    with running(start_front_end) as (trans, port):
        peer = connect(port)
        conn, request = take(trans)
        assert (request.method, request.path) == ("WEBSOCKET_HANDSHAKE", "/ws")
        peer.send("too early")
        gevent.sleep(0.02)  # the bytes get to the other side, which tells nobody
        ws = conn.accept_websocket(request)
        assert peer.head() == HEAD
        assert ws.receive(10) == "too early"
        ws.send("hello")
        assert peer.frame().payload == b"hello"
        peer.send(build_close(1000), Opcode.CLOSE)
        assert (ws.receive(10), ws.close_code) == (None, 1000)
        assert peer.frame().opcode == Opcode.CLOSE
        assert peer.rest() == b""
        for _sid, _conn, event in trans.recv(0.02):
            assert event is None
            break
        assert len(trans.websockets) == 0


def test_any_http_answer_keeps_a_client_out(start_front_end, connect):
    """It is sent, the connection is closed behind it, and nothing of the client is kept."""
    with running(start_front_end) as (trans, port):
        peer = connect(port)
        conn, request = take(trans)
        conn.reply_http(request, "no such place", 404)
        assert peer.head().startswith(b"HTTP/1.1 404 ")
        assert peer.rest() == b"no such place"
        assert conn.sessions.connecting == 0
        with pytest.raises(ConnectionClosed):
            conn.accept_websocket(request)


def test_a_client_that_goes_before_the_answer_is_reported(start_front_end, connect):
    """As for any open request there is a DISCONNECT, and letting it in fails."""
    with running(start_front_end) as (trans, port):
        peer = connect(port)
        conn, request = take(trans)
        peer.sock.close()
        assert take(trans)[1].method == "DISCONNECT"
        with pytest.raises(ConnectionClosed):
            conn.accept_websocket(request)
        with pytest.raises(ConnectionClosed):
            accept_raw(conn, request, print)


def test_what_must_be_refused_is_not_let_in(start_front_end, connect):
    """A wrong version, or an origin that the application's own Handshake does not know."""
    with running(start_front_end) as (trans, port):
        peer = connect(port, version=8)
        conn, request = take(trans)
        with pytest.raises(RemoteProtocolError) as caught:
            conn.accept_websocket(request)
        assert caught.value.status == 426
        conn.close(request)
        assert peer.rest() == b""
        peer = connect(port)
        conn, request = take(trans)
        assert conn.sessions.check(request, Handshake(origins=["https://example.org"])).status == 403
        conn.close(request)
        assert peer.rest() == b""


def test_raw_frames_pass_as_they_are(start_front_end, connect):
    """Of a raw WebSocket messages, pings and foreign pongs reach the application's library, agreed bits too."""
    with running(start_front_end) as (trans, port):
        peer = connect(port)
        conn, request = take(trans)
        events = gevent.queue.Queue()
        head = HEAD[:-2] + b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
        entry = accept_raw(conn, request, events.put, head)
        assert peer.head() == head
        peer.send(b"\xff", Opcode.TEXT, 4)
        peer.send(b"you", Opcode.PING)
        peer.send(b"me", Opcode.PONG)
        seen = [events.get(timeout=10) for _ in range(3)]
        assert [(one.opcode, one.body, one.header("FLAGS")) for one in seen] == [
            (Opcode.TEXT, b"\xff", "0xC1"),
            (Opcode.PING, b"you", "0x89"),
            (Opcode.PONG, b"me", "0x8A"),
        ]
        conn.sessions.send([entry], b"x", Opcode.BINARY, 4)
        assert peer.frame() == Frame(b"x", Opcode.BINARY, 4, True)
        peer.send(build_close(4001, "bye"), Opcode.CLOSE)
        end = events.get(timeout=10)
        assert (end.method, end.close_code, end.close_reason) == ("WEBSOCKET_CLOSE", 4001, "bye")
        assert parse_close(peer.frame().payload) == (4001, "")
        assert peer.rest() == b""


def test_raw_websockets_are_pinged_and_bounded(start_front_end, connect):
    """The pongs of our own pings stay with us; a message above the limit ends the connection."""
    with running(start_front_end, ping_timeout=0.05, max_message_size=10) as (trans, port):
        peer = connect(port)
        conn, request = take(trans)
        events = gevent.queue.Queue()
        entry = accept_raw(conn, request, events.put)
        peer.head()
        for _ in range(3):
            ping = peer.frame()
            assert ping.opcode == Opcode.PING
            peer.send(ping.payload, Opcode.PONG)
        peer.send(b"0123456789a", Opcode.BINARY)
        end = events.get(timeout=10)
        assert (end.method, end.close_code, entry.state) == ("WEBSOCKET_CLOSE", 1009, "CLOSED")
        while (frame := peer.frame()).opcode == Opcode.PING:
            pass
        assert parse_close(frame.payload)[0] == 1009
        peer.sock.close()

        silent = connect(port)
        conn, request = take(trans)
        accept_raw(conn, request, events.put)
        end = events.get(timeout=10)
        assert (end.close_code, end.close_reason) == (1006, "ping timeout")
        silent.sock.close()


def test_handshake_events_can_be_switched(start_front_end, connect):
    """Without them the Transceiver decides, and recv() yields the connection that stands."""
    with running(start_front_end, handshake_events=False) as (trans, port):
        peer = connect(port)
        assert take(trans)[1].method == "WEBSOCKET_CONNECT"
        assert peer.head() == HEAD
        assert not trans.handshake_events
        trans.handshake_events = True
        other = connect(port)
        conn, request = take(trans)
        assert request.method == "WEBSOCKET_HANDSHAKE"
        conn.close(request)
        assert other.rest() == b""
        peer.sock.close()
