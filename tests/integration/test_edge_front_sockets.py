"""JSON and XML sockets at the embedded front end, and next to Mongrel2."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from front_rig import WAYS
from http_rig import Browser, serving, transceiver
from wire_rig import SENDER, RawBrowser, RawHandler, raw_handler

from greentx.edge import Edge, Handler, Mongrel2
from greentx.edge.front.message_sockets import POLICY

LIMITS = {"limits.content_length": 16384, "limits.buffer_size": 16384}
GET = b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
LEAVES = 'JSON @* \'{"type":"disconnect"}\''


def routes(**options: Any) -> dict[str, Handler]:
    return dict.fromkeys(["/", "*", "@chat", "@*", "<chat"], Handler(SENDER, **options))


@contextlib.contextmanager
def at(**options: Any) -> Iterator[tuple[Edge, RawHandler]]:
    """An embedded front end, and a handler that says what it is told."""
    edge = Edge(routes(**options), settings=LIMITS, half_close_timeout=0.1, no_handler_timeout=0.2)
    with edge, raw_handler(edge) as handler:
        yield edge, handler


def test_messages_and_requests_take_turns_on_one_connection():
    """Replies go out as they are."""
    with at() as (edge, handler), RawBrowser(edge) as browser:
        browser.send(b'@chat/a {"b":1}\0' + GET + b"<chat/>\0")
        assert str(handler.receive()) == "JSON @chat/a '{\"b\":1}'"
        assert str(handler.receive()) == "GET /x"
        message = handler.receive()
        assert str(message) == "XML <chat '<chat/>'"
        handler.reply(message.conn_id, ANSWER)
        browser.read(ANSWER)
        handler.reply(message.conn_id, b'{"c":2}\0')
        browser.read(b'{"c":2}\0')
        handler.reply(message.conn_id, b"")
        assert browser.read_to_end() == ANSWER + b'{"c":2}\0'


@pytest.mark.parametrize("way", WAYS)
def test_a_message_may_come_in_pieces(way):
    """A handler gets it whole."""
    with at() as (edge, handler), RawBrowser(edge) as browser:
        for piece in WAYS[way](b'@chat {\r\n"a":\r\n1}\0'):
            browser.send(piece)
        assert handler.receive().body == b'{\r\n"a":\r\n1}'


def test_replies_are_in_base64_without_raw_payload():
    """Those to messages; whatever else it says is for HTTP, and a terminator alone ends the connection."""
    with at(raw_payload=0) as (edge, handler), RawBrowser(edge) as browser:
        browser.send(b"@chat {}\0")
        conn_id = handler.receive().conn_id
        for reply in (b'{"x":1}', b'{"x":1}\0'):
            handler.reply(conn_id, reply)
        browser.read(b"eyJ4IjoxfQ==" * 2)
        browser.send(GET)
        handler.receive()
        handler.reply(conn_id, ANSWER)
        browser.read(ANSWER)
        browser.send(b"@chat {}\0")
        handler.receive()
        handler.reply(conn_id, b"\0")
        assert browser.read_to_end().endswith(ANSWER)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"@other {}\0", 404),
        (b"<other/>\0", 404),
        # A ping as well, as with Mongrel2.
        (b'@other {"type":"ping"}\0', 404),
        (b"@chat []\0", 400),
        (b"<>\0", 400),
        (b'@chat {"' + b"x" * 16384, 400),
    ],
)
def test_what_cannot_be_handed_on_is_answered_and_ends_the_connection(sent, status):
    """A handler that knows it is told."""
    with at() as (edge, handler):
        with RawBrowser(edge) as browser:
            browser.send(sent)
            browser.read_to_end()
            assert browser.statuses == [status]
        with RawBrowser(edge) as browser:
            browser.send(b"@chat {}\0" + sent)
            assert handler.receive().path == "@chat"
            browser.read_to_end()
            assert browser.statuses == [status]
            browser.sock.close()
            assert str(handler.receive()) == LEAVES


def test_a_message_that_does_not_end_is_answered_408():
    """Nobody holds a place by a part of one."""
    edge = Edge(routes(), request_timeout=0.5)
    with edge, RawBrowser(edge) as browser:
        browser.send(b"@chat {")
        browser.read_to_end()
        assert browser.statuses == [408]


def test_a_message_without_a_handler_is_answered_503():
    """As a request is."""
    with Edge(routes(), no_handler_timeout=0.2) as edge, RawBrowser(edge) as browser:
        browser.send(b"@chat {}\0")
        browser.read_to_end()
        assert browser.statuses == [503]


def test_a_policy_is_answered_behind_what_is_due():
    """Byte for byte as Mongrel2 does it; then the connection ends."""
    with at() as (edge, handler), RawBrowser(edge) as browser:
        browser.send(GET + b"<policy-file-request/>\0")
        handler.reply(handler.receive().conn_id, ANSWER)
        assert browser.read_to_end() == ANSWER + POLICY


def test_an_application_does_not_take_a_message_for_the_end_of_its_client():
    """Which is told of once, when it goes."""
    events = []

    def note(conn: Any, req: Any) -> None:
        events.append((req.method, req.path))
        if not req.is_disconnect():
            conn.reply(req, b"noted")

    edge = Edge(routes())
    with edge, transceiver(edge) as trans, serving(trans, note):
        with Browser(edge) as browser:
            for message in (b'@* {"type":"disconnect"}\0', b'@chat {"a":1}\0'):
                browser.send(message)
                assert browser.read(5) == b"noted"
    assert events[:2] == [("JSON", "@*"), ("JSON", "@chat")]


# -- next to Mongrel2 --------------------------------------------------------------------------------------------------

# What is sent, and how many messages come of it before the notice.
SAME: dict[str, tuple[bytes, int]] = {
    "JSON": (b'@chat {"a":"\xff\r\n"}\0', 1),
    "a longer path": (b"@chat/room;b=c/d%20e:f {}\0", 1),
    "what looks like a notice": (b'@* {"type":"disconnect"}\0', 1),
    "a ping with more in it": (b'@chat {"type":"ping","a":1}\0', 1),
    "a ping to where none is": (b'@* {"type":"ping"}\0', 1),
    "pings": (b'@chat {"type":"ping"}\0@chat {"type": \t "ping"}\0@chat {}\0', 1),
    "XML": (b'<chat a="1">hi\0 </chat>\0', 1),
    "a longer name": (b"<chatter-1.x\n>\0", 1),
    "several of both": (b"@chat {}\0" + GET + b"<chat/>\0@chat {}}\0", 4),
    "all of the server": (b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", 1),
}


@pytest.mark.mongrel2
@pytest.mark.parametrize("believes", [0, 1])
@pytest.mark.parametrize("protocol", ["tnetstring", "json"])
def test_handlers_are_told_what_mongrel2_tells_them(protocol, believes):
    """Byte for byte, also where a proxy says who the client is."""
    told = []
    entries = routes(protocol=protocol)
    settings: dict[str, int | str] = {**LIMITS, "no_clobber_xff": believes}
    for server in (Edge(entries, settings=settings, half_close_timeout=0.1), Mongrel2(entries, settings=settings)):
        server.start()
        try:
            with raw_handler(server) as handler:
                messages = {}
                for case, (sent, count) in SAME.items():
                    with RawBrowser(server) as browser:
                        browser.send(sent)
                        messages[case] = [handler.receive() for _ in range(count)]
                    messages[case].append(handler.receive())
                told.append({case: [message.raw for message in those] for case, those in messages.items()})
        finally:
            server.stop(0)  # a regular stop lasts half a second
    ours, theirs = told
    assert ours == theirs
