"""Connection sets to a Server that a Transceiver knew before as a Mongrel2, by its addresses or by its name."""

from __future__ import annotations

from collections.abc import Iterator

import gevent
import pytest
from free_ports import Server

from greentx import Transceiver

LOCAL = "127.0.0.1"
ANSWERS = 50


@pytest.fixture
def server() -> Iterator[Server]:
    with Server("python_server", ip=LOCAL, encoding="json") as one:
        yield one


def answer(trans: Transceiver) -> None:
    """The loop of a handler that sends many answers to each request."""
    for _sid, conn, req in trans.recv():
        for number in range(ANSWERS):
            conn.reply(req, f"answer {number}")


def ask(server: Server, trans: Transceiver) -> list[bytes]:
    """What a client gets, all of it, with proofs of the connection before and behind."""
    server.connect((LOCAL, trans.rep_port))
    client = server.client()
    client.send("/", timeout=5000)
    got = [client.recv(5000).body for _ in range(ANSWERS)]
    server.connect((LOCAL, trans.rep_port))
    assert client.recv(50) is None
    return got


@pytest.mark.parametrize("host", [LOCAL, "localhost"])
@pytest.mark.parametrize("sender", ["rune", "python-server"])
def test_a_server_may_be_where_a_mongrel2_was_expected(server: Server, sender: str, host: str) -> None:
    """The handler's own connection set leads to the same Server: it is no Mongrel2 under either name or address."""
    push, sub = (host, server.push_port), (host, server.sub_port)
    with Transceiver(sender, push, sub, rep_port=0, rep_ip=LOCAL) as trans:
        answering = gevent.spawn(answer, trans)
        assert ask(server, trans) == [b"answer %d" % number for number in range(ANSWERS)]
        assert all(one.link.stand_in for one in trans.connections.values())
        assert server.unclaimed == server.bad_replies == 0
        assert all(one["foreign_messages"] == 0 for one in trans.status()["connections"])
        server.stop()
        trans.stop()
        answering.get(timeout=5)


def test_a_connection_set_that_a_server_asks_for_again_is_one_to_a_server(caplog: pytest.LogCaptureFixture) -> None:
    """It was there already, with the same name and addresses: what waits there goes out, and nothing is paced."""
    with (
        Server("one", ip=LOCAL) as server,
        Transceiver("one", server.push_addr, server.sub_addr, rep_port=0, rep_ip=LOCAL) as trans,
    ):
        trans.wait_ready(5)
        first = trans.conn
        assert not first.link.stand_in
        answering = gevent.spawn(answer, trans)
        client = server.client()
        client.send("/", timeout=5000)
        assert client.recv(5000).body == b"answer 0"
        server.connect((LOCAL, trans.rep_port))
        assert trans.conn is first and first.link.stand_in
        rest = b""
        while not rest.endswith(b"answer 49"):
            rest += client.recv(5000).body
        assert ask(server, trans) == [b"answer %d" % number for number in range(ANSWERS)]
        server.stop()
        trans.stop()
        answering.get(timeout=5)
