"""WebSocket handlers that shake hands themselves, as the ws/echo example of Mongrel2's own Python library does."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import websockets.sync.client
from http_rig import Browser, wait_until
from ported_rig import both_protocols, received, standalone
from websocket_peer import HEAD, Peer
from websocket_rig import in_thread

from greentx import Connection, Request, Transceiver
from greentx.protocol.websocket.frames import Opcode, build_close


@pytest.fixture(scope="module")
def servers(front_end) -> Iterator[dict[str, Any]]:
    with both_protocols(front_end) as running:
        yield running


@pytest.fixture(params=["tnetstring", "json"])
def server(request: pytest.FixtureRequest, servers: dict[str, Any]) -> Any:
    return servers[request.param]


@pytest.fixture
def any_server(servers: dict[str, Any]) -> Any:
    """For what does not depend on the encoding of headers."""
    return servers["tnetstring"]


@pytest.fixture
def connect() -> Iterator[Callable[..., Peer]]:
    """Opens a client; all are closed after the test."""
    with contextlib.ExitStack() as stack:

        def open_one(server: Any, **options: Any) -> Peer:
            peer = Peer(server.port, **options)
            stack.callback(peer.sock.close)
            return peer

        yield open_one


class Echo:
    """Lets everybody in with a 101 of its own making, and sends back what comes.

    Attributes:
        methods: What came, in order.
        ends: The events that say that somebody has gone.
    """

    def __init__(self, *, fields: str = "", handshake: str = "WEBSOCKET_HANDSHAKE") -> None:
        self.fields = fields
        self.handshake = handshake
        self.methods: list[str] = []
        self.ends: list[Request] = []

    def __call__(self, conn: Connection, req: Request) -> None:
        method = req.headers["METHOD"]
        self.methods.append(method)
        if req.is_disconnect():
            self.ends.append(req)
        elif method == self.handshake:
            conn.reply(
                req,
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Accept: {req.body.decode()}\r\n{self.fields}\r\n",
            )
        elif method != "WEBSOCKET":
            conn.reply(req, "")
        else:
            opcode = int(req.headers["FLAGS"], 16) & 0xF
            conn.reply_websocket(req, req.body, opcode)


def check_echo(peer: Peer) -> None:
    """Text, binary, empty and large messages come back, and pings are answered; nothing else comes."""
    for message in ("hello", "grüße", b"\x00\xff", "", b"x" * 200_000):
        peer.send(message)
        frame = peer.frame()
        assert frame.payload == (message.encode() if isinstance(message, str) else message)
        assert frame.opcode == (Opcode.TEXT if isinstance(message, str) else Opcode.BINARY)
    peer.send(b"are you there", Opcode.PING)
    frame = peer.frame()
    assert (frame.opcode, frame.payload) == (Opcode.PONG, b"are you there")


def check_close(peer: Peer, code: int = 1000) -> None:
    """The closing handshake is clean: one close frame, then the end."""
    peer.close(code)
    assert peer.closed() == (code, "")
    assert peer.rest() == b""
    assert not peer.frames


def test_the_echo_example_shakes_hands_itself(server, connect):
    """Its 101 is the only one that its client sees; then come the echoes."""
    echo = Echo()
    with standalone(server, echo):
        peer = connect(server)
        assert peer.head() == HEAD
        check_echo(peer)
        check_close(peer)
        wait_until(lambda: echo.ends)
    assert echo.methods == ["WEBSOCKET_HANDSHAKE", *["WEBSOCKET"] * 5, "WEBSOCKET_CLOSE"]


def test_the_echo_example_hears_once_that_its_client_closed(server, connect):
    """The event looks as the client's close frame does behind Mongrel2: flags, payload, the handshake's headers."""
    echo = Echo()
    with standalone(server, echo):
        peer = connect(server, path="/ws?room=1")
        peer.head()
        peer.close(4001, "good bye")
        assert peer.closed() == (4001, "")
        wait_until(lambda: echo.ends)
        other = connect(server)
        other.head()
        check_echo(other)
        (event,) = echo.ends
        assert event.is_disconnect()
        assert event.headers["METHOD"] == "WEBSOCKET_CLOSE"
        assert int(event.headers["FLAGS"], 16) & 0xF == Opcode.CLOSE
        assert event.body == build_close(4001, "good bye")
        assert (event.close_code, event.close_reason) == (4001, "good bye")
        assert event.headers["sec-websocket-key"]
        assert event.headers["PATH"] == "/ws"
        assert event.headers["QUERY"] == {"room": "1"}
        check_close(other)


@pytest.mark.parametrize("payload", [b"", build_close(1000, "")])
def test_a_close_without_a_reason_is_an_event_with_that_payload(any_server, connect, payload):
    """Also where the frame is empty."""
    echo = Echo()
    with standalone(any_server, echo):
        peer = connect(any_server)
        peer.head()
        peer.send(payload, Opcode.CLOSE)
        assert peer.frame().payload == payload
        assert peer.rest() == b""
        wait_until(lambda: echo.ends)
        assert [event.body for event in echo.ends] == [payload]


def test_the_echo_example_hears_once_of_a_client_that_vanishes(server, connect):
    """Without a close frame; the event says so, and its flags are those of a close all the same."""
    echo = Echo()
    with standalone(server, echo):
        peer = connect(server)
        peer.head()
        check_echo(peer)
        peer.sock.close()
        wait_until(lambda: echo.ends)
        other = connect(server)
        other.head()
        check_echo(other)
        (event,) = echo.ends
        assert event.is_disconnect()
        assert (event.method, event.close_code) == ("WEBSOCKET_CLOSE", 1006)
        assert int(event.headers["FLAGS"], 16) & 0xF == Opcode.CLOSE
        check_close(other)


def test_the_echo_example_answers_what_came_before_its_101(any_server, connect):
    """A client need not wait with its first message, which is not lost."""
    echo = Echo()
    with standalone(any_server, echo):
        peer = connect(any_server)
        peer.send("at once")
        assert peer.head() == HEAD
        assert peer.frame().payload == b"at once"
        check_echo(peer)
        check_close(peer)


def test_the_echo_example_closes_what_is_no_websocket(server, connect):
    """An empty reply ends the connection of an ordinary request."""
    echo = Echo()
    with standalone(server, echo), Browser(server) as browser:
        browser.ask()
        assert browser.at_end()
        peer = connect(server)
        assert peer.head() == HEAD
        check_echo(peer)
        check_close(peer)


def test_the_echo_example_serves_a_library_s_client(any_server):
    """Which offers compression, and gets none, as the handler's 101 does not agree to it."""

    def talk(url: str) -> tuple[list[str | bytes], int | None]:
        with websockets.sync.client.connect(url, ping_interval=None, open_timeout=10, close_timeout=5) as ws:
            got = []
            for message in ("hello " * 1000, b"bytes"):
                ws.send(message)
                got.append(ws.recv(10))
            ws.close(4321)
            return got, ws.close_code

    echo = Echo()
    with standalone(any_server, echo):
        assert in_thread(talk, any_server.url.replace("http", "ws")) == (["hello " * 1000, b"bytes"], 4321)
        wait_until(lambda: echo.ends)


def test_a_handler_names_a_subprotocol_in_its_101(any_server, connect):
    """The client sees that field."""
    with standalone(any_server, Echo(fields="Sec-WebSocket-Protocol: chat\r\n")):
        peer = connect(any_server, headers="Sec-WebSocket-Protocol: talk, chat\r\n")
        assert peer.head() == HEAD[:-2] + b"Sec-WebSocket-Protocol: chat\r\n\r\n"
        check_echo(peer)
        check_close(peer)


def test_a_handler_may_refuse_a_handshake(any_server, connect):
    """With any other answer, behind which the connection is closed; then it lets the next one in."""
    echo = Echo()

    def handle(conn: Connection, req: Request) -> None:
        if req.path == "/no":
            conn.reply_http(req, b"not here", 403)
        else:
            echo(conn, req)

    with standalone(any_server, handle):
        peer = connect(any_server, path="/no")
        assert peer.head().startswith(b"HTTP/1.1 403 ")
        assert peer.rest() == b"not here"
        peer = connect(any_server)
        assert peer.head() == HEAD
        check_echo(peer)
        check_close(peer)


def test_a_connection_may_leave_the_handshakes_to_greentx(any_server, connect):
    """With handshake_events=False its first event is one that was let in already."""
    echo = Echo()

    def handle(conn: Connection, req: Request) -> None:
        if req.method != "WEBSOCKET_CONNECT":
            echo(conn, req)

    with standalone(any_server, handle, handshake_events=False):
        peer = connect(any_server)
        assert peer.head() == HEAD
        check_echo(peer)
        check_close(peer)
        wait_until(lambda: echo.ends)
        assert echo.methods == [*["WEBSOCKET"] * 5, "WEBSOCKET_CLOSE"]


# -- with a Transceiver ------------------------------------------------------------------------------------------------


def test_a_101_for_who_was_let_in_already_is_not_sent(server, connect, caplog):
    """By default a Transceiver answers the handshake: a second answer is a warning in the log, and nothing else."""
    echo = Echo(handshake="WEBSOCKET_CONNECT")
    with received(server, echo), caplog.at_level(logging.WARNING, "greentx"):
        peer = connect(server)
        assert peer.head() == HEAD
        check_echo(peer)
        check_close(peer)
        wait_until(lambda: echo.ends)
    assert echo.methods == ["WEBSOCKET_CONNECT", *["WEBSOCKET"] * 5, "WEBSOCKET_CLOSE"]
    assert [one.levelno for one in caplog.records if one.name.startswith("greentx")] == [logging.WARNING]


@pytest.mark.parametrize("fields", ["", "Sec-WebSocket-Protocol: chat\r\n"])
def test_a_transceiver_yields_handshakes_where_that_is_wanted(server, connect, fields):
    """The handler's own 101 lets the client in, and its messages come out of recv()."""
    echo = Echo(fields=fields)
    with received(server, echo, handshake_events=True) as trans:
        peer = connect(server, headers="Sec-WebSocket-Protocol: chat\r\n")
        assert peer.head() == HEAD[:-2] + fields.encode() + b"\r\n"
        check_echo(peer)
        assert len(trans.websockets) == 1
        check_close(peer)
        wait_until(lambda: echo.ends)
        assert len(trans.websockets) == 0
    assert echo.methods == ["WEBSOCKET_HANDSHAKE", *["WEBSOCKET"] * 5, "WEBSOCKET_CLOSE"]


def test_who_was_let_in_by_a_raw_101_is_a_websocket_like_any_other(any_server, connect):
    """It is pinged, broadcast to, and told when the Transceiver goes."""
    echo = Echo()
    with received(any_server, echo, handshake_events=True, ping_timeout=0.5) as trans:
        assert isinstance(trans, Transceiver)
        peer = connect(any_server)
        assert peer.head() == HEAD
        for _ in range(2):
            ping = peer.frame()
            assert ping.opcode == Opcode.PING
            peer.send(ping.payload, Opcode.PONG)
        assert trans.broadcast("to all") == 1
        assert peer.message() == "to all"
        trans.stop(5)
        assert peer.closed() == (1001, "")
    assert [event.close_code for event in echo.ends] == [1001]
