"""The questions to a handler's control socket: byte for byte, and never wedged."""

from __future__ import annotations

import json
import time

import gevent
import pytest
import zmq.green as zmq
from free_ports import Server
from plain_handler import PlainHandler

from greentx.errors import ConnectTimeout, ControlError, LocalProtocolError, TransportError
from greentx.protocol.request import parse_request
from greentx.standin.connector import Connector, Unanswered


@pytest.fixture
def server():
    """A started server."""
    with Server("54c6755b", ip="127.0.0.1") as one:
        yield one


@pytest.fixture
def recorded():
    """A REP socket that answers RECEIVED to everything: its address, and what it was asked."""
    with zmq.Context() as context, context.socket(zmq.REP) as rep:
        rep.linger = 0
        port = rep.bind_to_random_port("tcp://127.0.0.1")
        questions = []

        def answer():
            while True:
                questions.append(rep.recv())
                rep.send(b"RECEIVED")

        answering = gevent.spawn(answer)
        yield f"127.0.0.1:{port}", questions
        answering.kill()


@pytest.mark.parametrize(
    ("addr", "endpoint"),
    [
        ("localhost", "tcp://localhost:9997"),
        ("localhost:80", "tcp://localhost:80"),
        (("10.0.0.1", 80), "tcp://10.0.0.1:80"),
        ("ipc:///tmp/x", "ipc:///tmp/x"),
    ],
)
def test_the_default_port_is_9997(addr, endpoint, server):
    """As for the old package."""
    connector = Connector(addr, server)
    assert connector.endpoint == endpoint
    assert repr(connector) == f"<Connector {endpoint} of 54c6755b>"


def test_a_malformed_address_is_refused(server):
    """When the connector is made."""
    with pytest.raises(LocalProtocolError):
        Connector("a:b:c", server)


@pytest.mark.parametrize("encoding", ["tnetstring", "json"])
def test_the_questions_are_those_of_the_old_package(encoding, recorded):
    """Every byte of each message; only the guid differs from one to the next."""
    addr, questions = recorded
    with Server("54c6755b", ip="127.0.0.1", encoding=encoding) as server:
        connector = Connector(addr, server)
        connector.connect()
        connector.disconnect()
        connector.verify_disconnect()
        with pytest.raises(ConnectTimeout):
            connector.verify_connect(timeout=30)
        ports = server.push_port, server.sub_port
    body = b'{"push": ["127.0.0.1", %d], "sub": ["127.0.0.1", %d]}' % ports
    of_json, of_mongrel2 = (
        (b"16:6:METHOD,4:JSON,}", b"20:6:METHOD,8:MONGREL2,}")
        if encoding == "tnetstring"
        else (b'17:{"METHOD":"JSON"},', b'21:{"METHOD":"MONGREL2"},')
    )
    assert questions[0] == b"54c6755b -1 /__add_connection__ %s%d:%s," % (of_json, len(body), body)
    assert questions[1] == b"54c6755b -1 /__remove_connection__ %s2:{}," % of_json
    assert questions[2] == b"54c6755b -1 /__disconnect_ping__ %s0:," % of_mongrel2
    ping = parse_request(questions[3])
    assert (ping.conn_id, ping.path, ping.method, ping.body) == ("-1", "/__ping__", "MONGREL2", b"")
    assert ping.headers["QUERY_STR"] == "text=" + ping.headers["QUERY"]["text"]
    assert len(ping.headers["QUERY"]["text"]) == 32
    assert json.loads(parse_request(questions[0]).body) == {
        "push": ["127.0.0.1", ports[0]],
        "sub": ["127.0.0.1", ports[1]],
    }


def test_a_handler_answers_ping(server):
    """In any case of letters."""
    with PlainHandler() as handler:
        assert Connector(handler.addr, server).ping() is True
        assert handler.commands == ["PING"]


def test_connect_and_verify_make_a_working_connection(server):
    """Each by itself, as with the old package; and disconnect ends it."""
    with PlainHandler() as handler:
        connector = Connector(handler.addr, server)
        assert connector.connect() is True
        assert connector.verify_connect() is True
        client = server.client()
        client.send("/", body=b"x", timeout=5000)
        assert client.recv().body == b"x"
        assert connector.disconnect() is True
        assert connector.verify_disconnect() is True
        assert handler.commands[-2:] == ["/__remove_connection__", "/__disconnect_ping__"]


def test_lost_answers_do_not_wedge_the_connector(server):
    """The next question has a socket of its own."""
    with PlainHandler(mute=3) as handler:
        connector = Connector(handler.addr, server)
        for _ in range(2):
            with pytest.raises(ControlError, match=f"tcp://{handler.addr} did not answer within 50 ms"):
                connector.status(timeout=50)
        assert connector.ping(timeout=50) is False
        assert connector.ping() is True
        connector.connect()
        connector.verify_connect()


def test_verify_asks_again_where_an_answer_was_lost(server):
    """One lost answer is less than the timeout."""
    with PlainHandler() as handler:
        connector = Connector(handler.addr, server)
        connector.connect()
        handler.mute = 1
        connector.verify_connect(timeout=5000)
        connector.disconnect()
        handler.mute = 1
        connector.verify_disconnect(timeout=5000)
        assert handler.mute == 0


def test_an_error_says_whether_the_question_went_out(server):
    """What went out may be obeyed later; what did not never will."""
    with PlainHandler(mute=1) as handler:
        for addr, asked in ((handler.addr, True), ("127.0.0.1:1", False)):
            with pytest.raises(Unanswered) as raised:
                Connector(addr, server).status(timeout=200)
            assert raised.value.asked is asked


def test_a_late_answer_disturbs_no_later_question(server):
    """It went to a socket that is no more."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        port = router.bind_to_random_port("tcp://127.0.0.1")

        def answer_late():
            first = router.recv_multipart()
            second = router.recv_multipart()
            router.send_multipart([*first[:-1], b"ERROR late"])
            router.send_multipart([*second[:-1], b"PONG"])

        answering = gevent.spawn(answer_late)
        connector = Connector(("127.0.0.1", port), server)
        with pytest.raises(ControlError, match="50 ms"):
            connector.status(timeout=50)
        assert connector.ping() is True
        answering.get(timeout=1)


def test_questions_of_many_greenlets_get_their_own_answers(server):
    """They do not share a socket."""
    with PlainHandler() as handler:
        connector = Connector(handler.addr, server)
        asking = [gevent.spawn(connector.ping) for _ in range(30)]
        gevent.joinall(asking, raise_error=True)
        assert all(one.value is True for one in asking)
        assert len(handler.commands) == 30


def test_who_does_not_answer_ping_is_not_there(server):
    """That is an answer, too: False, within the timeout; as is anything but PONG."""
    started = time.monotonic()
    assert Connector("127.0.0.1:1", server, timeout=100).ping() is False
    assert time.monotonic() - started < 5
    with zmq.Context() as context, context.socket(zmq.REP) as rep:
        rep.linger = 0
        port = rep.bind_to_random_port("tcp://127.0.0.1")
        answering = gevent.spawn(lambda: (rep.recv(), rep.send(b"ERROR who are you")))
        assert Connector(("127.0.0.1", port), server).ping() is False
        answering.get(timeout=1)


def test_a_handler_can_be_asked_without_a_server():
    """Whether it is there, and for its state; what would connect it says what is missing."""
    with PlainHandler() as handler:
        with Connector(handler.addr) as connector:
            assert connector.ping() is True
            assert connector.status() == {"version": "plain"}
            with pytest.raises(LocalProtocolError, match="has no server"):
                connector.connect()
        assert Connector(handler.addr).ping() is True
        assert repr(connector) == f"<Connector tcp://{handler.addr}>"


@pytest.mark.parametrize("ask", ["connect", "disconnect", "status"])
def test_a_handler_that_is_not_there_is_named_with_the_time(ask, server):
    """Within the timeout, which is the connector's own if none is given."""
    started = time.monotonic()
    with pytest.raises(ControlError, match=r"tcp://127\.0\.0\.1:1 did not answer within 100 ms"):
        getattr(Connector("127.0.0.1:1", server, timeout=100), ask)()
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(("ask", "state"), [("verify_connect", "connected"), ("verify_disconnect", "disconnected")])
def test_what_cannot_be_verified_is_named_with_the_time(ask, state, server):
    """And with what went wrong last."""
    with pytest.raises(ConnectTimeout, match=f"tcp://127.0.0.1:1 is not {state} after 150 ms: .* did not answer"):
        getattr(Connector("127.0.0.1:1", server), ask)(timeout=150)


def test_a_refusal_is_quoted(server):
    """Whatever else the answer is, it is not what was asked for."""
    with PlainHandler(refuse=b"ERROR no \xff") as handler:
        connector = Connector(handler.addr, server)
        for ask in (connector.connect, connector.disconnect):
            with pytest.raises(ControlError, match=f"tcp://{handler.addr} answered 'ERROR no"):
                ask()
        with pytest.raises(ConnectTimeout, match=r"after 500 ms: .* answered 'ERROR no"):
            connector.verify_connect(timeout=500)
        with pytest.raises(ControlError, match="to STATUS"):
            connector.status()


@pytest.mark.parametrize("answer", [b"[" * 200_000, b"\xff", b"9" * 5000, b"[]", b'{"a": ' * 100_000])
def test_no_status_is_too_odd(server, answer):
    """What a hostile peer answers is an error of ours, whatever json makes of it."""
    with PlainHandler(refuse=answer) as handler, pytest.raises(ControlError, match="to STATUS"):
        Connector(handler.addr, server).status()


def test_a_proof_that_goes_on_coming_is_no_disconnection(server):
    """A handler that still publishes proofs did not let go."""
    with PlainHandler() as handler:
        connector = Connector(handler.addr, server)
        connector.connect()
        connector.verify_connect()

        def go_on():
            while True:
                handler.publish_raw(server.sender, b"54c6755b 2:-1, some proof")
                gevent.sleep(0.02)  # the pace of the proofs

        going_on = gevent.spawn(go_on)
        with pytest.raises(ConnectTimeout, match="is not disconnected after 300 ms: no proof of it came"):
            connector.verify_disconnect(timeout=300)
        going_on.kill()
        connector.verify_disconnect()


def test_the_status_of_a_handler_is_a_dict(server):
    """What it says is its own."""
    with PlainHandler() as handler:
        assert Connector(handler.addr, server).status() == {"version": "plain"}


def test_a_connector_needs_a_started_server():
    """Its sockets are the server's."""
    with pytest.raises(TransportError, match="is not started"):
        Connector("localhost", Server(ip="127.0.0.1")).ping()
