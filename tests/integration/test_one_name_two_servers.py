"""Two servers whose handler entries have one ``send_ident``, in one Transceiver under two names."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from front_ends import FrontEnd
from http_rig import Browser
from websocket_rig import RawClient, until

from greentx import Transceiver
from greentx.edge import Handler
from greentx.errors import LocalProtocolError
from greentx.protocol.websocket.frames import Opcode


@pytest.fixture(scope="module")
def servers(front_end: FrontEnd) -> Iterator[list[Any]]:
    """Two that know nothing of each other; their ids begin at 1 both."""
    with front_end.started({"/": Handler("same")}) as one, front_end.started({"/": Handler("same")}) as two:
        yield [one, two]


def addresses(server: Any) -> tuple[str, str]:
    entry = server.handlers[0]
    assert entry.send_spec is not None and entry.recv_spec is not None
    return entry.send_spec, entry.recv_spec


def say_where(trans: Transceiver) -> None:
    """Answer each request with the name of the set that it came by, each message with what it says."""
    for _sid, conn, req in trans.recv():
        assert conn is not None and req is not None
        if req.method == "WEBSOCKET":
            conn.reply_websocket(req, req.body)
        elif req.method == "GET":
            conn.reply_http(req, conn.sender)


@pytest.fixture
def trans(servers: list[Any]) -> Iterator[Transceiver]:
    """It knows the first one as "one"; the second one is to be added by the test."""
    with Transceiver("one", *addresses(servers[0]), rep_port=False, ping_timeout=0.3) as one:
        answering = gevent.spawn(say_where, one)
        one.wait_ready(10)
        yield one
        one.stop(timeout=1)
        answering.get(timeout=5)


def test_the_second_one_is_refused_and_named_and_the_first_one_s_browsers_get_their_own_answers(
    servers: list[Any], trans: Transceiver, caplog: pytest.LogCaptureFixture
) -> None:
    """A WebSocket of each, by any number: the first is served, the second is told 503, and a warning says why."""
    with RawClient(servers[0].port) as first:
        trans.add_connection("two", *addresses(servers[1]))
        trans.wait_ready(10)
        # As many as the first server has numbers for: one of them has the number of its WebSocket.
        strangers = [RawClient(servers[1].port) for _ in range(8)]
        try:
            assert [stranger.answer.split(b" ", 2)[1] for stranger in strangers] == [b"503"] * len(strangers)
            with Browser(servers[1]) as browser:
                assert browser.get().status == 503
            for number in range(20):
                first.send(b"%d" % number)
                answer = first.recv()
                while answer is not None and answer.opcode == Opcode.PING:
                    first.send(answer.payload, Opcode.PONG)
                    answer = first.recv()
                assert answer is not None and answer.payload == b"%d" % number
            assert len(trans.websockets) == 1
        finally:
            for stranger in strangers:
                stranger.close()
        status = {one["sender"]: one for one in trans.status()["connections"]}
        assert status["one"]["foreign_messages"] == 0
        assert status["two"]["foreign_messages"] >= len(strangers) + 1
        warnings = [
            record.getMessage()
            for record in caplog.records
            if record.levelno == logging.WARNING and "'same'" in record.getMessage()
        ]
        assert len(warnings) == 1 and warnings[0].startswith("two: ") and addresses(servers[0])[1] in warnings[0]
        # Its notices, too, are of its own numbers.
        until(lambda: not trans.connections["two"].link.life.requests.heads)
        first.send(b"still here")
        assert len(trans.websockets) == 1
        # The loss of the second server is not the first one's.
        trans.remove_connection("two")
        assert len(trans.websockets) == 1


def test_the_name_of_a_set_is_its_server_s_whoever_spoke_first(servers: list[Any], trans: Transceiver) -> None:
    """A set that is called as the messages of another one's are: it cannot be added while that one is served."""
    with Browser(servers[0]) as browser, Browser(servers[1]) as other:
        assert browser.get().body == b"one"
        with pytest.raises(LocalProtocolError, match=r"'same' .* connection set 'one'"):
            trans.add_connection("same", *addresses(servers[1]))
        assert sorted(trans.connections) == ["one"]
        assert browser.get().body == b"one"
        trans.remove_connection("one")
        # Now it is free.
        trans.add_connection("same", *addresses(servers[1]))
        trans.wait_ready(10)
        assert other.get().body == b"same"
        # The one that comes back under its old name says that other one's: it is the foreign one from now on.
        trans.add_connection("one", *addresses(servers[0]))
        trans.wait_ready(10)
        with Browser(servers[0]) as again:
            assert again.get().status == 503
        assert other.get().body == b"same"
