"""A Transceiver with the Server of mongrel2-transceiver, and a Server with its handlers: as bytes on plain sockets."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import gevent
import pytest
from http_rig import wait_until
from old_server import OldServer
from plain_handler import PlainHandler

from greentx import Connection, Request, Server, Transceiver
from greentx.errors import LocalProtocolError
from greentx.protocol.websocket.frames import Frame, Opcode
from greentx.standin.connector import Connector

LOCAL = "127.0.0.1"
NOBODY = (LOCAL, 1)
COUNT = 50
ANSWERS = [b"answer %d" % number for number in range(COUNT)]


class Loop:
    """Answers each request 50 times, but for what is asked of ``/later``; keeps all events."""

    def __init__(self) -> None:
        self.events: list[Request] = []

    def __call__(self, conn: Connection, req: Request) -> None:
        self.events.append(req)
        if req.path != "/later" and not req.is_disconnect():
            for number in range(COUNT):
                conn.reply(req, f"answer {number}")


@contextlib.contextmanager
def handler(**options: object) -> Iterator[tuple[Transceiver, Loop]]:
    """A Transceiver whose own server is not there, and its loop."""
    loop = Loop()
    options = {"rep_port": 0, "rep_ip": LOCAL, **options}
    with Transceiver("rune", NOBODY, NOBODY, **options) as trans:

        def run() -> None:
            for _sid, conn, req in trans.recv():
                loop(conn, req)

        running = gevent.spawn(run)
        yield trans, loop
        trans.stop(5)
        running.get(timeout=5)


# -- the old Server ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["json", "tnetstring"])
def test_an_old_server_gets_each_answer_as_a_message_and_its_guid_as_the_next_one(encoding):
    """Its connection is proven before a burst of answers and right after it; nothing is joined, nothing is added."""
    with handler() as (trans, loop), OldServer(trans.rep_port, encoding=encoding) as server:
        assert server.ask(b"PING") == b"PONG"
        assert server.add() == b"RECEIVED"
        server.verify_connect()
        for conn_id in (1, 2, 10):
            server.request(conn_id)
            assert server.hear_answers(conn_id, COUNT) == ANSWERS
            server.verify_connect()
        assert server.silent(100)
        assert [(req.sender, req.conn_id, req.headers["METHOD"], req.headers["QUERY"]) for req in loop.events] == [
            ("python_server", conn_id, "GET", {}) for conn_id in ("1", "2", "10")
        ]


def test_a_guid_that_is_asked_for_in_a_burst_comes_behind_it():
    """Answers are sent when they are given, so what is asked for later does not overtake them."""
    with handler() as (trans, _), OldServer(trans.rep_port) as server:
        server.add()
        server.verify_connect()
        for conn_id in range(1, 21):
            server.request(conn_id)
            first = server.hear_answers(conn_id, 1)
            guid = server.ask_for_proof()
            assert first + server.hear_answers(conn_id, COUNT - 1) == ANSWERS
            assert server.hear() == guid
        assert server.silent(100)


def test_an_old_server_hears_nothing_but_answers():
    """Not for a second after them, and not while a request is left unanswered and WebSockets would be pinged."""
    with handler(ping_timeout=0.2) as (trans, loop), OldServer(trans.rep_port) as server:
        server.add()
        server.verify_connect()
        server.request(1)
        assert server.hear_answers(1, COUNT) == ANSWERS
        assert server.silent(1000)
        server.request(2, "/later")
        wait_until(lambda: len(loop.events) == 2)
        assert server.silent(1000)
        waiting = loop.events[1]
        trans.connections["python_server"].reply(waiting, "at last")
        assert server.hear() == b"python_server 1:2, at last"
        server.verify_connect()
        assert server.silent(100)


def test_an_old_server_that_disconnects_hears_nothing_more():
    """Also where a request of it is open still; and no further request goes to that handler."""
    with handler(ping_timeout=0.2) as (trans, loop), OldServer(trans.rep_port) as server:
        for _ in range(3):
            assert server.add() == b"RECEIVED"
            server.verify_connect()
            server.verify_disconnect()  # which changes nothing
            server.request(1)
            assert server.hear_answers(1, COUNT) == ANSWERS
            loop.events.clear()
            server.request(2, "/later")
            wait_until(lambda: loop.events)
            assert server.remove() == b"RECEIVED"
            server.verify_disconnect()
            wait_until(lambda: not server.push.poll(0, 2))  # zmq.POLLOUT: nobody pulls
            assert list(trans.connections) == ["rune"]
            assert server.silent(300)


def test_one_answer_to_several_clients_of_an_old_server_is_one_message():
    """It names them all; an empty one closes them."""
    with handler() as (trans, loop), OldServer(trans.rep_port) as server:
        server.add()
        server.verify_connect()
        for conn_id in (1, 2):
            server.request(conn_id, "/later")
        wait_until(lambda: len(loop.events) == 2)
        conn = trans.connections["python_server"]
        conn.deliver("python_server", ["3", 4], "to both")
        assert server.hear() == b"python_server 3:3 4, to both"
        conn.reply(loop.events[0], "")
        assert server.hear() == b"python_server 1:1, "
        server.verify_connect()
        assert server.silent(100)


def test_a_server_that_says_it_is_a_mongrel2_is_spared_bursts():
    """On the control socket too: many small answers are joined to fewer messages, for it would drop the 17th."""
    count = 17

    def burst(conn: Connection, req: Request) -> None:
        for number in range(count):
            conn.reply(req, b"%02d" % number)

    whole = b"".join(b"%02d" % number for number in range(count))
    with Transceiver("rune", NOBODY, NOBODY, rep_port=0, rep_ip=LOCAL) as trans:
        serving = gevent.spawn(trans.serve, burst)
        with OldServer(trans.rep_port, "mongrel-2") as mongrel2, OldServer(trans.rep_port, "stand-in") as stand_in:
            assert mongrel2.add(mongrel2=True) == b"RECEIVED"
            assert stand_in.add(mongrel2=False) == b"RECEIVED"
            stand_in.verify_connect()
            # No proof: a real one would stand still over it.
            assert trans.connections["mongrel-2"].wait_ready(5)
            for server in (mongrel2, stand_in):
                server.request(1)
            assert stand_in.hear_answers(1, count) == [b"%02d" % number for number in range(count)]
            got: list[bytes] = []
            while b"".join(got) != whole:
                assert whole.startswith(b"".join(got)), got
                message = mongrel2.hear()
                if message.startswith(b"mongrel-2 1:1, "):
                    got.append(message.removeprefix(b"mongrel-2 1:1, "))
            assert len(got) < count
        trans.stop(5)
        serving.get(timeout=5)


# -- the old handler ---------------------------------------------------------------------------------------------------


class OldHandler(PlainHandler):
    """Answers to whatever name it is asked by."""

    def publish(self, sender: str, conn_ids: object, body: bytes) -> None:
        self.publish_raw(sender, f"{sender} {len(str(conn_ids))}:{conn_ids}, ".encode() + body)


def test_an_old_handler_is_connected_before_and_after_a_burst_of_answers():
    """The Server proves it each time, and its client gets every answer as a message."""
    with OldHandler(lambda req: ANSWERS) as old:
        with Server("python_server", [old.addr], LOCAL, push_port=0, sub_port=0) as server:
            for conn_id in ("1", "2"):
                client = server.client()
                assert client.conn_id == conn_id
                client.send("/", timeout=5000)
                for answer in ANSWERS:
                    assert client.recv(timeout=5000).body == answer
                Connector(old.addr, server).verify_connect()
                server.connect(old.addr)
                assert client.recv(timeout=100) is None
            assert server.disconnect(old.addr)
            assert server.handlers == ()
    assert [req.sender for req in old.requests] == ["python_server"] * 2


@pytest.mark.parametrize("encoding", ["json", "tnetstring"])
def test_a_server_with_the_old_program_s_name_has_websockets(encoding):
    """Handshake, echo, ping, close: as with any other name."""
    ends: list[int | None] = []

    def echo(ws: object) -> None:
        for message in ws:
            ws.send(message)
        ends.append(ws.close_code)

    with Transceiver("rune", NOBODY, NOBODY, rep_port=0, rep_ip=LOCAL) as trans:
        serving = gevent.spawn(trans.serve, websocket=echo)
        address = (LOCAL, trans.rep_port)
        with Server("python_server", address, LOCAL, push_port=0, sub_port=0, encoding=encoding) as server:
            client = server.client("websocket")
            assert client.handshake("/ws").status == 101
            for message in ("grüße", b"\x00\xff", "x" * 100_000):
                client.send(message)
                expected = message if isinstance(message, bytes) else message.encode()
                assert client.recv(timeout=5000).payload == expected
            client.ping(b"?")
            assert client.recv(timeout=5000) == Frame(b"?", Opcode.PONG)
            assert client.close(timeout=5000)
            assert client.close_code == 1000
            assert server.unclaimed == server.bad_replies == 0
        wait_until(lambda: ends)
        assert ends == [1000]
        trans.stop(5)
        serving.get(timeout=5)


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sender", ["python_server", "a_b.c:d/é", "世界", "x", "-", "a,b:1"])
def test_a_server_may_have_any_name_without_a_space(sender):
    """Requests, proofs and answers carry it to and fro; what is not latin-1 is seen as its bytes, as in headers."""
    seen = sender if sender.isascii() or "é" in sender else sender.encode().decode("latin-1")
    with handler() as (trans, loop):
        address = (LOCAL, trans.rep_port)
        with Server(sender, address, LOCAL, push_port=0, sub_port=0) as server:
            client = server.client()
            assert list(trans.connections) == ["rune", seen]
            client.send("/", timeout=5000)
            for answer in ANSWERS:
                assert client.recv(timeout=5000).body == answer
            server.connect(address)
            (req,) = loop.events
            assert (req.sender, req.sid) == (seen, (seen, "1"))
            assert (server.unclaimed, server.bad_replies) == (0, 0)
        wait_until(lambda: list(trans.connections) == ["rune"])


@pytest.mark.parametrize("sender", ["", "a b", " a", "a "])
def test_a_server_s_name_has_no_space_and_is_not_empty(sender):
    """It could not be told from what follows it."""
    with pytest.raises(LocalProtocolError):
        Server(sender, ip=LOCAL, push_port=0, sub_port=0)


@pytest.mark.parametrize("sender", ["a_b", "a.b", "é", "", "a b"])
def test_a_name_that_mongrel2_cannot_answer_to_is_refused_where_mongrel2_is_meant(sender, caplog):
    """A Transceiver's own, a Connection's, one that is added; and by the control socket, where that was said."""
    with pytest.raises(LocalProtocolError, match="letters, digits and '-'"):
        Transceiver(sender, NOBODY, NOBODY)
    with pytest.raises(LocalProtocolError, match="letters, digits and '-'"):
        Connection(sender, NOBODY, NOBODY)
    with handler() as (trans, _), OldServer(trans.rep_port, sender) as server:
        with pytest.raises(LocalProtocolError, match="letters, digits and '-'"):
            trans.add_connection(sender, NOBODY, NOBODY)
        with caplog.at_level(logging.CRITICAL, "greentx"):
            answer = server.add(mongrel2=True)
        assert answer.startswith(b"ERROR ")
        if sender in ("a_b", "a.b"):
            assert repr(sender).encode() in answer
        assert list(trans.connections) == ["rune"]
        assert server.ask(b"PING") == b"PONG"


def test_a_stand_in_may_be_added_by_its_name_from_python():
    """With stand_in=True, which says that the other side is a Server: it gets each answer as a message."""
    with handler() as (trans, _), OldServer(trans.rep_port, "a_b") as server:
        push, sub = ((LOCAL, port) for port in server.ports)
        conn = trans.add_connection("a_b", push, sub, stand_in=True)
        assert conn is trans.connections["a_b"]
        assert conn.wait_ready(5)
        server.request(1)
        assert server.hear_answers(1, COUNT) == ANSWERS
        server.verify_connect()
        for sender in ("", "a b"):
            with pytest.raises(LocalProtocolError):
                trans.add_connection(sender, push, sub, stand_in=True)
        trans.remove_connection("a_b")
        assert server.silent(100)
