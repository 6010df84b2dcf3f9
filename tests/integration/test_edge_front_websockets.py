"""WebSockets through the embedded front end, with a real Transceiver behind it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import gevent.event
import pytest
from http_rig import SENDER, Browser, serving, transceiver, wait_until
from websocket_peer import HEAD, MASK, Peer
from wire_rig import SENDER as RAW_SENDER
from wire_rig import raw_handler

from greentx.edge import Edge, Handler
from greentx.protocol.websocket.frames import Opcode, build_frame


def echo(ws: Any) -> None:
    while (message := ws.receive()) is not None:
        ws.send(message)


@contextlib.contextmanager
def served(handler: Any = echo, edge: Edge | None = None, **options: Any) -> Iterator[Edge]:
    with edge or Edge({"/": Handler(SENDER)}) as front, transceiver(front, **options) as trans:
        with serving(trans, lambda conn, req: conn.reply_http(req, "plain"), websocket=handler):
            yield front


@contextlib.contextmanager
def joined(edge: Edge, **options: Any) -> Iterator[Peer]:
    peer = Peer(edge.port, **options)
    try:
        assert peer.head().startswith(b"HTTP/1.1 101 ")
        yield peer
    finally:
        peer.sock.close()


@pytest.mark.parametrize("protocol", ["tnetstring", "json"])
def test_messages_go_both_ways(protocol):
    """Text and binary, small and large, in fragments and with a ping between them; and the closing handshake."""
    with served(edge=Edge({"/": Handler(SENDER, protocol=protocol)})) as edge, joined(edge) as peer:
        for message in ("hello", b"\0\xff", "", "ü" * 40_000, b"x" * 500_000):
            peer.send(message)
            assert peer.message() == message
        peer.sock.sendall(
            build_frame(b"one ", Opcode.TEXT, fin=False, mask=MASK)
            + build_frame(b"p", Opcode.PING, mask=MASK)
            + build_frame(b"two", Opcode.CONT, mask=MASK)
        )
        pong = peer.frame()
        assert (pong.opcode, pong.payload) == (Opcode.PONG, b"p")
        assert peer.message() == "one two"
        peer.close(1000, "bye")
        assert peer.closed()[0] == 1000
        assert peer.rest() == b""


def test_a_second_request_of_a_connection_may_be_an_upgrade():
    """Mongrel2 ends the connection, and tells nobody."""
    with served() as edge, Browser(edge) as browser:
        assert browser.get("/").body == b"plain"
        browser.ask(
            "/ws",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version: 13",
        )
        assert browser.receive().status == 101
        browser.send(build_frame(b"hi", Opcode.TEXT, mask=MASK))
        assert browser.read(4) == b"\x81\x02hi"


BROKEN = {
    "not masked": (build_frame(b"x", Opcode.TEXT), 1002),
    "a continuation of nothing": (build_frame(b"x", Opcode.CONT, mask=MASK), 1002),
    "an opcode that means nothing": (b"\x83\x80abcd", 1002),
    "a control frame in fragments": (b"\x09\x80abcd", 1002),
    "a control frame that is too long": (b"\x89\xfe\x00\x7e" + MASK + bytes(126), 1002),
    "a length that is not in its shortest form": (b"\x82\xfe\x00\x01" + MASK + b"x", 1002),
    "a length of 64 bits": (b"\x82\xff" + (1 << 63).to_bytes(8, "big") + MASK, 1002),
    "a reserved bit on a continuation": (
        build_frame(b"x", Opcode.BINARY, fin=False, mask=MASK) + build_frame(b"x", Opcode.CONT, 4, mask=MASK),
        1002,
    ),
    "a message inside another": (
        build_frame(b"x", Opcode.BINARY, fin=False, mask=MASK) + build_frame(b"x", Opcode.BINARY, mask=MASK),
        1002,
    ),
    "more than a message may have": (b"\x82\xff" + (1 << 40).to_bytes(8, "big") + MASK, 1009),
    "a message in fragments that is too large": (
        build_frame(bytes(700_000), Opcode.BINARY, fin=False, mask=MASK)
        + build_frame(bytes(700_000), Opcode.CONT, mask=MASK),
        1009,
    ),
}


@pytest.mark.parametrize(("sent", "code"), BROKEN.values(), ids=BROKEN)
def test_a_frame_that_breaks_the_rules_ends_the_websocket(sent, code):
    """With a close frame, and before the memory that it asks for is taken; the handler is told."""
    ended = gevent.event.Event()

    def wait(ws: Any) -> None:
        while ws.receive() is not None:
            pass
        ended.set()

    with served(wait) as edge, joined(edge) as peer:
        peer.sock.sendall(sent)
        assert peer.closed()[0] == code
        peer.sock.close()
        assert ended.wait(10)
        wait_until(lambda: not edge.connections)


def test_answers_to_good_messages_go_out_before_a_bad_one_ends_the_websocket():
    """Also where all came at once: the close frame of the front end does not overtake the handler."""
    with served() as edge, joined(edge) as peer:
        peer.sock.sendall(build_frame(b"good", Opcode.TEXT, mask=MASK) + build_frame(b"x", Opcode.CONT, mask=MASK))
        assert peer.message() == "good"
        assert peer.closed()[0] == 1002


def test_the_bound_on_messages_is_not_the_one_on_bodies():
    """As in Mongrel2; a frame that announces more is refused before it comes."""
    routes = {"/": Handler(SENDER)}
    settings = {"limits.buffer_size": 4096, "limits.content_length": 4096}
    with served(edge=Edge(routes, settings=settings)) as edge, joined(edge) as peer:
        peer.send(b"x" * 500_000)
        assert peer.message() == b"x" * 500_000
    with served(edge=Edge(routes, max_message_size=1000)) as edge, joined(edge) as peer:
        peer.send(b"x" * 1000)
        assert peer.message() == b"x" * 1000
        peer.sock.sendall(b"\x82\xfe" + (1100).to_bytes(2, "big") + MASK)
        assert peer.closed()[0] == 1009


def test_frames_may_come_before_the_answer_to_the_handshake():
    """What a client sends before it is let in goes to the handler, and is refused behind what lets it in."""
    with Edge({"/": Handler(RAW_SENDER)}) as edge, raw_handler(edge) as handler:
        peer = Peer(edge.port)
        peer.sock.sendall(build_frame(b"early", Opcode.TEXT, mask=MASK) + build_frame(b"not masked", Opcode.TEXT))
        conn_id = handler.request().conn_id
        assert handler.request().body == b"early"
        handler.reply(conn_id, HEAD + build_frame(b"hi", Opcode.TEXT))
        assert peer.head() == HEAD
        assert peer.message() == "hi"
        assert peer.closed()[0] == 1002
        peer.sock.close()
        assert handler.receive().body == b'{"type":"disconnect"}'


def test_after_a_handshake_that_is_refused_no_request_is_read():
    """Whatever its answer says, as in Mongrel2; a client that speaks HTTP is not sent a frame."""
    with Edge({"/": Handler(RAW_SENDER)}) as edge, raw_handler(edge) as handler:
        peer = Peer(edge.port)
        refusal = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"
        handler.reply(handler.request().conn_id, refusal)
        assert peer.head() == refusal
        peer.sock.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert peer.rest() == b""
        peer.sock.close()
        assert handler.receive().body == b'{"type":"disconnect"}'


@pytest.mark.parametrize(
    "sent",
    [
        build_frame(b"\xce\xba\xf4\x90", Opcode.TEXT, fin=False, mask=MASK),
        build_frame(b"\xce\xba\xf4\x90\x80\x80edited", Opcode.TEXT, mask=MASK)[:-8],
    ],
    ids=["a fragment", "a part of a frame"],
)
def test_text_that_cannot_become_utf8_is_not_waited_for(sent):
    """RFC 6455, section 8.1; Mongrel2 waits for the whole message."""
    with served() as edge, joined(edge) as peer:
        peer.sock.sendall(sent)
        assert peer.closed()[0] == 1007


def test_a_handshake_that_a_handler_refuses_ends():
    """The answer gets out whole."""
    with served() as edge:
        peer = Peer(edge.port, version=8)
        assert peer.head().startswith(b"HTTP/1.1 426 ")
        peer.rest()
        peer.sock.close()


def test_a_client_that_vanishes_is_told_of():
    """Without a closing handshake."""
    ended = gevent.event.AsyncResult()

    def wait(ws: Any) -> None:
        ws.receive()
        ended.set(ws.close_code)

    with served(wait) as edge, joined(edge) as peer:
        peer.sock.close()
        assert ended.get(timeout=10) == 1006


def test_the_end_of_the_handler_ends_the_websockets_in_order():
    """Their close frames get out."""
    with contextlib.ExitStack() as stack:
        with served() as edge:
            peers = [stack.enter_context(joined(edge)) for _ in range(20)]
            stopping = gevent.spawn(lambda: [peer.closed() for peer in peers])
            gevent.sleep(0)
        assert {code for code, _ in stopping.get(timeout=10)} == {1001}
